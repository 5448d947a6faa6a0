"""The paper's Table 3 with ours beside it: as text, LaTeX, Markdown and CSV."""

import csv
import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from hpc_stres.errors import UserError
from hpc_stres.evaluation.published import published_for
from hpc_stres.run.paths import read_sealed
from hpc_stres.run.tables import text_table

# What is printed in place of the protocol where columns differ in theirs.
MIXED = "columns of different protocols"


def read_results(path: Path) -> dict[str, Any]:
    """results.json as it was written; a missing or damaged one is a UserError that says how
    to make it again."""
    remedy = (
        f"Run `hpc-stres evaluate --run-dir {path.parent}`: what was scored is not scored again."
    )
    if not path.is_file():
        raise UserError(f"{path.parent}: no results.json here\n{remedy}")
    return read_sealed(path, remedy)


def count_text(column: Mapping[str, Any]) -> str:
    """`96`, or `95 of 96` where videos are missing."""
    return (
        str(column["of"])
        if column["videos"] == column["of"]
        else f"{column['videos']} of {column['of']}"
    )


def title_of(name: str, columns: Mapping[str, Mapping[str, Any]]) -> str:
    """Heading of a column; its name where results.json gives none."""
    return str(columns.get(name, {}).get("title") or name)


def score_rows(columns: Mapping[str, Mapping[str, Any]]) -> list[list[str]]:
    """Name, top-1, interval, top-5 and count of each column."""
    return [
        [
            title_of(name, columns), f"{c['top1']:.2f}", f"{c['interval95'][0]:.1f} - {c['interval95'][1]:.1f}",
            f"{c['map' if is_multi(c) else 'top5']:.2f}", count_text(c),
        ]
        for name, c in columns.items()
    ]  # fmt: skip


def is_multi(column: Mapping[str, Any]) -> bool:
    """Whether a column is of videos that have several classes: it then has mAP
    in place of top-5."""
    return "map" in column


def results_table(results: Mapping[str, Any]) -> str:
    """Accuracy of each column and split, its interval, and beside means the published figure
    where there is one."""
    header, rows = table_cells(results)
    lines = [*protocol_lines(results), *group_lines(results)]
    return text_table(header, rows) + "".join(f"\n{line}" for line in lines)


def group_lines(results: Mapping[str, Any]) -> list[str]:
    """Whose independence the intervals assume: how many recordings, and how they are known."""
    words = {
        column["groups"]["words"]: column["groups"]["method"]
        for table in results["splits"].values() for column in table.values() if "groups" in column
    }  # fmt: skip
    methods = {"wilson": "Wilson's", "cluster": "over recordings, stratified by class"}
    return [f"intervals {methods[method]}: {text}" for text, method in words.items()]


def table_cells(results: Mapping[str, Any]) -> tuple[list[str], list[list[str]]]:
    """Header and rows of the table."""
    published = published_for(results)
    several = len(results["splits"]) > 1 or "mean" in results
    second = "mAP %" if results.get("labels") == "multi" else "top-5 %"
    header = ["", *(["split"] if several else []), "top-1 %", "95 % interval", second, "videos"]
    rows = []
    for split, table in results["splits"].items():
        for title, *cells in score_rows(table):
            rows.append([title, *([split] if several else []), *cells])
    for name, value in results.get("mean", {}).items():
        rows.append(
            [
                title_of(name, next(iter(results["splits"].values()))),
                "mean",
                f"{value:.2f}",
                "",
                "",
                "",
            ]
        )
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
    columns = {
        name: c["protocol"] for table in results["splits"].values() for name, c in table.items()
    }
    table = next(iter(results["splits"].values()))
    return [f"{title_of(name, table)}: {words}" for name, words in columns.items()]


def formatted(results: Mapping[str, Any], kind: str) -> str:
    """The table as `latex`, `markdown` or `csv`."""
    if kind == "csv":
        return results_csv(results)
    header, rows = table_cells(results)
    return latex(header, rows, group_lines(results)) if kind == "latex" else markdown(header, rows)


