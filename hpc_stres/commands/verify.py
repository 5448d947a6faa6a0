"""Re-read every byte of the clip store and name each damaged member. Exit status 1 when something is damaged."""

import argparse

from hpc_stres.commands import add_config_arguments, config_of


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_config_arguments(parser)


def run(args: argparse.Namespace) -> int:
    from hpc_stres.data.shards import Store, verify
    from hpc_stres.data.storepath import store_folder

    store = Store(store_folder(config_of(args)))
    damage = verify(store)
    for line in damage:
        print(line)
    if not damage:
        print(f"{store.paths.root}: {len(store.rows)} videos, all whole")
    return 1 if damage else 0
