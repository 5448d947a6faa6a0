"""The demonstration data set: the class is which colour makes which motion.

Two textured discs of equal luminance move on a textured ground, each inside its own half of the
picture. The 8 classes are colour pair x motion pair x which of the two colours makes which of the
two motions. So one frame tells the colour pair only (25 %), flow tells the motion pair only (25 %),
both together without their registration half of the rest (50 %). A disc starts anywhere in its half
and is reflected at its borders, so that at every moment its place is uniformly distributed whatever
its motion: place tells nothing.
"""

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from hpc_stres.config.schema import BindingConfig, DataConfig
from hpc_stres.errors import UserError
from hpc_stres.listings.splits import list_folder, video_folder
from hpc_stres.run.paths import read_json, write_first, write_text, write_with
from hpc_stres.run.progress import Progress
from hpc_stres.store.location import BINDING_MADE_OF as MADE_OF

# Chroma (Cb, Cr) of each colour; luminance comes from the texture alone.
COLOURS = {"Red": (-15, 55), "Green": (-40, -45), "Blue": (55, -5), "Ochre": (-42, 15)}
COLOUR_PAIRS = (("Red", "Green"), ("Blue", "Ochre"))
# Pixels a frame along x and y.
MOTIONS = {"Drift": (1.0, 0.0), "Sink": (0.0, 1.0), "Dash": (2.5, 0.0), "Drop": (0.0, 2.5)}
MOTION_PAIRS = (("Drift", "Drop"), ("Sink", "Dash"))
FRAMES_PER_SECOND = 25


@dataclass(frozen=True)
class Disc:
    """A colour and a velocity."""

    colour: str
    motion: str


def classes() -> list[tuple[str, tuple[Disc, Disc]]]:
    """Names and discs of the 8 classes."""
    named_discs = []
    for colours in COLOUR_PAIRS:
        for motions in MOTION_PAIRS:
            for first, second in (motions, motions[::-1]):
                name = f"{colours[0]}{first}{colours[1]}{second}"
                named_discs.append((name, (Disc(colours[0], first), Disc(colours[1], second))))
    return named_discs


def _texture(
    random: np.random.Generator, height: int, width: int, grain: float
) -> NDArray[np.float64]:
    """Smooth noise of mean 0 and deviation 1 with detail of about `grain` pixels; wraps around."""
    fy = np.fft.fftfreq(height)[:, None]
    fx = np.fft.fftfreq(width)[None, :]
    envelope = np.exp(-0.5 * (fy**2 + fx**2) * (2 * np.pi * grain / 2) ** 2)
    noise = np.fft.ifft2(np.fft.fft2(random.standard_normal((height, width))) * envelope).real
    return np.asarray((noise - noise.mean()) / noise.std())


def _reflect(start: float, distance: float, length: float) -> float:
    """A place on [0, length] after moving `distance` with reflection at both ends."""
    place = (start + distance) % (2 * length)
    return float(min(place, 2 * length - place))


def _sample(
    texture: NDArray[np.float64], y: NDArray[np.float64], x: NDArray[np.float64]
) -> NDArray[np.float64]:
    """Bilinear samples of a texture that wraps around."""
    y0, x0 = np.floor(y).astype(int), np.floor(x).astype(int)
    fy, fx = y - y0, x - x0
    rows, cols = texture.shape
    y0, x0, y1, x1 = y0 % rows, x0 % cols, (y0 + 1) % rows, (x0 + 1) % cols
    top = texture[y0, x0] * (1 - fx) + texture[y0, x1] * fx
    bottom = texture[y1, x0] * (1 - fx) + texture[y1, x1] * fx
    return np.asarray(top * (1 - fy) + bottom * fy)


