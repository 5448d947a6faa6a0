"""The rounds that a campaign has done, a line each in its folder: one that was stopped resumes where it was."""

import json
from dataclasses import asdict
from pathlib import Path

from tests.campaign.judge import FAILURES, Outcome


class Record:
    """Outcomes by the number of their round; one file for each seed, kind and guard that was taken away."""

    def __init__(self, base: Path, seed: int, kind: str, without: str) -> None:
        self.path = base / f"rounds-seed{seed}-{kind or 'all'}-{without or 'whole'}.jsonl"
        self.rows: dict[int, tuple[str, Outcome]] = {}
        self.fixed_since = 0
        if self.path.is_file():
            text = self.path.read_text("utf-8")
            whole = text[: text.rfind("\n") + 1]  # a campaign may be killed in the middle of a line
            self.path.write_text(whole, "utf-8")
            for line in whole.splitlines():
                self._take(json.loads(line))

    def _take(self, row: dict[str, str | int | float]) -> None:
        number, outcome = int(row["round"]), Outcome(str(row["verdict"]), str(row["why"]))
        before = self.rows.get(number)
        if before is not None and before[1].verdict in FAILURES:
            self.fixed_since += outcome.verdict not in FAILURES
        self.rows[number] = str(row["kind"]), outcome

    def has(self, number: int) -> bool:
        """Whether a round is done; one that failed is done again."""
        return number in self.rows and self.rows[number][1].verdict not in FAILURES

    def add(self, number: int, kind: str, outcome: Outcome, seconds: float, what: str) -> None:
        """One more round."""
        row = {
            "round": number,
            "kind": kind,
            **asdict(outcome),
            "seconds": round(seconds, 1),
            "what": what,
        }
        with self.path.open("a", encoding="utf-8") as stream:
            stream.write(json.dumps(row) + "\n")
        self._take(row)

    def outcomes(self, numbers: range) -> dict[str, list[Outcome]]:
        """By kind, those of these numbers."""
        by_kind: dict[str, list[Outcome]] = {}
        for number in sorted(set(self.rows) & set(numbers)):
            kind, outcome = self.rows[number]
            by_kind.setdefault(kind, []).append(outcome)
        return by_kind
