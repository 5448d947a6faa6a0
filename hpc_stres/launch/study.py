"""Runs that are submitted together: one job array a phase, in which each run is the element of its index.

Where there are more runs than a cluster takes elements (MaxArraySize), a phase is several arrays. An element waits for
the element of its own run (aftercorr), so that a run that fails holds nobody up. The folder above the runs has the
journal of the arrays, with the rules of every submit: the intention is written before sbatch is called, and what came
of it is found out before anything else is submitted. Then each run's own journal hears of its element, as of any job:
so status, a cancel or a submit of that run alone know it.
"""

import contextlib
import resource
import shlex
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hpc_stres.config.recipe import ordered_phases, select_phases
from hpc_stres.config.schema import Config
from hpc_stres.errors import UserError
from hpc_stres.launch import chain, checks, scheduler, slurm
from hpc_stres.launch.arrays import catch_up, tell
from hpc_stres.launch.chain import Request, locked, sbatch_lock
from hpc_stres.launch.code import take_code
from hpc_stres.launch.elements import (
    Element,
    alike,
    array_of,
    array_of_stores,
    by_array_of_stores,
    shape,
)
from hpc_stres.launch.jobs import EVALUATE, PREPARE, Job
from hpc_stres.launch.journal import Journal, folder_tag
from hpc_stres.launch.local import LocalRun, run_together
from hpc_stres.launch.once import Array, Submission
from hpc_stres.launch.scheduler import ClusterFacts, Token, base
from hpc_stres.launch.survey import Seen, Survey, inherited_lock, partial, read_journal
from hpc_stres.run.experiment import claim_run_folder
from hpc_stres.run.paths import RunPaths, read_json, write_sealed
from hpc_stres.run.provenance import write_provenance

# How many ids one question to the accounting names.
MOST_ASKED = 500
Send = Callable[[Config, Journal, Job, int, str, Array | None], str]


@dataclass
class Study:
    """Runs under one folder."""

    folder: Path
    requests: list[Request]
    at_once: int | None = None
    """Most jobs that run at once; none: as many as the site lets."""

    @property
    def shares_store(self) -> bool:
        """Whether one job prepares for all."""
        return all(request.group == self.folder for request in self.requests)

    def names(self) -> list[str]:
        """Names of all runs that were ever submitted here, in the order of their indices."""
        before = read_json(RunPaths(self.folder).runs).get("runs", [])
        now = [request.run_dir.relative_to(self.folder).as_posix() for request in self.requests]
        return list(dict.fromkeys([*before, *now]))

    def write(self) -> None:
        """Write the names down; an index never changes its run."""
        note = {"runs": self.names(), "shared_store": self.shares_store}
        if read_json(RunPaths(self.folder).runs) != note:
            write_sealed(RunPaths(self.folder).runs, note)


def submit_study(study: Study) -> None:
    """Submit everything that is neither done nor in the queue, or run it here."""
    on_slurm = study.requests[0].config.cluster.scheduler == "slurm"
    for request in study.requests:
        jobs = request.jobs(_may_be_queued(request) if on_slurm else {})
        checks.refuse(checks.faults(request.config, request.run_dir, jobs, request.allow_cpu))
    (_submit_arrays if on_slurm else run_here)(study)


def _submit_arrays(study: Study) -> None:
    study.write()
    seconds = study.requests[0].config.cluster.scheduler_seconds
    with contextlib.ExitStack() as stack:
        lock = stack.enter_context(_all_locked(study))
        try:
            cluster = scheduler.cluster_facts(seconds)
            _refuse_without_arrays(cluster)
            home = read_journal(study.folder, seconds)
            journals = {r.run_dir: read_journal(r.run_dir, seconds) for r in study.requests}
            rows = catch_up(home, seconds)
            elements = _elements(study, home, journals, rows, cluster)
        except scheduler.NoAnswer as error:
            first, *rest = str(error).splitlines()
            text = "\n".join([f"{first}; nothing was submitted", *rest])
            raise scheduler.NoAnswer(text) from None
        _claim(study, elements)
        code = _take_code(study, elements)
        submission = Submission(study.requests[0].config, study.folder, cluster.name, lock, code)

        def send(
            config: Config, journal: Journal, job: Job, link: int, dependency: str, array: Array | None
        ) -> str:  # fmt: skip
            submission.config = config
            return submission.guarded(journal, job, link, dependency, array)

        _send_all(study, home, elements, send, submission.made)
    print(f"watch: python launch/status.py {shlex.quote(str(study.folder))} --watch")


def run_here(study: Study) -> None:
    """The same on this machine: one run after the other, or some at once; one that fails ends no other."""
    study.write()
    at_once = min(study.at_once or 1, len(study.requests))
    failures = []
    with contextlib.ExitStack() as stack:
        for request in study.requests:
            stack.enter_context(locked(request.run_dir, 0.0))
        if at_once > 1:
            failures = run_together(_local_runs(study, {PREPARE}, 1), 1)
        if not failures:
            failures = run_together(_local_runs(study, None, at_once), at_once)
    for request in study.requests:
        chain.show_results(request.run_dir)
    if failures:
        more = (
            f"{len(failures)} of {len(study.requests)} runs failed\n" if len(failures) > 1 else ""
        )
        raise UserError(more + "\n".join(failures))


