"""What has to be done to a video before a network reads it, in numbers: for whoever serves an
export without us."""

from collections.abc import Sequence
from typing import Any

from hpc_stres.config.schema import FLOW_STACK, Config, EvaluationConfig
from hpc_stres.data import augment, segments
from hpc_stres.data.flow import BOUND, ZERO_LEVEL
from hpc_stres.data.test_clips import TestClips
from hpc_stres.phases.train import TrainPhase
from hpc_stres.store.location import Settings


def preprocessing(config: Config, phase: TrainPhase, inputs: Sequence[str]) -> dict[str, Any]:
    """Frames, normalisation, flow encoding and sampling of a phase."""
    settings, levels = Settings.of(config.data), augment.Levels.of_phase(phase)
    half = FLOW_STACK // 2
    scale, shift = augment.rgb_scale_and_shift(levels)
    flow_scale, flow_shift = augment.flow_scale_and_shift(levels, flip=False)
    flipped_scale, flipped_shift = augment.flow_scale_and_shift(levels, flip=True)
    made: dict[str, Any] = {
        "axes": ["batch", "time", "channel", "height", "width"],
        "frames": {
            "short_side": settings.short_side, "interpolation": "bicubic", "sides": "even, rounded down",
            "jpeg_quality": settings.jpeg_quality,
        },
        "sampling": _sampling(config.evaluation, TestClips.of(phase, config.data.crop)),
        "view": _view(TestClips.of(phase, config.data.crop)),
        "score": "mean of the logits over clips, time, flips and streams",
    }  # fmt: skip
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


def _sampling(evaluation: EvaluationConfig, clips: TestClips) -> dict[str, Any]:
    """Which frames of a video are the chunks of a clip, counted from 0."""
    half = FLOW_STACK // 2
    common = {
        "first_frame": half,
        "last_frame_from_end": half + 1,
        "flips": evaluation.flips,
    }
    if clips.segments is None:
        places = "floor(linspace(first, last, chunks) + 0.5)"
        return {"chunks": evaluation.chunks, "places": places, **common}
    return {
        "segments": clips.segments,
        "clips": segments.test_clips(evaluation.chunks, clips.segments),
        "every": clips.frame_grid,
        "choices": "every n-th frame from first to last",
        "segment": "choices[count * s // segments : count * (s + 1) // segments]",
        "places": "in clip c the choice at floor((c + 0.5) / clips * length) of each segment",
        **common,
    }


def _view(clips: TestClips) -> str:
    """What of a frame the network sees."""
    if clips.side is not None:
        return f"the middle square, resized to {clips.side} x {clips.side} pixels"
    return "whole frame" if clips.scale is None else f"whole frame, {clips.scale:g} times as large"
