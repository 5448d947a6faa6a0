"""Which experiment may resume from which run folder and checkpoint: one rule for every command.
Pure, no torch."""

import contextlib
import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from hpc_stres.config.loading import from_plain, load_resolved, plain
from hpc_stres.config.schema import Config
from hpc_stres.config.seal import sealed_text
from hpc_stres.errors import UserError
from hpc_stres.run.ownership import owned
from hpc_stres.run.paths import (
    PhasePaths,
    RunPaths,
    read_sealed,
    write_bytes,
    write_sealed,
    write_text,
)
from hpc_stres.run.product import read_done

# How long a command waits for another one that is just claiming the same new run folder.
CLAIM_PATIENCE_SECONDS = 60.0
ALLOWED_CHANGES = "allowed_changes.json"

# Options of testing that change no weights. The others decide which videos are held out, and
# so not trained on.
FREE_EVALUATION = tuple(
    f"evaluation.{key}"
    for key in ("protocol", "chunks", "flips", "allow_missing", "validation_every_steps")
)
# What was done before an option existed, in configs that do not have it.
BEFORE = {
    "data.labels": "single", "evaluation.validation_share": 0.0, "evaluation.groups": "auto",
    "evaluation.validation_column": None,
}  # fmt: skip
# What may differ between a checkpoint and the run that resumes from it: layout and
# logging, not learning.
FREE_KEYS = (
    "cluster", "profile", *FREE_EVALUATION, "extensions", "data.root", "data.workers", "data.stage",
    # Where the videos are does not matter: data_set.json knows what is in them.
    "data.videos", "data.lists", "data.frames", "data.flow_frames",
    "data.max_rejected", "data.shard_mib", "training.engine", "training.zero_stage",
    "training.max_micro_batch", "training.checkpoint_every_steps", "training.checkpoint_every_minutes",
    "training.log_every_steps", "training.hash_every_steps",
    "training.prefetch", "training.start_timeout_minutes", "training.step_timeout_minutes",
    "training.compile", "training.activation_checkpointing",
    "training.channels_last", "training.deepspeed", "training.max_steps",
)  # fmt: skip


def claim_run_folder(
    config: Config, run_dir: Path, allowed: tuple[str, ...] = (), update: bool = False
) -> None:
    """Make a run folder this experiment's, or refuse one that belongs to another and show the
    difference.

    The first command writes config.yaml. A later one must agree with it, and with what the folder's
    phases were trained with, in every key but those that change how and not what is learned
    (FREE_KEYS) and those that the user `allowed`. The latter are changed in config.yaml as well,
    and remembered, for phases from before the change stay as they are. Free keys stay as they are
    in config.yaml, for jobs may be queued that read them, unless `update` asks for them.
    """
    paths = RunPaths(run_dir)
    lock = run_dir / "config.lock"
    with owned(lock, "this run folder's config.yaml is being written", CLAIM_PATIENCE_SECONDS):
        wanted = plain(config) | {
            "extensions": _claim_extensions(config.extensions, paths, allowed)
        }
        stored = plain(load_resolved(paths.config)) if paths.config.is_file() else None
        if stored is not None:
            refuse_other_config(stored, wanted, FREE_KEYS + allowed, f"{run_dir}: this run folder")
        remembered = _allowed_before(run_dir)
        for where, trained in _configs_of_phases(paths):
            refuse_other_config(trained, wanted, FREE_KEYS + allowed + remembered, where)
        if set(allowed) - set(remembered):
            keys = sorted({*allowed, *remembered})
            write_sealed(run_dir / ALLOWED_CHANGES, {"keys": keys})
        new = wanted if stored is None or update else _with_values(stored, wanted, allowed)
        if new != stored:
            text = yaml.safe_dump(new, sort_keys=False, allow_unicode=True)
            write_text(paths.config, sealed_text(text))


def _claim_extensions(
    extensions: Sequence[str], paths: RunPaths, allowed: tuple[str, ...]
) -> list[str]:
    """Copy the files of one's own into the run folder, so that the run keeps the code
    that it began with.

    Returns their names as config.yaml holds them, relative to itself.
    """
    names = []
    for file in map(Path, extensions):
        copy = paths.extensions / file.name
        content = file.read_bytes()
        if copy.is_file() and copy.read_bytes() != content and "extensions" not in allowed:
            raise UserError(
                f"{file}: this run was begun with another {file.name}: {copy}\n"
                "Use another --run-dir, or allow it with --allow-config-change extensions."
            )
        if not copy.is_file() or copy.read_bytes() != content:
            write_bytes(copy, content)
        names.append(copy.relative_to(paths.root).as_posix())
    return names


