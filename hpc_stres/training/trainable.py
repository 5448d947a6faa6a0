"""Which part of a network moves: all of it, or for fine-tuning its convolutions over time, its last
stage, its head.

What does not move is left exactly as it was: no gradient, no momentum, no weight decay; and its
normalisation layers normalise with their stored statistics, which stay as they are, for a trunk
whose weights are kept but whose moments drift is another trunk.
"""

from collections.abc import Iterator

import torch
from torch import nn

from hpc_stres.errors import UserError
from hpc_stres.models.norm import SubBatchNorm2d, fold_statistics, norm_layers
from hpc_stres.models.temporal import TemporalConv


def freeze(model: nn.Module, trainable: str) -> str:
    """Leave gradients to the chosen part; returns a line that says what moves, empty
    where all of it does."""
    if trainable == "all":
        return ""
    chosen = list(_chosen(model, trainable))
    if not chosen:
        raise UserError(
            f"optimise.trainable: {trainable}: this network has no such part\nSet it to all or head."
        )
    for parameter in model.parameters():
        parameter.requires_grad_(False)
    for module in [*chosen, *_heads(model)]:
        for parameter in module.parameters():
            parameter.requires_grad_(True)
    moving = sum(p.numel() for p in model.parameters() if p.requires_grad)
    return f"{trainable}: {moving:,} of {sum(p.numel() for p in model.parameters()):,} parameters are trained"


def _heads(model: nn.Module) -> Iterator[nn.Module]:
    """The classifiers."""
    return (module for module in model.modules() if isinstance(module, nn.Linear))


def _chosen(model: nn.Module, trainable: str) -> Iterator[nn.Module]:
    if trainable == "head":
        yield from _heads(model)
    elif trainable == "temporal":
        yield from (module for module in model.modules() if isinstance(module, TemporalConv))
    else:
        for module in model.modules():
            stages = getattr(module, "stages", None)
            if callable(stages):
                yield list(stages())[-1]


def set_training_mode(model: nn.Module) -> None:
    """Training mode, but for normalisation layers that do not move."""
    model.train()
    for layer in norm_layers(model):
        layer.train(_moves(layer))


def _moves(layer: SubBatchNorm2d) -> bool:
    return any(parameter.requires_grad for parameter in layer.parameters())


@torch.no_grad()
def fold_moving_statistics(model: nn.Module, distributed: bool) -> None:
    """`fold_statistics` of the layers that move; the others have collected nothing."""
    moving = [layer for layer in norm_layers(model) if layer.training]
    if moving:
        fold_statistics(nn.ModuleList(moving), distributed)
