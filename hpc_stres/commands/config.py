"""Print the resolved config with the origin of every value: a file and line, an
option, or the default."""

import argparse
import dataclasses
import types
import typing
from typing import TYPE_CHECKING, Any, NamedTuple

from hpc_stres.commands import add_config_arguments, config_path

if TYPE_CHECKING:
    from hpc_stres.config.schema import Config


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_config_arguments(parser)
    parser.add_argument("--cluster", metavar="NAME", help="cluster profile of configs/clusters")
    parser.add_argument("--explain", action="store_true", help="print what each key means as well")


def run(args: argparse.Namespace) -> int:
    from hpc_stres.config.loading import load_with_origins

    config, origins = load_with_origins(config_path(args), args.overrides, args.cluster)
    for key, value, text, allowed in _leaves(config, ""):
        note = _cut(config, key)
        if not _acts(config, key):
            continue
        print(f"{key} = {_show(value)}  # {_origin(origins, _source(config, key))}{note}")
        if args.explain and text:
            print(f"    {text}")
            print(f"    allowed: {allowed}")
    return 0


def _acts(config: "Config", key: str) -> bool:
    """Whether a value has an effect: a phase's options depend on its model, others
    on other values."""
    section, *rest = key.split(".")
    if section == "phases" and len(rest) > 1:
        option = ".".join(rest[1:])
        acting = config.phases[rest[0]].acting()
        return any(f"{option}.".startswith(f"{name}.") for name in acting)
    unused = {
        "data.binding": config.data.kind != "binding", "data.folds": config.data.kind != "folder",
        "data.test_fraction": config.data.kind != "folder" or config.data.folds > 1,
        "model.depth": config.model.stages is not None, "training.zero_stage": config.training.engine == "ddp",
        "training.deepspeed": config.training.engine == "ddp",
        "evaluation.chunks": config.evaluation.protocol == "quick",
        "evaluation.flips": config.evaluation.protocol == "quick",
    }  # fmt: skip
    return not any(
        is_unused and f"{key}.".startswith(f"{name}.") for name, is_unused in unused.items()
    )


def _source(config: "Config", key: str) -> str:
    """The key that gave a value: a phase's own, or the run-wide one that every
    phase takes it from."""
    section, *rest = key.split(".")
    if section != "phases" or len(rest) < 2:
        return key
    return config.source_of(rest[0], ".".join(rest[1:])) or key


def _cut(config: "Config", key: str) -> str:
    """Whether a schedule ends early."""
    section, *rest = key.split(".")
    most = config.training.max_steps
    if section != "phases" or rest[1:] != ["optimise", "schedule"]:
        return ""
    scale = config.phase(rest[0]).optimise.schedule_scale
    notes = [f"times {scale:g} by optimise.schedule_scale"] if scale != 1.0 else []
    notes += (
        [f"cut to {config.steps(rest[0])} steps by training.max_steps"] if most is not None else []
    )
    return f" ({'; '.join(notes)})" if notes else ""


class Leaf(NamedTuple):
    """One value: its key, what it means, and what it may be."""

    key: str
    value: Any
    text: str
    allowed: str


def _leaves(value: Any, path: str) -> list[Leaf]:
    """Every value of a config."""
    if isinstance(value, dict) and value:
        return [leaf for key, item in value.items() for leaf in _leaves(item, f"{path}.{key}")]
    if not dataclasses.is_dataclass(value) or isinstance(value, type):
        return [Leaf(path, value, "", "")]
    documents, hints = field_documents(type(value)), typing.get_type_hints(type(value))
    leaves: list[Leaf] = []
    for field in dataclasses.fields(value):
        key = f"{path}.{field.name}" if path else field.name
        inner = _leaves(getattr(value, field.name), key)
        text = documents.get(field.name, "")
        leaves += (
            [Leaf(key, inner[0].value, text, allowed(hints[field.name]))]
            if inner[0].key == key
            else inner
        )
    return leaves


NUMBERS = {
    int: "a whole number",
    float: "a number",
    str: "text",
    bool: "true or false",
    type(None): "null",
}


def allowed(hint: Any) -> str:
    """What a field's value may be, in words."""
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if origin is typing.Literal:
        return ", ".join(map(str, args))
    if origin in (typing.Union, types.UnionType):
        return " or ".join(allowed(arg) for arg in args)
    if origin is tuple and args[-1] is Ellipsis:
        return f"a list of {allowed(args[0])}"
    if origin is tuple:
        return "[" + ", ".join(allowed(arg) for arg in args) + "]"
    if origin is dict:
        return "a mapping"
    if hasattr(hint, "_fields"):
        return "[" + ", ".join(hint._fields) + "]"
    if dataclasses.is_dataclass(hint):
        return "{" + ", ".join(f.name for f in dataclasses.fields(hint)) + "}"
    return NUMBERS.get(hint, "a value")


def field_documents(kind: type) -> dict[str, str]:
    """The docstring under each field of a config section, its bases' included."""
    import ast
    import inspect
    import textwrap

    documents = {}
    for owner in reversed(kind.__mro__):
        if not dataclasses.is_dataclass(owner):
            continue
        body = ast.parse(textwrap.dedent(inspect.getsource(owner))).body[0]
        assert isinstance(body, ast.ClassDef)
        for field, below in zip(body.body, body.body[1:], strict=False):
            if (
                isinstance(field, ast.AnnAssign)
                and isinstance(field.target, ast.Name)
                and isinstance(below, ast.Expr)
            ):
                documents[field.target.id] = " ".join(str(ast.literal_eval(below.value)).split())
    return documents


def _origin(origins: dict[str, str], key: str) -> str:
    """Where a value was given; a value inside a given list or an extra mapping belongs to that."""
    while key:
        if key in origins:
            return origins[key]
        key = key.rpartition(".")[0]
    return "default"


def _show(value: Any) -> str:
    if isinstance(value, tuple):
        return "[" + ", ".join(_show(item) for item in value) + "]"
    if isinstance(value, bool):
        return str(value).lower()
    return "null" if value is None else str(value)
