#!/usr/bin/env python3
"""Write the generated pages of docs/: configuration, file tour, benchmarks, fidelity.

    python docs/generate.py            write them
    python docs/generate.py --check    write nothing; exit status 1 if a page is out of date

Everything is read from the code itself: config keys from the dataclasses, files from the folders,
figures from tests/benchmarks/results, and the fidelity table from docs/fidelity.yaml, whose
options, code and tests must exist.
Needs numpy and pyyaml only.
"""

import argparse
import ast
import functools
import json
import sys
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "docs"))

from options import config_options  # noqa: E402

DOCS = ROOT / "docs"
FIDELITY = DOCS / "fidelity.yaml"
RESULTS = ROOT / "tests" / "benchmarks" / "results"
NOTICE = "<!-- Written by `python docs/generate.py`{source}. Edit that, not this page. -->\n"
SOURCE_SUFFIXES = (".py", ".cpp", ".cu", ".h", ".sh", ".yaml")


class DocsError(Exception):
    """Something in docs/ names what does not exist."""


# ---- configuration


def configuration_page() -> str:
    """docs/configuration.md."""
    lines = [
        "# Configuration reference",
        "",
        "Later layers override earlier ones: defaults, recipe (`configs/recipes`), cluster profile "
        "(`configs/clusters`), the file that `include` names, the config file, `--set KEY=VALUE`. "
        "An unknown key is an error. `hpc-stres config` prints the values that apply and where each "
        "was given. `NAME` is a phase. A value of `training` overrides every phase of the recipe.",
    ]
    section = None
    for option in config_options():
        head = option.key.rpartition(".")[0]
        if head != section:
            section = head
            lines += ["", f"## `{head}`" if head else "## Top level", ""]
            lines += ["| key | values | default | meaning |", "|---|---|---|---|"]
        lines.append(table_row(f"`{option.key}`", option.values, option.default, option.meaning))
    return "\n".join(lines) + "\n"


@functools.cache
def all_keys() -> tuple[str, ...]:
    """Every key of the config."""
    return tuple(option.key for option in config_options())


def table_row(*cells: str) -> str:
    """One row of a Markdown table."""
    return "| " + " | ".join(" ".join(cell.split()).replace("|", "\\|") for cell in cells) + " |"


def find_option(words: str) -> str:
    """The one key that ends in the last of some words and has the others before it, in order."""
    wanted = words.split(".")
    keys = all_keys()
    if words in keys:
        return words
    matches = [key for key in keys if _has_in_order(key.split("."), wanted)]
    if len(matches) != 1:
        reason = f"is one of {', '.join(matches)}" if matches else "no such key"
        raise DocsError(f"option {words}: {reason}")
    return matches[0]


def _has_in_order(parts: list[str], wanted: list[str]) -> bool:
    rest = iter(parts)
    return parts[-1] == wanted[-1] and all(word in rest for word in wanted)


# ---- file tour


def tour_page() -> str:
    """docs/tour.md."""
    rooms: dict[Path, list[Path]] = {}
    for top in ("hpc_stres", "launch", "slurm", "configs", "env", "docs", "tests"):
        for path in sorted((ROOT / top).rglob("*")):
            parts = path.relative_to(ROOT).parts
            hidden = any(part.startswith((".", "__pycache__")) for part in parts)
            if path.suffix in SOURCE_SUFFIXES and path.name != "__init__.py" and not hidden:
                rooms.setdefault(path.parent, []).append(path)
    lines = [
        "# Tour of the files",
        "",
        "Each file with its number of lines and the first sentence of its own text.",
    ]
    package = ROOT / "hpc_stres"
    for room in sorted(rooms, key=lambda room: (not room.is_relative_to(package), room)):
        name = room.relative_to(ROOT).as_posix()
        about = first_line(room / "__init__.py") if (room / "__init__.py").is_file() else ""
        lines += ["", f"## {name}/", "", *([about, ""] if about else [])]
        lines += ["| file | lines | what |", "|---|---|---|"]
        for path in rooms[room]:
            count = len(path.read_text(encoding="utf-8").splitlines())
            link = f"[{path.name}](../{path.relative_to(ROOT).as_posix()})"
            lines.append(f"| {link} | {count} | {first_line(path).replace('|', chr(92) + '|')} |")
    return "\n".join(lines) + "\n"


def first_line(path: Path) -> str:
    """First paragraph of a file's docstring, or of its opening comment."""
    text = path.read_text(encoding="utf-8")
    if path.suffix == ".py":
        paragraph = (ast.get_docstring(ast.parse(text)) or "").split("\n\n")[0]
        return " ".join(paragraph.split())
    for line in text.splitlines():
        words = line.strip().lstrip("#/*").strip()
        if words and not line.startswith(("#!", "# shellcheck", "#pragma", "#include")):
            return words if line.lstrip().startswith(("#", "/")) else ""
    return ""


# ---- benchmarks


def benchmarks_page() -> str:
    """docs/benchmarks.md: the prose of benchmarks.in.md and a table for each file of figures."""
    parts = [(DOCS / "benchmarks.in.md").read_text(encoding="utf-8").rstrip()]
    for path in sorted(RESULTS.glob("*.json")):
        content = json.loads(path.read_text(encoding="utf-8"))
        machine = content["machine"]
        where = ", ".join(f"{key}: {value}" for key, value in machine.items() if value is not None)
        rows = ["| part | what | measured | spread | target | |", "|---|---|---|---|---|---|"]
        for figure in content["figures"]:
            measured = f"{figure['value']:.4g} {figure['unit']}"
            spread = f"{100 * figure['spread']:.0f} %" if figure.get("spread") else ""
            cells = (
                figure["part"],
                figure["what"],
                measured,
                spread,
                figure["target"],
                figure["verdict"],
            )
            rows.append(table_row(*cells))
        parts.append(f"### {path.stem}\n\n{where}\n\n" + "\n".join(rows))
    return "\n\n".join(parts) + "\n"


