"""The jobs of a run as data: what each runs, on how many ranks, and what it waits for. Pure;
nothing heavy imported."""

import math
import os
import re
import signal
import sys
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from types import FrameType

from hpc_stres.config.cluster import ClusterConfig
from hpc_stres.config.loading import load_resolved
from hpc_stres.config.recipe import Phases, ordered_phases
from hpc_stres.config.schema import Config
from hpc_stres.errors import ConfigError, UserError
from hpc_stres.evaluation.table import read_results
from hpc_stres.launch.attempt import Start
from hpc_stres.launch.scheduler import Token
from hpc_stres.run.paths import RunPaths, read_json
from hpc_stres.run.product import phase_is_done, read_done
from hpc_stres.tools.planner import read_hours

# What __main__ writes when a command fails: `hpc-stres COMMAND: MESSAGE`; libraries write `[Gloo]
# Rank 0 ...`.
MESSAGE = re.compile(
    r"hpc-stres [a-z-]+: (?P<message>(?:(?!\[[A-Z]\w+\] ).)*\S)(?=\s*(?:\[[A-Z]\w+\] |$))"
)
PREPARE, EVALUATE = "prepare", "evaluate"
# Asked for beyond the planned time of a job: start-up, slow file systems, the last checkpoint.
PLAN_MARGIN, START_MINUTES = 1.25, 10


class Interrupted(UserError):
    """Ctrl-C."""

    code = 130


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
    is_alone: bool = False
    """One process that shares its work out among the cores of a node's ranks itself."""
    uses_mpi: bool = False
    """Ranks that find each other through MPI, whichever launcher of the site can start that."""

    @property
    def ranks(self) -> int:
        return self.nodes * self.ranks_per_node


def make_jobs(
    config: Config,
    run_dir: Path,
    phases: list[str],
    store_ready: bool,
    queued: Collection[str] = (),
) -> list[Job]:
    """Jobs of some phases that are neither done nor queued, with `prepare` before and `evaluate`
    after them."""
    paths, cluster = RunPaths(run_dir), config.cluster
    _refuse_missing_parents(config, paths, phases, queued)
    jobs: list[Job] = []
    if not store_ready and PREPARE not in queued:
        jobs.append(_prepare_job(cluster, paths))
    needed = [name for name in phases if not is_done(config, paths, name)]
    todo = [name for name in needed if name not in queued]
    first = () if store_ready else (PREPARE,)
    for name in todo:
        parents = tuple(p for p in config.phases[name].starts_from if p in needed or p in queued)
        jobs.append(_training_job(config, run_dir, name, parents or first))
    if todo or (EVALUATE not in queued and not evaluation_is_done(config, paths)):
        last = tuple(
            name
            for name in needed
            if not any(name in config.phases[other].starts_from for other in needed)
        )
        where = ("--run-dir", str(run_dir))
        look = _preflight(cluster, paths, is_first=False)
        commands = (*look, ("evaluate", *where), ("report", *where))
        minutes, links = wall_time(cluster, planned_hours(paths, EVALUATE))
        per_node, gpus = cluster.ranks_of_a_node, cluster.gpus_per_node
        jobs.append(
            Job(EVALUATE, commands, last or first, cluster.nodes, per_node, gpus, minutes, links)
        )
    return jobs


def _prepare_job(cluster: ClusterConfig, paths: RunPaths) -> Job:
    """The job that prepares the store: one process for the cores of a node, or MPI ranks."""
    command = ("prepare", "--config", str(paths.config))
    own = cluster.prepare
    minutes, is_mpi = own.minutes or cluster.minutes, own.launcher == "mpi"
    if is_mpi and cluster.scheduler == "slurm":
        return Job(
            PREPARE, (command,), (), own.nodes, own.cores or 1, 0, minutes, cluster.links, False, True
        )  # fmt: skip
    return Job(PREPARE, (command,), (), 1, 1, 0, minutes, cluster.links, True)


def _refuse_missing_parents(
    config: Config, paths: RunPaths, phases: list[str], queued: Collection[str]
) -> None:
    """A phase starts from the weights of others: each is done, or queued, or submitted with it."""
    for name in phases:
        if name in queued or is_done(config, paths, name):
            continue
        wanted = config.phases[name].starts_from
        coming = {*phases, *queued}
        absent = [p for p in wanted if p not in coming and not is_done(config, paths, p)]
        if absent:
            every = [
                p for p in ordered_phases(config.phases) if p in _ancestors(config.phases, phases)
            ]
            missing = [p for p in every if p in phases or not is_done(config, paths, p)]
            is_or_are = "is" if len(absent) == 1 else "are"
            raise ConfigError(
                f"--phase {name}: it starts from {' and '.join(absent)}, which {is_or_are} neither done nor in the "
                f"queue: {paths.root}\nSubmit them together: --phase {','.join(missing)} (or --phase all)"
            )


