"""Jobs on Slurm through submitit: the sbatch text as a pure function, and the files that a job
starts from."""

import os
import shlex
import shutil
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hpc_stres import SOURCES
from hpc_stres.config.cluster import ClusterConfig, PrepareJobConfig
from hpc_stres.config.sbatch import long_name
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


def parameters(cluster: ClusterConfig, job: Job, dependency: str, token: Token) -> dict[str, Any]:
    """submitit's parameters of one job."""
    chosen: dict[str, Any] = {
        "job_name": token.name,
        "comment": token.comment,
        "nodes": job.nodes,
        "ntasks_per_node": job.ranks_per_node,
        "time": job.minutes,
        "signal_delay_s": min(SIGNAL_DELAY_SECONDS, 15 * job.minutes),
        "stderr_to_stdout": True,
        "account": cluster.account,
        "qos": cluster.qos,
        "partition": cluster.partition,
        "constraint": cluster.constraint,
        "wckey": cluster.wckey,
        "exclusive": True if cluster.exclusive else None,
        "cpus_per_task": _cores(cluster, job),
        "mem": f"{cluster.memory_gib_per_node}GB" if cluster.memory_gib_per_node else None,
        **_gpus(cluster, job),
    }
    if job.name == PREPARE:
        chosen |= {"constraint": None, "exclusive": None, **_of_prepare(cluster.prepare)}
    # A job that was preempted or lost a node may always start again: it resumes from its
    # checkpoint.
    extra: dict[str, Any] = {"requeue": True}
    if dependency:
        extra |= {"dependency": dependency, "kill-on-invalid-dep": "yes"}
    chosen["additional_parameters"] = extra | _own_options(cluster, job, chosen)
    chosen["srun_args"] = _srun_args(cluster, job, chosen["cpus_per_task"])
    return {key: value for key, value in chosen.items() if value is not None}


def _of_prepare(prepare: PrepareJobConfig) -> dict[str, Any]:
    """What the job that prepares the store asks for in place of what the others do."""
    own = {
        "partition": prepare.partition,
        "account": prepare.account,
        "qos": prepare.qos,
        "mem": f"{prepare.memory_gib}GB" if prepare.memory_gib else None,
    }
    return {key: value for key, value in own.items() if value is not None}


def _gpus(cluster: ClusterConfig, job: Job) -> dict[str, str]:
    """The request for GPUs in the site's own words."""
    kind = f"{cluster.gpu_type}:" if cluster.gpu_type else ""
    if not job.gpus_per_node:
        return {}
    if cluster.gpus_by == "gpus-per-task":
        return {"gpus_per_task": f"{kind}1"}
    if cluster.gpus_by == "gres":
        # A profile may ask for other resources in the same option.
        others = cluster.sbatch.get("gres")
        more = f",{others}" if isinstance(others, str) else ""
        return {"gres": f"gpu:{kind}{job.gpus_per_node}{more}"}
    return {"gpus_per_node": f"{kind}{job.gpus_per_node}"}


def _own_options(cluster: ClusterConfig, job: Job, chosen: Mapping[str, Any]) -> dict[str, Any]:
    """The profile's own sbatch options, by the names that submitit writes, so that they replace
    what it chose. What is about GPUs is refused by sbatch for a job that has none."""
    options = {key.replace("-", "_"): value for key, value in cluster.sbatch.items()}
    if job.name == PREPARE:
        own = {key.replace("-", "_"): value for key, value in cluster.prepare.sbatch.items()}
        # A field of the section prepare is said last of all.
        said = {key.replace("-", "_") for key in _of_prepare(cluster.prepare)}
        options = {key: value for key, value in options.items() if key not in said} | own
    if not job.gpus_per_node:
        options = {key: value for key, value in options.items() if "gpu" not in key}
    if "gres" in chosen:
        options.pop("gres", None)
    if options.get("no_requeue"):
        options["requeue"] = False
    return options


