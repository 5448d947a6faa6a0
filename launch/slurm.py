"""Jobs on Slurm through submitit: the sbatch text as a pure function, and its submission with dependencies."""

import re
import shlex
import shutil
import sys
from pathlib import Path
from typing import Any

from hpc_stres.config import ClusterConfig, Config
from hpc_stres.errors import ConfigError, UserError
from hpc_stres.runpaths import RunPaths
from launch.jobs import Job, JobCall

SIGNAL_DELAY_SECONDS = 120


def require_slurm() -> None:
    """Refuse where there is no sbatch."""
    if shutil.which("sbatch") is None:
        raise ConfigError(
            "--cluster slurm: there is no sbatch on this machine\nUse --cluster local, or log in to a cluster."
        )


def parameters(cluster: ClusterConfig, job: Job, dependency: str) -> dict[str, Any]:
    """submitit's parameters of one job."""
    chosen: dict[str, Any] = {
        "job_name": f"stres-{job.name}",
        "nodes": job.nodes,
        "ntasks_per_node": job.ranks_per_node,
        "time": job.minutes,
        "signal_delay_s": min(SIGNAL_DELAY_SECONDS, 30 * job.minutes),
        "stderr_to_stdout": True,
        "setup": [*cluster.setup, "ulimit -c 0"],
        "partition": cluster.partition,
        "account": cluster.account,
        "qos": cluster.qos,
        "constraint": cluster.constraint,
        "cpus_per_task": cluster.cpus_per_rank,
    }
    if job.gpus_per_node:
        chosen["gpus_per_node"] = job.gpus_per_node
    if cluster.memory_gib_per_node:
        chosen["mem"] = f"{cluster.memory_gib_per_node}GB"
    extra: dict[str, Any] = {}
    if dependency:
        extra |= {"dependency": dependency, "kill-on-invalid-dep": "yes"}
    chosen["additional_parameters"] = extra
    # Since Slurm 22.05 srun does not take the cores of a task over from sbatch; said twice, it works on all versions.
    chosen["srun_args"] = ["--kill-on-bad-exit=1"]
    if cluster.cpus_per_rank:
        chosen["srun_args"].append(f"--cpus-per-task={cluster.cpus_per_rank}")
    return {key: value for key, value in chosen.items() if value is not None}


def sbatch_text(config: Config, run_dir: Path, job: Job, dependency: str) -> str:
    """The script that `submit` would hand to sbatch."""
    from submitit.slurm.slurm import _make_sbatch_string

    folder = RunPaths(run_dir).logs / job.name
    command = f"{shlex.quote(sys.executable)} -u -m submitit.core._submit {shlex.quote(str(folder))}"
    return str(_make_sbatch_string(command=command, folder=folder, **parameters(config.cluster, job, dependency)))


def submit(config: Config, run_dir: Path, jobs: list[Job]) -> dict[str, list[str]]:
    """Submit all jobs; returns the job ids of each one's links. Cancels what it submitted when one is refused."""
    import submitit

    ids: dict[str, list[str]] = {}
    for job in jobs:
        ids[job.name] = []
        for link in range(job.links):
            executor = submitit.SlurmExecutor(RunPaths(run_dir).logs / job.name)
            executor.update_parameters(**parameters(config.cluster, job, dependency_of(job, ids, link)))
            progress = RunPaths(run_dir).logs / f"{job.name}.progress.json"
            try:
                ids[job.name].append(str(executor.submit(JobCall(job, {}, progress)).job_id))
            except submitit.core.utils.FailedJobError as error:
                _cancel([number for numbers in ids.values() for number in numbers])
                reason = re.sub(r"\s+", " ", str(error))[:300]
                raise UserError(f"sbatch refused {job.name}: {reason}\nNothing was left in the queue.") from None
    return ids


def dependency_of(job: Job, ids: dict[str, list[str]], link: int) -> str:
    """afterok between phases; afterany between the links of one phase."""
    if link:
        return f"afterany:{ids[job.name][-1]}"
    before = [ids[name][-1] for name in job.after if ids.get(name)]
    return "afterok:" + ":".join(before) if before else ""


def _cancel(numbers: list[str]) -> None:
    import subprocess

    if numbers:
        subprocess.run(["scancel", *numbers], check=False)
