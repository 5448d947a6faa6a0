"""Print the resolved config with the origin of every value: a file and line, an option, or the default."""

import argparse
import dataclasses
from typing import Any

from hpc_stres.commands import add_config_arguments


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_config_arguments(parser)
    parser.add_argument("--cluster", metavar="NAME", help="cluster profile of configs/clusters")
    parser.add_argument("--explain", action="store_true", help="print what each key means as well")


def run(args: argparse.Namespace) -> int:
    from hpc_stres.configfile import load_with_origins

    config, origins = load_with_origins(args.config, args.overrides, args.cluster)
    for key, value, text in _leaves(config, ""):
        print(f"{key} = {_show(value)}  # {_origin(origins, key)}")
        if args.explain and text:
            print(f"    {text}")
    return 0


def _leaves(value: Any, path: str) -> list[tuple[str, Any, str]]:
    """Key, value and documentation of every value."""
    if isinstance(value, dict) and value:
        return [leaf for key, item in value.items() for leaf in _leaves(item, f"{path}.{key}")]
    if not dataclasses.is_dataclass(value) or isinstance(value, type):
        return [(path, value, "")]
    documents = field_documents(type(value))
    found = []
    for field in dataclasses.fields(value):
        key = f"{path}.{field.name}" if path else field.name
        inner = _leaves(getattr(value, field.name), key)
        found += [(key, inner[0][1], documents[field.name])] if inner[0][0] == key else inner
    return found


def field_documents(kind: type) -> dict[str, str]:
    """The docstring under each field of a config section."""
    import ast
    import inspect
    import textwrap

    body = ast.parse(textwrap.dedent(inspect.getsource(kind))).body[0]
    assert isinstance(body, ast.ClassDef)
    documents = {}
    for field, below in zip(body.body, body.body[1:], strict=False):
        if isinstance(field, ast.AnnAssign) and isinstance(field.target, ast.Name) and isinstance(below, ast.Expr):
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
