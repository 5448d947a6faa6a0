"""The network of a phase, built from its sections of the config."""

import torch

from hpc_stres.config.schema import Config
from hpc_stres.models.assembly import build_network
from hpc_stres.models.initialise import initialise
from hpc_stres.models.two_stream import TwoStream
from hpc_stres.phases.train import train_phase

DTYPES = {"float32": torch.float32, "bfloat16": torch.float32, "float64": torch.float64}


def build_phase_model(config: Config, name: str, num_classes: int) -> TwoStream:
    """The network of a phase, initialised from the run's seed: the same on every rank, device and
    layout."""
    phase = train_phase(config, name)
    optimise = phase.optimise
    # A layer draws from torch's generator when it is made; that leaves no trace, and its numbers
    # are drawn anew.
    with torch.random.fork_rng(devices=[]):
        model = build_network(phase.model, num_classes, optimise.norm_group, optimise.dropout)
    initialise(model, config.seed, name)
    model.activation_checkpointing = config.training.activation_checkpointing
    return model.to(DTYPES[config.training.precision])
