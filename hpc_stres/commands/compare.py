"""Say what changed from the first run to each other one, and what came of it.

  hpc-stres compare runs/base runs/longer_clips
  hpc-stres compare runs/base runs/a runs/b --json changes.json

Config, code, data and store that differ; accuracy of the columns that both have, with the
interval of the paired difference and an exact test over recordings; classes and videos that were
repaired and broken.
"""

import argparse
from pathlib import Path

from hpc_stres.commands import writing


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("first", metavar="A", help="run folder to compare with")
    parser.add_argument("others", nargs="+", metavar="B", help="run folders to compare")
    parser.add_argument("--json", metavar="FILE", help="write everything, with every video's name")


def run(args: argparse.Namespace) -> int:
    from hpc_stres.evaluation.compare import compare, lines
    from hpc_stres.run.paths import write_json

    comparison = compare(Path(args.first), [Path(name) for name in args.others])
    print("\n".join(lines(comparison)))
    if args.json:
        with writing(args.json):
            write_json(Path(args.json), comparison)
        print(f"written: {args.json}")
    return 0
