"""What training made of the network: temporal kernels, and the motion signal where
the streams meet."""

import html
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from hpc_stres.config.recipe import ordered_phases
from hpc_stres.errors import UserError
from hpc_stres.evaluation.junctions import VIDEOS, strengths
from hpc_stres.evaluation.report.charts import table
from hpc_stres.evaluation.report.facts import Facts
from hpc_stres.models.weights import read_state
from hpc_stres.phases.train import TrainPhase
from hpc_stres.registry.phase import Phase
from hpc_stres.run.paths import PhasePaths

# The name that STM's added convolutions have in a unit; what they start as is an option.
ADDED = "temporal.weight"
# Other convolutions over time start as one over space that is spread evenly over the taps.
SPREAD = (1 / 3, 1 / 3, 1 / 3)


@dataclass(frozen=True)
class Kernel:
    """One temporal convolution: how far it is from its start, and the mean size of its taps."""

    key: str
    moved: float
    differences: float
    taps: tuple[float, ...]


def read_kernels(paths: PhasePaths, phase: Phase) -> list[Kernel]:
    """Every 1x1x3 convolution of a finished phase."""
    from hpc_stres.models.temporal import TAPS

    added = TAPS[getattr(getattr(phase, "model", None), "temporal_init", "identity")]
    convolutions = []
    for key, weight in read_state(paths.weights).items():
        if weight.ndim == 4 and tuple(weight.shape[2:]) == (3, 1):
            start = added if key.endswith(ADDED) else SPREAD
            convolutions.append(kernel(key, weight[..., 0].double().numpy(), start))
    return convolutions


def kernel(key: str, taps: NDArray[np.float64], start: Sequence[float]) -> Kernel:
    """Of (out, in, 3) weights, each of whose filters began as a multiple of `start`."""
    total = float(np.abs(taps).sum()) or 1.0
    shape = np.asarray(start) / np.linalg.norm(start)
    moved = float(np.abs(taps - (taps @ shape)[..., None] * shape).sum()) / total
    signs = np.sign(taps)
    differences = float(((signs.min(axis=2) < 0) & (signs.max(axis=2) > 0)).mean())
    mean = np.abs(taps).mean(axis=(0, 1))
    return Kernel(key, moved, differences, tuple(float(value) for value in mean))


def shows(phase: Phase, probe: str) -> bool:
    """Whether a phase trains a network that has this to show."""
    return isinstance(phase, TrainPhase) and probe in phase.family.probes


def kernels(facts: Facts) -> str:
    """How far each temporal kernel moved from its start, and how many of its filters
    became differences."""
    rows = []
    for name in ordered_phases(facts.config.phases):
        paths = facts.paths.phase(name)
        if not shows(facts.config.phases[name], "temporal_kernels") or not paths.done.is_file():
            continue
        for one in read_kernels(paths, facts.config.phases[name]):
            moved, differences = f"{100 * one.moved:.1f} %", f"{100 * one.differences:.1f} %"
            rows.append(
                [
                    facts.shown(name),
                    f"<code>{html.escape(one.key)}</code>",
                    _taps(one),
                    moved,
                    differences,
                ]
            )
    if not rows:
        return "<p>No finished phase of this run has temporal convolutions.</p>"
    note = (
        "<p>A temporal filter starts as an average, a third at each tap, or as the identity or what its recipe says. "
        "<em>Taps</em>: mean size of the weights for the time before, now and after. <em>Moved</em>: share of the "
        "weight that is no multiple of the start any more (no longer equal over the taps; beside the identity's "
        "centre). <em>Differences</em>: filters whose taps differ in sign.</p>"
    )
    return note + table(["phase", "kernel", "taps", "moved", "differences"], rows, numbers=3)


def _taps(one: Kernel) -> str:
    most = max(one.taps) or 1.0
    bars = "".join(
        f'<rect x="{14 * n}" y="{20 - 20 * tap / most:.1f}" width="11" height="{20 * tap / most:.1f}" '
        f'style="fill:var(--s{0 if n == 1 else 1})"/>'
        for n, tap in enumerate(one.taps)
    )
    label = "taps " + ", ".join(f"{tap:.2g}" for tap in one.taps)
    return f'<svg viewBox="0 0 39 20" style="width:2.6rem;height:1.3rem" role="img" aria-label="{label}">{bars}</svg>'


def junctions(facts: Facts) -> str:
    """How large the motion signal is where it enters the appearance stream."""
    if facts.store is None:
        return f"<p>Not measured: {html.escape(facts.no_store)}</p>"
    rows = []
    for name in ordered_phases(facts.config.phases):
        if (
            not shows(facts.config.phases[name], "junctions")
            or not facts.paths.phase(name).done.is_file()
        ):
            continue
        try:
            measured = strengths(facts.config.data, facts.paths.root, name, facts.store)
        except UserError as error:
            return f"<p>Not measured: {html.escape(str(error).splitlines()[0])}</p>"
        for one in measured:
            numbers = [f"{one.motion:.3g}", f"{one.appearance:.3g}", f"{one.share:.2f}"]
            rows.append([facts.shown(name), f"conv{one.stage + 1}_x", *numbers])
    if not rows:
        return "<p>No finished phase of this run joins its streams.</p>"
    note = (
        f"<p>Root mean square of both signals at each junction, on one clip of each of {VIDEOS} test videos. A share "
        "of 1 means that what comes from motion is as large as what it is joined to.</p>"
    )
    return note + table(["phase", "junction", "motion", "appearance", "share"], rows, numbers=2)
