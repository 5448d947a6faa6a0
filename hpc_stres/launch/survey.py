"""What the queue has of a run, known for certain: a submit decides on nothing less.

For each job that the journal knows and that matters, somebody who can know must say what became of
it: squeue lists it, the accounting has its end, or the controller denies that there is such a job.
Where nobody says, the submit ends.
"""

import os
import time
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from hpc_stres.errors import UserError
from hpc_stres.launch import scheduler
from hpc_stres.launch.journal import Journal, Submitted, folder_tag, this_user
from hpc_stres.launch.scheduler import ENDED_STATES, NoAnswer, Row, Token
from hpc_stres.run.ownership import POLL_SECONDS

# A request that reached a busy controller may become a job late: it is looked for again for so
# long.
SETTLE_SECONDS, SETTLE_POLL_SECONDS = 5.0, 1.0
# Slurm's credentials live for five minutes: what was asked for longer ago than this cannot be
# accepted any more.
TOO_OLD_SECONDS = 900.0


@dataclass
class Survey:
    """Jobs of a run in the queue, by phase."""

    alive: dict[str, list[str]] = field(default_factory=dict)
    """Ids of phases of which a job waits or runs: all the ids that the phase was submitted with."""
    ending: dict[str, list[str]] = field(default_factory=dict)
    """Jobs that are COMPLETING: new jobs of the phase wait for their end."""
    open: set[str] = field(default_factory=set)
    """Every job that waits, runs or is COMPLETING."""
    hopeless: list[str] = field(default_factory=list)
    """Jobs that wait for something that has failed."""
    notes: list[str] = field(default_factory=list)
    """What was learnt on the way, to be shown."""


# State and exit status by id, as the accounting has them.
Ends = Mapping[str, tuple[str, str]]


@dataclass(frozen=True)
class Seen:
    """One look at the queue, and what the accounting says of what it does not list."""

    rows: list[Row]
    ended: Ends


def survey(
    journal: Journal, cluster: str, seconds: float, matters: Callable[[str], bool], seen: Seen | None = None
) -> Survey:  # fmt: skip
    """Look at the queue; `matters` says whether the fate of a phase's jobs decides anything. Runs
    that are submitted together share one look."""
    _refuse_other_cluster(journal, cluster, matters)
    seen = seen or Seen(scheduler.look(seconds), {})
    rows = seen.rows
    queue = Survey()
    if journal.asked is not None:
        rows = settle(journal, rows, seconds, queue.notes)
    _treat_strays(journal, rows, seconds, queue.notes)
    by_number = {row.number: row for row in rows}
    for phase, job in journal.jobs.items():
        if matters(phase):
            _sort(queue, phase, job, fates_of(job, by_number, seconds, seen.ended))
    return queue


def _sort(queue: Survey, phase: str, job: Submitted, fates: dict[str, Row]) -> None:
    if any(fates[number].is_alive for number in job.all_ids):
        queue.alive[phase] = list(job.ids)
    ending = [number for number in job.all_ids if fates[number].is_ending]
    if ending:
        queue.ending[phase] = ending
    queue.open |= {
        number for number in job.all_ids if fates[number].is_alive or fates[number].is_ending
    }
    queue.hopeless += [number for number in job.all_ids if fates[number].never_starts]


def fates_of(
    job: Submitted, rows: dict[str, Row], seconds: float, known: Ends | None = None
) -> dict[str, Row]:
    """What became of each of a phase's jobs; refuses when that cannot be known."""
    # Elements that ended before they began are one row, under the array's own id.
    listed = {
        number: rows.get(number) or rows.get(scheduler.base(number)) for number in job.all_ids
    }
    fates = {number: row for number, row in listed.items() if row is not None}
    missing = [number for number, row in listed.items() if row is None]
    ended = dict(known or {})
    ended |= scheduler.accounted([number for number in missing if number not in ended], seconds)
    for number in missing:
        state = ended[number][0] if number in ended else ""
        if state not in ENDED_STATES:
            # The accounting is mute, or takes it for alive while squeue does not list it: the
            # controller decides.
            said = scheduler.state_of(number, seconds)
            if said is None or (said == "" and job.user != this_user()):
                raise _unknown(number, state, job)
            state = said or "gone"
        fates[number] = Row(number, "COMPLETED" if state == "gone" else state, "", job.user, None)
    return fates


def _unknown(number: str, state: str, job: Submitted) -> UserError:
    whose = "" if job.user == this_user() else f", which {job.user} submitted"
    accounted = (
        f"the accounting says {state}" if state else "the accounting does not know it either"
    )
    return NoAnswer(
        f"job {number}{whose}: squeue does not list it, {accounted}, and nobody says that it is gone"
        f"\nAsk again later. If you are certain that it has ended: --forget {number}"
    )


