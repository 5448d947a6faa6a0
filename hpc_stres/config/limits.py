"""Which numbers and texts a config may hold: one rule for every value, asked by the loader.

Numbers are finite, and not larger than anything that could be meant: a limit far above what any
machine does, so that a slip (a width of 1e9, minutes given as milliseconds) is a sentence and not
an hour of paging.
"""

import math
import re
from typing import Any

LARGEST = 2**31 - 1
# Largest value by key; * is any one name. What is not here may be as large as LARGEST.
MOST: dict[str, float] = {
    "seed": 2**63 - 1,
    "data.binding.train_videos": 1_000_000, "data.binding.test_videos": 1_000_000,
    "data.binding.frames": 100_000, "data.binding.side": 2048,
    "data.short_side": 4096, "data.crop": 4096, "data.shard_mib": 1_000_000, "data.workers": 4096,
    "model.width": 2048, "model.stages": 500,
    "training.global_batch": 1_000_000, "training.norm_group": 1_000_000, "training.max_micro_batch": 1_000_000,
    "training.unit": 1_000_000, "training.hash_every_steps": 1_000_000_000,
    "training.max_steps": 1_000_000_000, "training.checkpoint_every_steps": 1_000_000_000,
    "training.checkpoint_every_minutes": 1_000_000, "training.log_every_steps": 1_000_000_000,
    "training.start_timeout_minutes": 100_000, "training.step_timeout_minutes": 100_000, "training.prefetch": 1000,
    "training.weight_decay": 1000,
    "evaluation.chunks": 10_000, "evaluation.validation_every_steps": 1_000_000_000,
    "cluster.nodes": 100_000, "cluster.gpus_per_node": 1024, "cluster.ranks_per_node": 4096,
    "cluster.cpus_per_rank": 4096, "cluster.prepare.cores": 4096, "cluster.prepare.nodes": 100_000,
    "cluster.prepare.memory_gib": 1_000_000, "cluster.prepare.minutes": 1_000_000,
    "cluster.memory_gib_per_node": 1_000_000,
    "cluster.minutes": 1_000_000, "cluster.links": 1000, "cluster.min_all_reduce_gb_per_s": 1_000_000,
    "cluster.arrival_seconds": 100_000, "cluster.avoid_bad_nodes_hours": 100_000,
    "cluster.restarts_without_checkpoint": 1000,
    "phases.*.optimise.global_batch": 1_000_000, "phases.*.optimise.norm_group": 1_000_000,
    "phases.*.clips.chunks": 1000, "phases.*.clips.segments": 1000, "phases.*.clips.frame_grid": 100_000,
    "phases.*.optimise.agreement_loss": 1_000_000,
    "phases.*.clips.stride": 100_000, "phases.*.optimise.classifier_only_steps": 1_000_000_000,
    "phases.*.optimise.schedule": 1_000_000_000,
    "phases.*.optimise.loss_weight_appearance": 1_000_000, "phases.*.optimise.loss_weight_motion": 1_000_000,
    **{
        f"phases.*.model.{stream}.{key}": most
        for stream in ("appearance", "motion")
        for key, most in (("width", 2048), ("stages", 500), ("side", 4096))
    },
}  # fmt: skip
# Texts of several lines: shell lines, and variables of jobs.
LONG_TEXTS = ("cluster.setup", "cluster.environment")
MOST_LETTERS, MOST_ITEMS = 4096, 1000


def wrong_number(value: float, path: str) -> str | None:
    """What was expected in place of a number that nobody can mean; none where it is fine."""
    if isinstance(value, float) and not math.isfinite(value):
        return "a finite number"
    # Rates belong to the schedule's pairs but have no limit of their own: too high a rate
    # shows in the loss.
    most = MOST.get(re.sub(r"^phases\.[^.]*\.", "phases.*.", path), LARGEST)
    is_rate = isinstance(value, float) and path.endswith(".schedule")
    return f"at most {most:g}" if abs(value) > most and not is_rate else None


def wrong_text(value: str, path: str) -> str | None:
    """What was expected in place of a text; none where it is fine."""
    is_long = path.startswith(LONG_TEXTS)
    if len(value) > MOST_LETTERS:
        return f"at most {MOST_LETTERS} letters"
    if any(
        (ord(letter) < 32 or ord(letter) == 127) and not (is_long and letter in "\n\t")
        for letter in value
    ):
        return "text without control characters"
    return (
        None
        if value.strip() or path.startswith("cluster.environment")
        else "text that is not empty"
    )


def wrong_length(items: Any) -> str | None:
    """What was expected in place of a list or mapping; none where it is fine."""
    return f"at most {MOST_ITEMS} items" if len(items) > MOST_ITEMS else None
