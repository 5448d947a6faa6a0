"""The hashes of weights that a training leaves in metrics.jsonl, and what differs between two
trainings. Pure."""

import json
from dataclasses import dataclass
from typing import Any

from hpc_stres.errors import UserError
from hpc_stres.run.paths import PhasePaths, RunPaths
from hpc_stres.run.product import read_metrics

# What bits depend on outside the config, by its name in provenance.json.
NEEDED = ("torch", "numpy", "nvidia-dali-cuda120", "nvidia-dali-cuda130")


@dataclass(frozen=True)
class Comparison:
    """How far two trainings agree: the last step at which all is equal, and the first at
    which it is not."""

    equal: int | None
    different: int | None
    tensors: tuple[str, ...] = ()

    def explain(self) -> str:
        """One line."""
        if self.different is None:
            return f"identical to step {self.equal}"
        names = ", ".join(self.tensors[:3])
        more = f" and {len(self.tensors) - 3} more" if len(self.tensors) > 3 else ""
        before = (
            "from the first hash on" if self.equal is None else f"identical to step {self.equal}"
        )
        return f"{before}; at step {self.different} these differ: {names}{more}"


def hashes_of(paths: PhasePaths) -> dict[int, dict[str, Any]]:
    """Lines of metrics.jsonl that have a hash, by step."""
    return {row["step"]: row for row in read_metrics(paths) if "weights_sha256" in row}


def compare(theirs: dict[int, dict[str, Any]], ours: dict[int, dict[str, Any]]) -> Comparison:
    """Step by step, at the steps that both have."""
    equal = None
    for step in sorted(theirs.keys() & ours.keys()):
        if theirs[step]["weights_sha256"] != ours[step]["weights_sha256"]:
            one, other = theirs[step].get("tensors", {}), ours[step].get("tensors", {})
            names = [n for n in {**one, **other} if one.get(n) != other.get(n)]
            return Comparison(equal, step, tuple(names) or ("the weights",))
        equal = step
    return Comparison(equal, None)


def checked_hashes(paths: PhasePaths, steps: int) -> dict[int, dict[str, Any]]:
    """The hashes up to a step; refuses a phase that has none, with the steps at which it has."""
    everything = hashes_of(paths)
    known = {step: row for step, row in everything.items() if step <= steps}
    if not known:
        at = ", ".join(map(str, sorted(everything)[:3]))
        remedy = (
            f"The first are at the steps {at}: give --steps so many."
            if everything
            else "It was trained without training.reproducible=bitwise (or training.hash_every_steps)."
        )
        raise UserError(f"{paths.metrics}: no hash of weights up to step {steps}\n{remedy}")
    return known


def provenance_of(paths: RunPaths) -> dict[str, Any]:
    """provenance.json; empty where it is missing or cannot be read."""
    try:
        return dict(json.loads(paths.provenance.read_text(encoding="utf-8")))
    except (OSError, ValueError):
        return {}


def unlike(theirs: dict[str, Any], ours: dict[str, Any]) -> list[str]:
    """What must be equal for equal bits and is not: versions of packages, and
    the kernels' level."""
    lines = []
    for name in NEEDED:
        one, other = (side.get("packages", {}).get(name) for side in (theirs, ours))
        if one != other:
            lines.append(f"{name}: {one or 'none'} there, {other or 'none'} here")
    one, other = theirs.get("kernels", {}), ours.get("kernels", {})
    lines += [
        f"{name}: {one.get(name, 'unknown')} there, {other.get(name, 'unknown')} here"
        for name in {**one, **other}
        if one.get(name) != other.get(name)
    ]
    return lines
