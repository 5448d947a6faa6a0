"""Train one phase of a run. Every launcher calls this: by hand, torchrun, mpirun, srun or
launch/submit.py.

  hpc-stres train --config configs/binding.yaml --phase motion --run-dir runs/try
  hpc-stres train --config configs/binding.yaml --phase motion --run-dir runs/try --profile
  torchrun --nproc_per_node 3 -m hpc_stres train --config configs/binding.yaml --phase motion --run-dir runs/try

Killed or stopped, the same command resumes from the last checkpoint, on any number of ranks. A run
folder belongs to one experiment: another config is refused with the difference. Exit status: 0
done, 75 stopped early (call again), 1 failed, 2 wrong command line or config.
"""

import argparse
import json
from pathlib import Path

from hpc_stres.commands import add_config_arguments, config_of


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_config_arguments(parser)
    parser.add_argument("--phase", required=True, help="phase of the recipe")
    parser.add_argument("--run-dir", required=True, metavar="D", help="run folder")
    parser.add_argument(
        "--weights", metavar="FILE", help="ImageNet weights (torchvision's or timm's) to start from"
    )
    parser.add_argument(
        "--max-micro-batch", metavar="N", help="videos that one rank takes at once, or auto"
    )
    parser.add_argument(
        "--allow-config-change",
        metavar="KEY",
        action="append",
        default=[],
        help="train on in this run folder although this key has changed; repeatable",
    )
    parser.add_argument(
        "--profile",
        action="store_true",
        help="record some steps: a trace and a page on where their time goes, in the phase's folder under profile/",
    )


def run(args: argparse.Namespace) -> int:
    from hpc_stres.errors import ConfigError
    from hpc_stres.parallel.world import find_world
    from hpc_stres.registry import PHASE_KINDS
    from hpc_stres.registry.phase import entry_point
    from hpc_stres.run.large_pages import keep_freed_memory, use_large_pages
    from hpc_stres.run.pinning import pin_kernels

    use_large_pages()
    keep_freed_memory()
    if args.max_micro_batch is not None:
        args.overrides.append(f"training.max_micro_batch={args.max_micro_batch}")
    if args.weights is not None:
        args.overrides.append(f"model.weights={json.dumps(args.weights)}")
    config = config_of(args)
    pin_kernels(config.training)
    kind = PHASE_KINDS.get(config.phase(args.phase).kind)
    world = find_world()
    from hpc_stres.run.signals import EXIT_CONTINUE

    if args.profile and kind.name != "train":
        raise ConfigError(
            f"--profile: phase {args.phase} is of kind {kind.name}, which trains no network"
        )
    more = {"profile": True} if args.profile else {}
    allowed = tuple(args.allow_config_change)
    finished = entry_point(kind.run)(config, args.phase, Path(args.run_dir), world, allowed, **more)
    return 0 if finished else EXIT_CONTINUE
