"""Decode videos, compute optical flow and pack both into the clip store of a config.

Restartable: a killed run resumes where it was. Run again after the data set has changed, it does
what has changed and says it: another label or split costs seconds, a new or replaced video is
prepared. Over several nodes: `mpirun -n 8 hpc-stres prepare ...` or `sbatch slurm/prepare.sh`. Ends
with a summary of the store; videos that do not decode are in it with the reason.
"""

import argparse

from hpc_stres.commands import add_config_arguments, config_of


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_config_arguments(parser)
    parser.add_argument("--quiet", action="store_true", help="no progress")


def run(args: argparse.Namespace) -> int:
    from hpc_stres.parallel.world import find_world
    from hpc_stres.prepare import run

    is_first = find_world().is_first
    outcome = run.run(config_of(args), quiet=args.quiet or not is_first)
    if is_first:
        for line in outcome.lines:
            print(line)
        print(f"store: {outcome.folder}")
    return 0
