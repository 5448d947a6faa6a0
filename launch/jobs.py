"""The jobs of a run as data: what each runs, on how many ranks, and what it waits for. Pure; nothing heavy imported."""

import json
import os
import sys
from dataclasses import dataclass
from pathlib import Path

from hpc_stres.config import Config
from hpc_stres.layout import plan
from hpc_stres.runpaths import RunPaths


@dataclass(frozen=True)
class Job:
    """One job: command lines of hpc-stres, run one after another on every rank."""

    name: str
    commands: tuple[tuple[str, ...], ...]
    after: tuple[str, ...]
    nodes: int
    ranks_per_node: int
    gpus_per_node: int
    minutes: int
    links: int = 1

    @property
    def ranks(self) -> int:
        return self.nodes * self.ranks_per_node


def make_jobs(config: Config, run_dir: Path, phases: list[str], store_ready: bool) -> list[Job]:
    """Jobs of some phases that are not done yet, with `prepare` before and `evaluate` after them."""
    paths = RunPaths(run_dir)
    cluster = config.cluster
    per_node = cluster.gpus_per_node or cluster.ranks_per_node or 1
    jobs: list[Job] = []
    if not store_ready:
        jobs.append(Job("prepare", (("prepare", "--config", str(paths.config)),), (), 1, 1, 0, cluster.minutes))
    todo = [name for name in phases if not is_done(config, paths, name)]
    for name in todo:
        parents = tuple(parent for parent in config.phases[name].starts_from if parent in todo)
        after = parents or tuple(job.name for job in jobs if job.name == "prepare")
        command = ("train", "--config", str(paths.config), "--phase", name, "--run-dir", str(run_dir))
        jobs.append(
            Job(name, (command,), after, cluster.nodes, per_node, cluster.gpus_per_node, cluster.minutes, cluster.links)
        )
    if todo or not paths.results.is_file():
        last = tuple(name for name in todo if not any(name in config.phases[other].starts_from for other in todo))
        commands = (("evaluate", "--run-dir", str(run_dir)), ("report", "--run-dir", str(run_dir)))
        after = last or tuple(job.name for job in jobs if job.name == "prepare")
        jobs.append(Job("evaluate", commands, after, cluster.nodes, per_node, cluster.gpus_per_node, cluster.minutes))
    return jobs


def is_done(config: Config, paths: RunPaths, name: str) -> bool:
    """Whether a phase's product is there and as long as the config asks."""
    done = paths.phase(name).done
    return done.is_file() and json.loads(done.read_text(encoding="utf-8"))["step"] >= config.steps(name)


def layout_line(config: Config, job: Job) -> str:
    """How a training job's global batch will be cut; refuses at submit time what no layout can cut."""
    if job.name not in config.phases:
        return ""
    phase = config.phase(job.name)
    limit = config.training.max_micro_batch
    layout = plan(phase.global_batch, phase.norm_group, job.ranks, None if limit == "auto" else limit)
    return layout.explain() + (" (micro-batch: what fits in memory)" if limit == "auto" else "")


class JobCall:
    """What a job's ranks call, on every launcher: the same commands that a person would type."""

    def __init__(self, job: Job, environment: dict[str, str], progress: Path) -> None:
        self.job, self.environment, self.progress = job, environment, progress

    def __call__(self) -> str:
        os.environ.update(self.environment)
        self._set_local_rank()
        from hpc_stres.__main__ import main

        for command in self.job.commands:
            if command[0] == "report" and int(os.environ.get("RANK", os.environ.get("SLURM_PROCID", "0"))) > 0:
                continue
            code = main(command)
            if code != 0:
                sys.stdout.flush()
                sys.stderr.flush()
                # submitit would turn an exception into a traceback; the message stands on stderr already.
                os._exit(code)
        return "done"

    def _set_local_rank(self) -> None:
        """submitit's local executor numbers its tasks under names of its own."""
        env = os.environ
        os.environ["HPC_STRES_PROGRESS"] = str(self.progress)
        if "SUBMITIT_LOCAL_NTASKS" not in env:
            return
        rank, size = env["SUBMITIT_LOCAL_GLOBALID"], env["SUBMITIT_LOCAL_NTASKS"]
        env.update(RANK=rank, WORLD_SIZE=size, LOCAL_RANK=rank, LOCAL_WORLD_SIZE=size, MASTER_ADDR="127.0.0.1")
