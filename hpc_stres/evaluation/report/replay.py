"""A run's metrics for experiment trackers: metrics.jsonl is the truth, a tracker's
folder a replay of it.

A phase is one tracked run whose id follows from the run and the phase, and its folder is written
anew as a whole: syncing again, after a requeue or a longer training, leaves every step there once.
Runs of other folders, and of other tools, are not touched.
"""

import hashlib
import importlib
import json
import shutil
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from hpc_stres.config.loading import flat, plain
from hpc_stres.config.recipe import ordered_phases
from hpc_stres.config.schema import Config
from hpc_stres.errors import UserError
from hpc_stres.evaluation.table import read_results
from hpc_stres.run.ownership import owned
from hpc_stres.run.paths import RunPaths, read_json, write_text
from hpc_stres.run.product import read_metrics
from hpc_stres.run.provenance import without_secrets

EXPERIMENT = "hpc_stres"
# MLflow 3 reads a file store only where this variable allows it.
MLFLOW = "MLFLOW_ALLOW_FILE_STORE=true mlflow"
PATIENCE_SECONDS = 60.0
# MLflow's words for the states of a run and of an experiment, as its file store has them.
FINISHED, RUNNING, ACTIVE, LOCAL_SOURCE = 3, 1, "active", 4
MOST_PARAMETER_LETTERS = 6000
NOT_FIGURES = frozenset({"step", "time"})


@dataclass(frozen=True)
class Tracked:
    """One phase as a tracker sees it."""

    id: str
    name: str
    rows: list[dict[str, Any]]
    parameters: dict[str, str]
    results: dict[str, float]
    tags: dict[str, str]
    is_done: bool

    def times_ms(self) -> list[int]:
        """When each row was written; rows of older versions have only their order."""
        return [
            round(1000 * row["time"]) if "time" in row else index
            for index, row in enumerate(self.rows)
        ]


def tracked_phases(config: Config, run_dir: Path) -> list[Tracked]:
    """The phases of a run that have metrics."""
    paths = RunPaths(run_dir)
    results = read_results(paths.results) if paths.results.is_file() else {"splits": {}}
    table = results["splits"].get(str(config.data.split), {})
    known, tracked = read_json(paths.provenance), []
    for name in ordered_phases(config.phases):
        phase = paths.phase(name)
        rows = read_metrics(phase)
        if not rows:
            continue
        column = table.get(name, {})
        figures = {
            f"test_{key}": float(column[key])
            for key in ("top1", "top5", "mean_class", "map")
            if key in column
        }
        tags = {
            "phase": name,
            "run_dir": str(run_dir.resolve()),
            "commit": str(known.get("commit", "unknown")),
        }
        tracked.append(Tracked(
            identity(run_dir, name), f"{run_dir.resolve().name}/{name}", rows, parameters(config), figures, tags,
            phase.done.is_file(),
        ))  # fmt: skip
    if not tracked:
        raise UserError(
            f"{run_dir}: no phase has metrics yet\nTrain one first: hpc-stres submit ..."
        )
    return tracked


def identity(run_dir: Path, phase: str) -> str:
    """32 hex digits that are the run's and the phase's own wherever the command is called from."""
    return hashlib.sha256(f"{run_dir.resolve()}\0{phase}".encode()).hexdigest()[:32]


def parameters(config: Config) -> dict[str, str]:
    """The config, flat, without secrets."""
    texts = {
        key: value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
        for key, value in flat(plain(without_secrets(config))).items()
    }
    return {key: text[:MOST_PARAMETER_LETTERS] for key, text in texts.items()}


# -- MLflow's file store: plain files, one folder a run --------------------------------------------


def write_mlflow(phases: Sequence[Tracked], folder: Path) -> list[Path]:
    """Runs in a file store; `mlflow ui --backend-store-uri FOLDER` shows them.
    Returns their folders."""
    with owned(folder / ".hpc_stres.lock", "this folder is being written", PATIENCE_SECONDS):
        home = folder / _experiment_id()
        if not (home / "meta.yaml").is_file():
            write_text(home / "meta.yaml", _as_yaml({
                "artifact_location": home.resolve().as_uri(), "creation_time": 0, "experiment_id": _experiment_id(),
                "last_update_time": 0, "lifecycle_stage": ACTIVE, "name": EXPERIMENT,
            }))  # fmt: skip
        return [_write_run(home, phase) for phase in phases]


def _experiment_id() -> str:
    """A number of 18 digits, as MLflow gives them."""
    return str(int(hashlib.sha256(EXPERIMENT.encode()).hexdigest(), 16))[:18]


