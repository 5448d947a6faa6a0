"""A trained network ready to score clips, from a run folder or from what `export` wrote: the same
contract for both.

Nothing is unpickled: an exported folder gives its sizes (export.json) and its numbers
(weights.safetensors), and the network is built by this package. The programs beside them are for
use elsewhere; loading them could run their code.
"""

import json
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from hpc_stres.config.loading import node_of, plain
from hpc_stres.config.recipe import Phases, trained_phases
from hpc_stres.config.schema import FLOW_STACK, Config, EvaluationConfig
from hpc_stres.config.values import build
from hpc_stres.data.augment import Levels
from hpc_stres.data.feed import ClipReader, FrameSource
from hpc_stres.errors import ConfigError, UserError
from hpc_stres.evaluation.finished import load_trained, read_finished
from hpc_stres.evaluation.protocol import TestClips
from hpc_stres.models import Logits, TwoStream
from hpc_stres.models.building import DTYPES, build_phase_model
from hpc_stres.models.weights import load_into, read_state
from hpc_stres.phases.train import TrainPhase, train_phase
from hpc_stres.run.paths import RunPaths, read_sealed, sha256, unsealed
from hpc_stres.run.product import finished_weights
from hpc_stres.run.starts import HUB_CONFIG, HUB_KEY, HUB_WEIGHTS
from hpc_stres.store.location import Settings

if TYPE_CHECKING:
    from hpc_stres.evaluation.predict import Prediction

MANIFEST, PROGRAM, WEIGHTS = "export.json", "model.pt2", "weights.safetensors"


@dataclass(frozen=True)
class Network:
    """What scoring a video needs to know."""

    name: str
    classes: list[str]
    settings: Settings
    levels: Levels
    streams: tuple[bool, bool]
    clips: TestClips
    evaluation: EvaluationConfig
    dtype: torch.dtype
    call: Callable[[Tensor | None, Tensor | None], Logits]
    weights: Path
    labels: str = "single"
    # How a clip was cut in training: its chunks, and the frames between two of them.
    chunks: int = 1
    spacing: int = 1

    def __call__(self, rgb: Tensor | None, flow: Tensor | None) -> Logits:
        return self.call(*beside(self.call, rgb, flow))

    def reader(self, source: FrameSource, device_id: int | None = None) -> ClipReader:
        """What reads test clips for it from a store or a prepared video, on a CPU or a GPU."""
        return ClipReader(
            source,
            self.clips.side,
            self.levels,
            streams=self.streams,
            device_id=device_id,
            most=512,
            scale=self.clips.scale,
        )

    def predict(self, video: "str | os.PathLike[str]", quick: bool = False) -> "Prediction":
        """What happens in a video file; see `hpc_stres.predict`."""
        from hpc_stres.evaluation.api import predict

        return predict(video, self, quick)


def beside(model: Any, *clips: Tensor | None) -> list[Tensor | None]:
    """Clips where a network is: a reader on the CPU may give those of a network on a GPU."""
    device = next(model.parameters()).device
    return [None if clip is None else clip.to(device) for clip in clips]


def best_phase(phases: Phases, run_dir: Path) -> str:
    """The last finished phase of the recipe that trained a network."""
    done = [name for name in trained_phases(phases) if RunPaths(run_dir).phase(name).done.is_file()]
    if not done:
        raise UserError(
            f"{run_dir}: no finished phase\nTrain one first: hpc-stres train --phase ..."
        )
    return done[-1]


def finished_model(config: Config, name: str, weights: Path, classes: int) -> TwoStream:
    """The network of a phase with all of its trained weights; refuses weights of other
    sizes or classes."""
    model = build_phase_model(config, name, classes)
    load_all(model, weights)
    return model


def load_all(model: TwoStream, weights: Path) -> None:
    """Load weights of which every one must fit: training may replace a
    classifier, a test may not."""
    report = load_into(model, read_state(weights), str(weights))
    missing = [key for key in report.missing if not key.endswith("num_batches_tracked")]
    wrong = [*report.replaced, *report.inflated, *report.summed, *missing]
    if wrong:
        raise UserError(
            f"{weights}: these are not the trained weights of this network: {wrong[0]} does not fit\n"
            "Check the number of classes, and model.* against the run's config.yaml."
        )


