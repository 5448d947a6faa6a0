"""The networks by name."""

from typing import Any

from hpc_stres.models.interaction import Interaction
from hpc_stres.models.norm import NormGroups, SubBatchNorm2d, assign_groups, defer_statistics, fold_statistics
from hpc_stres.models.resnet import DEPTHS, TrunkOptions
from hpc_stres.models.two_stream import Logits, TemporalPool, TwoStream

__all__ = [
    "MODEL_NAMES",
    "Logits",
    "NormGroups",
    "SubBatchNorm2d",
    "TwoStream",
    "assign_groups",
    "build_model",
    "defer_statistics",
    "fold_statistics",
]

MODEL_NAMES = ("appearance", "motion", "st_resnet", "st_resnet_star", "stm_resnet")
_TRUNK_OPTIONS = ("variant", "temporal_padding", "norm_average")
_OPTIONS = (*_TRUNK_OPTIONS, "stages", "operation", "direction", "placement", "temporal_pool", "dropout")


def build_model(
    name: str, num_classes: int, depth: int = 50, width: int = 64, norm_group: int | None = None, **options: Any
) -> TwoStream:
    """A network by name.

    Options: `stages` (units a stage in place of `depth`'s), `variant` (torchvision, msra), `temporal_padding` (zeros,
    replicate), `norm_average` (variance, sigma), `operation` (add, multiply), `direction` (motion_to_appearance,
    appearance_to_motion, both, off), `placement` (residual, direct), `temporal_pool` (after_pool5, before_average),
    `dropout` (of a single stream; a joint network keeps none but stm_resnet's motion stream).
    """
    if name not in MODEL_NAMES:
        raise ValueError(f"no model {name!r}; there are {', '.join(MODEL_NAMES)}")
    unknown = sorted(set(options) - set(_OPTIONS))
    if unknown:
        raise ValueError(f"no option {unknown[0]!r}; there are {', '.join(_OPTIONS)}")
    if depth not in DEPTHS and not options.get("stages"):
        raise ValueError(f"no depth {depth}; there are {', '.join(map(str, DEPTHS))}")
    joint = name not in ("appearance", "motion")
    temporal = {"stm_resnet": "identity"}.get(name, "inflated" if joint else "none")
    trunk = TrunkOptions(
        stages=tuple(options.get("stages") or DEPTHS[depth]),
        width=width,
        temporal=temporal,  # type: ignore[arg-type]
        norm_group=norm_group,
        **{key: options[key] for key in _TRUNK_OPTIONS if key in options},
    )
    if joint and min(trunk.stages) < 2:
        raise ValueError(f"{name} joins its streams at the second unit of each stage; stages are {trunk.stages}")
    dropped = {"appearance": ("appearance",), "motion": ("motion",), "stm_resnet": ("motion",)}.get(name, ())
    return TwoStream(
        num_classes,
        trunk,
        ("appearance", "motion") if joint else (name,),
        _interaction(name, options) if joint else None,
        _pool(name, options),
        dict.fromkeys(dropped, options.get("dropout", 0.0)),
    )


def _interaction(name: str, options: dict[str, Any]) -> Interaction:
    chosen = {"operation": "multiply" if name == "stm_resnet" else "add"}
    chosen |= {key: options[key] for key in ("operation", "direction", "placement") if key in options}
    return Interaction(**chosen)  # type: ignore[arg-type]


def _pool(name: str, options: dict[str, Any]) -> TemporalPool | None:
    if name == "st_resnet_star":
        return TemporalPool(options.get("temporal_pool", "after_pool5"), window=5, stride=2)
    if name == "stm_resnet":
        return TemporalPool(options.get("temporal_pool", "before_average"), window=5, stride=1)
    return None