def _allowed_before(run_dir: Path) -> tuple[str, ...]:
    """Keys in which this folder's phases may differ, because the user allowed it."""
    path = run_dir / ALLOWED_CHANGES
    if not path.is_file():
        return ()
    remedy = "Remove it, and give --allow-config-change KEY for each key that may differ."
    return tuple(map(str, read_sealed(path, remedy).get("keys", ())))


def _with_values(stored: Any, wanted: Any, keys: tuple[str, ...], path: str = "") -> Any:
    """`stored` with the values of some keys, and of what is under them, taken from `wanted`."""
    if path in keys:
        return wanted
    if not (isinstance(stored, Mapping) and isinstance(wanted, Mapping)):
        return stored
    return {
        key: _with_values(
            stored.get(key), wanted.get(key), keys, f"{path}.{key}" if path else str(key)
        )
        for key in {**stored, **wanted}
    }


def _configs_of_phases(paths: RunPaths) -> Iterator[tuple[str, dict[str, Any]]]:
    """The config that each phase of a run folder was trained with, from done.json and its newest
    checkpoint."""
    for folder in sorted((paths.root / "phases").glob("*")):
        phase = PhasePaths(folder)
        done = read_done(phase)
        if done is not None and "config" in done:
            yield f"{phase.done}: this phase", as_now(done["config"], str(phase.done))
        for checkpoint in sorted(phase.checkpoints.glob("step*"), reverse=True):
            meta = read_meta(checkpoint)
            if "config" in meta:
                yield f"{checkpoint}: this checkpoint", as_now(meta["config"], str(checkpoint))
                break


def as_now(config: Mapping[str, Any], place: str) -> dict[str, Any]:
    """A config that an older version may have written, as this version writes it."""
    try:
        return dict(plain(from_plain(config, place)))
    except UserError as error:
        raise UserError(
            f"{place}: its config is of another version: {error}\nUse another --run-dir."
        ) from None


def read_meta(checkpoint: Path) -> dict[str, Any]:
    """A checkpoint's meta.json; empty when it is missing or damaged, which the reader of the
    checkpoint says."""
    with contextlib.suppress(OSError, ValueError, TypeError):
        meta = dict(json.loads((checkpoint / "meta.json").read_text(encoding="utf-8")))
        if meta.pop("checksum", None) == meta_checksum(meta):
            return meta
    return {}


def meta_checksum(meta: Mapping[str, Any]) -> str:
    """The checksum inside a checkpoint's meta.json, the same since version 0.1."""
    return hashlib.sha256(json.dumps(meta, sort_keys=True).encode()).hexdigest()


def refuse_other_config(
    stored: Mapping[str, Any],
    wanted: Mapping[str, Any],
    allowed: tuple[str, ...],
    what: str = "the checkpoint",
) -> None:
    """Refuse what another experiment wrote, and show the difference."""
    # The most general keys first: of another recipe, its name and not its many numbers.
    differences = sorted(
        set(_differences(stored, wanted, "")), key=lambda item: (item[0].count("."), item)
    )
    wrong = [
        (key, line)
        for key, line in differences
        if not any(key == name or key.startswith(f"{name}.") for name in allowed)
    ]
    if wrong:
        more = f" and {len(wrong) - 4} more" if len(wrong) > 4 else ""
        raise UserError(
            f"{what} is of another experiment: {'; '.join(line for _, line in wrong[:4])}{more}\n"
            f"Use another --run-dir, or allow it with --allow-config-change {wrong[0][0]}."
        )


def _differences(stored: Any, wanted: Any, path: str) -> list[tuple[str, str]]:
    if isinstance(stored, Mapping) and isinstance(wanted, Mapping):
        lines = []
        for key in {**stored, **wanted}:
            inner = f"{path}.{key}" if path else str(key)
            lines += _differences(stored.get(key, BEFORE.get(inner)), wanted.get(key), inner)
        return lines
    return [] if stored == wanted else [(path, f"{path}: {stored!r} there, {wanted!r} now")]
