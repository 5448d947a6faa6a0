"""Fuzzing that follows which lines a case reaches.

  python -m tests.campaign.guided --parser "config file" --seconds 60

It needs atheris, which is no dependency of this project: `pip install atheris` into an environment of
one's own, where its wheels suit this Python. Cases begin with the sound examples and the stored ones
(see fuzzing.py), and are judged as there. A case that fails is kept in the folder that is named.
"""

import argparse
import hashlib
import importlib
import os
import sys
import tempfile
from pathlib import Path

from tests.campaign import fuzzing
from tests.campaign.experiments import CONFIG
from tests.campaign.judge import CRASHED
from tests.campaign.parsers import Parser, Parsers

# What is watched while it runs.
WATCHED = (
    "hpc_stres.config.loading", "hpc_stres.listings.sources", "hpc_stres.listings.splits",
    "hpc_stres.models.weights", "hpc_stres.models.caffe", "hpc_stres.evaluation.fusion",
    "hpc_stres.evaluation.networks", "hpc_stres.prepare.video",
)  # fmt: skip


def main() -> int:
    """Fuzz one parser for a while; atheris ends the process."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--parser", required=True)
    parser.add_argument("--seconds", type=int, default=60)
    args = parser.parse_args()
    try:
        import atheris
    except ImportError:
        print("atheris is not installed here: pip install atheris", file=sys.stderr)
        return 2
    with atheris.instrument_imports(include=["hpc_stres"]):
        for name in WATCHED:
            importlib.import_module(name)
    folder = Path(tempfile.mkdtemp(prefix="guided-"))
    parsers = {one.name: one for one in Parsers(folder / "files", CONFIG).all() if not one.cut}
    if args.parser not in parsers:
        print(f"no parser {args.parser!r}; there are: {', '.join(parsers)}", file=sys.stderr)
        return 2
    chosen = parsers[args.parser]
    corpus = folder / "corpus"
    fill(corpus, chosen)

    def one_case(data: bytes) -> None:
        outcome = fuzzing.attempt(chosen, data)
        if outcome.verdict == CRASHED:
            raise RuntimeError(outcome.why)

    fuzzing.limit()
    print(f"cases that fail are kept in {folder}", flush=True)
    os.chdir(folder)
    atheris.Setup(
        ["guided", str(corpus), f"-max_total_time={args.seconds}", "-print_final_stats=1"], one_case
    )
    atheris.Fuzz()
    return 0


def fill(corpus: Path, parser: Parser) -> None:
    """The cases to begin with, in files named by what they hold."""
    corpus.mkdir(parents=True)
    for case in [*parser.examples, *fuzzing.stored_cases().get(parser.name, [])]:
        (corpus / hashlib.sha256(case).hexdigest()[:16]).write_bytes(case)


if __name__ == "__main__":
    sys.exit(main())
