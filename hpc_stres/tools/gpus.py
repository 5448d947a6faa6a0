"""What GPUs were measured to do: ResNet-50 trainings that others published, each with its source.

A network of this package is planned at the speed of ResNet-50 on the same GPU, by its operations,
times the share of that speed which `hpc-stres bench step` finds it to reach beside ResNet-50 on one
machine. The fast end of a range is the published record, so that no plan promises more; the slow
end is what ordinary PyTorch was published to reach.
"""

from dataclasses import dataclass

from hpc_stres.errors import ConfigError

# Multiply-adds of ResNet-50 for one image of 224 x 224, times two, forwards.
RESNET50_FLOP = 2 * 4.089e9
# Videos/s of ST-ResNet-50 times its operations over ResNet-50's, in one run on two cores: see
# docs/benchmarks.md. `hpc-stres plan --bench FILE` takes the figure of your own run.
STEP_SHARE = 0.47
STEP_SHARE_SOURCE = "this package's own bench step"
# The name of that figure in the JSON of `hpc-stres bench step`.
SHARE_FIGURE = "videos/s over ResNet-50 images/s / 12.8"
# What one CPU core of the feed delivers: ready planes, from docs/benchmarks.md.
PICTURES_PER_S_OF_A_CORE = 6_000.0


@dataclass(frozen=True)
class Published:
    """Training of ResNet-50 at 224 in images/s of one GPU, from ordinary to record,
    and who says so."""

    slow: float
    fast: float
    source: str


_EXAMPLES = "NVIDIA DeepLearningExamples, ResNet50 v1.5 for PyTorch"
_H100 = Published(
    2470 * 1.8,
    7152,
    "fast: MLPerf Training 4.0 per GPU; slow: the A100's ordinary speed x 1.8, H100 over A100 of one maker's servers "
    "in MLPerf Training 3.0",
)
_H100_FLOAT32 = Published(
    812 * 1.8,
    938 * 1.8,
    "no figure published: the A100's x 1.8, H100 over A100 in MLPerf Training 3.0",
)
_V100 = Published(356, 367, f"{_EXAMPLES}: float32, DGX-1 of 32 and 16 GB")
# By kind and precision. bfloat16 figures are of mixed precision; float32 of GPUs from Ampere
# on is with TF32.
PUBLISHED = {
    "v100": {"float32": _V100, "bfloat16": _V100},
    "a100": {
        "float32": Published(812, 938, f"slow: 8 GPUs of timm, per GPU; fast: {_EXAMPLES}, TF32"),
        "bfloat16": Published(
            2470, 3395, f"slow: {_EXAMPLES}, mixed precision; fast: MLPerf Training 2.0 per GPU"
        ),
    },
    "h100": {"float32": _H100_FLOAT32, "bfloat16": _H100},
    "h200": {"float32": _H100_FLOAT32, "bfloat16": _H100},
    "l40s": {
        "bfloat16": Published(
            1300,
            2600,
            "no figure published: 9 and 18 % of the data sheet's peak, the H100's record being 18 % of its",
        ),
    },
}
NOTES = {
    "v100": "it has no bfloat16: planned with float32",
    "h200": "its processor is the H100's, and planned as that",
}


def published(kind: str, precision: str) -> Published:
    """The figures of a GPU; refuses a kind or a precision of which there are none."""
    name = kind.lower()
    if name not in PUBLISHED:
        raise ConfigError(f"--gpu {kind}: no such GPU is known; there are {', '.join(PUBLISHED)}")
    if precision not in PUBLISHED[name]:
        there = " and ".join(PUBLISHED[name])
        raise ConfigError(
            f"--gpu {kind}: nobody published what it does in training.precision={precision}; there is {there}\n"
            "Without --gpu, `hpc-stres plan` measures on the node where it runs."
        )
    return PUBLISHED[name][precision]


def seconds_per_video(flop_per_video: float, images_per_s: float, share: float) -> float:
    """A training pass of a video, at this share of the speed at which
    ResNet-50's operations run."""
    return flop_per_video / RESNET50_FLOP / (images_per_s * share)