def draw_video(
    discs: tuple[Disc, Disc], frames: int, side: int, random: np.random.Generator
) -> Iterator[NDArray[np.uint8]]:
    """RGB frames of one video."""
    radius = side * 0.14
    halves = random.permutation(2)
    upright = random.random() < 0.5
    ground = 110 + 14 * _texture(random, side, side, 3.0)
    skins = [110 + 22 * _texture(random, side, side, 3.0) for _ in discs]
    span = (
        np.array([side / 2, side], dtype=float)
        if upright
        else np.array([side, side / 2], dtype=float)
    )
    room = span - 2 * radius - 2
    starts = random.random((2, 2)) * 2 * room
    ys, xs = np.mgrid[0:side, 0:side].astype(float)
    for number in range(frames):
        luma = ground.copy()
        chroma = np.zeros((side, side, 2))
        for index, disc in enumerate(discs):
            velocity = np.array(MOTIONS[disc.motion])
            place = [
                _reflect(starts[index][axis], number * velocity[axis], room[axis])
                for axis in (0, 1)
            ]
            offset = (
                np.array([halves[index] * side / 2, 0])
                if upright
                else np.array([0, halves[index] * side / 2])
            )
            cx, cy = np.array(place) + offset + radius + 1
            distance = np.hypot(xs - cx, ys - cy)
            cover = np.clip(radius - distance + 0.5, 0, 1)
            skin = _sample(skins[index], ys - cy, xs - cx)
            luma = luma * (1 - cover) + skin * cover
            chroma = (
                chroma * (1 - cover[..., None]) + np.array(COLOURS[disc.colour]) * cover[..., None]
            )
        yield _to_rgb(luma, chroma)


def _to_rgb(luma: NDArray[np.float64], chroma: NDArray[np.float64]) -> NDArray[np.uint8]:
    luma = np.clip(luma, 70, 150)
    cb, cr = chroma[..., 0], chroma[..., 1]
    rgb = np.stack(
        [luma + 1.402 * cr, luma - 0.344136 * cb - 0.714136 * cr, luma + 1.772 * cb], axis=-1
    )
    return np.clip(np.rint(rgb), 0, 255).astype(np.uint8)


def write_data_set(videos: Path, lists: Path, config: BindingConfig, seed: int) -> int:
    """Write AVI files and UCF101-style lists; files that are there stay. Returns the
    number of videos."""
    _claim(lists, config, seed)
    named = classes()
    per_class = [-(-count // len(named)) for count in (config.train_videos, config.test_videos)]
    clips = sum(per_class)
    wanted = [
        (videos / name / _file_name(name, clip), discs, label * 100_000 + clip)
        for label, (name, discs) in enumerate(named)
        for clip in range(clips)
    ]
    missing = [row for row in wanted if not row[0].is_file()]
    with Progress("draw", len(missing), "videos", enabled=bool(missing)) as progress:
        for done, (path, discs, number) in enumerate(missing, 1):
            random = np.random.Generator(np.random.Philox(key=[seed, number]))
            frames = draw_video(discs, config.frames, config.side, random)
            write_with(path, partial(_write, frames))
            progress.update(done)
    _write_lists(lists, [name for name, _ in named], clips, per_class[1])
    return clips * len(named)


def _claim(lists: Path, config: BindingConfig, seed: int) -> None:
    """Say beside the lists what the videos are made of; refuse one whose videos are of other sizes
    or another seed."""
    made_of = {**asdict(config), "seed": seed}
    write_first(lists / MADE_OF, made_of)
    if read_json(lists / MADE_OF) != made_of:
        raise UserError(
            f"{lists}: the demonstration data set there has other sizes or another seed\n"
            "Leave data.videos and data.lists away, or name another folder."
        )


def _file_name(name: str, clip: int) -> str:
    return f"v_{name}_g{clip + 1:02d}_c01.avi"


def _write_lists(lists: Path, names: list[str], clips: int, tested: int) -> None:
    """Three splits: each tests another window of every class's videos."""
    write_text(
        lists / "classInd.txt",
        "".join(f"{number} {name}\n" for number, name in enumerate(names, 1)),
    )
    for split in (1, 2, 3):
        chosen = {(clip + (split - 1) * tested) % clips for clip in range(tested)}
        train, test = "", ""
        for number, name in enumerate(names, 1):
            for clip in range(clips):
                line = f"{name}/{_file_name(name, clip)}"
                if clip in chosen:
                    test += line + "\n"
                else:
                    train += f"{line} {number}\n"
        write_text(lists / f"trainlist0{split}.txt", train)
        write_text(lists / f"testlist0{split}.txt", test)


def _write(frames: Iterator[NDArray[np.uint8]], target: Path) -> None:
    from hpc_stres.prepare.video import write_video

    write_video(target, frames, FRAMES_PER_SECOND)


def make(data: DataConfig, seed: int) -> None:
    """Write the videos and lists that a config's `data` section asks for; those
    that are there stay."""
    write_data_set(video_folder(data), list_folder(data), data.binding, seed)
