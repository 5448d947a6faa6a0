"""What a recipe needs, counted without torch and before anything is made: arithmetic, and bytes
of a run folder."""

import math
from collections.abc import Sequence

from hpc_stres.config.recipe import Phases
from hpc_stres.config.schema import Config
from hpc_stres.models import counting
from hpc_stres.models.layer_table import DEPTHS
from hpc_stres.phases.train import TrainPhase

# Forward and backward together, and a multiply-add is two operations.
FLOP_OF_A_MULTIPLY_ADD = 3 * 2
# Far above what a core of today does with these networks.
MOST_FLOP_A_CORE = 1e11
# Weights, and three checkpoints of weights and momentum: two are kept while a third is written.
COPIES = 1 + 3 * 2


def sizes_of(phases: Phases, name: str, classes: int) -> counting.Sizes | None:
    """What a phase's network is counted from; none where it is not one that is
    counted by arithmetic.

    Where its streams have different ResNets, both count as the larger: what is asked
    for is then enough.
    """
    phase = phases[name]
    if not isinstance(phase, TrainPhase) or phase.family.counted is None:
        return None
    trunks = [phase.trunk(stream) for stream in phase.family.streams]
    known = [(tuple(t.stages or DEPTHS[t.depth]), t.width or 64) for t in trunks if t.depth]
    if len(known) < len(trunks):  # a trunk of another family
        return None
    stages, width = max(known, key=lambda sizes: sum(sizes[0]) * sizes[1] ** 2)
    return counting.Sizes(
        model=phase.model.name, stages=stages, width=width, variant=trunks[0].variant or "torchvision",
        classes=classes, side=phase.side, chunks=phase.clips.chunks,
    )  # fmt: skip


def run_bytes(config: Config, classes: int, phases: Sequence[str] | None = None) -> float:
    """Bytes that a run folder takes at most: of each phase its weights and checkpoints."""
    every = list(config.phases) if phases is None else phases
    known = [
        sizes for name in every if (sizes := sizes_of(config.phases, name, classes)) is not None
    ]
    bytes_of_number = 8 if config.training.precision == "float64" else 4
    return math.fsum(counting.parameters(sizes) * bytes_of_number * COPIES for sizes in known)


def flop(config: Config, phases: Sequence[str], classes: int) -> float:
    """Operations of training some phases."""
    total = 0.0
    for name in phases:
        sizes = sizes_of(config.phases, name, classes)
        if sizes is not None:
            videos = config.steps(name) * config.phase(name).optimise.global_batch
            total += FLOP_OF_A_MULTIPLY_ADD * counting.multiply_adds(sizes) * videos
    return total
