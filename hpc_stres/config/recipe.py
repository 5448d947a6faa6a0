"""The graph of phases: what each trains, from whose weights it starts, and with which numbers.

A recipe is a YAML file under configs/recipes whose `phases` section is a mapping of these. Where the paper and
the released code disagree there is one field, and its docstring names both values.
"""

import dataclasses
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Literal

from hpc_stres.config.schedule import Plateau
from hpc_stres.errors import ConfigError, check_field

# Names that jobs, columns of the table and command lines have for something else.
RESERVED_NAMES = ("all", "evaluate", "mean", "none", "prepare", "preflight", "report", "two_stream")
MOST_NAME_LETTERS = 40

ModelName = Literal["appearance", "motion", "st_resnet", "st_resnet_star", "stm_resnet"]


@dataclass(frozen=True, kw_only=True)
class Phase:
    """One phase of a recipe."""

    model: ModelName
    """Name of the network in `hpc_stres.models.build_model`."""
    starts_from: tuple[str, ...] = ()
    """Phases whose weights this one starts from; none: `weights`, else `model.weights`, else random."""
    weights: str | None = None
    """A weights file (or a finished run's phase folder) to start from; HMDB51's motion stream starts from UCF101's."""
    global_batch: int = 256
    """Videos in one SGD step, whatever the number of ranks."""
    norm_group: int = 32
    """Videos that share normalisation moments. Motion: 86 in the paper, 32 in the released code; appearance: 8
    in the paper's Table 2, 32 in the released code's last edition; joint phases: 4 in both."""
    schedule: tuple[Plateau, ...] = (Plateau(1000, 0.01),)
    """Plateaus `[steps, learning rate]`. The paper and the code agree on rates, not on lengths."""
    chunks: int = 1
    """Time steps T of one training clip."""
    stride: tuple[int, int] = (1, 1)
    """Smallest and largest temporal stride tau between chunks, drawn uniformly."""
    stride_shared_by: Literal["video", "group"] = "video"
    """Who shares one drawn stride: each video its own, or (released code) all videos of a norm group."""
    chunk_window: Literal["anywhere", "released"] = "anywhere"
    """Start of the window of chunks: any valid frame, or (released code) on the lattice that starts at the first
    valid frame and never at its first point."""
    short_video: Literal["mirror", "repeat"] = "mirror"
    """Videos too short for one flow stack: padded symmetrically (paper) or by forward repeats (released code)."""
    crop: Literal["corners", "borders"] = "borders"
    """`corners`: sides from {1, 7/8, 3/4, 21/32} of 256, at a corner or the centre (motion stream); `borders`: sides
    jittered by 25 %, at most a quarter of the slack away from a border (all others)."""
    border_corners: Literal["four", "two"] = "four"
    """`borders` crops lie near any of the four corners (what the paper's words allow) or near the top-left and
    bottom-right ones only (released code)."""
    crop_shared_by: Literal["video", "group"] = "video"
    """Each video draws its own place and flip, or (released appearance stream) a norm group shares one."""
    antialias: bool = True
    """Low-pass when a crop is shrunk; the released motion stream switches it off."""
    dropout: float = 0.0
    """Dropout on the pooled features: 0 in the paper, 0.8 for the motion stream in the released code."""
    classifier_only_steps: int = 0
    """First steps that train the classifier alone (first released appearance stream); 0 in the paper."""
    loss_over_time: Literal["sum", "mean"] = "sum"
    """Cross-entropies of the time outputs are summed (released code) or averaged; the paper does not say."""
    temporal_pool: Literal["after_pool5", "before_average"] = "after_pool5"
    """ST-ResNet*'s temporal max pool stands after the spatial average (paper) or before it (released code)."""
    temporal_padding: Literal["zeros", "replicate"] = "zeros"
    """Frames beyond a clip's ends in temporal convolutions: zeros (released code; the paper does not say)."""
    conv1_inflation: Literal["mirror", "mean"] = "mirror"
    """Motion conv1 from RGB filters: R G B B G R ... (paper's time) or their mean repeated (last released code)."""
    conv1_rescale: bool = False
    """Multiply the inflated conv1 by 3/20 so that its response keeps its size; neither source does."""
    norm_average: Literal["variance", "sigma"] = "variance"
    """What running statistics average over groups: the variance, as torch does, or sigma, as the released code."""
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
        check_field(bool(self.schedule), "schedule", "expected at least one [steps, rate] pair")
        for plateau in self.schedule:
            check_field(plateau.steps >= 1, "schedule", f"expected 1 or more steps in each pair, not {plateau.steps}")
            check_field(plateau.rate > 0, "schedule", f"expected rates above 0, not {plateau.rate}")
        check_field(self.chunks >= 1, "chunks", "expected a whole number of 1 or more")
        low, high = self.stride
        check_field(1 <= low <= high, "stride", f"expected 1 <= smallest <= largest, not {low}, {high}")
        check_field(0.0 <= self.dropout < 1.0, "dropout", "expected a number from 0 to below 1")
        check_field(self.classifier_only_steps >= 0, "classifier_only_steps", "expected 0 or more")
        needs_five = self.model in POOLED
        check_field(
            not needs_five or self.chunks >= 5, "chunks", f"{self.model} pools 5 time steps; expected 5 or more"
        )
        for key in ("loss_weight_appearance", "loss_weight_motion"):
            check_field(getattr(self, key) >= 0, key, "expected 0 or more")
        self._refuse_untrained()
        self._refuse_without_effect()

    def _refuse_untrained(self) -> None:
        weights = {"appearance": self.loss_weight_appearance, "motion": self.loss_weight_motion}
        own = [self.model] if self.model in weights else list(weights)
        check_field(
            any(weights[stream] > 0 for stream in own),
            f"loss_weight_{own[0]}", "expected a number above 0: nothing would be trained",
        )  # fmt: skip

    def _refuse_without_effect(self) -> None:
        """An option that says something and does nothing is refused; its default says nothing."""
        for key, (acts, reason) in ACTS_ON.items():
            default = type(self).__dataclass_fields__[key].default
            is_said = getattr(self, key) != default
            check_field(not is_said or acts(self), key, f"no effect in a phase of {self.model}: {reason}")

    def acting(self) -> list[str]:
        """Names of the options that have an effect in this phase."""
        names = [f.name for f in dataclasses.fields(self)]
        return [name for name in names if name not in ACTS_ON or ACTS_ON[name][0](self)]

    @property
    def uses_rgb(self) -> bool:
        """Whether the network reads RGB frames."""
        return self.model != "motion"

    @property
    def uses_flow(self) -> bool:
        """Whether the network reads optical flow."""
        return self.model != "appearance"


