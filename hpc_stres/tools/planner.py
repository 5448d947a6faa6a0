"""How long each phase will take on so many nodes, and what limits it. Pure arithmetic on
measured speeds.

With N ranks, of which the busiest takes b videos of a step in m micro-steps:

    arithmetic  = m * overhead + b * seconds a video + update
    feed        = b * pictures a video / pictures a second of one rank's feed
    all-reduce  = 2 (N - 1) * latency + 2 (N - 1) / N * bytes of the gradients / bytes a second
    step        = max(arithmetic, feed) + all-reduce      (on a GPU the feed runs beside the arithmetic)
                = arithmetic + feed + all-reduce          (on CPU ranks both take the same cores)
    hours       = steps * step / 3600,  node-hours = hours * nodes

A rank's pictures are one JPEG for each RGB frame and two for each flow pair. The storage must
deliver their bytes, of all ranks together, within a step. Evaluation passes forward only: a third
of the training time of as many chunks. Latency and bytes a second are those between the nodes; on
one node those between its ranks, where they were measured. The speeds of a GPU that is not here are
a range: `gpus` has what was published, and its sources.
"""

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal

from hpc_stres.config.recipe import Phases, trained_phases
from hpc_stres.config.schema import FLOW_STACK, Config
from hpc_stres.errors import ConfigError, UserError
from hpc_stres.layout import plan
from hpc_stres.phases.train import TrainPhase, train_phase
from hpc_stres.run.paths import read_sealed
from hpc_stres.tools import gpus

FORWARD_SHARE = 1 / 3
Limit = Literal["arithmetic", "feed", "all-reduce"]


@dataclass(frozen=True)
class Wire:
    """How ranks reach each other: a message's latency and the bytes a second of a long one."""

    latency_s: float
    bytes_per_s: float

    def all_reduce_s(self, ranks: int, size: int) -> float:
        """A ring: every rank sends and receives 2 (N - 1) messages of an Nth of the bytes."""
        if ranks == 1:
            return 0.0
        return 2 * (ranks - 1) * self.latency_s + 2 * (ranks - 1) / ranks * size / self.bytes_per_s


@dataclass(frozen=True, kw_only=True)
class Speed:
    """What one rank does with one phase's network."""

    seconds_per_video: float
    overhead_s: float
    update_s: float
    gradient_bytes: int
    flop_per_video: float


@dataclass(frozen=True, kw_only=True)
class Speeds:
    """What was measured, or assumed for a named GPU, and where it comes from."""

    phases: dict[str, Speed]
    pictures_per_s: float
    rgb_bytes: float
    flow_bytes: float
    network_bytes_per_s: float
    test_videos: int
    on_cpu: bool
    source: str
    network_source: str
    network_latency_s: float = 0.0
    # Between the ranks of one node, where that was measured.
    node: Wire | None = None

    def wire(self, nodes: int) -> Wire:
        """What the gradients go over."""
        if nodes == 1 and self.node is not None:
            return self.node
        return Wire(self.network_latency_s, self.network_bytes_per_s)


@dataclass(frozen=True, kw_only=True)
class PhasePlan:
    """The prediction of one phase on one number of nodes."""

    name: str
    nodes: int
    ranks: int
    steps: int
    arithmetic_s: float
    feed_s: float
    all_reduce_s: float
    read_bytes_per_s: float
    on_cpu: bool

    @property
    def step_s(self) -> float:
        both = (
            self.arithmetic_s + self.feed_s if self.on_cpu else max(self.arithmetic_s, self.feed_s)
        )
        return both + self.all_reduce_s

    @property
    def hours(self) -> float:
        return self.steps * self.step_s / 3600

    @property
    def node_hours(self) -> float:
        return self.hours * self.nodes

    @property
    def limit(self) -> Limit:
        """The largest of the three."""
        times: dict[Limit, float] = {
            "arithmetic": self.arithmetic_s, "feed": self.feed_s, "all-reduce": self.all_reduce_s,
        }  # fmt: skip
        return max(times, key=lambda name: times[name])


def pictures(phase: TrainPhase) -> tuple[int, int]:
    """RGB and flow JPEGs that one training clip of a phase reads."""
    return phase.clips.times * phase.uses_rgb, phase.clips.times * 2 * FLOW_STACK * phase.uses_flow


