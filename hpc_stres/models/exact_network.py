"""A network made ready for a bitwise training: its layers know the session that adds
up what they have."""

import contextlib
from typing import Any

from hpc_stres.models.exact.mode import UnitByUnit
from hpc_stres.models.exact.session import Session
from hpc_stres.models.interaction import ChannelScale
from hpc_stres.models.norm import SubBatchNorm2d

# STFN's frozen trunks take so many frames at once: all, for the units cut them.
ALL_FRAMES = 1 << 30


def attach(model: Any, session: Session, mode: UnitByUnit) -> dict[str, SubBatchNorm2d]:
    """Give a network's layers their session; returns its normalisations by name."""
    layers: dict[str, SubBatchNorm2d] = {}
    for name, module in model.named_modules():
        if isinstance(module, SubBatchNorm2d):
            layers[name] = module
            module.exact, module.exact_name = session, name
        elif isinstance(module, ChannelScale):
            module.exact = session
    session.make_statistics({name: layer.channels for name, layer in layers.items()})
    model.frames_at_once = ALL_FRAMES
    # Activations that are computed again on the way back are watched as well.
    model.recompute_context = lambda: (contextlib.nullcontext(), mode)
    return layers
