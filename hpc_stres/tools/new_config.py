"""The config of a data set of one's own: what is chosen for it, why, and what it will take."""

import functools
import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from hpc_stres.config.loading import CONFIGS, load_config
from hpc_stres.config.schema import Config
from hpc_stres.models import counting
from hpc_stres.phases.train import TrainPhase
from hpc_stres.prepare.look import ACCEPTED_SHARE, Look
from hpc_stres.run.tables import size_text
from hpc_stres.tools import gpus, planner
from hpc_stres.tools.needs import run_bytes, sizes_of
from hpc_stres.tools.planner import Needs, PhasePlan, Speeds

# Training videos of UCF101's first split, which the published schedules are for.
PUBLISHED_VIDEOS = 9537
# A small network is the demonstration's, which learns its 256 videos in its schedules.
SMALL_VIDEOS = 256
FLOW_FRAMES = 10
TYPICAL_PICTURES_PER_S, ALL_REDUCE_BYTES_PER_S = 2_000.0, 10e9
PLANNED_GPU = "a100"


@dataclass(frozen=True, kw_only=True)
class Choice:
    """What a new config is made of."""

    name: str
    kind: str
    root: Path
    videos: Path
    lists: Path | None
    folds: int
    is_small: bool
    precision: str
    weights: str | None
    """Of `model.weights`; none: from scratch."""
    starts: Mapping[str, str]
    """Weights of single phases, by name, for fine-tuning."""
    trainable: str
    model: Mapping[str, Any]
    """Further values of `model`, as the run that fine-tuning starts from has them."""
    frames: tuple[int, int] | None = None
    """Short side of stored frames and crop, as that run has them."""


def schedule_scale(train_videos: int, is_small: bool) -> float:
    """How long schedules are beside the published ones: as many passes over the videos."""
    if is_small:
        return float(f"{max(1.0, train_videos / SMALL_VIDEOS):.3g}")
    return float(f"{train_videos / PUBLISHED_VIDEOS:.3g}")


