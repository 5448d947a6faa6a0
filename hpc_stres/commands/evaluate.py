"""Test the finished phases of a run and print the paper's table with ours beside it.

  hpc-stres evaluate --run-dir runs/try
  torchrun --nproc_per_node 2 -m hpc_stres evaluate --run-dir runs/try

A folder that `submit.py --split all` made holds split1, split2, split3: all are tested, and
results.json above them has their mean. The result is the same to the last digit on any
number of ranks. A killed evaluation is resumed where it was; a second one of the same run
waits for the first.
"""

import argparse
from pathlib import Path

from hpc_stres.commands import add_override_argument
from hpc_stres.run.paths import split_folders


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--run-dir", required=True, metavar="D", help="run folder")
    parser.add_argument(
        "--phase",
        default="all",
        help="phases to test, with commas between (default: all that are done)",
    )
    parser.add_argument(
        "--protocol", choices=["paper", "quick"], help="test protocol (default: the run's)"
    )
    parser.add_argument(
        "--allow-missing", action="store_true", help="report k of n when test videos are missing"
    )
    parser.add_argument(
        "--mcnemar",
        metavar="A,B",
        help="test whether two columns differ, over recordings where they are known",
    )
    add_override_argument(parser)


def run(args: argparse.Namespace) -> int:
    run_dir = Path(args.run_dir)
    splits = split_folders(run_dir)
    if splits:
        return _run_splits(args, run_dir, splits)
    return _run_one(args, run_dir)


def _run_splits(args: argparse.Namespace, run_dir: Path, splits: list[Path]) -> int:
    """Each split's own run folder, and their mean above them."""
    from hpc_stres.evaluation.results import combine_splits
    from hpc_stres.evaluation.table import results_table
    from hpc_stres.parallel.world import find_world

    world = find_world()
    for folder in splits:
        _run_one(args, folder)
    if world.is_first:
        print("\nall splits\n" + results_table(combine_splits(run_dir, splits)))
    return 0


def _run_one(args: argparse.Namespace, run_dir: Path) -> int:
    from hpc_stres.config.recipe import select_phases
    from hpc_stres.errors import ConfigError
    from hpc_stres.evaluation.finished import load_trained
    from hpc_stres.parallel.world import find_world
    from hpc_stres.run.pinning import pin_kernels

    overrides = list(args.overrides)
    overrides += [f"evaluation.protocol={args.protocol}"] if args.protocol else []
    overrides += ["evaluation.allow_missing=true"] if args.allow_missing else []
    config = load_trained(run_dir, overrides)
    pin_kernels(config.training)
    phases = None if args.phase == "all" else select_phases(config.phases, args.phase)
    pair = [name.strip() for name in (args.mcnemar or "").split(",") if name.strip()]
    if args.mcnemar is not None and len(pair) != 2:
        raise ConfigError(f"--mcnemar {args.mcnemar}: expected two columns with a comma between")
    world = find_world()
    from hpc_stres.evaluation.evaluate import evaluate
    from hpc_stres.evaluation.results import columns, paired
    from hpc_stres.evaluation.table import results_table

    results = evaluate(config, run_dir, world, phases)
    if results is None:
        return 0
    print(results_table(results))
    if pair:
        table_columns = columns(config, run_dir)
        first, second = pair
        for name in pair:
            if name not in table_columns:
                raise ConfigError(
                    f"--mcnemar: no column {name}; the table has {', '.join(table_columns)}"
                )
        row = paired(table_columns[first], table_columns[second])
        counted = (
            "McNemar" if row["test"] == "mcnemar" else f"{row['groups']} recordings turned around"
        )
        only = f"only {first} right {row['broken']}, only {second} right {row['repaired']}"
        low, high = row["interval"]
        print(
            f"{counted}: {only}, difference {row['difference']:+.2f} ({low:+.2f} to {high:+.2f}), p = {row['p']:.3g}"
        )
    return 0
