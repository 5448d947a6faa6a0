"""What `weights` in a config may name, found and checked: a file, a published file by name, a
phase, a run, an export. Pure, no torch."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hpc_stres.config.places import is_published_name
from hpc_stres.errors import UserError
from hpc_stres.run.paths import PhasePaths, RunPaths, read_sealed, sha256, unsealed
from hpc_stres.run.product import checked_weights, read_done

EXPORT_MANIFEST, EXPORT_WEIGHTS = "export.json", "weights.safetensors"
# The same in the folder to share: what export.json says stands under the key.
HUB_CONFIG, HUB_WEIGHTS, HUB_KEY = "config.json", "model.safetensors", "hpc_stres"
AGAIN = "Export the phase again: hpc-stres export --run-dir D --out DIR"


@dataclass(frozen=True)
class Start:
    """A file of weights to start from."""

    path: Path
    classes: list[str] | None
    """The classes that its classifier tells apart, in its order; none: the file does not say."""


def published_path(source: str, root: str) -> Path:
    """Where a published file is after `hpc-stres weights NAME`."""
    return Path(root) / "weights" / f"{source}.safetensors"


def find_start(source: str, phase: str, model: str, root: str) -> Start:
    """The file that a phase (of this name, training this model) starts from; refuses what is not
    there or damaged."""
    if is_published_name(source):
        path = published_path(source, root)
        if not path.is_file():
            raise UserError(
                f"weights: {source}: no such file or run, and as a published file it is not here yet: {path}\n"
                f"On a machine with a network: hpc-stres weights {source} --to '{path.parent}'"
            )
        return Start(path, None)
    path = Path(source)
    if path.is_dir():
        return _from_folder(path, phase, model)
    beside = PhasePaths(path.parent)
    # A finished phase knows the checksum of its weights, whether its folder or the
    # file in it is named.
    if path == beside.weights and beside.done.exists():
        return _from_phase(beside)
    if path.name in (EXPORT_WEIGHTS, HUB_WEIGHTS):
        export = _read_export(path.parent)
        if export is not None and export[1] == path:
            return _from_export(*export)
    if not path.is_file():
        raise UserError(
            f"{path}: no such weights file, run or export\n"
            "`hpc-stres weights` says where pretrained files come from; without any: model.weights: null"
        )
    return Start(path, None)


def _from_folder(path: Path, phase: str, model: str) -> Start:
    if PhasePaths(path).done.exists():
        return _from_phase(PhasePaths(path))
    export = _read_export(path)
    if export is not None:
        return _from_export(*export)
    if RunPaths(path).config.is_file():
        return _from_phase(_phase_of_run(path, phase, model))
    if path.parent.name == "phases":
        return _from_phase(PhasePaths(path))  # refused: it is not finished
    raise UserError(
        f"{path}: neither a run, nor a phase of one, nor an exported model\nGive one of these, or a file."
    )


def _from_phase(paths: PhasePaths) -> Start:
    done = read_done(paths)
    path = checked_weights(paths)
    assert done is not None
    return Start(path, _texts(done.get("classes")))


def _phase_of_run(run_dir: Path, phase: str, model: str) -> PhasePaths:
    """The phase of the same name, else the one that trained the same model."""
    run = RunPaths(run_dir)
    if run.phase(phase).done.exists():
        return run.phase(phase)
    finished = [path.parent for path in sorted((run_dir / "phases").glob("*/done.json"))]
    same = [path for path in finished if _model_of(path) == model]
    if len(same) == 1:
        return PhasePaths(same[0])
    names = ", ".join(path.name for path in finished) or "none"
    raise UserError(
        f"{run_dir}: which phase should {phase} start from? None of that name is finished, of its finished phases "
        f"({names}) {len(same) or 'none'} trained {model}\nName one: {run_dir}/phases/NAME"
    )


def _model_of(folder: Path) -> str | None:
    """The model that a finished phase trained, as its own config says."""
    done = read_done(PhasePaths(folder)) or {}
    own: Any = done.get("config", {}).get("phases", {}).get(folder.name, {}).get("model")
    return own.get("name") if isinstance(own, dict) else own


def _read_export(folder: Path) -> tuple[dict[str, Any], Path] | None:
    """What an export says of itself, and its weights; none where a folder is none. The folder to
    share that lies in one is one as well."""
    if (folder / EXPORT_MANIFEST).is_file():
        return read_sealed(folder / EXPORT_MANIFEST, AGAIN), folder / EXPORT_WEIGHTS
    try:
        shared = json.loads((folder / HUB_CONFIG).read_bytes())
    except (OSError, ValueError):
        return None  # no such file, or somebody else's
    if not isinstance(shared, dict) or HUB_KEY not in shared:
        return None
    return unsealed(shared[HUB_KEY], str(folder / HUB_CONFIG), AGAIN), folder / HUB_WEIGHTS


def _from_export(export: dict[str, Any], path: Path) -> Start:
    if not path.is_file() or export.get("files", {}).get(EXPORT_WEIGHTS) != sha256(path):
        raise UserError(
            f"{path}: missing, or not what was exported: its checksum is wrong\n{AGAIN}"
        )
    return Start(path, _texts(export.get("classes")))


def frames_of_export(source: Path) -> tuple[int, int] | None:
    """Short side of the frames that an export was trained on, and the crop of them; none where the
    source is no export."""
    if not source.exists():
        return None
    read = _read_export(source if source.is_dir() else source.parent)
    if read is None or (source.is_file() and source != read[1]):
        return None
    export, _ = read
    short_side = export.get("settings", {}).get("short_side")
    crop = export.get("sizes", {}).get("stored_crop")
    return (short_side, crop) if short_side and crop else None


def _texts(classes: Any) -> list[str] | None:
    return list(map(str, classes)) if isinstance(classes, list) and classes else None


def keeps_classifier(start: Start, own: Sequence[str]) -> bool:
    """Whether a file's classifier may be used: it tells apart the same classes,
    in the same order."""
    return start.classes is None or start.classes == list(own)
