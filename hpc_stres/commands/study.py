"""Put several runs together: mean, deviation and 95 % interval over seeds and splits, and
what seeds agree on.

  hpc-stres study runs/seed1 runs/seed2 runs/seed3
  hpc-stres study runs/array --out study

A folder may be a run, the folder of a submission over splits, or a folder of either. Runs
that differ in nothing but seed and split are one experiment; several experiments are compared
with each other. `--out` writes study.json, study.csv, and the learning curves with their
bands as SVG and PDF.
"""

import argparse
from pathlib import Path

from hpc_stres.commands import writing


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "runs", nargs="+", metavar="RUN", help="run folders, or folders of run folders"
    )
    parser.add_argument(
        "--out", metavar="DIR", help="write study.json, study.csv and figures there"
    )


def run(args: argparse.Namespace) -> int:
    from hpc_stres.evaluation.figures import write_curves
    from hpc_stres.evaluation.study import lines, study
    from hpc_stres.evaluation.table import study_csv
    from hpc_stres.run.paths import write_json, write_text

    studied = study([Path(name) for name in args.runs])
    print("\n".join(lines(studied)))
    if args.out:
        out = Path(args.out)
        with writing(args.out):
            write_json(out / "study.json", studied)
            write_text(out / "study.csv", study_csv(studied))
            written = write_curves(studied, out)
        print(f"written: {out / 'study.json'}, study.csv and {written} figures")
    return 0
