"""Jobs on Slurm through submitit: the sbatch text as a pure function, and its submission with dependencies."""

import os
import re
import shlex
import shutil
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from hpc_stres.config import ClusterConfig, Config
from hpc_stres.errors import ConfigError, UserError
from hpc_stres.runpaths import RunPaths
from hpc_stres.training.signals import EXIT_CONTINUE
from launch.jobs import EVALUATE, PREPARE, Job, JobCall, continue_marker

ROOT = Path(__file__).resolve().parent.parent
SIGNAL_DELAY_SECONDS = 120
RETRY_SECONDS = (2, 5, 15, 30)
# What a busy controller says; anything else is a refusal.
BUSY = ("timed out", "Unable to contact", "temporarily", "Resource temporarily", "try again")


def require_slurm() -> None:
    """Refuse where there is no sbatch."""
    if shutil.which("sbatch") is None:
        raise ConfigError(
            "--cluster slurm: there is no sbatch on this machine; use --cluster local, or log in to a cluster"
        )
    ping = subprocess.run(["sinfo", "-h", "-o", "%P"], capture_output=True, text=True, check=False, timeout=60)
    if ping.returncode != 0:
        reason = (ping.stderr.strip() or "no reason given").splitlines()[-1]
        raise ConfigError(f"--cluster slurm: the controller does not answer: {reason}")


def parameters(cluster: ClusterConfig, run_dir: Path, job: Job, dependency: str) -> dict[str, Any]:
    """submitit's parameters of one job."""
    preparing = job.name == PREPARE
    chosen: dict[str, Any] = {
        "job_name": f"stres-{job.name}",
        "nodes": job.nodes,
        "ntasks_per_node": job.ranks_per_node,
        "time": job.minutes,
        "signal_delay_s": min(SIGNAL_DELAY_SECONDS, 15 * job.minutes),
        "stderr_to_stdout": True,
        "setup": _setup(cluster),
        "teardown": _teardown(cluster, run_dir, job),
        "partition": (cluster.cpu_partition if preparing else None) or cluster.partition,
        "account": cluster.account,
        "qos": cluster.qos,
        "constraint": None if preparing else cluster.constraint,
        "cpus_per_task": _cores(cluster, preparing),
        "exclusive": True if cluster.exclusive and not preparing else None,
    }
    if job.gpus_per_node:
        kind = f"{cluster.gpu_type}:" if cluster.gpu_type else ""
        chosen["gpus_per_node"] = f"{kind}{job.gpus_per_node}"
    if cluster.memory_gib_per_node:
        chosen["mem"] = f"{cluster.memory_gib_per_node}GB"
    # A job that was preempted or lost a node may always start again: it goes on from its checkpoint.
    extra: dict[str, Any] = {"requeue": True}
    if dependency:
        extra |= {"dependency": dependency, "kill-on-invalid-dep": "yes"}
    chosen["additional_parameters"] = extra
    # Since Slurm 22.05 srun does not take the cores of a task over from sbatch; said twice, it works on all versions.
    chosen["srun_args"] = ["--kill-on-bad-exit=1"]
    if chosen["cpus_per_task"]:
        chosen["srun_args"].append(f"--cpus-per-task={chosen['cpus_per_task']}")
    return {key: value for key, value in chosen.items() if value is not None}


def _cores(cluster: ClusterConfig, preparing: bool) -> int | None:
    """Cores of a task; the job that prepares is one task with the cores of a node's ranks."""
    if not preparing:
        return cluster.cpus_per_rank
    return cluster.prepare_cpus or (cluster.cpus_per_rank and cluster.cpus_per_rank * cluster.ranks_of_a_node)


def _setup(cluster: ClusterConfig) -> list[str]:
    lines = [f"module load {' '.join(cluster.modules)}"] if cluster.modules else []
    lines += [f"export {key}={shlex.quote(str(value))}" for key, value in cluster.environment.items()]
    lines += [f"export PYTHONPATH={shlex.quote(str(ROOT))}${{PYTHONPATH:+:$PYTHONPATH}}"]
    return [*lines, *cluster.setup, "ulimit -c 0"]


def _teardown(cluster: ClusterConfig, run_dir: Path, job: Job) -> list[str]:
    """After the ranks: one that stopped early left a marker; the job is queued again, or the next link takes over."""
    marker = continue_marker(run_dir, job.name, "$SLURM_JOB_ID", "${SLURM_RESTART_COUNT:-0}")
    lines = ["status=$?", f'marker={shlex.quote(str(marker.parent))}/"{marker.name}"']
    lines += ['if [ -e "$marker" ]; then', '  rm -f "$marker"']
    if cluster.continuation == "requeue":
        lines += ['  scontrol requeue "$SLURM_JOB_ID" && sleep 120']
    return [*lines, f"  exit {EXIT_CONTINUE}", "fi", 'exit "$status"']


def python_command(cluster: ClusterConfig, run_dir: Path, job: Job, data_root: str) -> str:
    """What starts Python in a job: this very interpreter, or the image's."""
    if cluster.image is None:
        return shlex.quote(sys.executable)
    binds = [str(ROOT), str(run_dir), str(Path(data_root).absolute()), *cluster.binds]
    words = ["apptainer", "exec", *(["--nv"] if job.gpus_per_node else [])]
    words += [word for bind in binds for word in ("--bind", bind)]
    return shlex.join([*words, "--pwd", str(Path.cwd()), cluster.image, "python3"])


