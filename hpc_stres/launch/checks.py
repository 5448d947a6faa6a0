"""What can be known before a job waits in a queue: whether its videos, lists and weights are
here, whether its machine can do its work, whether its disk has room, and whether the
scheduler would take it.

Each check gives sentences. A submit refuses all of them at once, before anything is made; a dry
run prints them.
"""

import os
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

from hpc_stres.config.cluster import ClusterConfig
from hpc_stres.config.schema import Config, DataConfig
from hpc_stres.errors import UserError
from hpc_stres.launch import scheduler
from hpc_stres.launch.bad_nodes import excluded
from hpc_stres.launch.jobs import PREPARE, Job
from hpc_stres.launch.journal import folder_tag
from hpc_stres.launch.scheduler import NoAnswer, Token
from hpc_stres.launch.slurm import Members, sbatch_text
from hpc_stres.run.paths import RunPaths
from hpc_stres.run.starts import find_start
from hpc_stres.run.tables import size_text
from hpc_stres.store.listing import missing_originals
from hpc_stres.tools import needs

CLASSES = 101
# Training on CPU ranks that would take longer than this, on cores faster than any, is not meant.
MOST_CPU_DAYS = 7.0
DAY_SECONDS = 86_400.0
SHOWN = 5
# sbatch's word for a request that no nodes, or none of those that are there now, can meet.
UNAVAILABLE = "node configuration is not available"


def faults(
    config: Config, run_dir: Path, jobs: Sequence[Job], allow_cpu: bool = False
) -> list[str]:
    """Everything that would make these jobs fail, a sentence each; nothing where nothing is
    known to be wrong."""
    training = [job.name for job in jobs if job.name in config.phases]
    problems = [
        *_place(config.cluster, run_dir),
        *_data(config.data, jobs),
        *_weights(config, run_dir, training),
        *_disk(config, run_dir, training),
    ]
    if not allow_cpu:
        problems += _processors(config, [job for job in jobs if job.name in config.phases])
    return problems


def refuse(problems: Sequence[str]) -> None:
    """Refuse to submit what would fail."""
    if problems:
        more = f"\nand {len(problems) - SHOWN} more" if len(problems) > SHOWN else ""
        raise UserError("nothing was submitted:\n" + "\n".join(problems[:SHOWN]) + more)


def _place(cluster: ClusterConfig, run_dir: Path) -> list[str]:
    """Names that something between here and a job's log reads in a way of its own."""
    text = str(run_dir)
    odd = {"\n"} if cluster.scheduler == "local" else {"\n", "%", "\\"}
    if cluster.image is not None:
        odd |= {":", ","}
    worst = sorted(character for character in odd if character in text)
    if not worst:
        return []
    return [
        f"{text!r}: a run folder's path cannot hold {', '.join(map(repr, worst))}: names of logs or mounts of images "
        "give that a meaning of its own; use another --run-dir"
    ]


def _data(data: DataConfig, jobs: Sequence[Job]) -> list[str]:
    """Where a job prepares the store, what it prepares it from is here."""
    if not any(job.name == PREPARE for job in jobs):
        return []
    try:
        return missing_originals(data)
    except UserError as error:
        return [" ".join(str(error).splitlines())]


def _weights(config: Config, run_dir: Path, phases: Sequence[str]) -> list[str]:
    """What phases begin with is here and whole; one that resumes has begun already."""
    problems: dict[str, None] = {}
    for name in phases:
        if RunPaths(run_dir).phase(name).latest.is_file():
            continue
        for source in config.phase(name).weight_files():
            try:
                find_start(source, name, config.phase(name).model.name, config.data.root)
            except UserError as error:
                problems[" ".join(str(error).splitlines())] = None
    return list(problems)


def _disk(config: Config, run_dir: Path, phases: Sequence[str]) -> list[str]:
    """Weights and checkpoints have room where the run folder will be."""
    wanted = needs.run_bytes(config, CLASSES, phases)
    home = next(folder for folder in (run_dir, *run_dir.parents) if folder.exists())
    status = os.statvfs(home)
    free = status.f_bavail * status.f_frsize
    problems = []
    if wanted > free:
        problems.append(
            f"{run_dir}: its checkpoints need about {size_text(wanted)}, {size_text(free)} are free: "
            "use another --run-dir"
        )
    if not os.access(home, os.W_OK | os.X_OK):
        problems.append(f"{home}: this user may not write here: use another --run-dir")
    return problems


