"""What a trained network sees in videos of any length, window by window: the classifier's
input of each stream.

    DIR/NAME.STREAM.npy   (time, channels), float32: one row for each window        --layout streams
    DIR/NAME.npy          (time, channels), the streams side by side                --layout actionformer
    DIR/NAME.npy          (channels, frames), for each frame its window's features  --layout mstcn
    DIR/NAME.json         window, stride, frame rate, what made them, checksums; written last

The work is cut into pieces of PIECE_WINDOWS windows of one video. A rank takes its share of the
pieces and writes each into a file of its own in DIR/.parts, so that a killed run repeats one piece
at most; whoever finds all pieces of a video there puts them together. Which rank computes a piece
has no say in its bytes.
"""

import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from hpc_stres.data.feed import ClipReader
from hpc_stres.data.requests import centre_box
from hpc_stres.data.test_clips import WHOLE_VIDEO
from hpc_stres.errors import ConfigError, UserError
from hpc_stres.evaluation.networks import Network
from hpc_stres.evaluation.scores import digest, read_npz
from hpc_stres.evaluation.sources import Source
from hpc_stres.evaluation.windows import Passing, Windows
from hpc_stres.listings.listing import printable
from hpc_stres.parallel.world import World
from hpc_stres.prepare import guard
from hpc_stres.prepare.video import UndecodableError, require_regular_file
from hpc_stres.run.ownership import owned
from hpc_stres.run.paths import atomic_path, checksum, read_sealed, sha256, write_sealed
from hpc_stres.run.progress import Progress

Layout = Literal["streams", "actionformer", "mstcn"]
LAYOUTS: tuple[Layout, ...] = ("streams", "actionformer", "mstcn")
Rows = NDArray[np.float32]
STREAMS = ("appearance", "motion")
PIECE_WINDOWS = 64
# Windows that go through the network together: always the same ones, whoever computes them.
WINDOWS_AT_ONCE = 4
# A video is shared among as many ranks as it has this many bytes; every rank can tell
# without opening it.
BYTES_OF_A_RANK = 16 << 20
PATIENCE_SECONDS = 600.0
AGAIN = "Remove it and give the same command again."


@dataclass(frozen=True)
class Task:
    """What is the same for all videos."""

    network: Network
    windows: Windows
    layout: Layout
    folder: Path
    world: World
    weights_sha256: str


def make_task(
    network: Network, windows: Windows, layout: Layout, folder: Path, world: World
) -> Task:
    """What is the same for all videos; refuses windows that the network cannot look at."""
    pool = getattr(network.call, "pool", None)
    if pool is not None and windows.chunks < pool.window:
        raise ConfigError(
            f"--chunks {windows.chunks}: {network.name} pools over {pool.window} chunks"
        )
    return Task(network, windows, layout, folder, world, sha256(network.weights))


def extract(task: Task, sources: Sequence[Source], device: torch.device) -> list[str]:
    """This rank's share of all videos; returns a line for each video that does not decode."""
    torch.set_num_threads(1)  # as in tests: sums must not depend on how many cores a rank has
    tap = Tap(task.network)
    device_id = device.index if device.type == "cuda" else None
    reader: ClipReader | None = None
    failed: list[str] = []
    shares = _shares(sources, task.world)
    with Progress("features", len(sources), "videos", task.world.is_first) as progress:
        for number, source in enumerate(sources, 1):
            share, ranks = shares[source.name]
            try:
                if share is not None:
                    work = Work(task, source)
                    reader = reader or task.network.reader(_NoVideo(), device_id)
                    work.run(tap, reader, (share, ranks), _teller(progress, number, source.name))
            except UndecodableError as error:
                failed.append(f"{printable(source.path)}: {error}")
            progress.update(number, printable(source.name))
    return failed


def _teller(progress: Progress, number: int, name: str) -> Callable[[str], None]:
    """Says how far the video of this number is: an hour of film takes long."""
    return lambda text: progress.update(number - 1, f"{printable(name)}: {text}")


class _NoVideo:
    """What a reader reads before its first video."""

    place = "no video"
    rows: Sequence[Any] = ()

    def rgb(self, video: int, frame: int) -> NDArray[np.uint8]:
        """Nothing."""
        raise IndexError(frame)

    def flow(self, video: int, pair: int, axis: int) -> NDArray[np.uint8]:
        """Nothing."""
        raise IndexError(pair)