def sbatch_text(config: Config, run_dir: Path, job: Job, dependency: str) -> str:
    """The script that `submit` would hand to sbatch."""
    from submitit.slurm.slurm import _make_sbatch_string

    folder = RunPaths(run_dir).logs / job.name
    python = python_command(config.cluster, run_dir, job, config.data.root)
    command = f"{python} -u -m submitit.core._submit {shlex.quote(str(folder))}"
    chosen = parameters(config.cluster, run_dir, job, dependency)
    return str(_make_sbatch_string(command=command, folder=folder, **chosen))


def submit(config: Config, run_dir: Path, jobs: list[Job], queued: Mapping[str, list[str]]) -> dict[str, list[str]]:
    """Submit all jobs; returns the ids of each one's links. Cancels what it submitted when one is refused."""
    ids = {name: list(numbers) for name, numbers in queued.items()}
    made: dict[str, list[str]] = {}
    for job in jobs:
        earlier, made[job.name] = ids.get(job.name, []), []
        ids[job.name] = made[job.name]
        for link in range(job.links):
            try:
                made[job.name].append(_submit_link(config, run_dir, job, dependency_of(job, ids, link, earlier)))
            except UserError as error:
                _cancel([number for numbers in made.values() for number in numbers])
                raise UserError(f"{error}\nNothing of this submission was left in the queue.") from None
    return made


def _submit_link(config: Config, run_dir: Path, job: Job, dependency: str) -> str:
    """One sbatch; a controller that is busy is asked again."""
    import submitit

    paths = RunPaths(run_dir)
    python = python_command(config.cluster, run_dir, job, config.data.root)
    executor = submitit.SlurmExecutor(paths.logs / job.name, python=python)
    executor.update_parameters(**parameters(config.cluster, run_dir, job, dependency))
    call = JobCall(job, {}, paths.logs / f"{job.name}.progress.json", run_dir)
    for pause in (*RETRY_SECONDS, None):
        try:
            return str(executor.submit(call).job_id)
        except submitit.core.utils.FailedJobError as error:
            reason = re.sub(r"\s+", " ", str(error))[:300]
            if pause is None or not any(word in reason for word in BUSY):
                raise UserError(f"sbatch refused {job.name}: {reason}") from None
            time.sleep(pause)
    raise AssertionError("the last pause is None")


def dependency_of(job: Job, ids: Mapping[str, Sequence[str]], link: int, earlier: Sequence[str] = ()) -> str:
    """afterok between phases; afterany between the links of one job, and after an evaluation that is queued already."""
    if link:
        return f"afterany:{ids[job.name][-1]}"
    before = [ids[name][-1] for name in job.after if ids.get(name)]
    words = ["afterok:" + ":".join(before)] if before else []
    if earlier and job.name == EVALUATE:
        words.append(f"afterany:{earlier[-1]}")
    return ",".join(words)


def still_queued(jobs: Mapping[str, Any]) -> dict[str, list[str]]:
    """Jobs of an earlier submission that wait or run, with their ids; those that can never start do not count."""
    numbers = [number for job in jobs.values() for number in job["ids"]]
    alive = {n for n, (state, reason) in queue(numbers).items() if "NeverSatisfied" not in reason and state in ALIVE}
    return {name: job["ids"] for name, job in jobs.items() if alive & set(job["ids"])}


ALIVE = ("PENDING", "RUNNING", "CONFIGURING", "COMPLETING", "SUSPENDED", "REQUEUED", "REQUEUE_HOLD", "RESIZING")


def queue(numbers: Sequence[str]) -> dict[str, tuple[str, str]]:
    """State and reason of jobs that the controller still knows, finished ones included, by one squeue."""
    if not numbers or not shutil.which("squeue"):
        return {}
    command = ["squeue", "-h", "-t", "all", "-o", "%i|%T|%r", "-j", ",".join(numbers)]
    # An id that the controller has forgotten makes squeue fail for that id alone; what it prints is true.
    run = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
    found = {}
    for line in run.stdout.splitlines():
        number, state, reason = [*line.split("|", maxsplit=2), "", ""][:3]
        found[number] = (state, reason)
    return found


def accounted(numbers: Sequence[str]) -> dict[str, tuple[str, str]]:
    """State and exit code of finished jobs as the accounting has them, by one sacct; nothing where there is none."""
    if not numbers or not shutil.which("sacct"):
        return {}
    command = ["sacct", "-n", "-X", "-P", "-o", "JobID,State,ExitCode", "-j", ",".join(numbers)]
    run = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
    rows = [line.split("|") for line in run.stdout.splitlines() if line.count("|") >= 2]
    return {row[0]: (row[1].split()[0], f"exit status {row[2].split(':')[0]}") for row in rows}


def _cancel(numbers: list[str]) -> None:
    if numbers:
        subprocess.run(["scancel", *numbers], check=False, env=dict(os.environ))
