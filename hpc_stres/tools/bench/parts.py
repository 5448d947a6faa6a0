"""The parts of `hpc-stres bench` by name; each is one file, imported when it is measured."""

import importlib
from typing import NamedTuple

from hpc_stres.tools.bench.figures import Figure


class Part(NamedTuple):
    """The file that measures, in a function `bench_NAME`, and what it measures."""

    file: str
    text: str


# In the order of `bench all`: what needs a quiet machine first.
PARTS = {
    "norm": Part(
        "network",
        "fused normalisation and ReLU against torch's BatchNorm and ReLU, forward and backward",
    ),
    "step": Part(
        "step",
        "a training step over its convolutions alone, and videos/s against ResNet-50's images/s",
    ),
    "bitwise": Part(
        "bitwise", "a bitwise training step over an ordinary one, with large units and small ones"
    ),
    "feed": Part(
        "feed",
        "the feed against bare JPEG decoding and against a DataLoader over single JPEG files",
    ),
    "flow": Part("flow", "TV-L1 against OpenCV's, on the same frames and threads"),
    "evaluate": Part(
        "evaluate",
        "the paper's protocol in one pass against its ten crops one by one, and its memory",
    ),
    "prepare": Part("prepare", "videos to a store, against decoding and flow alone"),
    "start": Part("start", "seconds from a command to its first answer"),
    "growth": Part(
        "growth", "requests, opening and packing from 10^2 to 10^6 videos and from 1 to 256 ranks"
    ),
    "restart": Part(
        "restart",
        "from a kill to the next new step, the stall of a checkpoint, the watching of steps",
    ),
    "plan": Part(
        "plan", "what `hpc-stres plan` predicts against real runs on one and two processes"
    ),
}


def measure(part: str, threads: int, repeats: int) -> list[Figure]:
    """The figures of one part."""
    import cv2
    import torch

    torch.set_num_threads(threads)
    cv2.setNumThreads(threads)
    module = importlib.import_module(f"hpc_stres.tools.bench.{PARTS[part].file}")
    figures: list[Figure] = getattr(module, f"bench_{part}")(threads, repeats)
    return figures
