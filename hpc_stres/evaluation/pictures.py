"""SVG and data-URL pictures for the report; no library, no network."""

import base64
import html
from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

WIDTH, HEIGHT, MARGIN = 420, 200, 40
# Width of a letter of the legend; below so many points an axis starts at the first of them.
LETTER_PIXELS, FEW_POINTS = 6, 50
SERIES = ("var(--a)", "var(--b)", "var(--c)")


def line_chart(title: str, series: Mapping[str, Sequence[tuple[float, float]]], label: str) -> str:
    """Curves over steps."""
    points = [point for curve in series.values() for point in curve]
    if not points:
        return ""
    x_least, x_most = min(0.0, *(x for x, _ in points)), max(x for x, _ in points) or 1.0
    if x_most < FEW_POINTS:
        x_least = min(x for x, _ in points)
    low, high = min(0.0, *(y for _, y in points)), max(y for _, y in points) or 1.0

    def place(x: float, y: float) -> str:
        px = MARGIN + (WIDTH - MARGIN - 10) * (x - x_least) / ((x_most - x_least) or 1.0)
        py = HEIGHT - 25 - (HEIGHT - 45) * (y - low) / ((high - low) or 1.0)
        return f"{px:.1f},{py:.1f}"

    parts = [f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{html.escape(title)}">']
    parts.append(f'<text x="{MARGIN}" y="14" class="t">{html.escape(title)}</text>')
    for value in (low, (low + high) / 2, high):
        y = place(0, value).split(",")[1]
        parts.append(f'<line x1="{MARGIN}" x2="{WIDTH - 10}" y1="{y}" y2="{y}" class="g"/>')
        parts.append(f'<text x="{MARGIN - 4}" y="{y}" text-anchor="end" dy="4">{value:.3g}</text>')
    parts.append(f'<text x="{WIDTH - 10}" y="{HEIGHT - 6}" text-anchor="end">{x_most:.0f} {html.escape(label)}</text>')
    legend = MARGIN
    for number, (name, curve) in enumerate(series.items()):
        colour = SERIES[number % len(SERIES)]
        path = " ".join(place(x, y) for x, y in curve)
        parts.append(f'<polyline points="{path}" fill="none" stroke="{colour}" stroke-width="2"/>')
        parts.append(f'<text x="{legend}" y="{HEIGHT - 6}" style="fill:{colour}">{html.escape(name)}</text>')
        legend += 16 + LETTER_PIXELS * len(name)
    return "".join(parts) + "</svg>"


def confusion(matrix: NDArray[np.int64], classes: Sequence[str]) -> str:
    """A confusion matrix as a heat map; rows are true classes."""
    size = max(6, min(28, 420 // len(classes)))
    side = size * len(classes)
    totals = np.maximum(matrix.sum(axis=1, keepdims=True), 1)
    parts = [f'<svg viewBox="0 0 {side} {side}" style="max-width:{side}px" role="img" aria-label="confusion matrix">']
    for row, column in zip(*np.nonzero(matrix), strict=True):
        share = matrix[row, column] / totals[row, 0]
        text = f"{classes[row]} taken for {classes[column]}: {matrix[row, column]} of {totals[row, 0]}"
        colour = "var(--a)" if row == column else "var(--b)"
        parts.append(
            f'<rect x="{column * size}" y="{row * size}" width="{size}" height="{size}" fill="{colour}" '
            f'opacity="{0.15 + 0.85 * share:.2f}"><title>{html.escape(text)}</title></rect>'
        )
    return "".join(parts) + f'<rect width="{side}" height="{side}" fill="none" class="g"/></svg>'


def picture(jpeg: bytes, alt: str, kind: str = "jpeg") -> str:
    """An image that is part of the page."""
    data = base64.b64encode(jpeg).decode()
    return f'<img src="data:image/{kind};base64,{data}" alt="{html.escape(alt)}" loading="lazy">'


def colour_flow(flow: NDArray[np.float32], largest: float | None = None) -> NDArray[np.uint8]:
    """Displacements (2, H, W) as RGB: the hue is the direction, the saturation the length."""
    import cv2

    u, v = flow
    length, angle = cv2.cartToPolar(u, v, angleInDegrees=True)
    most = largest or max(float(np.percentile(length, 99)), 1e-6)
    hsv = np.stack([angle / 2, 255 * np.clip(length / most, 0, 1), np.full_like(u, 255)], axis=-1)
    return np.asarray(cv2.cvtColor(hsv.astype(np.uint8), cv2.COLOR_HSV2RGB))
