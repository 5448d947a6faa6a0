"""Show how far the phases of a run are: state, step, speed, time left, and the last error with the place of its log.

hpc-stres status runs/binding --watch
"""

import argparse


def add_arguments(parser: argparse.ArgumentParser) -> None:
    from hpc_stres.launch.status import add_arguments as add

    add(parser)


def run(args: argparse.Namespace) -> int:
    from hpc_stres.launch.status import run as status

    return status(args)
