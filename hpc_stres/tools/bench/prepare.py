"""Videos to a store, against what it cannot do without: decoding, encoding and the flow of
the same frames."""

import itertools
import os
import tempfile
from pathlib import Path

import numpy as np

from hpc_stres.config.loading import CONFIGS, load_config
from hpc_stres.config.schema import Config
from hpc_stres.tools.bench.figures import Figure, interleaved, quotients, rate, ratio

VIDEOS, TEST_VIDEOS = 24, 8


def bench_prepare(threads: int, repeats: int) -> list[Figure]:
    """Frames a second of `prepare` with as many workers as threads, and of the bare work on
    one thread each."""
    from hpc_stres.prepare.binding import write_data_set
    from hpc_stres.prepare.run import prepare

    turn = itertools.count()
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        config = _config(root / "first", threads)
        write_data_set(root / "videos", root / "splits", config.data.binding, config.seed)
        paths = sorted(path for path in (root / "videos").rglob("*") if path.is_file())

        def whole() -> None:
            prepare(_config(root / f"store{next(turn)}", threads, root), quiet=True)

        ours, bare = interleaved(min(repeats, 3), whole, lambda: _bare_work(paths))
    frames = len(paths) * config.data.binding.frames
    return [
        rate("prepare", f"{threads} workers", frames, ours, "frames/s"),
        rate("prepare", "decoding, flow and encoding alone, one thread", frames, bare, "frames/s"),
        ratio("prepare", "ours over the bare work of as many threads", tuple(
            value / threads for value in quotients(bare, ours)
        )),
    ]  # fmt: skip


def _config(root: Path, workers: int, made: Path | None = None) -> Config:
    overrides = [
        f"data.root={root}",
        f"data.workers={workers}",
        f"data.binding.train_videos={VIDEOS}",
    ]
    overrides.append(f"data.binding.test_videos={TEST_VIDEOS}")
    if made is not None:
        overrides += [f"data.videos={made / 'videos'}", f"data.lists={made / 'splits'}"]
    return load_config(CONFIGS / "binding.yaml", overrides)


def _bare_work(paths: list[Path]) -> None:
    """OpenCV decodes and encodes; our flow, which has a part of its own, lies between."""
    import cv2

    from hpc_stres.data.flow import encode_flow, tvl1

    assert os.path.exists(paths[0])
    for path in paths:
        video = cv2.VideoCapture(str(path))
        frames = []
        while True:
            went_well, frame = video.read()
            if not went_well:
                break
            frames.append(frame)
        gray = np.stack([cv2.cvtColor(frame, cv2.COLOR_BGR2GRAY) for frame in frames])
        planes = encode_flow(tvl1(gray, "native", 1))
        for picture in (*frames, *(plane for pair in planes for plane in pair)):
            cv2.imencode(".jpg", picture)
