"""A trained network ready to score clips, from a run folder or from what `export` wrote: the same contract for both."""

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from hpc_stres.config import Config, EvaluationConfig
from hpc_stres.configfile import load_run
from hpc_stres.data.shards import Store
from hpc_stres.data.storepath import Settings, store_folder
from hpc_stres.errors import ConfigError, UserError
from hpc_stres.models import Logits
from hpc_stres.models.weights import load_into, read_state
from hpc_stres.recipe import ordered_phases
from hpc_stres.runpaths import RunPaths
from hpc_stres.training import start

MANIFEST, PROGRAM = "export.json", "model.pt2"


@dataclass(frozen=True)
class Network:
    """What scoring a video needs to know."""

    name: str
    classes: list[str]
    settings: Settings
    variant: str
    streams: tuple[bool, bool]
    evaluation: EvaluationConfig
    dtype: torch.dtype
    call: Callable[[Tensor | None, Tensor | None], Logits]

    def __call__(self, rgb: Tensor | None, flow: Tensor | None) -> Logits:
        return self.call(rgb, flow)


def best_phase(config: Config, run_dir: Path) -> str:
    """The last finished phase of the recipe."""
    done = [name for name in ordered_phases(config.phases) if RunPaths(run_dir).phase(name).done.is_file()]
    if not done:
        raise UserError(f"{run_dir}: no finished phase\nTrain one first: hpc-stres train --phase ...")
    return done[-1]


def class_names(config: Config, run_dir: Path, name: str) -> list[str]:
    """Class names of a phase: from done.json, and for runs of older versions from the store."""
    done = json.loads(RunPaths(run_dir).phase(name).done.read_text(encoding="utf-8"))
    return list(done["classes"]) if "classes" in done else Store(store_folder(config)).classes


def from_run(run_dir: Path, phase: str | None, overrides: list[str], device: torch.device) -> Network:
    """The network of a finished phase."""
    config = load_run(run_dir, overrides)
    name = phase or best_phase(config, run_dir)
    config.phase(name)
    classes = class_names(config, run_dir, name) if RunPaths(run_dir).phase(name).done.is_file() else []
    weights = start.finished_weights(RunPaths(run_dir), name)
    model = start.build_phase_model(config, name, len(classes)).to(device).eval()
    load_into(model, read_state(weights), str(weights))
    kind = config.phases[name]
    return Network(
        name, classes, Settings.of(config.data), config.model.variant, (kind.uses_rgb, kind.uses_flow),
        config.evaluation, start.DTYPES[config.training.precision], model,
    )  # fmt: skip


def from_export(folder: Path, device: torch.device) -> Network:
    """The torch.export program of a folder that `hpc-stres export` wrote."""
    manifest = folder / MANIFEST
    if not manifest.is_file() or not (folder / PROGRAM).is_file():
        raise ConfigError(f"{folder}: neither a run folder nor an exported model\nGive a folder of either kind.")
    found: dict[str, Any] = json.loads(manifest.read_text(encoding="utf-8"))
    program = torch.export.load(folder / PROGRAM).module().to(device)
    uses_rgb, uses_flow = (stream in found["streams"] for stream in ("rgb", "flow"))

    def call(rgb: Tensor | None, flow: Tensor | None) -> Logits:
        clips = [clip for clip in (rgb, flow) if clip is not None]
        try:
            outputs = program(*clips)
        except (AssertionError, RuntimeError) as error:
            height, width = clips[0].shape[-2:]
            raise UserError(
                f"{folder}: the exported model does not take frames of {height}x{width} or so many chunks: "
                f"{str(error).splitlines()[0][:120]}"
            ) from None
        given = dict(zip(found["outputs"], outputs, strict=True))
        return Logits(given.get("appearance"), given.get("motion"))

    evaluation = EvaluationConfig(**found["evaluation"])
    settings = Settings.stored(found["settings"])
    return Network(
        found["phase"], found["classes"], settings, found["variant"], (uses_rgb, uses_flow), evaluation,
        torch.float32, call,
    )  # fmt: skip


def load(folder: Path, phase: str | None, overrides: list[str], device: torch.device) -> Network:
    """From whichever of the two a folder is."""
    if RunPaths(folder).config.is_file():
        return from_run(folder, phase, overrides, device)
    if phase or overrides:
        raise ConfigError(f"{folder}: not a run folder; --phase and --set are for run folders")
    return from_export(folder, device)
