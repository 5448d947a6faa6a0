"""Print the resolved config with the origin of every value: a file and line, an option, or the default."""

import argparse
import dataclasses
from typing import TYPE_CHECKING, Any

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
    for key, value, text in _leaves(config, ""):
        note = _cut(config, key)
        if not _acts(config, key):
            continue
        value, source = _applied(config, key, value)
        print(f"{key} = {_show(value)}  # {_origin(origins, source)}{note}")
        if args.explain and text:
            print(f"    {text}")
    return 0


# Values of `training` that take the place of every phase's own.
OVERRIDDEN = ("global_batch", "norm_group")


def _acts(config: "Config", key: str) -> bool:
    """Whether a value has an effect: a phase's options depend on its model, others on other values."""
    section, *rest = key.split(".")
    if section == "phases" and len(rest) > 1:
        return rest[1] in config.phases[rest[0]].acting()
    unused = {
        "data.binding": config.data.kind != "binding", "data.test_fraction": config.data.kind != "folder",
        "model.depth": config.model.stages is not None, "training.zero_stage": config.training.engine == "ddp",
        "training.deepspeed": config.training.engine == "ddp",
        "evaluation.chunks": config.evaluation.protocol == "quick",
        "evaluation.flips": config.evaluation.protocol == "quick",
    }  # fmt: skip
    return not any(is_unused and f"{key}.".startswith(f"{name}.") for name, is_unused in unused.items())


def _applied(config: "Config", key: str, value: Any) -> tuple[Any, str]:
    """The value that applies, and the key that gave it."""
    section, *rest = key.split(".")
    if section != "phases" or len(rest) < 2 or rest[1] not in OVERRIDDEN:
        return value, key
    applied = getattr(config.phase(rest[0]), rest[1])
    if getattr(config.training, rest[1]) is not None:
        return applied, f"training.{rest[1]}"
    # A group is never larger than the batch, wherever that was given.
    return applied, key if applied == value else "training.global_batch"


def _cut(config: "Config", key: str) -> str:
    """Whether a schedule ends early."""
    section, *rest = key.split(".")
    most = config.training.max_steps
    if section != "phases" or rest[1:] != ["schedule"] or most is None:
        return ""
    return f" (cut to {config.steps(rest[0])} steps by training.max_steps)"


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
