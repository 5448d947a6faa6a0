"""Figures for a paper, each as SVG and PDF: accuracy, classes, confusion, reliability,
learning curves."""

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hpc_stres.evaluation.drawing import Drawing, Point, text_width
from hpc_stres.evaluation.table import title_of
from hpc_stres.run.paths import write_bytes, write_text

# Colours that stay apart for colour-blind readers and in grey (Okabe and Ito's).
COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#000000")
GREY, INK, SIZE = "#c8c8c8", "#1a1a1a", 8.0


@dataclass(frozen=True)
class Frame:
    """Where values lie in a drawing."""

    drawing: Drawing
    left: float
    top: float
    right: float
    bottom: float
    x_range: tuple[float, float]
    y_range: tuple[float, float]

    def at(self, x: float, y: float) -> Point:
        """The place of a pair of values."""
        across = (x - self.x_range[0]) / ((self.x_range[1] - self.x_range[0]) or 1.0)
        up = (y - self.y_range[0]) / ((self.y_range[1] - self.y_range[0]) or 1.0)
        return self.left + across * (self.right - self.left), self.bottom - up * (
            self.bottom - self.top
        )

    def axes(self, x_label: str, y_label: str) -> None:
        """Both axes with round numbers."""
        for value in ticks(*self.y_range):
            (x, y), (end, _) = self.at(self.x_range[0], value), self.at(self.x_range[1], value)
            self.drawing.line([(x, y), (end, y)], GREY, 0.5)
            self.drawing.text(x - 3, y + 3, f"{value:g}", SIZE, "end")
        for value in ticks(*self.x_range):
            x, y = self.at(value, self.y_range[0])
            self.drawing.line([(x, y), (x, y + 3)], INK, 0.5)
            self.drawing.text(x, y + 12, f"{value:g}", SIZE, "middle")
        corners = [(self.left, self.top), (self.left, self.bottom), (self.right, self.bottom)]
        self.drawing.line(corners, INK, 0.8)
        self.drawing.text((self.left + self.right) / 2, self.bottom + 24, x_label, SIZE, "middle")
        self.drawing.text(
            self.left - 30, (self.top + self.bottom) / 2, y_label, SIZE, "middle", turned=True
        )


def ticks(low: float, high: float, wanted: int = 5) -> list[float]:
    """Round numbers from low to high."""
    if not high > low:
        return [low]
    rough = (high - low) / wanted
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(power * factor for factor in (1, 2, 5, 10) if power * factor >= rough)
    first = math.ceil(low / step - 1e-9)
    return [round(number * step, 12) for number in range(first, math.floor(high / step + 1e-9) + 1)]


def accuracy(table: Mapping[str, Mapping[str, Any]]) -> Drawing:
    """Top-1 of each column with its 95 % interval."""
    names = [title_of(name, table) for name in table]
    left = 20 + max(text_width(name, SIZE) for name in names)
    drawing = Drawing(360, 60 + 20 * len(table), "Top-1 accuracy with 95 % intervals")
    low = min(column["interval95"][0] for column in table.values())
    high = max(column["interval95"][1] for column in table.values())
    frame = Frame(drawing, left, 15, 340, 20 + 20 * len(table), _around(low, high), (0, len(table)))
    for value in ticks(*frame.x_range):
        x, _ = frame.at(value, 0)
        drawing.line([(x, frame.top), (x, frame.bottom)], GREY, 0.5)
        drawing.text(x, frame.bottom + 12, f"{value:g}", SIZE, "middle")
    for number, (name, column) in enumerate(zip(names, table.values(), strict=True)):
        y = 27 + 20 * number
        ends = [frame.at(value, 0)[0] for value in (*column["interval95"], column["top1"])]
        drawing.text(left - 8, y + 3, name, SIZE, "end")
        drawing.line([(ends[0], y), (ends[1], y)], COLOURS[0], 1.5)
        drawing.box(ends[2] - 3, y - 3, 6, 6, COLOURS[0])
    drawing.text((left + 340) / 2, frame.bottom + 26, "top-1 accuracy (%)", SIZE, "middle")
    return drawing


