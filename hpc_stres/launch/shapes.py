"""Shapes of jobs side by side: nodes x GPUs x wall time, in node-hours and in days with the queue.

A wider job trains faster and waits longer; a shorter one starts sooner and has to start more often.
The scheduler's own estimate (`sbatch --test-only`) is taken for each shape where it gives one: it
is that of this moment.
"""

import re
import shutil
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from hpc_stres.config.cluster import ClusterConfig
from hpc_stres.config.recipe import ordered_phases
from hpc_stres.config.schema import Config
from hpc_stres.errors import ConfigError
from hpc_stres.launch import scheduler
from hpc_stres.launch.jobs import START_MINUTES, Job, wall_time
from hpc_stres.launch.journal import folder_tag
from hpc_stres.launch.scheduler import NoAnswer, Token
from hpc_stres.launch.slurm import sbatch_text
from hpc_stres.tools.planner import PhasePlan

AUTO_NODES = (1, 2, 4, 8)
MOST_SHAPES = 50
SHAPE = re.compile(r"(\d{1,5})x(\d{1,4})x(\d{1,6})")
EXPECTED = re.compile(r"to start at (\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d)")
HEADINGS = (
    "nodes x GPUs x minutes",
    "hours of work",
    "jobs",
    "node-hours",
    "queue now",
    "days in all",
)


@dataclass(frozen=True)
class Shape:
    """What one job asks for."""

    nodes: int
    gpus_per_node: int
    minutes: int

    @property
    def name(self) -> str:
        """As a table tells it."""
        return f"{self.nodes} x {self.gpus_per_node} x {self.minutes}"

    @property
    def overrides(self) -> list[str]:
        """The same as settings."""
        return [
            f"cluster.nodes={self.nodes}", f"cluster.gpus_per_node={self.gpus_per_node}",
            f"cluster.minutes={self.minutes}",
        ]  # fmt: skip


def parse_shapes(text: str, cluster: ClusterConfig) -> list[Shape]:
    """`4x8x1440,8x8x720`, or `auto`: 1 to 8 nodes as the config asks for them."""
    if text == "auto":
        return [Shape(nodes, cluster.gpus_per_node, cluster.minutes) for nodes in AUTO_NODES]
    shapes = []
    for part in text.split(","):
        match = SHAPE.fullmatch(part.strip())
        if match is None or int(match[1]) < 1 or int(match[3]) < 1:
            raise ConfigError(
                f"--shapes {part.strip()!r}: expected NODESxGPUSxMINUTES, several with commas between, or auto"
            )
        shapes.append(Shape(int(match[1]), int(match[2]), int(match[3])))
    if len(shapes) > MOST_SHAPES:
        raise ConfigError(f"--shapes: {len(shapes)} of them; expected {MOST_SHAPES} or fewer")
    return list(dict.fromkeys(shapes))


@dataclass(frozen=True)
class Cost:
    """What a shape comes to."""

    hours: float
    jobs: int
    node_hours: float
    queue_s: float | None
    days: float


def cost(config: Config, plans: Sequence[PhasePlan], queue_s: float | None) -> Cost:
    """The chain of these plans under the wall time of their config: each link starts
    anew and waits anew."""
    ends: dict[str, float] = {}
    total, jobs = 0.0, 0
    by_name = {plan.name: plan for plan in plans}
    wait = (queue_s or 0.0) / 3600
    for name in [*ordered_phases(config.phases), "evaluate"]:
        if name not in by_name:
            continue
        plan = by_name[name]
        _, links = wall_time(config.cluster, plan.hours)
        took = plan.hours + links * START_MINUTES / 60
        parents = config.phases[name].starts_from if name in config.phases else tuple(ends)
        ends[name] = max((ends.get(p, 0.0) for p in parents), default=0.0) + took + links * wait
        total, jobs = total + took * plan.nodes, jobs + links
    hours = sum(plan.hours for plan in plans)
    return Cost(hours, jobs, total, queue_s, max(ends.values(), default=0.0) / 24)


def queue_seconds(config: Config, phase: str, now: float | None = None) -> float | None:
    """How long the scheduler says that such a job would wait if it were submitted now; none where
    it does not say."""
    if config.cluster.scheduler != "slurm" or shutil.which("sbatch") is None:
        return None
    cluster = config.cluster
    run_dir = Path.cwd()
    job = Job(
        phase, (("train",),), (), cluster.nodes, cluster.ranks_of_a_node, cluster.gpus_per_node, cluster.minutes
    )  # fmt: skip
    token = Token(f"{folder_tag(run_dir)}-000000", phase, 0, 1)
    with tempfile.TemporaryDirectory() as folder:
        script = Path(folder) / "shape.sh"
        script.write_text(sbatch_text(config, run_dir, job, "", token), encoding="utf-8")
        try:
            answer = scheduler.call(
                ["sbatch", "--test-only", str(script)], cluster.scheduler_seconds
            )
        except NoAnswer:
            return None
    match = EXPECTED.search(answer.error + answer.out)
    if answer.code != 0 or match is None:
        return None
    start = time.mktime(time.strptime(match[1], "%Y-%m-%dT%H:%M:%S"))
    return max(0.0, start - (time.time() if now is None else now))


def rows(costs: Mapping[Shape, Cost | str]) -> list[list[str]]:
    """The table; a shape that no batch can be cut for says why."""
    table = []
    for shape, one in costs.items():
        if isinstance(one, str):
            table.append([shape.name, "-", "-", "-", "-", one])
            continue
        queue = "not known" if one.queue_s is None else f"{one.queue_s / 3600:.1f} h"
        table.append(
            [
                shape.name,
                f"{one.hours:.2f}",
                str(one.jobs),
                f"{one.node_hours:.1f}",
                queue,
                f"{one.days:.2f}",
            ]
        )
    return table
