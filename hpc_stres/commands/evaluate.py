"""Test the finished phases of a run and print the paper's table with ours beside it.

  hpc-stres evaluate --run-dir runs/try
  torchrun --nproc_per_node 2 -m hpc_stres evaluate --run-dir runs/try

The result is the same to the last digit on any number of ranks. A killed evaluation goes on where it was.
"""

import argparse
from pathlib import Path


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--run-dir", required=True, metavar="D", help="run folder")
    parser.add_argument(
        "--phase", default="all", help="phases to test, with commas between (default: all that are done)"
    )
    parser.add_argument("--protocol", choices=["paper", "quick"], help="test protocol (default: the run's)")
    parser.add_argument("--allow-missing", action="store_true", help="report k of n when test videos are missing")
    parser.add_argument("--mcnemar", metavar="A,B", help="test whether two columns of the table differ")
    parser.add_argument(
        "--set", metavar="A.B=C", action="append", default=[], dest="overrides", help="override one value; repeatable"
    )


def run(args: argparse.Namespace) -> int:
    from hpc_stres.bootstrap import find_world
    from hpc_stres.configfile import load_run
    from hpc_stres.recipe import select_phases

    run_dir = Path(args.run_dir)
    overrides = list(args.overrides)
    overrides += [f"evaluation.protocol={args.protocol}"] if args.protocol else []
    overrides += ["evaluation.allow_missing=true"] if args.allow_missing else []
    config = load_run(run_dir, overrides)
    phases = None if args.phase == "all" else select_phases(config.phases, args.phase)
    world = find_world()
    from hpc_stres.evaluation.evaluate import columns, evaluate
    from hpc_stres.evaluation.scores import mcnemar
    from hpc_stres.evaluation.table import results_table

    results = evaluate(config, run_dir, world, phases)
    if results is None:
        return 0
    print(results_table(results))
    if args.mcnemar:
        found = columns(config, run_dir)
        first, second = (name.strip() for name in args.mcnemar.split(","))
        only_first, only_second, p = mcnemar(found[first], found[second])
        print(f"McNemar: only {first} right {only_first}, only {second} right {only_second}, p = {p:.3g}")
    return 0
