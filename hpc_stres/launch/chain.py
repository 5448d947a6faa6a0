"""One chain of phases: what is done, what is in the queue, and what is submitted now."""

import contextlib
import re
import shlex
import shutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hpc_stres.config.loading import load_resolved, plain
from hpc_stres.config.recipe import select_phases
from hpc_stres.config.schema import Config
from hpc_stres.errors import UserError
from hpc_stres.launch import checks
from hpc_stres.launch import jobs as job_list
from hpc_stres.launch.bad_nodes import reasons
from hpc_stres.launch.code import take_code
from hpc_stres.launch.jobs import EVALUATE, PREPARE, Job
from hpc_stres.launch.journal import Journal
from hpc_stres.launch.survey import Seen, Survey
from hpc_stres.run.experiment import claim_run_folder
from hpc_stres.run.ownership import owned
from hpc_stres.run.paths import RunPaths, read_json, study_folder
from hpc_stres.run.provenance import write_provenance
from hpc_stres.store.location import store_folder, store_is_ready

# How long a second submit waits for the first to have submitted; then it sees what is queued.
SUBMIT_PATIENCE_SECONDS = 60.0
SHOWN_DIFFERENCES = 4


@dataclass(frozen=True)
class Request:
    """What a submit was asked for, for one run folder."""

    config: Config
    run_dir: Path
    phases: str
    """all, or names with commas between."""
    group: Path | None = None
    """Folder above of runs that are submitted together: they share a store, and one job that
    prepares it."""
    forget: str = ""
    """Ids of jobs that the user is certain have ended."""
    allow_cpu: bool = False
    """Whether a recipe for GPUs is meant for CPU ranks."""
    adopt_code: bool = False
    """Whether the run is to resume with the code of today, whatever it began with."""

    @property
    def prepare_home(self) -> Path:
        """Folder whose journal holds the job that prepares the store."""
        if self.group is not None:
            return self.group
        above = study_folder(self.run_dir)
        if above is not None and read_json(RunPaths(above).runs).get("shared_store"):
            return above
        # Splits that version 0.4 submitted together.
        above = self.run_dir.parent
        is_split = (
            re.fullmatch(r"split[1-9]\d?", self.run_dir.name)
            and not RunPaths(above).config.exists()
        )
        return above if is_split and RunPaths(above).jobs.exists() else self.run_dir

    @property
    def journal_folders(self) -> list[Path]:
        """Folders of the journals that this run's jobs are in."""
        # First the folder whose arrays this run may be an element of.
        above = study_folder(self.run_dir) or self.prepare_home
        return list(dict.fromkeys([above, self.prepare_home, self.run_dir]))

    def jobs(self, queued: Mapping[str, list[str]], partial: Sequence[str] = ()) -> list[Job]:
        """Jobs to submit when these are in the queue; those of `partial` phases lack links."""
        wanted = select_phases(self.config.phases, self.phases)
        every = select_phases(self.config.phases, "all")
        wanted = [name for name in every if name in wanted or name in partial]
        whole = [name for name in queued if name not in partial]
        jobs = job_list.make_jobs(
            self.config, self.run_dir, wanted, store_ready(self.config), whole
        )
        # An evaluation that is in the queue waits for what is in the queue: only new phases ask for
        # another one.
        if partial and EVALUATE in whole and {job.name for job in jobs} <= {*partial, EVALUATE}:
            jobs = [job for job in jobs if job.name != EVALUATE]
        for job in jobs:
            job_list.layout_line(self.config, job)
        return jobs


def store_ready(config: Config) -> bool:
    """Whether the config's store is there and holds today's data set, so that no job
    has to prepare it."""
    return store_is_ready(config)


def share_a_store(configs: Sequence[Config]) -> bool:
    """Whether runs read the same store, so that one job prepares it for all of them."""
    return len({store_folder(config) for config in configs}) == 1


def refuse_changes(config: Config, run_dir: Path, alive: Mapping[str, Sequence[str]]) -> None:
    """Jobs in the queue keep the settings that they were submitted with: other ones would not take
    effect."""
    path = RunPaths(run_dir).config
    if not path.is_file() or not alive:
        return
    changes = differences(plain(load_resolved(path)), plain(config), "")
    if changes:
        more = (
            f"; and {len(changes) - SHOWN_DIFFERENCES} more"
            if len(changes) > SHOWN_DIFFERENCES
            else ""
        )
        numbers = ", ".join(number for ids in alive.values() for number in ids)
        raise UserError(
            f"{run_dir}: jobs {numbers} are in the queue with other settings: "
            f"{'; '.join(changes[:SHOWN_DIFFERENCES])}{more}\n"
            f"Submit with the old settings, or first: python launch/submit.py --cancel {shlex.quote(str(run_dir))}"
        )


def differences(old: Any, new: Any, key: str) -> list[str]:
    """`key: old there, new now` for each value that two configs do not share."""
    if isinstance(old, Mapping) and isinstance(new, Mapping):
        return [
            line
            for name in {**old, **new}
            for line in differences(
                old.get(name), new.get(name), f"{key}.{name}" if key else str(name)
            )
        ]
    return [] if old == new else [f"{key}: {old!r} there, {new!r} now"]