def _local_runs(study: Study, names: set[str] | None, at_once: int) -> Iterator[LocalRun]:
    """The runs, each made when it is its turn; only some jobs of each, where `names` says so."""
    for number, request in enumerate(study.requests, 1):
        jobs = [job for job in request.jobs({}) if names is None or job.name in names]
        if names is None:
            print(f"run {number} of {len(study.requests)}: {request.run_dir}", flush=True)
            chain.show(request, jobs, {})
        if not jobs:
            if names is None:
                print("  every phase is done; nothing to submit")
            continue
        claim_run_folder(request.config, request.run_dir, update=True)
        write_provenance(request.run_dir, request.config)
        code = take_code(study.folder, [request.run_dir], request.adopt_code, {})
        run = LocalRun(request.config, request.run_dir, jobs, code)
        run.beside = at_once
        run.title = f"{request.run_dir.relative_to(study.folder)}: " if at_once > 1 else ""
        yield run


def _may_be_queued(request: Request) -> dict[str, list[str]]:
    wanted = select_phases(request.config.phases, request.phases)
    if not RunPaths(request.run_dir).jobs.exists():
        return {}
    return {name: [""] for name in request.config.phases if name not in wanted}


def _refuse_without_arrays(cluster: ClusterFacts) -> None:
    if cluster.array_size < 1:
        raise UserError(
            f"cluster {cluster.name}: it takes no job arrays (MaxArraySize 0); nothing was submitted\n"
            "Submit the runs one by one: --split N and --set seed=N, each with its own --run-dir."
        )


@contextlib.contextmanager
def _all_locked(study: Study) -> Iterator[int]:
    """Nobody else submits the study or one of its runs; yields the lock that each sbatch inherits."""
    patience = chain.SUBMIT_PATIENCE_SECONDS
    # A lock is an open file, and a study may have a thousand runs.
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = max(soft, min(hard, 256 + 2 * len(study.requests)))
    resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
    with contextlib.ExitStack() as stack:
        stack.enter_context(locked(study.folder, patience))
        lock = stack.enter_context(inherited_lock(sbatch_lock(study.folder), patience))
        for request in study.requests:
            stack.enter_context(locked(request.run_dir, patience))
            # One that a submit of this run alone has left behind has ended when its lock is free.
            with inherited_lock(sbatch_lock(request.run_dir), patience):
                pass
        yield lock


def _elements(
    study: Study, home: Journal, journals: Mapping[Path, Journal], rows: list[scheduler.Row],
    cluster: ClusterFacts,
) -> list[Element]:  # fmt: skip
    """What each run has in the queue, and what it lacks; one look and one question for all of them."""
    journals = {
        folder: Journal.read(folder) for folder in journals
    }  # they may have heard of arrays
    seconds = study.requests[0].config.cluster.scheduler_seconds
    listed = {row.number for row in rows}
    numbers = [
        n for journal in journals.values() for job in journal.jobs.values() for n in job.all_ids
    ]
    missing = [n for n in dict.fromkeys(numbers) if n not in listed and base(n) not in listed]
    ended: dict[str, tuple[str, str]] = {}
    for start in range(0, len(missing), MOST_ASKED):
        ended |= scheduler.accounted(missing[start : start + MOST_ASKED], seconds)
    seen, names, elements = Seen(rows, ended), study.names(), []
    for request in study.requests:
        journal = journals[request.run_dir]
        chain.forget(journal, request.forget)
        both = {request.run_dir: journal, study.folder: home}
        queue = chain.survey_of(request, both, cluster.name, seen)
        chain.refuse_changes(request.config, request.run_dir, queue.alive)
        lacking = [name for one in both.values() for name in partial(queue, one)]
        jobs = {job.name: job for job in request.jobs(queue.alive, lacking)}
        number = names.index(request.run_dir.relative_to(study.folder).as_posix())
        ids = {name: list(known) for name, known in queue.alive.items()}
        elements.append(Element(number, cluster.array_size, request, journal, queue, jobs, ids))
    scheduler.cancel([n for element in elements for n in element.queue.hopeless], seconds)
    for note in dict.fromkeys(note for element in elements for note in element.queue.notes):
        print(f"  {note}")
    return elements


def _claim(study: Study, elements: Sequence[Element]) -> None:
    """Ask the scheduler about each kind of request once, then make the run folders."""
    seen: set[tuple[Any, ...]] = set()
    for element in elements:
        new = [job for job in element.jobs.values() if shape(job) not in seen]
        seen |= {shape(job) for job in new}
        size = (
            slurm.Members({e.index: (e.request.run_dir, new[0]) for e in elements}) if new else None
        )
        refused, notes = checks.ask_scheduler(
            element.request.config, element.request.run_dir, new, size
        )
        checks.refuse(refused)
        for note in notes:
            print(f"  {note}")
    for element in elements:
        request = element.request
        if not element.jobs:
            continue
        if not element.queue.alive or not RunPaths(request.run_dir).config.is_file():
            claim_run_folder(request.config, request.run_dir, update=True)
        write_provenance(request.run_dir, request.config)


