"""Parameters, multiply-adds, sizes and receptive fields of networks of ResNets by arithmetic
alone: no torch.

`hpc-stres describe` answers from here in a fraction of a second, and submit and init know what a
recipe takes without building it. A test compares every row with what `hpc_stres.models.describe`
measures on the network itself; what is not counted here is measured there.
"""

from dataclasses import dataclass
from typing import Literal

from hpc_stres.models.layer_table import DEPTHS, Row, table_text
from hpc_stres.registry import MODELS
from hpc_stres.registry.model import Counted, ModelFamily

EXPANSION, POOL_SIDE, PLANES = 4, 7, {"appearance": 3, "motion": 20}


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
    def family(self) -> ModelFamily:
        """The registry's entry, which says what streams there are."""
        return MODELS.get(self.model)

    @property
    def form(self) -> Counted:
        """What the registry says for counting it."""
        form = self.family.counted
        if form is None:
            raise ValueError(f"{self.model} is not counted by arithmetic")
        return form

    @property
    def time_window(self) -> int:
        """Window of the max pool over time; 1: it has none."""
        return self.form.time_pool[0] if self.form.time_pool else 1

    @property
    def times_left(self) -> int:
        """Time steps behind the temporal pool."""
        window, stride = self.form.time_pool or (1, 1)
        return (self.chunks - window) // stride + 1


def streams(sizes: Sizes) -> dict[str, list[Row]]:
    """The rows of each stream."""
    return {name: _stream(sizes, PLANES[name]) for name in sizes.family.streams}


def parameters(sizes: Sizes) -> int:
    """Parameters of the whole network."""
    return sum(row.parameters for rows in streams(sizes).values() for row in rows)


def multiply_adds(sizes: Sizes) -> int:
    """Multiply-adds of a forward pass of one clip."""
    return sum(row.multiply_adds for rows in streams(sizes).values() for row in rows)


def _stream(sizes: Sizes, planes: int) -> list[Row]:
    width, chunks, is_msra = sizes.width, sizes.chunks, sizes.variant == "msra"
    looks_along_time = sizes.form.looks_along_time
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
    pooled = times + sizes.time_window - 1
    text = f"{window}x{window} average"
    text += f", {sizes.time_window} max in time" if sizes.form.time_pool else ""
    wide = field + (window - 1) * jump
    count, cost = channels * sizes.classes + sizes.classes, channels * sizes.classes * left
    return [
        Row("pool5", text, places, left, wide, pooled, 0, 0),
        Row("fc", f"{channels} to {sizes.classes}", places, left, wide, pooled, count, cost),
    ]


def table(sizes: Sizes) -> str:
    """The paper's Table 1 as text."""
    return table_text(streams(sizes))
