"""What a finished phase says of itself, and the config that its weights may be used with.

The one place where evaluation reads done.json.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hpc_stres.config.loading import flat, load_run, plain
from hpc_stres.config.schema import Config, EvaluationConfig
from hpc_stres.errors import ConfigError, UserError
from hpc_stres.phases.train import TrainPhase
from hpc_stres.registry.phase import Phase
from hpc_stres.run.paths import RunPaths
from hpc_stres.run.product import read_done


@dataclass(frozen=True)
class Finished:
    """Checksum of a phase's weights, the classes that its scores are of, and by what
    videos were held out.

    The last is empty where none were, and none where a phase does not say its config: it may be
    trained on nothing.
    """

    weights_sha256: str
    classes: list[str]
    held_out_by: str | None = ""


def read_finished(paths: RunPaths, phase: str) -> Finished:
    """done.json of a phase; a missing or damaged one is a UserError."""
    done = read_done(paths.phase(phase))
    if done is None:
        raise UserError(
            f"{paths.phase(phase).root}: phase {phase} is not finished\nTrain it first: --phase {phase}"
        )
    known = _held_out_by(done["config"].get("evaluation", {})) if "config" in done else None
    return Finished(done["sha256"], list(done.get("classes", ())), known)


def held_out_by(evaluation: EvaluationConfig) -> str:
    """What decides which training videos are held out; empty where none are."""
    return _held_out_by(plain(evaluation))


def _held_out_by(evaluation: Mapping[str, Any]) -> str:
    share, column = evaluation.get("validation_share", 0.0), evaluation.get("validation_column")
    if column is not None:
        return f"the column {column}"
    return f"a share of {share:g} by {evaluation.get('groups', 'auto')}" if share else ""


def load_trained(run_dir: Path, overrides: list[str]) -> Config:
    """The config of a run for the use of its weights; refuses overrides that they were
    not trained for."""
    trained, config = load_run(run_dir), load_run(run_dir, overrides)
    changed = ["data.split"] if config.data.split != trained.data.split else []
    if held_out_by(config.evaluation) != held_out_by(trained.evaluation):
        key = "validation_column" if config.evaluation.validation_column else "validation_share"
        changed.append(f"evaluation.{key}")
    changed += ["data.labels"] if config.data.labels != trained.data.labels else []
    for name, phase in trained.phases.items():
        changed += _changed_options(config, name, phase)
    if changed:
        raise ConfigError(
            f"--set {changed[0]}: the weights in {run_dir} were trained with another value\n"
            "A split's test videos train another split; another network reads weights wrongly. Leave it as it is."
        )
    return config


def _changed_options(config: Config, name: str, trained: Phase) -> list[str]:
    """Options of a phase that are part of its product and have another value now, under the
    keys that gave it."""
    now = config.phases[name]
    if not isinstance(now, TrainPhase) or not isinstance(trained, TrainPhase):
        return [] if now == trained else [f"phases.{name}"]
    before, after = flat(plain(trained.model)), flat(plain(now.model))
    keys = [key for key in {**before, **after} if before.get(key) != after.get(key)]
    return [
        config.source_of(name, f"model.{key}") or f"phases.{name}.model.{key}"
        for key in keys
        if not key.endswith(".weights")
    ]
