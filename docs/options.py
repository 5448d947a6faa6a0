"""The options of the config as the code declares them, for docs/generate.py: keys, values, defaults, meanings.

Needs numpy and pyyaml only.
"""

import ast
import dataclasses
import inspect
import itertools
import json
import sys
import textwrap
import types
import typing
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

ROOT = Path(__file__).resolve().parent.parent
if str(ROOT) not in sys.path:
    sys.path.insert(0, str(ROOT))

from hpc_stres.config.schema import Config  # noqa: E402
from hpc_stres.registry import MODELS, PHASE_KINDS  # noqa: E402
from hpc_stres.registry.model import ModelOptions  # noqa: E402
from hpc_stres.registry.phase import Phase  # noqa: E402

Words = tuple[str, ...]
WORDS = {int: "whole number", float: "number", str: "text", bool: "true, false", object: "anything"}


class Option(typing.NamedTuple):
    """One key of the config."""

    key: str
    values: str
    default: str
    meaning: str


def config_options(kind: type = Config, path: str = "") -> Iterator[Option]:
    """Every key of a config section and of those inside it; NAME is a name that the user gives."""
    hints, texts, limits = typing.get_type_hints(kind), field_texts(kind), field_limits(kind)
    for field in dataclasses.fields(kind):
        key = f"{path}.{field.name}" if path else field.name
        hint = hints[field.name]
        inner = get_args(hint)[1] if get_origin(hint) is dict else hint
        if inner is Phase:
            yield from phase_options(f"{key}.NAME")
        elif inner is ModelOptions:
            yield from model_options(key)
        elif dataclasses.is_dataclass(inner):
            name = key if inner is hint else f"{key}.NAME"
            yield from config_options(typing.cast(type, inner), name)
        else:
            yield _option(key, hint, field, limits.get(field.name, ""), texts.get(field.name, ""))


def _option(key: str, hint: Any, field: Any, limit: str, meaning: str) -> Option:
    values = values_text(hint)
    if limit:
        says_type = values in ("whole number", "number") and "number" in limit
        bare = limit.removeprefix("a ").removeprefix("an ")
        values = bare if says_type else f"{values}; {limit}"
    return Option(key, values, default_text(field), meaning)


def phase_options(path: str) -> Iterator[Option]:
    """Options of the phases of all kinds; those that one kind alone has say so."""
    shared = {f.name for f in dataclasses.fields(Phase)}
    seen: set[str] = set()
    for kind in PHASE_KINDS.entries():
        for option in config_options(kind.options, path):
            name = option.key.removeprefix(f"{path}.")
            if option.key in seen:
                continue
            seen.add(option.key)
            is_shared = name in shared or kind.name == "train"
            meaning = option.meaning if is_shared else f"Kind {kind.name}: {option.meaning}"
            if name == "kind":
                option = option._replace(values=", ".join(f"`{n}`" for n in PHASE_KINDS.names()))
            yield option._replace(meaning=meaning)


def model_options(path: str) -> Iterator[Option]:
    """Options of all models; those that only some have name them."""
    families: dict[str, list[str]] = {}
    options: dict[str, Option] = {}
    defaults: dict[str, dict[str, list[str]]] = {}
    for family in MODELS.entries():
        for option in config_options(family.options, path):
            families.setdefault(option.key, []).append(family.name)
            options.setdefault(option.key, option)
            defaults.setdefault(option.key, {}).setdefault(option.default, []).append(family.name)
    for key, option in options.items():
        own = families[key]
        words = (
            ""
            if len(own) == len(MODELS.names())
            else f" Models: {', '.join(f'`{n}`' for n in own)}."
        )
        given = defaults[key]
        if len(given) > 1:
            option = option._replace(
                default="; ".join(f"{value} ({', '.join(names)})" for value, names in given.items())
            )
        if key.endswith(".name"):
            option = option._replace(values=", ".join(f"`{n}`" for n in MODELS.names()))
        yield option._replace(meaning=option.meaning + words)


