"""Every operation that a network's forward pass asks torch for, watched: the guard of
bitwise training.

Most operations work number by number with one rounding each, or move numbers: they run as they
are. Convolutions and linear layers run unit by unit, with exact sums for their weights. Operations
along a video's own axes (means over space, say) run unit by unit too. Anything else might mix
videos, or round by the place of a number in its batch: it is refused by its name, and so is a
parameter in an operation that does not add up its gradient exactly. A network of one's own needs
nothing but operations on these lists.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from hpc_stres.errors import UserError
from hpc_stres.models.exact.layers import MaxPool, UnitConvolution, UnitLinear
from hpc_stres.models.exact.session import Session

# Moving numbers, and operations of one rounding, which are the same wherever a number is.
SAFE = frozenset((
    "flatten", "unflatten", "view", "reshape", "permute", "transpose", "t", "expand", "expand_as",
    "contiguous", "to", "float", "double", "bfloat16", "half", "bool", "long", "int", "type", "type_as",
    "split", "chunk",
    "narrow", "squeeze", "unsqueeze", "__getitem__", "clone", "detach", "unbind", "cat", "stack", "size",
    "dim", "numel", "is_contiguous", "is_floating_point", "is_complex", "stride", "pad", "zeros_like", "ones_like",
    "empty_like", "new_zeros", "new_ones", "new_empty", "arange", "zeros", "ones", "empty", "full", "tensor",
    "data_ptr", "untyped_storage", "storage_offset", "requires_grad_", "retain_grad", "__len__", "__get__",
    "__set__", "__bool__", "__int__", "__format__", "__repr__", "__hash__", "element_size", "get_device",
    "add", "sub", "mul", "div", "true_divide", "__add__", "__radd__", "__iadd__", "__sub__", "__rsub__", "__isub__",
    "__mul__", "__rmul__", "__imul__", "__truediv__", "__rtruediv__", "__neg__", "neg", "abs", "relu",
    "relu_", "clamp", "clamp_min", "maximum", "minimum", "where", "masked_fill", "eq", "ne", "lt", "le",
    "gt", "ge", "__eq__", "__ne__", "__lt__", "__le__", "__gt__", "__ge__", "__and__", "__or__", "sqrt",
    "repeat_interleave", "add_", "sub_", "mul_", "div_", "copy_", "is_autocast_enabled",
    "get_autocast_dtype", "is_grad_enabled", "_set_grad_enabled", "is_same_size",
))  # fmt: skip
# Operations that never look from one video to another, but may round by shape or place.
BY_UNIT = frozenset((
    "mean", "sum", "amax", "amin", "softmax", "log_softmax", "exp", "log", "sigmoid", "tanh", "gelu", "silu",
    "addcmul", "rsqrt", "pow", "square", "__pow__", "avg_pool2d", "adaptive_avg_pool2d",
    "std", "var", "normalize", "hardtanh", "leaky_relu", "elu", "interpolate", "lerp",
))  # fmt: skip
# Of those, the ones that take axes, which must not be the videos' own.
OVER_AXES = frozenset(("mean", "sum", "amax", "amin", "softmax", "log_softmax", "std", "var"))
REMEDY = "Train it with training.reproducible=off, or build it from other operations."
Handler = Callable[["UnitByUnit", Any, tuple[Any, ...], dict[str, Any]], Any]


class UnitByUnit(TorchFunctionMode):
    """While it is entered, torch computes unit by unit for one session."""

    def __init__(self, session: Session, dtype: torch.dtype | None = None) -> None:
        super().__init__()
        self.session = session
        # What autocast computes convolutions and linear layers in; None without it.
        self.low = dtype

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:  # fmt: skip
        kwargs = kwargs or {}
        name = getattr(func, "__name__", str(func))
        handler = HANDLERS.get(name)
        if handler is not None:
            return handler(self, func, args, kwargs)
        if _is_ours(func) or (name in SAFE and "alpha" not in kwargs):
            self._refuse_parameters(name, args, kwargs)
            result = func(*args, **kwargs)
            if name == "stack":
                return _marked(result, args, kwargs)
            return result
        if name in BY_UNIT:
            self._refuse_parameters(name, args, kwargs)
            return self._unit_by_unit(func, name, args, kwargs)
        raise UserError(
            f"training.reproducible: bitwise: torch's {name} is not known to give the same bits on every "
            f"layout\n{REMEDY}"
        )

    def _refuse_parameters(self, name: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """A gradient that autograd adds up over videos is not exact."""
        if name in ("__get__", "size", "dim", "numel", "stride", "is_floating_point", "__set__"):
            return
        for value in (*args, *kwargs.values()):
            for tensor in value if isinstance(value, (list, tuple)) else (value,):
                if isinstance(tensor, nn.Parameter) and tensor.requires_grad:
                    parameter = self.session.names.get(id(tensor), "a parameter")
                    raise UserError(
                        f"training.reproducible: bitwise: {parameter} is used by torch's {name}, "
                        f"whose gradient depends on the layout\n{REMEDY}"
                    )

    def _unit_by_unit(
        self, func: Any, name: str, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Tensor:
        x: Tensor = next(value for value in args if isinstance(value, Tensor))
        axis = getattr(x, "batch_axis", 0)
        if name in OVER_AXES:
            self._refuse_batch_axis(x, axis, name, args, kwargs)
        length = x.shape[axis]
        if length % self.session.units or not length:
            raise UserError(
                f"training.reproducible: bitwise: torch's {name} takes {tuple(x.shape)}, which is not "
                f"a whole number of rows for each of {self.session.units} units\n{REMEDY}"
            )
        rows = length // self.session.units

        def pieces(value: Any) -> list[Any]:
            is_batch = (
                isinstance(value, Tensor) and value.ndim == x.ndim and value.shape[axis] == length
            )
            is_one = isinstance(value, Tensor) and length == rows
            if is_batch and not is_one:
                return list(value.split(rows, axis))
            return [value] * self.session.units

        columns = [pieces(value) for value in args]
        # Behind a sum over a stack's own axis the videos come first again.
        out_axis = 0 if name in OVER_AXES else axis
        return torch.cat(
            [func(*unit, **kwargs) for unit in zip(*columns, strict=True)], dim=out_axis
        )

    def _refuse_batch_axis(
        self, x: Tensor, axis: int, name: str, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> None:
        axes = kwargs.get("dim", args[1] if len(args) > 1 else None)
        several = axes if isinstance(axes, (list, tuple)) else (axes,)
        if axes is None or any(number % x.ndim == axis for number in several):
            raise UserError(
                f"training.reproducible: bitwise: torch's {name} over all videos of a micro-batch "
                f"depends on the layout\n{REMEDY}"
            )


def _is_ours(func: Any) -> bool:
    """The package's own kernels, whose bytes do not depend on other videos."""
    return str(func).startswith("hpc_stres.")


