"""A finished phase for use elsewhere: a torch.export program, ONNX, and each stream under
torchvision's names.

    export.json          classes, inputs, preprocessing, protocol, checksums, differences
                         of both programs
    weights.safetensors  the network's own weights, from which
                         `hpc-stres predict --model` builds it again
    model.pt2            torch.export: (rgb), (flow) or (rgb, flow) to logits (batch, time,
                         classes) of each stream
    model.onnx           the same in ONNX; preprocessing and classes stand in its metadata
    STREAM.safetensors   a plain ResNet of that stream; temporal convolutions stay (out, in, 3, 1)
    hub/                 config.json, model.safetensors, README.md: a folder to share, which
                         `load_model` reads

Batch, time, height and width are free in both programs; export.json gives the least
time that they take.
"""

import io
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, NamedTuple

import torch

from hpc_stres.config.schema import Config
from hpc_stres.data.augment import Levels
from hpc_stres.errors import UserError
from hpc_stres.evaluation import hub, networks, programs
from hpc_stres.evaluation.finished import read_finished
from hpc_stres.evaluation.preprocessing import preprocessing
from hpc_stres.models.layer_table import DEPTHS
from hpc_stres.models.weights import STREAMS, read_state, save_state, to_torchvision
from hpc_stres.phases.train import TrainPhase, train_phase
from hpc_stres.run.paths import RunPaths, sha256, write_bytes, write_sealed
from hpc_stres.run.product import finished_weights
from hpc_stres.store.location import Settings, store_folder
from hpc_stres.store.reader import Store

# Compared on other batches, times and sizes than the program was traced with; of the largest logit.
TOLERANCE = 1e-4
ONNX = "model.onnx"


class Shapes(NamedTuple):
    """Pixels of one place of the last stage, and the clips (batch, chunks, height,
    width) to compare on."""

    place: int
    compared: list[tuple[int, int, int, int]]


def _shapes(config: Config, phase: TrainPhase) -> Shapes:
    """The store's own frames; several wide ones; and some so small that the last stage
    has a single place."""
    trunks = [phase.trunk(stream) for stream in phase.family.streams]
    place = 2 ** (max(len(trunk.stages or DEPTHS[trunk.depth or 50]) for trunk in trunks) + 1)
    least, (height, width) = phase.family.least_chunks, _frame_size(config)
    return Shapes(
        place, [(1, least, height, width), (3, least + 2, place, width + 6), (2, least + 1, 8, 8)]
    )


def export(config: Config, run_dir: Path, phase: str | None, folder: Path) -> dict[str, Any]:
    """Write all files; returns export.json's content. Refuses when a file does not compute what
    the network does."""
    name = phase or networks.best_phase(config.phases, run_dir)
    kind, paths = train_phase(config, name), RunPaths(run_dir)
    weights = finished_weights(paths, name)
    classes = read_finished(paths, name).classes
    model = networks.finished_model(config, name, weights, len(classes)).float().eval()
    state = read_state(weights)
    plain = {
        key: value.float() if value.is_floating_point() else value for key, value in state.items()
    }
    inputs = [i for i, used in (("rgb", kind.uses_rgb), ("flow", kind.uses_flow)) if used]
    outputs = [s for s in STREAMS if getattr(model, s) is not None]
    made: dict[str, Any] = {
        "phase": name, "classes": classes, "streams": inputs, "outputs": outputs,
        "levels": Levels.of_phase(kind)._asdict(), "settings": Settings.of(config.data).as_json(),
        "evaluation": asdict(config.evaluation), "labels": config.data.labels, "weights_sha256": sha256(weights),
        "sizes": networks.exported_sizes(config, name),
        "preprocessing": preprocessing(config, kind, inputs),
        "windows": dict(zip(("chunks", "spacing"), networks.clip_of(kind), strict=True)),
    }  # fmt: skip
    made |= _write_programs(
        programs.Flat(model, inputs), outputs, made, _shapes(config, kind), folder
    )
    save_state(plain, folder / networks.WEIGHTS)
    for stream in outputs:
        save_state(to_torchvision(plain, stream), folder / f"{stream}.safetensors")
    files = [
        networks.WEIGHTS,
        networks.PROGRAM,
        ONNX,
        *(f"{stream}.safetensors" for stream in outputs),
    ]
    made["files"] = {file: sha256(folder / file) for file in files}
    write_sealed(folder / networks.MANIFEST, made)
    hub.write_folder(config, paths, made, folder / networks.WEIGHTS, folder / "hub")
    return made


def _write_programs(
    flat: programs.Flat, outputs: Sequence[str], made: dict[str, Any], shapes: Shapes, folder: Path
) -> dict[str, Any]:
    """Both programs, each compared with the network on clips of several shapes."""
    program = programs.trace(flat, shapes.place)
    metadata = {key: made[key] for key in ("phase", "classes", "preprocessing", "outputs")}
    programs.save_onnx(program, flat.inputs, outputs, folder / ONNX, metadata)
    archive = io.BytesIO()
    programs.save(program, archive)
    write_bytes(folder / networks.PROGRAM, archive.getvalue())
    runs = {
        "torch.export": programs.open_program(archive),
        "onnx": programs.open_onnx(folder / ONNX, flat.inputs),
    }
    differences = dict.fromkeys(runs, 0.0)
    for shape in shapes.compared:
        clips = programs.make_clips(flat.inputs, shape)
        with torch.no_grad():
            expected = flat(*clips)
        for what, run in runs.items():
            differences[what] = max(differences[what], programs.difference(expected, run(clips)))
    for what, value in differences.items():
        if not value <= TOLERANCE:
            raise UserError(
                f"{folder}: the {what} program differs from the network by {value:.2g} of the largest logit"
            )
    return {
        "ranges": programs.ranges(program),
        "compared_on": [list(shape) for shape in shapes.compared],
        "difference": differences,
    }


def _frame_size(config: Config) -> tuple[int, int]:
    """Height and width of the store's first video, or 4:3 where there is no store."""
    if (store_folder(config) / "manifest.json").is_file():
        row = Store(store_folder(config)).rows[0]
        return row.height, row.width
    return config.data.short_side, config.data.short_side * 4 // 3 // 2 * 2
