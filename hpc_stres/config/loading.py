"""Layers of YAML files and `--set` options become one Config; every message names file, line and the nearest key.

`hpc_stres.config.tree` reads and merges text; here it is matched, key by key, with the dataclasses of
`hpc_stres.config.schema`: what a field declares is what its value must be, and `hpc_stres.config.limits` bounds it.
"""

import contextlib
import dataclasses
import difflib
import os
import re
import types
import typing
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

import yaml

from hpc_stres import SOURCES
from hpc_stres.config import limits
from hpc_stres.config.recipe import check_phase_name, ordered_phases
from hpc_stres.config.schema import Config
from hpc_stres.config.tree import MOST_TEXT_IN_MESSAGE, Node, merge, origins, parse_overrides, read_file, shown
from hpc_stres.config.upgrade import MOVED, upgrade
from hpc_stres.errors import ConfigError, FieldError
from hpc_stres.registry import MODELS, PHASE_KINDS, Registry, load_extension
from hpc_stres.registry.model import ModelOptions
from hpc_stres.registry.phase import Phase

# In a checkout they lie beside the package; an installed package carries them inside.
_PLACES = (SOURCES / "configs", SOURCES / "hpc_stres" / "configs")
CONFIGS = next((folder for folder in _PLACES if (folder / "recipes").is_dir()), _PLACES[0])


# Nearest key that is worth a hint; below it all keys are listed.
NEAR = 0.6


class OutOfRange(ConfigError):
    """The right kind of value, but not one that can be meant: no other alternative of a union will do."""


def load_config(path: str | Path, overrides: Sequence[str] = (), profile: str | None = None) -> Config:
    """Config of a file with its recipe, its cluster profile, its base file and the `--set` overrides."""
    return load_with_origins(path, overrides, profile)[0]


def load_with_origins(
    path: str | Path, overrides: Sequence[str] = (), profile: str | None = None
) -> tuple[Config, dict[str, str]]:
    """The config and, for each value that a file or an option gave, where it was given."""
    own = merge(_file_with_base(Path(path)), _overrides(overrides))
    if profile is not None:
        own = merge(own, Node({"profile": Node(profile, "--cluster")}, "--cluster"))
    tree = own
    chosen_profile = own.value.get("profile")
    if chosen_profile is not None and chosen_profile.value is not None:
        tree = merge(_library("clusters", chosen_profile), tree)
    recipe = _library("recipes", own.value.get("recipe", Node("nips2016", "default")))
    _refuse_unknown_phases(recipe, tree)
    tree = merge(recipe, tree)
    return _whole(tree), dict(origins(tree, ""))


def load_resolved(path: str | Path) -> Config:
    """A run folder's config.yaml, which is complete and stands alone."""
    return _whole(_read_resolved(Path(path)))


def load_run(run_dir: Path, overrides: Sequence[str] = ()) -> Config:
    """The config of a run folder, with overrides laid over it."""
    path = run_dir / "config.yaml"
    if not path.is_file():
        raise ConfigError(f"{run_dir}: this is no run folder: it has no config.yaml")
    base = _read_resolved(path)
    changes = _overrides(overrides)
    _refuse_unknown_phases(base, changes)
    return _whole(merge(base, changes))


def _overrides(texts: Sequence[str]) -> Node:
    """`--set` options; the files that they name are relative to where the command was typed."""
    node = parse_overrides(texts)
    _load_extensions(node, Path.cwd())
    return node


def _whole(tree: Node) -> Config:
    """The config of a tree; refuses what only shows when all of it is known."""
    config = typing.cast(Config, build(Config, tree, ""))
    ordered_phases(config.phases)
    return config