def _srun_args(cluster: ClusterConfig, job: Job, cores: int | None) -> list[str]:
    """Arguments of the srun that starts the ranks."""
    # Since Slurm 22.05 srun does not take the cores of a task over from sbatch; said twice, it
    # works on all versions. Where jobs are submitted with --export=NONE, srun would pass on none of
    # what setup has exported.
    words = ["--kill-on-bad-exit=1", *([f"--cpus-per-task={cores}"] if cores else [])]
    if "export" in cluster.sbatch:
        words.append("--export=ALL")
    if job.gpus_per_node and cluster.gpus_by == "gpus-per-task":
        # Ranks of a node see each other's GPUs, which NCCL wants; each takes its own by its number.
        words.append("--gpu-bind=none")
    return [*words, *cluster.srun_args]


def _take_call(run_dir: Path, job: Job, token: Token, number: str) -> str:
    """Shell line that gives the job what it is to call, under the name that submitit reads. The
    job does it itself: a submit that was killed behind sbatch could not. A job that is requeued
    keeps what it has."""
    folder = shlex.quote(str(RunPaths(run_dir).logs / job.name))
    source, mine = f"{folder}/{shlex.quote(token.name)}.pkl", f'{folder}/"{number}_submitted.pkl"'
    return f"[ -e {mine} ] || {{ cp {source} {mine}.part && mv {mine}.part {mine}; }}"


def _cores(cluster: ClusterConfig, job: Job) -> int | None:
    """Cores of a task; a job that is one process has the cores of a node's ranks."""
    if not job.is_alone:
        return 1 if job.name == PREPARE else cluster.cpus_per_rank
    return cluster.prepare.cores or (
        cluster.cpus_per_rank and cluster.cpus_per_rank * cluster.ranks_of_a_node
    )


def _setup(cluster: ClusterConfig, code: Path) -> list[str]:
    lines = [f"module load {' '.join(cluster.modules)}"] if cluster.modules else []
    lines += [
        f"export {key}={shlex.quote(str(value))}" for key, value in cluster.environment.items()
    ]
    lines += [f"export PYTHONPATH={shlex.quote(str(code))}${{PYTHONPATH:+:$PYTHONPATH}}"]
    # `python -m` would look into the folder in which the job was submitted first: a
    # checkout, perhaps.
    lines += ["export PYTHONSAFEPATH=1"]
    return [*lines, *cluster.setup, "ulimit -c 0"]


def _teardown(cluster: ClusterConfig, run_dir: Path, job: Job, code: Path) -> list[str]:
    """After the ranks: one that stopped early left a marker; the job is queued again, or the next
    link takes over."""
    marker = continue_marker(run_dir, job.name, "$SLURM_JOB_ID", "${SLURM_RESTART_COUNT:-0}")
    lines = ["status=$?", f'marker={shlex.quote(str(marker.parent))}/"{marker.name}"']
    lines += script_lines(_python_of_script(cluster, run_dir, job, code), run_dir, job)
    lines += ['if [ -e "$marker" ]; then', '  rm -f "$marker"']
    if cluster.continuation == "requeue":
        lines += ['  scontrol requeue "$SLURM_JOB_ID" && sleep 120']
    return [*lines, f"  exit {EXIT_CONTINUE}", "fi", 'exit "$status"']


def _binds(cluster: ClusterConfig, run_dir: Path, code: Path, data_root: str) -> list[str]:
    """Folders that an image sees."""
    return [str(code), str(run_dir), str(Path(data_root).absolute()), *cluster.binds]


def is_in_pyxis(cluster: ClusterConfig) -> bool:
    """Whether srun itself runs the image."""
    return cluster.image is not None and cluster.image_with == "pyxis"


def _in_pyxis(cluster: ClusterConfig, binds: Sequence[str]) -> list[str]:
    """Arguments of srun that run its tasks inside an image, each folder under its own name
    unless it has another."""
    mounts = ",".join(bind if ":" in bind else f"{bind}:{bind}" for bind in binds)
    return [
        f"--container-image={cluster.image}",
        f"--container-mounts={mounts}",
        f"--container-workdir={Path.cwd()}",
    ]


