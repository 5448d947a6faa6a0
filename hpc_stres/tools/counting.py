"""Parameters, multiply-adds, sizes and receptive fields of the published networks by arithmetic alone: no torch.

`hpc-stres describe` answers from here in a fraction of a second, and submit and init know what a recipe takes without
building it. A test compares every row with what `hpc_stres.models.describe` measures on the network itself; what is
not counted here is measured there.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from hpc_stres.models.layer_table import DEPTHS, Row, table_text

EXPANSION, POOL_SIDE, PLANES = 4, 7, {"appearance": 3, "motion": 20}
TEMPORAL_WINDOW, TEMPORAL_STRIDE = 5, 2
# Streams of each network that is counted here, and whether the second unit of a stage looks along time.
STREAMS: Mapping[str, tuple[tuple[str, ...], bool]] = {
    "appearance": (("appearance",), False),
    "motion": (("motion",), False),
    "st_resnet": (("appearance", "motion"), True),
    "st_resnet_star": (("appearance", "motion"), True),
}


@dataclass(frozen=True, kw_only=True)
class Sizes:
    """What a network of these is counted from."""

    model: str
    stages: tuple[int, ...] = DEPTHS[50]
    width: int = 64
    variant: Literal["msra", "torchvision"] = "torchvision"
    classes: int = 101
    side: int = 224
    chunks: int = 1

    @property
    def pools_time(self) -> bool:
        """Whether the network has a max pool over time."""
        return self.model == "st_resnet_star"

    @property
    def times_left(self) -> int:
        """Time steps behind the temporal pool."""
        return (
            (self.chunks - TEMPORAL_WINDOW) // TEMPORAL_STRIDE + 1
            if self.pools_time
            else self.chunks
        )


def streams(sizes: Sizes) -> dict[str, list[Row]]:
    """The rows of each stream."""
    names, looks_along_time = STREAMS[sizes.model]
    return {name: _stream(sizes, PLANES[name], looks_along_time) for name in names}


def parameters(sizes: Sizes) -> int:
    """Parameters of the whole network."""
    return sum(row.parameters for rows in streams(sizes).values() for row in rows)


def multiply_adds(sizes: Sizes) -> int:
    """Multiply-adds of a forward pass of one clip."""
    return sum(row.multiply_adds for rows in streams(sizes).values() for row in rows)


def _stream(sizes: Sizes, planes: int, looks_along_time: bool) -> list[Row]:
    width, chunks, is_msra = sizes.width, sizes.chunks, sizes.variant == "msra"
    side = (sizes.side - 1) // 2 + 1
    filters = planes * 49 * width
    # MSRA's conv1 has a bias beside its normalisation.
    rows = [
        Row("conv1", f"7x7, {width}", side, chunks, 7, 1, filters + (3 if is_msra else 2) * width,
            filters * side * side * chunks)
    ]  # fmt: skip
    side = -(-(side - 3) // 2) + 1 if is_msra else (side - 1) // 2 + 1
    rows.append(Row("pool1", "3x3 max", side, chunks, 11, 1, 0, 0))
    field, jump, times, channels = 11, 4, 1, width
    for number, units in enumerate(sizes.stages):
        inner = width << number
        count = cost = 0
        for unit in range(units):
            out = (side - 1) // 2 + 1 if unit == 0 and number > 0 else side
            stride = 2 if out < side else 1
            taps = 3 if looks_along_time and unit == 1 else 1
            own, multiplied = _unit(
                channels, inner, (side, out), taps, is_msra, unit == 0 and number > 0
            )
            count, cost = count + own, cost + multiplied * chunks
            field += 2 * jump * (stride if is_msra else 1)
            jump *= stride
            times += 4 if taps == 3 else 0
            side, channels = out, inner * EXPANSION
        text = f"1x1 {inner}, 3x3 {inner}, 1x1 {channels} (x{units})"
        text += "; unit 2: 1x1x3, 3x3, 1x1x3" if looks_along_time and units > 1 else ""
        rows.append(Row(f"conv{number + 2}_x", text, side, chunks, field, times, count, cost))
    return [*rows, *_head(sizes, side, field, jump, times, channels)]


def _unit(
    channels: int, inner: int, sides: tuple[int, int], taps: int, is_msra: bool, is_strided: bool
) -> tuple[int, int]:
    """Parameters of a bottleneck unit, and its multiply-adds for one frame."""
    before, after = sides
    out = inner * EXPANSION
    reduce, middle, expand = taps * channels * inner, 9 * inner * inner, taps * inner * out
    project = channels * out if is_strided or channels != out else 0
    # The 1x1 before the 3x3 sees the larger side where the 3x3 has the stride.
    first_side = after if is_msra else before
    count = (
        reduce + middle + expand + project + 2 * (inner + inner + out) + (2 * out if project else 0)
    )
    return count, reduce * first_side**2 + (middle + expand + project) * after**2


def _head(sizes: Sizes, side: int, field: int, jump: int, times: int, channels: int) -> list[Row]:
    left, window = sizes.times_left, min(POOL_SIDE, side)
    places = max(1, side - POOL_SIDE + 1)
    pooled = times + (TEMPORAL_WINDOW - 1 if sizes.pools_time else 0)
    text = f"{window}x{window} average" + (
        f", {TEMPORAL_WINDOW} max in time" if sizes.pools_time else ""
    )
    wide = field + (window - 1) * jump
    count, cost = channels * sizes.classes + sizes.classes, channels * sizes.classes * left
    return [
        Row("pool5", text, places, left, wide, pooled, 0, 0),
        Row("fc", f"{channels} to {sizes.classes}", places, left, wide, pooled, count, cost),
    ]


def table(sizes: Sizes) -> str:
    """The paper's Table 1 as text."""
    return table_text(streams(sizes))