# ---- fidelity


def fidelity_page() -> str:
    """docs/fidelity.md, with every option, symbol and test looked up."""
    content = yaml.safe_load(FIDELITY.read_text(encoding="utf-8"))
    symbols, tests = known_symbols(), known_tests()
    lines = [f"# {content['title']}", "", content["text"].strip()]
    counts = {"shown": 0, "untested": 0, "absent": 0}
    mistakes: list[str] = []
    for section in content["sections"]:
        lines += ["", f"## {section['title']}", "", "| fact | here | shown by |", "|---|---|---|"]
        for row in section["rows"]:
            state = "absent" if "absent" in row else "shown" if row.get("tests") else "untested"
            counts[state] += 1
            cells = [str(row["fact"])]
            for cell, known in ((_where, symbols), (_shown_by, tests)):
                try:
                    cells.append(cell(row, known))
                except DocsError as error:
                    mistakes.append(str(error))
            lines.append(table_row(*cells))
    if mistakes:
        raise DocsError("\n".join(mistakes))
    total = sum(counts.values())
    lines.insert(
        3,
        f"\n{total} facts: {counts['shown']} name a test that shows them, {counts['untested']} are "
        f"in the code without a test of their own, {counts['absent']} are not represented.",
    )
    return "\n".join(lines) + "\n"


def _where(row: dict[str, Any], symbols: dict[str, set[str]]) -> str:
    if "absent" in row:
        return f"not represented: {row['absent']}"
    parts = [f"`{find_option(words)}`" for words in row.get("options", [])]
    for name in row.get("code", []):
        parts.append(_link(name, symbols, "code"))
    for name in row.get("recipes", []):
        if not (ROOT / "configs" / "recipes" / f"{name}.yaml").is_file():
            raise DocsError(f"fidelity.yaml: no recipe {name}")
        parts.append(f"recipe `{name}`")
    if not parts:
        raise DocsError(f"fidelity.yaml: '{row['fact']}' names no option, code or recipe")
    return ", ".join(parts) + (f"; {row['note']}" if "note" in row else "")


def _shown_by(row: dict[str, Any], tests: dict[str, set[str]]) -> str:
    parts = [_link(name, tests, "test") for name in row.get("tests", [])]
    return ", ".join(parts) or ("" if "absent" in row else "no test of its own")


def _link(name: str, places: dict[str, set[str]], what: str) -> str:
    if name not in places:
        raise DocsError(f"fidelity.yaml: {what} {name}: no file defines it")
    # Where two files define the name, the first is taken for both.
    return f"[`{name}`](../{min(places[name])})"


@functools.cache
def known_symbols() -> dict[str, set[str]]:
    """Functions, classes, methods (CLASS.METHOD) and constants of the package, and their files."""
    found: dict[str, set[str]] = {}
    for path in sorted((ROOT / "hpc_stres").rglob("*.py")):
        where = path.relative_to(ROOT).as_posix()
        for node in ast.parse(path.read_text(encoding="utf-8")).body:
            for name in _names(node):
                found.setdefault(name, set()).add(where)
    return found


def _names(node: ast.stmt) -> list[str]:
    if isinstance(node, ast.FunctionDef):
        return [node.name]
    if isinstance(node, ast.ClassDef):
        methods = [item.name for item in node.body if isinstance(item, ast.FunctionDef)]
        return [node.name, *(f"{node.name}.{method}" for method in methods)]
    if isinstance(node, ast.Assign):
        targets = [item for target in node.targets for item in getattr(target, "elts", [target])]
        return [target.id for target in targets if isinstance(target, ast.Name)]
    return [ast.unparse(node.target)] if isinstance(node, ast.AnnAssign) else []


@functools.cache
def known_tests() -> dict[str, set[str]]:
    """Names of the test functions and the files that define them."""
    found: dict[str, set[str]] = {}
    for path in sorted((ROOT / "tests").rglob("test_*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.FunctionDef) and node.name.startswith("test_"):
                found.setdefault(node.name, set()).add(path.relative_to(ROOT).as_posix())
    return found


# ---- the command

PAGES = {
    "configuration.md": (configuration_page, " out of the config's dataclasses"),
    "benchmarks.md": (
        benchmarks_page,
        " out of docs/benchmarks.in.md and tests/benchmarks/results",
    ),
    "fidelity.md": (fidelity_page, " out of docs/fidelity.yaml"),
    "tour.md": (tour_page, " out of the files themselves"),
}


def main(argv: list[str] | None = None) -> int:
    """Write the pages, or compare them."""
    layout = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=layout)
    parser.add_argument("--check", action="store_true", help="write nothing; name stale pages")
    args = parser.parse_args(argv)
    try:
        pages = {name: NOTICE.format(source=text) + make() for name, (make, text) in PAGES.items()}
    except DocsError as error:
        print(f"docs/generate.py: {error}", file=sys.stderr)
        return 1
    stale = {name: text for name, text in pages.items() if _text_of(DOCS / name) != text}
    for name, text in stale.items():
        if not args.check:
            (DOCS / name).write_text(text, encoding="utf-8")
        state = "out of date; run python docs/generate.py" if args.check else "written"
        print(f"docs/{name}: {state}")
    return 1 if args.check and stale else 0


def _text_of(path: Path) -> str:
    return path.read_text(encoding="utf-8") if path.is_file() else ""


if __name__ == "__main__":
    sys.exit(main())
