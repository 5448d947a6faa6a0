"""A look at a data set before anything is decided: what it is, how long and large its videos are,
what it will take.

Headers are read and a few frames prepared in a child process: a file that breaks its decoder
costs that file only.
"""

import concurrent.futures
import csv
import multiprocessing
import statistics
import time
from collections import Counter
from collections.abc import Sequence
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

from hpc_stres.config.schema import DataConfig
from hpc_stres.errors import UserError
from hpc_stres.listings.listing import Listing, Video, printable, require_utf8
from hpc_stres.listings.lists import LIST_NAME
from hpc_stres.listings.sources import read_listing, size
from hpc_stres.listings.splits import problems
from hpc_stres.prepare.disk import cores
from hpc_stres.store.location import Settings

# Videos whose headers are read, and videos of which a few frames are prepared.
PROBED, MEASURED, FRAMES = 200, 3, 17
PROBE_SECONDS, MEASURE_SECONDS = 20.0, 120.0
# Broken or endless videos after which the rest is not looked at.
PATIENCE = 5
SHOWN_FAULTS = 5
# `data.max_rejected` of a new config.
ACCEPTED_SHARE = 0.01
TABLE_COLUMNS = frozenset({"path", "label"})


def find_kind(videos: Path, lists: Path | None) -> tuple[str, Path | None]:
    """The kind of a data set, and where its lists are: as given, else by what lies in the
    folder of videos."""
    if not videos.is_dir():
        raise UserError(f"--videos {videos}: no such folder")
    if lists is not None:
        return _kind_of_lists(lists), lists
    names = [
        path
        for path in sorted(videos.iterdir())
        if path.is_file() and not path.name.startswith(".")
    ]
    tables = [path for path in names if path.suffix.lower() in (".csv", ".tsv") and _is_table(path)]
    if len(tables) == 1:
        return "csv", tables[0]
    if len(tables) > 1:
        shown = ", ".join(printable(path.name) for path in tables)
        raise UserError(f"{videos}: several tables of videos: {shown}\nName one with --lists.")
    if any(LIST_NAME.fullmatch(path.name) for path in names):
        return "lists", videos
    return "folder", None


def _kind_of_lists(lists: Path) -> str:
    if lists.is_file():
        return "csv"
    if not lists.is_dir():
        raise UserError(f"--lists {lists}: no such folder or table")
    return "hmdb51" if any(lists.glob("*_test_split1.txt")) else "lists"


def _is_table(path: Path) -> bool:
    """Whether a file's first line names the columns of a table of videos."""
    try:
        with path.open(encoding="utf-8-sig", errors="replace", newline="") as stream:
            first = stream.readline(4096)
    except OSError:
        return False
    cells = next(csv.reader([first.replace(";", ",").replace("\t", ",")]), [])
    return {cell.strip().lower() for cell in cells} >= TABLE_COLUMNS


def read(data: DataConfig) -> Listing:
    """The listing of a data set, with what is wrong with it among its notes."""
    for place in (data.videos, data.root):
        require_utf8(place)
    listing = read_listing(data)
    if len(listing.classes) == 1:
        listing.notes.append(
            f"only one class, {printable(listing.classes[0])}: there is nothing to tell apart; "
            "--videos names the folder that holds the classes' folders"
        )
    faults = problems(listing)
    listing.notes += faults[:SHOWN_FAULTS]
    listing.notes += (
        [f"and {len(faults) - SHOWN_FAULTS} more like these"] if len(faults) > SHOWN_FAULTS else []
    )
    return listing


@dataclass(frozen=True)
class Probe:
    """What a video's header says."""

    frames: int
    width: int
    height: int
    rate: float


@dataclass(frozen=True)
class Cost:
    """What preparing takes, measured on a few frames."""

    rgb_bytes: float
    flow_bytes: float
    """Of a pair: two planes."""
    seconds: float
    """Of one core, for one frame and its flow."""
    frames: int