def field_texts(kind: type) -> dict[str, str]:
    """The docstring under each field of a dataclass."""
    texts = {}
    for owner in _dataclasses_of(kind):
        for field, below in itertools.pairwise(_class_body(owner)):
            if isinstance(field, ast.AnnAssign) and isinstance(below, ast.Expr):
                texts[ast.unparse(field.target)] = " ".join(
                    str(ast.literal_eval(below.value)).split()
                )
    return texts


def _dataclasses_of(kind: type) -> list[type]:
    """A dataclass and those that it is made of, the most general first."""
    return [owner for owner in reversed(kind.__mro__) if dataclasses.is_dataclass(owner)]


def field_limits(kind: type) -> dict[str, str]:
    """What the checks of a dataclass expect of each field, as their messages say it."""
    limits: dict[str, list[str]] = {}
    for node in [node for owner in _dataclasses_of(kind) for node in _class_body(owner)]:
        if isinstance(node, ast.FunctionDef) and node.name.startswith(("__post_init__", "_check")):
            for keys, message in _checks(node, {}):
                for key in keys:
                    limits.setdefault(key, []).append(message.removeprefix("expected "))
    return {key: "; ".join(dict.fromkeys(messages)) for key, messages in limits.items()}


def _class_body(kind: type) -> list[ast.stmt]:
    tree = ast.parse(textwrap.dedent(inspect.getsource(kind))).body[0]
    return typing.cast(ast.ClassDef, tree).body


def _checks(node: ast.AST, loops: dict[str, Words]) -> Iterator[tuple[Words, str]]:
    """Calls `check_field(condition, key, message)` under a node; `loops`: values of variables."""
    if isinstance(node, ast.For) and isinstance(node.iter, ast.Tuple):
        values = tuple(str(ast.literal_eval(item)) for item in node.iter.elts)
        loops = loops | {ast.unparse(node.target): values}
    if isinstance(node, ast.Call) and getattr(node.func, "id", "") == "check_field":
        key, message = node.args[1], node.args[2]
        keys = loops.get(ast.unparse(key), ())
        if isinstance(key, ast.Constant):
            keys = (str(key.value),)
        # A message with a computed part is about one wrong value; it is no rule to print.
        if isinstance(message, ast.Constant):
            yield keys, str(message.value)
    for child in ast.iter_child_nodes(node):
        yield from _checks(child, loops)


def values_text(hint: Any) -> str:
    """The type of a field in words, or the values that it takes."""
    origin, args = get_origin(hint), get_args(hint)
    if origin in (typing.Union, types.UnionType):
        return ", ".join("none" if arg is type(None) else values_text(arg) for arg in args)
    if origin is Literal:
        return ", ".join(f"`{arg}`" for arg in args)
    if origin is tuple and len(args) == 2 and args[1] is Ellipsis:
        return f"list of {values_text(args[0])}"
    if origin is tuple:
        return f"list of {len(args)}: {values_text(args[0])}"
    if origin is dict:
        return f"mapping of names to {values_text(args[1])}"
    if dataclasses.is_dataclass(hint):
        return "{" + ", ".join(field.name for field in dataclasses.fields(hint)) + "}"
    if hasattr(hint, "_fields"):
        return "[" + ", ".join(hint._fields) + "]"
    return WORDS.get(hint, getattr(hint, "__name__", str(hint)))


def default_text(field: "dataclasses.Field[Any]") -> str:
    """The default of a field as YAML writes it."""
    if field.default is not dataclasses.MISSING:
        value = field.default
    elif field.default_factory is not dataclasses.MISSING:
        value = field.default_factory()
    else:
        return "required"
    if value is None:
        return "none"
    text = json.dumps(value) if isinstance(value, (tuple, list, dict, bool)) else str(value)
    return f"`{text}`"