def _marked(result: Tensor, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Tensor:
    """A stack along a new first axis has its videos on the second one."""
    axis = kwargs.get("dim", args[1] if len(args) > 1 else 0)
    if axis == 0:
        result.batch_axis = 1  # type: ignore[attr-defined]
    return result


def _named(names: tuple[str, ...], args: tuple[Any, ...], kwargs: dict[str, Any]) -> dict[str, Any]:
    """Arguments by name, however they were given."""
    return {**dict(zip(names, args, strict=False)), **kwargs}


def _pair(value: Any) -> tuple[int, ...]:
    return (value, value) if isinstance(value, int) else tuple(value)


def _convolution(mode: UnitByUnit, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    names = ("input", "weight", "bias", "stride", "padding", "dilation", "groups")
    given: dict[str, Any] = {"bias": None, "stride": 1, "padding": 0, "dilation": 1, "groups": 1}
    given |= _named(names, args, kwargs)
    if isinstance(given["padding"], str) or given["input"].ndim != 4:
        raise UserError(
            f"training.reproducible: bitwise: a convolution over {tuple(given['input'].shape)} with the padding "
            f"{given['padding']} is not known here\n{REMEDY}"
        )
    shape = (
        _pair(given["stride"]), _pair(given["padding"]), _pair(given["dilation"]), given["groups"],
    )  # fmt: skip
    x, dtype = _as_computed(mode, given["input"])
    return UnitConvolution.apply(x, given["weight"], given["bias"], dtype, shape, mode.session)


def _linear(mode: UnitByUnit, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    given: dict[str, Any] = {"bias": None, **_named(("input", "weight", "bias"), args, kwargs)}
    x, dtype = _as_computed(mode, given["input"])
    rows = UnitLinear.apply(x.flatten(0, -2), given["weight"], given["bias"], dtype, mode.session)
    return rows if x.ndim == 2 else rows.unflatten(0, x.shape[:-1])


def _as_computed(mode: UnitByUnit, x: Tensor) -> tuple[Tensor, torch.dtype]:
    """x as autocast would hand it over, and its type; the cast has its own gradient."""
    low = mode.low
    return (x, x.dtype) if low is None or x.dtype == low else (x.to(low), low)


def _max_pool(mode: UnitByUnit, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    x = args[0]
    if x.device.type == "cpu":
        # A maximum has no rounding, and its way back takes window after window of one frame.
        return func(*args, **kwargs)
    names = ("input", "kernel_size", "stride", "padding", "dilation", "ceil_mode")
    given = {"stride": None, "padding": 0, "ceil_mode": False, **_named(names, args, kwargs)}
    kernel = _pair(given["kernel_size"])
    stride = kernel if given["stride"] is None else _pair(given["stride"])
    return MaxPool.apply(x, kernel, stride, _pair(given["padding"]), given["ceil_mode"])


HANDLERS: dict[str, Handler] = {
    "conv2d": _convolution,
    "linear": _linear,
    "max_pool2d": _max_pool,
}
