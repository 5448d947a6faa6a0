"""A phase of kind `fuse`: its product names parts and weights, its scores are made when the parts
have been tested.

Networks are tested after all phases are done, so a fusion has no scores of its own until then.
Its product holds the checksums of its parts' products: scores of a part that was made again
since are refused.
"""

import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from hpc_stres.config.loading import plain
from hpc_stres.config.schema import Config
from hpc_stres.errors import UserError
from hpc_stres.evaluation.fusion import l2_normalised
from hpc_stres.evaluation.fusion_weights import Chosen, choose
from hpc_stres.evaluation.groups import groups_of
from hpc_stres.evaluation.results import class_names, score_path
from hpc_stres.evaluation.scores import Scores
from hpc_stres.phases.fuse import FusePhase
from hpc_stres.run.experiment import claim_run_folder
from hpc_stres.run.ownership import owned
from hpc_stres.run.paths import RunPaths, read_sealed, write_sealed
from hpc_stres.run.product import read_done, write_product

if TYPE_CHECKING:
    from hpc_stres.parallel.world import World
    from hpc_stres.store.reader import Store

Array = NDArray[np.float64]
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
    phase = _phase(config, name)
    wanted = {"parts": parts, "weights": list(phase.shares), "weights_from": phase.weights_from}
    patience = LINK_PATIENCE_SECONDS if "SLURM_JOB_ID" in os.environ else 0.0
    with owned(paths.phase(name).lock, "this phase is being made", patience):
        done = read_done(paths.phase(name))
        # Weights belong to parts by their order, which a comparison of mappings does not see.
        before = {} if done is None else done.get("fuses", {})
        if before == wanted and list(before["parts"]) == list(parts):
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
    """The weighted mean of the parts' scores, each video's of unit length before.

    Of test videos, and of held-out ones where all parts have been tested on them.
    """
    paths = RunPaths(run_dir)
    again = f"Run `hpc-stres train --phase {name}` again, then evaluate."
    fuses: dict[str, Any] = read_sealed(_product(paths, name), again)
    for part, known in fuses["parts"].items():
        if _sum_of(paths, part) != known:
            raise UserError(
                f"{paths.phase(part).root}: phase {part} was made again after {name} was\n{again}"
            )
    tested = _load_parts(config.data.split, name, paths, fuses["parts"], of_held_out=False)
    held = _load_held_out(config, name, paths, fuses["parts"])
    words = " + ".join(
        f"{weight:.3g} {part}" for part, weight in zip(tested, fuses["weights"], strict=True)
    )
    if fuses.get("weights_from") != "held_out":
        weights = tuple(fuses["weights"])
        return _together(tested, held, weights, None, {"protocol": words, "fuses": fuses})
    if held is None:
        raise UserError(
            f"{paths.root}: not all parts of {name} have scores of held-out videos, which its weights are chosen on\n"
            "Set evaluation.validation_share before the training, or give the weights."
        )
    chosen = _chosen(config, held)
    print(f"{name}: {_chosen_words(chosen, list(held))}", file=sys.stderr, flush=True)
    words = f"{', '.join(held)} with weights chosen on held-out training recordings"
    made_by = {"protocol": words, "fuses": {**fuses, "chosen": chosen.facts}}
    return _together(tested, held, chosen.weights, chosen.unseen, made_by)


def _load_parts(
    split: int, name: str, paths: RunPaths, sums: dict[str, str], of_held_out: bool
) -> dict[str, Scores]:
    """Scores of the parts; refuses those of older products, and parts that were tested on
    different videos."""
    files = {part: score_path(paths, split, part, of_held_out) for part in sums}
    parts = {part: Scores.load(file) for part, file in files.items()}
    first = next(iter(parts.values()))
    for part, loaded in parts.items():
        if loaded.made_by.get("weights") != sums[part]:
            raise UserError(
                f"{files[part]}: scores of an older phase {part}\nEvaluate it again, then {name}."
            )
        if (
            loaded.ids != first.ids
            or loaded.classes != first.classes
            or not np.array_equal(loaded.labels, first.labels)
        ):
            raise UserError(
                f"{files[part]}: other videos, classes or labels than the other parts of {name}\n"
                "Evaluate all of them again."
            )
    return parts


def _load_held_out(
    config: Config, name: str, paths: RunPaths, sums: dict[str, str]
) -> dict[str, Scores] | None:
    """The parts' scores of held-out videos; none where there are no such videos, or a part
    does not know them."""
    files = [score_path(paths, config.data.split, part, held_out=True) for part in sums]
    if not config.evaluation.holds_out or not all(file.is_file() for file in files):
        return None
    return _load_parts(config.data.split, name, paths, sums, of_held_out=True)


def _chosen(config: Config, held: dict[str, Scores]) -> Chosen:
    first = next(iter(held.values()))
    # The recordings that held these videos out, which decide what may not be parted.
    return choose(
        [l2_normalised(part.logits) for part in held.values()],
        first.labels,
        groups_of(config.evaluation.groups, config.data, first.ids, class_names(first)).names,
    )


def _chosen_words(chosen: Chosen, parts: list[str]) -> str:
    facts = chosen.facts
    shares = " + ".join(
        f"{weight:.3g} {part}" for weight, part in zip(facts["weights"], parts, strict=True)
    )
    best = max(facts["parts_top1"])
    return (
        f"{shares}, chosen on {facts['videos']} held-out videos: {facts['cross_validated_top1']:.1f} % in "
        f"{facts['folds']} folds, the best part {best:.1f} %"
    )


def _together(
    tested: dict[str, Scores],
    held: dict[str, Scores] | None,
    weights: Sequence[float],
    unseen: Array | None,
    made_by: dict[str, Any],
) -> Scores:
    """One set of scores of all videos; `unseen` are held-out videos' that the weights
    were not chosen on."""
    protocols = dict.fromkeys(str(part.made_by.get("protocol")) for part in tested.values())
    words = "; ".join([*protocols, f"L2-normalised, {made_by['protocol']}"])
    of_tested = _mean(tested, weights)
    of_held = None if held is None else _mean(held, weights) if unseen is None else unseen
    made = [(next(iter(tested.values())), of_tested)]
    made += [] if held is None else [(next(iter(held.values())), np.asarray(of_held))]
    return Scores(
        [name for part, _ in made for name in part.ids],
        np.concatenate([part.labels for part, _ in made]),
        made[0][0].classes,
        np.concatenate([logits for _, logits in made]),
        {},
        {**made_by, "protocol": words},
    )


def _mean(parts: dict[str, Scores], weights: Sequence[float]) -> Array:
    return np.asarray(
        sum(
            weight * l2_normalised(part.logits)
            for weight, part in zip(weights, parts.values(), strict=True)
        )
    )
