"""Parsers of what users give, under a memory and a time limit: whatever comes in, a value or a sentence comes out.

First come the stored cases (stored_cases.json: for each parser the shortest case that led to each
of its sentences), then what hypothesis makes: edits of sound files (cut, doubled, overwritten,
words of trouble put in), and for options free text as well; videos are also cut at every byte. Each
parser runs in a child; a signal is a crash, and so is any exception but the package's own.

`python -m tests.campaign.fuzzing --collect --cases 2000` writes the stored cases anew, keeping those that it has.
"""

import argparse
import base64
import json
import os
import re
import resource
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NoReturn

from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis import strategies as st

from tests.campaign.judge import CRASHED, STOPPED, SURVIVED, Outcome
from tests.campaign.outcomes import outcomes_of
from tests.campaign.parsers import Parser, Parsers

MEMORY_BYTES, CASE_SECONDS = 2 << 30, 20
# Of the processor, for code that does not come back to Python.
PROCESSOR_SECONDS = 60.0
STORED = Path(__file__).parent / "stored_cases.json"
MOST_STORED_BYTES, MOST_STORED = 4096, 40
# From so many cases on every parser gets all of them.
LONG = 1000
MOST_LINES = 3
TROUBLE = [
    b"",
    b"\0",
    b"\xff",
    b"\xed\xa0\x80",
    b"\n",
    b"\r",
    b"\t",
    b" ",
    b'"',
    b"'",
    b",",
    b";",
    b":",
    b": ",
    b"- ",
    b"[",
    b"{",
    b"&a [*a, *a]",
    b"*a",
    b"!!python/object/apply:os.getcwd []",
    b"<<: {}",
    b"? ",
    b"| ",
    b".inf",
    b".nan",
    b"-1",
    b"0",
    b"1e400",
    b"9" * 400,
    b"0x",
    b"1_0",
    b"null",
    b"true",
    b"~",
    b"../../x",
    b"/",
    b"/dev/zero",
    b"\xe2\x80\xae",
    b"%",
    b"#",
    b"2026-11-21",
    b"train",
    b"\xef\xbb\xbf",
    b"\x00\x01",
    b"\x7f\xff\xff\xff",
    b"\xff\xff\xff\xff\xff\xff\xff\x7f",
]
Edits = list[tuple[int, float, float, bytes]]
EDIT = st.tuples(st.integers(0, 4), st.floats(0, 1), st.floats(0, 1),
                 st.one_of(st.sampled_from(TROUBLE), st.binary(max_size=8)))  # fmt: skip


def edited(data: bytes, edits: Edits) -> bytes:
    """A file after some edits."""
    for how, first, second, word in edits:
        a, b = sorted((int(first * len(data)), int(second * len(data))))
        b = min(b, a + 400)
        if how == 0:
            data = data[:a] + word + data[a:]
        elif how == 1:
            data = data[:a] + word + data[a + len(word) :]
        elif how == 2:
            data = data[:a] + data[b:]
        elif how == 3:
            data = data[:b] + data[a:]
        else:
            data = data[:a]
    return data


class TooSlow(BaseException):
    """A case took too long. No error that a parser may take for one of a file."""


def run(parser: Parser, number: int, cases: int) -> list[Outcome]:
    """The stored cases and so many others for a parser, in a child."""
    wanted = cases if cases >= LONG else max(1, int(cases * parser.share))

    def work(tell: Callable[[Outcome], None]) -> None:
        limit()
        for case in stored_cases().get(parser.name, []):
            tell(attempt(parser, case))
        try_all(parser, number, wanted, lambda case: tell(attempt(parser, case)))

    outcomes, status = outcomes_of(work)
    if status:
        outcomes.append(Outcome(CRASHED, f"{parser.name}: ended with {status}: see {last_case()}"))
    return outcomes


def last_case() -> Path:
    """The file that holds the latest case: the one at which a child died."""
    return Path(tempfile.gettempdir()) / f"campaign-case-{os.getuid()}"


def limit() -> None:
    """Give this process some memory more than it has, and no more."""
    now = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (now + MEMORY_BYTES, resource.RLIM_INFINITY))
    signal.signal(signal.SIGALRM, _too_slow)


def _too_slow(*_: Any) -> NoReturn:
    raise TooSlow


def _cases(parser: Parser) -> st.SearchStrategy[bytes]:
    made = st.builds(
        edited, st.sampled_from(parser.examples), st.lists(EDIT, min_size=1, max_size=6)
    )
    if not parser.free_text:
        return made
    return st.one_of(made, st.text(max_size=40).map(lambda t: t.encode("utf-8", "surrogatepass")))