def markdown(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A pipe table."""

    def line(cells: Sequence[str]) -> str:
        return (
            "| "
            + " | ".join(
                cell.replace("\\", "\\\\").replace("|", "\\|").replace("*", "\\*") for cell in cells
            )
            + " |"
        )

    rule = (
        "|" + "|".join(" :--- " if number == 0 else " ---: " for number in range(len(header))) + "|"
    )
    return "\n".join([line(header), rule, *map(line, rows)]) + "\n"


LATEX = {
    "\\": r"\textbackslash{}", "&": r"\&", "%": r"\%", "$": r"\$", "#": r"\#", "_": r"\_", "{": r"\{", "}": r"\}",
    "~": r"\textasciitilde{}", "^": r"\textasciicircum{}",
}  # fmt: skip


def latex_text(text: str) -> str:
    """Text with every letter that LaTeX gives a meaning to escaped."""
    return "".join(LATEX.get(letter, letter) for letter in text)


def latex(header: Sequence[str], rows: Sequence[Sequence[str]], notes: Sequence[str] = ()) -> str:
    """A tabular with booktabs' rules; notes stand above it as comments."""

    def line(cells: Sequence[str]) -> str:
        return "  " + " & ".join(latex_text(cell).replace(" - ", "--") for cell in cells) + r" \\"

    comments = [f"% {note}" for note in [*notes, r"needs \usepackage{booktabs}"]]
    body = [
        rf"\begin{{tabular}}{{l{'r' * (len(header) - 1)}}}", r"  \toprule", line(header), r"  \midrule",
        *map(line, rows), r"  \bottomrule", r"\end{tabular}",
    ]  # fmt: skip
    return "\n".join([*comments, *body]) + "\n"


MEASURES = ("top1", "top5", "mean_class", "map", "micro_f1", "macro_f1", "hamming", "videos", "of")
CALIBRATION = ("ece", "nll", "brier", "confidence", "temperature")
OF_CLASSES = ("recall", "precision", "f1", "ap", "videos", "groups")
Row = list[Any]


def results_csv(results: Mapping[str, Any]) -> str:
    """Every figure of results.json, one a row: split, column, class, measure, value
    and its interval."""
    rows: list[Row] = [["split", "column", "class", "measure", "value", "low", "high"]]
    for split, table in results["splits"].items():
        for name, column in table.items():
            rows += [[split, name, *row] for row in _column_rows(column)]
    for split, tests in results.get("comparisons", {}).items():
        for one in tests:
            pair = f"{one['first']} -> {one['second']}"
            rows.append([split, pair, "", "difference", one["difference"], *one["interval"]])
            rows += [
                [split, pair, "", key, one[key], "", ""]
                for key in ("p", "p_holm", "repaired", "broken")
            ]
    for name, value in results.get("mean", {}).items():
        rows.append(["mean", name, "", "top1", value, "", ""])
    return _csv(rows)


def _column_rows(column: Mapping[str, Any]) -> list[Row]:
    """Class, measure, value and interval of each figure of a column; what older results
    lack is left out."""
    intervals = column.get("intervals", {"top1": column["interval95"]})
    rows: list[Row] = [
        ["", key, column[key], *intervals.get(key, ("", ""))] for key in MEASURES if key in column
    ]
    if "groups" in column:
        rows.append(["", "recordings", column["groups"]["count"], "", ""])
    if "validation" in column:
        rows.append(["", "validation top1", column["validation"]["top1"], "", ""])
    calibration = column.get("calibration") or {}
    rows += [
        ["", key, calibration[key], "", ""]
        for key in CALIBRATION
        if calibration.get(key) is not None
    ]
    for words, measured in (
        ("as scored", calibration),
        ("at the temperature", calibration.get("scaled") or {}),
    ):
        rows += [
            ["", f"accuracy {words} at confidence {one['low']:.3f} to {one['high']:.3f}", one["accuracy"], "", ""]
            for one in measured.get("bins", ()) if one["videos"]
        ]  # fmt: skip
    for one in column.get("per_class", []):
        for key in (key for key in OF_CLASSES if one.get(key) is not None):
            ends = one.get("interval", ("", "")) if key == "recall" else ("", "")
            rows.append([one["class"], key, one[key], *ends])
    confusion = column.get("confusion") or {"classes": [], "matrix": []}
    for truth, counts in zip(confusion["classes"], confusion["matrix"], strict=True):
        for answer, count in zip(confusion["classes"], counts, strict=True):
            if count:
                rows.append([truth, f"answered {answer}", count, "", ""])
    return rows


def study_csv(studied: Mapping[str, Any]) -> str:
    """One row a run and column, then one a mean."""
    rows: list[list[Any]] = [
        ["experiment", "column", "split", "seed", "top1", "deviation", "low", "high", "count"]
    ]
    for one in studied["experiments"]:
        for name, column in one["columns"].items():
            for cell in column["cells"]:
                rows.append(
                    [one["name"], name, cell["split"], cell["seed"], cell["top1"], "", "", "", 1]
                )
            spreads = [
                *column["by_split"].items(),
                ("all", column["over_seeds"]),
                ("means", column["over_splits"]),
            ]
            for split, spread in spreads:
                if spread is not None:
                    ends = spread["interval"] or ("", "")
                    rows.append(
                        [
                            one["name"],
                            name,
                            split,
                            "mean",
                            spread["mean"],
                            spread["deviation"],
                            *ends,
                            spread["count"],
                        ]
                    )
    return _csv(rows)


def _csv(rows: Sequence[Sequence[Any]]) -> str:
    stream = io.StringIO()
    csv.writer(stream, lineterminator="\n").writerows(rows)
    return stream.getvalue()
