"""The published Caffe ResNets (He et al., 50, 101 and 152 layers) as state dicts of
our `msra` trunk.

A `.caffemodel` is a NetParameter message; only layers' names and blobs are read. An `.npz` holds
the same arrays as LAYER/NUMBER: `conv1/0`, `res2a_branch2a/0`, `bn2a_branch2a/0` to `/2`,
`scale2a_branch2a/0` and `/1`, `fc1000/0` and `/1`. A normalisation's statistics are sums of a
moving average, with their weight as third blob: they are divided by it. Filters of conv1 take
blue, green, red; ours red, green, blue.
"""

import math
import re
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from hpc_stres.errors import UserError
from hpc_stres.models import protobuf_wire as wire
from hpc_stres.models.state import some

SUFFIXES = (".caffemodel", ".npz")
# Field numbers of Caffe's messages.
LAYER, OLD_LAYER = 100, 2
NAME, BLOBS = 1, 7
LEGACY_SHAPE = (1, 2, 3, 4)
DATA, SHAPE, DOUBLE_DATA, DIMENSION = 5, 7, 8, 1
MOST_DIMENSIONS, MOST_NUMBERS = 8, 1 << 31

Array = NDArray[np.floating]
Layers = dict[str, list[Array]]
UNIT = re.compile(r"(?:res|bn|scale)([2-5])([a-z])(\d*)_branch(1|2[abc])")
PARTS = {"1": "downsample.", "2a": "1", "2b": "2", "2c": "3"}
WHAT = "Is this a published ResNet-50, -101 or -152 of He et al.?"


class Target(NamedTuple):
    """Where a layer goes: its kind, and the name of our module."""

    kind: str
    module: str


def read_caffe(path: Path) -> dict[str, Tensor]:
    """The state dict of a trunk from a `.caffemodel` or an `.npz` of the same arrays."""
    try:
        layers = _read_npz(path) if path.suffix == ".npz" else _read_caffemodel(path)
    except (wire.WireError, UnicodeDecodeError) as error:
        raise UserError(
            f"{path}: not a whole Caffe model: {error}\nCopy or download the file again."
        ) from None
    if not layers:
        raise UserError(f"{path}: no layer with weights in it\n{WHAT}")
    return to_state(layers, str(path))


def _read_caffemodel(path: Path) -> Layers:
    if path.stat().st_size == 0:
        raise wire.WireError("the file is empty")
    message = memoryview(np.memmap(path, np.uint8, "r"))  # type: ignore[arg-type]
    layers: Layers = {}
    for field in wire.fields(message):
        if field.number == OLD_LAYER and field.wire == wire.BYTES:
            raise UserError(
                f"{path}: written in Caffe's format of before 2015\nConvert it with Caffe's upgrade_net_proto_binary."
            )
        if field.number == LAYER and field.wire == wire.BYTES:
            name, blobs = _read_layer(field.view)
            if blobs and name in layers:
                raise wire.WireError(f"layer {name!r:.60} is there twice")
            layers |= {name: blobs} if blobs else {}
    return layers


def _read_layer(message: memoryview) -> tuple[str, list[Array]]:
    name, blobs = "", []
    for field in wire.fields(message):
        if field.number == NAME and field.wire == wire.BYTES:
            name = bytes(field.view).decode("utf-8")
        elif field.number == BLOBS and field.wire == wire.BYTES:
            blobs.append(_read_blob(field.view))
    return name, blobs


def _read_blob(message: memoryview) -> Array:
    """One array; its shape is a list of numbers, or the four of older files."""
    legacy: dict[int, int] = {}
    shape: list[int] | None = None
    parts: list[Array] = []
    for field in wire.fields(message):
        if field.number in LEGACY_SHAPE and field.wire == wire.VARINT:
            legacy[field.number] = field.value
        elif field.number == SHAPE and field.wire == wire.BYTES:
            inner = [f for f in wire.fields(field.view) if f.number == DIMENSION]
            shape = [size for f in inner for size in wire.packed_varints(f)]
        elif field.number == DATA:
            parts.append(wire.packed_floats(field, np.float32))
        elif field.number == DOUBLE_DATA:
            parts.append(wire.packed_floats(field, np.float64))
    sizes = shape if shape is not None else [legacy.get(number, 1) for number in LEGACY_SHAPE]
    values = np.concatenate(parts) if parts else np.empty(0, np.float32)
    is_odd = len(sizes) > MOST_DIMENSIONS or any(size > MOST_NUMBERS for size in sizes)
    if is_odd or math.prod(sizes) != len(values):
        raise wire.WireError(f"a blob of {sizes!s:.60} has {len(values)} numbers")
    return values.reshape(sizes)


