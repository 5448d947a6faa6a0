"""Draw frames of a video and their colour-coded TV-L1 flow into a PNG: the hue is the direction."""

import argparse
from pathlib import Path


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("video", metavar="VIDEO", help="video file")
    parser.add_argument(
        "--out", metavar="PNG", help="picture to write (default: NAME.flow.png here)"
    )
    parser.add_argument(
        "--frames", type=int, default=5, help="frames to show (default: %(default)s)"
    )
    parser.add_argument("--short-side", type=int, default=256, help="pixels (default: %(default)s)")
    parser.add_argument(
        "--backend", choices=["native", "opencv"], default="native", help="TV-L1 solver"
    )
    parser.add_argument(
        "--pyramid",
        choices=["paper", "opencv4"],
        default="paper",
        help="the authors' OpenCV 2.4 (halves, no median) or OpenCV 4 (steps of 0.8, median)",
    )


def run(args: argparse.Namespace) -> int:
    from hpc_stres.evaluation.preview import draw_flow

    path = Path(args.video)
    out = Path(args.out or f"{path.stem}.flow.png")
    drawn, count = draw_flow(path, out, args.frames, args.short_side, args.backend, args.pyramid)
    print(f"{out}: {drawn} of {count} frames of {path.name} and their flow")
    return 0
