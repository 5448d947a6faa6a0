"""The parts of the campaign that are no rounds: flips, lies, fuzzing, long runs."""

import time
from pathlib import Path

from tests.campaign import damage
from tests.campaign.experiments import Workshop
from tests.campaign.judge import Outcome
from tests.campaign.museum import Museum

Outcomes = dict[str, list[Outcome]]


def _damaged(base: Path, seed: int, cases: int, with_lies: bool) -> Outcomes:
    from tests.campaign.__main__ import import_everything

    import_everything()
    museum, outcomes = Museum(Workshop(base.resolve())), Outcomes()
    for exhibit in museum.exhibits():
        began = time.monotonic()
        outcomes[exhibit.kind] = damage.sweep(exhibit, seed, cases, with_lies)
        took = time.monotonic() - began
        print(f"{exhibit.kind}: {len(outcomes[exhibit.kind])} in {took:.1f} s", flush=True)
    return outcomes


def flips(base: Path, seed: int, cases: int, _rounds: int) -> Outcomes:
    """Single bits that flip, in every kind of file that is read back."""
    return _damaged(base, seed, cases, with_lies=False)


def lies(base: Path, seed: int, cases: int, _rounds: int) -> Outcomes:
    """Well-formed files that are wrong."""
    return _damaged(base, seed, cases, with_lies=True)
