"""The parts of `hpc-stres bench` by name; each is one file, imported when it is measured."""

import importlib

from hpc_stres.tools.bench.figures import Figure

# In the order of `bench all`: what needs a quiet machine first.
PARTS = {
    "norm": "sub-batch normalisation against torch's BatchNorm, forward and backward",
    "step": "a training step, and videos/s against ResNet-50's images/s",
    "feed": "the feed against bare JPEG decoding and against a DataLoader over single JPEG files",
    "flow": "TV-L1 against OpenCV's, on the same frames and threads",
    "evaluate": "the paper's protocol in one pass against its ten crops one by one, and its memory",
    "prepare": "videos to a store, against decoding and flow alone",
    "start": "seconds from a command to its first answer",
    "growth": "requests, opening and packing from 10^2 to 10^6 videos and from 1 to 256 ranks",
    "plan": "what `hpc-stres plan` predicts against real runs on one and two processes",
}


def measure(part: str, threads: int, repeats: int) -> list[Figure]:
    """The figures of one part."""
    import cv2
    import torch

    torch.set_num_threads(threads)
    cv2.setNumThreads(threads)
    module = importlib.import_module(f"hpc_stres.tools.bench.{part}")
    figures: list[Figure] = getattr(module, f"bench_{part}")(threads, repeats)
    return figures
