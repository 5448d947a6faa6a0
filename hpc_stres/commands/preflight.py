"""Check the ranks of a job before it trains: hosts, GPUs, cores, versions, clocks, and a
64 MB all-reduce.

  srun python -m hpc_stres preflight --config configs/ucf101.yaml --run-dir runs/try

Two ranks on one GPU, a rank with one core, or different code or packages are refused with exit
status 1. The reports of all ranks go to preflight.json in the run folder. `python launch/submit.py`
runs this first in jobs on Slurm, and --brief in those of later phases: whether all ranks are there
and reach each other.
"""

import argparse
from pathlib import Path

from hpc_stres.commands import add_config_arguments, config_of


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_config_arguments(parser)
    parser.add_argument("--run-dir", metavar="D", help="run folder that keeps the reports")
    parser.add_argument(
        "--brief", action="store_true", help="only whether all ranks are there and reach each other"
    )


def run(args: argparse.Namespace) -> int:
    from hpc_stres.parallel.world import find_world
    from hpc_stres.tools import preflight

    world = find_world()
    cluster, run_dir = config_of(args).cluster, Path(args.run_dir) if args.run_dir else None
    if args.brief:
        preflight.reach_each_other(cluster, world, run_dir)
        return 0
    lines = preflight.run(cluster, world, run_dir)
    if world.is_first:
        print(
            "\n".join(f"preflight: {line}" for text in lines for line in text.splitlines()),
            flush=True,
        )
    return 0
