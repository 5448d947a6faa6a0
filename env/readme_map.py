#!/usr/bin/env python3
"""Print the README's map of the files: first line of each module's docstring and its number of lines."""

import ast
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent


def rows() -> list[str]:
    """One row a module, rooms in the order in which a newcomer reads them."""
    found = ["| file | lines | what |", "|---|---|---|"]
    for folder in (
        "hpc_stres",
        "hpc_stres/models",
        "hpc_stres/data",
        "hpc_stres/training",
        "hpc_stres/evaluation",
        "launch",
    ):
        for path in sorted((ROOT / folder).glob("*.py")):
            if path.name == "__init__.py":
                continue
            text = path.read_text(encoding="utf-8")
            first = (ast.get_docstring(ast.parse(text)) or "").splitlines()[0]
            found.append(f"| `{path.relative_to(ROOT)}` | {len(text.splitlines())} | {first} |")
    return found


if __name__ == "__main__":
    print("\n".join(rows()))