def _shares(sources: Sequence[Source], world: World) -> dict[str, tuple[int | None, int]]:
    """This rank's number among those that share a video (None: it has no part in it), and
    how many these are."""
    shares, first = {}, 0
    for source in sources:
        try:
            size = source.path.stat().st_size
        except OSError:
            size = 0  # the rank that has it says so
        ranks = min(world.size, 1 + size // BYTES_OF_A_RANK)
        own = (world.rank - first) % world.size
        shares[source.name] = (own if own < ranks else None, ranks)
        first += ranks
    return shares


class Tap:
    """A network whose classifiers' inputs are read off: of each stream (videos, channels),
    the mean over time."""

    def __init__(self, network: Network) -> None:
        self.network = network
        self.seen: dict[str, Tensor] = {}
        for stream in STREAMS:
            trunk = getattr(network.call, stream)
            if trunk is not None:
                trunk.fc.register_forward_pre_hook(self._reading(stream))

    def _reading(self, stream: str) -> Any:
        def read(module: Any, inputs: tuple[Tensor, ...]) -> None:
            self.seen[stream] = inputs[0]

        return read

    @torch.no_grad()
    def __call__(self, rgb: Tensor | None, flow: Tensor | None) -> dict[str, Rows]:
        self.seen.clear()
        some = rgb if rgb is not None else flow
        assert some is not None
        dtype = self.network.dtype
        self.network(*(None if clip is None else clip.to(dtype) for clip in (rgb, flow)))
        means = {
            name: x.unflatten(0, (len(some), -1)).double().mean(dim=1)
            for name, x in self.seen.items()
        }
        return {name: value.float().cpu().numpy() for name, value in means.items()}


class Work:
    """The features of one video."""

    def __init__(self, task: Task, source: Source) -> None:
        self.task, self.source = task, source
        try:
            require_regular_file(source.path)
            content, size = sha256(source.path), source.path.stat().st_size
        except OSError as error:
            raise UndecodableError(f"cannot be read: {error.strerror}") from None
        self.made_by = {
            "weights_sha256": task.weights_sha256, "phase": task.network.name,
            "settings": task.network.settings.as_json(), "windows": asdict(task.windows), "layout": task.layout,
            "source_sha256": content, "source_bytes": size,
        }  # fmt: skip
        # Said where it is not the whole frame as it is stored.
        view = asdict(replace(task.network.clips, segments=None, frame_grid=1))
        self.made_by |= {"view": view} if view != asdict(WHOLE_VIDEO) else {}
        self.key = checksum(self.made_by)
        self.parts = task.folder / ".parts" / source.name
        self.final = task.folder / f"{source.name}.json"

    def run(
        self, tap: Tap, reader: ClipReader, share: tuple[int, int], tell: Callable[[str], None]
    ) -> None:  # fmt: skip
        """Compute this rank's pieces (it is a number among so many), and put the video together
        if all are there."""
        if self._is_done():
            return
        tell("its frames are counted")
        own, ranks = share
        length = guard.measure(self.source.path)
        count = self.task.windows.count(length.frames)
        pieces = range(-(-count // PIECE_WINDOWS))
        mine = [piece for piece in pieces if piece % ranks == own and self._read(piece) is None]
        self._compute(tap, reader, mine, length.frames, tell)
        if all(self._part(piece).is_file() for piece in pieces):
            with owned(
                self.parts.with_name(self.parts.name + ".lock"),
                "this video is put together",
                PATIENCE_SECONDS,
            ):
                if not self._is_done():
                    self._finish(pieces, length)

    def _is_done(self) -> bool:
        if not self.final.is_file():
            return False
        written = read_sealed(self.final, AGAIN)
        if written["key"] != self.key:
            raise UserError(
                f"{self.final}: features of another network, video or window\nName another folder, or remove this one."
            )
        for name, digest_ in written["files"].items():
            if (
                not (self.task.folder / name).is_file()
                or sha256(self.task.folder / name) != digest_
            ):
                self.final.unlink()  # a file is missing or damaged: it is made again
                return False
        return True

    def _numbers(self, piece: int, frames: int) -> range:
        return range(
            piece * PIECE_WINDOWS, min((piece + 1) * PIECE_WINDOWS, self.task.windows.count(frames))
        )

    def _compute(
        self, tap: Tap, reader: ClipReader, pieces: Sequence[int], frames: int,
        tell: Callable[[str], None],
    ) -> None:  # fmt: skip
        if not pieces:
            return
        network, windows = self.task.network, self.task.windows
        numbers = [number for piece in pieces for number in self._numbers(piece, frames)]
        wanted = windows.pairs(numbers, frames) if network.streams[1] else set()
        with closing(guard.stream(self.source.path, network.settings, wanted)) as parts:
            passing = Passing(self.source.path, frames, parts)
            reader.store = passing
            for piece in pieces:
                batches = list(self._batches(tap, reader, passing, self._numbers(piece, frames)))
                rows = {
                    name: np.concatenate([batch[name] for batch in batches]) for name in batches[0]
                }
                self._write(piece, rows)
                tell(f"{self._numbers(piece, frames).stop} of {windows.count(frames)} windows")

    def _batches(
        self, tap: Tap, reader: ClipReader, passing: Passing, numbers: range
    ) -> Iterator[dict[str, Rows]]:  # fmt: skip
        windows = self.task.windows
        for first in range(numbers.start, numbers.stop, WINDOWS_AT_ONCE):
            some = range(first, min(first + WINDOWS_AT_ONCE, numbers.stop))
            clips = [windows.clip(number, passing.frames) for number in some]
            passing.advance(
                tuple(frame for frames, _ in clips for frame in frames),
                tuple(stack for _, stacks in clips for stack in stacks),
            )
            requests = [windows.request(number, passing.rows[0]) for number in some]
            if self.task.network.clips.side is not None:
                requests = [one._replace(box=centre_box(passing.rows[0])) for one in requests]
            read = reader.read(requests)
            features = tap(read.rgb, read.flow)
            if not all(np.isfinite(rows).all() for rows in features.values()):
                raise UserError(
                    f"a feature is not a finite number: the weights have diverged: {self.task.network.weights}"
                )
            yield features

    def _part(self, piece: int) -> Path:
        return self.parts / f"{piece:06d}-{self.key[:16]}.npz"

    def _write(self, piece: int, rows: dict[str, Rows]) -> None:
        with atomic_path(self._part(piece)) as temporary, temporary.open("wb") as stream:
            np.savez(stream, **rows, digest=np.array(digest(rows)))  # type: ignore[arg-type]

    def _read(self, piece: int) -> dict[str, Rows] | None:
        """A piece that is there and whole."""
        path = self._part(piece)
        if not path.is_file():
            return None
        try:
            rows = read_npz(path)
        except UserError:
            rows = {}
        if str(rows.pop("digest", "")) != digest(rows):
            print(f"{path}: damaged; it is computed again", file=sys.stderr)
            path.unlink(missing_ok=True)
            return None
        return rows

    def _finish(self, pieces: Sequence[int], length: guard.Measured) -> None:
        """Write the video's files, the one that names the others last, and remove the pieces."""
        first_piece = self._read(0)
        if first_piece is None:
            raise UserError(f"{self.parts}: a piece is damaged\nGive the same command again.")
        streams = [stream for stream in STREAMS if stream in first_piece]
        channels = {stream: first_piece[stream].shape[1] for stream in streams}
        count = self.task.windows.count(length.frames)
        files: dict[str, list[str]] = {
            f"{self.source.name}.{stream}.npy": [stream] for stream in streams
        }
        if self.task.layout != "streams":
            files = {f"{self.source.name}.npy": streams}
        shapes = {}
        for name, inside in files.items():
            width = sum(channels[stream] for stream in inside)
            shapes[name] = self._write_array(
                self.task.folder / name, inside, width, pieces, length.frames
            )
        write_sealed(self.final, {
            "video": str(self.source.path), "frames": length.frames, "frame_rate": length.frame_rate,
            "duration_seconds": length.frames / length.frame_rate if length.frame_rate else None,
            "windows": count, "window_frames": self.task.windows.length, "stride_frames": self.task.windows.stride,
            "chunks": self.task.windows.chunks, "spacing_frames": self.task.windows.spacing,
            "first_centre_frame": self.task.windows.centre(0, length.frames), "layout": self.task.layout,
            "axes": ["channels", "frames"] if self.task.layout == "mstcn" else ["time", "channels"],
            "channels": channels, "shapes": shapes, "made_by": self.made_by, "key": self.key,
            "files": {name: sha256(self.task.folder / name) for name in files},
        })  # fmt: skip
        for piece in pieces:
            self._part(piece).unlink(missing_ok=True)
        with suppress(OSError):  # pieces of another attempt with other windows stay
            self.parts.rmdir()

    def _write_array(
        self, path: Path, streams: Sequence[str], width: int, pieces: Sequence[int], frames: int
    ) -> list[int]:  # fmt: skip
        """One .npy, piece after piece: memory does not grow with the video."""
        is_by_frame = self.task.layout == "mstcn"
        length = frames if is_by_frame else self.task.windows.count(frames)
        # Rows of one time follow each other in the file; (channels, frames) is the same, named the
        # other way round.
        shape = (width, length) if is_by_frame else (length, width)
        with atomic_path(path) as temporary, temporary.open("wb") as stream:
            header = {"descr": "<f4", "fortran_order": is_by_frame, "shape": shape}
            np.lib.format.write_array_header_1_0(stream, header)
            for piece in pieces:
                rows = self._read(piece)
                if rows is None:
                    raise UserError(
                        f"{self.parts}: a piece is damaged\nGive the same command again."
                    )
                joined = np.concatenate([rows[name] for name in streams], axis=1).astype("<f4")
                times = self._frames_of(piece, frames) if is_by_frame else [1] * len(joined)
                for row, count in zip(joined, times, strict=True):
                    stream.write(row.tobytes() * count)
        return list(shape)

    def _frames_of(self, piece: int, frames: int) -> list[int]:
        """For how many frames each window of a piece is the nearest one."""
        windows, numbers = self.task.windows, self._numbers(piece, frames)

        def last_frame(number: int) -> int:
            """The last frame to which no later window is nearer."""
            if number < 0:
                return -1
            if number >= windows.count(frames) - 1:
                return frames - 1
            return int(windows.centre(number, frames) + windows.centre(number + 1, frames)) // 2

        return [last_frame(number) - last_frame(number - 1) for number in numbers]
