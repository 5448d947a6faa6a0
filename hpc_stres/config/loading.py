"""Layers of YAML files and `--set` options become one Config; every message names file, line and
the nearest key.

`hpc_stres.config.tree` reads and merges text; here the layers are laid over each other, and
`hpc_stres.config.values` matches the result with the dataclasses of `hpc_stres.config.schema`.
"""

import dataclasses
import difflib
import os
import re
import typing
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from hpc_stres import SOURCES
from hpc_stres.config.places import make_absolute
from hpc_stres.config.recipe import ordered_phases
from hpc_stres.config.schema import Config, DataConfig
from hpc_stres.config.seal import refuse_empty
from hpc_stres.config.tree import Node, merge, origins, parse_overrides, read_file, shown
from hpc_stres.config.upgrade import gather_prepare, upgrade
from hpc_stres.config.values import NEAR, build, expect
from hpc_stres.errors import ConfigError
from hpc_stres.registry import load_extension

# In a checkout they lie beside the package; an installed package carries them inside.
_PLACES = (SOURCES / "configs", SOURCES / "hpc_stres" / "configs")
CONFIGS = next((folder for folder in _PLACES if (folder / "recipes").is_dir()), _PLACES[0])


def load_config(
    path: str | Path, overrides: Sequence[str] = (), profile: str | None = None
) -> Config:
    """Config of a file with its recipe, its cluster profile, its base file and the
    `--set` overrides."""
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
    recipe = _recipe(own.value.get("recipe", Node("nips2016", "default")), tree)
    _refuse_unknown_phases(recipe, tree)
    tree = merge(recipe, tree)
    return _whole(tree), dict(origins(tree, ""))


def load_resolved(path: str | Path) -> Config:
    """A run folder's config.yaml, which is complete."""
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
    make_absolute(tree)
    gather_prepare(tree)
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
        hint = (
            f"did you mean {nearest[0]}?"
            if nearest
            else "a phase of your own needs a `model` or a `kind`"
        )
        raise ConfigError(
            f"{node.origin}: phases.{shown(name)}: the recipe has no such phase; it has {', '.join(known)}; {hint}"
        )


def _read_resolved(path: Path) -> Node:
    """A run folder's config.yaml; an older version's is read as this version would write it."""
    node = read_file(path)
    refuse_empty(path, not node.value)
    _load_extensions(node, path.parent)
    upgrade(node, str(path))
    return node


def from_plain(value: Mapping[str, Any], origin: str) -> Config:
    """A config from plain values, as done.json and checkpoints hold it; an older
    version's is upgraded."""
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
    """Import the files of one's own before anything asks for what they register; relative to the
    config's folder."""
    given = node.value.get("extensions")
    if given is None or not isinstance(given.value, list):
        return  # not a list: refused with its type below
    files = []
    for item in given.value:
        expect(isinstance(item.value, str), item, "extensions", "the name of a Python file")
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


def _recipe(name: Node, tree: Node) -> Node:
    """A recipe, and over it what it changes for the config's data set: NAME.KIND.yaml,
    where there is one."""
    recipe = _library("recipes", name)
    data = tree.value.get("data", Node({}, "")).value
    kind = data["kind"].value if isinstance(data, dict) and "kind" in data else DataConfig.kind
    path = CONFIGS / "recipes" / f"{name.value}.{kind}.yaml"
    is_word = isinstance(kind, str) and re.fullmatch(r"\w{1,100}", kind)
    return merge(recipe, read_file(path)) if is_word and path.is_file() else recipe


def flat(value: Any, path: str = "") -> dict[str, Any]:
    """A config's values by their dotted keys; lists are values."""
    if isinstance(value, Mapping) and value:
        inner = [flat(item, f"{path}.{key}" if path else str(key)) for key, item in value.items()]
        return {key: item for part in inner for key, item in part.items()}
    return {path: value}


def _library(folder: str, name: Node) -> Node:
    is_word = isinstance(name.value, str) and re.fullmatch(r"[\w.-]{1,100}", name.value)
    path = CONFIGS / folder / f"{name.value if is_word else '?'}.yaml"
    if not is_word or not path.is_file():
        known = sorted(p.stem for p in (CONFIGS / folder).glob("*.yaml") if "." not in p.stem)
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
        raise ConfigError(
            f"{base.value['include'].origin}: include: a base file may not include another"
        )
    return merge(base, node)
