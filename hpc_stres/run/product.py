"""What a phase leaves behind, read in one place: done.json, the weights whose checksum it holds,
metrics. Pure, no torch.

done.json carries its own checksum and the weights' one, so that a bit that changed in either is
noticed by whoever reads them: the launcher, a later phase, evaluation, export.
"""

import json
import os
import sys
from collections.abc import Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

from hpc_stres.errors import UserError
from hpc_stres.run.paths import (
    PhasePaths,
    RunPaths,
    checksum,
    read_sealed,
    sealed,
    sha256,
    unsealed,
    write_sealed,
)

_KEYS = {"step": int, "sha256": str, "phase": str, "classes": list, "config": dict}
_NEEDED = ("step", "sha256")


def write_done(paths: PhasePaths, done: dict[str, Any]) -> None:
    """done.json, sealed. The weights must be on the disk before it."""
    write_sealed(paths.done, done)


def read_done(paths: PhasePaths) -> dict[str, Any] | None:
    """What a finished phase says of itself: phase, step, sha256 of its weights, classes, config,
    requests.

    None where the phase is not finished; a UserError where done.json is damaged or of version 0.2.
    """
    if not os.path.lexists(paths.done):
        return None
    done = read_sealed(paths.done, _remedy(paths))
    wrong = [
        key
        for key, kind in _KEYS.items()
        if (key in done or key in _NEEDED) and not isinstance(done.get(key), kind)
    ]
    if wrong:
        raise UserError(
            f"{paths.done}: {wrong[0]} is missing or of the wrong type\n{_remedy(paths)}"
        )
    return done


def write_product(run_dir: Path, phase: str, files: Sequence[str], facts: dict[str, Any]) -> None:
    """done.json of a phase that is not trained step by step: checksums of its files, and what
    else is known of it."""
    paths = RunPaths(run_dir).phase(phase)
    sums = {name: sha256(paths.root / name) for name in files}
    write_done(
        paths, {"phase": phase, "step": 1, "sha256": checksum(sums), "products": sums, **facts}
    )


def checked_product(paths: PhasePaths) -> dict[str, Any]:
    """done.json of such a phase; refuses files that are not those whose checksums it holds."""
    done = read_done(paths)
    if done is None:
        raise UserError(
            f"{paths.root}: this phase is not finished\nRun it first: --phase {paths.root.name}"
        )
    for name, expected in dict(done.get("products", {})).items():
        path = paths.root / name
        if not path.is_file() or sha256(path) != expected:
            raise UserError(
                f"{path}: this is not the file that the phase finished with\n{_remedy(paths)}"
            )
    return done


def _remedy(paths: PhasePaths) -> str:
    again = f"hpc-stres train --phase {paths.root.name}"
    return f"Remove it and run `{again} ...` again: that resumes from the last checkpoint and writes it anew."


def phase_is_done(paths: PhasePaths, steps: int) -> bool:
    """Whether a phase is finished, was trained for at least so many steps, and its product is
    there as it was made.

    By checksums alone: a copied run is the run, whatever times its files have.
    """
    done = read_done(paths)
    if done is None or int(done["step"]) < steps:
        return False
    wrong = changed_files(paths, done)
    for path in wrong:
        print(
            f"{path}: missing, or not what the phase finished with; the phase is not done",
            file=sys.stderr,
        )
    return not wrong


def changed_files(paths: PhasePaths, done: Mapping[str, Any]) -> list[Path]:
    """Files of a finished phase that are missing or are not those that its done.json knows
    the checksums of."""
    sums = done.get("products")
    expected = sums if isinstance(sums, dict) else {paths.weights.name: done["sha256"]}
    return [
        paths.root / name
        for name, digest in expected.items()
        if _digest_now(paths.root / name) != digest
    ]


def _digest_now(path: Path) -> str | None:
    """SHA-256 of a file as it is; none where it cannot be read. Read once for as long as the
    file stays the same."""
    try:
        stat = path.stat()
        return _digest_of(path, stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns, stat.st_ino)
    except OSError:
        return None


@lru_cache(maxsize=256)
def _digest_of(path: Path, *stamp: int) -> str:
    return sha256(path)


def checked_weights(paths: PhasePaths) -> Path:
    """The weights of a finished phase; refuses missing, unfinished and damaged ones."""
    done = read_done(paths)
    if done is None:
        name = paths.root.name
        raise UserError(
            f"{paths.root}: phase {name} is not finished\nTrain it first: --phase {name}"
        )
    if not paths.weights.is_file() or sha256(paths.weights) != done["sha256"]:
        raise UserError(
            f"{paths.weights}: these are not the weights that phase {paths.root.name} finished with\n"
            f"Remove {paths.done} and train the phase again; its checkpoints are kept."
        )
    return paths.weights


def metrics_line(row: dict[str, Any]) -> str:
    """A row of metrics.jsonl with its checksum. What is not finite never gets so far."""
    return json.dumps(sealed(row), allow_nan=False) + "\n"


def read_metrics(paths: PhasePaths) -> list[dict[str, Any]]:
    """Rows of metrics.jsonl. A last line torn by a kill is left out, a damaged one is left out and
    named on stderr."""
    rows, faults = sift_metrics(paths)
    for fault in faults:
        print(fault, file=sys.stderr)
    return rows


def sift_metrics(paths: PhasePaths) -> tuple[list[dict[str, Any]], list[str]]:
    """The good rows of metrics.jsonl, and what is wrong with each of the others."""
    if not paths.metrics.is_file():
        return [], []
    lines = paths.metrics.read_bytes().split(b"\n")
    rows, faults = [], []
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            rows.append(unsealed(json.loads(line.decode("utf-8")), f"{paths.metrics}:{number}", ""))
        except (ValueError, UserError) as error:
            # Without its newline a line was being written when its writer died; that is no damage.
            if number < len(lines):
                what = (
                    str(error)
                    if isinstance(error, UserError)
                    else f"{paths.metrics}:{number}: damaged"
                )
                faults.append(what.splitlines()[0] + "; this row is left out")
    return rows, faults


def finished_weights(paths: RunPaths, parent: str) -> Path:
    """Weights of a phase that is done; refuses one that is missing, unfinished or changed since."""
    return checked_weights(paths.phase(parent))