def python_command(
    cluster: ClusterConfig, run_dir: Path, job: Job, data_root: str, code: Path | None = None
) -> str:
    """What starts Python in a job: this very interpreter, or the image's."""
    if cluster.image is None:
        return shlex.quote(sys.executable)
    if is_in_pyxis(cluster):
        return "python3"
    binds = _binds(cluster, run_dir, code or SOURCES, data_root)
    words = [cluster.image_with, "exec", *(["--nv"] if job.gpus_per_node else [])]
    words += [word for bind in binds for word in ("--bind", bind)]
    return shlex.join([*words, "--pwd", str(Path.cwd()), cluster.image, "python3"])


def ranges_text(numbers: Iterable[int]) -> str:
    """Numbers as sbatch writes them: 0-2,5."""
    ranges: list[list[int]] = []
    for number in sorted(numbers):
        if ranges and ranges[-1][-1] == number - 1:
            ranges[-1][1:] = [number]
        else:
            ranges.append([number])
    return ",".join("-".join(map(str, each)) for each in ranges)


def _python_of_script(cluster: ClusterConfig, run_dir: Path, job: Job, code: Path) -> str:
    """What starts Python in the script itself, behind the ranks: under pyxis only srun starts
    anything in the image, and nothing is known of the node's own Python."""
    if not is_in_pyxis(cluster):
        return python_command(cluster, run_dir, job, str(run_dir), code)
    step = ["srun", "--overlap", "--nodes=1", "--ntasks=1", "--mpi=none", "--immediate=60"]
    mounts = _in_pyxis(cluster, _binds(cluster, run_dir, code, str(run_dir)))
    return shlex.join([*step, "--export=ALL", *mounts, "python3"])


@dataclass(frozen=True)
class Members:
    """The runs of one job array, by their index."""

    jobs: Mapping[int, tuple[Path, Job]]
    at_once: int | None = None

    @property
    def spec(self) -> str:
        """As sbatch's --array takes it: 0-2,5%3."""
        return ranges_text(self.jobs) + (f"%{self.at_once}" if self.at_once else "")

    def choice(self) -> list[str]:
        """Shell lines that find the run folder of an element."""
        rows = [
            f"  {index}) run={shlex.quote(str(folder))} ;;"
            for index, (folder, _) in sorted(self.jobs.items())
        ]
        return ['case "$SLURM_ARRAY_TASK_ID" in', *rows, "esac"]


# Stands for the run folder of an element while its script is made. The blank makes a shell's quotes
# of any word that holds it, so that it can be replaced in the middle of them.
ANY_RUN = Path("/run folder of this element")
IN_QUOTES = "'\"$run\"'"


