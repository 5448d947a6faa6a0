"""Weights in and out: torchvision's and timm's files, earlier phases, inflation; every name and
shape is checked."""

import hashlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from hpc_stres.errors import UserError
from hpc_stres.models import caffe
from hpc_stres.models.state import refuse_bad_state, some
from hpc_stres.models.temporal import inflate
from hpc_stres.models.two_stream import FLOW_PLANES, RGB_PLANES, TwoStream
from hpc_stres.run.paths import write_bytes

STREAMS = ("appearance", "motion")
# The key of the checksum among a .safetensors file's metadata.
CHECKSUM = "hpc_stres.sha256"
# The flow stack's planes take the RGB filters in the order R G B B G R and again.
# First layer of each family of trunks.
FIRST_FILTERS = ("conv1.weight", "Conv2d_1a_3x3.conv.weight")
# A published file's second classifier, which fine-tuning leaves out.
AUXILIARY = "AuxLogits."
MIRROR_ORDER = [0, 1, 2, 2, 1, 0]
RESCALE = RGB_PLANES / FLOW_PLANES
WHERE_TO_GET = (
    "ImageNet weights: torchvision's resnet50-0676ba61.pth (variant torchvision) or timm's resnet50 as .safetensors;\n"
    "`hpc-stres weights` lists them, fetches one where there is a network, and checks it; then set model.weights to it"
)


@dataclass
class Report:
    """What loading did with each parameter."""

    loaded: list[str] = field(default_factory=list)
    inflated: list[str] = field(default_factory=list)
    summed: list[str] = field(default_factory=list)
    """Temporal kernels that became 1x1 ones: what they do to a clip that stands still."""
    replaced: list[str] = field(default_factory=list)
    missing: list[str] = field(default_factory=list)

    def __str__(self) -> str:
        parts = [f"{len(self.loaded)} tensors loaded"]
        for name in ("inflated", "summed", "replaced", "missing"):
            names = getattr(self, name)
            word = f"{name} over time" if name == "summed" else name
            if names:
                shown = ", ".join(names[:3]) + (
                    f" and {len(names) - 3} more" if len(names) > 3 else ""
                )
                parts.append(f"{len(names)} {word} ({shown})")
        return "; ".join(parts)


def read_state(path: Path) -> dict[str, Tensor]:
    """A state dict from .safetensors, or from a torch file without unpickling code; every value is
    checked.

    The one way in for weights: what is damaged, not finite, of a wrong type or has negative
    variances is refused.
    """
    if not path.is_file():
        raise UserError(f"{path}: no such weights file\n{WHERE_TO_GET}")
    state: Any
    if path.suffix in caffe.SUFFIXES:
        state = caffe.read_caffe(path)
        refuse_bad_state(state, str(path))
        return state
    try:
        state = (
            _read_safetensors(path)
            if path.suffix == ".safetensors"
            else torch.load(path, map_location="cpu", weights_only=True)
        )
    except UserError:
        raise
    except Exception as error:  # each format has its own family of errors
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise UserError(f"{path}: cannot read the weights: {reason[:200]}") from None
    for wrapper in ("state_dict", "model"):
        if isinstance(state, Mapping) and isinstance(state.get(wrapper), Mapping):
            state = state[wrapper]
    if not isinstance(state, Mapping) or not all(
        isinstance(value, Tensor) for value in state.values()
    ):
        raise UserError(f"{path}: expected a state dict of tensors")
    if not all(isinstance(name, str) for name in state):
        raise UserError(f"{path}: expected a state dict whose keys are names of tensors")
    named = {name.removeprefix("module."): value for name, value in state.items()}
    if len(named) != len(state):
        raise UserError(
            f"{path}: some tensors are there twice, with and without 'module.' before their name"
        )
    refuse_bad_state(named, str(path))
    return named


def _read_safetensors(path: Path) -> dict[str, Tensor]:
    """The tensors of a file; where it carries a checksum of them, as ours do, that is compared."""
    from safetensors import safe_open

    with safe_open(path, framework="pt") as stream:
        expected = (stream.metadata() or {}).get(CHECKSUM)
        state = {name: stream.get_tensor(name) for name in stream.keys()}  # noqa: SIM118
    if expected is not None and expected != _checksum(state):
        raise UserError(
            f"{path}: damaged: the checksum of its tensors is wrong\nCopy the file again."
        )
    return state


def save_state(
    state: Mapping[str, Tensor], path: Path, about: Mapping[str, str] | None = None
) -> None:
    """A .safetensors file that carries a checksum of its tensors, and what is said `about` them,
    written atomically."""
    from safetensors.torch import save

    whole = {name: tensor.detach().cpu().contiguous() for name, tensor in state.items()}
    # Through memory, so that a full disk is an OSError like any other.
    write_bytes(path, save(whole, {**(about or {}), CHECKSUM: _checksum(whole)}))


