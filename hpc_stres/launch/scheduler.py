"""Asking Slurm, so that a scheduler which does not answer is never taken for an empty queue.

Each question here has an answer that makes sense, or it raises NoAnswer. What an answer leaves out
is not taken for gone either: a job that squeue does not list is asked for again by its id, of the
accounting and of the controller.
"""

import os
import re
import shutil
import signal
import subprocess
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from hpc_stres.errors import UserError

# Each row of squeue's answer is framed, so that half a row, half a list or a line of anything else
# is noticed.
ROW_STARTS, ROW_ENDS = "hpc_stres_row|", "|row_ends"
FORMAT = f"{ROW_STARTS}%i|%T|%r|%u|%j|%k{ROW_ENDS}"
# A state that is not listed here, also one that a later Slurm invents, counts as alive.
ENDED_STATES = (
    "BOOT_FAIL", "CANCELLED", "COMPLETED", "DEADLINE", "FAILED", "NODE_FAIL", "OUT_OF_MEMORY", "PREEMPTED",
    "REVOKED", "TIMEOUT",
)  # fmt: skip
ENDING_STATE = "COMPLETING"
RUN_ID = r"[0-9a-f]{8}-[0-9a-f]{6}"
COMMENT = re.compile(
    rf"hpc_stres:(?P<run>{RUN_ID}):(?P<phase>[^:|]+):(?P<link>\d+):(?P<attempt>\d+)"
)
NAME = re.compile(rf"stres-(?P<phase>[^|]+)-(?P<run>{RUN_ID})-(?P<attempt>\d+)-(?P<link>\d+)")
# Settings of a user's own that would hide jobs from an answer, or make sbatch do something else
# than submit one job.
HIDING = ("SQUEUE_", "SACCT_", "SCONTROL_", "SBATCH_WAIT", "SBATCH_ARRAY_INX", "SBATCH_TEST_ONLY")

# A controller that did not understand or take the request says one of these; anything else is a
# refusal.
BUSY = (
    "timed out",
    "Unable to contact",
    "temporarily",
    "try again",
    "Connection",
    "Zero Bytes",
    "communication",
)

# MaxArraySize as Slurm has it where nobody has set it.
USUAL_ARRAY_SIZE = 1001


class NoAnswer(UserError):
    """The scheduler did not answer, or its answer makes no sense."""


@dataclass(frozen=True)
class Token:
    """Which job of which run a job of the queue is; it is written into the job's name and into its
    comment."""

    run: str
    phase: str
    link: int
    attempt: int

    @property
    def comment(self) -> str:
        """The job's comment."""
        return f"hpc_stres:{self.run}:{self.phase}:{self.link}:{self.attempt}"

    @property
    def name(self) -> str:
        """The job's name: some clusters use the comment for themselves, or do not show it."""
        return f"stres-{self.phase}-{self.run}-{self.attempt}-{self.link}"

    @classmethod
    def find(cls, text: str) -> "Token | None":
        """The token in a job's name and comment, or None for a job of somebody else."""
        match = COMMENT.search(text) or NAME.search(text)
        if match is None:
            return None
        return cls(match["run"], match["phase"], int(match["link"]), int(match["attempt"]))


def base(number: str) -> str:
    """Id of the array that an element is of: 17 of 17_3; a job's own id elsewhere."""
    return number.partition("_")[0]


def order(number: str) -> tuple[int, ...]:
    """Ids in the order in which they were given."""
    return tuple(int(part) for part in number.split("_"))


def is_of(number: str, row: "Row") -> bool:
    """Whether a row speaks of a job or element: elements that ended before they began are one
    row, their array's."""
    return row.number in (number, base(number)) or base(row.number) == number


@dataclass(frozen=True)
class Row:
    """One job as squeue shows it."""

    number: str
    state: str
    reason: str
    user: str
    token: Token | None

    @property
    def is_alive(self) -> bool:
        """Whether it waits or runs."""
        return self.state not in ENDED_STATES and not self.is_ending and not self.never_starts

    @property
    def is_ending(self) -> bool:
        """Whether it has ended but for its processes: neither a success nor a
        job that continues."""
        return self.state == ENDING_STATE

    @property
    def never_starts(self) -> bool:
        """Whether it waits for something that has failed."""
        return self.state == "PENDING" and "NeverSatisfied" in self.reason


@dataclass(frozen=True)
class Answer:
    """What a command of Slurm said."""

    code: int
    out: str
    error: str

    @property
    def reason(self) -> str:
        """Its message, on one line."""
        text = re.sub(r"\s+", " ", self.error or self.out).strip()
        return text[-300:] or f"exit status {self.code}, without a message"


