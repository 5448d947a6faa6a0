"""Tables and sizes as text."""

import shutil
import sys
import textwrap
from collections.abc import Sequence


def text_table(
    header: Sequence[str], rows: Sequence[Sequence[str]], width: int | None = None
) -> str:
    """Columns padded to their widest cell; where they are wider than `width`, or than the terminal
    that they are printed on, a block of lines for each row."""
    widths = [max(len(row[column]) for row in [header, *rows]) for column in range(len(header))]
    lines = [
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in [header, *rows]
    ]
    widest, limit = max(map(len, lines)), width or _terminal_width()
    if limit is not None and widest > limit:
        return "\n".join(_block(header, row, limit) for row in rows)
    return "\n".join([lines[0], "-" * widest, *lines[1:]])


def _terminal_width() -> int | None:
    """Columns of the terminal that is printed on; none: a file or another program reads."""
    return shutil.get_terminal_size().columns if sys.stdout.isatty() else None


def _block(header: Sequence[str], row: Sequence[str], width: int) -> str:
    """A row as lines of `heading: cell`, the first cell as their title."""
    lines = [row[0]]
    for name, cell in zip(header[1:], row[1:], strict=True):
        if cell:
            text = f"{name}: {cell}" if name else cell
            lines += textwrap.wrap(text, width, initial_indent="  ", subsequent_indent="    ")
    return "\n".join(lines)


def size_text(count: float) -> str:
    """Bytes in the unit that suits them: never 0.0 of a large one."""
    for unit, size in (("TiB", 2**40), ("GiB", 2**30), ("MiB", 2**20), ("KiB", 2**10)):
        if count >= size:
            return f"{count / size:.1f} {unit}"
    return f"{count:.0f} bytes"
