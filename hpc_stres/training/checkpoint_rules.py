"""Which experiment may go on from which checkpoint. Pure."""

from collections.abc import Mapping
from typing import Any

from hpc_stres.errors import UserError

# What may differ between a checkpoint and the run that goes on from it: layout and logging, not learning.
FREE_KEYS = (
    "cluster", "profile", "evaluation", "data.root", "data.workers", "data.stage",
    "data.max_rejected", "data.shard_mib", "training.engine", "training.zero_stage",
    "training.max_micro_batch", "training.checkpoint_every_steps", "training.checkpoint_every_minutes",
    "training.log_every_steps", "training.prefetch", "training.start_timeout_minutes", "training.step_timeout_minutes",
    "training.compile", "training.activation_checkpointing",
    "training.channels_last", "training.deepspeed", "training.max_steps",
)  # fmt: skip


def refuse_other_config(found: Mapping[str, Any], wanted: Mapping[str, Any], allowed: tuple[str, ...]) -> None:
    """Refuse a checkpoint that another experiment wrote, and show the difference."""
    differences = sorted(set(_differences(found, wanted, "")))
    wrong = [line for key, line in differences if not any(key == a or key.startswith(f"{a}.") for a in allowed)]
    if wrong:
        key = wrong[0].split(":")[0]
        raise UserError(
            "the checkpoint is of another experiment: " + "; ".join(wrong[:4]) + "\n"
            f"Use another --run-dir, or allow it with --allow-config-change {key}."
        )


def _differences(found: Any, wanted: Any, path: str) -> list[tuple[str, str]]:
    if isinstance(found, Mapping) and isinstance(wanted, Mapping):
        lines = []
        for key in {**found, **wanted}:
            inner = f"{path}.{key}" if path else str(key)
            lines += _differences(found.get(key), wanted.get(key), inner)
        return lines
    return [] if found == wanted else [(path, f"{path}: {found!r} there, {wanted!r} now")]