def _around(low: float, high: float) -> tuple[float, float]:
    edge = 0.05 * (high - low) or 1.0
    return max(0.0, low - edge), min(100.0, high + edge)


def classes(column: Mapping[str, Any], title: str) -> Drawing:
    """Recall (or average precision) of each class with its interval, the best first."""
    key, words = ("ap", "average precision (%)") if "map" in column else ("recall", "recall (%)")
    rows = sorted(column["per_class"], key=lambda row: -(row[key] or 0.0))
    left, pitch = 20 + max(text_width(row["class"], SIZE) for row in rows), 11
    drawing = Drawing(left + 260, 50 + pitch * len(rows), f"{title}: {words} by class")
    frame = Frame(drawing, left, 12, left + 240, 12 + pitch * len(rows), (0, 100), (0, 1))
    for value in ticks(0, 100):
        x, _ = frame.at(value, 0)
        drawing.line([(x, frame.top), (x, frame.bottom)], GREY, 0.5)
        drawing.text(x, frame.bottom + 12, f"{value:g}", SIZE, "middle")
    for number, row in enumerate(rows):
        y = 12 + pitch * number
        drawing.text(left - 6, y + 8, row["class"], SIZE, "end")
        drawing.box(left, y + 2, 240 * (row[key] or 0.0) / 100, pitch - 4, COLOURS[0])
        if "interval" in row:
            low, high = (frame.at(value, 0)[0] for value in row["interval"])
            drawing.line([(low, y + pitch / 2), (high, y + pitch / 2)], INK, 0.8)
    drawing.text(left + 120, frame.bottom + 26, words, SIZE, "middle")
    return drawing


def confusion(matrix: Sequence[Sequence[int]], names: Sequence[str], title: str) -> Drawing:
    """Rows are true classes, columns answers; the darker, the larger the share of the row."""
    cell = max(6.0, min(22.0, 440 / len(names)))
    size = min(SIZE, cell)
    edge = 12 + max(text_width(name, size) for name in names)
    side = cell * len(names)
    drawing = Drawing(edge + side + 12, edge + side + 28, f"{title}: confusion matrix")
    for row, counts in enumerate(matrix):
        total = sum(counts)
        for column, count in enumerate(counts):
            if count:
                colour = COLOURS[0] if row == column else COLOURS[1]
                x, y = edge + cell * column, edge + cell * row
                drawing.box(x, y, cell, cell, colour, round(0.1 + 0.9 * count / total, 2))
    for number, name in enumerate(names):
        middle = edge + cell * (number + 0.5) + 0.35 * size
        drawing.text(edge - 4, middle, name, size, "end")
        drawing.text(middle, edge - 4, name, size, "start", turned=True)
    drawing.line(
        [
            (edge, edge),
            (edge + side, edge),
            (edge + side, edge + side),
            (edge, edge + side),
            (edge, edge),
        ],
        INK,
        0.6,
    )
    drawing.text(edge + side, edge + side + 16, "rows: true, columns: answered", SIZE, "end")
    return drawing


def reliability(calibration: Mapping[str, Any], title: str) -> Drawing:
    """Accuracy against confidence, before and after the temperature."""
    drawing = Drawing(260, 250, f"{title}: reliability")
    frame = Frame(drawing, 45, 15, 245, 210, (0, 1), (0, 1))
    frame.axes("confidence", "accuracy")
    drawing.line([frame.at(0, 0), frame.at(1, 1)], GREY, 1)
    kinds = [("as scored", calibration)]
    kinds += (
        [(f"temperature {calibration['temperature']:.2f}", calibration["scaled"])]
        if calibration["scaled"]
        else []
    )
    for number, (words, one) in enumerate(kinds):
        points = [
            frame.at(row["confidence"], row["accuracy"]) for row in one["bins"] if row["videos"]
        ]
        drawing.line(points, COLOURS[number], 1.5)
        for x, y in points:
            drawing.box(x - 2, y - 2, 4, 4, COLOURS[number])
        label = f"{words}: calibration error {100 * one['ece']:.1f} %"
        drawing.text(242, 203 - 11 * number, label, SIZE, "end", colour=COLOURS[number])
    return drawing