def _read_npz(path: Path) -> Layers:
    """Arrays named LAYER/NUMBER."""
    layers: dict[str, dict[int, Array]] = {}
    try:
        with np.load(path, allow_pickle=False) as arrays:
            for key in arrays.files:
                layer, _, number = key.rpartition("/")
                if not layer or not number.isdecimal():
                    raise UserError(
                        f"{path}: an array is named {key!r:.60}; expected LAYER/NUMBER, as conv1/0"
                    )
                layers.setdefault(layer, {})[int(number)] = arrays[key]
    except UserError:
        raise
    except Exception as error:  # zip files and arrays have their own families of errors
        raise wire.WireError(str(error).splitlines()[0][:120] if str(error) else "") from None
    for layer, blobs in layers.items():
        if sorted(blobs) != list(range(len(blobs))):
            raise UserError(f"{path}: layer {layer} has arrays {sorted(blobs)}; expected 0, 1, ...")
        for blob in blobs.values():
            if not np.issubdtype(blob.dtype, np.floating):
                raise UserError(
                    f"{path}: layer {layer} has an array of {blob.dtype}, not of numbers"
                )
    return {layer: [blobs[n] for n in sorted(blobs)] for layer, blobs in layers.items()}


def to_state(layers: Layers, source: str) -> dict[str, Tensor]:
    """Our names for Caffe's; a layer that has no place is named."""
    state: dict[str, Array] = {}
    unknown = []
    for name, blobs in layers.items():
        target = _target(name)
        if target is None:
            unknown.append(name)
            continue
        try:
            converted = _convert(target, blobs)
            if not state.keys().isdisjoint(converted):
                raise ValueError(f"another layer gives {target.module} already")
            state |= converted
        except ValueError as error:
            raise UserError(f"{source}: layer {name}: {error}\n{WHAT}") from None
    if unknown:
        raise UserError(f"{source}: no place in a ResNet for the layers {some(unknown)}\n{WHAT}")
    # A copy, so that nothing of the file is held.
    return {
        name: torch.from_numpy(np.array(value, np.float32, order="C"))
        for name, value in state.items()
    }


def _target(name: str) -> Target | None:
    if name == "conv1" or re.fullmatch(r"fc\d+", name):
        return Target("conv" if name == "conv1" else "fc", "conv1" if name == "conv1" else "fc")
    if name in ("bn_conv1", "scale_conv1"):
        return Target(name.split("_")[0], "bn1")
    match = UNIT.fullmatch(name)
    if match is None:
        return None
    stage, letter, number, branch = match.groups()
    # 50 layers: a, b, c, ...; 101 and 152: a, b1, b2, ...
    unit = int(number) if number else ord(letter) - ord("a")
    if number and (letter != "b" or unit == 0):
        return None
    kind = name[: match.start(1)]
    module = f"layer{int(stage) - 1}.{unit}."
    if branch == "1":
        return Target("conv" if kind == "res" else kind, f"{module}downsample.{int(kind != 'res')}")
    kind_name = "conv" if kind == "res" else "bn"
    return Target("conv" if kind == "res" else kind, f"{module}{kind_name}{PARTS[branch]}")


def _convert(target: Target, blobs: list[Array]) -> dict[str, Array]:
    kind, module = target
    wanted = {"conv": (1, 2), "fc": (2,), "bn": (3,), "scale": (2,)}[kind]
    if len(blobs) not in wanted:
        expected = " or ".join(map(str, wanted))
        raise ValueError(f"{len(blobs)} arrays where {expected} were expected")
    if kind == "conv":
        return _convolution(module, blobs)
    if kind == "fc":
        if blobs[0].ndim < 2:
            raise ValueError(f"a classifier of shape {list(blobs[0].shape)}")
        weight = blobs[0].reshape(-1, blobs[0].shape[-1])
        return {f"{module}.weight": weight, f"{module}.bias": blobs[1].reshape(-1)}
    if kind == "scale":
        return {f"{module}.weight": blobs[0].reshape(-1), f"{module}.bias": blobs[1].reshape(-1)}
    if blobs[2].size != 1 or not float(blobs[2].reshape(-1)[0]) > 0:
        raise ValueError("the weight of its statistics is not a number above 0")
    share = 1.0 / float(blobs[2].reshape(-1)[0])
    return {
        f"{module}.running_mean": blobs[0].reshape(-1) * share,
        f"{module}.running_var": blobs[1].reshape(-1) * share,
    }


def _convolution(module: str, blobs: list[Array]) -> dict[str, Array]:
    weight = blobs[0]
    if weight.ndim != 4:
        raise ValueError(f"filters of shape {list(weight.shape)}")
    if module == "conv1":
        # Blue, green, red to red, green, blue.
        weight = weight[:, ::-1]
    if len(blobs) == 1:
        return {f"{module}.weight": weight}
    if module != "conv1":
        raise ValueError("a bias, which only the first convolution has")
    return {f"{module}.weight": weight, f"{module}.bias": blobs[1].reshape(-1)}