def _ancestors(known: Phases, phases: Collection[str]) -> set[str]:
    ancestors = set(phases)
    for name in reversed(ordered_phases(known)):
        if name in ancestors:
            ancestors |= set(known[name].starts_from)
    return ancestors


def _training_job(config: Config, run_dir: Path, name: str, after: tuple[str, ...]) -> Job:
    paths, cluster = RunPaths(run_dir), config.cluster
    phase = config.phases[name]
    commands: list[tuple[str, ...]] = []
    ranks = phase.job_ranks
    if ranks == "training":
        commands += _preflight(cluster, paths, is_first=not phase.starts_from)
    commands.append(
        ("train", "--config", str(paths.config), "--phase", name, "--run-dir", str(run_dir))
    )
    minutes, links = wall_time(cluster, planned_hours(paths, name))
    nodes, per_node, gpus = _shape(cluster, ranks)
    alone = ranks == "one"
    return Job(name, tuple(commands), after, nodes, per_node, gpus, minutes, links, alone)


def _preflight(cluster: ClusterConfig, paths: RunPaths, is_first: bool) -> list[tuple[str, ...]]:
    """The whole check before a submission's first phases; later jobs, on nodes of their own, see
    whether their ranks are there and reach each other."""
    if cluster.scheduler != "slurm" or not cluster.preflight or not (is_first or cluster.ranks > 1):
        return []
    words = ("preflight", "--config", str(paths.config), "--run-dir", str(paths.root))
    return [words if is_first else (*words, "--brief")]


def _shape(cluster: ClusterConfig, ranks: str) -> tuple[int, int, int]:
    """Nodes, ranks of each and its GPUs, for what a kind of phase runs on."""
    if ranks == "one":
        return 1, 1, 0
    gpus = cluster.gpus_per_node if ranks == "training" else 0
    return cluster.nodes, cluster.ranks_of_a_node, gpus


def planned_hours(paths: RunPaths, name: str) -> float | None:
    """Hours that `hpc-stres plan --run-dir` predicted for a job, where it did."""
    return read_hours(paths.plan).get(name) if paths.plan.is_file() else None


def wall_time(cluster: ClusterConfig, hours: float | None) -> tuple[int, int]:
    """Minutes of a job and how many links it takes: from the plan where there is one, else from the
    profile."""
    if hours is None:
        return cluster.minutes, cluster.links
    wanted = math.ceil(60 * hours * PLAN_MARGIN)
    if wanted + START_MINUTES <= cluster.minutes:
        return wanted + START_MINUTES, cluster.links
    return cluster.minutes, max(
        cluster.links, math.ceil(wanted / max(1, cluster.minutes - START_MINUTES))
    )


def is_done(config: Config, paths: RunPaths, name: str) -> bool:
    """Whether a phase's product is there and as long as the config asks."""
    return phase_is_done(paths.phase(name), config.steps(name))


def evaluation_is_done(config: Config, paths: RunPaths) -> bool:
    """Whether results.json speaks of every scored phase that is finished, as it is now: by the checksums of what was
    scored, so that a copied run is the run."""
    if not paths.results.is_file():
        return False
    try:
        results = read_results(paths.results)
    except UserError:
        return False  # a damaged table is none: it is made again from the scores
    table = results.get("splits", {}).get(str(config.data.split), {})
    for name, phase in config.phases.items():
        done = read_done(paths.phase(name)) if phase.is_scored else None
        if done is not None and table.get(name, {}).get("weights") != done["sha256"]:
            return False
    return True


def layout_line(config: Config, job: Job) -> str:
    """How a training job's global batch will be cut; refuses at submit time what no layout can
    cut."""
    return config.phases[job.name].explain(config, job.ranks) if job.name in config.phases else ""


def last_message(log: Path) -> str:
    """The last error that a command of ours wrote into a log; greetings of libraries that tore into it are left
    out. Empty: none."""
    try:
        text = log.read_text("utf-8", "replace")
    except OSError:
        return ""
    message = ""
    for line in text.splitlines():
        match = MESSAGE.match(line)
        if match:
            # Another rank, or a library, may have written into the same line.
            message = line[: match.end("message")].rstrip()
    return message


def continue_marker(run_dir: Path, name: str, job: str, restart: str) -> Path:
    """File that says that one run of a job stopped early and has more to do; job scripts spell its
    name as well."""
    return RunPaths(run_dir).logs / name / f"{job}.continue.{restart}"


def leave(code: int) -> None:
    """End at once: submitit would turn an exception into a traceback; the message is on stderr already."""
    for stream in (sys.stdout, sys.stderr):
        stream.flush()
    os._exit(code)


def begun(call: "JobCall") -> Start:
    """A job's attempt, written down; one that has no sense ends here, with its reason."""
    job = call.job
    start = Start(
        call.run_dir, job.name, job.ranks, job.ranks_per_node, job.gpus_per_node, call.token, call.rank
    )  # fmt: skip
    try:
        start.begin()
    except UserError as error:
        print(f"hpc-stres {job.commands[0][0]}: {error}", file=sys.stderr, flush=True)
        start.end(error.code)
        leave(error.code)
    return start


