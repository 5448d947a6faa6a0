"""Classes of single videos: decoded, prepared and scored like test videos, without a store."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from hpc_stres.config.schema import EvaluationConfig
from hpc_stres.errors import UserError
from hpc_stres.evaluation import protocol
from hpc_stres.evaluation.networks import Network
from hpc_stres.listings.splits import Video
from hpc_stres.prepare import guard
from hpc_stres.store.reader import PreparedVideo, VideoRow

TOP = 5
# Time steps under the temporal max pool of ST-ResNet* and STM-ResNet.
POOL_WINDOW = 5


class PreparedClip:
    """One prepared video in memory, read like a store of one row."""

    def __init__(self, video: PreparedVideo, source: Path) -> None:
        self.video, self.source = video, source
        self.rows = [
            VideoRow(
                id=video.id, label=0, frames=len(video.rgb), flow_pairs=len(video.flow) // 2, height=video.height,
                width=video.width, shard=0, rgb_first=0, flow_first=0, rgb_sha256="", flow_sha256="",
            )
        ]  # fmt: skip

    @property
    def place(self) -> str:
        """Name for messages."""
        return str(self.source)

    def rgb(self, video: int, frame: int) -> NDArray[np.uint8]:
        """JPEG bytes of one RGB frame."""
        return np.frombuffer(self.video.rgb[frame], np.uint8)

    def flow(self, video: int, pair: int, axis: int) -> NDArray[np.uint8]:
        """JPEG bytes of one plane of a flow pair."""
        return np.frombuffer(self.video.flow[2 * pair + axis], np.uint8)


@dataclass(frozen=True)
class Prediction:
    """What the network says of one video; `over_time` are probabilities at each of `frames`."""

    path: Path
    classes: list[str]
    probabilities: NDArray[np.float64]
    frames: list[int]
    over_time: NDArray[np.float64]
    clip: PreparedClip

    def top(
        self, probabilities: NDArray[np.float64] | None = None, count: int = TOP
    ) -> list[tuple[str, float]]:
        """The most probable classes, of the whole video or of one time."""
        values = self.probabilities if probabilities is None else probabilities
        order = np.argsort(-values, kind="stable")[:count]
        return [(self.classes[number], float(values[number])) for number in order]

    def as_json(self, with_time: bool) -> dict[str, Any]:
        """For `--json`."""
        top = [{"class": name, "probability": value} for name, value in self.top()]
        answer: dict[str, Any] = {
            "video": str(self.path),
            "frames": len(self.clip.video.rgb),
            "top": top,
        }
        if with_time:
            answer["over_time"] = [
                {"frame": frame, "top": [{"class": n, "probability": v} for n, v in self.top(row)]}
                for frame, row in zip(self.frames, self.over_time, strict=True)
            ]
        return answer


def predict(network: Network, path: Path, quick: bool) -> Prediction:
    """Prepare and score one video; raises UndecodableError where it does not decode."""
    evaluation = replace(network.evaluation, protocol="quick") if quick else network.evaluation
    video = Video(path.stem, path, 0)
    clip = PreparedClip(
        guard.prepare(
            video, network.settings, wanted=_wanted_pairs(path, evaluation, network.clips)
        ),
        path,
    )
    reader = network.reader(clip)
    requests = protocol.test_requests(clip.rows[0], 0, evaluation, network.clips)
    scores = protocol.score_video(network, reader, requests, network.dtype)
    streams = [stream for stream in scores if stream is not None]
    if not all(np.isfinite(stream).all() for stream in streams):
        raise UserError(
            f"a score is not a finite number: the weights have diverged: {network.weights}"
        )
    over_time = np.mean(streams, axis=0)
    frames = _frames_of_outputs(requests[0].frames, len(over_time))
    turn = sigmoid if network.labels == "multi" else softmax
    return Prediction(
        path, network.classes, turn(over_time.mean(axis=0)), frames, turn(over_time), clip
    )


def _wanted_pairs(path: Path, evaluation: EvaluationConfig, clips: protocol.TestClips) -> set[int]:
    """Flow pairs that the network's test clips will read; long videos need few of theirs, and the
    others are stored as if nothing moved."""
    frames = guard.count_frames(path)
    row = VideoRow(
        id="", label=0, frames=frames, flow_pairs=max(1, frames - 1), height=2, width=2, shard=0, rgb_first=0,
        flow_first=0, rgb_sha256="", flow_sha256="",
    )  # fmt: skip
    requests = protocol.test_requests(row, 0, evaluation, clips)
    return {pair for request in requests for stack in request.flow for pair in stack}


def _frames_of_outputs(frames: Sequence[int], outputs: int) -> list[int]:
    """The frame in the middle of what each time output has seen: each chunk, or the centre of
    each pooling window."""
    if outputs == len(frames):
        return list(frames)
    if outputs == 1:
        return [frames[len(frames) // 2]]
    stride = (len(frames) - POOL_WINDOW) // (outputs - 1)
    return [frames[POOL_WINDOW // 2 + stride * number] for number in range(outputs)]


def softmax(logits: NDArray[np.float64]) -> NDArray[np.float64]:
    """Probabilities over the last axis."""
    shifted = np.exp(logits - logits.max(axis=-1, keepdims=True))
    return np.asarray(shifted / shifted.sum(axis=-1, keepdims=True))


def sigmoid(logits: NDArray[np.float64]) -> NDArray[np.float64]:
    """The probability of each class by itself, where a video may have several."""
    return np.asarray(0.5 + 0.5 * np.tanh(logits / 2))


def device() -> torch.device:
    """The GPU where there is one."""
    return torch.device("cuda", 0) if torch.cuda.is_available() else torch.device("cpu")
