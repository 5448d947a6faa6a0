"""Short measurements on this machine that `hpc-stres plan` extrapolates: a step of each network,
the feed, the wire.

All ranks of a node measure at the same time, each in a process of its own as in training: they
share the memory's bandwidth, the caches and the storage, so that one alone would promise too much.
The slowest rank counts. Each time is the median of a few turns, and what is compared with each
other takes turns.
"""

import json
import os
import socket
import statistics
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from multiprocessing import get_context
from pathlib import Path

import torch
import torch.distributed as dist

from hpc_stres.config.cluster import ClusterConfig
from hpc_stres.config.recipe import trained_phases
from hpc_stres.config.schema import FLOW_STACK, Config, TrainingConfig
from hpc_stres.data.augment import Levels
from hpc_stres.data.feed import ClipReader
from hpc_stres.data.requests import requests_at, sampler
from hpc_stres.errors import UserError
from hpc_stres.models.building import DTYPES, build_phase_model
from hpc_stres.parallel import process_groups
from hpc_stres.parallel.world import World, find_world, kept_environment
from hpc_stres.phases.train import train_phase
from hpc_stres.store.location import store_folder
from hpc_stres.store.reader import Store
from hpc_stres.tools.planner import Needs, Speed, Speeds, Wire
from hpc_stres.training import memory

# Where there is no store yet: pictures of 320x240, at the sizes that real UCF101 frames have.
TYPICAL_RGB_BYTES, TYPICAL_FLOW_BYTES = 20_300.0, 5_000.0
TYPICAL_PICTURES_PER_S = 2_000.0
UCF101_TEST_VIDEOS, DEFAULT_CLASSES = 3_783, 101
# Videos of the two passes whose difference is the time of a video; large networks on
# a CPU take fewer.
FEW, MORE, SLOW_MORE, FAST_SECONDS, REPEATS = 2, 10, 4, 0.5, 5
# Pictures that the feed is measured on at once.
MOST_PICTURES = 1024
# Sizes of the two all-reduces that tell latency and bandwidth apart.
SHORT_BYTES, LONG_BYTES = 8, 16 << 20
# A message between nodes where no preflight has measured one.
NETWORK_LATENCY_S = 20e-6


@dataclass(frozen=True)
class RankFigures:
    """What one rank measured while its neighbours did the same."""

    phases: dict[str, Speed]
    pictures_per_s: float
    rgb_bytes: float
    flow_bytes: float
    wire: Wire | None
    device: str


def measure(
    config: Config, phases: list[str], network_gb_per_s: float, run_dir: Path | None = None
) -> Speeds:
    """Speeds of one rank on this machine beside the other ranks of its node."""
    ranks = ranks_here(config.cluster)
    store = _store(config)
    classes = len(store.classes) if store else DEFAULT_CLASSES
    phases = trained_phases(config.phases, phases)
    figures = side_by_side(config, phases, ranks, classes)
    slowest = _slowest([figure.phases for figure in figures])
    feed = min(figures, key=lambda figure: figure.pictures_per_s)
    together = f", {ranks} ranks at once" if ranks > 1 else ""
    no_store = "" if store else "; no store yet: typical picture sizes and an assumed feed rate"
    if config.cluster.gpus_per_node and not torch.cuda.is_available():
        no_store += "; no GPU is here: --gpu KIND plans for one that is elsewhere"
    return replace(
        network_only(config, network_gb_per_s, run_dir),
        phases=slowest, pictures_per_s=feed.pictures_per_s, rgb_bytes=feed.rgb_bytes, flow_bytes=feed.flow_bytes,
        on_cpu=not torch.cuda.is_available(), node=figures[0].wire,
        source=f"measured here on {feed.device}{together}{no_store}",
    )  # fmt: skip


def ranks_here(cluster: ClusterConfig) -> int:
    """Ranks that measure at once: those of a node, as far as this machine has GPUs
    or cores for them."""
    wanted = cluster.ranks_of_a_node
    if torch.cuda.is_available():
        return min(wanted, torch.cuda.device_count())
    return 1 if cluster.gpus_per_node else min(wanted, len(os.sched_getaffinity(0)))


def network_only(config: Config, network_gb_per_s: float, run_dir: Path | None = None) -> Speeds:
    """What is known without measuring: the network's speed, and the sizes of pictures
    and of the test."""
    store = _store(config)
    network, source = network_gb_per_s * 1e9, "as given by --network-gb-per-s"
    if run_dir is not None and (run_dir / "preflight.json").is_file():
        measured = json.loads((run_dir / "preflight.json").read_text(encoding="utf-8"))[
            "all_reduce_gb_per_s"
        ]
        if measured > 0:
            network, source = measured * 1e9, f"measured by the preflight in {run_dir}"
    rgb, flow = _picture_bytes(store)
    return Speeds(
        phases={}, pictures_per_s=TYPICAL_PICTURES_PER_S, rgb_bytes=rgb, flow_bytes=flow, network_bytes_per_s=network,
        test_videos=len(store.present_rows(config.data.split, "test")) if store else UCF101_TEST_VIDEOS,
        on_cpu=False, source="", network_source=source, network_latency_s=NETWORK_LATENCY_S,
    )  # fmt: skip