def _refuse_unknown_phases(recipe: Node, tree: Node) -> None:
    """An overlay is for a phase of the recipe; a phase of one's own says which model it trains."""
    known = recipe.value.get("phases", Node({}, "")).value
    given = tree.value.get("phases", Node({}, "")).value
    if not isinstance(known, dict) or not isinstance(given, dict):
        return  # not a mapping: refused with its type below
    for name, node in given.items():
        if name in known or (isinstance(node.value, dict) and {"model", "kind"} & set(node.value)):
            continue
        nearest = difflib.get_close_matches(name, known, 1, NEAR)
        hint = f"did you mean {nearest[0]}?" if nearest else "a phase of your own needs a `model` or a `kind`"
        raise ConfigError(
            f"{node.origin}: phases.{shown(name)}: the recipe has no such phase; it has {', '.join(known)}; {hint}"
        )


def _read_resolved(path: Path) -> Node:
    """A run folder's config.yaml; an older version's is read as this version would write it."""
    node = read_file(path)
    _load_extensions(node, path.parent)
    upgrade(node, str(path))
    return node


def from_plain(value: Mapping[str, Any], origin: str) -> Config:
    """A config from plain values, as done.json and checkpoints hold it; an older version's is upgraded."""
    node = node_of(value, origin)
    upgrade(node, origin)
    return _whole(node)


def node_of(value: Any, origin: str) -> Node:
    """Plain values as nodes, so that they pass the same checks as a file's."""
    if isinstance(value, Mapping):
        return Node({key: node_of(item, origin) for key, item in value.items()}, origin)
    if isinstance(value, list | tuple):
        return Node([node_of(item, origin) for item in value], origin)
    return Node(value, origin)


def _load_extensions(node: Node, home: Path) -> None:
    """Import the files of one's own before anything asks for what they register; relative to the config's folder."""
    given = node.value.get("extensions")
    if given is None or not isinstance(given.value, list):
        return  # not a list: refused with its type below
    files = []
    for item in given.value:
        _expect(isinstance(item.value, str), item, "extensions", "the name of a Python file")
        path = Path(os.path.abspath(home / item.value))
        load_extension(path)
        files.append(Node(str(path), item.origin))
    node.value["extensions"] = Node(files, given.origin)


def dump(config: Config) -> str:
    """The complete config as YAML that `load_resolved` reads back to an equal one."""
    return yaml.safe_dump(plain(config), sort_keys=False, allow_unicode=True)


def plain(value: Any) -> Any:
    """Dataclasses, tuples and mappings as plain dicts and lists; a config as it was written."""
    if isinstance(value, Config):
        written = {f.name: getattr(value, f.name) for f in dataclasses.fields(value)}
        return plain(written | {"phases": value.written_phases()})
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {f.name: plain(getattr(value, f.name)) for f in dataclasses.fields(value)}
    if isinstance(value, Mapping):
        return {key: plain(item) for key, item in value.items()}
    if isinstance(value, (tuple, list)):
        return [plain(item) for item in value]
    return value


def _library(folder: str, name: Node) -> Node:
    is_word = isinstance(name.value, str) and re.fullmatch(r"[\w.-]{1,100}", name.value)
    path = CONFIGS / folder / f"{name.value if is_word else '?'}.yaml"
    if not is_word or not path.is_file():
        known = sorted(p.stem for p in (CONFIGS / folder).glob("*.yaml"))
        raise ConfigError(
            f"{name.origin}: no {shown(name.value)}.yaml in configs/{folder}; there are {', '.join(known)}"
        )
    return read_file(path)


def _file_with_base(path: Path) -> Node:
    in_a_run = (path.parent / "provenance.json").is_file()
    node = _read_resolved(path) if in_a_run else read_file(path)
    _load_extensions(node, path.parent)
    include = node.value.pop("include", None)
    if include is None:
        return node
    if not isinstance(include.value, str) or not include.value.strip():
        raise ConfigError(f"{include.origin}: include: expected the name of one file")
    base = read_file(path.parent / include.value)
    _load_extensions(base, (path.parent / include.value).parent)
    if "include" in base.value:
        raise ConfigError(f"{base.value['include'].origin}: include: a base file may not include another")
    return merge(base, node)


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
        _expect(isinstance(node.value, dict), node, path, "a mapping")
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