def _take_code(study: Study, elements: Sequence[Element]) -> Path:
    """The code of runs that have something to submit; one array runs one code."""
    going = [element for element in elements if element.jobs]
    queued = {
        element.request.run_dir: [n for ids in element.queue.alive.values() for n in ids]
        for element in going
    }
    return take_code(study.folder, list(queued), study.requests[0].adopt_code, queued)


def _send_all(
    study: Study, home: Journal, elements: Sequence[Element], send: Send, made: list[tuple[Journal, str]]
) -> None:  # fmt: skip
    """The phases in order, each as the fewest arrays whose elements wait for the same arrays."""
    print(f"runs: {len(elements)} under {study.folder}")
    names = dict.fromkeys(
        name for element in elements for name in ordered_phases(element.request.config.phases)
    )
    _send_prepare(study, home, elements, send)
    before = sorted({base(n) for e in elements for ids in e.queue.alive.values() for n in ids})
    for name in (*names, EVALUATE):
        for (_, waits, begun), members in alike(elements, name).items():
            job = members[0].jobs[name]
            for link in range(begun, job.links):
                # Every link waits for the phases before: see dependency_of.
                words = list(waits)
                if link:
                    last = {base(element.ids[name][-1]) for element in members}
                    words += [f"afterany:{number}" for number in sorted(last)]
                elif study.at_once:
                    # One array at a time: %N counts within one.
                    words += [f"afterany:{number}" for number in before]
                array = array_of(study.folder, members, name, study.at_once)
                dependency, config = ",".join(dict.fromkeys(words)), members[0].request.config
                number = send(config, home, job, link, dependency, array)
                before = [number]
                for element in members:
                    element.ids.setdefault(name, [])[link:] = [f"{number}_{element.index}"]
                tell(home, {element.request.run_dir: element.journal for element in elements})
                made += [(element.journal, f"{number}_{element.index}") for element in members]
            links = f", {job.links - begun} links" if job.links - begun > 1 else ""
            numbers = slurm.ranges_text(element.number for element in members)
            print(f"  {name:<16} array {number}, runs {numbers}{links}")


def _send_prepare(study: Study, home: Journal, elements: Sequence[Element], send: Send) -> None:
    """One job that prepares the store of all; where runs have different stores, arrays with an
    element a store."""
    lacking = [element for element in elements if PREPARE in element.jobs]
    groups = [lacking] if study.shares_store else by_array_of_stores(lacking)
    for members in filter(None, groups):
        first = members[0]
        job, begun = first.jobs[PREPARE], first.begun(first.jobs[PREPARE])
        ids = list(first.ids[PREPARE]) if begun else []
        if study.shares_store and not begun:
            home.begin(PREPARE, job.links, (), tuple(first.queue.ending.get(PREPARE, ())))
        for _ in range(begun, job.links):
            array = None
            if not study.shares_store:
                array = array_of_stores(study.folder, members, study.at_once)
            link, dependency = len(ids), f"afterany:{base(ids[-1])}" if ids else ""
            ids.append(send(first.request.config, home, job, link, dependency, array))
            tell(home, {element.request.run_dir: element.journal for element in elements})
        print(f"  {PREPARE:<16} job {', '.join(ids)}")
        for element in members:
            element.ids[PREPARE] = list(ids)


def preview_study(study: Study) -> None:
    """Print what would be submitted if the queue had nothing of these runs."""
    home, names = Journal.read(study.folder), study.names()
    elements = []
    size = _array_size(study.requests[0].config.cluster.scheduler_seconds)
    for request in study.requests:
        jobs = request.jobs({})
        chain.show(request, jobs, {})
        chain.show_faults(request, jobs)
        number = names.index(request.run_dir.relative_to(study.folder).as_posix())
        mine = {job.name: job for job in jobs}
        journal = Journal.read(request.run_dir)
        elements.append(Element(number, size, request, journal, Survey(), mine))

    def send(
        config: Config, journal: Journal, job: Job, link: int, dependency: str, array: Array | None
    ) -> str:  # fmt: skip
        token = Token(f"{folder_tag(journal.run_dir)}-000000", job.name, link, 1)
        members = array[1] if array else None
        text = slurm.sbatch_text(config, journal.run_dir, job, dependency, token, members=members)
        print(f"\n# ---- {job.name}\n{text.rstrip()}\n")
        # Ids have an underscore between array and index only.
        return f"<{job.name.replace('_', '-')}>"

    _send_all(study, home, elements, send, [])


def _array_size(seconds: float) -> int:
    """How large an array this cluster takes; where nobody can be asked, what Slurm takes by
    itself."""
    try:
        return max(1, scheduler.cluster_facts(seconds).array_size)
    except scheduler.NoAnswer:
        return scheduler.USUAL_ARRAY_SIZE