def predict(config: Config, name: str, nodes: int, speeds: Speeds) -> PhasePlan:
    """One phase on some nodes; refuses what no layout can cut."""
    phase, speed = train_phase(config, name), speeds.phases[name]
    ranks = nodes * config.cluster.ranks_of_a_node
    limit = config.training.max_micro_batch
    layout = plan(
        phase.optimise.global_batch,
        phase.optimise.norm_group,
        ranks,
        None if limit == "auto" else limit,
        config.training.unit,
    )
    videos = layout.busiest
    rgb, flow = pictures(phase)
    arithmetic = (
        layout.micro_steps * speed.overhead_s + videos * speed.seconds_per_video + speed.update_s
    )
    all_reduce = speeds.wire(nodes).all_reduce_s(ranks, speed.gradient_bytes)
    made = PhasePlan(
        name=name, nodes=nodes, ranks=ranks, steps=config.steps(name), arithmetic_s=arithmetic,
        feed_s=videos * (rgb + flow) / speeds.pictures_per_s, all_reduce_s=all_reduce, read_bytes_per_s=0.0,
        on_cpu=speeds.on_cpu,
    )  # fmt: skip
    step_bytes = phase.optimise.global_batch * (rgb * speeds.rgb_bytes + flow * speeds.flow_bytes)
    return replace(made, read_bytes_per_s=step_bytes / made.step_s)