class JobCall:
    """What a job's ranks call, on every launcher: the same commands that a person would type."""

    def __init__(
        self,
        job: Job,
        environment: dict[str, str],
        progress: Path,
        run_dir: Path,
        token: Token | None = None,
        journal_folder: Path | None = None,
        code: Path | None = None,
    ) -> None:
        self.job, self.environment = job, environment
        self.progress, self.run_dir = progress, run_dir
        self.token = token
        self.journal_folder = journal_folder or run_dir
        """Where the submission is written down: that of an array is in the folder of its runs."""
        self.code = code
        """Folder of the code that was submitted."""

    def checkpoint(self) -> None:
        """submitit's word for `may be requeued`; the state is on disk, and who continues is decided
        in __call__."""

    def __call__(self) -> str:
        os.environ.update(self.environment)
        os.environ["HPC_STRES_PROGRESS"] = str(self.progress)
        self._name_rank()
        self._check_code()
        if self._is_abandoned():
            print(
                f"{self.job.name}: a later submit has replaced this job; it does nothing",
                flush=True,
            )
            return "replaced"
        if self._nothing_left():
            print(f"{self.job.name}: done already; nothing left for this job", flush=True)
            return "done"
        from hpc_stres.__main__ import main
        from hpc_stres.run.signals import EXIT_CONTINUE

        self._take_signals()
        start = begun(self)
        for command in self.job.commands:
            if command[0] == "report" and not self._is_first:
                continue
            code = main(command)
            if code != 0:
                start.end(code)
            if code == EXIT_CONTINUE and self._on_slurm:
                self._ask_for_more()
                return "continue"
            if code != 0:
                leave(code)
        start.end(0)
        return "done"

    def _check_code(self) -> None:
        """End where this is not the code that was submitted."""
        if self.code is None or not self._is_first:
            return
        from hpc_stres.launch.code import refuse_changed_copy

        try:
            refuse_changed_copy(self.code)
        except UserError as error:
            print(f"hpc-stres {self.job.commands[0][0]}: {error}", file=sys.stderr, flush=True)
            os._exit(error.code)

    @property
    def _on_slurm(self) -> bool:
        return os.environ.get("SUBMITIT_EXECUTOR") == "slurm"

    @property
    def rank(self) -> int:
        """Number of this rank among the job's."""
        return int(os.environ.get("RANK", os.environ.get("SLURM_PROCID", "0")))

    @property
    def _is_first(self) -> bool:
        return self.rank == 0

    def _is_abandoned(self) -> bool:
        """Whether a submit looked for this job, did not find it, and has put another in its
        place."""
        if self.token is None:
            return False
        journal = read_json(RunPaths(self.journal_folder).jobs)
        return self.token.comment in journal.get("abandoned", [])

    def _nothing_left(self) -> bool:
        """Whether an earlier link has finished the phase: then this one ends before anything heavy
        is imported."""
        paths = RunPaths(self.run_dir)
        if not paths.config.is_file() or self.job.name == PREPARE:
            return False
        config = load_resolved(paths.config)
        if self.job.name == EVALUATE:
            return evaluation_is_done(config, paths)
        return is_done(config, paths, self.job.name)

    def _take_signals(self) -> None:
        """Training stops at a step; what works video by video may stop anywhere and resumes where
        it was."""
        from hpc_stres.run.signals import EXIT_CONTINUE, catch_early

        if any(command[0] == "train" for command in self.job.commands):
            catch_early()
            return

        def stop(number: int, frame: FrameType | None) -> None:
            if self._on_slurm:
                self._ask_for_more()
            os._exit(EXIT_CONTINUE)

        signal.signal(signal.SIGUSR2, stop)
        signal.signal(signal.SIGTERM, signal.SIG_DFL)

    def _ask_for_more(self) -> None:
        """Leave word for the job script, which requeues the job or leaves the rest to the next
        link."""
        job, restart = os.environ["SLURM_JOB_ID"], os.environ.get("SLURM_RESTART_COUNT", "0")
        continue_marker(self.run_dir, self.job.name, job, restart).touch()

    def _name_rank(self) -> None:
        """submitit's local executor numbers its tasks under names of its own."""
        env = os.environ
        if "SUBMITIT_LOCAL_NTASKS" not in env or env.get("SUBMITIT_EXECUTOR") != "local":
            return
        rank, size = env["SUBMITIT_LOCAL_GLOBALID"], env["SUBMITIT_LOCAL_NTASKS"]
        env.update(RANK=rank, LOCAL_RANK=rank, MASTER_ADDR="127.0.0.1")
        env.update(WORLD_SIZE=size, LOCAL_WORLD_SIZE=size)