def from_run(
    run_dir: Path, phase: str | None, overrides: list[str], device: torch.device
) -> Network:
    """The network of a finished phase."""
    config = load_trained(run_dir, overrides)
    name = phase or best_phase(config.phases, run_dir)
    phase_options = train_phase(config, name)
    classes = read_finished(RunPaths(run_dir), name).classes
    weights = finished_weights(RunPaths(run_dir), name)
    model = finished_model(config, name, weights, len(classes)).to(device).eval()
    return Network(
        name, classes, Settings.of(config.data), Levels.of_phase(phase_options), phase_options.streams,
        TestClips.of(phase_options, config.data.crop),
        config.evaluation, DTYPES[config.training.precision], model, weights, config.data.labels,
        *clip_of(phase_options),
    )  # fmt: skip


def clip_of(phase: TrainPhase) -> tuple[int, int]:
    """Chunks of a phase's clips, and the frames between two of them: the middle of what it trained
    with. Segments, which lie as far apart as a video is long, get a flow stack's length."""
    spacing = sum(phase.clips.stride) // 2 if phase.clips.segments is None else FLOW_STACK
    return phase.clips.times, spacing


def exported_sizes(config: Config, name: str) -> dict[str, Any]:
    """What `from_export` builds the network from."""
    phase = train_phase(config, name)
    model = plain(phase.model)
    for stream in phase.family.streams:
        # Where the first weights were is nobody's business who gets the last ones.
        if stream in model:
            model[stream]["weights"] = None
    # The least phase that has these: steps and batches say nothing about a finished network.
    kept = ("chunks", "segments", "frame_grid", "crop")
    clips = {key: getattr(phase.clips, key) for key in kept}
    return {"model": model, "clips": clips, "stored_crop": config.data.crop}


def from_export(folder: Path, device: torch.device) -> Network:
    """The network of a folder that `hpc-stres export` wrote."""
    remedy = "Export the phase again: hpc-stres export --run-dir D --out DIR"
    manifest, weights = folder / MANIFEST, folder / WEIGHTS
    if not manifest.is_file() and (folder / HUB_CONFIG).is_file():
        manifest, weights = folder / HUB_CONFIG, folder / HUB_WEIGHTS
        export = _read_hub_config(manifest, remedy)
    elif not manifest.is_file():
        raise ConfigError(
            f"{folder}: neither a run folder nor an exported model\nGive a folder of either kind."
        )
    else:
        export = read_sealed(manifest, remedy)
    if "sizes" not in export or not weights.is_file():
        raise UserError(f"{folder}: exported by version 0.2, without {WEIGHTS}\n{remedy}")
    try:
        return _built(export, weights, device, str(manifest))
    except (KeyError, TypeError) as error:
        raise UserError(f"{manifest}: written by another version: {error}\n{remedy}") from None


def _read_hub_config(path: Path, remedy: str) -> dict[str, Any]:
    try:
        value = json.loads(path.read_bytes().decode("utf-8"))
        inside = value[HUB_KEY]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(
            f"{path}: not the config.json of an exported model: {error}\n{remedy}"
        ) from None
    return unsealed(inside, str(path), remedy)


def _built(export: dict[str, Any], weights: Path, device: torch.device, origin: str) -> Network:
    """The network that export.json describes, with the weights beside it."""
    if sha256(weights) != export["files"][WEIGHTS]:
        raise UserError(f"{weights}: damaged: its checksum is wrong\nExport the phase again.")
    sizes, name = export["sizes"], export["phase"]
    # What an older export lacks says that crops were as large as the network's input.
    crop = sizes.pop("stored_crop", None)
    phase: TrainPhase = build(TrainPhase, node_of(sizes, origin), f"phases.{name}")
    evaluation: EvaluationConfig = build(
        EvaluationConfig, node_of(export["evaluation"], origin), "evaluation"
    )
    config = Config(phases={name: phase}, evaluation=evaluation)
    model = finished_model(config, name, weights, len(export["classes"])).to(device).eval()
    clips = TestClips.of(train_phase(config, name), crop or train_phase(config, name).side)
    return Network(
        name, export["classes"], Settings.stored(export["settings"]),
        Levels.of_phase(train_phase(config, name)), phase.streams, clips, evaluation, torch.float32, model, weights,
        export.get("labels", "single"), export["windows"]["chunks"], export["windows"]["spacing"],
    )  # fmt: skip


def load(folder: Path, phase: str | None, overrides: list[str], device: torch.device) -> Network:
    """From whichever of the two a folder is."""
    if RunPaths(folder).config.is_file():
        return from_run(folder, phase, overrides, device)
    if phase or overrides:
        raise ConfigError(f"{folder}: not a run folder; --phase and --set are for run folders")
    return from_export(folder, device)