def show(request: Request, jobs: Sequence[Job], queued: Mapping[str, Sequence[str]]) -> None:
    """What is submitted and what waits for what, with the cut of each global batch."""
    print(f"run folder: {request.run_dir}")
    for name, numbers in queued.items():
        print(f"  {name:<16} in the queue already: job {', '.join(numbers)}")
    for job in jobs:
        where = (
            f"{job.nodes} x {job.gpus_per_node} GPU"
            if job.gpus_per_node
            else f"{job.nodes} x {job.ranks_per_node} CPU rank"
        )
        links = f", {job.links} links" if job.links > 1 else ""
        # A wall time is what a queue is asked for; on this machine there is none.
        wall = (
            f" {job.minutes:>5} min{links}" if request.config.cluster.scheduler == "slurm" else ""
        )
        print(f"  {job.name:<16} {where:<12}{wall}  after {', '.join(job.after) or '-'}")
        layout = job_list.layout_line(request.config, job)
        if layout:
            print(f"  {'':<16} {layout}")
    if request.config.cluster.scheduler == "slurm" and jobs:
        print(
            "".join(f"  {line}\n" for line in reasons(request.run_dir, request.config.cluster)),
            end="",
        )
    if RunPaths(request.run_dir).plan.is_file():
        print(f"  wall times: from {RunPaths(request.run_dir).plan}")


def preview(requests: Sequence[Request]) -> None:
    """Print what would be submitted if the queue had nothing of these runs."""
    prepared_by_another = False
    for request in requests:
        queued = {PREPARE: ["<prepare>"]} if prepared_by_another else {}
        jobs = request.jobs(queued)
        show(request, jobs, queued)
        show_faults(request, jobs)
        if request.config.cluster.scheduler == "slurm":
            _show_scripts(request, jobs, queued)
        prepared_by_another |= (
            any(job.name == PREPARE for job in jobs) and request.group is not None
        )


def show_faults(request: Request, jobs: Sequence[Job]) -> None:
    """What a submit would refuse."""
    problems = checks.faults(request.config, request.run_dir, jobs, request.allow_cpu)
    if request.config.cluster.scheduler == "slurm" and shutil.which("sbatch"):
        refused, notes = checks.ask_scheduler(request.config, request.run_dir, jobs)
        problems += refused + notes
    for line in problems:
        print(f"  not yet: {line}")


def _show_scripts(request: Request, jobs: Sequence[Job], queued: Mapping[str, list[str]]) -> None:
    from hpc_stres.launch.journal import folder_tag
    from hpc_stres.launch.scheduler import Token
    from hpc_stres.launch.slurm import dependency_of, sbatch_text

    names = {job.name: [f"<{job.name}>"] for job in jobs} | dict(queued)
    for number, job in enumerate(jobs, 1):
        home = request.prepare_home if job.name == PREPARE else request.run_dir
        # The second half of a run's id is drawn when the run is submitted first.
        token = Token(f"{folder_tag(home)}-000000", job.name, 0, number)
        text = sbatch_text(request.config, home, job, dependency_of(job, names, 0), token)
        print(f"\n# ---- {job.name}\n{text.rstrip()}")


def submit(request: Request) -> None:
    """Submit one chain of phases, or say that it is finished."""
    on_slurm = request.config.cluster.scheduler == "slurm"
    wanted = select_phases(request.config.phases, request.phases)
    may_be_queued = on_slurm and RunPaths(request.run_dir).jobs.exists()
    others = {name: [""] for name in request.config.phases if name not in wanted and may_be_queued}
    # What cannot work whatever the queue has is refused before the folder is made.
    jobs = request.jobs(others)
    checks.refuse(checks.faults(request.config, request.run_dir, jobs, request.allow_cpu))
    jobs, queued = (_submit_slurm if on_slurm else _submit_here)(request)
    if not jobs:
        print(
            "  every phase is done; nothing to submit" if not queued else "  nothing more to submit"
        )
    if (jobs and on_slurm) or queued:
        print(f"watch: python launch/status.py {shlex.quote(str(request.run_dir))} --watch")
    else:
        show_results(request.run_dir)


def _submit_here(request: Request) -> tuple[list[Job], Mapping[str, list[str]]]:
    from hpc_stres.launch.local import LocalRun

    with locked(request.run_dir, 0.0):
        jobs = request.jobs({})
        show(request, jobs, {})
        if jobs:
            claim_run_folder(request.config, request.run_dir, update=True)
            write_provenance(request.run_dir, request.config)
            code = take_code(request.run_dir, [request.run_dir], request.adopt_code, {})
            LocalRun(request.config, request.run_dir, jobs, code).run()
    return jobs, {}


