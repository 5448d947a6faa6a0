"""Draw frames of a video and their colour-coded TV-L1 flow into a PNG: the hue is the direction."""

import argparse
from pathlib import Path


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("video", metavar="VIDEO", help="video file")
    parser.add_argument("--out", metavar="PNG", help="picture to write (default: NAME.flow.png here)")
    parser.add_argument("--frames", type=int, default=5, help="frames to show (default: %(default)s)")
    parser.add_argument("--short-side", type=int, default=256, help="pixels (default: %(default)s)")
    parser.add_argument("--backend", choices=["native", "opencv"], default="native", help="TV-L1 solver")
    parser.add_argument(
        "--pyramid",
        choices=["paper", "opencv4"],
        default="paper",
        help="the authors' OpenCV 2.4 (halves, no median) or OpenCV 4 (steps of 0.8, median)",
    )


def run(args: argparse.Namespace) -> int:
    import cv2
    import numpy as np

    from hpc_stres.data.flow import tvl1
    from hpc_stres.errors import UserError
    from hpc_stres.evaluation.pictures import colour_flow
    from hpc_stres.prepare.video import UndecodableError, decode, gray, resize, target_size
    from hpc_stres.run.paths import write_bytes

    path = Path(args.video)
    if not path.is_file():
        raise UserError(f"{path}: no such video")
    try:
        count = sum(1 for _ in decode(path))
        wanted = {round(value) for value in np.linspace(0, max(count - 2, 0), args.frames)}
        needed = wanted | {number + 1 for number in wanted}
        kept = {}
        for number, frame in enumerate(decode(path)):
            if number in needed:
                kept[number] = resize(frame, *target_size(frame.shape[0], frame.shape[1], args.short_side))
    except UndecodableError as error:
        raise UserError(f"{path}: {error}") from None
    if count < 2:
        raise UserError(f"{path}: one frame alone has no flow")
    columns = []
    for number in sorted(wanted):
        pair = np.stack([gray(kept[number]), gray(kept[number + 1])])
        flow = tvl1(pair, args.backend, pyramid=args.pyramid)[0]
        columns.append(np.concatenate([kept[number], colour_flow(flow)]))
    out = Path(args.out or f"{path.stem}.flow.png")
    done, data = cv2.imencode(".png", np.concatenate(columns, axis=1)[..., ::-1])
    if not done:
        raise UserError(f"{out}: the picture could not be encoded")
    write_bytes(out, data.tobytes())
    print(f"{out}: {len(columns)} of {count} frames of {path.name} and their flow")
    return 0
