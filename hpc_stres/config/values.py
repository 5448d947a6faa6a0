"""Nodes become typed values: what a field declares is what its value must be; every message names
file, line and key.

A mapping is matched key by key with its dataclass; `hpc_stres.config.limits` bounds every number
and text. Where a field declares a phase or a model's options, the registry says which dataclass
this one is.
"""

import contextlib
import dataclasses
import difflib
import types
import typing
from typing import Any, Literal, get_args, get_origin

from hpc_stres.config import limits
from hpc_stres.config.recipe import check_phase_name
from hpc_stres.config.schema import Config
from hpc_stres.config.tree import MOST_TEXT_IN_MESSAGE, Node, bare, shown
from hpc_stres.config.upgrade import MOVED
from hpc_stres.errors import ConfigError, FieldError
from hpc_stres.registry import MODELS, PHASE_KINDS, Registry
from hpc_stres.registry.model import ModelOptions
from hpc_stres.registry.phase import Phase

# Nearest key that is worth a hint; below it all keys are listed.
NEAR = 0.6


class OutOfRange(ConfigError):
    """The right kind of value, but not one that can be meant: no other alternative of
    a union will do."""


def build(kind: Any, node: Node, path: str) -> Any:
    """The value of one node as the type that its field declares."""
    if dataclasses.is_dataclass(kind):
        return _build_dataclass(kind, node, path)
    origin, args = get_origin(kind), get_args(kind)
    if origin in (typing.Union, types.UnionType):
        return _build_union(args, node, path)
    if origin is Literal:
        # YAML 1.1 reads a bare `off` as false; where the word is a choice, that is what was meant.
        if node.value is False and "off" in args:
            return "off"
        # bool is an int to Python: `True` must not pass for the literal 1.
        if not any(node.value == arg and type(node.value) is type(arg) for arg in args):
            nearest = difflib.get_close_matches(shown(node.value), [str(arg) for arg in args], 1)
            hint = f" (did you mean {nearest[0]}?)" if nearest else ""
            raise _wrong(node, path, "one of " + ", ".join(str(arg) for arg in args) + hint)
        return node.value
    if origin is dict:
        expect(isinstance(node.value, dict), node, path, "a mapping")
        _expect_length(node, path)
        if path == "phases":
            for key, item in node.value.items():
                _check(check_phase_name(key), item, path)
        return {key: build(args[1], item, f"{path}.{key}") for key, item in node.value.items()}
    if origin is tuple or (isinstance(kind, type) and issubclass(kind, tuple)):
        return _build_tuple(kind, args, node, path)
    if kind is object:
        return _untyped(node, path)
    return _build_scalar(kind, node, path)


def _concrete(kind: Any, node: Node, path: str) -> Any:
    """The options of this kind of phase, or of this model, where the field declares any."""
    if kind is Phase:
        return _registered(PHASE_KINDS, node, path, "kind", "train").options
    if kind is ModelOptions:
        return _registered(MODELS, node, path, "name", None).options
    return kind


def _registered(
    registry: Registry[Any], node: Node, path: str, key: str, default: str | None
) -> Any:
    """The entry that one key of a mapping names."""
    item = node.value.get(key) or (None if default is None else Node(default, node.origin))
    if item is None:
        raise ConfigError(
            f"{node.origin}: {path}: the key {key} is missing; there are {', '.join(registry.names())}"
        )
    expect(isinstance(item.value, str), item, f"{path}.{key}", f"the name of a {registry.what}")
    if item.value not in registry:
        raise ConfigError(f"{item.origin}: {path}.{key}: {registry.refusal(item.value)}")
    return registry.get(item.value)


def _build_dataclass(kind: Any, node: Node, path: str) -> Any:
    if kind is ModelOptions:
        expect(isinstance(node.value, dict), node, path, "a mapping as {name: motion}")
    expect(isinstance(node.value, dict), node, path or "the config", "a mapping of keys")
    kind = _concrete(kind, node, path)
    hints = typing.get_type_hints(kind)
    names = [f.name for f in dataclasses.fields(kind)]
    values = {}
    for key, item in node.value.items():
        if key not in names:
            full = f"{path}.{shown(key)}" if path else shown(key)
            raise ConfigError(f"{item.origin}: {full}: unknown key; {_hint(key, names, path)}")
        values[key] = build(hints[key], item, f"{path}.{key}" if path else key)
    missing = [f.name for f in dataclasses.fields(kind) if _required(f) and f.name not in values]
    if missing:
        raise ConfigError(f"{node.origin}: {path}: the key {missing[0]} is missing")
    try:
        return kind(**values)
    except FieldError as error:
        full = f"{path}.{error.key}" if path else error.key
        given, got = _given(node, error.key)
        raise ConfigError(f"{given.origin}: {full}: {error.message}, got {got}") from None


def _given(node: Node, key: str) -> tuple[Node, str]:
    """Where a value was written, and the value; the nearest mapping around it where it was not."""
    for part in key.split("."):
        if not isinstance(node.value, dict) or part not in node.value:
            return node, "the default"
        node = node.value[part]
    return node, shown(bare(node))


