"""Mutants: the product with one line changed, and the tests that should notice it: `python -m tests.campaign.mutants`.

  --count 200 --seed 1   so many changes, drawn from the seed, after those that once survived (OLD)
  --record FILE          write down what came of each; what stands there already is not run again,
                         unless its file was changed since, or it survived and its tests were
  --begin 2/3            begin with the second third and go round: several may share one record
  --list                 say what would be changed
  --only FILE            of one file

Which tests are asked stands in covering.py, what is changed in mutations.py. A mutant is in a copy of
the tree; its tests are run by a fork of this process, which has imported what is heavy, and stop at
the first that fails. In the end those tests are run without a change: one that fails anyway has
noticed nothing. What no test can notice is argued in argued.yaml. Exit status 1 where a mutant survived
without an argument.
"""

import argparse
import hashlib
import json
import random
import signal
import sys
import tempfile
from collections import Counter
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import yaml

from tests.campaign.covering import COVERING, files_about
from tests.campaign.mutations import Mutant, mutants_of

ROOT = Path(__file__).resolve().parent.parent.parent
ARGUED_FILE = Path(__file__).parent / "argued.yaml"
NOTICED, HUNG, ARGUED = "noticed", "hung", "argued"
SURVIVED, UNSOUND = "SURVIVED", "UNSOUND"
# Changes that no test noticed when changes were made by hand for the first time.
OLD = (
    ("data/requests.py", "(last - first - span + 1))", "(last - first - span))"),
    ("training/engine.py", "multiplier, decay = 2.0, 0.0\n", "multiplier, decay = 1.0, 0.0\n"),
    ("training/engine.py", "(2.0, 0.0) if name", "(2.0, weight_decay) if name"),
    ("training/loss.py", "loss * weight if total is None else total + loss * weight",
     "loss if total is None else total + loss"),
    ("run/paths.py", "        os.fsync(descriptor)\n", "        pass\n"),
)  # fmt: skip


@dataclass(frozen=True)
class Verdict:
    """What came of a mutant: which test noticed it, and how long that took."""

    outcome: str
    test: str = ""
    seconds: float = 0.0


def source_of(file: str) -> str:
    """The text of a file of the product."""
    return (ROOT / "hpc_stres" / file).read_text("utf-8")


def old_survivors() -> list[Mutant]:
    """The changes of OLD; each must still be a change of one place."""
    made = []
    for file, before, after in OLD:
        source = source_of(file)
        if source.count(before) != 1:
            raise SystemExit(f"{file}: {before!r} is there {source.count(before)} times, not once")
        line = source[: source.index(before)].count("\n") + 1
        shown = source.splitlines()[line - 1].strip()
        text = source.replace(before, after)
        made.append(Mutant(file, line, shown, before, after, text))
    return made


def draw(seed: int, count: int, only: str | None = None) -> list[Mutant]:
    """So many mutants, spread evenly over the files."""
    dice, chosen = random.Random(seed), list[Mutant]()
    pools = {file: mutants_of(file, source_of(file)) for file in COVERING if only in (None, file)}
    for pool in pools.values():
        dice.shuffle(pool)
    while len(chosen) < count and any(pools.values()):
        file = dice.choice([file for file, pool in pools.items() if pool])
        chosen.append(pools[file].pop())
    return chosen


def arguments_for_survivors() -> dict[tuple[str, str, str, str], str]:
    """Why a change cannot be noticed, by file, line, and what became what."""
    rows = yaml.safe_load(ARGUED_FILE.read_text("utf-8"))
    return {(row["file"], row["line"], row["before"], row["after"]): row["why"] for row in rows}


class Record:
    """What came of mutants before, in a file of one line each."""

    def __init__(self, path: Path | None) -> None:
        self.path, self.rows, self.read_bytes = path, dict[str, dict[str, Any]](), 0

    def _read_on(self) -> None:
        """Take in what others have written since."""
        if self.path is None or not self.path.is_file():
            return
        with self.path.open("rb") as stream:
            stream.seek(self.read_bytes)
            whole, newline, _ = stream.read().rpartition(b"\n")
        self.read_bytes += len(whole) + len(newline)
        for line in whole.splitlines():
            row = json.loads(line)
            self.rows[row["mutant"]] = row

    def known(self, mutant: Mutant) -> Verdict | None:
        """What is still true of a mutant; a survivor is asked again when its tests have changed."""
        self._read_on()
        row = self.rows.get(_digest(mutant.file, mutant.text))
        if row is None or row["outcome"] == UNSOUND:
            return None
        if row["outcome"] in (SURVIVED, HUNG) and row["tests"] != _digest_of_tests(mutant.file):
            return None
        return Verdict(row["outcome"], row["test"], row["seconds"])

    def add(self, mutant: Mutant, verdict: Verdict) -> None:
        """Write down a verdict."""
        if self.path is not None:
            row = {
                "mutant": _digest(mutant.file, mutant.text), "tests": _digest_of_tests(mutant.file),
                "what": str(mutant), **vars(verdict),
            }  # fmt: skip
            with self.path.open("a", encoding="utf-8") as stream:
                stream.write(json.dumps(row) + "\n")


