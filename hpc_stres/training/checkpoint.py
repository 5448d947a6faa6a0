"""Checkpoints: whole, checksummed, the same whatever engine and world size wrote them.

checkpoints/step00000100/{weights,momentum}.safetensors   by parameter name
checkpoints/step00000100/meta.json                        step, config, checksums; written last
checkpoints/latest                                        name of the newest, written after it
"""

import os
import shutil
import sys
from collections.abc import Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from hpc_stres.errors import UserError
from hpc_stres.models.state import not_finite, some
from hpc_stres.models.weights import save_state
from hpc_stres.run.experiment import meta_checksum, read_meta
from hpc_stres.run.paths import PhasePaths, sha256, write_json, write_text

KEPT = 2
FILES = ("weights.safetensors", "momentum.safetensors")


@dataclass(frozen=True)
class Checkpoint:
    """What a run resumes from."""

    step: int
    weights: dict[str, Tensor]
    momentum: dict[str, Tensor]
    meta: dict[str, Any]


def save(
    paths: PhasePaths,
    step: int,
    weights: Mapping[str, Tensor],
    momentum: Mapping[str, Tensor],
    meta: dict[str, Any],
) -> None:
    """Write a checkpoint beside the others and point `latest` to it; then drop the ones
    that are too old."""
    target = paths.checkpoint(step)
    temporary = target.with_name(f".{target.name}.{os.getpid()}.tmp")
    try:
        temporary.mkdir(parents=True)
        save_state(weights, temporary / FILES[0])
        save_state(momentum, temporary / FILES[1])
        sums = {name: sha256(temporary / name) for name in FILES}
        whole = {**meta, "step": step, "sha256": sums}
        write_json(temporary / "meta.json", {**whole, "checksum": meta_checksum(whole)})
        shutil.rmtree(target, ignore_errors=True)
        temporary.rename(target)
        write_text(paths.latest, target.name + "\n")
    except OSError as error:
        raise UserError(
            f"{target}: the checkpoint could not be written: {error.strerror or error}\n"
            "The checkpoints before it are untouched; free some space and start again."
        ) from None
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    _drop_old(paths, step)


class Writer:
    """Writes checkpoints in a thread: the tensors are copied at once, the disk
    is not waited for."""

    def __init__(self, paths: PhasePaths) -> None:
        self.paths = paths
        self.pool = ThreadPoolExecutor(1, "checkpoint")
        self.pending: Future[None] | None = None

    def save(
        self,
        step: int,
        weights: Mapping[str, Tensor],
        momentum: Mapping[str, Tensor],
        meta: dict[str, Any],
    ) -> None:
        """Begin to write; raises what the save before it ran into."""
        self.wait()
        copies = [
            {name: t.detach().cpu().clone() for name, t in state.items()}
            for state in (weights, momentum)
        ]
        self.pending = self.pool.submit(save, self.paths, step, copies[0], copies[1], meta)

    def wait(self) -> None:
        """Until the disk has what was handed over; raises what went wrong."""
        pending, self.pending = self.pending, None
        if pending is not None:
            pending.result()


def _drop_old(paths: PhasePaths, step: int) -> None:
    """Keep the newest two up to the step just saved and the best of them; what a killed save left
    behind goes too.

    One of a later step is damaged or not finite, for the run has resumed from before it: it goes as
    well.
    """
    everything = sorted(paths.checkpoints.glob("step*"))
    past = [path for path in everything if path.name <= paths.checkpoint(step).name]
    keep = set(past[-KEPT:])
    losses = {path: read_meta(path).get("loss") for path in past}
    known = [path for path in past if losses[path] is not None]
    if known:
        keep.add(min(known, key=lambda path: float(losses[path] or 0.0)))
    for path in everything:
        if path not in keep:
            shutil.rmtree(path)
    for leftover in paths.checkpoints.glob(".step*.tmp"):
        if not leftover.name.endswith(f".{os.getpid()}.tmp"):
            shutil.rmtree(leftover, ignore_errors=True)


def newest(paths: PhasePaths, warn: bool = True) -> Checkpoint | None:
    """The newest good checkpoint. One that is damaged or not finite is named on stderr, and the one
    before is taken; where there is none before it, the phase begins anew, which is said as well."""
    candidates = sorted(paths.checkpoints.glob("step*"), reverse=True)
    for number, path in enumerate(candidates, 1):
        fault = find_damage(path)
        if fault is None:
            checkpoint = read(path)
            fault = find_nonsense(checkpoint)
            if fault is None:
                return checkpoint
        if warn:
            rest = "taking the checkpoint before it"
            rest = (
                rest
                if number < len(candidates)
                else "there is none before it: starting from the beginning"
            )
            print(f"{path}: {fault}; {rest}", file=sys.stderr)
    return None


def find_nonsense(checkpoint: Checkpoint) -> str | None:
    """Which of a checkpoint's numbers no training should resume from, or None."""
    for what, state in (("weights", checkpoint.weights), ("momentum", checkpoint.momentum)):
        bad = not_finite(state)
        if bad:
            return f"NaN or infinite {what} in {some(bad)}"
    return None


def find_damage(path: Path) -> str | None:
    """What is wrong with a checkpoint, or None."""
    meta = read_meta(path)
    if "sha256" not in meta:
        return "meta.json is missing or damaged"
    if _step_of_name(path) != meta["step"]:
        return f"it is of step {meta['step']}, not of the step that its name says"
    for name in FILES:
        try:
            if sha256(path / name) != meta["sha256"][name]:
                return f"{name} is damaged"
        except FileNotFoundError:
            return f"{name} is missing"
        except OSError as error:
            return f"{name} cannot be read: {error.strerror or error}"
    return None


def _step_of_name(path: Path) -> int | None:
    """The step in a checkpoint folder's name."""
    digits = path.name.removeprefix("step")
    return int(digits) if digits.isdigit() else None


def read(path: Path) -> Checkpoint:
    """One checkpoint whose checksums hold."""
    from safetensors.torch import load_file

    meta = read_meta(path)
    return Checkpoint(meta["step"], load_file(path / FILES[0]), load_file(path / FILES[1]), meta)
