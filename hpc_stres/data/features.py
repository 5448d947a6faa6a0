"""Requests to features: where trunks are frozen, a cache of what they say replaces the clips."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from hpc_stres.data.feed import Clips
from hpc_stres.data.requests import Request
from hpc_stres.store.features import Features
from hpc_stres.store.reader import Store

if TYPE_CHECKING:
    import torch


class FeatureReader:
    """Reads (videos, segments, features) of both streams, in the place of a ClipReader."""

    def __init__(self, features: Features, store: Store, device: "torch.device") -> None:
        self.features, self.store, self.device = features, store, device

    def read(self, batch: Sequence[Request]) -> Clips:
        """The features of some requests with as many frames each."""
        import torch

        rows = [self.store.rows[request.video] for request in batch]
        taken = [
            self.features.take(row, request.frames, request.flip)
            for row, request in zip(rows, batch, strict=True)
        ]
        rgb, flow = (
            torch.from_numpy(np.stack([streams[stream] for streams in taken])).to(self.device)
            for stream in ("appearance", "motion")
        )
        labels = torch.tensor([request.label for request in batch], device=self.device)
        return Clips(rgb, flow, labels, [row.id for row in rows])
