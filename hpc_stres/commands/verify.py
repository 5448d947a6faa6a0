"""Re-read every byte of the clip store and name each damaged member. Exit status 1 when something is damaged.

With --repair the damaged videos, and only they, are prepared again from their originals.
"""

import argparse

from hpc_stres.commands import add_config_arguments, config_of


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_config_arguments(parser)
    parser.add_argument("--repair", action="store_true", help="prepare what is damaged again")
    parser.add_argument("--quiet", action="store_true", help="no progress")


def run(args: argparse.Namespace) -> int:
    from hpc_stres.data import repair, shards
    from hpc_stres.data.storepath import store_folder

    config = config_of(args)
    paths = shards.StorePaths(store_folder(config))
    damage = [
        f"{n}: this file of the index is damaged" for n in shards.damaged_index(paths, shards.read_manifest(paths))
    ]
    if not damage:
        damage = shards.verify(shards.Store(paths.root))
    for line in damage:
        print(line)
    if damage and args.repair:
        for line in repair.repair(config, args.quiet):
            print(line)
        damage = shards.verify(shards.Store(paths.root))
        for line in damage:
            print(f"still: {line}")
    if not damage:
        print(f"{paths.root}: {len(shards.Store(paths.root).rows)} videos, all whole")
    elif not args.repair:
        print("`hpc-stres verify --repair` with the same config prepares what is damaged again")
    return 1 if damage else 0
