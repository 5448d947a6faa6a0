"""Lists and tables that people write: read as text, and each mistake named with its line."""

import csv
import io
import re
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from hpc_stres.errors import UserError
from hpc_stres.listings.listing import printable

# Far above any list (Kinetics' have 40 MB); what is larger is another kind of file.
MOST_BYTES = 256 << 20
BYTE_ORDER_MARKS = (
    (b"\xef\xbb\xbf", "utf-8-sig"),
    (b"\xff\xfe", "utf-16"),
    (b"\xfe\xff", "utf-16"),
)
DELIMITERS = ",;\t"


def read_text(path: Path) -> str:
    """A text file in UTF-8, or in UTF-16 with its mark; anything else is refused, because guessing
    can change names.
    """
    try:
        if path.stat().st_size > MOST_BYTES:
            raise UserError(
                f"{path}: {path.stat().st_size >> 20} MiB is too long for a list\nCheck data.lists."
            )
        data = path.read_bytes()
    except OSError as error:
        raise UserError(
            f"{path}: cannot read the list: {error.strerror}\nSet data.lists to the folder of lists, or to the CSV."
        ) from None
    encoding = next((name for mark, name in BYTE_ORDER_MARKS if data.startswith(mark)), "utf-8")
    try:
        text = data.decode(encoding)
    except UnicodeDecodeError as error:
        line = data[: error.start].count(b"\n") + 1
        raise UserError(
            f"{path}:{line}: this text is not {encoding.upper()}\nSave the file as UTF-8."
        ) from None
    if "\0" in text:
        line = text[: text.index("\0")].count("\n") + 1
        raise UserError(
            f"{path}:{line}: a NUL byte: not a text, or UTF-16 without its mark\nSave the file as UTF-8."
        )
    return text


def read_lines(path: Path) -> list[tuple[int, str]]:
    """The lines that are not blank, with their numbers."""
    lines = enumerate(re.split("\r\n|\n|\r", read_text(path)), start=1)
    return [(number, line.strip()) for number, line in lines if line.strip()]


def read_table(path: Path, needed: tuple[str, ...]) -> list[tuple[int, dict[str, str]]]:
    """The rows of a CSV under its header (separated by comma, semicolon or tab), with their line
    numbers.

    Names of columns are read in small letters; every row must have exactly the header's cells.
    """
    text = read_text(path)
    rows = _rows(path, text, _delimiter(text, needed))
    _, header = next(rows, (0, []))
    names = [name.strip().lower() for name in header]
    missing = [name for name in needed if name not in names]
    if missing:
        raise UserError(
            f"{path}:1: no column {' and no column '.join(missing)}\n"
            f"Expected a header line with {', '.join(needed)}, and a row for each video under it."
        )
    double = [name for name, count in Counter(names).items() if name and count > 1]
    if double:
        raise UserError(f"{path}:1: two columns are named {printable(double[0])}")
    table = []
    for number, cells in rows:
        if len(cells) != len(names):
            raise UserError(
                f"{path}:{number}: {len(cells)} cells under a header of {len(names)}\n"
                "Write one row for each video; put a cell that holds the separator into quotes."
            )
        table.append(
            (number, {name: cell.strip() for name, cell in zip(names, cells, strict=True)})
        )
    return table


def _delimiter(text: str, needed: tuple[str, ...]) -> str:
    """The separator under which the first line names the most of the needed columns."""
    first = next((line for line in re.split("\r\n|\n|\r", text) if line.strip()), "")

    def named(delimiter: str) -> int:
        cells = {cell.strip().strip('"').lower() for cell in first.split(delimiter)}
        return sum(name in cells for name in needed)

    return max(DELIMITERS, key=named)


def _rows(path: Path, text: str, delimiter: str) -> Iterator[tuple[int, list[str]]]:
    reader = csv.reader(
        io.StringIO(text, newline=""), delimiter=delimiter, strict=True, skipinitialspace=True
    )
    while True:
        start = reader.line_num + 1
        try:
            cells = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            raise UserError(
                f"{path}:{start}: this row cannot be read: {error}\nCheck its quotes."
            ) from None
        if any(cell.strip() for cell in cells):
            # A cell over several lines is a quote that was closed by the next one, rows later.
            if reader.line_num > start and any("\n" in cell or "\r" in cell for cell in cells):
                raise UserError(
                    f"{path}:{start}: a cell goes over several lines\nCheck the quotes of this row."
                )
            yield start, cells
