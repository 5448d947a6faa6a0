"""Write the report of a run, or one of several runs: one file that opens from disk
without a network.

  hpc-stres report runs/try                              writes runs/try/report.html
  hpc-stres report runs/seed1 runs/seed2 --out seeds.html

Of several runs each gets its own report, and one page shows all of them: mean, deviation and
interval over seeds or splits, curves, classes, what their configs differ in. A folder with split1,
split2, ... counts as these runs, and its page is written into it.
"""

import argparse
from pathlib import Path

from hpc_stres.errors import ConfigError
from hpc_stres.run.paths import split_folders


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("runs", nargs="*", metavar="RUN", help="run folders with results")
    parser.add_argument(
        "--run-dir", action="append", default=[], metavar="D", help="the same, by name; repeatable"
    )
    parser.add_argument(
        "--out", metavar="HTML", help="page of several runs (default: report.html above the splits)"
    )


def run(args: argparse.Namespace) -> int:
    from hpc_stres.config.loading import load_run
    from hpc_stres.evaluation.report.facts import gather
    from hpc_stres.evaluation.report.page import write_report
    from hpc_stres.evaluation.report.several import write_several

    named = [Path(name) for name in [*args.runs, *args.run_dir]]
    if not named:
        raise ConfigError("no run folder\nName one or more: hpc-stres report RUN ...")
    folders = [folder for name in named for folder in (split_folders(name) or [name])]
    above = named[0] / "report.html" if len(named) == 1 and folders != named else None
    if len(folders) > 1 and not (args.out or above):
        raise ConfigError("several runs: their page needs a name\nAdd --out NAME.html.")
    if args.out and len(folders) == 1:
        raise ConfigError(
            f"--out {args.out}: one run's report is report.html in its folder\nLeave --out away."
        )
    for folder in folders:
        print(f"report: {write_report(load_run(folder), folder)}")
    if len(folders) > 1:
        gathered = [gather(load_run(folder), folder) for folder in folders]
        print(
            f"all runs: {write_several(gathered, Path(args.out) if args.out else above or Path('report.html'))}"
        )
    return 0
