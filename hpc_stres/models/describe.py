"""The paper's Table 1 for a network as built: blocks, output sizes, receptive fields,
parameters, multiply-adds."""

from typing import Any

import torch
from torch import Tensor, nn

from hpc_stres.models.layer_table import Row, table_text
from hpc_stres.models.resnet import Bottleneck, Trunk
from hpc_stres.models.temporal import TemporalConv
from hpc_stres.models.two_stream import POOL_SIDE, TwoStream


def describe(model: TwoStream, side: int, chunks: int) -> dict[str, list[Row]]:
    """The metalayers of each stream for clips of `chunks` frames of `side` pixels,
    measured on a dry pass."""
    costs: dict[nn.Module, int] = {}
    sizes: dict[nn.Module, int] = {}
    model = model.to("meta").eval()
    hooks = [module.register_forward_hook(_measure(costs, sizes)) for module in model.modules()]
    rgb = torch.empty(1, chunks, 3, side, side, device="meta")
    flow = torch.empty(1, chunks, 20, side, side, device="meta")
    output = model(rgb, flow)
    for hook in hooks:
        hook.remove()
    metalayers = {}
    for stream, logits in (("appearance", output.appearance), ("motion", output.motion)):
        trunk = getattr(model, stream)
        if trunk is not None:
            metalayers[stream] = _walk(model, trunk, costs, sizes, chunks, logits.shape[1])
    return metalayers


def _measure(costs: dict[nn.Module, int], sizes: dict[nn.Module, int]) -> Any:
    def hook(module: nn.Module, arguments: Any, output: Any) -> None:
        if isinstance(output, Tensor) and output.ndim == 4:
            sizes[module] = output.shape[-1]
        if isinstance(module, (nn.Conv2d, TemporalConv)):
            costs[module] = output.numel() * module.weight[0].numel()
        elif isinstance(module, nn.Linear):
            costs[module] = output.numel() * module.in_features

    return hook


def _walk(
    model: TwoStream, trunk: Trunk, costs: dict[nn.Module, int], sizes: dict[nn.Module, int],
    chunks: int, left: int,
) -> list[Row]:  # fmt: skip
    def sums(*modules: nn.Module) -> tuple[int, int]:
        inner = [m for module in modules for m in module.modules()]
        parameters = sum(p.numel() for module in modules for p in module.parameters())
        return parameters, sum(costs.get(m, 0) for m in inner)

    stem = _pool_side(sizes[trunk.conv1], trunk)
    kernel, first = f"7x7, {trunk.options.width}", sums(trunk.conv1, trunk.bn1)
    rows = [
        Row("conv1", kernel, sizes[trunk.conv1], chunks, 7, 1, *first),
        Row("pool1", "3x3 max", stem, chunks, 11, 1, 0, 0),
    ]
    field, jump, times = 11, 4, 1
    for number, stage in enumerate(trunk.stages(), 2):
        for unit in stage:
            assert isinstance(unit, Bottleneck)
            stride = 2 if sizes[unit] < (rows[-1].side if unit is stage[0] else sizes[unit]) else 1
            # The strided layer is the 3x3 in the torchvision variant and the 1x1 before it
            # in the MSRA one.
            early = stride if trunk.options.variant == "msra" else 1
            field += 2 * jump * early
            jump *= stride
            times += 2 * sum(isinstance(m, TemporalConv) for m in unit.modules())
        side, name = sizes[stage[-1]], f"conv{number}_x"
        rows.append(Row(name, _unit_text(stage), side, chunks, field, times, *sums(stage)))
    side = max(1, rows[-1].side - POOL_SIDE + 1)
    window = min(POOL_SIDE, rows[-1].side)
    pooled = times + (model.pool.window - 1 if model.pool else 0)
    text = f"{window}x{window} average" + (
        f", {model.pool.window} max in time" if model.pool else ""
    )
    rows.append(Row("pool5", text, side, left, field + (window - 1) * jump, pooled, 0, 0))
    sizes_text, field = f"{trunk.features} to {model.num_classes}", rows[-1].field_pixels
    rows.append(Row("fc", sizes_text, side, left, field, pooled, *sums(trunk.fc)))
    return rows


def _pool_side(side: int, trunk: Trunk) -> int:
    return -(-(side - 3) // 2) + 1 if trunk.options.variant == "msra" else (side - 1) // 2 + 1


def _unit_text(stage: nn.ModuleList) -> str:
    first = stage[0]
    assert isinstance(first, Bottleneck)
    width = first.bn1.channels
    text = f"1x1 {width}, 3x3 {width}, 1x1 {first.bn3.channels} (x{len(stage)})"
    second = stage[1]
    assert isinstance(second, Bottleneck)
    if isinstance(second.conv1, TemporalConv):
        text += "; unit 2: 1x1x3, 3x3, 1x1x3"
    elif second.temporal is not None:
        text += "; unit 2: 1x1x3 after the 3x3"
    return text


def plain_table(model: nn.Module) -> str:
    """Parts and parameters of a network that is none of ours."""
    from hpc_stres.run.tables import text_table

    rows = [
        [name, type(part).__name__, f"{sum(p.numel() for p in part.parameters()):,}"]
        for name, part in model.named_modules()
        if name.count(".") <= 1 and name and any(True for _ in part.parameters())
    ]
    total = ["total", "", f"{sum(p.numel() for p in model.parameters()):,}"]
    return text_table(["part", "type", "parameters"], [*rows, total])


def table(model: nn.Module, side: int, chunks: int) -> str:
    """The table as text."""
    trunks = [getattr(model, stream, None) for stream in ("appearance", "motion")]
    if not isinstance(model, TwoStream) or any(not isinstance(t, Trunk | None) for t in trunks):
        return plain_table(model)
    return table_text(describe(model, side, chunks))
