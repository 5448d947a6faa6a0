"""Phases of kind `handcrafted`: improved dense trajectories, Fisher vectors and linear
classifiers, no network.

With one skip level they are IDT, with several MIFS (multi-skip feature stacking).
"""

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Literal

from hpc_stres.errors import check_field
from hpc_stres.registry import PHASE_KINDS
from hpc_stres.registry.phase import Phase, PhaseKind

Descriptor = Literal["trajectory", "hog", "hof", "mbhx", "mbhy"]
DESCRIPTORS: tuple[Descriptor, ...] = ("trajectory", "hog", "hof", "mbhx", "mbhy")
# Cells of the volume around a trajectory: 2 x 2 in space, 3 in time.
CELLS_IN_SPACE, CELLS_IN_TIME = 2, 3


@dataclass(frozen=True, kw_only=True)
class TrackOptions:
    """How trajectories are found and described."""

    scales: int = 8
    """Sizes at which a video is sampled, each 1/sqrt(2) of the one before; those smaller than a
    patch are left out."""
    step: int = 5
    """Pixels between sampled points."""
    length: int = 15
    """Frames that a trajectory is followed over; a multiple of 3."""
    patch: int = 32
    """Side in pixels of the square around a trajectory that is described."""
    hog: Literal["gray", "colour"] = "gray"
    """HOG of gray pictures, as published, or of the colour channel with the longest
    gradient at each pixel."""
    camera: Literal["homography", "none"] = "homography"
    """What the camera's motion is taken out by."""
    least_motion_pixels: float = 1.0
    """A trajectory whose largest move between two frames is below this, the camera's taken
    out, is dropped."""
    skips: tuple[int, ...] = (1,)
    """Frames from one that is used to the next; several (MIFS: 1, 2, 3) are stacked into the
    same Fisher vectors."""

    def __post_init__(self) -> None:
        check_field(1 <= self.scales <= 32, "scales", "expected 1 to 32")
        check_field(1 <= self.step <= 1024, "step", "expected 1 to 1024 pixels")
        fits = 3 <= self.length <= 999 and self.length % CELLS_IN_TIME == 0
        check_field(fits, "length", f"expected a multiple of {CELLS_IN_TIME} from 3 to 999")
        check_field(
            2 <= self.patch <= 1024 and self.patch % 2 == 0,
            "patch",
            "expected an even number from 2 to 1024",
        )
        check_field(
            0 <= self.least_motion_pixels <= 1000,
            "least_motion_pixels",
            "expected a number from 0 to 1000",
        )
        in_order = bool(self.skips) and list(self.skips) == sorted(set(self.skips))
        fits = in_order and self.skips[0] >= 1 and self.skips[-1] <= 1000
        check_field(fits, "skips", "expected different numbers from 1 to 1000, the smallest first")


@dataclass(frozen=True, kw_only=True)
class FeatureOptions(TrackOptions):
    """Trajectories, their encoding, and the classifier."""

    descriptors: tuple[Descriptor, ...] = DESCRIPTORS
    """What is encoded of each trajectory, each in a Fisher vector of its own."""
    gaussians: int = 256
    """Gaussians of the mixture of each descriptor."""
    vocabulary_videos: int = 1000
    """Training videos that mixtures are fitted on; more than there are means all."""
    vocabulary_samples: int = 256000
    """Trajectories, drawn evenly from those videos, that mixtures are fitted on."""
    cost: float = 100.0
    """C of the linear support vector machines."""

    def __post_init__(self) -> None:
        super().__post_init__()
        is_set = bool(self.descriptors) and len(set(self.descriptors)) == len(self.descriptors)
        check_field(
            is_set, "descriptors", f"expected one or more of {', '.join(DESCRIPTORS)}, each once"
        )
        check_field(1 <= self.gaussians <= 65536, "gaussians", "expected 1 to 65536")
        check_field(self.vocabulary_videos >= 1, "vocabulary_videos", "expected 1 or more")
        enough = self.vocabulary_samples >= self.gaussians
        check_field(enough, "vocabulary_samples", f"expected {self.gaussians} (gaussians) or more")
        check_field(0 < self.cost <= 1e9, "cost", "expected a number above 0, up to 1e9")


# IDT with Fisher vectors as Table 4 of the paper cites it.
PUBLISHED_IDT = {"ucf101": 86.4, "hmdb51": 61.7}


@dataclass(frozen=True, kw_only=True)
class HandcraftedPhase(FeatureOptions, Phase):
    """Scores of hand-crafted features, made of the store's frames and flow."""

    kind: str = "handcrafted"
    """Kind of phase: what is done in it."""

    def __post_init__(self) -> None:
        super().__post_init__()
        check_field(not self.starts_from, "starts_from", "expected none: it reads the store only")

    @property
    def title(self) -> str:
        return "IDT" if self.skips == (1,) else "MIFS"

    @property
    def rank(self) -> int:
        return 1100 + (self.skips != (1,))

    @property
    def published(self) -> Mapping[str, float]:
        """Only of the published features: with every option at its default."""
        is_default = all(getattr(self, f.name) == f.default for f in fields(FeatureOptions))
        return PUBLISHED_IDT if is_default else {}


PHASE_KINDS.register(
    PhaseKind(
        name="handcrafted", options=HandcraftedPhase, run="hpc_stres.handcrafted.phase:run", ranks="one",
        products=("scores.npz", "classifier.npz"), scores="hpc_stres.handcrafted.phase:scores", reads=(),
    )
)  # fmt: skip
