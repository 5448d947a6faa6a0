"""Train a phase with other options and several seeds, and print one table: what does
each option change?

  hpc-stres ablate configs/ablations/interactions.yaml --cluster local
  hpc-stres ablate configs/ablations/interactions.yaml --out runs/interactions --table

A grid file names a config, the phase that varies (`column`), seeds, and variants by name (or a
`grid` of values). On this machine the command trains, tests and prints; on Slurm it submits one job
array a phase, and the same command prints the table when the jobs have ended. Killed or stopped,
the same command resumes.
"""

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from hpc_stres.commands import add_override_argument

if TYPE_CHECKING:
    from hpc_stres.launch.ablation import Grid


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("grid", metavar="GRID.yaml", help="grid file")
    parser.add_argument(
        "--out", metavar="D", help="folder of the run folders (default: runs/NAME_OF_GRID)"
    )
    parser.add_argument(
        "--cluster", default="auto", help="auto, slurm, local, or a profile of configs/clusters"
    )
    parser.add_argument("--seeds", metavar="1,2,3", help="seeds in place of the grid's")
    parser.add_argument("--at-once", type=int, metavar="N", help="the most jobs that run at once")
    parser.add_argument(
        "--adopt-code", action="store_true", help="resume with newer code than the runs began with"
    )
    add_override_argument(parser)
    parser.add_argument("--dry-run", action="store_true", help="print what would be submitted")
    parser.add_argument(
        "--table", action="store_true", help="print the table of what is there, and run nothing"
    )


def run(args: argparse.Namespace) -> int:
    from dataclasses import replace

    from hpc_stres.launch import ablation
    from hpc_stres.launch.submit import seeds_of

    grid = ablation.read_grid(Path(args.grid))
    if args.seeds:
        grid = replace(grid, seeds=seeds_of(args.seeds))
    folder = Path(args.out or Path("runs") / Path(args.grid).stem).resolve()
    if not args.table and not _submit_all(args, grid, folder):
        return 0
    return _print(grid, folder)


def _submit_all(args: argparse.Namespace, grid: "Grid", folder: Path) -> bool:
    """Submit or run every run folder; whether all have ended."""
    from hpc_stres.launch import ablation
    from hpc_stres.launch.chain import Request, share_a_store
    from hpc_stres.launch.study import Study
    from hpc_stres.launch.submit import (
        profile_of,
        refuse_without_scheduler,
        submit_together,
        submitting,
    )

    profile = profile_of(args.cluster)
    made = [
        (run, ablation.config_of(grid, run, args.overrides, profile)) for run in ablation.runs(grid)
    ]
    refuse_without_scheduler(made[0][1].cluster, args.dry_run)
    group = folder if share_a_store([config for _, config in made]) else None
    requests = [
        Request(
            config,
            folder / run.name,
            ablation.wanted_phases(grid, run, config.phases),
            group,
            adopt_code=args.adopt_code,
        )
        for run, config in made
    ]
    with submitting(str(folder), args.debug):
        submit_together(Study(folder, requests, args.at_once), args.dry_run)
    if args.dry_run:
        return False
    return made[0][1].cluster.scheduler == "local"


def _print(grid: "Grid", folder: Path) -> int:
    from hpc_stres.launch import ablation
    from hpc_stres.run.paths import write_sealed
    from hpc_stres.run.tables import text_table

    rows = ablation.rows(grid, folder)
    ablation.refuse_unfinished(rows, folder)
    write_sealed(folder / "ablation.json", dict(ablation.as_json(grid, rows)))
    header, cells = ablation.table(rows, grid.seeds)
    print(f"\n{grid.column}\n" + text_table(header, cells))
    return 0
