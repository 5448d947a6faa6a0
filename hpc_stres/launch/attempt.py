"""What a job does before and after its commands, on every rank: says that it is there, looks at its
own node, and stops a chain that starts again and again without getting anywhere."""

import json
import os
import time
from dataclasses import dataclass
from pathlib import Path

from hpc_stres.config.cluster import ClusterConfig
from hpc_stres.config.loading import load_resolved
from hpc_stres.errors import UserError
from hpc_stres.launch.scheduler import Token
from hpc_stres.run import attempts
from hpc_stres.run.bad_nodes import accuse, job_number, node_name, restart_count
from hpc_stres.run.paths import RunPaths, write_text
from hpc_stres.tools import node_health

STARTED = "started"


@dataclass(frozen=True)
class Start:
    """One rank of a job that starts."""

    run_dir: Path
    phase: str
    ranks: int
    ranks_per_node: int
    gpus_per_node: int
    token: Token | None
    rank: int

    def begin(self) -> None:
        """Refuses a node that cannot work, and a chain that makes no progress; both
        with a sentence."""
        self._arrive()
        cluster, mark = settings_and_mark(self.run_dir, self.phase)
        row = attempts.begin_row(
            self.phase, link=self.token.link if self.token else 0,
            submission=self.token.attempt if self.token else 0, nodes=node_health.nodes_of_job(), ranks=self.ranks,
            gpus=self.gpus_per_node * max(1, self.ranks // max(1, self.ranks_per_node)), mark=mark,
            call=call_file(self.run_dir, self.phase, self.token) if self.token else None,
        )  # fmt: skip
        if self.token is not None:
            self._stop_without_progress(cluster, mark)
        if self.rank == 0:
            attempts.write_begin(self.run_dir, row)
        if self.rank % max(1, self.ranks_per_node) == 0:
            self._look_at_node()

    def end(self, code: int) -> None:
        """The first rank's word on how it ended."""
        if self.rank == 0:
            job = job_number() or f"process{os.getpid()}"
            attempts.write_end(self.run_dir, job, restart_count(), code)

    def _arrive(self) -> None:
        """In the place where training will say which step it is at: a rank that never came
        left nothing here."""
        paths = RunPaths(self.run_dir)
        word = {
            "step": 0, "where": STARTED, "time": time.time(), "host": os.uname().nodename, "node": node_name(),
            "job": job_number(), "restart": restart_count(), "rank": self.rank,
        }  # fmt: skip
        folder = paths.logs / self.phase / "arrived"
        write_text(folder / f"rank{self.rank:05d}.json", json.dumps(word))

    def _look_at_node(self) -> None:
        complaints = node_health.complaints(self.gpus_per_node > 0)
        for kind, reason in complaints:
            accuse(self.run_dir, kind, f"{node_name()}: {reason}")
        if complaints:
            raise UserError(
                f"{self.phase}: node {node_name()} cannot work: {complaints[0][1]}\n"
                "Later attempts of this run leave that node out; tell those who run the cluster."
            )

    def _stop_without_progress(self, cluster: ClusterConfig, mark: int) -> None:
        assert self.token is not None
        vain = attempts.without_progress(
            attempts.read_attempts(self.run_dir), self.phase, job_number(), restart_count(), mark,
            self.token.link, self.token.attempt,
        )  # fmt: skip
        if len(vain) >= cluster.restarts_without_checkpoint:
            raise GaveUp(why_given_up(self.run_dir, self.phase, vain, cluster))


class GaveUp(UserError):
    """A chain that starts again and again without getting anywhere."""


def why_given_up(
    run_dir: Path, phase: str, vain: list[attempts.Attempt], cluster: ClusterConfig
) -> str:
    """The sentence; `vain` are the attempts that came to nothing, the newest first."""
    from hpc_stres.launch.jobs import last_message

    log = RunPaths(run_dir).logs / phase / f"{vain[0].job}_0_log.out"
    why = last_message(log).partition(": ")[2] or "it left no message"
    return (
        f"{phase}: {len(vain)} attempts in a row ended without a new checkpoint (jobs "
        f"{', '.join(a.name for a in reversed(vain))}); the last: {why}\n"
        f"Fix what they name ({log}), then submit again; "
        f"cluster.restarts_without_checkpoint={cluster.restarts_without_checkpoint} is the limit."
    )


def settings_and_mark(run_dir: Path, phase: str) -> tuple[ClusterConfig, int]:
    """The run's settings, and how far a job's work is kept."""
    paths = RunPaths(run_dir)
    if not paths.config.is_file():
        return ClusterConfig(), attempts.progress_mark(paths, phase, False)
    config = load_resolved(paths.config)
    trains = phase in config.phases and config.phases[phase].kind == "train"
    return config.cluster, attempts.progress_mark(paths, phase, trains)


def call_file(run_dir: Path, phase: str, token: Token) -> Path:
    """What was written for a job when it was submitted."""
    return RunPaths(run_dir).logs / phase / f"{token.name}.pkl"
