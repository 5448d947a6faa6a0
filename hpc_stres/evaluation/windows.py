"""Windows that slide over a video of any length, and the few frames of it that are in
memory at a time.

Window number n begins at frame n x stride and holds `chunks` chunks, `spacing` frames apart; each
is an RGB frame with its ten pairs of flow around it. A video that is shorter than a window has one,
spread over all of it as a test clip is.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from hpc_stres.config.schema import FLOW_STACK
from hpc_stres.data.requests import Box, Request, flow_stack, spread_frames
from hpc_stres.errors import ConfigError
from hpc_stres.prepare.video import UndecodableError
from hpc_stres.store.reader import VideoRow


@dataclass(frozen=True)
class Windows:
    """How windows lie; all in frames of the video."""

    chunks: int
    spacing: int
    stride: int

    def __post_init__(self) -> None:
        for name in ("chunks", "spacing", "stride"):
            if getattr(self, name) < 1:
                raise ConfigError(f"--{name} {getattr(self, name)}: a number of 1 or more")

    @property
    def length(self) -> int:
        """Frames from the first pair of flow of a window to its last one."""
        return (self.chunks - 1) * self.spacing + FLOW_STACK

    def count(self, frames: int) -> int:
        """Windows of a video: those that lie inside, or one."""
        pairs = frames - 1
        return 1 + max(0, pairs - self.length) // self.stride

    def centre(self, number: int, frames: int) -> float:
        """The frame in the middle of a window."""
        if frames - 1 < self.length:
            return (frames - 1) / 2
        return number * self.stride + self.length / 2

    def clip(self, number: int, frames: int) -> tuple[tuple[int, ...], tuple[tuple[int, ...], ...]]:
        """RGB frames and flow pairs of each chunk of a window."""
        if frames - 1 < self.length:
            chosen = spread_frames(frames, self.chunks)
        else:
            first = number * self.stride + FLOW_STACK // 2
            chosen = tuple(first + chunk * self.spacing for chunk in range(self.chunks))
        pairs = max(1, frames - 1)
        return chosen, tuple(flow_stack(frame, pairs, "mirror") for frame in chosen)

    def request(self, number: int, row: VideoRow) -> Request:
        """A window as the reader of clips takes it: the full frame, not mirrored."""
        frames, stacks = self.clip(number, row.frames)
        return Request(number, 0, 0, frames, stacks, Box(0, 0, row.height, row.width), False)

    def pairs(self, numbers: Sequence[int], frames: int) -> set[int]:
        """Flow pairs that some windows read."""
        return {
            pair for number in numbers for stack in self.clip(number, frames)[1] for pair in stack
        }


class Passing:
    """The frames and planes of a video that passes by: what is needed no more is forgotten."""

    def __init__(self, path: Path, frames: int, parts: Iterator[tuple[str, bytes]]) -> None:
        self.path, self.frames, self.parts = path, frames, parts
        self.kept_rgb: dict[int, bytes] = {}
        self.kept_flow: dict[int, list[bytes]] = {}
        self.read_rgb = self.read_planes = 0
        self.rows: list[VideoRow] = []

    @property
    def place(self) -> str:
        """Name for messages."""
        return str(self.path)

    def rgb(self, video: int, frame: int) -> NDArray[np.uint8]:
        """JPEG bytes of one RGB frame."""
        return np.frombuffer(self.kept_rgb[frame], np.uint8)

    def flow(self, video: int, pair: int, axis: int) -> NDArray[np.uint8]:
        """JPEG bytes of one plane of a flow pair."""
        return np.frombuffer(self.kept_flow[pair][axis], np.uint8)

    def advance(self, frames: tuple[int, ...], stacks: tuple[tuple[int, ...], ...]) -> None:
        """Read on until a window is here; what lies before it is needed no more."""
        pairs = [pair for stack in stacks for pair in stack]
        while self.read_rgb <= max(frames) or self.read_planes < 2 * (max(pairs) + 1):
            try:
                letter, jpeg = next(self.parts)
            except StopIteration:
                raise UndecodableError("it changed while it was read") from None
            if letter == "r":
                if not self.rows:
                    self.rows = [self._row(jpeg)]
                self.kept_rgb[self.read_rgb] = jpeg
                self.read_rgb += 1
            else:
                self.kept_flow.setdefault(self.read_planes // 2, []).append(jpeg)
                self.read_planes += 1
            self._forget(min(frames), min(pairs))

    def _forget(self, frame: int, pair: int) -> None:
        # Dictionaries keep the order of arrival: the oldest is the first.
        for kept, least in ((self.kept_rgb, frame), (self.kept_flow, pair)):
            while kept and (oldest := next(iter(kept))) < least:
                del kept[oldest]

    def _row(self, jpeg: bytes) -> VideoRow:
        import cv2

        picture = cv2.imdecode(np.frombuffer(jpeg, np.uint8), cv2.IMREAD_GRAYSCALE)
        if picture is None:
            raise UndecodableError("its first frame cannot be read back")
        height, width = picture.shape
        return VideoRow(
            id=self.path.stem, label=0, frames=self.frames, flow_pairs=max(1, self.frames - 1), height=height,
            width=width, shard=0, rgb_first=0, flow_first=0, rgb_sha256="", flow_sha256="",
        )  # fmt: skip
