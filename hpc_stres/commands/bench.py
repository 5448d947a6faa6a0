"""Measure speed as ratios within one run, each part against a reference on the same cores.

  hpc-stres bench flow    our TV-L1 against OpenCV's, on the same frames and threads
  hpc-stres bench norm    fused normalisation and ReLU against torch's BatchNorm and ReLU, forward and backward
  hpc-stres bench feed    the feed against bare JPEG decoding and against a PyTorch DataLoader over single JPEG files
  hpc-stres bench step    a training step of ST-ResNet-50 against its convolutions alone
  hpc-stres bench evaluate  peak memory of the paper's protocol on a video of 340x256 with ResNet-50
  hpc-stres bench plan    what `hpc-stres plan` predicts against real runs on one and two processes

--json FILE writes the figures with the machine's name.
"""

import argparse

PARTS = ("flow", "norm", "feed", "step", "evaluate", "plan")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("part", choices=[*PARTS, "all"], help="what to measure")
    parser.add_argument("--json", metavar="FILE", help="write the figures as JSON as well")
    parser.add_argument("--threads", type=int, default=1, help="CPU threads of every contestant (default: %(default)s)")
    parser.add_argument("--repeats", type=int, default=3, help="measurements, of which the best counts")


def run(args: argparse.Namespace) -> int:
    from pathlib import Path

    from hpc_stres.run.large_pages import use_large_pages
    from hpc_stres.run.paths import write_json
    from hpc_stres.run.tables import text_table
    from hpc_stres.tools.bench.parts import machine, measure

    use_large_pages()
    parts = PARTS if args.part == "all" else (args.part,)
    figures = [figure for part in parts for figure in measure(part, args.threads, args.repeats)]
    rows = [[f.part, f.what, f"{f.value:.4g} {f.unit}", f.target, f.verdict] for f in figures]
    print(text_table(["part", "what", "measured", "target", ""], rows))
    if args.json:
        write_json(Path(args.json), {"machine": machine(args.threads), "figures": [f._asdict() for f in figures]})
    return 0
