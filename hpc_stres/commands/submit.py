"""Submit the phases of a run as dependent jobs, on Slurm or on this machine.

  hpc-stres submit --config configs/binding.yaml --phase all --cluster local
  hpc-stres submit --config configs/ucf101.yaml --nodes 4 --gpus-per-node 4 --phase all
  hpc-stres submit --cancel runs/ucf101

The same as `python launch/submit.py` in a checkout. Phases that are done or in the queue are
not submitted again; the same command resumes after a failure. --dry-run prints the jobs and
submits nothing.
"""

import argparse


def add_arguments(parser: argparse.ArgumentParser) -> None:
    from hpc_stres.launch.submit import add_arguments as add

    add(parser)


def run(args: argparse.Namespace) -> int:
    from hpc_stres.launch.submit import run as submit

    return submit(args)
