"""The feed against bare JPEG decoding and against a DataLoader over single files."""

import os
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from hpc_stres.tools.bench.figures import Figure, interleaved, quotients, rate, ratio
from hpc_stres.tools.bench.scene import HEIGHT, SIDE, WIDTH, moving_frames

LOADER_TARGET, DECODE_TARGET = 4.0, 0.8
# A DataLoader starts its workers anew for each pass: long enough that this does not count.
LOADER_BATCHES = 8


def bench_feed(threads: int, repeats: int) -> list[Figure]:
    """The ST-ResNet sample (5 RGB frames, 100 flow planes at 224) against bare decoding and a
    file-based DataLoader.

    Samples come as a network that trains in bfloat16 takes them. Beside the rates stand seconds on
    a core, which other work on the machine does not change: as many threads decode for both.
    """
    import torch

    from hpc_stres.data import decoder, feed
    from hpc_stres.data.requests import Box, Request
    from hpc_stres.store.reader import Store

    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        files = _write_bench_store(root)
        store = Store(root)
        starts = (6, 17, 28, 39, 50)
        stacks = tuple(tuple(range(start - 5, start + 5)) for start in starts)
        boxes = [Box(8 * n, 9 * n, 200 + 10 * n, 210 + 9 * n) for n in range(4)]
        batch = [Request(n, 0, 0, starts, stacks, box, n % 2 == 1) for n, box in enumerate(boxes)]
        reader = feed.ClipReader(store, SIDE, "torchvision", threads=threads, dtype=torch.bfloat16)
        gray, colour = (decoder.Decoder(is_gray, 512, threads, None) for is_gray in (True, False))
        pairs = [pair for r in batch for stack in r.flow for pair in stack]
        flow = [store.flow(0, pair, axis) for pair in pairs for axis in (0, 1)]
        rgb = [store.rgb(0, frame) for r in batch for frame in r.frames]
        flow_boxes, rgb_boxes = ([r.box for r in batch for _ in range(count)] for count in (100, 5))

        def bare() -> None:
            gray(flow, flow_boxes)
            colour(rgb, rgb_boxes)

        def loader() -> None:
            _file_loader(files, batch, workers=threads)

        def loader_alone() -> None:
            _file_loader(files, batch, workers=0)

        own, decode, files_s, alone = interleaved(
            repeats, lambda: reader.read(batch), bare, loader, loader_alone
        )
        on_core, bare_on_core = interleaved(
            repeats, lambda: reader.read(batch), bare, clock=time.process_time
        )
        if os.environ.get("HPC_STRES_PROFILE"):
            _profile(lambda: reader.read(batch))
    planes = len(batch) * 105
    many = planes * LOADER_BATCHES
    over_loader = tuple(value / LOADER_BATCHES for value in quotients(files_s, own))
    return [
        rate("feed", "ours", planes, own, "planes/s"),
        rate("feed", "bare JPEG decoding (DALI)", planes, decode, "planes/s"),
        rate("feed", f"DataLoader, OpenCV, {threads} workers", many, files_s, "planes/s"),
        rate("feed", "the same in the main process", many, alone, "planes/s"),
        ratio("feed", "ours over DataLoader", over_loader, LOADER_TARGET),
        ratio("feed", "ours over bare decoding", quotients(decode, own), DECODE_TARGET),
        ratio(
            "feed", "the same in seconds on a core", quotients(bare_on_core, on_core), DECODE_TARGET
        ),
    ]


def _write_bench_store(root: Path) -> Path:
    """A store of one video, and the same pictures as single JPEG files."""
    from hpc_stres.data.flow import encode_flow, tvl1
    from hpc_stres.prepare.video import encode_jpeg, gray
    from hpc_stres.store.reader import PreparedVideo, write_store

    frames = moving_frames(60)
    planes = encode_flow(
        tvl1(np.stack([gray(frame) for frame in frames]), threads=os.cpu_count() or 1)
    )
    rgb = [encode_jpeg(frame, 95) for frame in frames]
    flow = [encode_jpeg(plane, 95) for pair in planes for plane in pair]
    files = root / "files"
    files.mkdir()
    for number, data in enumerate(rgb):
        (files / f"rgb{number:03d}.jpg").write_bytes(data)
    for number, data in enumerate(flow):
        (files / f"flow{number:03d}.jpg").write_bytes(data)
    write_store(root, [PreparedVideo("v", 0, HEIGHT, WIDTH, rgb, flow)], ["a"], train=["v"])
    return files


def _file_loader(files: Path, batch: list[Any], workers: int) -> None:
    """The ordinary way: a DataLoader whose workers open, decode, crop and resize each
    picture with OpenCV."""
    import torch

    data: Any = _Files(files, batch * LOADER_BATCHES)
    for clips in torch.utils.data.DataLoader(data, batch_size=len(batch), num_workers=workers):
        for clip in clips:
            clip.to(torch.bfloat16)


class _Files:
    """A map-style data set over single files."""

    def __init__(self, files: Path, batch: list[Any]) -> None:
        self.files, self.batch = files, batch

    def __len__(self) -> int:
        return len(self.batch)

    def __getitem__(self, index: int) -> Any:
        import cv2
        import torch

        request = self.batch[index]

        def load(name: str, flags: int) -> Any:
            box = request.box
            picture = cv2.imread(str(self.files / name), flags)
            assert picture is not None
            cut = picture[box.top : box.top + box.height, box.left : box.left + box.width]
            small = cv2.resize(cut, (SIDE, SIDE), interpolation=cv2.INTER_CUBIC)
            return torch.from_numpy(
                np.ascontiguousarray(small[:, ::-1] if request.flip else small)
            ).float()

        rgb = [(load(f"rgb{n:03d}.jpg", cv2.IMREAD_COLOR) - 110) / 58 for n in request.frames]
        numbers = [2 * pair + axis for stack in request.flow for pair in stack for axis in (0, 1)]
        flow = [(load(f"flow{n:03d}.jpg", cv2.IMREAD_GRAYSCALE) - 128) / 58 for n in numbers]
        return torch.stack(rgb), torch.stack(flow)


def _profile(function: Callable[[], object]) -> None:
    """Where the time of ten calls goes (HPC_STRES_PROFILE=1): `Outputs` is DALI's decoding,
    `acquire` the kernels."""
    import cProfile
    import pstats

    profile = cProfile.Profile()
    profile.enable()
    for _ in range(10):
        function()
    profile.disable()
    pstats.Stats(profile).sort_stats("tottime").print_stats(12)
