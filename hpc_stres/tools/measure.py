"""Short measurements on this machine that `hpc-stres plan` extrapolates: a step of each network, and the feed."""

import json
import time
from pathlib import Path

import torch

from hpc_stres.config.schema import Config
from hpc_stres.data.augment import Levels
from hpc_stres.data.feed import ClipReader
from hpc_stres.data.requests import requests, sampler
from hpc_stres.models.building import DTYPES, build_phase_model
from hpc_stres.parallel import process_groups
from hpc_stres.parallel.world import find_world
from hpc_stres.phases.train import train_phase
from hpc_stres.store.location import store_folder
from hpc_stres.store.reader import Store
from hpc_stres.tools.planner import Speed, Speeds
from hpc_stres.training import memory

# Where there is no store yet: pictures of 320x240, at the sizes that real UCF101 frames have.
TYPICAL_RGB_BYTES, TYPICAL_FLOW_BYTES = 20_300.0, 5_000.0
TYPICAL_PICTURES_PER_S = 2_000.0
UCF101_TEST_VIDEOS, DEFAULT_CLASSES = 3_783, 101
# Videos of the two passes whose difference is the time of a video; large networks on a CPU take fewer.
FEW, MORE, SLOW_MORE, FAST_SECONDS, REPEATS = 2, 10, 4, 0.5, 3


def measure(config: Config, phases: list[str], network_gb_per_s: float, run_dir: Path | None = None) -> Speeds:
    """Speeds of one rank on this machine, with the threads that it would have."""
    device = process_groups.choose_device(find_world())
    store = Store(store_folder(config)) if (store_folder(config) / "manifest.json").is_file() else None
    classes = len(store.classes) if store else DEFAULT_CLASSES
    phases = [name for name in phases if config.phases[name].kind == "train"]
    found = {name: _speed(config, name, classes, device) for name in phases}
    rate, rgb, flow = _feed(config, phases, store, device)
    network, source = network_gb_per_s * 1e9, "as given by --network-gb-per-s"
    if run_dir is not None and (run_dir / "preflight.json").is_file():
        measured = json.loads((run_dir / "preflight.json").read_text(encoding="utf-8"))["all_reduce_gb_per_s"]
        if measured > 0:
            network, source = measured * 1e9, f"measured by the preflight in {run_dir}"
    where = torch.cuda.get_device_name() if device.type == "cuda" else f"{torch.get_num_threads()} CPU threads a rank"
    tested = len(store.present(config.data.split, "test")) if store else UCF101_TEST_VIDEOS
    feed_source = "" if store else "; no store yet: typical picture sizes and an assumed feed rate"
    return Speeds(
        phases=found, pictures_per_s=rate, rgb_bytes=rgb, flow_bytes=flow, network_bytes_per_s=network,
        test_videos=tested, on_cpu=device.type == "cpu", source=f"measured here on {where}{feed_source}",
        network_source=source,
    )  # fmt: skip


def _speed(config: Config, name: str, classes: int, device: torch.device) -> Speed:
    """Two sizes of micro-batch give the time a video and the overhead of a pass."""
    model = build_phase_model(config, name, classes).to(device)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0, momentum=config.training.momentum)
    few = _best(lambda: _pass(model, config, name, device, FEW), device)
    count = MORE if few < FAST_SECONDS else SLOW_MORE
    more = _best(lambda: _pass(model, config, name, device, count), device)
    update = _best(optimizer.step, device)
    per_video = max((more - few) / (count - FEW), 1e-9)
    numbers = sum(p.numel() for p in model.parameters())
    return Speed(
        seconds_per_video=per_video, overhead_s=max(few - FEW * per_video, 0.0), update_s=update,
        gradient_bytes=numbers * torch.finfo(DTYPES[config.training.precision]).bits // 8,
        flop_per_video=_flop(model, config, name, device),
    )  # fmt: skip


def _pass(model: torch.nn.Module, config: Config, name: str, device: torch.device, videos: int) -> None:
    memory.dry_pass(model, config, name, device, videos).backward()


def _best(function: object, device: torch.device) -> float:
    assert callable(function)
    function()
    seconds = []
    for _ in range(REPEATS):
        started = time.perf_counter()
        function()
        if device.type == "cuda":
            torch.cuda.synchronize()
        seconds.append(time.perf_counter() - started)
    return min(seconds)


def _flop(model: torch.nn.Module, config: Config, name: str, device: torch.device) -> float:
    """Floating-point operations of a forward pass of one video, counted by torch."""
    from torch.utils.flop_counter import FlopCounterMode

    with FlopCounterMode(display=False) as counter, torch.no_grad():
        memory.dry_pass(model, config, name, device, 1)
    return float(counter.get_total_flops())


def _feed(config: Config, phases: list[str], store: Store | None, device: torch.device) -> tuple[float, float, float]:
    """Pictures a second of one rank's feed, and mean bytes of an RGB frame and of a flow plane."""
    if store is None or not phases:
        return TYPICAL_PICTURES_PER_S, TYPICAL_RGB_BYTES, TYPICAL_FLOW_BYTES
    name = max(phases, key=lambda n: train_phase(config, n).clips.chunks)
    phase = train_phase(config, name)
    reader = ClipReader(
        store, phase.side, Levels.of_phase(phase), phase.clips.antialias, phase.streams,
        max(1, torch.get_num_threads()), device.index,
    )  # fmt: skip
    batch = requests(sampler(config, name, store), 0)[: max(2, phase.optimise.norm_group)]
    seconds = _best(lambda: reader.read(batch), device)
    count = len(batch) * phase.clips.chunks * (phase.uses_rgb + 20 * phase.uses_flow)
    row = store.rows[0]
    rgb = store.member(0, "rgb").nbytes / row.frames
    flow = store.member(0, "flow").nbytes / (2 * row.flow_pairs)
    return count / seconds, rgb, flow