def _refuse_other_cluster(journal: Journal, cluster: str, matters: Callable[[str], bool]) -> None:
    has_jobs = journal.asked is not None or any(
        matters(name) and job.all_ids for name, job in journal.jobs.items()
    )
    if has_jobs and cluster and journal.cluster and cluster != journal.cluster:
        numbers = [number for job in journal.jobs.values() for number in job.all_ids]
        raise UserError(
            f"{journal.run_dir}: its jobs were submitted on the cluster {journal.cluster}, this is {cluster}; "
            "whether they have ended cannot be known here\n"
            f"Submit there, or, certain that they have ended: --forget {','.join(numbers) or 'all'}"
        )


def settle(journal: Journal, rows: list[Row], seconds: float, notes: list[str]) -> list[Row]:
    """Find out what came of the one job whose fate is unknown; returns the newest answer of the
    queue."""
    token = journal.asked
    assert token is not None
    patience = 0.0 if journal.asked_seconds_ago > TOO_OLD_SECONDS else SETTLE_SECONDS
    deadline = time.monotonic() + patience
    while True:
        number = number_in(rows, token)
        if not number and time.monotonic() >= deadline:
            # squeue was asked again and again; a last question goes another way.
            number = scheduler.number_of(token, seconds)
            if not number:
                journal.abandon()
                return rows
        if number:
            journal.accept(number)
            notes.append(f"{token.phase}: job {number} of an interrupted submit is in the queue")
            return rows if number_in(rows, token) else scheduler.look(seconds)
        time.sleep(SETTLE_POLL_SECONDS)
        rows = scheduler.look(seconds)


def number_in(rows: list[Row], token: Token) -> str:
    """Id of the job with this token; empty: none."""
    return next((scheduler.base(row.number) for row in rows if row.token == token), "")


def _treat_strays(journal: Journal, rows: list[Row], seconds: float, notes: list[str]) -> None:
    """Jobs of this folder that its journal does not know: one that came late is ended, any other is
    refused."""
    strays = [
        row
        for row in rows_of_folder(journal.run_dir, rows, journal.run)
        if not journal.knows(row.number)
    ]
    late = [row for row in strays if row.token is not None and journal.is_abandoned(row.token)]
    if late:
        scheduler.cancel([row.number for row in late], seconds)
        numbers = ", ".join(row.number for row in late)
        notes.append(f"job {numbers} had been given up and came late: it is cancelled")
    unknown = [row for row in strays if row not in late]
    if unknown:
        raise UserError(
            f"{journal.run_dir}: the queue has jobs of this folder that its jobs.json does not know: "
            f"{', '.join(row.number for row in unknown)}\n"
            f"End them: python launch/submit.py --cancel '{journal.run_dir}'"
        )


def rows_of_folder(run_dir: Path, rows: list[Row], run: str = "") -> list[Row]:
    """Jobs of the queue that were submitted for this folder (or for this run's id) and have not
    ended."""
    tag = folder_tag(run_dir)
    mine = [
        r
        for r in rows
        if r.token is not None and (r.token.run == run or r.token.run.startswith(f"{tag}-"))
    ]
    return [row for row in mine if row.is_alive or row.never_starts]


def read_journal(run_dir: Path, seconds: float) -> Journal:
    """The folder's journal; a folder that was moved starts a new one when no job of the old place
    is left."""
    journal = Journal.read(run_dir)
    if not journal.moved_from:
        return journal
    left = rows_of_folder(run_dir, scheduler.look(seconds), journal.run)
    if left or journal.asked is not None:
        raise UserError(
            f"{run_dir}: this folder was {journal.moved_from} when its jobs were submitted; they would work there: "
            f"{', '.join(row.number for row in left) or 'one whose id is not known'}\n"
            f"End them: python launch/submit.py --cancel '{run_dir}'"
        )
    os.replace(journal.path, journal.path.with_name("jobs.moved.json"))
    return Journal.read(run_dir)


@contextmanager
def inherited_lock(path: Path, patience_seconds: float) -> Iterator[int]:
    """A lock that each sbatch inherits: it stays held until the last of them has ended, also when
    the submit was killed. So nobody looks at the queue while an orphan may still submit. Yields the
    descriptor to pass on."""
    import fcntl

    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
    deadline = time.monotonic() + patience_seconds
    try:
        while True:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() >= deadline:
                    raise UserError(
                        f"{path.parent}: an sbatch of an earlier submit has not ended yet; nothing was submitted\n"
                        "Wait for it; the same command resumes then."
                    ) from None
                time.sleep(POLL_SECONDS)
            except OSError:
                break  # the file system has no locks: looking again for a while has to do
        yield descriptor
    finally:
        os.close(descriptor)


def partial(queue: Survey, journal: Journal) -> Collection[str]:
    """Phases in the queue whose last links a submit that was cut short has not submitted."""
    return [
        name
        for name, job in journal.jobs.items()
        if name in queue.alive and len(job.ids) < job.links
    ]
