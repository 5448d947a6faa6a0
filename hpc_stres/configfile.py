"""Strict YAML: layers of files and `--set` become one Config; every message names file, line and the nearest key."""

import dataclasses
import difflib
import types
import typing
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

import yaml

from hpc_stres.config import Config
from hpc_stres.errors import ConfigError, FieldError
from hpc_stres.recipe import ordered_phases

CONFIGS = Path(__file__).resolve().parent.parent / "configs"


@dataclass(frozen=True)
class Node:
    """A YAML value that remembers where it was written."""

    value: Any
    origin: str


def load_config(path: str | Path, overrides: Sequence[str] = (), profile: str | None = None) -> Config:
    """Config of a file with its recipe, its cluster profile, its base file and the `--set` overrides."""
    return load_with_origins(path, overrides, profile)[0]


def load_with_origins(
    path: str | Path, overrides: Sequence[str] = (), profile: str | None = None
) -> tuple[Config, dict[str, str]]:
    """The config and, for each value that a file or an option gave, where it was given."""
    own = merge(_file_with_base(Path(path)), parse_overrides(overrides))
    if profile is not None:
        own = merge(own, Node({"profile": Node(profile, "--cluster")}, "--cluster"))
    tree = own
    chosen_profile = own.value.get("profile")
    if chosen_profile is not None and chosen_profile.value is not None:
        tree = merge(_library("clusters", chosen_profile), tree)
    recipe = own.value.get("recipe", Node("nips2016", "default"))
    tree = merge(_library("recipes", recipe), tree)
    config = build(Config, tree, "")
    ordered_phases(config.phases)
    return config, dict(_origins(tree, ""))


def load_resolved(path: str | Path) -> Config:
    """A run folder's config.yaml, which is complete and stands alone."""
    return typing.cast(Config, build(Config, _read_resolved(Path(path)), ""))


def load_run(run_dir: Path, overrides: Sequence[str] = ()) -> Config:
    """The config of a run folder, with overrides laid over it."""
    path = run_dir / "config.yaml"
    if not path.is_file():
        raise ConfigError(f"{run_dir}: this is no run folder: it has no config.yaml")
    tree = merge(_read_resolved(path), parse_overrides(overrides))
    return typing.cast(Config, build(Config, tree, ""))


def _read_resolved(path: Path) -> Node:
    """A run folder's config.yaml; an older version's has what was done then."""
    node = read_file(path)
    data = node.value.get("data")
    if data is not None and isinstance(data.value, dict) and "flow_pyramid" not in data.value:
        given = {key: item.value for key, item in data.value.items()}
        if given.get("flow_frames") is None and given.get("flow_backend") != "dali":
            origin = f"{path}: written before there was a choice"
            data.value["flow_pyramid"] = Node("opencv4", origin)
    return node


def dump(config: Config) -> str:
    """The complete config as YAML that `load_resolved` reads back to an equal one."""
    return yaml.safe_dump(plain(config), sort_keys=False, allow_unicode=True)


