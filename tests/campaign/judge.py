"""What may come of a fault: a run survives it, or a command stops with a clear sentence. Anything else is a failure."""

import re
import signal
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass

from tests.campaign.children import End

SURVIVED, STOPPED, SILENT, CRASHED = "survived", "stopped", "silent", "crashed"
FAILURES = (SILENT, CRASHED)
SENTENCE = re.compile(
    r"^(?:hpc-stres(?: [a-z-]+)?|submit\.py|status\.py): (?P<text>.+)$", re.MULTILINE
)
UNEXPECTED = re.compile(r": unexpected [A-Z]\w*:")
TRACES = ("Traceback (most recent call last)", "terminate called", "Fatal Python error",
          "Exception in thread", "Exception ignored")  # fmt: skip
# Exit statuses that only those have who were asked to stop.
EXIT_CONTINUE, INTERRUPTED = 75, 130
ASKS_TO_STOP = {signal.SIGINT, signal.SIGUSR2, signal.SIGTERM}
MOST_LINES = 4


@dataclass(frozen=True)
class Outcome:
    """What came of a round, and in words why."""

    verdict: str
    why: str


class Failure(Exception):
    """A round went wrong: silent or crashed."""

    def __init__(self, verdict: str, why: str) -> None:
        super().__init__(why)
        self.outcome = Outcome(verdict, why)


def trace_in(text: str) -> str:
    """The first line of what no user should see, or nothing."""
    for line in text.splitlines():
        if any(trace in line for trace in TRACES) or UNEXPECTED.search(line):
            return line.strip()[:200]
    return ""


def last_words(text: str) -> str:
    """The end of an output, on one line."""
    return " / ".join(text.strip().splitlines()[-4:])[-500:]


def sentences(text: str) -> list[str]:
    """The messages of commands in an output."""
    return [match["text"] for match in SENTENCE.finditer(text)]


def check_end(end: End, what: str, sent: Iterable[int] = (), names: tuple[str, ...] = ()) -> str:
    """Refuse an end that is neither success, nor a stop to be continued, nor an exit with a sentence.

    `sent` are signals that the campaign itself sent. Some sentence must hold one of `names`, if any are given. Returns
    the sentence.
    """
    if end.hung:
        raise Failure(CRASHED, f"{what}: hung after {end.seconds:.0f} s: {last_words(end.text)}")
    trace = trace_in(end.text)
    if trace:
        raise Failure(CRASHED, f"{what}: {trace} | {last_words(end.text)}")
    if end.left:
        raise Failure(CRASHED, f"{what}: it left processes behind: {', '.join(end.left)}")
    signals = set(sent)
    allowed = {0, 1, 2, *(-number for number in signals)}
    allowed |= {EXIT_CONTINUE, INTERRUPTED} if signals & ASKS_TO_STOP else set()
    odd = [status for status in end.statuses if status not in allowed]
    if odd:
        raise Failure(CRASHED, f"{what}: ended with {odd[0]}: {last_words(end.text)}")
    if not any(status in (1, 2) for status in end.statuses):
        return ""
    said = sentences(end.text)
    if not said:
        raise Failure(CRASHED, f"{what}: failed without a sentence: {last_words(end.text)}")
    block = end.text[end.text.rindex(said[-1]) :]
    from_first = end.text[end.text.index(said[0]) :]
    if names and not any(name in from_first for name in names):
        raise Failure(CRASHED, f"{what}: the sentence does not say where: {said[-1]} ({names[0]})")
    if len([line for line in block.splitlines() if line.strip()]) > MOST_LINES:
        raise Failure(CRASHED, f"{what}: more than a sentence: {last_words(block)}")
    return " | ".join(dict.fromkeys(said))


def table(outcomes: dict[str, list[Outcome]]) -> str:
    """Injected, survived, stopped with a sentence, silent, crashed; a row for each kind of fault."""
    header = ["fault", "injected", SURVIVED, "stopped with a sentence", SILENT, CRASHED]
    rows = []
    for kind, found in outcomes.items():
        count = Counter(outcome.verdict for outcome in found)
        rows.append([kind, len(found), *(count[v] for v in (SURVIVED, STOPPED, *FAILURES))])
    sums = [sum(int(row[n]) for row in rows) for n in range(1, len(header))]
    rows.append(["all", *sums])
    lines = ["| " + " | ".join(header) + " |", "|---|" + "---|" * (len(header) - 1)]
    return "\n".join(lines + ["| " + " | ".join(map(str, row)) + " |" for row in rows])
