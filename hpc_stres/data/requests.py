"""The global batch of any step as a pure function of config and step number.

Every random number comes from a counter-based generator keyed by seed and phase, with step and
position as its counter. So resuming is a number, and another world size is another way of slicing
the same list: a rank computes the positions that it reads and no others. What all ranks read
together is told by a sum over positions, which no layout changes.
"""

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from hpc_stres import counter
from hpc_stres.config.schema import FLOW_STACK, Config
from hpc_stres.data.segments import places, segment_frames
from hpc_stres.errors import UserError
from hpc_stres.phases.train import TrainPhase, train_phase
from hpc_stres.store.held_out import trained_on
from hpc_stres.store.reader import Store, VideoRow

HALF_STACK = FLOW_STACK // 2
CORNER_SCALES = (1.0, 7 / 8, 3 / 4, 21 / 32)
BORDER_JITTER = 0.25
LATTICE = 20
# Numbers drawn for each position and for each norm group of a step.
DRAWS_OF_POSITION, DRAWS_OF_GROUP = 10, 8
# Passes over a data set of no more videos are kept many at a time.
MOST_SHORT = 1 << 14
MARK_BITS = 64


class Box(NamedTuple):
    """A crop window in pixels of the stored frame."""

    top: int
    left: int
    height: int
    width: int


class Request(NamedTuple):
    """One position of a global batch: which frames of which video, cut where, and its label.

    `frames` are RGB frame numbers, one a chunk; `flow` the ten flow pairs of each chunk;
    all counted from 0.
    """

    position: int
    video: int
    label: int
    frames: tuple[int, ...]
    flow: tuple[tuple[int, ...], ...]
    box: Box
    flip: bool


