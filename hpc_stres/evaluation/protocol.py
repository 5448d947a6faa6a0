"""Test protocols: which clips of a video are scored, and how its scores become one.

Fully convolutional in space: a frame of 256x340 gives 8x11 places, and the classifier's logits are
averaged over the 2x5 windows of 7x7 places in them. That equals, to rounding, pooling each window
by itself. It does not equal ten crops of 224x224: a crop is padded with zeros at its own edges in
every layer, and in a ResNet-50, whose last unit sees 483 pixels, no place of a crop is free of
that. Inside the frame the windows see the real surroundings instead.

Fully convolutional in time: all chunks of a video go through together; the temporal layers pad with
zeros at the first and last chunk only.

Memory: one clip at a time. Units that do not look along time take FRAMES_AT_ONCE frames, so that a
clip's peak is a few copies of its first stage's output, linear in chunks and pixels;
`hpc-stres bench evaluate` measures it.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from hpc_stres.config.schema import EvaluationConfig
from hpc_stres.data import segments
from hpc_stres.data.feed import ClipReader, Clips
from hpc_stres.data.requests import Request
from hpc_stres.data.test_clips import QUICK_CHUNKS, WHOLE_VIDEO, TestClips, test_requests
from hpc_stres.models import Logits

__all__ = [
    "QUICK_CHUNKS",
    "WHOLE_VIDEO",
    "TestClips",
    "VideoScores",
    "describe",
    "score_video",
    "test_requests",
]

# One thread gives the same sums whatever the number of ranks on a machine; ranks, not threads,
# share the cores.
EVALUATION_THREADS = 1


Scorer = Callable[[Tensor | None, Tensor | None], Logits]


class VideoScores(NamedTuple):
    """Logits of one video, per stream, in float64: averaged over space and flips, for
    each time output."""

    appearance: NDArray[np.float64] | None
    motion: NDArray[np.float64] | None


def describe(config: EvaluationConfig, clips: TestClips = WHOLE_VIDEO) -> str:
    """The protocol in words, as it is printed beside every number."""
    if clips.segments is not None or clips.side is not None:
        return _describe_segments(config, clips)
    if config.protocol == "quick":
        clip = f"quick: one clip of {QUICK_CHUNKS} chunks, centre, no flip, full frame"
        return f"{clip}; mean of logits over space and time"
    flips = " and their flips" if config.flips else ""
    return (
        f"paper: {config.chunks} evenly spaced chunks{flips}, full frame, fully convolutional in space and time; "
        "mean of logits over space, time, flips and streams, no softmax"
    )


def _describe_segments(config: EvaluationConfig, clips: TestClips) -> str:
    is_quick = config.protocol == "quick"
    if clips.segments is None:
        chunks = QUICK_CHUNKS if is_quick else config.chunks
        sampled = f"{chunks} evenly spaced chunks"
    else:
        count = 1 if is_quick else segments.test_clips(config.chunks, clips.segments)
        several = "clips" if count > 1 else "clip"
        sampled = (
            f"{count} evenly spread {several} of one chunk from each of {clips.segments} segments"
        )
    flips = " and their flips" if config.flips and not is_quick else ""
    view = "full frame" if clips.side is None else "middle square"
    return f"{config.protocol}: {sampled}{flips}, {view}; mean of logits over clips, flips and streams, no softmax"


@torch.no_grad()
def score_video(
    model: Scorer, reader: ClipReader, clips: Sequence[Request], dtype: torch.dtype
) -> VideoScores:
    """Scores of one video; its flips go through one after another, so that memory holds
    one clip at a time."""
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
