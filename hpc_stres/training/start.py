"""What a phase starts from: its network, its first weights, and the micro-batch that fits in memory."""

import os
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from hpc_stres.config import Config
from hpc_stres.layout import group_sizes
from hpc_stres.models import TwoStream, assign_groups, build_model
from hpc_stres.models.dropout import Masks
from hpc_stres.models.initialise import initialise
from hpc_stres.models.norm import statistics_dtype
from hpc_stres.models.weights import STREAMS, drop_other_streams, is_trunk, load_into, read_state, to_streams
from hpc_stres.runpaths import PhasePaths, RunPaths
from hpc_stres.training.product import checked_weights

DTYPES = {"float32": torch.float32, "bfloat16": torch.float32, "float64": torch.float64}
MEMORY_SHARE = 0.6


def build_phase_model(config: Config, name: str, num_classes: int) -> TwoStream:
    """The network of a phase, initialised from the run's seed: the same on every rank, device and
    layout."""
    phase = config.phase(name)
    options: dict[str, Any] = {"dropout": phase.dropout}
    if phase.model in ("st_resnet_star", "stm_resnet"):
        options["temporal_pool"] = phase.temporal_pool
    # A layer draws from torch's generator when it is made; that leaves no trace, and its numbers
    # are drawn anew.
    with torch.random.fork_rng(devices=[]):
        model = build_model(
            phase.model,
            num_classes,
            config.model.depth,
            config.model.width,
            phase.norm_group,
            stages=config.model.stages,
            variant=config.model.variant,
            temporal_padding=phase.temporal_padding,
            norm_average=phase.norm_average,
            **options,
        )
    initialise(model, config.seed, name)
    model.activation_checkpointing = config.training.activation_checkpointing
    return model.to(DTYPES[config.training.precision])


def load_first_weights(model: TwoStream, config: Config, name: str, paths: RunPaths) -> str:
    """Load what the phase starts from; returns one line that says what that was."""
    phase = config.phase(name)
    if phase.starts_from:
        state: dict[str, Tensor] = {}
        for parent in phase.starts_from:
            state |= read_state(finished_weights(paths, parent))
        report = load_into(model, drop_other_streams(state, model), " + ".join(phase.starts_from))
        return f"starts from {' + '.join(phase.starts_from)}: {report}"
    source = phase.weights or config.model.weights
    if source is None:
        return "starts from random weights"
    path = Path(source)
    # A finished phase vouches for its weights, whether its folder or the file in it is named.
    phase_paths = PhasePaths(path if path.is_dir() else path.parent)
    if path.is_dir() or (path == phase_paths.weights and phase_paths.done.exists()):
        path = checked_weights(phase_paths)
    state = read_state(path)
    if is_trunk(state):
        present = [stream for stream in STREAMS if getattr(model, stream) is not None]
        state = to_streams(state, present, phase.conv1_inflation, phase.conv1_rescale)
    return f"starts from {path}: {load_into(model, drop_other_streams(state, model), str(path))}"


def finished_weights(paths: RunPaths, parent: str) -> Path:
    """Weights of a phase that is done; refuses one that is missing, unfinished or changed since."""
    return checked_weights(paths.phase(parent))


def smallest_share(global_batch: int, norm_group: int, world_size: int) -> int:
    """Fewest videos that a rank can take at once in any layout."""
    sizes = group_sizes(global_batch, norm_group)
    teams = [t for t in range(1, world_size + 1) if world_size % t == 0 and t <= min(sizes)]
    return -(-max(sizes) // max(teams))


def fitting_micro_batch(model: nn.Module, config: Config, name: str, device: torch.device, local_size: int) -> int:
    """Videos that fit into this rank's memory, from the tensors that one video keeps for its backward pass."""
    kept = 0

    def count(tensor: Tensor) -> Tensor:
        nonlocal kept
        kept += tensor.numel() * tensor.element_size()
        return tensor

    before = {key: value.clone() for key, value in model.state_dict().items()}
    with torch.autograd.graph.saved_tensors_hooks(count, lambda tensor: tensor):
        dry_pass(model, config, name, device, 2)
    model.load_state_dict(before)
    # Gradients of activations come on top while the backward pass runs.
    per_video = 2 * kept / 2
    return max(1, int(MEMORY_SHARE * free_memory(device, local_size) / per_video))


def try_micro_batch(model: nn.Module, config: Config, name: str, device: torch.device, videos: int) -> bool:
    """Whether one forward and backward pass of so many videos fits; on a CPU nothing is tried, for there the kernel
    ends a process that takes too much instead of telling it."""
    if device.type != "cuda":
        return True
    before = {key: value.clone() for key, value in model.state_dict().items()}
    try:
        dry_pass(model, config, name, device, videos).backward()
    except torch.OutOfMemoryError:
        return False
    finally:
        model.zero_grad(set_to_none=True)
        model.load_state_dict(before)
        torch.cuda.empty_cache()
    return True


def dry_pass(model: nn.Module, config: Config, name: str, device: torch.device, videos: int) -> Tensor:
    """A forward pass of empty clips; returns a sum to go back from."""
    phase, side, dtype = config.phase(name), config.data.crop, DTYPES[config.training.precision]
    rgb = torch.zeros(videos, phase.chunks, 3, side, side, dtype=dtype, device=device) if phase.uses_rgb else None
    flow = torch.zeros(videos, phase.chunks, 20, side, side, dtype=dtype, device=device) if phase.uses_flow else None
    if config.training.channels_last:
        rgb, flow = (_channels_last(clips) for clips in (rgb, flow))
    owners = torch.zeros(videos, dtype=torch.long, device=device)
    groups = assign_groups(owners, 1, phase.chunks, statistics_dtype(dtype))
    with torch.autocast(device.type, torch.bfloat16, enabled=config.training.precision == "bfloat16"):
        logits = model.train()(rgb, flow, groups, _nothing_dropped(model, videos, phase.chunks, device))
    return torch.stack([scores.float().sum() for scores in logits if scores is not None]).sum()


def _nothing_dropped(model: nn.Module, videos: int, frames: int, device: torch.device) -> Masks:
    """Dropout masks that keep everything: as large as real ones, and nothing random."""
    assert isinstance(model, TwoStream)
    return {
        stream: torch.ones(videos, shape.times, shape.features, dtype=torch.bool, device=device)
        for stream, shape in model.dropout_shapes(frames).items()
    }


def _channels_last(clips: Tensor | None) -> Tensor | None:
    """Clips in the order in which the feed gives them."""
    if clips is None:
        return None
    return clips.flatten(0, 1).contiguous(memory_format=torch.channels_last).unflatten(0, clips.shape[:2])


def free_memory(device: torch.device, local_size: int) -> float:
    """Bytes that this rank may use: free memory of its GPU, or its share of the machine's or the cgroup's."""
    if device.type == "cuda":
        return float(torch.cuda.mem_get_info(device)[0])
    available = float(os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"))
    limit = Path("/sys/fs/cgroup/memory.max")
    if limit.is_file() and limit.read_text().strip().isdigit():
        used = int(Path("/sys/fs/cgroup/memory.current").read_text())
        available = min(available, float(int(limit.read_text()) - used))
    return available / local_size
