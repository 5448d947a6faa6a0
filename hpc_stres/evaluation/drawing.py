"""Lines, areas, boxes and letters as SVG and as PDF, so that figures need no
plotting library. Pure.

Both come from one list of shapes in points, the origin at the top left. PDF's letters
are Helvetica's, which every reader has; letters outside of its Latin alphabet become
question marks there.
"""

import html
import zlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

Anchor = Literal["start", "middle", "end"]
Point = tuple[float, float]
# Widths of Helvetica's letters from space to ~, in thousandths of the size (its published metrics).
WIDTHS = (
    "278 278 355 556 556 889 667 191 333 333 389 584 278 333 278 278 556 556 556 556 556 556 556 556 556 556 278 278 "
    "584 584 584 556 1015 667 667 722 722 667 611 778 722 278 500 667 556 833 722 778 667 778 722 667 611 722 667 944 "
    "667 667 611 278 278 278 469 556 333 556 556 500 556 556 278 556 556 222 222 500 222 833 556 556 556 556 333 500 "
    "278 556 500 722 500 500 500 334 260 334 584"
)
LETTER_WIDTHS = tuple(int(width) for width in WIDTHS.split())
OTHER_WIDTH = 556


@dataclass
class Drawing:
    """A picture of a size in points, drawn from back to front."""

    width: float
    height: float
    title: str
    _svg: list[str] = field(default_factory=list)
    _pdf: list[str] = field(default_factory=list)
    _opacities: list[float] = field(default_factory=list)

    def line(self, points: Sequence[Point], colour: str, width: float = 1.0) -> None:
        """A line through points."""
        path = " ".join(f"{x:.2f},{y:.2f}" for x, y in points)
        self._svg.append(
            f'<polyline points="{path}" fill="none" stroke="{colour}" stroke-width="{width:g}"/>'
        )
        self._pdf.append(f"{_rgb(colour)} RG {width:g} w {self._path(points)} S")

    def area(self, points: Sequence[Point], colour: str, opacity: float = 1.0) -> None:
        """A filled polygon."""
        path = " ".join(f"{x:.2f},{y:.2f}" for x, y in points)
        self._svg.append(f'<polygon points="{path}" fill="{colour}" fill-opacity="{opacity:.3g}"/>')
        if opacity not in self._opacities:
            self._opacities.append(opacity)
        state = self._opacities.index(opacity)
        self._pdf.append(f"q /G{state} gs {_rgb(colour)} rg {self._path(points)} h f Q")

    def box(
        self, x: float, y: float, width: float, height: float, colour: str, opacity: float = 1.0
    ) -> None:
        """A filled rectangle."""
        self.area(
            [(x, y), (x + width, y), (x + width, y + height), (x, y + height)], colour, opacity
        )

    def text(
        self, x: float, y: float, words: str, size: float = 9.0, anchor: Anchor = "start", colour: str = "#1a1a1a",
        turned: bool = False,
    ) -> None:  # fmt: skip
        """Words whose baseline is at y; `turned` ones run upwards."""
        turn = f' transform="rotate(-90 {x:.2f} {y:.2f})"' if turned else ""
        self._svg.append(
            f'<text x="{x:.2f}" y="{y:.2f}" font-size="{size:g}" text-anchor="{anchor}" fill="{colour}"{turn}>'
            f"{html.escape(words)}</text>"
        )
        shift = {"start": 0.0, "middle": 0.5, "end": 1.0}[anchor] * text_width(words, size)
        place = (x, self.height - y + 0.0)
        matrix = f"0 1 -1 0 {place[0]:.2f} {place[1] - shift:.2f}" if turned else None
        matrix = matrix or f"1 0 0 1 {place[0] - shift:.2f} {place[1]:.2f}"
        self._pdf.append(
            f"{_rgb(colour)} rg BT /F1 {size:g} Tf {matrix} Tm ({_literal(words)}) Tj ET"
        )

    def _path(self, points: Sequence[Point]) -> str:
        commands = [
            f"{x:.2f} {self.height - y:.2f} {'m' if n == 0 else 'l'}"
            for n, (x, y) in enumerate(points)
        ]
        return " ".join(commands)

    def svg(self) -> str:
        """The picture as one SVG file."""
        return (
            f'<svg xmlns="http://www.w3.org/2000/svg" width="{self.width:g}pt" height="{self.height:g}pt" '
            f'viewBox="0 0 {self.width:g} {self.height:g}" font-family="Helvetica, Arial, sans-serif" role="img">'
            f"<title>{html.escape(self.title)}</title>"
            f'<rect width="100%" height="100%" fill="#ffffff"/>{"".join(self._svg)}</svg>\n'
        )

    def pdf(self) -> bytes:
        """The picture as a PDF of one page."""
        states = " ".join(
            f"/G{n} << /ca {opacity:.3g} >>" for n, opacity in enumerate(self._opacities)
        )
        content = zlib.compress("\n".join(self._pdf).encode("cp1252"))
        objects = [
            b"<< /Type /Catalog /Pages 2 0 R >>",
            b"<< /Type /Pages /Kids [3 0 R] /Count 1 >>",
            (
                f"<< /Type /Page /Parent 2 0 R /MediaBox [0 0 {self.width:g} {self.height:g}] /Contents 4 0 R "
                f"/Resources << /Font << /F1 5 0 R >> /ExtGState << {states} >> >> >>"
            ).encode(),
            b"<< /Length %d /Filter /FlateDecode >>\nstream\n%s\nendstream"
            % (len(content), content),
            b"<< /Type /Font /Subtype /Type1 /BaseFont /Helvetica /Encoding /WinAnsiEncoding >>",
            f"<< /Title ({_literal(self.title)}) /Producer (hpc_stres) >>".encode("cp1252"),
        ]
        return _file(objects)


def _file(objects: Sequence[bytes]) -> bytes:
    """A PDF file of these objects, numbered from 1: the first is its catalogue,
    the last its title."""
    data, places = b"%PDF-1.4\n%\xe2\xe3\xcf\xd3\n", []
    for number, body in enumerate(objects, 1):
        places.append(len(data))
        data += b"%d 0 obj\n%s\nendobj\n" % (number, body)
    table = b"".join(b"%010d 00000 n \n" % place for place in places)
    count = len(objects) + 1
    trailer = b"<< /Size %d /Root 1 0 R /Info %d 0 R >>" % (count, len(objects))
    start = len(data)
    return data + b"xref\n0 %d\n0000000000 65535 f \n%strailer\n%s\nstartxref\n%d\n%%%%EOF\n" % (
        count, table, trailer, start,
    )  # fmt: skip


def text_width(words: str, size: float) -> float:
    """Width of words in Helvetica."""
    units = sum(LETTER_WIDTHS[ord(c) - 32] if 32 <= ord(c) < 127 else OTHER_WIDTH for c in words)
    return units * size / 1000


def _literal(words: str) -> str:
    known = words.encode("cp1252", "replace").decode("cp1252")
    printable = "".join(letter if letter.isprintable() else "?" for letter in known)
    return printable.replace("\\", r"\\").replace("(", r"\(").replace(")", r"\)")


def _rgb(colour: str) -> str:
    """`#1565c0` as PDF's three numbers."""
    return " ".join(f"{int(colour[n : n + 2], 16) / 255:.4f}" for n in (1, 3, 5))
