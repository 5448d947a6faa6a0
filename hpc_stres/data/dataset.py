"""Clips of a prepared store as a data set of torch's: for training loops other than ours.

OpenCV decodes here, one clip at a time, in whatever process asks: a DataLoader may fork or spawn
its workers, before or after the parent has read. Training as this package does it goes through the
feed, which is several times faster.
"""

import os
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch.utils.data import Dataset

from hpc_stres import native
from hpc_stres.config.loading import CONFIGS, load_config
from hpc_stres.data import augment
from hpc_stres.data.requests import Box, Request, Sampler, request_of
from hpc_stres.data.test_clips import TestClips, test_requests
from hpc_stres.errors import ConfigError, UserError
from hpc_stres.phases.train import train_phase
from hpc_stres.store.labels import multi_hot
from hpc_stres.store.reader import Store

if TYPE_CHECKING:
    from hpc_stres.config.schema import Config

Item = dict[str, Any]
# The crop of a training clip where no config says it: 224 of 256, 56 of 64.
CROP_SHARE = 7 / 8


class ClipDataset(Dataset[Item]):
    """The videos of a split as clips, cut as a phase of a recipe cuts them.

    `store`: the folder of a prepared store (or an open Store). `split`: 1, 2 or 3. `phase`: the
    name of a phase, whose chunks, strides and crops apply. `kind`: `train` gives random crops of
    one size, `test` what the phase is tested on: full frames at evenly spaced chunks (or the middle
    clip of a phase of segments), not mirrored. `config`: a config file or Config that
    describes the phase; without one, the recipe of the paper. `side`: the crop's side. `seed`: clip
    i of epoch e is the same for ever (`set_epoch`), in any process.

    An item is a dictionary: `rgb` (time, 3, H, W) and `flow` (time, 20, H, W) as far as the phase
    reads them, float32 and normalised; `label`, a number, or where videos have several classes a row
    of 0 and 1 over them; `id`. Items of `train` have one shape, so that a
    DataLoader can stack them.
    """

    def __init__(
        self,
        store: "Store | str | os.PathLike[str]",
        split: int = 1,
        phase: str = "st_resnet",
        kind: Literal["train", "test"] = "train",
        config: "Config | str | os.PathLike[str] | None" = None,
        side: int | None = None,
        seed: int | None = None,
    ) -> None:
        if kind not in ("train", "test"):
            raise ConfigError(f"kind={kind!r}: train or test")
        self.store = store if isinstance(store, Store) else Store(Path(store))
        self.kind, self.epoch = kind, 0
        settings = self.store.manifest["settings"]
        if config is None:
            crop = int(CROP_SHARE * settings["short_side"])
            config = load_config(
                CONFIGS / "ucf101.yaml",
                [f"data.short_side={settings['short_side']}", f"data.crop={crop}"],
            )
        elif isinstance(config, (str, os.PathLike)):
            config = load_config(Path(config))
        if phase not in config.phases:
            raise ConfigError(f"phase={phase!r}: the recipe has {', '.join(config.phases)}")
        self.phase = train_phase(config, phase)
        self.levels = augment.Levels.of_phase(self.phase)
        self.tested = TestClips.of(self.phase, config.data.crop)
        self.evaluation = replace(config.evaluation, flips=False)
        self.side = side or self.phase.side
        # Pixels of the stored frame that a crop is cut from, as in training.
        self.crop = side or config.data.crop
        sets = self.store.label_sets
        self.label_table = None if sets is None else multi_hot(sets, len(self.store.classes))
        # As in tests: the option is of training crops.
        self.antialias = self.phase.clips.antialias or kind == "test"
        self.videos = self.store.present(split, kind)
        if not self.videos:
            raise UserError(f"{self.store.place}: split {split} has no {kind} videos")
        self.name, self.short_side = phase, config.data.short_side
        self.seed = config.seed if seed is None else seed

    @property
    def classes(self) -> list[str]:
        """Names of the labels."""
        return self.store.classes

    def set_epoch(self, epoch: int) -> None:
        """Other crops, frames and flips of the same videos; call it before the
        DataLoader is iterated."""
        self.epoch = epoch

    def __len__(self) -> int:
        return len(self.videos)

    def __getitem__(self, index: int) -> Item:
        if not -len(self) <= index < len(self):
            raise IndexError(f"no clip {index}: there are {len(self)}")
        number = index % len(self)
        request = self._request(number)
        row = self.store.rows[request.video]
        table = self.label_table
        item: Item = {"label": row.label if table is None else table[row.label], "id": row.id}
        if self.phase.uses_rgb:
            item["rgb"] = self._rgb(request)
        if self.phase.uses_flow:
            item["flow"] = self._flow(request)
        return item

    def _request(self, number: int) -> Request:
        """Which frames of a video, cut where."""
        video = self.videos[number]
        if self.kind == "train":
            # Made here: rows of a store do not travel to a worker that is spawned.
            source = Sampler(
                self.seed, self.name, self.phase, self.crop, self.short_side, self.store.rows, (video,)
            )  # fmt: skip
            return request_of(source, self.epoch, number)
        clips = test_requests(self.store.rows[video], video, self.evaluation, self.tested)
        return clips[len(clips) // 2]

    def _size(self, height: int, width: int) -> tuple[int, int]:
        """What a region of so many pixels is resized to."""
        side = self.side if self.kind == "train" else self.tested.side
        if side is not None:
            return side, side
        scale = self.tested.scale or 1.0
        return round(scale * height), round(scale * width)

    def _rgb(self, request: Request) -> torch.Tensor:
        scale_shift = augment.rgb_scale_and_shift(self.levels)
        pictures = [
            [_decode(self.store.rgb(request.video, frame), request.box, colour=True)]
            for frame in request.frames
        ]
        return self._finish(pictures, scale_shift, request.flip)

    def _flow(self, request: Request) -> torch.Tensor:
        scale_shift = augment.flow_scale_and_shift(self.levels, request.flip)
        pairs = {pair for stack in request.flow for pair in stack}
        planes = {
            (pair, axis): _decode(self.store.flow(request.video, pair, axis), request.box, colour=False)
            for pair in pairs for axis in (0, 1)
        }  # fmt: skip
        pictures = [
            [planes[pair, axis] for pair in stack for axis in (0, 1)] for stack in request.flow
        ]
        return self._finish(pictures, scale_shift, request.flip)

    def _finish(
        self, stacks: "list[list[NDArray[np.uint8]]]", scale_shift: Any, flip: bool
    ) -> torch.Tensor:
        """Resized, mirrored and normalised, as the feed does it."""
        first = stacks[0]
        channels = len(first) if len(first) > 1 else first[0].shape[2]
        size = self._size(*first[0].shape[:2])
        if native.find("resize") is None:
            planes = (np.stack(s) if len(s) > 1 else s[0].transpose(2, 0, 1) for s in stacks)
            tensors = (torch.from_numpy(np.ascontiguousarray(p)) for p in planes)
            return torch.stack(
                [augment.finish_planes(t, size, self.antialias, scale_shift, flip) for t in tensors]
            )
        out = np.empty((len(stacks), *size, channels), np.float32)
        for stack, room in zip(stacks, out, strict=True):
            augment.finish_on_cpu(stack, size, self.antialias, scale_shift, flip, room)
        return torch.from_numpy(out).permute(0, 3, 1, 2)


def _decode(jpeg: NDArray[np.uint8], box: Box, colour: bool) -> NDArray[np.uint8]:
    """The region of a JPEG: gray (h, w), or RGB (h, w, 3)."""
    import cv2

    cv2.setNumThreads(0)  # a pool of threads does not live on in a forked worker
    picture = cv2.imdecode(np.array(jpeg), cv2.IMREAD_COLOR if colour else cv2.IMREAD_GRAYSCALE)
    if picture is None:
        raise UserError(
            "a frame of the store does not decode\n`hpc-stres verify --config F` names all damage."
        )
    region = picture[box.top : box.top + box.height, box.left : box.left + box.width]
    return np.ascontiguousarray(region[..., ::-1] if colour else region)
