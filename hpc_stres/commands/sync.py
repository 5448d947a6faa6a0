"""Replay a run's metrics into a folder that an experiment tracker reads, without a network.

  hpc-stres sync runs/try --to mlflow --out mlruns
  MLFLOW_ALLOW_FILE_STORE=true mlflow ui --backend-store-uri mlruns

  hpc-stres sync runs/try --to wandb --out .
  wandb sync wandb/offline-run-*

metrics.jsonl is the truth, and each phase is written anew as a whole: syncing again, after a
requeue or a longer training, leaves every step there once. MLflow's file store needs no package
(MLflow 3 asks for the variable above, or for `mlflow migrate-filestore` into its database); W&B's
format needs wandb installed.
"""

import argparse
from pathlib import Path

from hpc_stres.run.paths import split_folders


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("runs", nargs="+", metavar="RUN", help="run folders")
    parser.add_argument(
        "--to", choices=["mlflow", "wandb"], required=True, help="whose folder to write"
    )
    parser.add_argument(
        "--out", metavar="DIR", help="where (default: mlruns, or wandb's own folder here)"
    )


def run(args: argparse.Namespace) -> int:
    from hpc_stres.config.loading import load_run
    from hpc_stres.evaluation.report import replay

    named = [Path(name) for name in args.runs]
    folders = [folder for name in named for folder in (split_folders(name) or [name])]
    phases = [
        phase for folder in folders for phase in replay.tracked_phases(load_run(folder), folder)
    ]
    if args.to == "mlflow":
        out = Path(args.out or "mlruns")
        written, then = (
            replay.write_mlflow(phases, out),
            f"{replay.MLFLOW} ui --backend-store-uri {out}",
        )
    else:
        out = Path(args.out or ".")
        written, then = replay.write_wandb(phases, out), f"wandb sync {out / 'wandb'}/offline-run-*"
    rows = sum(len(phase.rows) for phase in phases)
    print(f"sync: {len(written)} phases, {rows} rows in {out}; look at them: {then}")
    return 0
