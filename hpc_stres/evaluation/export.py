"""A finished phase for use elsewhere: a torch.export program, ONNX, and each stream under torchvision's names.

    export.json          classes, inputs, protocol, checksums, and the differences between each file and the network
    weights.safetensors  the network's own weights, from which `hpc-stres predict --model` builds it again
    model.pt2            torch.export: (rgb), (flow) or (rgb, flow) to logits (1, time, classes) of each stream
    model.onnx           the same in ONNX
    STREAM.safetensors   a plain ResNet of that stream; temporal convolutions stay (out, in, 3, 1)

Time, height and width are free in both programs, within the ranges that export.json gives; one video at a time.
"""

import io
import logging
import warnings
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from hpc_stres.config.schema import Config
from hpc_stres.data.augment import Levels
from hpc_stres.errors import UserError
from hpc_stres.evaluation import networks
from hpc_stres.evaluation.finished import read_finished
from hpc_stres.models import TwoStream
from hpc_stres.models.resnet import DEPTHS
from hpc_stres.models.two_stream import POOL_SIDE
from hpc_stres.models.weights import STREAMS, read_state, save_state, to_torchvision
from hpc_stres.phases.train import TrainPhase, train_phase
from hpc_stres.run.paths import RunPaths, atomic_path, sha256, write_bytes, write_sealed
from hpc_stres.run.product import finished_weights
from hpc_stres.store.location import Settings, store_folder
from hpc_stres.store.reader import Store

PLANES = {"rgb": 3, "flow": 20}
# Compared on another time and size than the program was traced with; of the largest logit.
TOLERANCE = 1e-4
FREE_CHUNKS = 7


class Flat(nn.Module):
    """Tensors in, a tuple of tensors out."""

    def __init__(self, model: TwoStream, inputs: Sequence[str]) -> None:
        super().__init__()
        self.model, self.inputs = model, tuple(inputs)

    def forward(self, *clips: Tensor) -> tuple[Tensor, ...]:
        given = dict(zip(self.inputs, clips, strict=True))
        logits = self.model(given.get("rgb"), given.get("flow"))
        return tuple(stream for stream in logits if stream is not None)


def _stages(phase: TrainPhase) -> int:
    """Stages of the deepest trunk: its frames must be halved so often."""
    trunks = [phase.trunk(stream) for stream in phase.family.streams]
    return max(len(trunk.stages or DEPTHS[trunk.depth or 50]) for trunk in trunks)


def export(config: Config, run_dir: Path, phase: str | None, folder: Path) -> dict[str, Any]:
    """Write all files; returns export.json's content. Refuses when a file does not compute what the network does."""
    name = phase or networks.best_phase(config, run_dir)
    kind, paths = train_phase(config, name), RunPaths(run_dir)
    weights = finished_weights(paths, name)
    classes = read_finished(paths, name).classes
    model = networks.finished_model(config, name, weights, len(classes)).float().eval()
    state = read_state(weights)
    inputs = [i for i, used in (("rgb", kind.uses_rgb), ("flow", kind.uses_flow)) if used]
    outputs = [s for s in STREAMS if getattr(model, s) is not None]
    flat = Flat(model, inputs)
    size = _frame_size(config)
    chunks = config.evaluation.chunks
    traced = _clips(inputs, chunks, size)
    # A pool over 5 chunks that leaves a single time fixes the number of chunks; from 7 on it is free.
    longer = chunks + 2 if chunks >= FREE_CHUNKS else chunks
    other = _clips(inputs, longer, _other_size(size, _stages(kind)))
    program = _export_program(flat, traced)
    archive = io.BytesIO()
    torch.export.save(program, archive)
    write_bytes(folder / networks.PROGRAM, archive.getvalue())
    plain = {key: value.float() if value.is_floating_point() else value for key, value in state.items()}
    save_state(plain, folder / networks.WEIGHTS)
    _export_onnx(program, inputs, outputs, folder / "model.onnx")
    for stream in outputs:
        save_state(to_torchvision(plain, stream), folder / f"{stream}.safetensors")
    with torch.no_grad():
        expected = flat(*other)
    found: dict[str, Any] = {
        "phase": name, "classes": classes, "streams": inputs, "outputs": outputs,
        "levels": Levels.of_phase(kind)._asdict(), "settings": Settings.of(config.data).as_json(),
        "evaluation": asdict(config.evaluation), "weights_sha256": sha256(weights),
        "sizes": networks.exported_sizes(config, name),
        "ranges": {str(symbol): str(span) for symbol, span in dict(program.range_constraints).items()},
        "compared_on": {i: list(clip.shape) for i, clip in zip(inputs, other, strict=True)},
        "difference": {
            "torch.export": _difference(expected, _run_program(archive, other)),
            "onnx": _difference(expected, _run_onnx(folder / "model.onnx", inputs, other)),
        },
    }  # fmt: skip
    for what, value in found["difference"].items():
        if value > TOLERANCE:
            raise UserError(
                f"{folder}: the {what} program differs from the network by {value:.2g} of the largest logit"
            )
    files = [networks.WEIGHTS, networks.PROGRAM, "model.onnx", *(f"{stream}.safetensors" for stream in outputs)]
    found["files"] = {file: sha256(folder / file) for file in files}
    write_sealed(folder / networks.MANIFEST, found)
    return found


