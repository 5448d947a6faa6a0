"""What a state dict may hold: ordinary, finite numbers and no negative variances, on the way in and
on the way out."""

from collections.abc import Mapping

import torch
from torch import Tensor
from torch.nn.utils import get_total_norm

from hpc_stres.errors import UserError

FLOAT_TYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
COUNT_TYPES = (torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8)
COUNTER, VARIANCE = "num_batches_tracked", "running_var"


@torch.no_grad()
def not_finite(state: Mapping[str, Tensor]) -> list[str]:
    """Names of the tensors with a NaN or an infinity in them.

    One reduction over all tensors and one number from the device; names are looked for only where
    that is not finite. The largest magnitude is what is reduced, for a sum or a square of finite
    numbers may overflow.
    """
    floats = {
        name: tensor.detach()
        for name, tensor in state.items()
        if tensor.is_floating_point() and tensor.numel()
    }
    if not floats or bool(torch.isfinite(get_total_norm(list(floats.values()), float("inf")))):
        return []
    return [name for name, tensor in floats.items() if not bool(torch.isfinite(tensor).all())]


def negative_variances(state: Mapping[str, Tensor]) -> list[str]:
    """Names of running variances below zero; zero is a channel that is always the same, which real
    files have."""
    variances = {name: t for name, t in state.items() if name.endswith(VARIANCE) and t.numel()}
    return [name for name, tensor in variances.items() if bool((tensor < 0).any())]


def refuse_bad_state(state: Mapping[str, Tensor], source: str) -> None:
    """Refuse a file's tensors of a wrong type or layout, with a NaN or an infinity, or a negative
    variance, by name."""
    for name, tensor in state.items():
        types = FLOAT_TYPES + COUNT_TYPES if name.endswith(COUNTER) else FLOAT_TYPES
        if tensor.layout != torch.strided or tensor.is_quantized or tensor.dtype not in types:
            kind = str(tensor.dtype).removeprefix("torch.")
            layout = (
                "" if tensor.layout == torch.strided else f" {tensor.layout}".replace("torch.", "")
            )
            raise UserError(
                f"{source}: {name} is a tensor of {kind}{layout}; weights are float16, bfloat16, float32 or float64\n"
                "Is this file damaged, quantised, or of another network?"
            )
    _refuse(not_finite(state), "NaN or infinite values", source)
    _refuse(negative_variances(state), "negative variances", source)


def _refuse(names: list[str], what: str, source: str) -> None:
    if names:
        raise UserError(
            f"{source}: {what} in {some(names)}\nUse a file of a training that went well; this one would give nonsense."
        )


def some(names: list[str]) -> str:
    """The first few of some names, and how many more there are."""
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
