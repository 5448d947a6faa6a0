"""Rounds of faults, each drawn from the seed: `python -m tests.campaign --rounds 500 --seed 1`.

  --only KIND     one kind of fault (kill, torn, signal, pause, error, read, power, damage, together, clock, slow,
                  port, disk, place, launcher, scheduler, limits, folders, readonly, slurm), or flips, lies, fuzz, long
  --without GUARD take a guard away (sync, atomic, checkpoint, seal, owner, metrics, index): rounds
                  are of the kinds that it is against; exit status 0 when that is noticed
  --first N       begin with round N, to do a round again
  --folder F      work there and keep it: the same command resumes after the last round that it did, and does rounds
                  that failed again
  --short         20 rounds, then 20 flips and 20 lies of each kind of file and 200 cases for each parser

Ends with a table: injected, survived, stopped with a clear sentence, silent, crashed. Exit status 1 if any round was
silent or crashed.
"""

import argparse
import os
import shutil
import signal
import sys
import tempfile
import time
from pathlib import Path

from tests.campaign import children, plan, shim
from tests.campaign.guards import GUARDS
from tests.campaign.judge import FAILURES, Outcome, table
from tests.campaign.record import Record

BASE = "CAMPAIGN_FOLDER"
SWEEPS = ("flips", "lies", "fuzz", "long")


def main() -> int:
    """Parse, run, print the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--first", type=int, default=0, help="number of the first round")
    parser.add_argument("--short", action="store_true", help="what a clean checkout must pass")
    parser.add_argument(
        "--minutes", type=float, default=float("inf"), help="begin no round after so long"
    )
    parser.add_argument("--only", choices=[*plan.WEIGHTS, *SWEEPS])
    parser.add_argument("--without", choices=list(GUARDS), default="")
    parser.add_argument(
        "--cases", type=int, default=200, help="of each file or parser, in flips, lies and fuzz"
    )
    parser.add_argument("--folder", type=Path, help="work here and keep it")
    args = parser.parse_args()
    base = Path(os.environ.get(BASE) or args.folder or tempfile.mkdtemp(prefix="campaign-"))
    base.mkdir(parents=True, exist_ok=True)
    os.environ[BASE] = str(base)  # for itself, when it starts again
    shim.restart_with_shim(base)
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # what it has started ends with it
    try:
        if args.short:
            return short(args, base)
        if args.without and not args.only and GUARDS[args.without].against[0] in SWEEPS:
            args.only = GUARDS[args.without].against[0]
        return sweep(args, base) if args.only in SWEEPS else rounds(args, base)
    finally:
        children.end_all()
        if args.folder is None:
            shutil.rmtree(base, ignore_errors=True)


def short(args: argparse.Namespace, base: Path) -> int:
    """A little of everything."""
    from tests.campaign import sweeps

    status = rounds(args, base)
    for part, cases in (("flips", 20), ("lies", 20), ("fuzz", 200)):
        outcomes = getattr(sweeps, part)(base, args.seed, cases, with_export=False)
        status = max(status, conclude(outcomes, ""))
    return status


def sweep(args: argparse.Namespace, base: Path) -> int:
    """One of the parts that are no rounds."""
    from tests.campaign import sweeps

    count = args.rounds if args.only == "long" else args.cases
    more = {"without": args.without} if args.only in ("flips", "lies") else {}
    outcomes = getattr(sweeps, args.only)(base, args.seed, count, **more)
    return conclude(outcomes, args.without)


def rounds(args: argparse.Namespace, base: Path) -> int:
    """Rounds one after another; a line for each."""
    import_everything()
    from tests.campaign.experiments import Workshop
    from tests.campaign.rounds import perform

    # The undisturbed ends are those of the whole product; only rounds run without the guard.
    shop = Workshop(base.resolve())
    record = Record(base, args.seed, args.only or "", args.without)
    kinds = (args.only,) if args.only else GUARDS[args.without].against if args.without else ()
    left_out = plan.LONG_KINDS if args.short else ()
    deadline = time.monotonic() + 60 * args.minutes
    numbers = range(args.first, args.first + args.rounds)
    for number in numbers:
        if record.has(number):
            continue
        if time.monotonic() > deadline:
            print(f"stopped before round {number}: {args.minutes:g} minutes are over", flush=True)
            break
        drawn = plan.draw(args.seed, number, kinds)
        if drawn.kind in left_out:
            print(
                f"{number:4d}          left out {drawn.kind}: it starts whole programs", flush=True
            )
            continue
        began = time.monotonic()
        try:
            outcome = perform(shop.with_undisturbed(drawn.experiment, args.without), drawn)
        except KeyboardInterrupt:
            print(f"interrupted in round {number}", flush=True)
            conclude(record.outcomes(numbers), "")
            sys.exit(128 + signal.SIGINT)
        took = time.monotonic() - began
        record.add(number, drawn.kind, outcome, took, str(drawn))
        why = f": {outcome.why}" if outcome.why else ""
        print(f"{number:4d} {took:5.1f} s  {outcome.verdict:8} {drawn}{why[:400]}", flush=True)
        if args.without and outcome.verdict in FAILURES:
            break
    if record.fixed_since:
        print(f"{record.fixed_since} rounds that had failed before do not now", flush=True)
    return conclude(record.outcomes(numbers), args.without)


def import_everything() -> None:
    """What commands import, once, so that children need not."""
    import gc
    import importlib

    from tests import forks

    for name in (
        "hpc_stres.__main__", "hpc_stres.training.phase", "hpc_stres.evaluation.evaluate", "hpc_stres.prepare.run",
        "hpc_stres.launch.submit", "hpc_stres.models.assembly", "torch.utils.tensorboard", "cv2",
    ):  # fmt: skip
        importlib.import_module(name)
    forks.keep_freed_memory()
    gc.freeze()  # no child copies pages only to count what nobody frees


def conclude(outcomes: dict[str, list[Outcome]], without: str) -> int:
    """The table, what failed, and the exit status."""
    print(f"\n{table(outcomes)}")
    failed = [(k, o) for k, found in outcomes.items() for o in found if o.verdict in FAILURES]
    for kind, outcome in failed:
        print(f"{outcome.verdict}: {kind}: {outcome.why}")
    if without:
        noticed = sum(map(len, outcomes.values()))
        print(
            f"without {without}: {'noticed, after ' + str(noticed) + ' in all' if failed else 'NOT noticed'}"
        )
        return 0 if failed else 1
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