@dataclass(frozen=True)
class Sampler:
    """What `requests` reads: a phase, its seed, the crop's side, and the rows of the
    training videos."""

    seed: int
    name: str
    phase: TrainPhase
    crop: int
    short_side: int
    rows: Sequence[VideoRow]
    videos: "Sequence[int] | NDArray[np.int32]"

    def draws(self, kind: int, step: int, position: int, count: int) -> list[float]:
        """The random numbers of one position of one step."""
        return counter.uniforms(self.seed, self.name, kind, step, position, count)

    @property
    def group_count(self) -> int:
        """Norm groups of a global batch; position p is in group p modulo their number."""
        return -(-self.phase.optimise.global_batch // self.phase.optimise.norm_group)


def sampler(config: Config, phase: str, store: Store) -> Sampler:
    """The sampler of a phase over the training videos of the configured split."""
    videos = trained_on(store, config)
    if not len(videos):
        raise UserError(
            f"phase {phase}: split {config.data.split} has no training video in the store\n"
            "Check data.split and the lists against what `hpc-stres prepare` said."
        )
    trained = train_phase(config, phase)
    short_side = config.data.short_side
    return Sampler(config.seed, phase, trained, config.data.crop, short_side, store.rows, videos)


def requests(config: Sampler | Config, step: int, phase: str | None = None) -> list[Request]:
    """The global batch of SGD step number `step`: one request for each position.

    Takes a Sampler, or a Config with the name of a phase, whose store is then opened.
    """
    source = _open_sampler(config, phase) if isinstance(config, Config) else config
    return requests_at(source, step, range(source.phase.optimise.global_batch))


def requests_at(source: Sampler, step: int, positions: Iterable[int]) -> list[Request]:
    """Some positions of the global batch of a step: the same as those places of `requests`, at the
    cost of no other."""
    # What a group shares is drawn from the group's own counter: whoever has a position of
    # it draws the same.
    shared: dict[int, list[float]] = {}
    batch = []
    for position in positions:
        group = position % source.group_count
        if group not in shared:
            shared[group] = source.draws(counter.GROUP, step, group, DRAWS_OF_GROUP)
        batch.append(_request(source, step, position, shared[group]))
    return batch


@lru_cache(maxsize=8)
def _cached_store(root: str, written_ns: int) -> Store:
    """A store as it was at a time: prepared again, it is opened again."""
    from pathlib import Path

    return Store(Path(root))


def _open_sampler(config: Config, phase: str | None) -> Sampler:
    from hpc_stres.store.location import store_folder

    name = phase or next(iter(config.phases))
    manifest = store_folder(config) / "manifest.json"
    written_ns = manifest.stat().st_mtime_ns if manifest.is_file() else 0
    return sampler(config, name, _cached_store(str(store_folder(config)), written_ns))


def order_of_pass(seed: int, name: str, count: int, epoch: int) -> NDArray[np.int32]:
    """The order of the videos in one pass over them. Few passes of many videos are
    kept, many of few."""
    kept = _short_order if count <= MOST_SHORT else _long_order
    return kept(seed, name, count, epoch)


def _draw_order(seed: int, name: str, count: int, epoch: int) -> NDArray[np.int32]:
    # Shuffled as four-byte numbers: the same order as of eight-byte ones, in half the memory.
    return counter.generator(seed, name, counter.ORDER, epoch).permutation(
        np.arange(count, dtype=np.int32)
    )


# A batch that is larger than the data set meets many passes in one step; a large data set's
# two at its seam.
_short_order, _long_order = lru_cache(maxsize=64)(_draw_order), lru_cache(maxsize=2)(_draw_order)


def _request(source: Sampler, step: int, position: int, common: Sequence[float]) -> Request:
    number = step * source.phase.optimise.global_batch + position
    epoch, place = divmod(number, len(source.videos))
    order = order_of_pass(source.seed, source.name, len(source.videos), epoch)
    video = source.videos[int(order[place])]
    row = source.rows[video]
    phase = source.phase
    # Every draw is made whether it is used or not, so that one option never shifts the
    # numbers of another.
    draws = source.draws(counter.SAMPLE, step, position, DRAWS_OF_POSITION)
    stride_draw = common[0] if phase.clips.stride_shared_by == "group" else draws[0]
    place_draws = common[3:8] if phase.clips.crop_shared_by == "group" else draws[3:8]
    if phase.clips.segments is None:
        frames = choose_frames(phase, row.frames, stride_draw, draws[1])
    else:
        shares = source.draws(counter.SEGMENTS, step, position, phase.clips.segments)
        frames = segment_frames(segment_places(row.frames, phase.clips.frame_grid), shares)
    return Request(
        position,
        video,
        row.label,
        frames,
        tuple(flow_stack(frame, row.flow_pairs, phase.clips.short_video) for frame in frames),
        _box(source, row, draws[8:10], place_draws),
        place_draws[4] < 0.5,
    )


def request_of(source: Sampler, step: int, position: int) -> Request:
    """The request of one position of one step, in a norm group of its own: for one who
    draws clips singly."""
    return _request(
        source, step, position, source.draws(counter.GROUP, step, position, DRAWS_OF_GROUP)
    )


def choose_frames(
    phase: TrainPhase, count: int, stride_draw: float, start_draw: float
) -> tuple[int, ...]:
    """RGB frame of each chunk of a training clip from a video of `count` frames."""
    if not phase.uses_flow:
        return (int(start_draw * count),)
    first, last = HALF_STACK, count - 1 - HALF_STACK
    low, high = phase.clips.stride
    stride = low + int(stride_draw * (high - low + 1))
    chunks = phase.clips.chunks
    if last < first:
        return spread_frames(count, chunks) if chunks > 1 else (int(start_draw * count),)
    if phase.clips.window == "released" and chunks > 1:
        return _released_window(first, last, stride, chunks, start_draw)
    span = (chunks - 1) * stride
    if span > last - first:
        # Too short for this stride: it shrinks until the clip covers the whole video.
        return _evenly(first, last, chunks)
    start = first + int(start_draw * (last - first - span + 1))
    return tuple(start + chunk * stride for chunk in range(chunks))


def _released_window(
    first: int, last: int, stride: int, chunks: int, start_draw: float
) -> tuple[int, ...]:
    """Windows on the lattice first, first + stride, ...; the released code never starts at
    its first point."""
    lattice = range(first, last + 1, stride)
    if len(lattice) < chunks:
        return _evenly(first, last, chunks)
    choices = len(lattice) - chunks
    start = 1 + int(start_draw * choices) if choices else 0
    return tuple(lattice[start : start + chunks])


def _evenly(first: int, last: int, chunks: int) -> tuple[int, ...]:
    return tuple(int(value) for value in np.floor(np.linspace(first, last, chunks) + 0.5))


def spread_frames(count: int, chunks: int) -> tuple[int, ...]:
    """Evenly spaced chunks over a whole video, as at test time; a single chunk is in the middle."""
    first, last = HALF_STACK, count - 1 - HALF_STACK
    if last < first:
        first, last = 0, count - 1
    if chunks == 1:
        return ((first + last) // 2,)
    return _evenly(first, last, chunks)


def segment_places(count: int, every: int) -> range:
    """Frames that a segment's chunk can stand at: where a flow stack lies inside the
    video, else all."""
    first, last = HALF_STACK, count - 1 - HALF_STACK
    return places(first, last, every) if last >= first else places(0, count - 1, every)


def centre_box(row: VideoRow) -> Box:
    """The middle square of a video's frames."""
    side = min(row.height, row.width)
    return Box((row.height - side) // 2, (row.width - side) // 2, side, side)


def flow_stack(frame: int, pairs: int, short_video: str) -> tuple[int, ...]:
    """The ten flow pairs around a frame; beyond a video's ends mirrored, or
    repeated from the start."""
    wanted = range(frame - HALF_STACK, frame + HALF_STACK)
    if wanted.start >= 0 and wanted.stop <= pairs:
        return tuple(wanted)
    if short_video == "repeat":
        return tuple(pair % pairs for pair in wanted)
    return tuple(_mirror(pair, pairs) for pair in wanted)


def _mirror(index: int, count: int) -> int:
    """Symmetric padding with the edge repeated: ... 1 0 0 1 2 ... n-1 n-1 n-2 ..."""
    index %= 2 * count
    return index if index < count else 2 * count - 1 - index


def _box(source: Sampler, row: VideoRow, sizes: Sequence[float], place: Sequence[float]) -> Box:
    if source.phase.clips.crop == "centre":
        return centre_box(row)
    if source.phase.clips.crop == "corners":
        scales = [CORNER_SCALES[int(draw * len(CORNER_SCALES))] for draw in sizes]
        height, width = (round(scale * source.short_side) for scale in scales)
    else:
        factors = (1 - BORDER_JITTER + 2 * BORDER_JITTER * draw for draw in sizes)
        height, width = (round(source.crop * factor) for factor in factors)
    height, width = min(height, row.height), min(width, row.width)
    down, right = (
        _corner_place(place)
        if source.phase.clips.crop == "corners"
        else _border_place(source.phase, place)
    )
    return Box(
        round(down * (row.height - height)), round(right * (row.width - width)), height, width
    )


def _corner_place(draws: Sequence[float]) -> tuple[float, float]:
    """One of the four corners or the centre, as shares of the free slack."""
    places = ((0.0, 0.0), (0.0, 1.0), (1.0, 0.0), (1.0, 1.0), (0.5, 0.5))
    return places[int(draws[0] * len(places))]


def _border_place(phase: TrainPhase, draws: Sequence[float]) -> tuple[float, float]:
    """At most a quarter of the slack from a corner, on a lattice of 20 by 20 points."""
    inset = [int(draw * LATTICE) / (LATTICE - 1) * 0.25 for draw in draws[:2]]
    far = [draws[2] < 0.5, draws[3] < 0.5]
    if phase.clips.border_corners == "two":
        far[1] = far[0]
    return tuple(1 - value if is_far else value for value, is_far in zip(inset, far, strict=True))  # type: ignore[return-value]


def mark(step: int, request: Request) -> int:
    """64 bits that tell one position of one step from any other, and from what
    another run read there."""
    text = f"{step} {tuple(request)}"
    return int.from_bytes(
        hashlib.blake2b(text.encode(), digest_size=MARK_BITS // 8).digest(), "big"
    )


def total(step: int, batch: Iterable[Request]) -> int:
    """The marks of some positions of a step in one number. It is a sum, so that parts of a batch
    add up to the whole in any order, over any ranks and micro-steps."""
    return sum(mark(step, request) for request in batch) % (1 << MARK_BITS)


def digest(batch: Iterable[Request], step: int = 0) -> str:
    """`total` as a short text, to compare batches between runs."""
    return f"{total(step, batch):016x}"
