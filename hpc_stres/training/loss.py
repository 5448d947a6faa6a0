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
    if phase.optimise.softmax == "joint":
        total = _joint_loss(logits, labels, phase)
    if phase.optimise.agreement_loss > 0:
        total = total + phase.optimise.agreement_loss * _disagreement(logits)
    return total, sums


def _both(logits: Logits) -> tuple[Tensor, Tensor]:
    """Both streams' scores in float32 at least."""
    assert logits.appearance is not None
    assert logits.motion is not None
    one, other = (s if s.dtype == torch.float64 else s.float() for s in (logits.appearance, logits.motion))
    return one, other


def _joint_loss(logits: Logits, labels: Tensor, phase: TrainPhase) -> Tensor:
    """One cross-entropy for the mean of both streams' scores."""
    appearance, motion = _both(logits)
    scores = (appearance + motion) / 2
    videos, times, classes = scores.shape
    targets = labels[:, None].expand(videos, times)
    loss = functional.cross_entropy(scores.reshape(-1, classes), targets.reshape(-1), reduction="sum")
    return loss / times if phase.optimise.loss_over_time == "mean" else loss


def _disagreement(logits: Logits) -> Tensor:
    """Sum over videos and time outputs of the distance (L1) between both streams' class shares."""
    appearance, motion = (scores.softmax(dim=2) for scores in _both(logits))
    return (appearance - motion).abs().sum()