def cuts(examples: list[bytes], cases: int) -> Iterator[bytes]:
    """The examples cut behind each byte; behind every second, third and so on where there are to
    be fewer cases."""
    every = -(-sum(map(len, examples)) // cases)
    for data in examples:
        for length in range(0, len(data), every):
            yield data[:length]


def try_all(parser: Parser, number: int, cases: int, take: Callable[[bytes], None]) -> None:
    """Make so many cases from a seed."""
    if parser.cut:
        for case in cuts(parser.examples, cases):
            take(case)
        return

    @seed(number)
    @settings(max_examples=cases, deadline=None, database=None, phases=[Phase.explicit, Phase.generate],
              suppress_health_check=list(HealthCheck))  # fmt: skip
    @given(_cases(parser))
    def one(data: bytes) -> None:
        take(data)

    one()


def attempt(parser: Parser, data: bytes) -> Outcome:
    """What a parser makes of a case."""
    from hpc_stres.errors import UserError
    from hpc_stres.prepare.video import UndecodableError

    last_case().write_bytes(data)
    signal.alarm(CASE_SECONDS)
    signal.setitimer(signal.ITIMER_PROF, PROCESSOR_SECONDS)
    try:
        parser.parse(data)
    except (UserError, UndecodableError) as error:
        lines = len(str(error).splitlines())
        said = str(error)
        return Outcome(STOPPED if 0 < lines <= MOST_LINES else CRASHED, said)
    except (Exception, TooSlow) as error:
        kind = f"{type(error).__name__}: {error}"[:200]
        return Outcome(CRASHED, f"{parser.name}: {kind}, for {data[:200]!r}")
    finally:
        signal.alarm(0)
        signal.setitimer(signal.ITIMER_PROF, 0)
    return Outcome(SURVIVED, "")


def run_all(
    folder: Path, config: Path, number: int, cases: int
) -> Iterator[tuple[str, list[Outcome]]]:
    """Every parser in turn."""
    for parser in Parsers(folder, config).all():
        began = time.monotonic()
        outcomes = run(parser, number, cases)
        counts = Counter(outcome.verdict for outcome in outcomes)
        said = ", ".join(f"{count} {verdict}" for verdict, count in sorted(counts.items()))
        print(f"{parser.name}: {said}; {time.monotonic() - began:.0f} s", flush=True)
        for failed in [one for one in outcomes if one.verdict == CRASHED][:MOST_LINES]:
            print(f"  {failed.why}", flush=True)
        yield parser.name, outcomes


# -- stored cases -------------------------------------------------------------------------------


def stored_cases() -> dict[str, list[bytes]]:
    """The stored cases of each parser."""
    if not STORED.is_file():
        return {}
    kept = json.loads(STORED.read_text("utf-8"))
    return {name: [base64.b64decode(case) for case in cases] for name, cases in kept.items()}


def collect(parser: Parser, number: int, cases: int, kept: list[bytes]) -> list[bytes]:
    """The stored cases of a parser, and the shortest new one for each sentence that they lack."""
    known = {_pattern(attempt(parser, case)) for case in kept}
    fresh = dict[str, bytes]()

    def take(case: bytes) -> None:
        pattern = _pattern(attempt(parser, case))
        is_new = pattern not in known and len(case) <= MOST_STORED_BYTES
        if is_new and len(case) < len(fresh.get(pattern, case + b"0")):
            fresh[pattern] = case

    try_all(parser, number, cases, take)
    return [*kept, *sorted(fresh.values(), key=len)][:MOST_STORED]


def _pattern(outcome: Outcome) -> str:
    """A sentence without what is quoted in it: numbers, names, places."""
    line = outcome.why.partition("\n")[0]
    line = re.sub(r"\S*/\S*", "PATH", line)
    return outcome.verdict + re.sub(r"'[^']*'|\"[^\"]*\"|\d+|[^\x20-\x7e]+", "X", line)[:60]


def main() -> int:
    """Write the stored cases anew."""
    from tests.campaign.experiments import CONFIG

    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--collect", action="store_true", required=True)
    parser.add_argument("--cases", type=int, default=2000)
    parser.add_argument("--seed", type=int, default=1)
    args = parser.parse_args()
    stored = stored_cases()
    with tempfile.TemporaryDirectory(prefix="fuzzing-") as folder:
        limit()
        for one in Parsers(Path(folder), CONFIG).all():
            if not one.cut:
                stored[one.name] = collect(one, args.seed, args.cases, stored.get(one.name, []))
                print(f"{one.name}: {len(stored[one.name])}", flush=True)
    text = {
        name: [base64.b64encode(case).decode() for case in cases] for name, cases in stored.items()
    }
    STORED.write_text(json.dumps(text, indent=1) + "\n", "utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