def count_needs(config: Config, phases: list[str]) -> dict[str, Needs]:
    """Operations and gradients of each phase's network, counted on tensors without memory:
    nothing is computed."""
    store = _store(config)
    classes = len(store.classes) if store else DEFAULT_CLASSES
    needs = {}
    for name in trained_phases(config.phases, phases):
        with torch.device("meta"):
            model = build_phase_model(config, name, classes)
        needs[name] = Needs(_flop(model, config, name), _gradient_bytes(model, config.training))
    return needs


def _store(config: Config) -> Store | None:
    folder = store_folder(config)
    return Store(folder) if (folder / "manifest.json").is_file() else None


def _slowest(ranks: list[dict[str, Speed]]) -> dict[str, Speed]:
    """For each phase the largest of each time over the ranks."""
    return {
        name: Speed(
            **{
                key: max(asdict(rank[name])[key] for rank in ranks)
                for key in asdict(ranks[0][name])
            }
        )
        for name in ranks[0]
    }


# -- the ranks of a node ---------------------------------------------------------------------------


def side_by_side(config: Config, phases: list[str], ranks: int, classes: int) -> list[RankFigures]:
    """Every rank's figures; one rank measures in this process."""
    if ranks == 1:
        with _lone_world():
            return [_measure_rank(config, phases, classes, 1)]
    port = free_port()
    work = [(config, phases, classes, rank, ranks, port) for rank in range(ranks)]
    try:
        with ProcessPoolExecutor(ranks, get_context("spawn")) as pool:
            return list(pool.map(_measure_as_rank, work))
    except BrokenProcessPool:
        raise UserError(
            f"one of {ranks} ranks that measured was killed, mostly for want of memory\n"
            "Plan where the jobs will run, or with fewer ranks a node."
        ) from None


@contextmanager
def _lone_world() -> Iterator[None]:
    """A process group of this process alone, unless it is in one already."""
    if dist.is_initialized():
        yield
        return
    with kept_environment():
        alone = World(0, 1, 0, 1, "127.0.0.1", 0, "single", port_is_agreed=False)
        process_groups.start(alone, process_groups.choose_device(find_world()))
        try:
            yield
        finally:
            process_groups.stop()


