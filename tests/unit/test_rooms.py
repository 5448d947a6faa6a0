"""The house's plan: which room may look into which. Every form of import is read, and each forbidden arrow fails."""

import ast
from pathlib import Path

import pytest

from tests.conftest import ROOT

PACKAGE = ROOT / "hpc_stres"
# What a room may import besides itself and the hall (errors, layout). What is not named here is forbidden.
MAY_SEE = {
    "registry": set(),
    "config": {"registry"},
    "phases": {"registry", "config"},
    "run": {"config"},
    "parallel": set(),
    "native": set(),
    "listings": {"registry", "config"},
    "store": {"config", "run", "listings"},
    "data": {"config", "phases", "native", "store"},
    "prepare": {"registry", "config", "run", "parallel", "listings", "store", "data"},
    "models": {"registry", "config", "phases", "run", "native"},
    "training": {"config", "phases", "run", "parallel", "store", "data", "models"},
    "evaluation": {"registry", "config", "phases", "run", "parallel", "listings", "store", "data",
                   "prepare", "models"},
    "handcrafted": {"config", "phases", "run", "parallel", "store", "data", "prepare",
                    "evaluation"},
    "tools": {"config", "phases", "run", "parallel", "native", "store", "data", "prepare",
              "models", "training"},
    "launch": {"config", "run", "store", "evaluation", "tools"},
    "commands": {"registry", "config", "run", "parallel", "store", "prepare", "models",
                 "evaluation", "tools", "launch"},
}  # fmt: skip
HALL = {"errors", "layout", "counter", "__init__", "__main__"}


def imported_modules(path: Path, source: str) -> set[str]:
    """Dotted names of everything of this package that a file imports: absolute, relative, by name, by importlib."""
    package = list(path.relative_to(ROOT).with_suffix("").parts)
    found: set[str] = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level] if node.level else []
            module = ".".join([*base, *([node.module] if node.module else [])])
            found |= {f"{module}.{alias.name}" for alias in node.names} | {module}
        elif isinstance(node, ast.Call):
            name = (
                node.func.attr
                if isinstance(node.func, ast.Attribute)
                else getattr(node.func, "id", "")
            )
            if (
                name in ("import_module", "__import__")
                and node.args
                and isinstance(node.args[0], ast.Constant)
            ):
                found.add(str(node.args[0].value))
    return {name for name in found if name.split(".")[0] in ("hpc_stres", "launch")}


def arrows(path: Path, source: str) -> set[str]:
    """Rooms that a file looks into; `launch` is the folder of scripts at the top, which nothing may import."""
    rooms = set()
    for name in imported_modules(path, source):
        parts = name.split(".")
        if parts[0] == "launch":
            rooms.add("the scripts in launch/")
        elif len(parts) > 1 and parts[1] in MAY_SEE:
            rooms.add(parts[1])
    own = path.relative_to(PACKAGE).parts[0]
    return rooms - {own}


def files():
    return sorted(path for path in PACKAGE.rglob("*.py"))


def forbidden(path: Path, source: str) -> set[str]:
    own = path.relative_to(PACKAGE).parts[0]
    return arrows(path, source) - MAY_SEE.get(own, set()) if own in MAY_SEE else set()


@pytest.mark.parametrize("path", files(), ids=lambda path: str(path.relative_to(ROOT)))
def test_a_room_sees_only_what_it_may(path):
    assert not forbidden(path, path.read_text(encoding="utf-8"))


def test_every_room_is_in_the_plan():
    rooms = {
        path.relative_to(PACKAGE).parts[0]
        for path in files()
        if len(path.relative_to(PACKAGE).parts) > 1
    }
    assert rooms == set(MAY_SEE)
    assert {path.stem for path in PACKAGE.glob("*.py")} == HALL


@pytest.mark.parametrize(
    "line",
    [
        "from hpc_stres.training import trainer",
        "from hpc_stres.training.trainer import train",
        "import hpc_stres.training.trainer",
        "import hpc_stres.training.trainer as t",
        "from hpc_stres import training",
        "from ..training import trainer",
        "def f():\n    from hpc_stres.training import trainer",
        "import importlib\nimportlib.import_module('hpc_stres.training.trainer')",
        "import launch.submit",
    ],
)
@pytest.mark.parametrize(
    "room", ["models", "data", "evaluation", "store", "prepare", "run", "config"]
)
def test_each_form_of_a_forbidden_import_is_noticed(room, line):
    assert forbidden(PACKAGE / room / "made_up.py", line)


def test_rooms_form_no_circle():
    seen: dict[str, set[str]] = {room: set() for room in MAY_SEE}
    for path in files():
        own = path.relative_to(PACKAGE).parts[0]
        if own in MAY_SEE:
            seen[own] |= arrows(path, path.read_text(encoding="utf-8")) & set(MAY_SEE)
    order: list[str] = []
    while len(order) < len(seen):
        ready = [room for room in seen if room not in order and seen[room] <= set(order)]
        assert ready, f"a circle between {set(seen) - set(order)}"
        order += ready


def test_there_are_few_arrows():
    """As many as a reader can keep in mind; a room that needs one more gives one up elsewhere."""
    seen = {
        (path.relative_to(PACKAGE).parts[0], room)
        for path in files()
        for room in arrows(path, path.read_text(encoding="utf-8")) & set(MAY_SEE)
        if path.relative_to(PACKAGE).parts[0] in MAY_SEE
    }
    assert len(seen) <= 75
    assert len(MAY_SEE) <= 20
