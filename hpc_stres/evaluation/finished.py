"""What a finished phase says of itself, and the config that its weights may be used with.

The one place where evaluation reads done.json.
"""

from dataclasses import dataclass
from pathlib import Path

from hpc_stres.config.loading import load_run
from hpc_stres.config.schema import Config
from hpc_stres.errors import ConfigError, UserError
from hpc_stres.run.paths import RunPaths
from hpc_stres.run.product import read_done


@dataclass(frozen=True)
class Finished:
    """Checksum of a phase's weights, and the classes that its scores are of."""

    weights_sha256: str
    classes: list[str]


def read_finished(paths: RunPaths, phase: str) -> Finished:
    """done.json of a phase; a missing or damaged one is a UserError."""
    done = read_done(paths.phase(phase))
    if done is None:
        raise UserError(f"{paths.phase(phase).root}: phase {phase} is not finished\nTrain it first: --phase {phase}")
    return Finished(done["sha256"], list(done["classes"]))


# Options of a phase that are part of its network.
NETWORK_OPTIONS = ("model", "temporal_pool", "temporal_padding")


def load_trained(run_dir: Path, overrides: list[str]) -> Config:
    """The config of a run for the use of its weights; refuses overrides that they were not trained for."""
    trained, config = load_run(run_dir), load_run(run_dir, overrides)
    changed = ["data.split"] if config.data.split != trained.data.split else []
    sizes = ("depth", "stages", "width", "variant")
    changed += [f"model.{key}" for key in sizes if getattr(config.model, key) != getattr(trained.model, key)]
    for name, phase in trained.phases.items():
        other = config.phases[name]
        changed += [f"phases.{name}.{k}" for k in NETWORK_OPTIONS if getattr(other, k) != getattr(phase, k)]
    if changed:
        raise ConfigError(
            f"--set {changed[0]}: the weights in {run_dir} were trained with another value\n"
            "A split's test videos train another split; another network reads weights wrongly. Leave it as it is."
        )
    return config