POOLED = ("st_resnet_star", "stm_resnet")


def _has_clips(phase: Phase) -> bool:
    return phase.model != "appearance" and phase.chunks > 1


# Which options act in which phases, and why not in others. What is not here acts in all of them.
ACTS_ON: dict[str, tuple[Callable[[Phase], bool], str]] = {
    "weights": (lambda p: not p.starts_from, "it starts from the phases in `starts_from`"),
    "chunks": (lambda p: p.model != "appearance", "it is trained on single frames"),
    "stride": (_has_clips, "there are strides between two or more `chunks` only"),
    "stride_shared_by": (_has_clips, "there are strides between two or more `chunks` only"),
    "chunk_window": (_has_clips, "there is a window of two or more `chunks` only"),
    "short_video": (lambda p: p.uses_flow, "it reads no flow"),
    "border_corners": (lambda p: p.crop == "borders", "`crop` is not borders"),
    "dropout": (lambda p: p.model in ("appearance", "motion", "stm_resnet"), "this network drops nothing"),
    "loss_over_time": (_has_clips, "there is a loss over time with two or more `chunks` only"),
    "temporal_pool": (lambda p: p.model in POOLED, "this network has no temporal pool"),
    "temporal_padding": (
        lambda p: p.model not in ("appearance", "motion"), "this network has no temporal convolutions",
    ),
    "conv1_inflation": (lambda p: p.uses_flow and not p.starts_from, "no RGB filters become flow filters here"),
    "conv1_rescale": (lambda p: p.uses_flow and not p.starts_from, "no RGB filters become flow filters here"),
    "loss_weight_appearance": (lambda p: p.uses_rgb, "it has no appearance stream"),
    "loss_weight_motion": (lambda p: p.uses_flow, "it has no motion stream"),
}  # fmt: skip


def check_phase_name(name: str) -> str | None:
    """What was expected in place of a phase's name: it becomes a folder, a job, a column; none where it is fine."""
    if not re.fullmatch(r"[a-z][a-z0-9_]*", name) or len(name) > MOST_NAME_LETTERS:
        return f"names of small letters, digits and _ (at most {MOST_NAME_LETTERS}), not {name!r:.60}"
    return f"another name than {name}, which means something else" if name in RESERVED_NAMES else None


def ordered_phases(phases: Mapping[str, Phase]) -> list[str]:
    """Phase names, each after those it starts from; refuses cycles and unknown names."""
    order: list[str] = []
    waiting = dict(phases)
    while waiting:
        ready = [name for name, phase in waiting.items() if all(p in order for p in phase.starts_from)]
        if not ready:
            raise ConfigError(_explain_stuck(phases, waiting))
        for name in ready:
            order.append(name)
            del waiting[name]
    return order


def _explain_stuck(phases: Mapping[str, Phase], waiting: Iterable[str]) -> str:
    for name in waiting:
        for parent in phases[name].starts_from:
            if parent not in phases:
                return f"phases.{name}.starts_from: no phase '{parent}'; the recipe has {', '.join(phases)}"
    return f"phases: {', '.join(waiting)} start from each other in a circle"


def select_phases(phases: Mapping[str, Phase], wanted: str) -> list[str]:
    """Phases of a command line's `--phase`: `all`, or names with commas between, in the graph's order."""
    order = ordered_phases(phases)
    if wanted == "all":
        return order
    names = [name.strip() for name in wanted.split(",") if name.strip()]
    for name in names:
        if name not in phases:
            raise ConfigError(f"--phase {name}: no such phase; the recipe has {', '.join(order)} (or all)")
    if not names:
        raise ConfigError(f"--phase names no phase; the recipe has {', '.join(order)} (or all)")
    return [name for name in order if name in names]
