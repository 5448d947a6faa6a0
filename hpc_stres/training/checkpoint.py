"""Checkpoints: whole, checksummed, the same whatever engine and world size wrote them.

checkpoints/step00000100/{weights,momentum}.safetensors   by parameter name
checkpoints/step00000100/meta.json                        step, config, checksums; written last
checkpoints/latest                                        name of the newest, written after it
"""

import hashlib
import json
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
from hpc_stres.models.weights import save_state
from hpc_stres.runpaths import PhasePaths, sha256, write_json, write_text

KEPT = 2
FILES = ("weights.safetensors", "momentum.safetensors")


@dataclass(frozen=True)
class Checkpoint:
    """What a run goes on from."""

    step: int
    weights: dict[str, Tensor]
    momentum: dict[str, Tensor]
    meta: dict[str, Any]


def save(
    paths: PhasePaths, step: int, weights: Mapping[str, Tensor], momentum: Mapping[str, Tensor], meta: dict[str, Any]
) -> None:
    """Write a checkpoint beside the others and point `latest` to it; then drop the ones that are too old."""
    target = paths.checkpoint(step)
    temporary = target.with_name(f".{target.name}.{os.getpid()}.tmp")
    try:
        temporary.mkdir(parents=True)
        save_state(weights, temporary / FILES[0])
        save_state(momentum, temporary / FILES[1])
        sums = {name: sha256(temporary / name) for name in FILES}
        whole = {**meta, "step": step, "sha256": sums}
        write_json(temporary / "meta.json", {**whole, "checksum": _checksum(whole)})
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
    _drop_old(paths)


class Writer:
    """Writes checkpoints in a thread: the tensors are copied at once, the disk is not waited for."""

    def __init__(self, paths: PhasePaths) -> None:
        self.paths = paths
        self.pool = ThreadPoolExecutor(1, "checkpoint")
        self.pending: Future[None] | None = None

    def save(
        self, step: int, weights: Mapping[str, Tensor], momentum: Mapping[str, Tensor], meta: dict[str, Any]
    ) -> None:
        """Begin to write; raises what the save before it ran into."""
        self.wait()
        copies = [{name: t.detach().cpu().clone() for name, t in state.items()} for state in (weights, momentum)]
        self.pending = self.pool.submit(save, self.paths, step, copies[0], copies[1], meta)

    def wait(self) -> None:
        """Until the disk has what was handed over; raises what went wrong."""
        pending, self.pending = self.pending, None
        if pending is not None:
            pending.result()


def _drop_old(paths: PhasePaths) -> None:
    """Keep the newest two and the best; what a killed save left behind goes too."""
    found = sorted(paths.checkpoints.glob("step*"))
    keep = set(found[-KEPT:])
    losses = {path: _meta(path).get("loss", float("inf")) for path in found}
    if losses:
        keep.add(min(found, key=lambda path: losses[path]))
    for path in found:
        if path not in keep:
            shutil.rmtree(path)
    for leftover in paths.checkpoints.glob(".step*.tmp"):
        if not leftover.name.endswith(f".{os.getpid()}.tmp"):
            shutil.rmtree(leftover, ignore_errors=True)


def _meta(path: Path) -> dict[str, Any]:
    """A checkpoint's meta.json; empty when it is damaged, which `find_damage` says aloud."""
    try:
        meta = dict(json.loads((path / "meta.json").read_text(encoding="utf-8")))
    except (OSError, ValueError):
        return {}
    return meta if meta.pop("checksum", None) == _checksum(meta) else {}


def _checksum(meta: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(meta, sort_keys=True).encode()).hexdigest()


def newest(paths: PhasePaths, warn: bool = True) -> Checkpoint | None:
    """The newest whole checkpoint; a damaged one is named on stderr and the one before is taken."""
    for path in sorted(paths.checkpoints.glob("step*"), reverse=True):
        damage = find_damage(path)
        if damage is None:
            return read(path)
        if warn:
            print(f"{path}: {damage}; taking the checkpoint before it", file=sys.stderr)
    return None


def find_damage(path: Path) -> str | None:
    """What is wrong with a checkpoint, or None."""
    meta = _meta(path)
    if "sha256" not in meta:
        return "meta.json is missing or damaged"
    for name in FILES:
        if not (path / name).is_file():
            return f"{name} is missing"
        if sha256(path / name) != meta["sha256"][name]:
            return f"{name} is damaged"
    return None


def read(path: Path) -> Checkpoint:
    """One checkpoint whose checksums hold."""
    from safetensors.torch import load_file

    meta = _meta(path)
    return Checkpoint(meta["step"], load_file(path / FILES[0]), load_file(path / FILES[1]), meta)
