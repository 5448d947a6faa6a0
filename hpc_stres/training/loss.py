"""The loss of the paper: cross-entropy over time outputs and streams, divided by the number of videos."""

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from hpc_stres.models import Logits
from hpc_stres.phases.train import TrainPhase


@dataclass
class StreamSums:
    """Sums over videos of one micro-batch, kept on the device: loss and right answers of each stream."""

    loss: Tensor
    right: Tensor


def phase_loss(logits: Logits, labels: Tensor, phase: TrainPhase) -> tuple[Tensor, dict[str, StreamSums]]:
    """The loss summed over videos, and each stream's sums for the metrics."""
    total: Tensor | None = None
    sums: dict[str, StreamSums] = {}
    for stream, scores, weight in (
        ("appearance", logits.appearance, phase.optimise.loss_weight_appearance),
        ("motion", logits.motion, phase.optimise.loss_weight_motion),
    ):
        if scores is None:
            continue
        if scores.dtype != torch.float64:
            scores = scores.float()
        videos, times, classes = scores.shape
        targets = labels[:, None].expand(videos, times)
        loss = functional.cross_entropy(scores.reshape(-1, classes), targets.reshape(-1), reduction="sum")
        if phase.optimise.loss_over_time == "mean":
            loss = loss / times
        right = (scores.mean(dim=1).argmax(dim=1) == labels).sum()
        sums[stream] = StreamSums(loss.detach(), right)
        total = loss * weight if total is None else total + loss * weight
    assert total is not None
    return total, sums
