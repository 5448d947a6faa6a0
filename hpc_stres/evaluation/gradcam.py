"""Where the network looks: Grad-CAM of each stream over time.

Of one stage of each stream the activations A (time, channels, rows, columns) are kept together
with the gradient G of the answer's logit (the mean over streams and time, as it is scored). A
channel weighs as much as its mean gradient over the clip; the map is the sum of weighted channels,
of which only what speaks for the answer is kept (Selvaraju et al., ICCV 2017, with the mean over
time as well as space).

Memory stays that of a test: parameters and inputs want no gradient, so that nothing is recorded up
to the stage that is looked at; from there on a clip's activations are small.

Place: a cell of a stage sees the frame around one pixel. With padding at every stride-2 layer that
is cell * stride (+ 2 where the first pool has no padding), not the middle of a tile of the frame:
at stride 32 the difference is half a cell.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from hpc_stres.data.feed import ClipReader
from hpc_stres.data.requests import Request
from hpc_stres.evaluation import protocol
from hpc_stres.evaluation.networks import Network
from hpc_stres.models.resnet import Trunk
from hpc_stres.store.reader import VideoRow

Map = NDArray[np.float32]
FIRST_STRIDE = 4
# A map of fewer rows or columns says too little: then the stage before it is looked at.
FEWEST_CELLS = 4
# Added to rectified activations: a ReLU that comes again lets the gradient of every cell through.
JUST_ABOVE_ZERO = 1e-30


@dataclass(frozen=True)
class Look:
    """Maps of one clip: each stream's (time, rows, columns) from 0 to 1, and how cells lie on pixels."""

    frames: tuple[int, ...]
    maps: dict[str, Map]
    stride: int
    offset: int
    answer: int

    def on_frame(self, stream: str, time: int, height: int, width: int) -> Map:
        """One map enlarged to a frame of these sizes."""
        return enlarge(self.maps[stream][time], self.stride, self.offset, height, width)

    def peak(self, stream: str, height: int, width: int) -> tuple[int, int, int]:
        """Frame number, row and column of the clip's largest value."""
        big = np.stack([self.on_frame(stream, n, height, width) for n in range(len(self.frames))])
        time, row, column = np.unravel_index(int(big.argmax()), big.shape)
        return self.frames[int(time)], int(row), int(column)


def enlarge(cells: Map, stride: int, offset: int, height: int, width: int) -> Map:
    """Cells at `offset + stride * number` pixels, linear between them, constant beyond the outer ones."""
    import cv2

    rows = ((np.arange(height) - offset) / stride).astype(np.float32)
    columns = ((np.arange(width) - offset) / stride).astype(np.float32)
    grid = np.meshgrid(columns, rows)
    big = cv2.remap(cells, grid[0], grid[1], cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)
    return np.asarray(big, np.float32)


def look(network: Network, reader: ClipReader, request: Request, answer: int | None = None) -> Look:
    """Maps of one clip for a class, or for the network's own answer."""
    clips = reader.read([request])
    model: Any = network.call
    trunks = {name: getattr(model, name) for name in ("appearance", "motion")}
    present = {name: trunk for name, trunk in trunks.items() if isinstance(trunk, Trunk)}
    stage = _stage(next(iter(present.values())), request)
    # The smallest differences of a deep network's gradient are lost in half precision, never here:
    # a network is tested in the precision that it was trained in.
    rgb = None if clips.rgb is None else clips.rgb.to(network.dtype)
    flow = None if clips.flow is None else clips.flow.to(network.dtype)
    with _keeping(present, stage) as kept, torch.enable_grad():
        logits = model(rgb, flow)
        streams = [value.mean(dim=1)[0] for value in logits if value is not None]
        fused = torch.stack(streams).mean(dim=0)
        chosen = int(fused.argmax()) if answer is None else answer
        gradients = torch.autograd.grad(fused[chosen], list(kept.values()))
    pairs = zip(kept.items(), gradients, strict=True)
    maps = {name: weighted(activation.detach(), gradient) for (name, activation), gradient in pairs}
    msra = network.variant == "msra"
    return Look(request.frames, maps, FIRST_STRIDE << stage, 2 if msra else 0, chosen)


def weighted(activation: Tensor, gradient: Tensor) -> Map:
    """Grad-CAM of (time, channels, rows, columns), with 1 at its largest value."""
    weights = gradient.double().mean(dim=(0, 2, 3), keepdim=True)
    heat = (activation.double() * weights).sum(dim=1).relu()
    most = float(heat.max())
    return np.asarray((heat / most if most > 0 else heat).cpu().numpy(), np.float32)


def _stage(trunk: Trunk, request: Request) -> int:
    """The last stage whose map is large enough to say where."""
    side = min(request.box.height, request.box.width)
    stages = len(trunk.options.stages)
    fine = [n for n in range(stages) if -(-side // (FIRST_STRIDE << n)) >= FEWEST_CELLS]
    return fine[-1] if fine else 0


@contextmanager
def _keeping(trunks: dict[str, Trunk], stage: int) -> Iterator[dict[str, Tensor]]:
    """While the block runs, the stage's rectified output of each stream is kept and wants a gradient."""
    kept: dict[str, Tensor] = {}
    handles, wanting = [], []
    for name, trunk in trunks.items():
        unit = list(trunk.stages())[stage][-1]

        def keep(_module: Any, _into: Any, out: Tensor, name: str = name) -> Tensor:
            kept[name] = (torch.relu(out) + JUST_ABOVE_ZERO).detach().requires_grad_()
            return kept[name]

        handles.append(unit.register_forward_hook(keep))
        wanting += [parameter for parameter in trunk.parameters() if parameter.requires_grad]
    for parameter in wanting:
        parameter.requires_grad_(False)
    try:
        yield kept
    finally:
        for handle in handles:
            handle.remove()
        for parameter in wanting:
            parameter.requires_grad_(True)


def clip_of(network: Network, row: VideoRow, number: int) -> Request:
    """The unflipped clip that a test of this network scores first."""
    evaluation = replace(network.evaluation, flips=False)
    requests: Sequence[Request] = protocol.test_requests(row, number, evaluation)
    return requests[0]