def _write_run(home: Path, phase: Tracked) -> Path:
    """The run's folder, built beside and put in place as a whole."""
    final, fresh = home / phase.id, home / f".{phase.id}.new"
    shutil.rmtree(fresh, ignore_errors=True)
    times = phase.times_ms()
    for kind in ("artifacts", "metrics", "params", "tags"):
        (fresh / kind).mkdir(parents=True)
    for key in sorted({key for row in phase.rows for key in row} - NOT_FIGURES):
        pairs = [
            (time, row[key], row["step"])
            for time, row in zip(times, phase.rows, strict=True)
            if key in row
        ]
        numbers = [f"{time} {value!r} {step}\n" for time, value, step in pairs if _is_figure(value)]
        if numbers:
            _put(fresh / "metrics" / _name(key), "".join(numbers))
    last = phase.rows[-1]["step"]
    for key, value in phase.results.items():
        _put(fresh / "metrics" / _name(key), f"{times[-1]} {value!r} {last}\n")
    for kind, texts in (
        ("params", phase.parameters),
        ("tags", {**phase.tags, "mlflow.runName": phase.name}),
    ):
        for key, text in texts.items():
            _put(fresh / kind / _name(key), text)
    _put(fresh / "meta.yaml", _as_yaml(_run_meta(home, final, phase, times)))
    shutil.rmtree(final, ignore_errors=True)
    fresh.rename(final)
    return final


def _run_meta(home: Path, final: Path, phase: Tracked, times: Sequence[int]) -> dict[str, Any]:
    return {
        "artifact_uri": (final.resolve() / "artifacts").as_uri(), "end_time": times[-1] if phase.is_done else None,
        "entry_point_name": "", "experiment_id": home.name, "lifecycle_stage": ACTIVE, "run_id": phase.id,
        "run_name": phase.name, "run_uuid": phase.id, "source_name": "", "source_type": LOCAL_SOURCE,
        "source_version": "", "start_time": times[0], "status": FINISHED if phase.is_done else RUNNING, "tags": [],
        "user_id": "",
    }  # fmt: skip


def _put(path: Path, text: str) -> None:
    """A file of a folder that nobody sees yet: hundreds of small ones, each of which need not
    reach the disk alone."""
    path.write_text(text, encoding="utf-8")


def _as_yaml(value: dict[str, Any]) -> str:
    return str(yaml.safe_dump(value, allow_unicode=True))


def _is_figure(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _name(key: str) -> str:
    """A name that MLflow accepts: letters, digits, and _ - . space /; here no folders either."""
    return "".join(
        letter if (letter.isalnum() and letter.isascii()) or letter in "_-. " else "_"
        for letter in key
    )


# -- W&B: its own package writes its own format ----------------------------------------------------


def write_wandb(phases: Sequence[Tracked], folder: Path) -> list[Path]:
    """Offline runs that `wandb sync` uploads. Returns their folders."""
    try:
        wandb: Any = importlib.import_module("wandb")
    except ImportError:
        raise UserError(
            "W&B's offline format can be written by its own package only, and wandb is not installed\n"
            "Install it (pip install wandb), or use --to mlflow, which needs nothing."
        ) from None
    with owned(folder / ".hpc_stres.lock", "this folder is being written", PATIENCE_SECONDS):
        return [_write_offline(wandb, phase, folder) for phase in phases]


def _write_offline(wandb: Any, phase: Tracked, folder: Path) -> Path:
    short = phase.id[:16]
    earlier = [path for path in (folder / "wandb").glob(f"offline-run-*-{short}") if path.is_dir()]
    while any(time.strftime("%Y%m%d_%H%M%S") in path.name for path in earlier):
        time.sleep(0.1)  # folders are named by the second, and two in one would be one file
    quiet = wandb.Settings(
        silent=True, console="off", save_code=False, disable_git=True, x_disable_stats=True
    )
    run = wandb.init(
        mode="offline", project=EXPERIMENT, id=short, name=phase.name, dir=str(folder), settings=quiet,
        config=phase.parameters, tags=[phase.tags["phase"]], reinit="finish_previous",
    )  # fmt: skip
    home = Path(run.dir).parent
    for row in phase.rows:
        figures = {
            key: value for key, value in row.items() if key not in NOT_FIGURES and _is_figure(value)
        }
        run.log({**figures, **({"time": row["time"]} if "time" in row else {})}, step=row["step"])
    run.summary.update(phase.results)
    run.finish()
    # Only when the new one is whole: a sync that is killed leaves the old one.
    for path in earlier:
        if path != home:
            shutil.rmtree(path)
    print(f"{phase.name}: {len(phase.rows)} rows in {home}", file=sys.stderr)
    return home
