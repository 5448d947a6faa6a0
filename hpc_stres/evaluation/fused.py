"""A phase of kind `fuse`: its product names parts and weights, its scores are made when the parts have been tested.

Networks are tested after all phases are done, so a fusion has no scores of its own until then. Its product holds the
checksums of its parts' products: scores of a part that was made again since are refused.
"""

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from hpc_stres.config.loading import plain
from hpc_stres.config.schema import Config
from hpc_stres.errors import UserError
from hpc_stres.evaluation.fusion import l2_normalised
from hpc_stres.evaluation.scores import Scores
from hpc_stres.phases.fuse import FusePhase
from hpc_stres.run.experiment import claim_run_folder
from hpc_stres.run.ownership import owned
from hpc_stres.run.paths import RunPaths, read_sealed, write_sealed
from hpc_stres.run.product import read_done, write_product

if TYPE_CHECKING:
    from hpc_stres.parallel.world import World
    from hpc_stres.store.reader import Store

# Under Slurm the next link of a chain may start while the one before it still writes.
LINK_PATIENCE_SECONDS = 60.0


def run(
    config: Config, name: str, run_dir: Path, world: "World", allowed: tuple[str, ...] = ()
) -> bool:
    """Write down what is fused; returns whether the phase is finished, which it always is."""
    if not world.is_first:
        return True
    claim_run_folder(config, run_dir, allowed)
    paths = RunPaths(run_dir)
    parts = {part: _sum_of(paths, part) for part in config.phases[name].starts_from}
    wanted = {"parts": parts, "weights": list(_phase(config, name).shares)}
    patience = LINK_PATIENCE_SECONDS if "SLURM_JOB_ID" in os.environ else 0.0
    with owned(paths.phase(name).lock, "this phase is being made", patience):
        done = read_done(paths.phase(name))
        if done is not None and done.get("fuses") == wanted:
            print(f"{name}: done already")
            return True
        write_sealed(_product(paths, name), wanted)
        write_product(run_dir, name, ["fuse.json"], {"config": plain(config), "fuses": wanted})
    return True


def _phase(config: Config, name: str) -> FusePhase:
    phase: FusePhase = config.phase(name)
    return phase


def _product(paths: RunPaths, name: str) -> Path:
    return paths.phase(name).root / "fuse.json"


def _sum_of(paths: RunPaths, part: str) -> str:
    """Checksum of a finished phase's product."""
    done = read_done(paths.phase(part))
    if done is None:
        raise UserError(
            f"{paths.phase(part).root}: phase {part} is not finished\nRun it first: --phase {part}"
        )
    return str(done["sha256"])


def scores(config: Config, name: str, run_dir: Path, store: "Store") -> Scores:
    """The weighted mean of the parts' scores, each video's of unit length before."""
    paths, split = RunPaths(run_dir), config.data.split
    again = f"Run `hpc-stres train --phase {name}` again, then evaluate."
    fuses: dict[str, Any] = read_sealed(_product(paths, name), again)
    parts = {part: Scores.load(paths.scores(split, part)) for part in fuses["parts"]}
    for part, loaded in parts.items():
        if _sum_of(paths, part) != fuses["parts"][part]:
            raise UserError(
                f"{paths.phase(part).root}: phase {part} was made again after {name} was\n{again}"
            )
        if loaded.made_by.get("weights") != fuses["parts"][part]:
            raise UserError(
                f"{paths.scores(split, part)}: scores of an older phase {part}\nEvaluate it again, then {name}."
            )
    first = next(iter(parts.values()))
    for part, other in parts.items():
        if (
            other.ids != first.ids
            or other.classes != first.classes
            or not np.array_equal(other.labels, first.labels)
        ):
            raise UserError(
                f"{paths.scores(split, part)}: other videos, classes or labels than the other parts of {name}\n"
                "Evaluate all of them again."
            )
    logits = sum(
        weight * l2_normalised(part.logits)
        for weight, part in zip(fuses["weights"], parts.values(), strict=True)
    )
    shares = " + ".join(
        f"{weight:.3g} {part}" for part, weight in zip(parts, fuses["weights"], strict=True)
    )
    protocols = list(dict.fromkeys(str(part.made_by.get("protocol")) for part in parts.values()))
    words = "; ".join([*protocols, f"L2-normalised, {shares}"])
    return Scores(
        first.ids,
        first.labels,
        first.classes,
        np.asarray(logits),
        {},
        {"protocol": words, "fuses": fuses},
    )