def _frame_size(config: Config) -> tuple[int, int]:
    """Height and width of the store's first video, or 4:3 where there is no store."""
    if (store_folder(config) / "manifest.json").is_file():
        row = Store(store_folder(config)).rows[0]
        return row.height, row.width
    return config.data.short_side, config.data.short_side * 4 // 3 // 2 * 2


def _other_size(size: tuple[int, int], stages: int) -> tuple[int, int]:
    """Another width to compare on. Under seven places the spatial average's window is fixed to what was traced."""
    stride = 2 ** (stages + 1)

    def window(width: int) -> int:
        return min(POOL_SIDE, -(-width // stride))

    height, width = size
    wider = (width * 5 // 4 // 2 * 2, width + 2, width - 2, width)
    return height, next(w for w in wider if window(w) == window(width))


def _clips(inputs: Sequence[str], chunks: int, size: tuple[int, int]) -> list[Tensor]:
    generator = torch.Generator().manual_seed(chunks)
    return [torch.randn(1, chunks, PLANES[i], *size, generator=generator) for i in inputs]


def _export_program(flat: Flat, clips: Sequence[Tensor]) -> torch.export.ExportedProgram:
    free = {1: torch.export.Dim.AUTO, 3: torch.export.Dim.AUTO, 4: torch.export.Dim.AUTO}
    with torch.no_grad():
        return torch.export.export(flat, tuple(clips), dynamic_shapes=((free,) * len(clips),))


def _export_onnx(
    program: torch.export.ExportedProgram, inputs: Sequence[str], outputs: Sequence[str], path: Path
) -> None:
    # The exporter tells its progress to stdout's log; only its errors matter here.
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)
    with atomic_path(path) as temporary, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(
            program, (), str(temporary), input_names=list(inputs), output_names=list(outputs), dynamo=True,
            external_data=False, verbose=False,
        )  # fmt: skip


def _run_program(archive: io.BytesIO, clips: Sequence[Tensor]) -> Sequence[Tensor]:
    # From memory, what was just made: a program in a file could have been replaced, and loading one runs its code.
    archive.seek(0)
    with torch.no_grad():
        return list(torch.export.load(archive).module()(*clips))


def _run_onnx(path: Path, inputs: Sequence[str], clips: Sequence[Tensor]) -> Sequence[Tensor]:
    import onnxruntime

    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    feed = {name: clip.numpy() for name, clip in zip(inputs, clips, strict=True)}
    return [torch.from_numpy(value) for value in session.run(None, feed)]


def _difference(expected: Sequence[Tensor], found: Sequence[Tensor]) -> float:
    """Largest difference over the largest logit."""
    scale = max(float(value.abs().max()) for value in expected) or 1.0
    return max(float((a - b).abs().max()) for a, b in zip(expected, found, strict=True)) / scale
