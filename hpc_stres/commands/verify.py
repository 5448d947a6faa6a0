"""Re-read every byte of the clip store and name each damaged member. Exit status 1 when
something is damaged.

With --repair the damaged videos, and only they, are prepared again from their originals.
"""

import argparse

from hpc_stres.commands import add_config_arguments, config_of


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_config_arguments(parser)
    parser.add_argument("--repair", action="store_true", help="prepare what is damaged again")
    parser.add_argument("--quiet", action="store_true", help="no progress")


def run(args: argparse.Namespace) -> int:
    from hpc_stres.prepare import repair
    from hpc_stres.store.location import store_folder
    from hpc_stres.store.reader import Store

    config = config_of(args)
    root = store_folder(config)
    damage = repair.inspect(root)
    for line in damage:
        print(line)
    if damage and args.repair:
        for line in repair.repair(config, args.quiet):
            print(line)
        damage = repair.inspect(root)
        for line in damage:
            print(f"still: {line}")
    if not damage:
        print(f"{root}: {len(Store(root).rows)} videos, all whole")
    elif not args.repair:
        print("`hpc-stres verify --repair` with the same config prepares what is damaged again")
    return 1 if damage else 0