def _processors(config: Config, jobs: Sequence[Job]) -> list[str]:
    """A recipe of weeks of GPUs is not meant for CPU ranks; GPUs that are asked for on this
    machine are here."""
    cluster = config.cluster
    is_local, has_gpu = cluster.scheduler == "local", shutil.which("nvidia-smi") is not None
    if is_local and cluster.gpus_per_node and not has_gpu:
        return [
            f"cluster.gpus_per_node={cluster.gpus_per_node}: this machine has no NVIDIA GPU; use --cluster slurm"
        ]
    if cluster.gpus_per_node or (is_local and has_gpu):
        return []
    cores = max((job.ranks for job in jobs), default=1) * (cluster.cpus_per_rank or 1)
    cores = max(cores, os.cpu_count() or 1)
    days = (
        needs.flop(config, [job.name for job in jobs], CLASSES)
        / (cores * needs.MOST_FLOP_A_CORE)
        / DAY_SECONDS
    )
    if days <= MOST_CPU_DAYS:
        return []
    return [
        f"{', '.join(job.name for job in jobs)}: {days:,.0f} days or more on {cores} CPU cores: ask for GPUs with "
        "--gpus-per-node, or mean it with --allow-cpu"
    ]


def ask_scheduler(
    config: Config, run_dir: Path, jobs: Sequence[Job], members: Members | None = None
) -> tuple[list[str], list[str]]:
    """What `sbatch --test-only` says against each job, or against arrays of such, and notes where
    it says nothing; no job is made."""
    refused: list[str] = []
    notes: list[str] = []
    with tempfile.TemporaryDirectory() as folder:
        for job, text in _different(config, run_dir, jobs, members):
            script = Path(folder) / f"{job.name}.sh"
            script.write_text(text, encoding="utf-8")
            words = ["sbatch", "--test-only", str(script)]
            try:
                answer = scheduler.call(words, config.cluster.scheduler_seconds)
            except NoAnswer as error:
                return refused, [f"sbatch --test-only: {str(error).splitlines()[0]}"]
            if answer.code == 0:
                continue
            is_busy = any(word in answer.error for word in scheduler.BUSY)
            said, waits = f"{job.name}: sbatch --test-only: {answer.reason}", ""
            if UNAVAILABLE in answer.reason:
                waits = _away(config.cluster, job)
                said += _left_out(config.cluster, run_dir)
            (notes if is_busy or waits else refused).append(said + waits)
    return refused, notes


def _away(cluster: ClusterConfig, job: Job) -> str:
    """Nodes that are down or drained today: --test-only counts without them, and sbatch itself
    lets a job wait for them. It refuses what no node has, also when all are there."""
    own = cluster.prepare.partition if job.name == PREPARE else None
    partition = own or cluster.partition
    where = ["-p", partition] if partition else []
    words = ["sinfo", "-h", "-N", "-t", "down,drain,draining,fail,maint", "-o", "%N", *where]
    try:
        answer = scheduler.call(words, cluster.scheduler_seconds)
    except NoAnswer:
        return ""
    names = sorted(set(answer.out.split())) if answer.code == 0 else []
    more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    return (
        f"; {', '.join(names[:SHOWN])}{more} down or drained: it may wait for them" if names else ""
    )


def _left_out(cluster: ClusterConfig, run_dir: Path) -> str:
    """Nodes that this run avoids: without them there may be too few."""
    names = excluded(run_dir, cluster)
    if not names:
        return ""
    return f" (without {', '.join(names)}; cluster.avoid_bad_nodes_hours=0 takes them again)"


def _different(
    config: Config, run_dir: Path, jobs: Sequence[Job], members: Members | None
) -> Iterator[tuple[Job, str]]:
    """One job of each kind of request, without what it waits for."""
    seen = set()
    for number, job in enumerate(jobs, 1):
        request = (
            job.nodes,
            job.ranks_per_node,
            job.gpus_per_node,
            job.minutes,
            job.name == PREPARE,
        )
        if request not in seen:
            seen.add(request)
            token = Token(f"{folder_tag(run_dir)}-000000", job.name, 0, number)
            many = None if job.name == PREPARE else members
            yield job, sbatch_text(config, run_dir, job, "", token, members=many)
