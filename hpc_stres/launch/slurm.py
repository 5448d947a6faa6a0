"""Jobs on Slurm through submitit: the sbatch text as a pure function, and the files that a job
starts from."""

import os
import shlex
import shutil
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from hpc_stres import SOURCES
from hpc_stres.config.cluster import ClusterConfig
from hpc_stres.config.schema import Config
from hpc_stres.errors import ConfigError
from hpc_stres.launch.aftermath import script_lines
from hpc_stres.launch.bad_nodes import excluded
from hpc_stres.launch.jobs import PREPARE, Job, JobCall, continue_marker
from hpc_stres.launch.scheduler import Token
from hpc_stres.run.paths import RunPaths, write_text, write_with
from hpc_stres.run.signals import EXIT_CONTINUE

SIGNAL_DELAY_SECONDS = 120


def require_slurm() -> None:
    """Refuse where there is no sbatch."""
    if shutil.which("sbatch") is None:
        raise ConfigError(
            "--cluster slurm: there is no sbatch on this machine; use --cluster local, or log in to a cluster"
        )


def parameters(
    cluster: ClusterConfig, run_dir: Path, job: Job, dependency: str, token: Token
) -> dict[str, Any]:
    """submitit's parameters of one job."""
    preparing = job.name == PREPARE
    chosen: dict[str, Any] = {
        "job_name": token.name,
        "comment": token.comment,
        "nodes": job.nodes,
        "ntasks_per_node": job.ranks_per_node,
        "time": job.minutes,
        "signal_delay_s": min(SIGNAL_DELAY_SECONDS, 15 * job.minutes),
        "stderr_to_stdout": True,
        "setup": [*_setup(cluster), _take_call(run_dir, job, token)],
        "teardown": _teardown(cluster, run_dir, job),
        "partition": (cluster.cpu_partition if preparing else None) or cluster.partition,
        "account": cluster.account,
        "qos": cluster.qos,
        "constraint": None if preparing else cluster.constraint,
        "cpus_per_task": _cores(cluster, job.is_alone),
        "exclusive": True if cluster.exclusive and not preparing else None,
        "exclude": ",".join(excluded(run_dir, cluster)) or None,
    }
    if job.gpus_per_node:
        kind = f"{cluster.gpu_type}:" if cluster.gpu_type else ""
        chosen["gpus_per_node"] = f"{kind}{job.gpus_per_node}"
    memory_gib = cluster.prepare_memory_gib if preparing else None
    if memory_gib := memory_gib or cluster.memory_gib_per_node:
        chosen["mem"] = f"{memory_gib}GB"
    # A job that was preempted or lost a node may always start again: it resumes from its
    # checkpoint.
    extra: dict[str, Any] = {"requeue": True}
    if dependency:
        extra |= {"dependency": dependency, "kill-on-invalid-dep": "yes"}
    chosen["additional_parameters"] = extra | _own_options(cluster)
    # Since Slurm 22.05 srun does not take the cores of a task over from sbatch; said twice, it
    # works on all versions.
    chosen["srun_args"] = ["--kill-on-bad-exit=1"]
    if chosen["cpus_per_task"]:
        chosen["srun_args"].append(f"--cpus-per-task={chosen['cpus_per_task']}")
    chosen["srun_args"] += cluster.srun_args
    return {key: value for key, value in chosen.items() if value is not None}


def _own_options(cluster: ClusterConfig) -> dict[str, Any]:
    """The profile's own sbatch options, by the names that submitit writes, so that they replace
    what it chose."""
    return {key.replace("-", "_"): value for key, value in cluster.sbatch.items()}


def _take_call(run_dir: Path, job: Job, token: Token) -> str:
    """Shell line that gives the job what it is to call, under the name that submitit reads. The job does it itself:
    a submit that was killed behind sbatch could not. A job that is requeued keeps what it has."""
    folder = shlex.quote(str(RunPaths(run_dir).logs / job.name))
    source, mine = (
        f"{folder}/{shlex.quote(token.name)}.pkl",
        f'{folder}/"${{SLURM_JOB_ID}}_submitted.pkl"',
    )
    return f"[ -e {mine} ] || {{ cp {source} {mine}.part && mv {mine}.part {mine}; }}"


def _cores(cluster: ClusterConfig, is_alone: bool) -> int | None:
    """Cores of a task; a job that is one process has the cores of a node's ranks."""
    if not is_alone:
        return cluster.cpus_per_rank
    return cluster.prepare_cpus or (
        cluster.cpus_per_rank and cluster.cpus_per_rank * cluster.ranks_of_a_node
    )


