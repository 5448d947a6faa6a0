"""Write a run's report.html: one file that opens from disk without a network."""

import argparse
from pathlib import Path

from hpc_stres.run.paths import split_folders


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--run-dir", required=True, metavar="D", help="run folder with results")


def run(args: argparse.Namespace) -> int:
    from hpc_stres.config.loading import load_run
    from hpc_stres.evaluation.report import write_report

    run_dir = Path(args.run_dir)
    for folder in split_folders(run_dir) or [run_dir]:
        print(f"report: {write_report(load_run(folder), folder)}")
    return 0
