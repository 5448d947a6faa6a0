"""Where the network looks: Grad-CAM of each stream over time.

At the end of the last stages of each stream the activations A are kept with the gradient G of the
answer's log odds. Each cell's weight is its own gradient where that speaks for the answer, as in
LayerCAM (Jiang et al., TIP 2021): max(0, G) * A, summed over channels. Grad-CAM proper (Selvaraju
et al., ICCV 2017) gives a channel one weight over all of its cells; that is right at the last
stage alone, whose cells are large. The maps of the stages, each from 0 to 1, are averaged on the
frame, and so are those of a clip and its mirror image, which a test scores too. Half a cell of the
last stage is what they are smoothed by: where an answer comes from is known no finer, and a single
cell of a fine stage that stands out is no place.

Log odds, not the logit: they say what speaks for this class rather than another. They are
log p - log(1 - p) of the mean of logits over streams and time, which is what a test ranks.

Memory stays that of a test: parameters and inputs want no gradient, so that nothing is recorded up
to the first stage that is looked at, and a look takes few chunks.

Place: a cell of a stage sees the frame around one pixel. With padding at every stride-2 layer that
is cell * stride (+ 2 where the first pool has no padding), not the middle of a tile of the frame:
at stride 32 the difference is half a cell. Those are pixels of what the network was given, which may
be the frame at another size, or the middle of it alone: maps are those of the frame all the same.
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
from hpc_stres.data.requests import Box, Request
from hpc_stres.evaluation import protocol
from hpc_stres.evaluation.networks import Network, beside
from hpc_stres.models.resnet import Trunk
from hpc_stres.store.reader import VideoRow

Map = NDArray[np.float32]
FIRST_STRIDE = 4
# Stages that are looked at, and chunks of a look: enough for every temporal pool.
STAGES, CHUNKS = 3, 7
# Added to rectified activations: a ReLU that comes again lets the gradient of every cell through.
JUST_ABOVE_ZERO = 1e-30


@dataclass(frozen=True)
class Look:
    """Maps of one video for an answer: each stream's (time, height, width) of the
    frame, from 0 to 1."""

    frames: tuple[int, ...]
    maps: dict[str, Map]
    answer: int

    def peak(self, stream: str) -> tuple[int, int, int]:
        """Frame number, row and column of the largest value over time and place."""
        heat = self.maps[stream]
        time, row, column = np.unravel_index(int(heat.argmax()), heat.shape)
        return self.frames[int(time)], int(row), int(column)


def enlarge(
    cells: Map,
    stride: int,
    offset: int,
    height: int,
    width: int,
    given: tuple[int, int] | None = None,
) -> Map:
    """Cells at `offset + stride * number` pixels of the `given` height and width (of the frame
    where it was given as it is), linear between them, constant beyond the outer ones."""
    import cv2

    def numbers(pixels: int, given_pixels: int) -> NDArray[np.float32]:
        # Middles of pixels stay middles when a picture is resized.
        middles = (np.arange(pixels) + 0.5) * (given_pixels / pixels) - 0.5
        return np.asarray((middles - offset) / stride, np.float32)

    rows = numbers(height, given[0] if given else height)
    columns = numbers(width, given[1] if given else width)
    grid = np.meshgrid(columns, rows)
    big = cv2.remap(cells, grid[0], grid[1], cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)
    return np.asarray(big, np.float32)


def look(
    network: Network, reader: ClipReader, requests: Sequence[Request], answer: int | None = None
) -> Look:
    """Maps of a video's clips, on the box that they show, mirrored ones turned back; for a
    class, or for what the first clip says."""
    model: Any = network.call
    named = {name: getattr(model, name, None) for name in ("appearance", "motion")}
    trunks = {name: trunk for name, trunk in named.items() if isinstance(trunk, Trunk)}
    if len(trunks) < sum(trunk is not None for trunk in named.values()):
        # trunks of another family have cells elsewhere, and take frames of another size
        trunks = {}
    maps: dict[str, list[Map]] = {name: [] for name in trunks}
    for request in requests if trunks else ():
        answer, seen = _look_at_clip(network, trunks, reader, request, answer)
        for name, heat in seen.items():
            maps[name].append(heat[:, :, ::-1] if request.flip else heat)
    joined = {name: as_share(np.mean(heats, axis=0)) for name, heats in maps.items()}
    return Look(requests[0].frames, joined, -1 if answer is None else answer)


def _look_at_clip(
    network: Network,
    trunks: dict[str, Trunk],
    reader: ClipReader,
    request: Request,
    answer: int | None,
) -> tuple[int, dict[str, Map]]:
    clips, model = reader.read([request]), network.call
    rgb = None if clips.rgb is None else clips.rgb.to(network.dtype)
    flow = None if clips.flow is None else clips.flow.to(network.dtype)
    height, width = next(clip.shape[-2:] for clip in (rgb, flow) if clip is not None)
    given = (int(height), int(width))
    with _keeping(trunks) as kept, torch.enable_grad():
        logits = model(*beside(model, rgb, flow))
        fused = torch.stack(
            [value.double().mean(dim=1)[0] for value in logits if value is not None]
        ).mean(dim=0)
        answer = int(fused.argmax()) if answer is None else answer
        # A network for one class alone has no odds; a stage that no answer depends on
        # has no gradient.
        gradients = torch.autograd.grad(
            log_odds(fused, answer), list(kept.values()), allow_unused=True
        )
    sums: dict[str, list[Map]] = {name: [] for name in trunks}
    for ((name, stage), activation), gradient in zip(kept.items(), gradients, strict=True):
        if gradient is not None:
            cells = as_share(weighted(activation.detach(), gradient))
            offset = 2 if trunks[name].options.variant == "msra" else 0
            box, stride = request.box, FIRST_STRIDE << stage
            big = [enlarge(one, stride, offset, box.height, box.width, given) for one in cells]
            sums[name].append(np.stack(big))
    means = {name: np.mean(heats, axis=0) for name, heats in sums.items() if heats}
    pixels = request.box.height / given[0]
    last = {name: (FIRST_STRIDE << stage) * pixels for name, stage in kept}
    return answer, {name: smoothed(heat, last[name] / 2) for name, heat in means.items()}


def smoothed(heat: Map, pixels: float) -> Map:
    """Each time's map under a Gaussian of this deviation."""
    import cv2

    return np.stack([np.asarray(cv2.GaussianBlur(one, (0, 0), pixels), np.float32) for one in heat])


