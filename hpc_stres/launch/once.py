"""Submitting each job exactly once, whatever sbatch says or does not say."""

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from hpc_stres.config.schema import Config
from hpc_stres.errors import UserError
from hpc_stres.launch import scheduler, slurm
from hpc_stres.launch.jobs import Interrupted, Job
from hpc_stres.launch.journal import Journal
from hpc_stres.launch.scheduler import Answer, NoAnswer, Token
from hpc_stres.launch.survey import Survey, settle

# Pauses before sbatch is called again for a controller that said it was busy.
RETRY_SECONDS = (2, 5, 15)
CANCEL_PATIENCE_SECONDS = 60.0


# What the journal notes of an array, and its runs.
Array = tuple[dict[str, Any], slurm.Members]


class Refused(UserError):
    """sbatch refused a job, and the job is not in the queue."""


@dataclass
class Submission:
    """One submit of some jobs of a run: what it needs, and what it has submitted so far."""

    config: Config
    run_dir: Path
    cluster: str
    lock: int
    """Descriptor of the lock that each sbatch inherits."""
    code: Path | None = None
    """Folder of the code that jobs run; none: the live one."""
    made: list[tuple[Journal, str]] = field(default_factory=list)

    @property
    def _seconds(self) -> float:
        return self.config.cluster.scheduler_seconds

    @property
    def _numbers(self) -> list[str]:
        """Ids of jobs and arrays; those of elements are in the journals of their runs alone."""
        return list(dict.fromkeys(scheduler.base(number) for _, number in self.made))

    def send_all(
        self,
        jobs: Sequence[Job],
        journal_of: Mapping[str, Journal],
        queue: Survey,
        ids: dict[str, list[str]],
    ) -> None:
        """Submit the jobs in order; `ids` holds what is in the queue already, and gets what is
        submitted. When one is refused, nothing of this submission stays in the queue."""
        for job in jobs:
            journal, known = journal_of[job.name], ids.get(job.name, [])
            continues = job.name in queue.alive and len(known) < journal.jobs[job.name].links
            before = journal.jobs[job.name].all_ids if job.name in journal.jobs else ()
            # A chain that is taken up again in its middle waits for its own links alone.
            earlier = [
                number
                for number in before
                if number in queue.open and not (continues and number in known)
            ]
            ids[job.name] = list(known) if continues else []
            links = journal.jobs[job.name].links if continues else job.links
            if not continues:
                journal.begin(job.name, links, job.after, tuple(earlier))
            for link in range(len(ids[job.name]), links):
                dependency = slurm.dependency_of(job, ids, link, earlier)
                ids[job.name].append(self.guarded(journal, job, link, dependency))

    def guarded(
        self, journal: Journal, job: Job, link: int, dependency: str, array: Array | None = None
    ) -> str:
        """One job or array; what goes wrong says what is left in the queue."""
        try:
            return self._send(journal, job, link, dependency, array)
        except Refused as error:
            raise UserError(f"{error}\n{self._take_back()}") from None
        except NoAnswer as error:
            raise NoAnswer(f"{str(error).splitlines()[0]}\n{self.state()}") from None
        except KeyboardInterrupt:
            raise Interrupted(f"interrupted at {job.name}\n{self.state()}") from None

    def _send(
        self, journal: Journal, job: Job, link: int, dependency: str, array: Array | None = None
    ) -> str:
        """One job; a controller that is busy is asked again, but only after a look whether it took
        the job."""
        note, members = array or (None, None)
        for pause in (*RETRY_SECONDS, None):
            token = journal.ask(job.name, link, self.cluster, note)
            script = slurm.write_job(
                self.config, journal.run_dir, job, dependency, token, self.code, members
            )
            answer: Answer | None = None
            try:
                answer = scheduler.sbatch(script, token, self._seconds, (self.lock,))
            except NoAnswer as error:
                reason = str(error).splitlines()[0]
            else:
                reason = f"sbatch: {answer.reason}"
            is_busy = (
                answer is not None
                and answer.code != 0
                and any(word in answer.error for word in scheduler.BUSY)
            )
            is_refusal = answer is not None and answer.code != 0 and not is_busy
            number = scheduler.number_in(answer) if answer is not None else ""
            if number:
                journal.accept(number)
            else:
                number = self._look_for(journal, token, reason, is_refusal)
            if number:
                self.made.append((journal, number))
                slurm.keep_script(script, number)
                return number
            if is_refusal:
                raise Refused(f"sbatch refused {job.name}: {reason.removeprefix('sbatch: ')}")
            if pause is None or not is_busy:
                raise NoAnswer(f"{job.name}: {reason}; the queue does not have it")
            time.sleep(pause)
        raise AssertionError("the last pause is None")

    def _look_for(self, journal: Journal, token: Token, reason: str, is_refusal: bool) -> str:
        """Whether the queue has a job that sbatch gave no id for; one that was refused is looked
        for once. A controller that is away for half a minute is waited for."""
        for pause in (*RETRY_SECONDS, None):
            try:
                rows = scheduler.look(self._seconds)
                if is_refusal and not any(row.token == token for row in rows):
                    journal.abandon()
                    return ""
                settle(journal, rows, self._seconds, [])
            except NoAnswer:
                if pause is None:
                    raise NoAnswer(
                        f"{token.phase}: {reason}; whether it was submitted is not known, for the queue does not "
                        "answer either"
                    ) from None
                time.sleep(min(pause, self._seconds))
            else:
                return journal.accepted.get(token.attempt, "")
        raise AssertionError("the last pause is None")

    def _take_back(self) -> str:
        """Cancel what this submission has submitted; says what came of that."""
        numbers = self._numbers
        if not numbers:
            return "Nothing of this submission was left in the queue."
        try:
            scheduler.cancel(numbers, self._seconds)
            left = scheduler.wait_until_gone(numbers, self._seconds, CANCEL_PATIENCE_SECONDS)
        except NoAnswer as error:
            return (
                f"Cancelling jobs {', '.join(numbers)} failed as well: {str(error).splitlines()[0]}"
            )
        if left:
            return f"Jobs {', '.join(row.number for row in left)} were cancelled and are still in the queue."
        for journal in {id(journal): journal for journal, _ in self.made}.values():
            journal.drop({number for _, number in self.made})
        return "Nothing of this submission was left in the queue."

    def state(self) -> str:
        """What is in the queue of this submission, and what the same command does."""
        numbers = ", ".join(self._numbers) or "none"
        return f"Submitted so far: {numbers}. The same command looks for the rest and submits only what is missing."
