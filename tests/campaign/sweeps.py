"""The parts of the campaign that are no rounds: flips, lies, fuzzing, long runs."""

import time
from pathlib import Path

from tests.campaign import damage
from tests.campaign.experiments import Workshop
from tests.campaign.judge import Outcome
from tests.campaign.museum import Museum

Outcomes = dict[str, list[Outcome]]


def _damaged(
    base: Path, seed: int, cases: int, with_lies: bool, with_export: bool, without: str
) -> Outcomes:
    from tests.campaign.__main__ import import_everything

    import_everything()
    museum, outcomes = Museum(Workshop(base.resolve()), with_export), Outcomes()
    for exhibit in museum.exhibits():
        began = time.monotonic()
        outcomes[exhibit.kind] = damage.sweep(exhibit, seed, cases, with_lies, without)
        took = time.monotonic() - began
        print(f"{exhibit.kind}: {len(outcomes[exhibit.kind])} in {took:.1f} s", flush=True)
    return outcomes


def flips(
    base: Path, seed: int, cases: int, with_export: bool = True, without: str = ""
) -> Outcomes:
    """Single bits that flip, in every kind of file that is read back."""
    return _damaged(base, seed, cases, False, with_export, without)


def lies(
    base: Path, seed: int, cases: int, with_export: bool = True, without: str = ""
) -> Outcomes:
    """Well-formed files that are wrong."""
    return _damaged(base, seed, cases, True, with_export, without)


def fuzz(base: Path, seed: int, cases: int, with_export: bool = True) -> Outcomes:
    """Every parser of user input."""
    from tests.campaign import fuzzing
    from tests.campaign.__main__ import import_everything
    from tests.campaign.experiments import CONFIG

    import_everything()
    outcomes = Outcomes()
    for name, found in fuzzing.run_all(base.resolve() / "fuzz", CONFIG, seed, cases):
        outcomes[name] = found
        print(f"{name}: {len(found)}", flush=True)
    return outcomes


def long(base: Path, seed: int, checkpoints: int) -> Outcomes:
    """A phase of so many checkpoints, ten steps each."""
    from tests.campaign import longrun
    from tests.campaign.__main__ import import_everything

    import_everything()
    return {"long": longrun.watch(base.resolve(), checkpoints)}