def _setup(cluster: ClusterConfig) -> list[str]:
    lines = [f"module load {' '.join(cluster.modules)}"] if cluster.modules else []
    lines += [
        f"export {key}={shlex.quote(str(value))}" for key, value in cluster.environment.items()
    ]
    lines += [f"export PYTHONPATH={shlex.quote(str(SOURCES))}${{PYTHONPATH:+:$PYTHONPATH}}"]
    return [*lines, *cluster.setup, "ulimit -c 0"]


def _teardown(cluster: ClusterConfig, run_dir: Path, job: Job) -> list[str]:
    """After the ranks: one that stopped early left a marker; the job is queued again, or the next
    link takes over."""
    marker = continue_marker(run_dir, job.name, "$SLURM_JOB_ID", "${SLURM_RESTART_COUNT:-0}")
    lines = ["status=$?", f'marker={shlex.quote(str(marker.parent))}/"{marker.name}"']
    lines += ['if [ -e "$marker" ]; then', '  rm -f "$marker"']
    if cluster.continuation == "requeue":
        lines += ['  scontrol requeue "$SLURM_JOB_ID" && sleep 120']
    after = script_lines(python_command(cluster, run_dir, job, str(run_dir)), run_dir, job)
    return [*lines, f"  exit {EXIT_CONTINUE}", "fi", *after, 'exit "$status"']


def python_command(cluster: ClusterConfig, run_dir: Path, job: Job, data_root: str) -> str:
    """What starts Python in a job: this very interpreter, or the image's."""
    if cluster.image is None:
        return shlex.quote(sys.executable)
    binds = [str(SOURCES), str(run_dir), str(Path(data_root).absolute()), *cluster.binds]
    words = ["apptainer", "exec", *(["--nv"] if job.gpus_per_node else [])]
    words += [word for bind in binds for word in ("--bind", bind)]
    return shlex.join([*words, "--pwd", str(Path.cwd()), cluster.image, "python3"])


def sbatch_text(config: Config, run_dir: Path, job: Job, dependency: str, token: Token) -> str:
    """The script that is handed to sbatch."""
    from submitit.slurm.slurm import _make_sbatch_string

    folder = RunPaths(run_dir).logs / job.name
    python = python_command(config.cluster, run_dir, job, config.data.root)
    command = f"{python} -u -m submitit.core._submit {shlex.quote(str(folder))}"
    chosen = parameters(config.cluster, run_dir, job, dependency, token)
    lines = str(_make_sbatch_string(command=command, folder=folder, **chosen)).splitlines()
    # submitit gives each job a wckey of its own, which clusters that check wckeys refuse.
    unwanted = {
        f"#SBATCH --{key.replace('_', '-')}"
        for key, value in config.cluster.sbatch.items()
        if value is False
    }
    unwanted |= set() if "wckey" in config.cluster.sbatch else {"#SBATCH --wckey"}
    return "\n".join(line for line in lines if line.split("=")[0] not in unwanted) + "\n"


def write_job(config: Config, run_dir: Path, job: Job, dependency: str, token: Token) -> Path:
    """Write what a job is to call, and its script; returns the script's path."""
    from submitit.core.utils import DelayedSubmission

    folder = RunPaths(run_dir).logs / job.name
    call = JobCall(job, {}, RunPaths(run_dir).logs / f"{job.name}.progress.json", run_dir, token)
    delayed = DelayedSubmission(call)
    delayed.set_timeout(job.minutes, 3)
    write_with(folder / f"{token.name}.pkl", delayed.dump)
    script = folder / f"{token.name}.sh"
    write_text(script, sbatch_text(config, run_dir, job, dependency, token))
    return script


def keep_script(script: Path, number: str) -> None:
    """Name a script after the job that it has become."""
    os.replace(script, script.with_name(f"{number}_submission.sh"))


def dependency_of(
    job: Job, ids: Mapping[str, Sequence[str]], link: int, earlier: Sequence[str] = ()
) -> str:
    """afterok between phases; afterany between the links of one job, and after earlier jobs of the same phase that
    have not ended."""
    if link:
        return f"afterany:{ids[job.name][-1]}"
    before = [ids[name][-1] for name in job.after if ids.get(name)]
    words = ["afterok:" + ":".join(before)] if before else []
    if earlier:
        words.append("afterany:" + ":".join(earlier))
    return ",".join(words)
