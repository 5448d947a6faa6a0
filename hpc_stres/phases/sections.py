"""The sections of a `train` phase beside its model: what a clip is, and how the
network is optimised.

Where the paper and the released code disagree there is one field, and its docstring
names both values.
"""

from dataclasses import dataclass
from typing import Literal

from hpc_stres.config.schedule import Curve, Plateau, scaled, scaled_steps
from hpc_stres.errors import check_field


@dataclass(frozen=True, kw_only=True)
class ClipsSection:
    """Which frames of a video make a training clip, and how they are cut."""

    chunks: int = 1
    """Time steps T of one training clip."""
    segments: int | None = None
    """In place of chunks at a stride: a video is cut into so many segments, with one chunk from
    each (STFN: 7 are the poster's best, 5 its ablations'). Tested on the middle of each segment, or
    evenly spread clips of them."""
    frame_grid: int = 1
    """With segments: chunks are at every n-th frame only, so that a cache of features need not
    hold the others."""
    stride: tuple[int, int] = (1, 1)
    """Smallest and largest temporal stride tau between chunks, drawn uniformly."""
    stride_shared_by: Literal["video", "group"] = "video"
    """Who shares one drawn stride: each video its own, or (released code) all videos
    of a norm group."""
    window: Literal["anywhere", "released"] = "anywhere"
    """Start of the window of chunks: any valid frame, or (released code) on the lattice that starts
    at the first valid frame and never at its first point."""
    short_video: Literal["mirror", "repeat"] = "mirror"
    """Videos too short for one flow stack: padded symmetrically (paper) or by forward repeats
    (released code)."""
    crop: Literal["corners", "borders", "centre"] = "borders"
    """`corners`: sides from {1, 7/8, 3/4, 21/32} of 256, at a corner or the centre (motion stream);
    `borders`: sides jittered by 25 %, at most a quarter of the slack away from a border (all
    others); `centre`: the middle square of the frame, at test time too, which is what cached
    features are of."""
    border_corners: Literal["four", "two"] = "four"
    """`borders` crops lie near any of the four corners (what the paper's words allow) or near the
    top-left and bottom-right ones only (released code)."""
    crop_shared_by: Literal["video", "group"] = "video"
    """Each video draws its own place and flip, or (released appearance stream) a norm
    group shares one."""
    antialias: bool = True
    """Low-pass when a crop is shrunk; the released motion stream switches it off."""

    def __post_init__(self) -> None:
        check_field(self.chunks >= 1, "chunks", "expected a whole number of 1 or more")
        check_field(self.segments is None or self.segments >= 1, "segments", "expected 1 or more")
        check_field(self.frame_grid >= 1, "frame_grid", "expected 1 or more")
        low, high = self.stride
        check_field(
            1 <= low <= high, "stride", f"expected 1 <= smallest <= largest, not {low}, {high}"
        )

    @property
    def times(self) -> int:
        """Time steps of a training clip, whichever way they are chosen."""
        return self.segments or self.chunks


@dataclass(frozen=True, kw_only=True)
class OptimiseSection:
    """How the network of a phase is trained."""

    global_batch: int = 256
    """Videos in one SGD step, whatever the number of ranks."""
    norm_group: int = 32
    """Videos that share normalisation moments. Motion: 86 in the paper, 32 in the released
    code; appearance: 8 in the paper's Table 2, 32 in the released code's last edition; joint
    phases: 4 in both."""
    schedule: tuple[Plateau, ...] | Curve = (Plateau(1000, 0.01),)
    """Plateaus `[steps, learning rate]`, or a schedule by name: {name: cosine, steps: 1000,
    options: {rate: 0.01}}. The paper and the code agree on rates, not on lengths."""
    schedule_scale: float = 1.0
    """Every plateau (or curve), and `classifier_only_steps`, takes so many times its steps: a
    smaller data set wants shorter schedules of the same shape."""
    trainable: Literal["all", "temporal", "last_stage", "head"] = "all"
    """What moves: all of the network, or besides the classifiers nothing (head: a linear probe),
    the convolutions over time, or the last stage. The rest stays as it was, normalisation with its
    stored statistics included."""
    dropout: float = 0.0
    """Dropout on the pooled features: 0 in the paper, 0.8 for the motion stream in
    the released code."""
    classifier_only_steps: int = 0
    """First steps that train the classifier alone (first released appearance
    stream); 0 in the paper."""
    loss_over_time: Literal["sum", "mean"] = "sum"
    """Cross-entropies of the time outputs are summed (released code) or averaged; the
    paper does not say."""
    softmax: Literal["each", "joint"] = "each"
    """A cross-entropy for each stream (chosen by the papers), or one for the mean of their logits,
    which the paper found to overfit to appearance."""
    agreement_loss: float = 0.0
    """Weight of the distance (L1) between both streams' softmaxes: 1 in the first STM
    release, 0 in the last."""
    loss_weight_appearance: float = 1.0
    """Weight of the appearance stream's loss in joint phases."""
    loss_weight_motion: float = 1.0
    """Weight of the motion stream's loss in joint phases."""

    def __post_init__(self) -> None:
        check_field(self.global_batch >= 1, "global_batch", "expected a whole number of 1 or more")
        check_field(self.norm_group >= 1, "norm_group", "expected a whole number of 1 or more")
        check_field(
            self.norm_group <= self.global_batch,
            "norm_group",
            f"expected at most the global batch of {self.global_batch}",
        )
        self._check_schedule()
        check_field(
            0.0 < self.schedule_scale <= 1000.0,
            "schedule_scale",
            "expected a number above 0, up to 1000",
        )
        check_field(0.0 <= self.dropout < 1.0, "dropout", "expected a number from 0 to below 1")
        check_field(self.classifier_only_steps >= 0, "classifier_only_steps", "expected 0 or more")
        for key in ("loss_weight_appearance", "loss_weight_motion", "agreement_loss"):
            check_field(getattr(self, key) >= 0, key, "expected 0 or more")

    @property
    def scaled_schedule(self) -> tuple[Plateau, ...] | Curve:
        """The schedule as it is trained."""
        return scaled(self.schedule, self.schedule_scale)

    @property
    def scaled_classifier_only_steps(self) -> int:
        """First steps that train the classifier alone, as they are trained."""
        return (
            scaled_steps(self.classifier_only_steps, self.schedule_scale)
            if self.classifier_only_steps
            else 0
        )

    def _check_schedule(self) -> None:
        if isinstance(self.schedule, Curve):
            return
        check_field(bool(self.schedule), "schedule", "expected at least one [steps, rate] pair")
        for plateau in self.schedule:
            steps, rate = plateau
            check_field(
                steps >= 1, "schedule", f"expected 1 or more steps in each pair, not {steps}"
            )
            check_field(rate > 0, "schedule", f"expected rates above 0, not {rate}")
