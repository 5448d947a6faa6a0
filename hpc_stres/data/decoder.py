"""JPEGs to pictures by DALI: a region of each, on the CPU or with nvJPEG on a GPU."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from hpc_stres.data.requests import Box

Picture = Any  # a NumPy array where DALI decodes on the CPU, a tensor on the device elsewhere


class Decoder:
    """A DALI pipeline that decodes a region of each JPEG of a list, on the CPU or with
    nvJPEG on a GPU."""

    def __init__(self, gray: bool, most: int, threads: int, device_id: int | None) -> None:
        self.gray, self.most, self.threads, self.device_id = gray, most, threads, device_id
        self.pipeline = self._build()

    def _build(self) -> Any:
        from nvidia.dali import fn, pipeline_def, types

        @pipeline_def
        def decode() -> Any:
            jpeg = fn.external_source(name="jpeg", dtype=types.UINT8, ndim=1)
            anchor = fn.external_source(name="anchor", dtype=types.INT32, ndim=1)
            shape = fn.external_source(name="shape", dtype=types.INT32, ndim=1)
            return fn.decoders.image_slice(
                jpeg,
                anchor,
                shape,
                device="cpu" if self.device_id is None else "mixed",
                axis_names="HW",
                normalized_anchor=False,
                normalized_shape=False,
                output_type=types.GRAY if self.gray else types.RGB,
            )

        pipeline = decode(
            batch_size=self.most,
            num_threads=self.threads,
            device_id=self.device_id,
            prefetch_queue_depth=1,
            exec_dynamic=True,
        )
        pipeline.build()
        return pipeline

    def __call__(self, jpegs: Sequence[NDArray[np.uint8]], boxes: Sequence[Box]) -> list[Picture]:
        """uint8 pictures (h, w, channels) of the boxes, to be used before the next call."""
        pictures: list[Picture] = []
        for start in range(0, len(jpegs), self.most):
            stop = start + self.most
            pictures += self._run(jpegs[start:stop], boxes[start:stop], last=stop >= len(jpegs))
        return pictures

    def _run(
        self, jpegs: Sequence[NDArray[np.uint8]], boxes: Sequence[Box], last: bool
    ) -> list[Picture]:
        import torch

        self.pipeline.feed_input("jpeg", list(jpegs))
        corners = np.array(boxes, np.int32)
        self.pipeline.feed_input("anchor", np.ascontiguousarray(corners[:, :2]))
        self.pipeline.feed_input("shape", np.ascontiguousarray(corners[:, 2:]))
        try:
            (decoded,) = self.pipeline.run()
        except RuntimeError as error:
            # DALI names no input and its pipeline is dead from here on: the caller finds the frame.
            raise DecodeError(str(error)) from None
        if self.device_id is None:
            pictures = [np.asarray(decoded[n]) for n in range(len(jpegs))]
            if last:
                self.shown = decoded  # keeps the pipeline's buffer, of which the pictures are views
                return pictures
            # The pipeline uses its buffer again for the next run: one copy of all pictures,
            # then views of it.
            edges = np.cumsum([0, *(picture.size for picture in pictures)])
            copy = np.concatenate([picture.ravel() for picture in pictures])
            return [
                copy[a:b].reshape(p.shape)
                for a, b, p in zip(edges, edges[1:], pictures, strict=False)
            ]
        there = [torch.utils.dlpack.from_dlpack(decoded[n]) for n in range(len(jpegs))]
        if last:
            self.shown = decoded
            return there
        return [picture.clone() for picture in there]


class Decoders(NamedTuple):
    """Of one stream: where the clips are wanted, and on the CPU's cores beside a GPU."""

    here: Decoder
    on_cores: Decoder | None


class DecodeError(Exception):
    """DALI could not decode a batch."""
