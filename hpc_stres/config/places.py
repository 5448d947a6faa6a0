"""Paths in a config: relative ones mean the folder in which a command is typed, and from then on
they are absolute.

So a run folder's config.yaml means the same files from every folder and in every job, and two
spellings of one place are no difference between experiments.
"""

import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from hpc_stres.config.tree import Node

ROOT = "data"
OF_DATA = ("root", "videos", "lists", "frames", "flow_frames")
# What people write for no weights, where YAML has null.
NO_WEIGHTS = "none"
STREAMS = ("appearance", "motion")
# A bare word is the name of a published file of weights: ROOT/weights/WORD.safetensors.
BARE_WORD = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]*")


def is_published_name(source: str) -> bool:
    """Whether a value of `weights` is the name of a published file rather than a path."""
    return BARE_WORD.fullmatch(source) is not None and not os.path.exists(source)


def make_absolute(tree: Node) -> None:
    """Write every path of a config's tree out, in place; what is no text is refused
    later, with its type."""
    data = tree.value.setdefault("data", Node({}, "default"))
    if isinstance(data.value, dict):
        data.value.setdefault("root", Node(ROOT, "default"))
        for key in OF_DATA:
            _write_out(data.value, key)
    for section in _sections_with_weights(tree):
        given = section.get("weights")
        if given is not None and given.value == NO_WEIGHTS:
            section["weights"] = given = Node(None, given.origin)
        if (
            given is not None
            and isinstance(given.value, str)
            and not is_published_name(given.value)
        ):
            _write_out(section, "weights")


def _sections_with_weights(tree: Node) -> Iterator[dict[str, Any]]:
    """The run-wide model, every phase, and every trunk of a phase."""
    nodes = [tree.value.get("model")]
    phases = tree.value.get("phases")
    if phases is not None and isinstance(phases.value, dict):
        for phase in phases.value.values():
            nodes.append(phase)
            model = phase.value.get("model") if isinstance(phase.value, dict) else None
            if model is not None and isinstance(model.value, dict):
                nodes += [model.value.get(stream) for stream in STREAMS]
    yield from (node.value for node in nodes if node is not None and isinstance(node.value, dict))


def _write_out(section: dict[str, Any], key: str) -> None:
    node = section.get(key)
    # An empty text, or one with a NUL in it, is refused as such.
    if (
        node is not None
        and isinstance(node.value, str)
        and node.value.strip()
        and "\0" not in node.value
    ):
        section[key] = Node(os.path.abspath(Path(node.value).expanduser()), node.origin)
