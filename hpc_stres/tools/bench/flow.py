"""TV-L1 against OpenCV's."""

import functools

import numpy as np

from hpc_stres.tools.bench.figures import Figure, interleaved, quotients, rate, ratio
from hpc_stres.tools.bench.scene import moving_frames

FLOW_TARGET = 3.0


def bench_flow(threads: int, repeats: int) -> list[Figure]:
    """Our TV-L1 against OpenCV's with the same parameters and threads, for both pyramids."""
    from hpc_stres.data.flow import PYRAMIDS, tvl1
    from hpc_stres.prepare.video import gray

    frames = np.stack([gray(frame) for frame in moving_frames(5)])
    count = len(frames) - 1
    figures = []
    for pyramid in PYRAMIDS:
        own = functools.partial(tvl1, frames, "native", threads, pyramid)
        opencv = functools.partial(tvl1, frames, "opencv", threads, pyramid)
        ours, reference = interleaved(repeats, own, opencv)
        figures += [
            rate("flow", f"{pyramid}: ours", count, ours, "frames/s"),
            rate("flow", f"{pyramid}: OpenCV", count, reference, "frames/s"),
            ratio("flow", f"{pyramid}: ours over OpenCV", quotients(reference, ours), FLOW_TARGET),
        ]
    return figures
