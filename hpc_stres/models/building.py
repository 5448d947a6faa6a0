"""The network of a phase, built from its config."""

from typing import Any

import torch

from hpc_stres.config.schema import Config
from hpc_stres.models import TwoStream, build_model
from hpc_stres.models.initialise import initialise

DTYPES = {"float32": torch.float32, "bfloat16": torch.float32, "float64": torch.float64}


def build_phase_model(config: Config, name: str, num_classes: int) -> TwoStream:
    """The network of a phase, initialised from the run's seed: the same on every rank, device and
    layout."""
    phase = config.phase(name)
    options: dict[str, Any] = {"dropout": phase.dropout}
    if phase.model in ("st_resnet_star", "stm_resnet"):
        options["temporal_pool"] = phase.temporal_pool
    # A layer draws from torch's generator when it is made; that leaves no trace, and its numbers
    # are drawn anew.
    with torch.random.fork_rng(devices=[]):
        model = build_model(
            phase.model,
            num_classes,
            config.model.depth,
            config.model.width,
            phase.norm_group,
            stages=config.model.stages,
            variant=config.model.variant,
            temporal_padding=phase.temporal_padding,
            norm_average=phase.norm_average,
            **options,
        )
    initialise(model, config.seed, name)
    model.activation_checkpointing = config.training.activation_checkpointing
    return model.to(DTYPES[config.training.precision])