def _hint(key: str, names: list[str], path: str) -> str:
    """The nearest valid key, here or in another section; where none is near, all of them."""
    if key in MOVED and path.count(".") == 1 and path.startswith("phases."):
        return f"it is {path}.{MOVED[key]}"
    nearest = difflib.get_close_matches(key, names, 1, NEAR)
    if nearest:
        return f"the nearest valid key is {nearest[0]}"
    sections = {
        f.name: f.type for f in dataclasses.fields(Config) if dataclasses.is_dataclass(f.type)
    }
    for section, kind in sections.items():
        if key in (f.name for f in dataclasses.fields(typing.cast(Any, kind))):
            return f"there is {section}.{key}"
    return f"the keys here are {', '.join(names)}"


def _required(f: "dataclasses.Field[Any]") -> bool:
    return f.default is dataclasses.MISSING and f.default_factory is dataclasses.MISSING


def _build_union(args: tuple[Any, ...], node: Node, path: str) -> Any:
    if node.value is None and type(None) in args:
        return None
    kinds = [arg for arg in args if arg is not type(None)]
    # A mapping or a list says itself which alternative is meant, and that one gives the message.
    for kind in kinds:
        if isinstance(node.value, dict) and dataclasses.is_dataclass(kind):
            return build(kind, node, path)
        if isinstance(node.value, list) and get_origin(kind) is tuple:
            return build(kind, node, path)
    for kind in kinds[:-1]:
        try:
            return build(kind, node, path)
        except OutOfRange:
            raise
        except ConfigError:
            continue  # the last alternative gives the message
    return build(kinds[-1], node, path) if len(kinds) == 1 else _last_alternative(kinds, node, path)


def _last_alternative(kinds: list[Any], node: Node, path: str) -> Any:
    try:
        return build(kinds[-1], node, path)
    except OutOfRange:
        raise
    except ConfigError:
        raise _wrong(node, path, " or ".join(_describe(kind) for kind in kinds)) from None


def _describe(kind: Any) -> str:
    if get_origin(kind) is Literal:
        return ", ".join(str(arg) for arg in get_args(kind))
    return {int: "a whole number", float: "a number", str: "text", bool: "true or false"}.get(
        kind, str(kind)
    )


def _build_tuple(kind: Any, args: tuple[Any, ...], node: Node, path: str) -> Any:
    expect(isinstance(node.value, list), node, path, "a list")
    _expect_length(node, path)
    if hasattr(kind, "_fields"):
        hints = list(typing.get_type_hints(kind).values())
        expect(len(node.value) == len(hints), node, path, "[" + ", ".join(kind._fields) + "]")
        return kind(
            *(build(hint, item, path) for hint, item in zip(hints, node.value, strict=True))
        )
    if len(args) == 2 and args[1] is Ellipsis:
        return tuple(build(args[0], item, path) for item in node.value)
    expect(len(node.value) == len(args), node, path, f"a list of {len(args)}")
    return tuple(build(arg, item, path) for arg, item in zip(args, node.value, strict=True))


def _build_scalar(kind: Any, node: Node, path: str) -> Any:
    value = node.value
    if kind is float and isinstance(value, str):
        # YAML 1.1 reads 1e-2 as text; people mean the number.
        with contextlib.suppress(ValueError):
            value = float(value)
    if type(value) is not kind and not (kind is float and type(value) is int):
        raise _wrong(node, path, _describe(kind))
    _check_range(value, node, path)
    return float(value) if kind is float else value


def _check_range(value: Any, node: Node, path: str) -> None:
    if isinstance(value, str):
        _check(limits.wrong_text(value, path), node, path)
    elif isinstance(value, int | float):
        _check(limits.wrong_number(value, path), node, path)


def _check(expected: str | None, node: Node, path: str) -> None:
    if expected is not None:
        raise OutOfRange(str(_wrong(node, path, expected)))


def _untyped(node: Node, path: str) -> Any:
    """A value of any kind, as DeepSpeed's own keys have them: plain data, in range
    like all others."""
    if isinstance(node.value, dict):
        return {key: _untyped(item, f"{path}.{key}") for key, item in node.value.items()}
    if isinstance(node.value, list):
        return [_untyped(item, path) for item in node.value]
    expect(
        node.value is None or isinstance(node.value, str | int | float), node, path, "plain data"
    )
    _check_range(node.value, node, path)
    return node.value


def _expect_length(node: Node, path: str) -> None:
    _check(limits.wrong_length(node.value), node, path)


def expect(condition: bool, node: Node, path: str, expected: str) -> None:
    if not condition:
        raise _wrong(node, path, expected)


def _wrong(node: Node, path: str, expected: str) -> ConfigError:
    name = (
        "a mapping"
        if isinstance(node.value, dict)
        else "a list"
        if isinstance(node.value, list)
        else ""
    )
    got = name or (repr(node.value) if _is_short(node.value) else shown(node.value))
    return ConfigError(f"{node.origin}: {path}: expected {expected}, got {got}")


def _is_short(value: Any) -> bool:
    return isinstance(value, str) and len(value) < MOST_TEXT_IN_MESSAGE
