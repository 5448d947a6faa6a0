"""The runs of a study as elements of job arrays: which of them share an array, and what they wait
for.

Each run has a number in its study that never changes. A cluster takes arrays up to a size
(MaxArraySize), so run 7 is element 7 of an array, or element 2 of the second one where arrays are
of five.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from hpc_stres.launch import slurm
from hpc_stres.launch.chain import Request
from hpc_stres.launch.jobs import PREPARE, Job
from hpc_stres.launch.journal import Journal
from hpc_stres.launch.once import Array
from hpc_stres.launch.scheduler import base
from hpc_stres.launch.survey import Survey
from hpc_stres.store.location import store_folder


@dataclass
class Element:
    """One run of a study while it is submitted."""

    number: int
    """Its place among the runs of the study."""
    array_size: int
    """How many elements an array may have."""
    request: Request
    journal: Journal
    queue: Survey
    jobs: dict[str, Job]
    ids: dict[str, list[str]] = field(default_factory=dict)

    @property
    def index(self) -> int:
        """Its index in an array."""
        return self.number % self.array_size

    @property
    def block(self) -> int:
        """Which of a phase's arrays it is in."""
        return self.number // self.array_size

    def earlier(self, job: Job) -> list[str]:
        """Jobs of an earlier submission of a phase that have not ended."""
        if job.name not in self.journal.jobs or self.begun(job):
            return []
        return [n for n in self.journal.jobs[job.name].all_ids if n in self.queue.open]

    def begun(self, job: Job) -> int:
        """Links of a phase that are in the queue already, of a submit that was cut short."""
        return len(self.ids[job.name]) if job.name in self.queue.alive else 0

    def waits_for(self, job: Job) -> tuple[str, ...]:
        """Words of --dependency: its own element of an array, or a job of its own."""
        words = []
        for name in job.after:
            if not (ids := self.ids.get(name)):
                continue
            if name == PREPARE:
                # The whole array, every store, so that one array may wait.
                words.append(f"afterok:{base(ids[-1])}")
                continue
            is_mine = ids[-1] == f"{base(ids[-1])}_{self.index}"
            words.append(f"aftercorr:{base(ids[-1])}" if is_mine else f"afterok:{ids[-1]}")
        return (*sorted(words), *(f"afterany:{number}" for number in self.earlier(job)))


def shape(job: Job) -> tuple[Any, ...]:
    """What a job asks the scheduler for: elements of one array ask for the same."""
    return (
        job.nodes, job.ranks_per_node, job.gpus_per_node, job.minutes, job.links, job.is_alone,
        job.uses_mpi, job.name == PREPARE,
    )  # fmt: skip


def alike(
    elements: Sequence[Element], name: str
) -> dict[tuple[tuple[Any, ...], tuple[str, ...], int], list[Element]]:
    """Runs that lack a phase and may share an array, by what they ask for, what they wait for and
    how many links they have already."""
    groups: dict[tuple[tuple[Any, ...], tuple[str, ...], int], list[Element]] = {}
    for element in elements:
        if job := element.jobs.get(name):
            begun = element.begun(job)
            if not begun:
                element.ids[name] = []
            config = element.request.config
            settings = (*shape(job), repr(config.cluster), config.data.root, element.block)
            key = (settings, element.waits_for(job), begun)
            groups.setdefault(key, []).append(element)
    return groups


def array_of(folder: Path, members: Sequence[Element], name: str, at_once: int | None) -> Array:
    """What the journal of a study's folder notes of an array, and what its script and its elements
    need."""
    runs = {str(element.index): _note(folder, element, name) for element in members}
    jobs = {e.index: (e.request.run_dir, e.jobs[name]) for e in members}
    note = {"runs": runs, "links": members[0].jobs[name].links}
    return note, slurm.Members(jobs, at_once)


def _note(folder: Path, element: Element, name: str) -> dict[str, Any]:
    job = element.jobs[name]
    return {
        "run": element.request.run_dir.relative_to(folder).as_posix(),
        "after": list(job.after),
        "earlier": element.earlier(job),
    }


def _owners(members: Sequence[Element]) -> Mapping[Path, Element]:
    """The run of each store that prepares it for all."""
    return {store_folder(element.request.config): element for element in reversed(members)}


def by_array_of_stores(lacking: Sequence[Element]) -> list[list[Element]]:
    """Runs whose stores are prepared by the elements of one array."""
    owners = _owners(lacking)
    groups: dict[int, list[Element]] = {}
    for element in lacking:
        groups.setdefault(owners[store_folder(element.request.config)].block, []).append(element)
    return list(groups.values())


def array_of_stores(folder: Path, members: Sequence[Element], at_once: int | None) -> Array:
    """The same as `array_of` for the stores of some runs: an element a store, which several runs
    hear of."""
    owners = _owners(members)
    runs = {
        str(element.number): _note(folder, element, PREPARE)
        | {"element": owners[store_folder(element.request.config)].index}
        for element in members
    }
    jobs = {e.index: (e.request.run_dir, e.jobs[PREPARE]) for e in owners.values()}
    note = {"runs": runs, "links": members[0].jobs[PREPARE].links}
    return note, slurm.Members(jobs, at_once)
