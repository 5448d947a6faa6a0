"""A network as programs for use elsewhere: torch.export and ONNX, for any batch, number of
chunks and frame size."""

import io
import json
import logging
import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.fx.experimental import _config as tracing

from hpc_stres.run.paths import atomic_path

PLANES = {"rgb": 3, "flow": 20}
# Axes of an input that are free: batch, time, height, width.
BATCH, TIME, HEIGHT, WIDTH = 0, 1, 3, 4
TRACED_BATCH, TRACED_CHUNKS = 2, 9
# Places of the last stage in the traced clip: more than the seven of the average's window.
TRACED_PLACES = (9, 10)


class Flat(nn.Module):
    """Tensors in, a tuple of tensors out."""

    def __init__(self, model: nn.Module, inputs: Sequence[str]) -> None:
        super().__init__()
        self.model, self.inputs = model, tuple(inputs)

    def forward(self, *clips: Tensor) -> tuple[Tensor, ...]:
        given = dict(zip(self.inputs, clips, strict=True))
        logits = self.model(given.get("rgb"), given.get("flow"))
        return tuple(stream for stream in logits if stream is not None)


def make_clips(inputs: Sequence[str], shape: tuple[int, int, int, int]) -> list[Tensor]:
    """Random clips of (batch, chunks, height, width), one an input."""
    batch, chunks, height, width = shape
    generator = torch.Generator().manual_seed(chunks)
    return [
        torch.randn(batch, chunks, PLANES[name], height, width, generator=generator)
        for name in inputs
    ]


def trace(flat: Flat, total_stride: int) -> torch.export.ExportedProgram:
    """The program of a network whose last stage has one place for so many pixels.

    While it traces, the exporter notes that some lengths were not 1 in the clip that it saw,
    and the program would refuse clips where they are. Nothing in it depends on that: these
    notes are removed, and whoever exports compares the program with the network on clips that
    they would have refused.
    """
    height, width = (places * total_stride for places in TRACED_PLACES)
    clips = make_clips(flat.inputs, (TRACED_BATCH, TRACED_CHUNKS, height, width))
    free = dict.fromkeys((BATCH, TIME, HEIGHT, WIDTH), torch.export.Dim.AUTO)
    with torch.no_grad(), tracing.patch(backed_size_oblivious=True):  # type: ignore[attr-defined]
        program = torch.export.export(
            flat, tuple(clips), dynamic_shapes=((free,) * len(clips),),
            prefer_deferred_runtime_asserts_over_guards=True,
        )  # fmt: skip
    graph = program.graph
    for node in list(graph.nodes):
        if node.op == "call_function" and node.target is torch.ops.aten._assert_scalar.default:
            graph.erase_node(node)
    graph.eliminate_dead_code()
    program.graph_module.recompile()
    names = {str(dim): axis for axis, dim in enumerate(_input_shape(program))}
    for symbol, span in program.range_constraints.items():
        if names.get(str(symbol)) in (BATCH, HEIGHT, WIDTH):
            program.range_constraints[symbol] = type(span)(1, span.upper)
    return program


def _input_shape(program: torch.export.ExportedProgram) -> Sequence[Any]:
    name = program.graph_signature.user_inputs[0]
    (node,) = (n for n in program.graph.nodes if n.op == "placeholder" and n.name == name)
    return node.meta["val"].shape


def ranges(program: torch.export.ExportedProgram) -> dict[str, str]:
    """The free axes and what they may be."""
    axes = {BATCH: "batch", TIME: "time", HEIGHT: "height", WIDTH: "width"}
    spans = {str(symbol): span for symbol, span in program.range_constraints.items()}
    shape = _input_shape(program)
    return {name: f"{spans[str(shape[axis])].lower} or more" for axis, name in axes.items()}


def save(program: torch.export.ExportedProgram, archive: io.BytesIO) -> None:
    """The program without the clips that it was traced with, which would be most of its bytes."""
    program._example_inputs = None
    torch.export.save(program, archive)


def save_onnx(
    program: torch.export.ExportedProgram, inputs: Sequence[str], outputs: Sequence[str], path: Path,
    metadata: Mapping[str, Any],
) -> None:  # fmt: skip
    """The program in ONNX; what a server needs to know stands in the file's metadata, as JSON."""
    import onnx

    # The exporter tells its progress to stdout's log; only its errors matter here.
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)
    with atomic_path(path) as temporary:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            torch.onnx.export(
                program, (), str(temporary), input_names=list(inputs), output_names=list(outputs), dynamo=True,
                external_data=False, verbose=False,
            )  # fmt: skip
        model = onnx.load(str(temporary))
        onnx.helper.set_model_props(
            model, {key: json.dumps(value) for key, value in metadata.items()}
        )
        onnx.save(model, str(temporary))


Run = Callable[[Sequence[Tensor]], Sequence[Tensor]]


def open_program(archive: io.BytesIO) -> Run:
    """The saved program, to be run on clips."""
    # From memory, what was just made: a program in a file could have been replaced, and loading
    # one runs its code.
    archive.seek(0)
    module = torch.export.load(archive).module()

    def run(clips: Sequence[Tensor]) -> Sequence[Tensor]:
        with torch.no_grad():
            return list(module(*clips))

    return run


def open_onnx(path: Path, inputs: Sequence[str]) -> Run:
    """The ONNX file, to be run on clips."""
    import onnxruntime

    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])

    def run(clips: Sequence[Tensor]) -> Sequence[Tensor]:
        feed = {name: clip.numpy() for name, clip in zip(inputs, clips, strict=True)}
        return [torch.from_numpy(value) for value in session.run(None, feed)]

    return run


def difference(expected: Sequence[Tensor], outputs: Sequence[Tensor]) -> float:
    """Largest difference over the largest logit."""
    scale = max(float(value.abs().max()) for value in expected) or 1.0
    return max(float((a - b).abs().max()) for a, b in zip(expected, outputs, strict=True)) / scale
