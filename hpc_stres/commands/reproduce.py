"""Train the first steps of somebody's run again on this machine and compare the
weights, bit for bit.

  hpc-stres reproduce runs/theirs --steps 10
  hpc-stres reproduce runs/theirs --steps 10 --phase st_resnet --ranks 3 --set data.root=data
  hpc-stres reproduce runs/theirs --steps 500 --against runs/mine     compares two runs, trains nothing

The run must have been trained with training.reproducible=bitwise, which leaves hashes of all
weights in metrics.jsonl, and its data must be here (--set data.root=D). The number of ranks may be
another one. Its folder is only read. Exit status: 0 identical, 1 not.
"""

import argparse
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from hpc_stres.commands import add_override_argument

if TYPE_CHECKING:
    from hpc_stres.run.hash_trail import Comparison
    from hpc_stres.run.paths import RunPaths


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("run_dir", metavar="RUN", help="run folder to check")
    parser.add_argument(
        "--steps", type=int, required=True, metavar="N", help="steps to train again"
    )
    parser.add_argument("--phase", metavar="P", help="phase (default: the first that was trained)")
    parser.add_argument(
        "--ranks",
        type=int,
        default=1,
        metavar="R",
        help="processes to train with here (default: 1)",
    )
    parser.add_argument(
        "--scratch",
        metavar="D",
        help="new folder to train in, which is kept (default: one that is not)",
    )
    parser.add_argument(
        "--against", metavar="D", help="compare with this run folder instead of training again"
    )
    add_override_argument(parser)


def run(args: argparse.Namespace) -> int:
    from hpc_stres.config.loading import load_run
    from hpc_stres.errors import ConfigError
    from hpc_stres.launch.reproduce import phase_to_repeat
    from hpc_stres.run.hash_trail import checked_hashes, compare, hashes_of
    from hpc_stres.run.paths import RunPaths

    for name in ("steps", "ranks"):
        if getattr(args, name) < 1:
            raise ConfigError(f"--{name} {getattr(args, name)}: expected 1 or more")
    run_dir = Path(args.run_dir)
    config = load_run(run_dir, args.overrides)
    phase = phase_to_repeat(config.phases, run_dir, args.phase)
    theirs = checked_hashes(RunPaths(run_dir).phase(phase), args.steps)
    if args.against:
        other = RunPaths(Path(args.against))
        ours = checked_hashes(other.phase(phase), args.steps)
        return _say(phase, compare(theirs, ours), RunPaths(run_dir), other)
    with tempfile.TemporaryDirectory(prefix="hpc_stres_reproduce_") as folder:
        scratch = Path(args.scratch) if args.scratch else Path(folder) / "run"
        _train(args, phase, run_dir, scratch)
        ours = hashes_of(RunPaths(scratch).phase(phase))
        return _say(phase, compare(theirs, ours), RunPaths(run_dir), RunPaths(scratch))


def _train(args: argparse.Namespace, phase: str, run_dir: Path, scratch: Path) -> None:
    from hpc_stres.commands import writing
    from hpc_stres.launch.reproduce import prepare_scratch, train_again
    from hpc_stres.run.hash_trail import provenance_of
    from hpc_stres.run.paths import RunPaths

    level = provenance_of(RunPaths(run_dir)).get("kernels", {})
    with writing(str(scratch)):
        prepare_scratch(run_dir, phase, scratch)
    train_again(run_dir, phase, scratch, args.steps, args.ranks, args.overrides, level)


def _say(phase: str, result: "Comparison", theirs: "RunPaths", ours: "RunPaths") -> int:
    from hpc_stres.errors import UserError
    from hpc_stres.run.hash_trail import provenance_of, unlike

    if result.equal is None and result.different is None:
        raise UserError(f"{theirs.root}: the two have no hash at the same step of {phase}")
    print(f"{phase}: {result.explain()}")
    if result.different is None:
        return 0
    for line in unlike(provenance_of(theirs), provenance_of(ours)):
        print(f"  {line}")
    return 1
