"""What has to be done to a video before a network reads it, in numbers: for whoever serves an
export without us."""

from collections.abc import Sequence
from typing import Any

from hpc_stres.config.schema import FLOW_STACK, Config, EvaluationConfig
from hpc_stres.data import augment, segments
from hpc_stres.data.flow import BOUND, ZERO_LEVEL
from hpc_stres.data.test_clips import QUICK_CHUNKS, TestClips
from hpc_stres.phases.train import TrainPhase
from hpc_stres.store.location import Settings


def preprocessing(config: Config, phase: TrainPhase, inputs: Sequence[str]) -> dict[str, Any]:
    """Frames, view, sampling, normalisation and flow encoding of a phase, and what becomes of
    its answers."""
    settings, clips = Settings.of(config.data), TestClips.of(phase, config.data.crop)
    made: dict[str, Any] = {
        "axes": ["batch", "time", "channel", "height", "width"],
        "frames": {
            "short_side": settings.short_side, "interpolation": "bicubic", "sides": "even, rounded down",
            "jpeg_quality": settings.jpeg_quality,
        },
        "view": _view(clips),
        "sampling": _sampling(config.evaluation, clips),
        "score": "mean of the logits over time, flips and streams",
        "probabilities": "sigmoid" if config.data.labels == "multi" else "softmax",
    }  # fmt: skip
    return made | _planes(settings, augment.Levels.of_phase(phase), inputs)


def _view(clips: TestClips) -> dict[str, Any]:
    """What of a stored frame the network looks at, and how large that is made."""
    resize = {"resize": "bicubic, a = -0.5, antialiased"}
    if clips.side is not None:
        return {"part": "middle square", "side": clips.side, **resize}
    if clips.scale is not None:
        return {"part": "full frame", "times": clips.scale, **resize}
    return {"part": "full frame", "times": 1}


def _sampling(evaluation: EvaluationConfig, clips: TestClips) -> dict[str, Any]:
    """Which frames of a video are looked at, and whether their mirror images are too."""
    half, is_quick = FLOW_STACK // 2, evaluation.protocol == "quick"
    made: dict[str, Any] = {
        "first_frame": half, "last_frame_from_end": half + 1, "shorter_videos": "from 0 to the last frame",
        "flips": evaluation.flips and not is_quick,
    }  # fmt: skip
    if clips.segments is None:
        chunks = QUICK_CHUNKS if is_quick else evaluation.chunks
        places = "floor(linspace(first, last, chunks) + 0.5); one chunk: floor((first + last) / 2)"
        return {**made, "chunks": chunks, "places": places}
    count = 1 if is_quick else segments.test_clips(evaluation.chunks, clips.segments)
    return {
        **made, "segments": clips.segments, "frame_grid": clips.frame_grid,
        "shares": segments.test_shares(count),
        "places": "of every frame_grid-th frame from first to last, n in all, one of each segment in a clip: "
        "segment s has those from n * s // segments to n * (s + 1) // segments; a clip takes the one at its share "
        "of them, rounded down; each share is a clip",
    }  # fmt: skip


def _planes(settings: Settings, levels: augment.Levels, inputs: Sequence[str]) -> dict[str, Any]:
    """How pictures and flow become numbers."""
    half, made = FLOW_STACK // 2, dict[str, Any]()
    scale, shift = augment.rgb_scale_and_shift(levels)
    flow_scale, flow_shift = augment.flow_scale_and_shift(levels, flip=False)
    flipped_scale, flipped_shift = augment.flow_scale_and_shift(levels, flip=True)
    if "rgb" in inputs:
        made["rgb"] = {
            "order": "RGB",
            "scale": scale.tolist(),
            "shift": shift.tolist(),
            "of": "levels 0 to 255",
        }
    if "flow" in inputs:
        made["flow"] = {
            "method": f"TV-L1, {settings.flow_backend} {settings.flow_pyramid}", "picture": "gray",
            "bound_pixels": BOUND, "zero_level": ZERO_LEVEL,
            "levels": "floor((clip(v, -bound, bound) + bound) * 255 / (2 * bound) + 0.5)",
            "planes": "u and v of each pair in turn", "pairs": [-half, half - 1], "outside": "mirrored",
            "scale": flow_scale.tolist(), "shift": flow_shift.tolist(),
            "flipped_scale": flipped_scale.tolist(), "flipped_shift": flipped_shift.tolist(),
        }  # fmt: skip
    return made