def free_port() -> int:
    """A port of this machine that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@contextmanager
def joined(rank: int, ranks: int, port: int) -> Iterator[torch.device]:
    """This process as one rank of several on this machine."""
    names = {
        "RANK": rank,
        "WORLD_SIZE": ranks,
        "LOCAL_RANK": rank,
        "LOCAL_WORLD_SIZE": ranks,
        "MASTER_PORT": port,
    }
    with kept_environment():
        os.environ.update({name: str(value) for name, value in names.items()})
        os.environ["MASTER_ADDR"] = "127.0.0.1"
        world = find_world()
        device = process_groups.choose_device(world)
        process_groups.start(world, device)
        try:
            yield device
        finally:
            process_groups.stop()


def _measure_as_rank(work: tuple[Config, list[str], int, int, int, int]) -> RankFigures:
    """One of several ranks, in a process of its own."""
    config, phases, classes, rank, ranks, port = work
    with joined(rank, ranks, port):
        return _measure_rank(config, phases, classes, ranks)


def _measure_rank(config: Config, phases: list[str], classes: int, ranks: int) -> RankFigures:
    device = process_groups.choose_device(find_world())
    wire = measure_wire(device) if ranks > 1 else None
    speeds = {name: _speed(config, name, classes, device) for name in phases}
    rate, rgb, flow = _feed(config, phases, _store(config), device)
    where = (
        torch.cuda.get_device_name()
        if device.type == "cuda"
        else f"{torch.get_num_threads()} CPU threads a rank"
    )
    return RankFigures(speeds, rate, rgb, flow, wire, where)


def measure_wire(device: torch.device) -> Wire:
    """Latency and bandwidth of this group's all-reduce, out of a short and a long one: the
    same on every rank."""
    ranks = dist.get_world_size()
    short, long = (torch.zeros(size // 4, device=device) for size in (SHORT_BYTES, LONG_BYTES))
    quick, slow = turns(device, lambda: dist.all_reduce(short), lambda: dist.all_reduce(long))
    seconds = torch.tensor([quick, slow], dtype=torch.float64, device=device)
    dist.all_reduce(seconds, dist.ReduceOp.MAX)
    quick, slow = seconds.tolist()
    latency = quick / (2 * (ranks - 1))
    return Wire(latency, 2 * (ranks - 1) / ranks * LONG_BYTES / max(slow - quick, 1e-9))


def turns(device: torch.device, *contestants: Callable[[], object]) -> list[float]:
    """Median seconds of each, which take turns; every rank begins each of them together."""
    seconds: list[list[float]] = [[] for _ in contestants]
    for repeat in range(REPEATS + 1):
        for number, contestant in enumerate(contestants):
            dist.barrier()
            started = time.perf_counter()
            contestant()
            if device.type == "cuda":
                torch.cuda.synchronize()
            if repeat:  # the first turn warms up
                seconds[number].append(time.perf_counter() - started)
    return [statistics.median(one) for one in seconds]


# -- what a rank measures --------------------------------------------------------------------------


def _speed(config: Config, name: str, classes: int, device: torch.device) -> Speed:
    """Two sizes of micro-batch give the time a video and the overhead of a pass."""
    model = build_phase_model(config, name, classes).to(device)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0, momentum=config.training.momentum)
    started = time.perf_counter()
    _pass(model, config, name, device, FEW)
    is_fast = torch.tensor([float(time.perf_counter() - started < FAST_SECONDS)], device=device)
    dist.all_reduce(is_fast, dist.ReduceOp.MIN)  # all ranks take the same turns
    count = MORE if is_fast else SLOW_MORE
    few, more, update = turns(
        device,
        lambda: _pass(model, config, name, device, FEW),
        lambda: _pass(model, config, name, device, count),
        optimizer.step,
    )
    per_video = max((more - few) / (count - FEW), 1e-9)
    return Speed(
        seconds_per_video=per_video, overhead_s=max(few - FEW * per_video, 0.0), update_s=update,
        gradient_bytes=_gradient_bytes(model, config.training), flop_per_video=_flop(model, config, name),
    )  # fmt: skip


def _gradient_bytes(model: torch.nn.Module, training: TrainingConfig) -> int:
    numbers = sum(p.numel() for p in model.parameters())
    return numbers * torch.finfo(DTYPES[training.precision]).bits // 8


def _pass(
    model: torch.nn.Module, config: Config, name: str, device: torch.device, videos: int
) -> None:
    memory.dry_pass(model, config, name, device, videos).backward()


def _flop(model: torch.nn.Module, config: Config, name: str) -> float:
    """Floating-point operations of a forward pass of one video, counted by torch where the
    model's weights are.

    As in testing: what training does besides is no product of matrices, and tensors without memory
    know no autocast.
    """
    from torch.utils.flop_counter import FlopCounterMode

    phase = train_phase(config, name)
    side, chunks = phase.side, phase.clips.chunks
    weight = next(model.parameters())
    rgb, flow = (
        torch.empty(1, chunks, planes, side, side, dtype=weight.dtype, device=weight.device)
        if used
        else None
        for planes, used in ((3, phase.uses_rgb), (2 * FLOW_STACK, phase.uses_flow))
    )
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model.eval()(rgb, flow)
    model.train()
    return float(counter.get_total_flops())


def _feed(
    config: Config, phases: list[str], store: Store | None, device: torch.device
) -> tuple[float, float, float]:
    """Pictures a second of one rank's feed, and mean bytes of an RGB frame and of a flow plane."""
    rgb, flow = _picture_bytes(store)
    if store is None or not phases:
        return TYPICAL_PICTURES_PER_S, rgb, flow
    name = max(phases, key=lambda n: train_phase(config, n).clips.times)
    phase = train_phase(config, name)
    reader = ClipReader(
        store, phase.side, Levels.of_phase(phase), phase.clips.antialias, phase.streams,
        max(1, torch.get_num_threads()), device.index,
        dtype=torch.bfloat16 if config.training.precision == "bfloat16" else None,
    )  # fmt: skip
    # As much at once as in training, up to a limit: what each call costs besides is shared by
    # as many pictures.
    pictures = phase.clips.times * (phase.uses_rgb + 2 * FLOW_STACK * phase.uses_flow)
    share = phase.optimise.global_batch // dist.get_world_size()
    count = max(1, min(share, MOST_PICTURES // pictures))
    batch = requests_at(sampler(config, name, store), 0, range(count))
    (seconds,) = turns(device, lambda: reader.read(batch))
    return count * pictures / seconds, rgb, flow


def _picture_bytes(store: Store | None) -> tuple[float, float]:
    """Mean bytes of an RGB frame and of a flow plane, of the first video."""
    if store is None:
        return TYPICAL_RGB_BYTES, TYPICAL_FLOW_BYTES
    row = store.rows[0]
    rgb, flow = store.places(0)
    return float(rgb[-1] - rgb[0]) / row.frames, float(flow[-1] - flow[0]) / (2 * row.flow_pairs)
