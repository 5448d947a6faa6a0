"""A phase of kind `features`: each video once on any number of ranks, and only those not there yet.

Videos are independent of each other and of how many ranks there are: a video's frames go through
the trunks by themselves, a few at a time, as an evaluation's do.
"""

import shutil
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
import torch

from hpc_stres.config.loading import plain
from hpc_stres.config.schema import Config
from hpc_stres.data.augment import Levels
from hpc_stres.data.feed import ClipReader
from hpc_stres.data.requests import Request, centre_box, flow_stack, segment_places
from hpc_stres.errors import UserError
from hpc_stres.models.building import DTYPES, build_phase_model
from hpc_stres.models.stfn import trunk_features
from hpc_stres.models.two_stream import FRAMES_AT_ONCE
from hpc_stres.models.weights import load_into, read_state
from hpc_stres.parallel import process_groups
from hpc_stres.parallel.world import World, kept_environment
from hpc_stres.phases.train import train_phase
from hpc_stres.run.paths import RunPaths, write_sealed
from hpc_stres.run.product import finished_weights, read_done, write_product
from hpc_stres.run.progress import Progress
from hpc_stres.run.signals import StopFlag
from hpc_stres.store import features as cache
from hpc_stres.store.format import VideoRow
from hpc_stres.store.location import store_folder
from hpc_stres.store.reader import Store
from hpc_stres.store.staging import open_store
from hpc_stres.training.cached import PRODUCT, made_by
from hpc_stres.training.phase import is_left_to_do

# Frames of a video that are decoded at once.
FRAMES_OF_A_CLIP = 32


def run(
    config: Config, name: str, run_dir: Path, world: World, allowed: tuple[str, ...] = ()
) -> bool:
    """Compute what is not there yet, or until asked to stop (False)."""
    device = process_groups.choose_device(world)
    with kept_environment():
        process_groups.start(world, device, config.training.start_timeout_minutes)
        try:
            finished = _run_in_group(config, name, run_dir, world, device, allowed)
        except BaseException:
            # A rank that failed leaves at once; leaving the group may wait for the others.
            if world.size == 1:
                process_groups.stop()
            raise
        process_groups.stop()
    return finished


def _run_in_group(
    config: Config, name: str, run_dir: Path, world: World, device: torch.device,
    allowed: tuple[str, ...],
) -> bool:  # fmt: skip
    control = process_groups.make_control_group()
    with ExitStack() as ownership:
        if world.is_first:
            _forget_lost(config, RunPaths(run_dir), name)
        if not is_left_to_do(config, name, run_dir, world, allowed, control, ownership):
            if world.is_first:
                print(f"{name}: done already")
            return True
        refusal = None
        try:
            work = Extraction(config, name, run_dir, world, device)
            todo = work.todo(control)
        except UserError as error:
            refusal = error
        process_groups.refuse_together(refusal, control, f"to compute the features of {name}")
        stopped, failed = False, None
        try:
            stopped = work.compute(todo[world.rank :: world.size])
        except UserError as error:
            failed = error
        except OSError as error:
            failed = UserError(f"{error.filename or work.folder}: {error.strerror or error}")
        process_groups.refuse_together(failed, control, f"to compute the features of {name}")
        (any_stopped,) = process_groups.agree([float(stopped)], control)
        if not any_stopped and world.is_first:
            work.finish()
        torch.distributed.barrier(group=control)
        return not any_stopped


def _forget_lost(config: Config, paths: RunPaths, name: str) -> None:
    """A phase whose cache somebody removed from the store is not done."""
    if read_done(paths.phase(name)) is None or not (paths.phase(name).root / PRODUCT).is_file():
        return
    folder = cache.cache_folder(store_folder(config), made_by(config, name, paths))
    if not (folder / cache.INDEX).is_file():
        print(f"{name}: {folder} is not there any more; its features are computed again")
        paths.phase(name).done.unlink()