def _checksum(state: Mapping[str, Tensor]) -> str:
    """Over names, types, shapes and bytes of all tensors."""
    digest = hashlib.sha256()
    for name in sorted(state):
        tensor = state[name].contiguous()
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def inflate_conv1(weight: Tensor, how: Literal["mirror", "mean"], rescale: bool) -> Tensor:
    """RGB filters (out, 3, 7, 7) for the 20 planes of a flow stack."""
    if how == "mean":
        planes = weight.mean(dim=1, keepdim=True).expand(-1, FLOW_PLANES, -1, -1)
    else:
        planes = weight[
            :, [MIRROR_ORDER[plane % len(MIRROR_ORDER)] for plane in range(FLOW_PLANES)]
        ]
    return (planes * RESCALE if rescale else planes).contiguous()


def is_trunk(state: Mapping[str, Tensor]) -> bool:
    """Whether a state dict is a plain trunk's, without stream names."""
    return any(name in state for name in FIRST_FILTERS)


def to_streams(
    state: Mapping[str, Tensor],
    streams: Iterable[str],
    conv1: Literal["mirror", "mean"],
    rescale: bool,
) -> dict[str, Tensor]:
    """A plain ResNet's state dict under the names of the given streams, conv1
    inflated for motion."""
    tensors: dict[str, Tensor] = {}
    kept = {name: tensor for name, tensor in state.items() if not name.startswith(AUXILIARY)}
    for stream in streams:
        for name, tensor in kept.items():
            is_rgb = name in FIRST_FILTERS and tensor.ndim == 4 and tensor.shape[1] == RGB_PLANES
            inflated = (
                inflate_conv1(tensor, conv1, rescale) if stream == "motion" and is_rgb else tensor
            )
            tensors[f"{stream}.{name}"] = inflated
    return tensors


def to_torchvision(state: Mapping[str, Tensor], stream: str) -> dict[str, Tensor]:
    """One stream's part of a state dict under torchvision's names."""
    prefix = f"{stream}."
    return {
        name.removeprefix(prefix): tensor
        for name, tensor in state.items()
        if name.startswith(prefix)
    }


def load_into(model: TwoStream, state: Mapping[str, Tensor], source: str) -> Report:
    """Load a state dict with stream names; 1x1 weights become temporal ones, and temporal ones their
    sum over time where the network has 1x1 ones; a classifier of another size is replaced.

    Anything else that does not fit is an error that names it.
    """
    report = Report()
    own = model.state_dict()
    unknown = sorted(name for name in state if name not in own)
    if unknown:
        raise UserError(
            f"{source}: no place in this network for {some(unknown)}\n"
            "Check model.depth, model.stages and model.variant against the weights."
        )
    for name, target in own.items():
        if name not in state:
            report.missing.append(name)
        elif state[name].shape == target.shape:
            target.copy_(state[name])
            report.loaded.append(name)
        elif _is_inflatable(state[name], target):
            target.copy_(inflate(state[name]))
            report.inflated.append(name)
        elif _is_inflatable(target, state[name]):
            target.copy_(state[name].sum(dim=2, keepdim=True))
            report.summed.append(name)
        elif ".fc." in name:
            report.replaced.append(name)
        else:
            shapes = f"{tuple(state[name].shape)}, the network has {tuple(target.shape)}"
            raise UserError(
                f"{source}: {name} is {shapes}\nCheck model.depth, model.width and model.variant."
            )
    _refuse_missing(report, source)
    # A finite float64 number may be too large for the network's float32.
    refuse_bad_state(own, source)
    return report


def _is_inflatable(source: Tensor, target: Tensor) -> bool:
    same = source.shape[:2] == target.shape[:2] and source.ndim == target.ndim == 4
    return same and source.shape[2:] == (1, 1) and target.shape[2:] == (3, 1)


def _refuse_missing(report: Report, source: str) -> None:
    # A counter, STM's identity layers, MSRA's conv1 bias and a headless backbone's classifier
    # have start values.
    allowed = (
        "num_batches_tracked",
        ".temporal.weight",
        ".temporal.bias",
        ".conv1.bias",
        ".fc.weight",
        ".fc.bias",
    )
    # What joins the streams begins anew.
    in_trunks = [name for name in report.missing if name.split(".")[0] in STREAMS]
    wrong = [name for name in in_trunks if not name.endswith(allowed)]
    if wrong:
        raise UserError(
            f"{source}: the weights lack {some(wrong)}\nIs this file of the same network?"
        )


def drop_other_streams(state: Mapping[str, Tensor], model: nn.Module) -> dict[str, Tensor]:
    """The part of a state dict whose streams the network has, and what joins them."""
    absent = [stream for stream in STREAMS if getattr(model, stream) is None]
    return {name: tensor for name, tensor in state.items() if name.split(".", 1)[0] not in absent}
