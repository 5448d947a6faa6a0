"""Dropout on the pooled features, with masks that come from the counter.

A mask belongs to a position of the global batch at a step of a phase, and to a stream. Masks are
drawn on the host, so that they have the same bits on every device, and given to the network with
its input: nothing in the network is random. A network in training that is given none, outside the
trainer, draws from torch's generator like any torch module.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from hpc_stres import counter

Masks = Mapping[str, Tensor]


@dataclass(frozen=True)
class DropoutShape:
    """What a stream's masks look like: the rate, and the time steps and features of one video."""

    rate: float
    times: int
    features: int


def draw_masks(
    seed: int,
    phase: str,
    step: int,
    positions: Sequence[int],
    shapes: Mapping[str, DropoutShape],
    device: torch.device,
) -> dict[str, Tensor]:
    """Masks of some positions for each stream that has dropout: (positions, times, features), true
    where kept."""
    masks = {}
    for stream, shape in shapes.items():
        kept = np.empty((len(positions), shape.times, shape.features), np.bool_)
        for number, position in enumerate(positions):
            numbers = counter.generator(seed, phase, counter.DROPOUT[stream], step, position)
            kept[number] = numbers.random(kept.shape[1:], np.float32) >= np.float32(shape.rate)
        mask = torch.from_numpy(kept)
        masks[stream] = mask if device.type == "cpu" else _to_device(mask, device)
    return masks


def _to_device(mask: Tensor, device: torch.device) -> Tensor:
    """The copy from pinned memory does not wait for what the device still has to do."""
    # This runs in the feed's thread, which has not chosen a device: pinning must not touch the
    # first one.
    with torch.cuda.device(device):
        return mask.pin_memory().to(device, non_blocking=True)


def drop(x: Tensor, rate: float, mask: Tensor | None) -> Tensor:
    """x (videos * times, features) without the features that the mask drops, the others scaled to
    keep the mean."""
    if mask is None:
        return functional.dropout(x, rate)
    if mask.numel() != x.numel():
        raise ValueError(
            f"a dropout mask of {tuple(mask.shape)} does not fit features of {tuple(x.shape)}"
        )
    return x * (mask.flatten(0, 1).to(x.dtype) * (1.0 / (1.0 - rate)))
