"""STFN: features of segments, temporal Res-Inception modules, fusion blocks.

Its poster names the modules, the operators and the directions. What it leaves open is decided by
us and is an option here; the docstring of each says "ours".
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from hpc_stres.errors import check_field
from hpc_stres.registry import MODELS
from hpc_stres.registry.model import AppearanceOptions, ModelFamily, MotionOptions, NetworkRequest

if TYPE_CHECKING:
    from torch import nn

MOST_BLOCKS, LONGEST_KERNEL = 3, 15


@dataclass(frozen=True, kw_only=True)
class StfnOptions(AppearanceOptions, MotionOptions):
    """Sequences of features that meet in fusion blocks."""

    blocks: int = 2
    """Fusion blocks, 0 to 3; the poster's best are 2. None, with `head_reads` joined, is its
    plain feature fusion."""
    operation: Literal["average", "maximum", "multiply"] = "average"
    """How two sequences become one: the poster's best is their average."""
    direction: Literal["both", "motion_to_appearance", "appearance_to_motion"] = "both"
    """Which streams go on with the joined sequence: both (the poster's best), or one, the
    other with its own."""
    kernels: tuple[int, ...] = (2, 3, 4, 5)
    """Lengths of the convolutions of a Res-Inception module, as on the poster."""
    merge: Literal["concatenate", "sum"] = "concatenate"
    """Ours: the kernels share the channels among them and lie one behind the other, or each has all
    and they add up."""
    even_padding: Literal["after", "before"] = "after"
    """Ours: an even kernel looks one segment further ahead, or further back."""
    head_reads: Literal["own", "joined"] = "own"
    """Ours: each stream's classifier reads its own last sequence, or both read the two
    joined once more."""
    segment_pool: Literal["mean", "maximum"] = "mean"
    """Ours: how the segments of the last sequence become one for the classifiers."""
    trunks: Literal["trained", "frozen"] = "trained"
    """Ours: the trunks are trained too (the poster's end-to-end training), or stay as they
    are, running statistics included; then their features may be computed once, by a phase of
    kind `features`."""

    def __post_init__(self) -> None:
        check_field(0 <= self.blocks <= MOST_BLOCKS, "blocks", f"expected 0 to {MOST_BLOCKS}")
        fits = self.kernels and all(1 <= kernel <= LONGEST_KERNEL for kernel in self.kernels)
        check_field(
            bool(fits), "kernels", f"expected one or more lengths from 1 to {LONGEST_KERNEL}"
        )
        reads_operation = self.blocks > 0 or self.head_reads == "joined"
        is_said = (self.operation, self.direction) != ("average", "both")
        check_field(
            reads_operation or not is_said,
            "operation" if self.operation != "average" else "direction",
            "no effect: there are no fusion blocks, and the classifiers read their own sequences",
        )
        is_one_way = self.direction != "both"
        check_field(
            self.blocks > 0 or not is_one_way, "direction", "no effect without fusion blocks"
        )
        has_even = any(kernel % 2 == 0 for kernel in self.kernels)
        check_field(
            has_even or self.even_padding == "after", "even_padding", "no effect: no kernel is even"
        )


def build(request: NetworkRequest) -> "nn.Module":
    """Two trunks and what joins their sequences."""
    from hpc_stres.models.assembly import frame_trunks_of
    from hpc_stres.models.stfn import JoinOptions, Stfn
    from hpc_stres.models.temporal_inception import SequenceOptions
    from hpc_stres.models.trunks import make_trunk
    from hpc_stres.models.two_stream import FLOW_PLANES, RGB_PLANES

    options = request.options
    assert isinstance(options, StfnOptions)
    trunks = frame_trunks_of(request)
    joined = JoinOptions(
        blocks=options.blocks, operation=options.operation, direction=options.direction,
        head_reads=options.head_reads, segment_pool=options.segment_pool,
        trunks_frozen=options.trunks == "frozen",
        sequence=SequenceOptions(
            kernels=options.kernels, merge=options.merge, even_padding=options.even_padding,
            norm_group=request.norm_group, norm_average=options.norm_average,
        ),
    )  # fmt: skip
    appearance = make_trunk(RGB_PLANES, request.num_classes, trunks["appearance"])
    motion = make_trunk(FLOW_PLANES, request.num_classes, trunks["motion"])
    dropout = dict.fromkeys(("appearance", "motion"), request.dropout)
    return Stfn(request.num_classes, appearance, motion, joined, dropout)


MODELS.register(
    ModelFamily(
        name="stfn", title="STFN", streams=("appearance", "motion"), options=StfnOptions,
        build=build, trunks=("resnet", "inception_v3"), segments=True, drops=("appearance", "motion"),
        rank=5,
    )
)  # fmt: skip