def _submit_slurm(request: Request) -> tuple[list[Job], Mapping[str, list[str]]]:
    from hpc_stres.launch import scheduler
    from hpc_stres.launch.arrays import catch_up
    from hpc_stres.launch.survey import inherited_lock, read_journal

    seconds = request.config.cluster.scheduler_seconds
    with contextlib.ExitStack() as stack:
        try:
            cluster = scheduler.cluster_facts(seconds).name
            for folder in request.journal_folders:
                stack.enter_context(locked(folder, SUBMIT_PATIENCE_SECONDS))
                lock = stack.enter_context(
                    inherited_lock(sbatch_lock(folder), SUBMIT_PATIENCE_SECONDS)
                )
            journals = {folder: read_journal(folder, seconds) for folder in request.journal_folders}
            above = journals[request.journal_folders[0]]
            if above.run_dir != request.run_dir:
                catch_up(above, seconds)
                journals[request.run_dir] = Journal.read(request.run_dir)
            for journal in journals.values():
                forget(journal, request.forget)
            queue = survey_of(request, journals, cluster)
            refuse_changes(request.config, request.run_dir, queue.alive)
            scheduler.cancel(queue.hopeless, seconds)
        except scheduler.NoAnswer as error:
            first, *rest = str(error).splitlines()
            raise scheduler.NoAnswer(
                "\n".join([f"{first}; nothing was submitted", *rest])
            ) from None
        for note in queue.notes:
            print(f"  {note}")
        return _submit_missing(request, journals, queue, cluster, lock), queue.alive


def _submit_missing(
    request: Request, journals: Mapping[Path, Journal], queue: Survey, cluster: str, lock: int
) -> list[Job]:
    """Submit what is neither done nor in the queue; returns those jobs."""
    from hpc_stres.launch.once import Submission
    from hpc_stres.launch.survey import partial

    config, run_dir = request.config, request.run_dir
    lacking = [name for journal in journals.values() for name in partial(queue, journal)]
    jobs = request.jobs(queue.alive, lacking)
    show(request, jobs, queue.alive)
    if not jobs:
        return []
    refused, notes = checks.ask_scheduler(config, run_dir, jobs)
    checks.refuse(refused)
    for note in notes:
        print(f"  {note}")
    if not queue.alive or not RunPaths(run_dir).config.is_file():
        claim_run_folder(config, run_dir, update=True)
    write_provenance(run_dir, config)
    ids = {name: list(numbers) for name, numbers in queue.alive.items()}
    queued = {run_dir: [number for numbers in ids.values() for number in numbers]}
    code = take_code(run_dir, [run_dir], request.adopt_code, queued)
    journal_of = {
        job.name: journals[request.prepare_home if job.name == PREPARE else run_dir] for job in jobs
    }
    Submission(config, run_dir, cluster, lock, code).send_all(jobs, journal_of, queue, ids)
    for job in jobs:
        print(f"  {job.name:<16} job {', '.join(ids[job.name])}")
    return jobs


def survey_of(
    request: Request, journals: Mapping[Path, Journal], cluster: str, seen: Seen | None = None
) -> Survey:
    """What the queue has of this run: its own jobs, and the one that prepares its store."""
    from hpc_stres.launch.survey import survey

    def matters(name: str) -> bool:
        if name == PREPARE:
            return not store_ready(request.config)
        paths = RunPaths(request.run_dir)
        phases = request.config.phases
        if name == EVALUATE:
            is_done = all(job_list.is_done(request.config, paths, phase) for phase in phases)
            return not (is_done and job_list.evaluation_is_done(request.config, paths))
        return name in phases and not job_list.is_done(request.config, paths, name)

    queue, seconds = Survey(), request.config.cluster.scheduler_seconds
    for journal in journals.values():
        part = survey(journal, cluster, seconds, matters, seen)
        queue.alive |= part.alive
        queue.ending |= part.ending
        queue.open |= part.open
        queue.hopeless += part.hopeless
        queue.notes += part.notes
    return queue


def forget(journal: Journal, numbers: str) -> None:
    """Leave out of a journal the jobs that the user is certain have ended."""
    if numbers == "all":
        journal.drop({number for job in journal.jobs.values() for number in job.all_ids})
    elif numbers:
        journal.drop({number.strip() for number in numbers.split(",")})


@contextlib.contextmanager
def locked(run_dir: Path, patience_seconds: float) -> Iterator[None]:
    """One submit at a time in a run folder; the lock ends with the process, whatever ends that."""
    with owned(RunPaths(run_dir).lock, "this run is being submitted", patience_seconds):
        yield


def sbatch_lock(run_dir: Path) -> Path:
    """Lock that each sbatch of a run holds until it has ended."""
    return RunPaths(run_dir).lock.with_name("sbatch.lock")


def show_results(run_dir: Path) -> None:
    """The table of a run, and where its report is."""
    from hpc_stres.evaluation.table import read_results, results_table

    paths = RunPaths(run_dir)
    if paths.results.is_file():
        print("\n" + results_table(read_results(paths.results)))
    if paths.report.is_file():
        print(f"report: {paths.report}")