def plain(value: Any) -> Any:
    """Dataclasses, tuples and mappings as plain dicts and lists."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {f.name: plain(getattr(value, f.name)) for f in dataclasses.fields(value)}
    if isinstance(value, Mapping):
        return {key: plain(item) for key, item in value.items()}
    if isinstance(value, (tuple, list)):
        return [plain(item) for item in value]
    return value


def _library(folder: str, name: Node) -> Node:
    path = CONFIGS / folder / f"{name.value}.yaml"
    if not path.is_file():
        known = sorted(p.stem for p in (CONFIGS / folder).glob("*.yaml"))
        raise ConfigError(f"{name.origin}: no {path.name} in configs/{folder}; there are {', '.join(known)}")
    return read_file(path)


def _file_with_base(path: Path) -> Node:
    in_a_run = (path.parent / "provenance.json").is_file()
    node = _read_resolved(path) if in_a_run else read_file(path)
    include = node.value.pop("include", None)
    if include is None:
        return node
    if not isinstance(include.value, str):
        raise ConfigError(f"{include.origin}: include: expected the name of one file")
    base = read_file(path.parent / include.value)
    if "include" in base.value:
        raise ConfigError(f"{base.value['include'].origin}: include: a base file may not include another")
    return merge(base, node)


def read_file(path: Path) -> Node:
    """A YAML file as nodes."""
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: cannot read the config: {getattr(error, 'strerror', None) or error}") from None
    try:
        root = yaml.compose(text, Loader=yaml.SafeLoader)
        node = Node({}, f"{path}:1") if root is None else _convert(root, path)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = f"{path}:{mark.line + 1}" if mark else str(path)
        raise ConfigError(f"{where}: not valid YAML: {getattr(error, 'problem', error)}") from None
    if not isinstance(node.value, dict):
        raise ConfigError(f"{path}:1: expected a mapping of keys")
    return node


def _convert(node: yaml.Node, path: Path) -> Node:
    origin = f"{path}:{node.start_mark.line + 1}"
    if isinstance(node, yaml.MappingNode):
        items: dict[str, Node] = {}
        for key, value in node.value:
            if str(key.value) in items:
                raise ConfigError(f"{path}:{key.start_mark.line + 1}: {key.value} is given twice")
            converted = _convert(value, path)
            items[str(key.value)] = Node(converted.value, f"{path}:{key.start_mark.line + 1}")
        return Node(items, origin)
    if isinstance(node, yaml.SequenceNode):
        return Node([_convert(item, path) for item in node.value], origin)
    loader = yaml.SafeLoader("")
    return Node(loader.construct_object(node), origin)


def parse_overrides(overrides: Sequence[str]) -> Node:
    """`--set a.b=c` options as nodes; values are YAML."""
    tree = Node({}, "--set")
    for text in overrides:
        key, equals, value = text.partition("=")
        if not equals or not all(key.split(".")):
            raise ConfigError(f"--set {text}: expected key.subkey=value")
        try:
            parsed = (
                _convert(
                    yaml.compose(value, Loader=yaml.SafeLoader) or yaml.ScalarNode("tag:yaml.org,2002:null", ""),
                    Path("--set"),
                )
                if value.strip()
                else Node(None, "")
            )
        except yaml.YAMLError:
            raise ConfigError(f"--set {text}: the value is not valid YAML") from None
        leaf = _with_origin(parsed, f"--set {key}")
        for part in reversed(key.split(".")):
            leaf = Node({part: leaf}, f"--set {key}")
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


def build(kind: Any, node: Node, path: str) -> Any:
    """The value of one node as the type that its field declares."""
    if dataclasses.is_dataclass(kind):
        return _build_dataclass(kind, node, path)
    origin, args = get_origin(kind), get_args(kind)
    if origin in (typing.Union, types.UnionType):
        return _build_union(args, node, path)
    if origin is Literal:
        # bool is an int to Python: `True` must not pass for the literal 1.
        if not any(node.value == arg and type(node.value) is type(arg) for arg in args):
            nearest = difflib.get_close_matches(str(node.value), [str(arg) for arg in args], 1)
            hint = f" (did you mean {nearest[0]}?)" if nearest else ""
            raise _wrong(node, path, "one of " + ", ".join(str(arg) for arg in args) + hint)
        return node.value
    if origin is dict:
        _expect(isinstance(node.value, dict), node, path, "a mapping")
        return {key: build(args[1], item, f"{path}.{key}") for key, item in node.value.items()}
    if origin is tuple or (isinstance(kind, type) and issubclass(kind, tuple)):
        return _build_tuple(kind, args, node, path)
    if kind is object:
        return _untyped(node)
    return _build_scalar(kind, node, path)


def _build_dataclass(kind: Any, node: Node, path: str) -> Any:
    _expect(isinstance(node.value, dict), node, path or "the config", "a mapping of keys")
    hints = typing.get_type_hints(kind)
    names = [f.name for f in dataclasses.fields(kind)]
    values = {}
    for key, item in node.value.items():
        if key not in names:
            nearest = difflib.get_close_matches(key, names, 1, 0.0)[0]
            full = f"{path}.{key}" if path else key
            raise ConfigError(f"{item.origin}: {full}: unknown key; the nearest valid key is {nearest}")
        values[key] = build(hints[key], item, f"{path}.{key}" if path else key)
    missing = [f.name for f in dataclasses.fields(kind) if _required(f) and f.name not in values]
    if missing:
        raise ConfigError(f"{node.origin}: {path}: the key {missing[0]} is missing")
    try:
        return kind(**values)
    except FieldError as error:
        where = node.value[error.key].origin if error.key in node.value else node.origin
        full = f"{path}.{error.key}" if path else error.key
        raise ConfigError(f"{where}: {full}: {error.message}, got {values.get(error.key, 'the default')}") from None


def _required(f: "dataclasses.Field[Any]") -> bool:
    return f.default is dataclasses.MISSING and f.default_factory is dataclasses.MISSING


def _build_union(args: tuple[Any, ...], node: Node, path: str) -> Any:
    if node.value is None and type(None) in args:
        return None
    kinds = [arg for arg in args if arg is not type(None)]
    for kind in kinds[:-1]:
        try:
            return build(kind, node, path)
        except ConfigError:
            continue  # the last alternative gives the message
    return build(kinds[-1], node, path) if len(kinds) == 1 else _last_alternative(kinds, node, path)


def _last_alternative(kinds: list[Any], node: Node, path: str) -> Any:
    try:
        return build(kinds[-1], node, path)
    except ConfigError:
        raise _wrong(node, path, " or ".join(_describe(kind) for kind in kinds)) from None


def _describe(kind: Any) -> str:
    if get_origin(kind) is Literal:
        return ", ".join(str(arg) for arg in get_args(kind))
    return {int: "a whole number", float: "a number", str: "text", bool: "true or false"}.get(kind, str(kind))


def _build_tuple(kind: Any, args: tuple[Any, ...], node: Node, path: str) -> Any:
    _expect(isinstance(node.value, list), node, path, "a list")
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
        try:
            return float(value)
        except ValueError:
            pass
    if kind is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if type(value) is not kind:
        raise _wrong(node, path, _describe(kind))
    return value


def _untyped(node: Node) -> Any:
    if isinstance(node.value, dict):
        return {key: _untyped(item) for key, item in node.value.items()}
    if isinstance(node.value, list):
        return [_untyped(item) for item in node.value]
    return node.value


def _expect(condition: bool, node: Node, path: str, expected: str) -> None:
    if not condition:
        raise _wrong(node, path, expected)


def _wrong(node: Node, path: str, expected: str) -> ConfigError:
    got = (
        "a mapping" if isinstance(node.value, dict) else "a list" if isinstance(node.value, list) else repr(node.value)
    )
    return ConfigError(f"{node.origin}: {path}: expected {expected}, got {got}")


def _origins(node: Node, path: str) -> typing.Iterator[tuple[str, str]]:
    if isinstance(node.value, dict):
        for key, item in node.value.items():
            yield from _origins(item, f"{path}.{key}" if path else key)
    else:
        yield path, node.origin
