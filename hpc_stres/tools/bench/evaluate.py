"""The paper's protocol: one pass over 25 chunks and its mirror image against ten crops of
clips, one by one."""

import subprocess
import sys

from hpc_stres.tools.bench.figures import Figure, Timing, interleaved, peak_kib, quotients, ratio
from hpc_stres.tools.bench.scene import HEIGHT, SIDE, WIDTH

CHUNKS, CLIP_CHUNKS, CROPS, FLIPS = 25, 5, 10, 2
CLASSES = 101
TARGET = 8.0


def bench_evaluate(threads: int, repeats: int) -> list[Figure]:
    """Time against the ten-crop way, and the peak memory of a pass of 25 and of 50 chunks."""
    return [*_speed_figures(repeats), *_memory_figures(threads)]


def _speed_figures(repeats: int) -> list[Figure]:
    """A video costs two passes of 25 chunks at 340 x 256 here, and 25 clips of ten crops of 224 the
    other way: one clip is measured and taken 25 times. Both by the same network."""
    import torch

    from hpc_stres.models import build_model

    model = build_model("st_resnet", CLASSES, 50).eval()
    rgb, flow = torch.randn(1, CHUNKS, 3, HEIGHT, WIDTH), torch.randn(1, CHUNKS, 20, HEIGHT, WIDTH)
    crops = [torch.randn(CROPS, CLIP_CHUNKS, planes, SIDE, SIDE) for planes in (3, 20)]

    def whole() -> None:
        with torch.no_grad():
            model(rgb, flow)

    def clip() -> None:
        with torch.no_grad():
            model(*crops)

    ours, theirs = interleaved(min(repeats, 2), whole, clip)
    video = Timing(tuple(FLIPS * value for value in ours.seconds))
    reference = Timing(tuple(CHUNKS * value for value in theirs.seconds))
    return [
        Figure(
            "evaluate",
            "a video in two passes of 25 chunks",
            video.median_s,
            "s",
            spread=video.spread,
        ),
        Figure(
            "evaluate",
            "a video as 25 clips of ten crops",
            reference.median_s,
            "s",
            spread=reference.spread,
        ),
        ratio("evaluate", "ours over the ten-crop way", quotients(reference, video), TARGET),
    ]


def _memory_figures(threads: int) -> list[Figure]:
    """Peak memory of one pass through ST-ResNet*, above what the process had before."""
    figures = []
    for chunks in (CHUNKS, 2 * CHUNKS):
        code = f"from hpc_stres.tools.bench.evaluate import pass_memory_mib as f; print(f({chunks}, {threads}))"
        run = subprocess.run(
            [sys.executable, "-c", code], capture_output=True, text=True, check=True
        )
        peak = float(run.stdout.split()[-1])
        figures.append(
            Figure("evaluate", f"peak of a pass, {chunks} chunks of {WIDTH}x{HEIGHT}", peak, "MiB")
        )
    growth = figures[1].value / figures[0].value
    return [*figures, ratio("evaluate", "50 chunks over 25 chunks (2 is linear)", growth)]


def pass_memory_mib(chunks: int, threads: int) -> float:
    """Growth of this process's peak memory while one clip goes through ST-ResNet* of depth 50."""
    import torch

    from hpc_stres.models import build_model

    torch.set_num_threads(threads)
    model = build_model("st_resnet_star", CLASSES, 50).eval()
    rgb, flow = torch.randn(1, chunks, 3, HEIGHT, WIDTH), torch.randn(1, chunks, 20, HEIGHT, WIDTH)
    before = peak_kib()
    with torch.no_grad():
        model(rgb, flow)
    return (peak_kib() - before) / 1024
