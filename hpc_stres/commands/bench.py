"""Measure speed as ratios within one run, each part against a reference on the same cores.

  hpc-stres bench all --json mine.json    every part, and the figures with the machine's name
  hpc-stres bench flow --threads 1        one part
  hpc-stres bench list                    what the parts are

Repetitions take turns with their reference; the median counts, and the spread beside it is half the
distance of the quartiles. `make bench` measures everything on one thread.
"""

import argparse


def add_arguments(parser: argparse.ArgumentParser) -> None:
    from hpc_stres.tools.bench.parts import PARTS

    parser.add_argument(
        "part",
        choices=[*PARTS, "all", "list"],
        metavar="PART",
        help=f"all, list, {', '.join(PARTS)}",
    )
    parser.add_argument("--json", metavar="FILE", help="write the figures as JSON as well")
    parser.add_argument(
        "--threads",
        type=int,
        default=1,
        help="CPU threads of every contestant (default: %(default)s)",
    )
    parser.add_argument(
        "--repeats", type=int, default=5, help="rounds of all contestants (default: %(default)s)"
    )


def run(args: argparse.Namespace) -> int:
    from pathlib import Path

    from hpc_stres.errors import ConfigError
    from hpc_stres.run.large_pages import keep_freed_memory, use_large_pages
    from hpc_stres.run.paths import write_json
    from hpc_stres.run.tables import text_table
    from hpc_stres.tools.bench.figures import machine, text_row
    from hpc_stres.tools.bench.parts import PARTS, measure

    if args.part == "list":
        print(
            text_table(
                ["part", "what is measured"], [[name, part.text] for name, part in PARTS.items()]
            )
        )
        return 0
    for option in ("threads", "repeats"):
        if getattr(args, option) < 1:
            raise ConfigError(f"--{option} {getattr(args, option)}: expected 1 or more")
    use_large_pages()
    keep_freed_memory()
    parts = list(PARTS) if args.part == "all" else [args.part]
    figures = []
    for part in parts:
        figures += measure(part, args.threads, args.repeats)
        if args.json:  # after each part, so that a run that is ended has what it measured
            rows = [figure._asdict() for figure in figures]
            write_json(Path(args.json), {"machine": machine(args.threads), "figures": rows})
    print(
        text_table(
            ["part", "what", "measured", "spread", "target", ""],
            [text_row(figure) for figure in figures],
        )
    )
    return 0