def _digest(*parts: str) -> str:
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()[:24]


def _digest_of_tests(file: str) -> str:
    return _digest(*((ROOT / name).read_text("utf-8") for name in files_about(file)))


def main() -> int:
    """Draw, change, test; the survivors at the end."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--count", type=int, default=200)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--only", choices=list(COVERING), metavar="FILE")
    parser.add_argument("--list", action="store_true")
    parser.add_argument("--record", type=Path)
    parser.add_argument("--begin", default="1/1", metavar="N/M")
    args = parser.parse_args()
    old = [mutant for mutant in old_survivors() if args.only in (None, mutant.file)]
    chosen = [*old, *draw(args.seed, args.count, args.only)]
    part, parts = map(int, args.begin.split("/"))
    first = len(chosen) * (part - 1) // parts
    chosen = [*chosen[first:], *chosen[:first]]
    if args.list:
        print("\n".join(map(str, chosen)))
        return 0
    return try_all(chosen, Record(args.record))


def try_all(chosen: list[Mutant], record: Record) -> int:
    """A line for each mutant, then how many were noticed; the exit status."""
    from tests.campaign.trials import Tree

    # What ends this takes the copy of the tree away.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    argued, verdicts = arguments_for_survivors(), list[tuple[Mutant, Verdict]]()
    with tempfile.TemporaryDirectory(prefix="mutants-") as folder:
        tree = Tree(Path(folder), ROOT)
        for number, mutant in enumerate(chosen, 1):
            if (mutant.file, mutant.source, mutant.before, mutant.after) in argued:
                verdict = Verdict(ARGUED)
            else:
                known = record.known(mutant)
                verdict = known or judge(mutant, tree)
                if known is None:
                    record.add(mutant, verdict)
            verdicts.append((mutant, verdict))
            by = f"  ({verdict.test})" if verdict.test else ""
            print(
                f"{number:4d} {verdict.seconds:5.1f} s {verdict.outcome:8} {mutant}{by}", flush=True
            )
        return conclude(checked(verdicts, tree))


def judge(mutant: Mutant, tree: Any) -> Verdict:
    """What the tests say of a mutant."""
    with tree.changed(f"hpc_stres/{mutant.file}", mutant.text):
        trial = tree.run(files_about(mutant.file))
    outcome = SURVIVED if trial.passed else NOTICED
    if trial.hung:
        # Or the machine is slow: then the tests take long without the change as well.
        again = tree.run(files_about(mutant.file), trial.seconds)
        outcome = HUNG if again.passed and again.seconds < trial.seconds / 2 else UNSOUND
    return Verdict(outcome, trial.failed[0] if trial.failed else "", trial.seconds)


def checked(verdicts: list[tuple[Mutant, Verdict]], tree: Any) -> list[tuple[Mutant, Verdict]]:
    """The verdicts, but for those of tests that fail without a change as well."""
    asked = {mutant: _asked(mutant, verdict) for mutant, verdict in verdicts}
    names = sorted({name for some in asked.values() for name in some})
    failing = tree.failing_unchanged(names) if names else set()
    return [
        (mutant, replace(verdict, outcome=UNSOUND) if _meets(asked[mutant], failing) else verdict)
        for mutant, verdict in verdicts
    ]


def _asked(mutant: Mutant, verdict: Verdict) -> list[str]:
    """What must pass without the change: the test that noticed it; all tests of the file where
    they did not get as far as one."""
    if verdict.outcome not in (NOTICED, HUNG):
        return []
    return [verdict.test] if "::" in verdict.test else files_about(mutant.file)


def _meets(asked: list[str], failing: set[str]) -> bool:
    return any(test == name or test.startswith(f"{name}::") for name in asked for test in failing)


def conclude(verdicts: list[tuple[Mutant, Verdict]]) -> int:
    """How many of each outcome, and every survivor."""
    counts = Counter(verdict.outcome for _, verdict in verdicts)
    settled = counts[NOTICED] + counts[HUNG] + counts[ARGUED]
    share = 100 * settled / max(1, len(verdicts))
    said = ", ".join(f"{counts[name]} {name}" for name in sorted(counts))
    print(f"\n{len(verdicts)} mutants: {said}; {share:.1f} % noticed or argued")
    left = [mutant for mutant, verdict in verdicts if verdict.outcome in (SURVIVED, UNSOUND)]
    print("\n".join(map(str, left)) or "no survivor without an argument")
    return 1 if left else 0


if __name__ == "__main__":
    sys.exit(main())