def call(words: Sequence[str], seconds: float, keep_open: Sequence[int] = ()) -> Answer:
    """Run a command of Slurm; one that takes too long is ended with everything that it started."""
    environment = {k: v for k, v in os.environ.items() if not k.startswith(HIDING)}
    try:
        process = subprocess.Popen(
            words, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
            errors="replace", env=environment, start_new_session=True, pass_fds=keep_open,
        )  # fmt: skip
    except OSError as error:
        raise NoAnswer(f"{words[0]} cannot be started: {error.strerror}") from None
    try:
        out, text = process.communicate(timeout=seconds)
    except subprocess.TimeoutExpired:
        said = _end(process)
        # A cluster that is full (MaxJobCount) keeps sbatch waiting, which says so.
        told = f"; it said: {said}" if said else ""
        raise NoAnswer(
            f"the scheduler does not answer: {words[0]} took more than {seconds:g} s{told}\n"
            "Try again later; cluster.scheduler_seconds sets how long an answer may take."
        ) from None
    except BaseException:
        _end(process)
        raise
    return Answer(process.returncode, out, text)


def _end(process: "subprocess.Popen[str]") -> str:
    """End a command with all that it started; the last line of its complaints."""
    # It leads a session of its own, so that its group is all that it started.
    os.killpg(process.pid, signal.SIGKILL)
    try:
        _, text = process.communicate(timeout=1.0)
    except (subprocess.TimeoutExpired, ValueError):
        process.wait()
        return ""  # something that has left the session holds the pipe
    return re.sub(r"\s+", " ", (text.strip().splitlines() or [""])[-1])[:200]


def look(seconds: float, numbers: Sequence[str] = ()) -> list[Row]:
    """Jobs of the queue, those that ended a short while ago included: all, or those with these
    ids."""
    words = [
        "squeue",
        "-h",
        "-r",  # a row for each element of an array
        "-t",
        "all",
        "-o",
        FORMAT,
        *(["-j", ",".join(numbers)] if numbers else []),
    ]
    answer = call(words, seconds)
    if answer.code != 0:
        if numbers and _denies(answer):
            return []
        raise NoAnswer(
            f"the scheduler does not answer: squeue: {answer.reason}\nTry again when it does."
        )
    return parse_queue(answer.out)


def parse_queue(text: str) -> list[Row]:
    """Rows of squeue's answer; anything else in it, or half a row, is no answer."""
    lines = [line for line in text.splitlines(keepends=True) if not line.startswith("CLUSTER: ")]
    first, *records = "".join(lines).split(ROW_STARTS)
    # A comment may hold a newline, but nothing comes before the first row or after a row's end.
    odd = [first] if first.strip() else [r for r in records if not r.endswith(f"{ROW_ENDS}\n")]
    rows = [record.split("|", maxsplit=4) for record in records]
    odd += [
        record
        for record, row in zip(records, rows, strict=True)
        if len(row) < 5 or not row[0][:1].isdigit()
    ]
    if odd:
        raise NoAnswer(
            f"squeue's answer makes no sense: {odd[0].strip()[:80]!r}\nTry again when it does."
        )
    return [Row(row[0], row[1], row[2], row[3], Token.find(row[4])) for row in rows]


def accounted(numbers: Sequence[str], seconds: float) -> dict[str, tuple[str, str]]:
    """State and exit status of jobs as the accounting has them; what it does not say, or cannot, is
    left out."""
    if not numbers or not shutil.which("sacct"):
        return {}
    try:
        answer = call(
            ["sacct", "-n", "-X", "-P", "-o", "JobID,State,ExitCode", "-j", ",".join(numbers)],
            seconds,
        )
    except NoAnswer:
        return {}
    rows = [line.split("|") for line in answer.out.splitlines() if line.count("|") == 2]
    rows = [row for row in rows if row[0] in numbers and row[1]] if answer.code == 0 else []
    return {row[0]: (row[1].split()[0], f"exit status {row[2].split(':')[0]}") for row in rows}


def state_of(number: str, seconds: float) -> str | None:
    """A job's state as the controller tells it: empty when it says that there is no such job, None
    when it is mute."""
    if shutil.which("scontrol"):
        answer = call(["scontrol", "-o", "show", "job", number], seconds)
        if match := re.search(r"\bJobState=(\w+)", answer.out):
            return match[1]
        if answer.code != 0 and _denies(answer):
            return ""
        return None
    answer = call(["squeue", "-h", "-t", "all", "-j", number, "-o", "%T"], seconds)
    if answer.code == 0:
        return answer.out.strip() or None
    return "" if _denies(answer) else None


