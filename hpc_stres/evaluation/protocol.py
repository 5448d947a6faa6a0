"""Test protocols: which clips of a video are scored, and how its scores become one.

Fully convolutional in space: a frame of 256x340 gives 8x11 places, and the classifier's logits are averaged over the
2x5 windows of 7x7 places in them. That equals, to rounding, pooling each window by itself. It does not equal ten crops
of 224x224: a crop is padded with zeros at its own edges in every layer, and in a ResNet-50, whose last unit sees 483
pixels, no place of a crop is free of that. Inside the frame the windows see the real surroundings instead.

Fully convolutional in time: all chunks of a video go through together; the temporal layers pad with zeros at the first
and last chunk only.

Memory: one clip at a time. Units that do not look along time take FRAMES_AT_ONCE frames, so that a clip's peak is a
few copies of its first stage's output, linear in chunks and pixels; `hpc-stres bench evaluate` measures it.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from hpc_stres.config.schema import EvaluationConfig
from hpc_stres.data.feed import ClipReader, Clips
from hpc_stres.data.requests import Box, Request, flow_stack, spread_frames
from hpc_stres.models import Logits
from hpc_stres.store.reader import VideoRow

QUICK_CHUNKS = 5
# One thread gives the same sums whatever the number of ranks on a machine; ranks, not threads, share the cores.
EVALUATION_THREADS = 1


Scorer = Callable[[Tensor | None, Tensor | None], Logits]


class VideoScores(NamedTuple):
    """Logits of one video, per stream, in float64: averaged over space and flips, for each time output."""

    appearance: NDArray[np.float64] | None
    motion: NDArray[np.float64] | None


def describe(config: EvaluationConfig) -> str:
    """The protocol in words, as it is printed beside every number."""
    if config.protocol == "quick":
        return (
            f"quick: one clip of {QUICK_CHUNKS} chunks, centre, no flip, full frame; mean of logits over space and time"
        )
    flips = " and their flips" if config.flips else ""
    return (
        f"paper: {config.chunks} evenly spaced chunks{flips}, full frame, fully convolutional in space and time; "
        "mean of logits over space, time, flips and streams, no softmax"
    )


def test_requests(row: VideoRow, video: int, config: EvaluationConfig) -> list[Request]:
    """The clips of one video under a protocol."""
    chunks = QUICK_CHUNKS if config.protocol == "quick" else config.chunks
    frames = spread_frames(row.frames, chunks)
    stacks = tuple(flow_stack(frame, row.flow_pairs, "mirror") for frame in frames)
    box = Box(0, 0, row.height, row.width)
    flips = (False, True) if config.protocol == "paper" and config.flips else (False,)
    return [Request(0, video, row.label, frames, stacks, box, flip) for flip in flips]


@torch.no_grad()
def score_video(model: Scorer, reader: ClipReader, clips: Sequence[Request], dtype: torch.dtype) -> VideoScores:
    """Scores of one video; its flips go through one after another, so that memory holds one clip at a time."""
    passes = [_forward(model, reader.read([request]), dtype) for request in clips]
    streams: list[NDArray[np.float64] | None] = []
    for stream in ("appearance", "motion"):
        logits = [getattr(one, stream) for one in passes]
        if logits[0] is None:
            streams.append(None)
            continue
        stacked = torch.stack([one[0].double() for one in logits])
        streams.append(stacked.mean(dim=0).cpu().numpy())
    return VideoScores(*streams)


def _forward(model: Scorer, clips: Clips, dtype: torch.dtype) -> Logits:
    rgb = None if clips.rgb is None else clips.rgb.to(dtype)
    flow = None if clips.flow is None else clips.flow.to(dtype)
    logits: Logits = model(rgb, flow)
    return logits