def log_odds(logits: Tensor, answer: int) -> Tensor:
    """log p - log(1 - p) of one class; its logit where it is the only one."""
    if len(logits) == 1:
        return logits[answer]
    others = torch.cat([logits[:answer], logits[answer + 1 :]])
    return logits[answer] - others.logsumexp(dim=0)


def weighted(activation: Tensor, gradient: Tensor) -> Map:
    """What speaks for the answer at each cell: (time, channels, rows, columns) to
    (time, rows, columns)."""
    heat = (activation.double() * gradient.double().relu()).sum(dim=1)
    return np.asarray(heat.cpu().numpy(), np.float32)


def as_share(heat: NDArray[Any]) -> Map:
    """With 1 at its largest value; nothing where there is nothing."""
    most = float(heat.max())
    return np.asarray(heat / most if most > 0 else heat, np.float32)


@contextmanager
def _keeping(trunks: dict[str, Trunk]) -> Iterator[dict[tuple[str, int], Tensor]]:
    """While the block runs, rectified outputs of the last stages are kept and have gradients;
    nothing else has."""
    kept: dict[tuple[str, int], Tensor] = {}
    handles, wanting = [], []
    for name, trunk in trunks.items():
        stages = list(trunk.stages())
        first = max(0, len(stages) - STAGES)
        for number in range(first, len(stages)):
            keep = _keeper(kept, (name, number), is_first=number == first)
            handles.append(stages[number][-1].register_forward_hook(keep))
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


def _keeper(kept: dict[tuple[str, int], Tensor], place: tuple[str, int], is_first: bool) -> Any:
    def keep(_module: Any, _into: Any, out: Tensor) -> Tensor:
        rectified = torch.relu(out) + JUST_ABOVE_ZERO
        kept[place] = rectified.detach().requires_grad_() if is_first else rectified
        return kept[place]

    return keep


def clips_of(network: Network, row: VideoRow, number: int) -> list[Request]:
    """The clips that a test of this network would score, of few chunks."""
    chunks = min(network.evaluation.chunks, CHUNKS)
    wanted = replace(network.evaluation, chunks=chunks)
    return protocol.test_requests(row, number, wanted, network.clips)


def on_frame(seen: Look, box: Box, height: int, width: int) -> Look:
    """The maps on the whole frame: nothing where the network was not shown it."""
    sides = ((box.top, height - box.top - box.height), (box.left, width - box.left - box.width))
    maps = {name: np.pad(heat, ((0, 0), *sides)) for name, heat in seen.maps.items()}
    return replace(seen, maps=maps)
