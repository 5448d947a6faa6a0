"""The loss of the paper: cross-entropy over time outputs and streams, divided by the
number of videos.

Where videos have several classes it is the binary cross-entropy, averaged over classes, in
place of the other.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from hpc_stres.models import Logits
from hpc_stres.models.exact.digits import MOMENT, number_of
from hpc_stres.phases.train import TrainPhase


@dataclass
class StreamSums:
    """Sums over videos of one micro-batch, kept on the device: loss and right
    answers of each stream."""

    loss: Tensor
    right: Tensor


def phase_loss(
    logits: Logits, labels: Tensor, phase: TrainPhase
) -> tuple[Tensor, dict[str, StreamSums]]:
    """The loss summed over videos, and each stream's sums for the metrics.

    `labels` are numbers of classes, or rows of 0 and 1 over the classes.
    """
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
        times = scores.shape[1]
        loss = _several_loss(scores, labels) if labels.dim() == 2 else _single_loss(scores, labels)
        if phase.optimise.loss_over_time == "mean":
            loss = loss / times
        sums[stream] = StreamSums(loss.detach(), right_answers(scores.mean(dim=1), labels))
        total = loss * weight if total is None else total + loss * weight
    assert total is not None
    if phase.optimise.softmax == "joint":
        total = _joint_loss(logits, labels, phase)
    if phase.optimise.agreement_loss > 0:
        total = total + phase.optimise.agreement_loss * _disagreement(logits)
    return total, sums


def right_answers(scores: Tensor, labels: Tensor) -> Tensor:
    """How many videos' highest score (videos, classes) is of their class, or of one
    of their classes."""
    answers = scores.argmax(dim=1)
    if labels.dim() == 2:
        return labels.gather(1, answers[:, None]).sum()
    return (answers == labels).sum()


def add_up(
    sums: dict[str, StreamSums], dtype: torch.dtype, group: Any
) -> list[tuple[float, float]]:
    """Loss and right answers of each stream, in the order of their names, summed over all ranks."""
    if any(one.loss.dtype == torch.int64 for one in sums.values()):
        return _add_up_exactly(sums, group)
    values = torch.stack(
        [torch.stack([sums[name].loss, sums[name].right.to(dtype)]) for name in sorted(sums)]
    )
    values = values.double().cpu()
    torch.distributed.all_reduce(values, group=group)
    return [(loss, right) for loss, right in values.tolist()]


def _add_up_exactly(sums: dict[str, StreamSums], group: Any) -> list[tuple[float, float]]:
    """The same of a bitwise training, whose losses are digits and how many had none."""
    values = torch.stack(
        [torch.cat([sums[name].loss, sums[name].right.long()[None]]) for name in sorted(sums)]
    ).cpu()
    torch.distributed.all_reduce(values, group=group)
    return [(float(number_of(row[:-2], row[-2], MOMENT)), float(row[-1])) for row in values]


def _single_loss(scores: Tensor, labels: Tensor) -> Tensor:
    videos, times, classes = scores.shape
    targets = labels[:, None].expand(videos, times)
    return functional.cross_entropy(
        scores.reshape(-1, classes), targets.reshape(-1), reduction="sum"
    )


def _several_loss(scores: Tensor, labels: Tensor) -> Tensor:
    targets = labels[:, None].expand(scores.shape).to(scores.dtype)
    return (
        functional.binary_cross_entropy_with_logits(scores, targets, reduction="sum")
        / scores.shape[2]
    )


def _both(logits: Logits) -> tuple[Tensor, Tensor]:
    """Both streams' scores in float32 at least."""
    assert logits.appearance is not None
    assert logits.motion is not None
    one, other = (
        s if s.dtype == torch.float64 else s.float() for s in (logits.appearance, logits.motion)
    )
    return one, other


def _joint_loss(logits: Logits, labels: Tensor, phase: TrainPhase) -> Tensor:
    """One cross-entropy for the mean of both streams' scores."""
    appearance, motion = _both(logits)
    scores = (appearance + motion) / 2
    loss = _several_loss(scores, labels) if labels.dim() == 2 else _single_loss(scores, labels)
    return loss / scores.shape[1] if phase.optimise.loss_over_time == "mean" else loss


def _disagreement(logits: Logits) -> Tensor:
    """Sum over videos and time outputs of the distance (L1) between both streams' class shares."""
    appearance, motion = (scores.softmax(dim=2) for scores in _both(logits))
    return (appearance - motion).abs().sum()