def sbatch_text(
    config: Config, run_dir: Path, job: Job, dependency: str, token: Token, code: Path | None = None,
    members: Members | None = None,
) -> str:  # fmt: skip
    """The script that is handed to sbatch; of an array, `run_dir` is the folder of its runs."""
    from submitit.slurm.slurm import _make_sbatch_string

    cluster, code, home = config.cluster, code or SOURCES, run_dir
    if members is not None:
        run_dir = ANY_RUN
    number = "${SLURM_ARRAY_JOB_ID}_${SLURM_ARRAY_TASK_ID}" if members else "${SLURM_JOB_ID}"
    folder = RunPaths(run_dir).logs / job.name
    chosen = parameters(cluster, job, dependency, token)
    folders = [folder for folder, _ in members.jobs.values()] if members is not None else [home]
    avoided = {node for folder in folders for node in excluded(folder, cluster)}
    if own := chosen["additional_parameters"].get("exclude"):
        avoided.add(str(own))
    if avoided:
        chosen["additional_parameters"]["exclude"] = ",".join(sorted(avoided))
    chosen["setup"] = [*_setup(cluster, code), _take_call(run_dir, job, token, number)]
    chosen["teardown"] = _teardown(cluster, run_dir, job, code)
    if is_in_pyxis(cluster):
        binds = _binds(cluster, run_dir, code, config.data.root)
        chosen["srun_args"] = [*_in_pyxis(cluster, binds), *chosen["srun_args"]]
    if members is not None:
        chosen["map_count"] = 1
        logs = RunPaths(home).logs / job.name / "%A_%a_0_log.out"
        chosen["additional_parameters"] |= {"array": members.spec, "output": str(logs)}
        chosen["setup"] = [*members.choice(), *chosen["setup"]]
    python = python_command(cluster, run_dir, job, config.data.root, code)
    command = f"{python} -u -m submitit.core._submit {shlex.quote(str(folder))}"
    if job.uses_mpi:
        call = shlex.quote(str(folder / f"{token.name}.pkl"))
        chosen |= {"use_srun": False, "setup": [*chosen["setup"], f". {_mpi_script(code)}"]}
        lines = [f"PYTHON=({python})", f"SRUN_ARGS=({shlex.join(chosen['srun_args'])})"]
        command = "\n".join([*lines, f"mpi_ranks -u -m hpc_stres.launch.work {call}"])
    script = str(_make_sbatch_string(command=command, folder=folder, **chosen)).splitlines()
    text = "\n".join(line for line in script if line.split("=")[0] not in _unwanted(cluster, job))
    return text.replace(str(ANY_RUN), IN_QUOTES) + "\n"


def _mpi_script(code: Path) -> str:
    return shlex.quote(str(code / "hpc_stres" / "launch" / "mpi.sh"))


def _unwanted(cluster: ClusterConfig, job: Job) -> set[str]:
    """Lines of submitit's that are left out. It gives each job a wckey of its own, which clusters
    that check wckeys refuse."""
    options = {long_name(key): value for key, value in cluster.sbatch.items()}
    if job.name == PREPARE:
        options |= {long_name(key): value for key, value in cluster.prepare.sbatch.items()}
    if options.get("no-requeue"):
        options["requeue"] = False
    unwanted = {f"#SBATCH --{key}" for key, value in options.items() if value is False}
    return unwanted | (set() if cluster.wckey or options.get("wckey") else {"#SBATCH --wckey"})


def write_job(
    config: Config, run_dir: Path, job: Job, dependency: str, token: Token, code: Path | None = None,
    members: Members | None = None,
) -> Path:  # fmt: skip
    """Write what a job is to call, or each element of an array, and its script; returns
    the script's path."""
    from submitit.core.utils import DelayedSubmission

    for folder, own in members.jobs.values() if members is not None else [(run_dir, job)]:
        logs = RunPaths(folder).logs
        call = JobCall(own, {}, logs / f"{own.name}.progress.json", folder, token, run_dir, code)
        delayed = DelayedSubmission(call)
        delayed.set_timeout(own.minutes, 3)
        write_with(logs / own.name / f"{token.name}.pkl", delayed.dump)
    script = RunPaths(run_dir).logs / job.name / f"{token.name}.sh"
    write_text(script, sbatch_text(config, run_dir, job, dependency, token, code, members))
    return script


def keep_script(script: Path, number: str) -> None:
    """Name a script after the job that it has become."""
    os.replace(script, script.with_name(f"{number}_submission.sh"))


def dependency_of(
    job: Job, ids: Mapping[str, Sequence[str]], link: int, earlier: Sequence[str] = ()
) -> str:
    """afterok between phases; afterany between the links of one job, and after earlier jobs of the
    same phase that have not ended.

    Every link waits for the phases before: when one of those fails, Slurm cancels the first link,
    and a cancelled job is all that afterany asks for."""
    before = [ids[name][-1] for name in job.after if ids.get(name)]
    words = ["afterok:" + ":".join(before)] if before else []
    if any_end := ids[job.name][-1:] if link else earlier:
        words.append("afterany:" + ":".join(any_end))
    return ",".join(words)