def stride_for(frames: int, chunks: int, published: tuple[int, int]) -> tuple[int, int]:
    """The published strides, cut to what a video of so many frames has room for."""
    room = max(1, (frames - FLOW_FRAMES) // (chunks - 1))
    return min(published[0], max(1, room // 2)), min(published[1], room)


def text_of(choice: Choice, look: Look) -> str:
    """The config file."""
    train = len(next(iter(look.listing.train.values())))
    lines = [
        f"# {choice.name}: written by `hpc-stres init`. Its paths are absolute, so that it works from any folder.",
        "# `hpc-stres config --config THIS --explain` prints every key, what it means and where it was given.",
        "recipe: nips2016",
        "data:",
        f"  kind: {choice.kind}",
        f"  root: {quoted(choice.root)}   # stores and caches: a large, fast file system",
        f"  videos: {quoted(choice.videos)}",
    ]
    lines += [f"  lists: {quoted(choice.lists)}"] if choice.lists is not None else []
    if choice.kind == "folder":
        lines += [f"  folds: {choice.folds}"] if choice.folds > 1 else ["  test_fraction: 0.25"]
    lines += [f"  max_rejected: {ACCEPTED_SHARE}   # share of videos that may fail to decode"]
    small = usual(True)
    usual_sides = (small.data.short_side, small.data.crop) if choice.is_small else None
    if sides := choice.frames or usual_sides:
        lines += [f"  short_side: {sides[0]}", f"  crop: {sides[1]}"]
    lines += ["model:", *_model_lines(choice), "training:", f"  precision: {choice.precision}"]
    scale = schedule_scale(train, choice.is_small)
    lines.append(
        f"  schedule_scale: {scale:g}   # every plateau of every schedule times this: {train} training videos"
    )
    if choice.is_small:
        batch, group = small.training.global_batch, small.training.norm_group
        lines += [f"  global_batch: {batch}", f"  norm_group: {group}"]
    phases = [line for name in _phases(choice) for line in _phase_lines(choice, look, name)]
    lines += ["phases:", *phases] if phases else []
    lines += ["evaluation:", f"  chunks: {small.evaluation.chunks}"] if choice.is_small else []
    return "\n".join(lines) + "\n"


def quoted(value: object) -> str:
    """Text as YAML reads it back, whatever letters are in it."""
    return json.dumps(str(value), ensure_ascii=False)


def _phases(choice: Choice) -> list[str]:
    """Phases of which something is said; of the published ones what fits the videos, and what
    they start from."""
    phases = usual_phases(choice.is_small)
    if choice.is_small:
        return list(phases)
    of_several = [name for name, phase in phases.items() if phase.clips.chunks > 1]
    return list(dict.fromkeys([*of_several, *choice.starts]))


def _model_lines(choice: Choice) -> list[str]:
    small = usual(True).model
    given = {"stages": small.stages, "width": small.width} if choice.is_small else {}
    lines = [
        f"  {key}: {json.dumps(value)}"
        for key, value in {**given, **choice.model}.items()
        if value is not None
    ]
    if choice.weights is None:
        return [*lines, "  weights: null   # from scratch"]
    return [*lines, f"  weights: {quoted(choice.weights)}"]


def _phase_lines(choice: Choice, look: Look, name: str) -> list[str]:
    lines = [f"    weights: {quoted(choice.starts[name])}"] if name in choice.starts else []
    phase = usual_phases(choice.is_small).get(name)
    clips = _clips(look, phase, usual_phases(False)[name]) if phase is not None else {}
    if clips:
        lines.append(f"    clips: {json.dumps(clips).replace(chr(34), '')}")
    optimise = (
        [f"schedule: {json.dumps(phase.optimise.schedule)}"]
        if choice.is_small and phase is not None
        else []
    )
    optimise += (
        [f"trainable: {choice.trainable}"]
        if choice.trainable != "all" and name in choice.starts
        else []
    )
    lines += [f"    optimise: {{{', '.join(optimise)}}}"] if optimise else []
    return [f"  {name}:", *lines] if lines else []


def _clips(look: Look, phase: TrainPhase, published: TrainPhase) -> dict[str, Any]:
    """What a phase's clips have in place of the published ones."""
    clips: dict[str, Any] = {}
    chunks, stride = phase.clips.chunks, published.clips.stride
    if chunks != published.clips.chunks:
        clips["chunks"] = chunks
    if chunks > 1 and look.probes:
        fitting = stride_for(look.median_frames, chunks, stride)
        if fitting != stride:
            clips["stride"] = list(fitting)
    return clips


@functools.cache
def usual(is_small: bool) -> Config:
    """What is published, or the demonstration with its small network."""
    return load_config(CONFIGS / ("binding.yaml" if is_small else "ucf101.yaml"))


def usual_phases(is_small: bool) -> dict[str, TrainPhase]:
    """Phases of networks as they are published, or as the demonstration has them."""
    phases = usual(is_small).phases
    return {name: phase for name, phase in phases.items() if isinstance(phase, TrainPhase)}


def takes(config: Config, look: Look, is_small: bool) -> list[str]:
    """What preparing and training will take, and where each figure comes from."""
    lines = []
    if look.stored_bytes is not None and look.core_hours is not None and look.cost is not None:
        lines.append(
            f"store: about {size_text(look.stored_bytes)}, twice that while it is made; {look.core_hours:.2g} "
            f"core-hours to prepare (measured here on {look.cost.frames} frames)"
        )
    else:
        lines.append("store: no video could be prepared to measure what it takes")
    size = size_text(run_bytes(config, len(look.listing.classes)))
    lines.append(f"checkpoints and weights: about {size}")
    if is_small:
        return [*lines, "training: minutes on a few cores; `hpc-stres plan` measures it"]
    plans = plan(config, look)
    hours = planner.chain_hours(config.phases, {p.name: p for p in plans})
    lines.append(
        f"training: about {hours:.2g} hours on one {PLANNED_GPU.upper()} "
        f"({sum(p.steps for p in plans[:-1])} steps; assumed speeds, `hpc-stres plan` measures them on a node)"
    )
    return lines


def plan(config: Config, look: Look) -> list[PhasePlan]:
    """Every phase on one GPU of an assumed kind, by the planner's formulas."""
    with_gpu = replace(config, cluster=replace(config.cluster, nodes=1, gpus_per_node=1))
    classes, tests = len(look.listing.classes), len(look.listing.test.get(config.data.split, []))
    needs = {}
    for name in config.phases:
        sizes = sizes_of(config.phases, name, classes)
        if sizes is not None:
            needs[name] = Needs(2.0 * counting.multiply_adds(sizes), 4 * counting.parameters(sizes))
    cost = look.cost
    known = Speeds(
        phases={}, pictures_per_s=TYPICAL_PICTURES_PER_S, rgb_bytes=cost.rgb_bytes if cost else 0.0,
        flow_bytes=cost.flow_bytes / 2 if cost else 0.0, network_bytes_per_s=ALL_REDUCE_BYTES_PER_S,
        test_videos=tests, on_cpu=False, source="assumed", network_source="assumed",
    )  # fmt: skip
    share, source = gpus.STEP_SHARE, gpus.STEP_SHARE_SOURCE
    slow, _ = planner.published_speeds(with_gpu, needs, PLANNED_GPU, share, source, known)
    return planner.predict_all(with_gpu, list(needs), 1, slow)
