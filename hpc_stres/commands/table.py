"""Write a run's table, its figures and a methods paragraph for a paper.

  hpc-stres table --run-dir runs/ucf101 --format latex
  hpc-stres table --run-dir runs/ucf101 --format csv --out table.csv --figures figures --methods methods.txt

latex: a tabular with booktabs' rules. csv: every figure of the report, each class and calibration
too. Figures are SVG and PDF. The methods paragraph says every number of the config that a reader
needs to repeat the run.
"""

import argparse
from pathlib import Path

from hpc_stres.commands import writing


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--run-dir", required=True, metavar="D", help="run folder with results")
    parser.add_argument(
        "--format",
        choices=["latex", "markdown", "csv"],
        default="markdown",
        help="form of the table",
    )
    parser.add_argument("--out", metavar="FILE", help="write the table there (default: print it)")
    parser.add_argument("--figures", metavar="DIR", help="write each figure as SVG and PDF there")
    parser.add_argument(
        "--methods", metavar="FILE", help="write the methods paragraph there; - prints it"
    )


def run(args: argparse.Namespace) -> int:
    from hpc_stres.config.loading import load_run
    from hpc_stres.evaluation.figures import write_results
    from hpc_stres.evaluation.methods import paragraph
    from hpc_stres.evaluation.table import formatted, read_results
    from hpc_stres.run.paths import RunPaths, split_folders

    run_dir = Path(args.run_dir)
    results = read_results(RunPaths(run_dir).results)
    with writing(args.out or args.figures or args.methods or "-"):
        _say(formatted(results, args.format), args.out)
        if args.figures:
            print(
                f"written: {write_results(results, Path(args.figures))} figures in {args.figures}"
            )
        if args.methods:
            config = load_run(next(iter(split_folders(run_dir)), run_dir))
            _say(
                ("\n" if args.methods == "-" else "") + paragraph(config, results) + "\n",
                args.methods,
            )
    return 0


def _say(text: str, path: str | None) -> None:
    """Print a text, or write it where a file is named."""
    from hpc_stres.run.paths import write_text

    if path in (None, "-"):
        print(text, end="")
        return
    write_text(Path(str(path)), text)
    print(f"written: {path}")
