"""YAML as nodes that remember where they were written: files and `--set` options, read
strictly and merged.

What is read may be anything: it is bounded in size, depth and number of nodes before it is
expanded (a few lines of nested aliases mean billions of nodes), and every refusal names the
file and the line.
"""

import functools
import re
import typing
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from hpc_stres.config.seal import refuse_changed
from hpc_stres.errors import ConfigError

MOST_BYTES, MOST_NODES, MOST_DEPTH = 256 * 1024, 20_000, 50
MOST_TEXT_IN_MESSAGE = 80


@dataclass(frozen=True)
class Node:
    """A YAML value that remembers where it was written."""

    value: Any
    origin: str


def bare(node: Node | None) -> Any:
    """The plain value of a node, without its origins; none where there is no node."""
    value = None if node is None else node.value
    if isinstance(value, dict):
        return {key: bare(item) for key, item in value.items()}
    return [bare(item) for item in value] if isinstance(value, list) else value


def shown(value: Any) -> str:
    """A value for a message: on one line, and not longer than anybody reads."""
    if isinstance(value, int) and abs(value) >= 10**40:
        return "a number of very many digits"  # Python refuses to print the longest of them
    text = value if isinstance(value, str) and re.fullmatch(r"[\w./-]+", value) else repr(value)
    return text if len(text) <= MOST_TEXT_IN_MESSAGE else f"{text[: MOST_TEXT_IN_MESSAGE - 3]}..."


def read_file(path: Path) -> Node:
    """A YAML file as nodes."""
    try:
        with path.open("rb") as stream:
            data = stream.read(MOST_BYTES + 1)
    except (OSError, ValueError) as error:
        raise ConfigError(
            f"{path}: cannot read the config: {getattr(error, 'strerror', None) or error}"
        ) from None
    if len(data) > MOST_BYTES:
        raise ConfigError(f"{path}: more than {MOST_BYTES // 1024} KiB; this is no config file")
    refuse_changed(path, data)
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data[: error.start].count(b"\n") + 1
        raise ConfigError(
            f"{path}:{line}: not UTF-8 text (byte 0x{data[error.start]:02x})"
        ) from None
    node = parse(text, str(path)) or Node({}, f"{path}:1")
    if not isinstance(node.value, dict):
        raise ConfigError(f"{path}:1: expected a mapping of keys")
    return node


def parse(text: str, name: str) -> Node | None:
    """YAML text as nodes, whose origins are `name:line`; none for an empty text."""
    try:
        root = _composed(text, name)
        return None if root is None else _Converter(name).convert(root, 0)
    except yaml.reader.ReaderError as error:
        line = text[: error.position].count("\n") + 1
        raise ConfigError(
            f"{name}:{line}: a character that YAML does not allow (number {error.character})"
        ) from None
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = f"{name}:{mark.line + 1}" if mark else name
        reason = " ".join(str(getattr(error, "problem", None) or error).split())[:160]
        raise ConfigError(f"{where}: not valid YAML: {reason}") from None


@functools.lru_cache(maxsize=128)
def _composed(text: str, name: str) -> yaml.Node | None:
    """PyYAML's nodes of a text. Kept, for studies load the same files for each of their runs, and
    reading them takes longer than all that is done with them; nobody changes these nodes."""
    _refuse_depth(text, name)
    root: yaml.Node | None = yaml.compose(text, Loader=yaml.SafeLoader)
    return root


def _refuse_depth(text: str, name: str) -> None:
    """Composing is recursive; the events before it are not."""
    depth = 0
    for event in yaml.parse(text, Loader=yaml.SafeLoader):
        if isinstance(event, yaml.CollectionStartEvent):
            depth += 1
            if depth > MOST_DEPTH:
                line = event.start_mark.line + 1 if event.start_mark else 1
                raise ConfigError(f"{name}:{line}: nested more than {MOST_DEPTH} deep")
        elif isinstance(event, yaml.CollectionEndEvent):
            depth -= 1


class _Converter:
    """PyYAML's nodes as ours; counts them, because an alias costs one line and
    may mean very many."""

    def __init__(self, name: str) -> None:
        self.name, self.count = name, 0
        self.loader = yaml.SafeLoader("")

    def convert(self, node: yaml.Node, depth: int) -> Node:
        origin = f"{self.name}:{node.start_mark.line + 1}"
        self.count += 1
        if self.count > MOST_NODES or depth > MOST_DEPTH:
            raise ConfigError(
                f"{origin}: more than {MOST_NODES} values; do aliases (*name) repeat each other?"
            )
        if isinstance(node, yaml.MappingNode):
            return Node(self._mapping(node, depth), origin)
        if isinstance(node, yaml.SequenceNode):
            return Node([self.convert(item, depth + 1) for item in node.value], origin)
        try:
            return Node(self.loader.construct_object(node), origin)
        except (
            ValueError,
            KeyError,
            OverflowError,
        ) as error:  # a date like 2024-02-30, !!int x, !!bool x
            raise ConfigError(
                f"{origin}: {shown(node.value)}: not a valid value: {error}"
            ) from None

    def _mapping(self, node: yaml.MappingNode, depth: int) -> dict[str, Node]:
        items: dict[str, Node] = {}
        for key, value in node.value:
            origin = f"{self.name}:{key.start_mark.line + 1}"
            if not isinstance(key, yaml.ScalarNode) or not key.value:
                raise ConfigError(f"{origin}: expected a plain word as key")
            if key.value in items:
                raise ConfigError(f"{origin}: {shown(key.value)} is given twice")
            items[key.value] = Node(self.convert(value, depth + 1).value, origin)
        return items


def parse_overrides(overrides: Sequence[str]) -> Node:
    """`--set a.b=c` options as nodes; values are YAML."""
    tree = Node({}, "--set")
    for text in overrides:
        key, equals, value = text.partition("=")
        parts = key.split(".")
        if not equals or not all(parts) or len(parts) > MOST_DEPTH:
            raise ConfigError(f"--set {shown(text)}: expected key.subkey=value")
        if len(value) > MOST_BYTES:
            raise ConfigError(f"--set {shown(key)}: more than {MOST_BYTES // 1024} KiB")
        parsed = parse(value, f"--set {shown(key)}") if value.strip() else None
        leaf = _with_origin(parsed or Node(None, ""), f"--set {shown(key)}")
        for part in reversed(parts):
            leaf = Node({part: leaf}, f"--set {shown(key)}")
        tree = merge(tree, leaf)
    return tree


def _with_origin(node: Node, origin: str) -> Node:
    if isinstance(node.value, dict):
        return Node({key: _with_origin(item, origin) for key, item in node.value.items()}, origin)
    if isinstance(node.value, list):
        return Node([_with_origin(item, origin) for item in node.value], origin)
    return Node(node.value, origin)


def merge(base: Node, top: Node) -> Node:
    """Mappings are merged key by key, everything else is replaced."""
    if not (isinstance(base.value, dict) and isinstance(top.value, dict)):
        return top
    merged = dict(base.value)
    for key, node in top.value.items():
        merged[key] = merge(merged[key], node) if key in merged else node
    return Node(merged, top.origin)


def origins(node: Node, path: str) -> typing.Iterator[tuple[str, str]]:
    """Key and origin of every leaf."""
    if isinstance(node.value, dict):
        for key, item in node.value.items():
            yield from origins(item, f"{path}.{key}" if path else key)
    else:
        yield path, node.origin