def _denies(answer: Answer) -> bool:
    return "Invalid job id" in answer.error + answer.out


def number_of(token: Token, seconds: float) -> str:
    """Id of the job with this name that the controller has, asked in another way than through
    squeue; empty: none."""
    if not shutil.which("scontrol"):
        return ""
    answer = call(["scontrol", "-o", "show", "job"], seconds)
    if answer.code != 0 and "No jobs" not in answer.out + answer.error:
        raise NoAnswer(
            f"the scheduler does not answer: scontrol: {answer.reason}\nTry again when it does."
        )
    for line in answer.out.splitlines():
        match = re.match(r"JobId=(\d+)(?: ArrayJobId=(\d+))?", line)
        if f"JobName={token.name} " in line and match:
            return match[2] or match[1]
    return ""


@dataclass(frozen=True)
class ClusterFacts:
    """What a controller says of its cluster."""

    name: str = ""
    """Empty where it cannot be asked."""
    array_size: int = USUAL_ARRAY_SIZE
    """How many elements a job array may have; 0: it takes none."""


def cluster_facts(seconds: float) -> ClusterFacts:
    """The cluster whose controller answers. Raises when it is mute."""
    if not shutil.which("scontrol"):
        return ClusterFacts()
    answer = call(["scontrol", "show", "config"], seconds)
    if answer.code != 0:
        # a controller that is down says so here; one that only keeps its settings private does not
        look(seconds)
        return ClusterFacts()
    name = re.search(r"^ClusterName\s*=\s*(\S+)", answer.out, re.MULTILINE)
    limits = (r"^MaxArraySize\s*=\s*(\d+)", r"\bmax_array_tasks=(\d+)")
    sizes = [re.search(limit, answer.out, re.MULTILINE) for limit in limits]
    known = [int(size[1]) for size in sizes if size]
    return ClusterFacts(name[1] if name else "", min(known, default=USUAL_ARRAY_SIZE))


def sbatch(script: Path, token: Token, seconds: float, keep_open: Sequence[int] = ()) -> Answer:
    """Hand a script to sbatch. What is on the command line wins over the user's own SBATCH_
    variables."""
    words = [
        "sbatch",
        "--parsable",
        f"--job-name={token.name}",
        f"--comment={token.comment}",
        str(script),
    ]
    return call(words, seconds, keep_open)


def number_in(answer: Answer) -> str:
    """The id that sbatch printed; empty when it printed none, or several."""
    ids = [
        line.split(";")[0]
        for line in answer.out.splitlines()
        if re.fullmatch(r"\d+(;\S+)?", line.strip())
    ]
    return ids[0].strip() if answer.code == 0 and len(ids) == 1 else ""


def cancel(numbers: Iterable[str], seconds: float) -> None:
    """Cancel jobs, waiting ones first and the last submitted first, so that none starts because
    another ended."""
    wanted = sorted(set(numbers), key=order, reverse=True)
    if not wanted:
        return
    call(["scancel", "--state=PENDING", *wanted], seconds)
    answer = call(["scancel", *wanted], seconds)
    # An element that has ended meanwhile is an error to some versions: what is left decides.
    if answer.code != 0 and not _denies(answer) and _are_left(wanted, seconds):
        raise NoAnswer(
            f"scancel failed: {answer.reason}\nJobs {', '.join(wanted)} may still be in the queue."
        )


def _are_left(numbers: Iterable[str], seconds: float) -> bool:
    wanted = set(numbers)
    rows = [row for row in look(seconds) if any(is_of(number, row) for number in wanted)]
    return any(row.is_alive or row.never_starts for row in rows)


def wait_until_gone(numbers: Iterable[str], seconds: float, patience_seconds: float) -> list[Row]:
    """Wait until none of these jobs or arrays waits or runs; returns those that still do when the
    patience is over."""
    wanted, deadline = set(numbers), time.monotonic() + patience_seconds
    while True:
        bases = {base(number) for number in wanted}
        listed = [row for row in look(seconds) if base(row.number) in bases]
        rows = {row.number: row for row in listed if any(is_of(n, row) for n in wanted)}
        seen = {name for n in rows for name in (n, base(n))} if rows else set()
        for number in sorted(n for n in wanted if n not in seen and base(n) not in rows):
            state = state_of(number, seconds)
            rows[number] = Row(
                number, "UNKNOWN" if state is None else state or "COMPLETED", "", "", None
            )
        left = [row for row in rows.values() if row.is_alive or row.never_starts]
        if not left or time.monotonic() >= deadline:
            return left
        time.sleep(0.5)
