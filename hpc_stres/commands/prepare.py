"""Decode videos, compute TV-L1 flow and pack both into the clip store of a config.

Killed at any moment, the same command goes on where it was. Over several nodes: `mpirun -n 8 hpc-stres prepare ...`
or `sbatch slurm/prepare.sh`. Videos that do not decode stand in the store's rejected.jsonl with the reason.
"""

import argparse

from hpc_stres.commands import add_config_arguments, config_of


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_config_arguments(parser)
    parser.add_argument("--quiet", action="store_true", help="no progress")


def run(args: argparse.Namespace) -> int:
    from hpc_stres.bootstrap import find_world
    from hpc_stres.data.prepare import prepare

    is_first = find_world().is_first
    folder = prepare(config_of(args), quiet=args.quiet or not is_first)
    if is_first:
        print(f"store: {folder}")
    return 0
