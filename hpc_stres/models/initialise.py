"""First weights of a network: every layer's own numbers, from the counter, on the host.

A layer is known by its name, so that its numbers depend neither on the layers before it nor on
where the network will be put. Outside a run, where no seed is known, layers draw from torch's
generator like any torch module.
"""

import inspect
import math
from collections.abc import Callable

import torch
from torch import Tensor, nn

from hpc_stres import counter

# Standard normal numbers of a shape.
Normal = Callable[[tuple[int, ...]], Tensor]


def he_normal(shape: tuple[int, ...], normal: Normal) -> Tensor:
    """He's initialisation for a ReLU network, by the outputs that an input reaches."""
    fan_out = shape[0] * math.prod(shape[2:])
    return normal(shape) * math.sqrt(2.0 / fan_out)


@torch.no_grad()
def initialise(model: nn.Module, seed: int, phase: str) -> None:
    """Give every layer of a phase's network the first weights of a seed. Layers without any random
    number stay."""
    for name, module in model.named_modules():
        reset = getattr(module, "reset_parameters", None)
        if reset is None:
            continue
        if "normal" in inspect.signature(reset).parameters:
            reset(_numbers_of(seed, f"{phase}/{name}"))
        else:
            _reset_torchs_own(reset, seed, f"{phase}/{name}")


def _reset_torchs_own(reset: Callable[[], None], seed: int, layer: str) -> None:
    """A layer of torch's own draws from torch's generator, which is given this
    layer's number first."""
    number = int(counter.generator(seed, layer, counter.WEIGHTS).integers(2**63))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(number)
        reset()


def _numbers_of(seed: int, layer: str) -> Normal:
    def normal(shape: tuple[int, ...]) -> Tensor:
        numbers = counter.generator(seed, layer, counter.WEIGHTS)
        return torch.from_numpy(numbers.standard_normal(shape, "float32"))

    return normal
