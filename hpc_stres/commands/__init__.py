"""One module a command: `add_arguments(parser)` and `run(args)`, which returns the exit status."""

import argparse

from hpc_stres.config.schema import Config


def add_config_arguments(parser: argparse.ArgumentParser) -> None:
    """--config and --set, as every command that needs a config has them."""
    parser.add_argument("--config", metavar="F", help="config file (default: the demonstration's)")
    parser.add_argument(
        "--set", metavar="A.B=C", action="append", default=[], dest="overrides", help="override one value; repeatable"
    )


def config_of(args: argparse.Namespace) -> Config:
    """The config that the command line names."""
    from hpc_stres.config.loading import load_config

    return load_config(config_path(args), args.overrides)


def config_path(args: argparse.Namespace) -> str:
    """The file that --config names, or the demonstration's, which an installed package carries with it."""
    from hpc_stres.config.loading import CONFIGS

    return args.config or str(CONFIGS / "binding.yaml")