def _registered(registry: Registry[Any], node: Node, path: str, key: str, default: str | None) -> Any:
    """The entry that one key of a mapping names."""
    item = node.value.get(key) or (None if default is None else Node(default, node.origin))
    if item is None:
        raise ConfigError(f"{node.origin}: {path}: the key {key} is missing; there are {', '.join(registry.names())}")
    _expect(isinstance(item.value, str), item, f"{path}.{key}", f"the name of a {registry.what}")
    if item.value not in registry:
        raise ConfigError(f"{item.origin}: {path}.{key}: {registry.refusal(item.value)}")
    return registry.get(item.value)


def _build_dataclass(kind: Any, node: Node, path: str) -> Any:
    if kind is ModelOptions:
        _expect(isinstance(node.value, dict), node, path, "a mapping as {name: motion}")
    _expect(isinstance(node.value, dict), node, path or "the config", "a mapping of keys")
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
    return node, shown(_bare(node))


def _bare(node: Node) -> Any:
    if isinstance(node.value, dict):
        return {key: _bare(item) for key, item in node.value.items()}
    return [_bare(item) for item in node.value] if isinstance(node.value, list) else node.value


def _hint(key: str, names: list[str], path: str) -> str:
    """The nearest valid key, here or in another section; where none is near, all of them."""
    if key in MOVED and path.count(".") == 1 and path.startswith("phases."):
        return f"it is {path}.{MOVED[key]}"
    nearest = difflib.get_close_matches(key, names, 1, NEAR)
    if nearest:
        return f"the nearest valid key is {nearest[0]}"
    sections = {f.name: f.type for f in dataclasses.fields(Config) if dataclasses.is_dataclass(f.type)}
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
    return {int: "a whole number", float: "a number", str: "text", bool: "true or false"}.get(kind, str(kind))


def _build_tuple(kind: Any, args: tuple[Any, ...], node: Node, path: str) -> Any:
    _expect(isinstance(node.value, list), node, path, "a list")
    _expect_length(node, path)
    if hasattr(kind, "_fields"):
        hints = list(typing.get_type_hints(kind).values())
        _expect(len(node.value) == len(hints), node, path, "[" + ", ".join(kind._fields) + "]")
        return kind(*(build(hint, item, path) for hint, item in zip(hints, node.value, strict=True)))
    if len(args) == 2 and args[1] is Ellipsis:
        return tuple(build(args[0], item, path) for item in node.value)
    _expect(len(node.value) == len(args), node, path, f"a list of {len(args)}")
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
    """A value of any kind, as DeepSpeed's own keys have them: plain data, in range like all others."""
    if isinstance(node.value, dict):
        return {key: _untyped(item, f"{path}.{key}") for key, item in node.value.items()}
    if isinstance(node.value, list):
        return [_untyped(item, path) for item in node.value]
    _expect(node.value is None or isinstance(node.value, str | int | float), node, path, "plain data")
    _check_range(node.value, node, path)
    return node.value


def _expect_length(node: Node, path: str) -> None:
    _check(limits.wrong_length(node.value), node, path)


def _expect(condition: bool, node: Node, path: str, expected: str) -> None:
    if not condition:
        raise _wrong(node, path, expected)


def _wrong(node: Node, path: str, expected: str) -> ConfigError:
    name = "a mapping" if isinstance(node.value, dict) else "a list" if isinstance(node.value, list) else ""
    got = name or (repr(node.value) if _is_short(node.value) else shown(node.value))
    return ConfigError(f"{node.origin}: {path}: expected {expected}, got {got}")


def _is_short(value: Any) -> bool:
    return isinstance(value, str) and len(value) < MOST_TEXT_IN_MESSAGE