@dataclass(frozen=True)
class Look:
    """What was seen of a data set."""

    listing: Listing
    probes: list[Probe]
    unread: list[str]
    """Videos whose headers say nothing, with the reason."""
    cost: Cost | None

    @property
    def median_frames(self) -> int:
        """Frames that half of the videos have at most."""
        return int(statistics.median(probe.frames for probe in self.probes)) if self.probes else 0

    @property
    def total_frames(self) -> float:
        """Frames of the whole data set, from the mean of those that were looked at."""
        mean = statistics.fmean(probe.frames for probe in self.probes) if self.probes else 0.0
        return mean * len(self.listing.videos)

    @property
    def stored_bytes(self) -> float | None:
        """Bytes of the store."""
        return (
            None
            if self.cost is None
            else self.total_frames * (self.cost.rgb_bytes + self.cost.flow_bytes)
        )

    @property
    def core_hours(self) -> float | None:
        """Hours of one core to prepare the store."""
        return None if self.cost is None else self.total_frames * self.cost.seconds / 3600

    def lines(self) -> list[str]:
        """What was seen, for a person."""
        listing = self.listing
        lines = [f"{len(listing.videos)} videos of {len(listing.classes)} classes"]
        for split in listing.train:
            lines.append(
                f"split {split}: {_counts(listing, split, 'train')}; {_counts(listing, split, 'test')}"
            )
        groups = [video.group for video in listing.videos.values() if video.group]
        if len(set(groups)) < len(groups):
            lines.append(
                f"{len(set(groups))} recordings by the names: clips of one never both train and test"
            )
        if self.probes:
            lines.append(self._lengths())
        lines += self._broken()
        lines += [f"note: {note}" for note in listing.notes]
        if listing.ignored:
            counts = ", ".join(f"{n} {suffix}" for suffix, n in listing.ignored.items())
            lines.append(f"files that are not read: {counts}")
        return lines

    def _broken(self) -> list[str]:
        """Videos that cannot be read, and what prepare will say of them."""
        if not self.unread:
            return []
        looked_at = len(self.probes) + len(self.unread)
        line = f"cannot be read: {len(self.unread)} of {looked_at} videos that were looked at, "
        line += f"the first {self.unread[0]}"
        if len(self.unread) <= ACCEPTED_SHARE * looked_at:
            return [line]
        return [
            line,
            "  prepare will refuse so many: remove them, or raise data.max_rejected in the config",
        ]

    def _lengths(self) -> str:
        frames = [probe.frames for probe in self.probes]
        sizes = Counter((probe.width, probe.height) for probe in self.probes).most_common()
        rates = sorted({round(probe.rate, 2) for probe in self.probes if probe.rate})
        shown = ", ".join(f"{width} x {height}" for (width, height), _ in sizes[:3])
        more = f" and {len(sizes) - 3} other sizes" if len(sizes) > 3 else ""
        rate = (
            f"{rates[0]:g}" + (f" to {rates[-1]:g}" if len(rates) > 1 else "")
            if rates
            else "an unknown number of"
        )
        return (
            f"{min(frames)} to {max(frames)} frames (half of them up to {self.median_frames}), {shown}{more}, "
            f"{rate} frames a second"
        )


def _counts(listing: Listing, split: int, kind: str) -> str:
    ids = (listing.train if kind == "train" else listing.test)[split]
    by_class = Counter(listing.videos[name].label for name in ids)
    small, large = min(by_class.values(), default=0), max(by_class.values(), default=0)
    each = f"{small}" if small == large else f"{small} to {large}"
    return f"{len(ids)} {'train' if kind == 'train' else 'test'} ({each} of a class)"


def look(listing: Listing, settings: Settings, max_pixels: int) -> Look:
    """Read headers of a sample of the videos and prepare a few frames of the middle ones."""
    there = [video for video in listing.videos.values() if video.path.is_file()]
    ordered = sorted(there, key=lambda video: (size(video), video.id))
    sample = _spread(ordered, PROBED)
    answers = _in_children(
        probe, [(str(video.path), max_pixels) for video in sample], PROBE_SECONDS
    )
    probes = [answer for answer in answers if isinstance(answer, Probe)]
    unread = [
        f"{printable(video.path)}: {answer}"
        for video, answer in zip(sample, answers, strict=True)
        if isinstance(answer, str)
    ]
    good = [
        video for video, answer in zip(sample, answers, strict=True) if isinstance(answer, Probe)
    ]
    return Look(listing, probes, unread, _cost(_spread(good, MEASURED), settings, max_pixels))


def _spread(videos: Sequence[Video], count: int) -> list[Video]:
    """So many of them, evenly over their order; the middle one where it is one."""
    if len(videos) <= count:
        return list(videos)
    return [videos[int((number + 0.5) * len(videos) / count)] for number in range(count)]


