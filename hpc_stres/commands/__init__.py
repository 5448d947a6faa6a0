"""One module a command: `add_arguments(parser)` and `run(args)`, which returns the exit status."""

import argparse

from hpc_stres.config import Config


def add_config_arguments(parser: argparse.ArgumentParser) -> None:
    """--config and --set, as every command that needs a config has them."""
    parser.add_argument(
        "--config", metavar="F", default="configs/binding.yaml", help="config file (default: %(default)s)"
    )
    parser.add_argument(
        "--set", metavar="A.B=C", action="append", default=[], dest="overrides", help="override one value; repeatable"
    )


def config_of(args: argparse.Namespace) -> Config:
    """The config that the command line names."""
    from hpc_stres.configfile import load_config

    return load_config(args.config, args.overrides)