class Extraction:
    """One rank's part of the phase."""

    def __init__(
        self, config: Config, name: str, run_dir: Path, world: World, device: torch.device
    ) -> None:
        self.config, self.name, self.world, self.device = config, name, world, device
        self.paths, self.phase = RunPaths(run_dir), config.phase(name)
        self.store: Store = open_store(config)
        self.made_by = made_by(config, name, self.paths)
        self.folder = cache.cache_folder(store_folder(config), self.made_by)
        self.dtype = DTYPES[config.training.precision]
        self.numbers = self.store.present(config.data.split, "train")
        self.contents = {row.id: cache.content_of(row) for row in self.rows()}
        self.trunks = {stream: self._trunk(stream) for stream in self.made_by["networks"]}
        self.readers = {stream: self._reader(stream) for stream in self.trunks}

    def rows(self) -> list[VideoRow]:
        """The training videos of the split."""
        return [self.store.rows[number] for number in self.numbers]

    def _parent(self, stream: str) -> str:
        return str(self.phase.streams(self.config.phases)[stream])

    def _trunk(self, stream: str) -> Any:
        parent = self._parent(stream)
        model = build_phase_model(self.config, parent, len(self.store.classes))
        path = finished_weights(self.paths, parent)
        load_into(model, read_state(path), str(path))
        return getattr(model.to(self.device).eval(), stream)

    def _reader(self, stream: str) -> ClipReader:
        trained = train_phase(self.config, self._parent(stream))
        threads = max(1, torch.get_num_threads())
        return ClipReader(
            self.store, trained.side, Levels.of_phase(trained), self.phase.antialias,
            trained.streams, threads, self.device.index, most=512,
        )  # fmt: skip

    def todo(self, control: Any) -> list[int]:
        """Videos that no earlier attempt has; the first rank looks, so that all
        cut the same list."""
        is_open = torch.ones(len(self.numbers), dtype=torch.uint8)
        if self.world.is_first:
            known = cache.written(self.folder, self.contents)
            wanted = [row.id not in known for row in self.rows()]
            is_open = torch.tensor(wanted, dtype=torch.uint8)
            self._refuse_full_disk(sum(wanted))
        torch.distributed.broadcast(is_open, 0, group=control)
        return [n for n, wanted in zip(self.numbers, is_open.tolist(), strict=True) if wanted]

    def _refuse_full_disk(self, videos: int) -> None:
        """What is to come must fit, by the mean length of the videos."""
        places = [len(segment_places(row.frames, self.phase.frame_grid)) for row in self.rows()]
        width = sum(trunk.features for trunk in self.trunks.values())
        size = 8 if self.config.training.precision == "float64" else 4
        wanted = videos * 2 * width * size * sum(places) / max(1, len(places))
        free = shutil.disk_usage(store_folder(self.config)).free
        print(
            f"{self.name}: {videos} videos, about {wanted / 2**30:.2f} GiB of features in {self.folder}"
        )
        if wanted > free:
            raise UserError(
                f"{self.folder}: about {wanted / 2**30:.1f} GiB are needed, {free / 2**30:.1f} are free\n"
                f"Set phases.{self.name}.frame_grid higher, or free space."
            )

    @torch.no_grad()
    def compute(self, todo: list[int]) -> bool:
        """This rank's share; True where it was asked to stop before the end."""
        stop = StopFlag()
        stop.install()
        writer = cache.FeatureWriter(self.folder, self.world.rank)
        with Progress(self.name, len(todo), "videos", self.world.is_first) as bar:
            for number, video in enumerate(todo, 1):
                if stop.wanted():
                    print(
                        f"{self.name}: stopped after {number - 1} videos: {stop.reason()}",
                        flush=True,
                    )
                    return True
                row = self.store.rows[video]
                choices = segment_places(row.frames, self.phase.frame_grid)
                streams = {stream: self._features(stream, video, choices) for stream in self.trunks}
                writer.write(row, streams, choices.start, choices.step)
                bar.update(number)
        return False

    def _features(self, stream: str, video: int, choices: range) -> np.ndarray[Any, Any]:
        """(mirror images, places, features) of one stream of a video."""
        both = []
        for flip in (False, True):
            parts = [
                self._clip(stream, video, tuple(choices[start : start + FRAMES_OF_A_CLIP]), flip)
                for start in range(0, len(choices), FRAMES_OF_A_CLIP)
            ]
            both.append(torch.cat(parts).flatten(1))
        numbers: np.ndarray[Any, Any] = torch.stack(both).cpu().numpy()
        if not np.isfinite(numbers).all():
            name, parent = self.store.rows[video].id, self._parent(stream)
            raise UserError(
                f"{self.name}: the {stream} features of video {name} are not finite numbers\n"
                f"The weights of phase {parent} have diverged; train it again, with a smaller learning rate."
            )
        return numbers

    def _clip(self, stream: str, video: int, frames: tuple[int, ...], flip: bool) -> torch.Tensor:
        row = self.store.rows[video]
        stacks = tuple(flow_stack(f, row.flow_pairs, self.phase.short_video) for f in frames)
        request = Request(0, video, row.label, frames, stacks, centre_box(row), flip)
        clips = self.readers[stream].read([request])
        pictures = clips.rgb if stream == "appearance" else clips.flow
        assert pictures is not None
        x = pictures[0].to(self.dtype)
        bfloat16 = self.config.training.precision == "bfloat16"
        with torch.autocast(self.device.type, torch.bfloat16, enabled=bfloat16):
            parts = [trunk_features(self.trunks[stream], p, None) for p in x.split(FRAMES_AT_ONCE)]
        return torch.cat(parts).to(self.dtype)

    def finish(self) -> None:
        """The cache's index, then the phase's product, which names the cache."""
        entries = cache.written(self.folder, self.contents)
        missing = sorted(set(self.contents) - set(entries))
        if missing:
            raise UserError(
                f"{self.folder}: no features of {len(missing)} videos: {', '.join(missing[:3])}"
            )
        cache.finish(self.folder, self.made_by, entries)
        facts = {"cache": self.folder.name, "made_by": self.made_by, "videos": len(entries)}
        write_sealed(self.paths.phase(self.name).root / PRODUCT, facts)
        write_product(
            self.paths.root, self.name, [PRODUCT],
            {"classes": self.store.classes, "config": plain(self.config)},
        )  # fmt: skip