def predict_evaluation(config: Config, nodes: int, speeds: Speeds) -> PhasePlan:
    """Testing all phases: each test video once, its chunks and flips, forward only."""
    ranks = nodes * config.cluster.ranks_of_a_node
    passes = config.evaluation.chunks * (2 if config.evaluation.flips else 1)
    arithmetic = feed = 0.0
    for name, speed in speeds.phases.items():
        phase = config.phase(name)
        arithmetic += passes / phase.clips.times * speed.seconds_per_video * FORWARD_SHARE
        feed += passes * sum(pictures(phase)) / phase.clips.times / speeds.pictures_per_s
    videos = -(-speeds.test_videos // ranks)
    return PhasePlan(
        name="evaluate", nodes=nodes, ranks=ranks, steps=1, arithmetic_s=videos * arithmetic, feed_s=videos * feed,
        all_reduce_s=0.0, read_bytes_per_s=0.0, on_cpu=speeds.on_cpu,
    )  # fmt: skip


def predict_all(config: Config, phases: list[str], nodes: int, speeds: Speeds) -> list[PhasePlan]:
    """Every phase, and evaluation last."""
    trained = trained_phases(config.phases, phases)
    return [
        *(predict(config, name, nodes, speeds) for name in trained),
        predict_evaluation(config, nodes, speeds),
    ]


def comparison(
    config: Config, phases: list[str], speeds: Speeds, nodes: tuple[int, ...]
) -> list[list[str]]:
    """What changes on other numbers of nodes; where a batch cannot be cut, that is said."""
    table = []
    for count in nodes:
        try:
            plans = predict_all(config, phases, count, speeds)
        except ConfigError as error:
            table.append([str(count), "-", "-", str(error).splitlines()[0]])
            continue
        hours = chain_hours(config.phases, {p.name: p for p in plans})
        limits = ", ".join(f"{p.name}: {p.limit}" for p in plans)
        table.append(
            [str(count), f"{hours:.2f}", f"{sum(p.node_hours for p in plans):.1f}", limits]
        )
    return table


@dataclass(frozen=True)
class Needs:
    """What a phase's network takes, counted and not measured: operations forward a video,
    bytes of gradients."""

    flop_per_video: float
    gradient_bytes: int


def published_speeds(
    config: Config,
    needs: Mapping[str, Needs],
    kind: str,
    share: float,
    share_source: str,
    network: Speeds,
) -> tuple[Speeds, Speeds]:
    """Slow and fast end of a GPU that is not here; all but the arithmetic and the feed is
    that of `network`."""
    figures = gpus.published(kind, config.training.precision)
    note = f"; {gpus.NOTES[kind.lower()]}" if kind.lower() in gpus.NOTES else ""
    cores = config.cluster.cpus_per_rank or 1

    def at(images_per_s: float) -> Speeds:
        phases = {
            name: Speed(
                seconds_per_video=gpus.seconds_per_video(need.flop_per_video, images_per_s, share),
                overhead_s=0.0, update_s=0.0, gradient_bytes=need.gradient_bytes, flop_per_video=need.flop_per_video,
            )
            for name, need in needs.items()
        }  # fmt: skip
        source = (
            f"{kind.upper()}, nothing measured here: ResNet-50 at {figures.slow:.0f} to {figures.fast:.0f} images/s "
            f"({figures.source}{note}), this network at {share:.2f} of that by operations ({share_source}); "
            f"feed: {cores} CPU cores a rank at {gpus.PICTURES_PER_S_OF_A_CORE:.0f} planes/s"
        )
        rate = cores * gpus.PICTURES_PER_S_OF_A_CORE
        return replace(network, phases=phases, pictures_per_s=rate, on_cpu=False, source=source)

    return at(figures.slow), at(figures.fast)


def range_rows(phases: Phases, slow: list[PhasePlan], fast: list[PhasePlan]) -> list[list[str]]:
    """Hours of each job from the fast to the slow end, and of the chain."""
    body = [
        [a.name, b.limit if b.limit == a.limit else f"{b.limit}, {a.limit}", f"{b.hours:.2f} to {a.hours:.2f}",
         f"{b.node_hours:.1f} to {a.node_hours:.1f}"]
        for a, b in zip(slow, fast, strict=True)
    ]  # fmt: skip
    hours = [chain_hours(phases, {p.name: p for p in plans}) for plans in (fast, slow)]
    total = [sum(p.node_hours for p in plans) for plans in (fast, slow)]
    return [
        *body,
        ["all", "", f"{hours[0]:.2f} to {hours[1]:.2f}", f"{total[0]:.1f} to {total[1]:.1f}"],
    ]


def as_json(plans: list[PhasePlan], speeds: Speeds) -> dict[str, Any]:
    """plan.json: what submit.py asks for comes from its `hours`."""
    rows = [asdict(p) | {"step_s": p.step_s, "hours": p.hours, "limit": p.limit} for p in plans]
    return {"hours": {p.name: p.hours for p in plans}, "phases": rows, "speeds": asdict(speeds)}


def read_hours(path: Path) -> dict[str, float]:
    """Hours of each job from plan.json; a missing or damaged one is a UserError."""
    remedy = "Remove it, or write it again with `hpc-stres plan --run-dir`."
    hours = read_sealed(path, remedy).get("hours")
    if not isinstance(hours, dict) or not all(
        isinstance(h, float) and 0 <= h < math.inf for h in hours.values()
    ):
        raise UserError(f"{path}: it holds no hours of jobs\n{remedy}")
    return hours


def rows(plans: list[PhasePlan]) -> list[list[str]]:
    """The table of one number of nodes, with its sum."""
    body = [
        [
            p.name, str(p.steps) if p.steps > 1 else "", f"{p.arithmetic_s:.3g}", f"{p.feed_s:.3g}",
            f"{p.all_reduce_s:.2g}", p.limit, f"{p.read_bytes_per_s / 1e6:.0f}" if p.read_bytes_per_s else "",
            f"{p.hours:.2f}", f"{p.node_hours:.1f}",
        ]
        for p in plans
    ]  # fmt: skip
    return [*body, ["all", "", "", "", "", "", "", "", f"{sum(p.node_hours for p in plans):.1f}"]]


HEADINGS = (
    "phase", "steps", "arithmetic s", "feed s", "all-reduce s", "limit", "reads MB/s", "hours", "node-hours",
)  # fmt: skip


def chain_hours(phases: Phases, plans: Mapping[str, PhasePlan]) -> float:
    """Hours from the first job to the last when nothing waits in a queue: the longest path
    through the graph."""
    ends: dict[str, float] = {}
    for name, phase in phases.items():
        if name in plans:
            ends[name] = plans[name].hours + max(
                (ends.get(p, 0.0) for p in phase.starts_from), default=0.0
            )
    return max(ends.values(), default=0.0) + (
        plans["evaluate"].hours if "evaluate" in plans else 0.0
    )
