"""One module a command: `add_arguments(parser)` and `run(args)`, which returns the exit status."""

import argparse
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from hpc_stres.errors import UserError

if TYPE_CHECKING:
    from hpc_stres.config.schema import Config


@contextmanager
def writing(place: str) -> Iterator[None]:
    """Files under a place that the command line names: what the disk refuses is
    said in a sentence."""
    try:
        yield
    except OSError as error:
        reason = error.strerror or error
        raise UserError(
            f"{error.filename or place}: cannot be written: {reason}\nName another place."
        ) from None


def add_override_argument(parser: argparse.ArgumentParser) -> None:
    """--set, as every command has it."""
    parser.add_argument(
        "--set",
        metavar="A.B=C",
        action="append",
        default=[],
        dest="overrides",
        help="override one value; repeatable",
    )


def add_config_arguments(parser: argparse.ArgumentParser) -> None:
    """--config and --set, as every command that needs a config has them."""
    parser.add_argument("--config", metavar="F", help="config file (default: the demonstration's)")
    add_override_argument(parser)


def config_of(args: argparse.Namespace) -> "Config":
    """The config that the command line names."""
    from hpc_stres.config.loading import load_config

    return load_config(config_path(args), args.overrides)


def config_path(args: argparse.Namespace) -> str:
    """The file that --config names, or the demonstration's, which an installed package
    carries with it."""
    from hpc_stres.config.loading import CONFIGS

    return args.config or str(CONFIGS / "binding.yaml")
