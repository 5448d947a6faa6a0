"""Show how far runs are: state, step, speed, time left, why a job waits, who is late, what it cost,
and the last error with the place of its log. Of more than three runs each is one row.

  hpc-stres status runs/binding --watch
  hpc-stres status runs/*
"""

import argparse


def add_arguments(parser: argparse.ArgumentParser) -> None:
    from hpc_stres.launch.status import add_arguments as add

    add(parser)


def run(args: argparse.Namespace) -> int:
    from hpc_stres.launch.status import run as status

    return status(args)