def bands(series: Mapping[str, Sequence[Sequence[float]]], title: str, y_label: str) -> Drawing:
    """Curves of [step, mean, deviation, runs] with a band of one deviation to either side."""
    drawing = Drawing(360, 230, title)
    points = [row for curve in series.values() for row in curve]
    low = min(0.0, *(row[1] - row[2] for row in points))
    high = max(row[1] + row[2] for row in points)
    frame = Frame(
        drawing, 50, 25, 345, 190, (0.0, max(row[0] for row in points)), (low, high or 1.0)
    )
    frame.axes("steps", y_label)
    for number, (name, curve) in enumerate(series.items()):
        colour = COLOURS[number % len(COLOURS)]
        upper = [frame.at(row[0], row[1] + row[2]) for row in curve]
        lower = [frame.at(row[0], row[1] - row[2]) for row in curve]
        drawing.area([*upper, *reversed(lower)], colour, 0.2)
        drawing.line([frame.at(row[0], row[1]) for row in curve], colour, 1.2)
        drawing.text(55 + 145 * (number % 2), 18 - 9 * (number // 2), name, SIZE, colour=colour)
    return drawing


def write(drawing: Drawing, folder: Path, name: str) -> list[Path]:
    """NAME.svg and NAME.pdf."""
    safe = re.sub(r"[^A-Za-z0-9_.-]+", "_", name)
    paths = [folder / f"{safe}.svg", folder / f"{safe}.pdf"]
    write_text(paths[0], drawing.svg())
    write_bytes(paths[1], drawing.pdf())
    return paths


def write_results(results: Mapping[str, Any], folder: Path) -> int:
    """Every figure of a run's results; returns how many files there are."""
    count = 0
    for split, table in results["splits"].items():
        if not table:
            continue
        count += len(write(accuracy(table), folder, f"split{split}_accuracy"))
        for name, column in table.items():
            title = title_of(name, table)
            if column.get("per_class"):
                count += len(write(classes(column, title), folder, f"split{split}_{name}_classes"))
            if column.get("confusion"):
                one = column["confusion"]
                drawn = confusion(one["matrix"], one["classes"], title)
                count += len(write(drawn, folder, f"split{split}_{name}_confusion"))
            if column.get("calibration"):
                drawn = reliability(column["calibration"], title)
                count += len(write(drawn, folder, f"split{split}_{name}_reliability"))
    return count


def write_curves(studied: Mapping[str, Any], folder: Path) -> int:
    """Learning curves of each experiment and phase with their bands; returns how many
    files there are."""
    count = 0
    for number, one in enumerate(studied["experiments"], 1):
        for phase, keys in one["curves"].items():
            for kind in ("loss", "accuracy"):
                several = sum(key.startswith(f"{kind}_") for key in keys) > 0
                chosen = {
                    key: rows
                    for key, rows in keys.items()
                    if key.startswith(f"{kind}_" if several else kind)
                }
                held = f"validation_{kind}_"
                if chosen:
                    series = {key.removeprefix(f"{kind}_"): rows for key, rows in chosen.items()}
                    series |= {
                        f"held out: {key.removeprefix(held)}": rows
                        for key, rows in keys.items()
                        if key.startswith(held)
                    }
                    drawn = bands(series, f"{one['titles'][phase]}: {kind}", kind)
                    count += len(write(drawn, folder, f"experiment{number}_{phase}_{kind}"))
    return count
