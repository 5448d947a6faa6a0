"""The paper's Table 1 as rows and as text, and the published depths: no torch.

`hpc_stres.models.describe` measures rows on a network, `hpc_stres.tools.counting` counts
them by arithmetic.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from hpc_stres.run.tables import text_table

# Units in each stage of the published ResNets.
DEPTHS: Mapping[int, tuple[int, ...]] = {
    50: (3, 4, 6, 3), 101: (3, 4, 23, 3), 152: (3, 8, 36, 3),
}  # fmt: skip
HEADER = ("", "blocks", "output", "receptive field", "parameters", "multiply-adds")


@dataclass(frozen=True)
class Row:
    """One column of the paper's Table 1."""

    name: str
    blocks: str
    side: int
    chunks: int
    field_pixels: int
    field_chunks: int
    parameters: int
    multiply_adds: int


def table_text(streams: Mapping[str, Sequence[Row]]) -> str:
    """The table of each stream, with its sums."""
    return "\n\n".join(
        f"{name}\n{text_table(list(HEADER), _lines(rows))}" for name, rows in streams.items()
    )


def _lines(rows: Sequence[Row]) -> list[list[str]]:
    lines = [
        [
            row.name, row.blocks, f"{row.side}x{row.side}x{row.chunks}",
            f"{row.field_pixels}x{row.field_pixels}x{row.field_chunks}" + (" tau" if row.field_chunks > 1 else ""),
            f"{row.parameters:,}", f"{row.multiply_adds:,}",
        ]
        for row in rows
    ]  # fmt: skip
    sums = sum(row.parameters for row in rows), sum(row.multiply_adds for row in rows)
    return [*lines, ["total", "", "", "", *(f"{value:,}" for value in sums)]]
