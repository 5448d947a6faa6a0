"""Say what is on this machine and what would go wrong. Each line is ok, warning or missing,
with what to do.

Exit status 1 if the main job could not run here.
"""

import argparse
import sys
from pathlib import Path

from hpc_stres.tools.doctor import Finding, examine

MARKS = {"ok": "ok     ", "warning": "warning", "missing": "missing"}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--data-root",
        metavar="D",
        default="data",
        help="folder of data sets (default: %(default)s)",
    )


def run(args: argparse.Namespace) -> int:
    findings = examine(Path(args.data_root))
    for finding in findings:
        print(f"{MARKS[finding.state]}  {finding.what:<14} {finding.text}" + _mend(finding))
    fatal = [finding.what for finding in findings if finding.state == "missing" and finding.fatal]
    if fatal:
        print(f"the main job cannot run here: {', '.join(fatal)}", file=sys.stderr)
    return 1 if fatal else 0


def _mend(finding: Finding) -> str:
    return f"; {finding.remedy}" if finding.remedy and finding.state != "ok" else ""
