"""The paper's Table 3 with ours beside it, as text."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from hpc_stres.errors import UserError
from hpc_stres.evaluation.published import published_for
from hpc_stres.run.paths import read_sealed
from hpc_stres.run.tables import text_table

# What is printed in place of the protocol where columns differ in theirs.
MIXED = "columns of different protocols"


def read_results(path: Path) -> dict[str, Any]:
    """results.json as it was written; a missing or damaged one is a UserError that says how to make it again."""
    remedy = f"Run `hpc-stres evaluate --run-dir {path.parent}`: what was scored is not scored again."
    if not path.is_file():
        raise UserError(f"{path.parent}: no results.json here\n{remedy}")
    return read_sealed(path, remedy)


def count_text(column: Mapping[str, Any]) -> str:
    """`96`, or `95 of 96` where videos are missing."""
    return str(column["of"]) if column["videos"] == column["of"] else f"{column['videos']} of {column['of']}"


def title_of(name: str, columns: Mapping[str, Mapping[str, Any]]) -> str:
    """Heading of a column; its name where results.json gives none."""
    return str(columns.get(name, {}).get("title") or name)


def score_rows(columns: Mapping[str, Mapping[str, Any]]) -> list[list[str]]:
    """Name, top-1, interval, top-5 and count of each column."""
    return [
        [
            title_of(name, columns), f"{c['top1']:.2f}", f"{c['interval95'][0]:.1f} - {c['interval95'][1]:.1f}",
            f"{c['top5']:.2f}", count_text(c),
        ]
        for name, c in columns.items()
    ]  # fmt: skip


def results_table(results: Mapping[str, Any]) -> str:
    """Accuracy of each column and split, its interval, and beside means the published figure where there is one."""
    header, rows = table_cells(results)
    return text_table(header, rows) + "".join(f"\n{line}" for line in protocol_lines(results))


def table_cells(results: Mapping[str, Any]) -> tuple[list[str], list[list[str]]]:
    """Header and rows of the table."""
    published = published_for(results)
    several = len(results["splits"]) > 1 or "mean" in results
    header = ["", *(["split"] if several else []), "top-1 %", "95 % interval", "top-5 %", "videos"]
    rows = []
    for split, table in results["splits"].items():
        for title, *cells in score_rows(table):
            rows.append([title, *([split] if several else []), *cells])
    for name, value in results.get("mean", {}).items():
        rows.append([title_of(name, next(iter(results["splits"].values()))), "mean", f"{value:.2f}", "", "", ""])
    if published is None:
        return header, rows
    # Figures of the paper are means of three splits: they are printed beside means only.
    means = list(results.get("mean", {}))
    single = [""] * (len(rows) - len(means))
    beside = single + [f"{published[name]:.2f}" if name in published else "-" for name in means]
    return [*header, "published"], [[*row, cell] for row, cell in zip(rows, beside, strict=True)]


def protocol_lines(results: Mapping[str, Any]) -> list[str]:
    """The protocol in words, or one line a column where they differ."""
    if results["protocol"] != MIXED:
        return [str(results["protocol"])]
    columns = {name: c["protocol"] for table in results["splits"].values() for name, c in table.items()}
    table = next(iter(results["splits"].values()))
    return [f"{title_of(name, table)}: {words}" for name, words in columns.items()]
