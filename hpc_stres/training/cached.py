"""Features that a phase of kind `features` has left in the store: which they are,
and opening them."""

from pathlib import Path
from typing import Any

from hpc_stres.config.loading import plain
from hpc_stres.config.schema import Config
from hpc_stres.data.augment import Levels
from hpc_stres.errors import UserError
from hpc_stres.phases.features import FeaturesPhase
from hpc_stres.phases.train import train_phase
from hpc_stres.run.paths import RunPaths, read_sealed
from hpc_stres.run.product import checked_product, read_done
from hpc_stres.store import features as cache
from hpc_stres.store.location import store_folder

PRODUCT = "features.json"
# Version of what the numbers mean.
FORMAT = 1


def made_by(config: Config, name: str, paths: RunPaths) -> dict[str, Any]:
    """Everything that the numbers depend on beside the videos."""
    phase: FeaturesPhase = config.phase(name)
    networks = {}
    for stream, parent in phase.streams(config.phases).items():
        done = read_done(paths.phase(parent))
        if done is None:
            raise UserError(
                f"{paths.phase(parent).root}: phase {parent} is not finished\nTrain it first."
            )
        trained = train_phase(config, parent)
        trunk = {k: v for k, v in plain(trained.trunk(stream)).items() if k != "weights"}
        networks[stream] = {
            "weights": done["sha256"],
            "trunk": trunk,
            "levels": list(Levels.of_phase(trained)),
        }
    return {
        "format": FORMAT, "networks": networks, "frame_grid": phase.frame_grid,
        "short_video": phase.short_video, "antialias": phase.antialias,
        "precision": config.training.precision,
    }  # fmt: skip


def open_features(config: Config, name: str, run_dir: Path) -> cache.Features:
    """The features that a finished phase made, from the store that the config names."""
    paths = RunPaths(run_dir)
    checked_product(paths.phase(name))
    again = f"Make it again: hpc-stres train --phase {name} --run-dir {run_dir}"
    facts = read_sealed(paths.phase(name).root / PRODUCT, again)
    folder = cache.cache_folder(store_folder(config), made_by(config, name, paths))
    if folder.name != facts["cache"]:
        raise UserError(
            f"{paths.phase(name).root}: the phases that it starts from were trained again since\n"
            f"Remove {paths.phase(name).done}. {again}"
        )
    if not (folder / cache.INDEX).is_file():
        raise UserError(f"{folder}: this cache of features is not there any more\n{again}")
    return cache.Features(folder)
