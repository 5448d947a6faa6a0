"""What grows with the data set and with the number of ranks, and what must not: indexes of
10^2 to 10^6 videos.

Opening is timed and its memory taken in a process of its own, as a rank opens a store. Requests are
the clips of ST-ResNet in batches of 256, those of one rank out of 1 to 256. Packing is timed on
real shards of small videos.
"""

import itertools
import json
import os
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from multiprocessing import get_context
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from hpc_stres.config.loading import CONFIGS, load_config
from hpc_stres.layout import plan
from hpc_stres.tools.bench.figures import Figure, Timing, interleaved, judged, peak_kib, spread

if TYPE_CHECKING:
    from hpc_stres.data.requests import Sampler
    from hpc_stres.store.format import StorePaths
    from hpc_stres.store.reader import Store

VIDEOS = (100, 10_000, 1_000_000)
RANKS = (1, 4, 32, 256)
FRAMES, SHARDS, CLASSES = 100, 100, 101
GLOBAL_BATCH, NORM_GROUP = 256, 8
# Videos with places of their own in the offsets; with more, which no opening reads,
# they share these.
OWN_PLACES = 10_000
STEPS = 20
OPEN_S, OPEN_MIB, POSITION_MS, RANK_MS, RANKS_OF_LIMIT = 1.0, 50.0, 0.1, 1.0, 32
PACKED_VIDEOS, VIDEO_BYTES, DISK_SHARE, PACKERS = 48, 200_000, 1.5, 2


def bench_growth(threads: int, repeats: int) -> list[Figure]:
    """Curves over the number of videos and of ranks, and the disk that packing takes."""
    figures = []
    with tempfile.TemporaryDirectory() as folder:
        for videos in VIDEOS:
            root = Path(folder) / str(videos)
            write_synthetic_index(root, videos)
            figures += _opening(root, videos, repeats) + _requests(root, videos, repeats)
        figures += _packing(Path(folder) / "packing")
        figures += _packing_at_once(Path(folder) / "at-once")
    return figures


def write_synthetic_index(root: Path, videos: int, frames: int = FRAMES) -> None:
    """The index of a store of so many videos, all of them of one list; its shards
    are sparse files."""
    from hpc_stres.store import format as store_format
    from hpc_stres.store import writer

    paths = store_format.StorePaths(root)
    paths.shards.mkdir(parents=True)
    number, size, step = np.arange(videos), 9, 3 * frames
    names = np.char.add("v_", np.char.zfill(number.astype(str), 7)).astype("S9")
    listing = np.zeros(videos, store_format.LISTING)
    listing["start"], listing["id_bytes"], listing["label"] = number * size, size, number % CLASSES
    rows = np.zeros(videos, store_format.VIDEOS)
    rows["listed"], rows["frames"], rows["flow_pairs"] = number, frames, frames - 1
    rows["height"], rows["width"], rows["shard"] = 256, 340, number // (1 + videos // SHARDS)
    first = number % OWN_PLACES * step
    rows["rgb_first"], rows["flow_first"] = first, first + frames + 1
    columns = {
        "listing": listing, "names": names.view(np.uint8), "splits": number.astype(np.int32), "videos": rows,
        "offsets": np.arange(min(videos, OWN_PLACES) * step),
    }  # fmt: skip
    index = {
        role: writer.save_stream(paths, role, len(column), [column])
        for role, column in columns.items()
    }
    index["remarks"] = writer.write_remarks(paths, [])
    shards = sorted(set(rows["shard"].tolist()))
    for shard in shards:
        with paths.shard(shard).open("wb") as stream:
            stream.truncate(10**10)
    sums = {paths.shard(shard).name: {"bytes": 10**10, "sha256": ""} for shard in shards}
    split = {"train": {"1": [0, videos]}, "test": {"1": [0, 0]}}
    about: dict[str, Any] = {
        "format": store_format.FORMAT,
        "kind": "csv",
        "settings": {},
        "videos": videos,
    }
    about |= {
        "listed": videos,
        "classes": [str(n) for n in range(CLASSES)],
        **split,
        "index": index,
        "shards": sums,
    }
    writer.write_manifest(paths, about)


def _opening(root: Path, videos: int, repeats: int) -> list[Figure]:
    """Seconds to open, and what a rank's memory grows by until it has drawn its first requests."""
    code = f"from hpc_stres.tools.bench.growth import open_and_draw as f; f({str(root)!r})"
    measured = []
    for _ in range(repeats):
        run = subprocess.run(
            [sys.executable, "-c", code], check=True, capture_output=True, text=True
        )
        measured.append(json.loads(run.stdout))
    seconds, cpu = (
        Timing(tuple(one[key] for one in measured)) for key in ("seconds", "cpu_seconds")
    )
    memory = tuple(one["mib"] for one in measured)
    what = f"{videos:,} videos: opening"
    return [
        Figure("growth", what, seconds.median_s, "s", spread=seconds.spread),
        judged(
            Figure("growth", f"{what}, time on a core", cpu.median_s, "s", spread=cpu.spread),
            OPEN_S,
        ),
        judged(
            Figure(
                "growth", f"{what}, memory of a rank", max(memory), "MiB", spread=spread(memory)
            ),
            OPEN_MIB,
        ),
    ]


