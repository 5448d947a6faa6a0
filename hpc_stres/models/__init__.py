"""The networks by name. torch is imported when the first of these names is used, not
with the package."""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from hpc_stres.models.assembly import build_model
    from hpc_stres.models.norm import (
        NormGroups,
        SubBatchNorm2d,
        assign_groups,
        defer_statistics,
        fold_statistics,
    )
    from hpc_stres.models.two_stream import Logits, TwoStream

__all__ = [
    "Logits",
    "NormGroups",
    "SubBatchNorm2d",
    "TwoStream",
    "assign_groups",
    "build_model",
    "defer_statistics",
    "fold_statistics",
]

_HOMES = {
    "build_model": "assembly",
    "Logits": "two_stream",
    "TwoStream": "two_stream",
}


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__} has no attribute {name}")
    return getattr(importlib.import_module(f"{__name__}.{_HOMES.get(name, 'norm')}"), name)