def _cost(videos: list[Video], settings: Settings, max_pixels: int) -> Cost | None:
    jobs = [(str(video.path), settings, max_pixels) for video in videos]
    costs = [
        cost for cost in _in_children(measure, jobs, MEASURE_SECONDS) if isinstance(cost, Cost)
    ]
    if not costs:
        return None
    frames = sum(cost.frames for cost in costs)

    def mean(values: Sequence[float]) -> float:
        return sum(value * cost.frames for value, cost in zip(values, costs, strict=True)) / frames

    return Cost(
        mean([cost.rgb_bytes for cost in costs]), mean([cost.flow_bytes for cost in costs]),
        mean([cost.seconds for cost in costs]), frames,
    )  # fmt: skip


def _in_children(function: Any, jobs: Sequence[tuple[Any, ...]], seconds: float) -> list[Any]:
    """The function's answers in the order of the jobs, from child processes: what it says, or why
    there is nothing.

    A child that dies takes all that run with it. From then on one job runs at a time, so that
    the blame is known.
    """
    answers: list[Any] = []
    at_once, patience = min(cores(), len(jobs)), PATIENCE
    while len(answers) < len(jobs) and patience:
        fault = _answer_some(function, jobs[len(answers) :], answers, at_once, seconds)
        if fault and at_once == 1:
            answers.append(fault)
            patience -= 1
        at_once = 1
    return answers + ["not looked at: too many before it were broken"] * (len(jobs) - len(answers))


def _answer_some(
    function: Any, jobs: Sequence[tuple[Any, ...]], answers: list[Any], at_once: int, seconds: float
) -> str:
    """Add answers until all are there or a child breaks or hangs; returns what happened then,
    empty for nothing."""
    context = multiprocessing.get_context("spawn")
    with concurrent.futures.ProcessPoolExecutor(at_once, mp_context=context) as pool:
        waiting = [pool.submit(function, *job) for job in jobs]
        try:
            for future in waiting:
                answers.append(future.result(timeout=seconds))
        except BrokenProcessPool:
            return "its decoder breaks off"
        except TimeoutError:
            for process in list((pool._processes or {}).values()):
                process.kill()
            pool.shutdown(wait=False, cancel_futures=True)
            return f"it takes longer than {seconds:g} s"
    return ""


def probe(path: str, max_pixels: int) -> Probe | str:
    """Frames, size and rate as the header tells them, or why it cannot be read."""
    import av

    from hpc_stres.prepare.video import Decoder, UndecodableError, reason_of, require_regular_file

    decoder = Decoder(Path(path), max_pixels)
    try:
        require_regular_file(decoder.path)
        with av.open(
            path, metadata_errors="replace", container_options={"protocol_whitelist": "file"}
        ) as container:
            stream = decoder._stream(container)
            rate = float(stream.average_rate or 0.0)
            seconds = (container.duration or 0) / 1e6
            frames = int(stream.frames or round(seconds * rate))
            return Probe(
                max(1, frames), stream.codec_context.width, stream.codec_context.height, rate
            )
    except UndecodableError as error:
        return str(error)
    except Exception as error:  # FFmpeg has an error class of its own for every number
        return reason_of(error)


def measure(path: str, settings: Settings, max_pixels: int) -> Cost | str:
    """Bytes and seconds of a frame and its flow, from the first frames of a video."""
    from hpc_stres.prepare.extract import emit_flow_of
    from hpc_stres.prepare.video import (
        Decoder,
        UndecodableError,
        encode_jpeg,
        gray,
        resize,
        stored_size,
    )

    rgb: list[int] = []
    planes: list[int] = []
    try:
        started = time.perf_counter()
        frames = []
        for frame in islice(Decoder(Path(path), max_pixels), FRAMES):
            height, width = stored_size(
                frame.shape[0], frame.shape[1], settings.short_side, max_pixels
            )
            small = resize(frame, height, width)
            rgb.append(len(encode_jpeg(small, settings.jpeg_quality)))
            frames.append(gray(small))
        emit_flow_of(frames, settings, lambda _, jpeg: planes.append(len(jpeg)))
        seconds = time.perf_counter() - started
    except (UndecodableError, UserError) as error:
        return str(error).splitlines()[0]
    return Cost(
        sum(rgb) / len(rgb), sum(planes) / max(1, len(planes) // 2), seconds / len(rgb), len(rgb)
    )