def open_and_draw(root: str) -> None:
    """In a process of its own: open, draw one step's requests, print seconds and MiB as JSON."""
    from hpc_stres.data.requests import requests_at
    from hpc_stres.store.reader import Store

    before, started, cpu_started = peak_kib(), time.perf_counter(), time.process_time()
    store = Store(Path(root))
    times = {
        "seconds": time.perf_counter() - started,
        "cpu_seconds": time.process_time() - cpu_started,
    }
    requests_at(_sampler(store), 0, range(4))
    print(json.dumps({**times, "mib": (peak_kib() - before) / 1024}))


def _sampler(store: "Store") -> "Sampler":
    from hpc_stres.data.requests import sampler

    config = load_config(CONFIGS / "ucf101.yaml", [f"data.root={store.paths.root}"])
    source = sampler(config, "st_resnet", store)
    sizes = replace(source.phase.optimise, global_batch=GLOBAL_BATCH, norm_group=NORM_GROUP)
    return replace(source, phase=replace(source.phase, optimise=sizes))


def _requests(root: Path, videos: int, repeats: int) -> list[Figure]:
    """Milliseconds that a step's requests and their marks take a rank, by the number of ranks."""
    from hpc_stres.data.requests import requests_at, total
    from hpc_stres.store.reader import Store

    source = _sampler(Store(root))
    batch, group = source.phase.optimise.global_batch, source.phase.optimise.norm_group
    layouts = {ranks: plan(batch, group, ranks, batch) for ranks in RANKS}

    number = itertools.count()

    def steps(positions: list[tuple[int, ...]]) -> None:
        for step in itertools.islice(
            number, STEPS
        ):  # always new ones: a large store's rows are then new as well
            for some in positions:
                total(step, requests_at(source, step, some))

    work = {
        ranks: [share.positions for share in layout.shares[0]] for ranks, layout in layouts.items()
    }
    # One thread's Python: its time on a core, so that other work on the machine is not counted.
    turns = (lambda some=some: steps(some) for some in work.values())
    timings = interleaved(repeats, *turns, clock=time.thread_time)
    figures = []
    for (ranks, positions), timing in zip(work.items(), timings, strict=True):
        what = f"{videos:,} videos, {ranks} ranks: requests of a step on one rank"
        figure = Figure("growth", what, 1e3 * timing.median_s / STEPS, "ms", spread=timing.spread)
        figures.append(judged(figure, RANK_MS) if ranks >= RANKS_OF_LIMIT else figure)
        if ranks == 1:
            count = sum(map(len, positions))
            each = figure._replace(
                what=f"{videos:,} videos: a position", value=figure.value / count
            )
            figures.append(judged(each, POSITION_MS))
    return figures


def _packing(root: Path) -> list[Figure]:
    """MB/s of packing parts into shards, and the most disk that parts and shards took together
    over what stays."""
    from hpc_stres.store import packing

    store, batches = _parts(root)
    most, started = 0, time.perf_counter()
    for number, ids in enumerate(batches):
        before = _disk_bytes(store)
        packing.pack_shard(store, ids, number)
        # The shard stood beside its parts before these went.
        most = max(most, before + store.shard(number).stat().st_size)
    seconds = time.perf_counter() - started
    stays = sum(path.stat().st_size for path in store.shards.iterdir())
    share = Figure(
        "growth", f"packing {len(batches)} shards: most disk over what stays", most / stays, "x"
    )
    return [Figure("growth", "packing", stays / seconds / 1e6, "MB/s"), judged(share, DISK_SHARE)]


def _packing_at_once(root: Path) -> list[Figure]:
    """MB/s of the same shards by several processes that run already, and what a restart does again
    of those that they made before."""
    from hpc_stres.store import packing

    store, batches = _parts(root)
    with ProcessPoolExecutor(PACKERS, get_context("spawn")) as pool:

        def pack(first: int, last: int) -> None:
            stores = [store] * (last - first)
            list(pool.map(packing.pack_shard, stores, batches[first:last], range(first, last)))

        pack(0, PACKERS)
        recalled = {name for shard in packing.all_packed(store, {}, ()) for name in shard.videos}
        lost = {name for ids in batches[:PACKERS] for name in ids} - recalled
        started = time.perf_counter()
        pack(PACKERS, len(batches))
        seconds = time.perf_counter() - started
    size = sum(store.shard(number).stat().st_size for number in range(PACKERS, len(batches)))
    again = Figure("growth", "killed while packing: finished videos packed again", len(lost), "")
    return [
        Figure("growth", f"packing, {PACKERS} processes", size / seconds / 1e6, "MB/s"),
        judged(again, 0),
    ]


def _parts(root: Path) -> tuple["StorePaths", list[list[str]]]:
    """Parts of small videos, and which of them go into a shard together."""
    from hpc_stres.store import packing
    from hpc_stres.store.format import PreparedVideo, StorePaths

    store, random = StorePaths(root), np.random.default_rng(0)
    frames = [random.bytes(VIDEO_BYTES // 6) for _ in range(2)]
    for number in range(PACKED_VIDEOS):
        video = PreparedVideo(f"v{number:04d}", 0, 256, 340, frames, [*frames, *frames])
        video.write_part(store.part(video.id))
    sizes = {f"v{number:04d}": VIDEO_BYTES for number in range(PACKED_VIDEOS)}
    return store, list(packing.batches(sizes, PACKED_VIDEOS * VIDEO_BYTES // 8))


def _disk_bytes(store: Any) -> int:
    folders = [folder for folder in (store.parts, store.shards) if folder.is_dir()]
    return sum(entry.stat().st_size for folder in folders for entry in os.scandir(folder))
