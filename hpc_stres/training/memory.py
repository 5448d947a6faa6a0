"""How many videos fit into a rank's memory at once: estimated from one dry pass, and tried
where that is safe."""

import os
from pathlib import Path

import torch
from torch import Tensor, nn

from hpc_stres.config.schema import Config
from hpc_stres.layout import group_sizes
from hpc_stres.models import assign_groups
from hpc_stres.models.building import DTYPES
from hpc_stres.models.dropout import DropoutShape, Masks
from hpc_stres.models.norm import statistics_dtype
from hpc_stres.phases.train import train_phase
from hpc_stres.run.large_pages import give_back_freed_memory

MEMORY_SHARE = 0.6


def smallest_share(global_batch: int, norm_group: int, world_size: int, unit: int = 1) -> int:
    """Fewest videos that a rank can take at once in any layout."""
    sizes = [size // unit for size in group_sizes(global_batch, norm_group)]
    teams = [t for t in range(1, world_size + 1) if world_size % t == 0 and t <= max(min(sizes), 1)]
    return -(-max(sizes) // max(teams)) * unit


def fitting_micro_batch(
    model: nn.Module, config: Config, name: str, device: torch.device, local_size: int
) -> int:
    """Videos that fit into this rank's memory, from the tensors that one video keeps for
    its backward pass."""
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


def try_micro_batch(
    model: nn.Module, config: Config, name: str, device: torch.device, videos: int
) -> bool:
    """Whether one forward and backward pass of so many videos fits; on a CPU nothing is tried, for
    there the kernel ends a process that takes too much instead of telling it."""
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


def dry_pass(
    model: nn.Module, config: Config, name: str, device: torch.device, videos: int
) -> Tensor:
    """A forward pass of empty clips; returns a sum to go back from."""
    phase, dtype = train_phase(config, name), DTYPES[config.training.precision]

    def empty(planes: int) -> Tensor:
        shape = (videos, phase.clips.times, planes, phase.side, phase.side)
        return torch.zeros(shape, dtype=dtype, device=device)

    rgb = empty(3) if phase.uses_rgb else None
    flow = empty(20) if phase.uses_flow else None
    if config.training.channels_last:
        rgb, flow = (_channels_last(clips) for clips in (rgb, flow))
    owners = torch.zeros(videos, dtype=torch.long, device=device)
    groups = assign_groups(owners, 1, phase.clips.times, statistics_dtype(dtype))
    with torch.autocast(
        device.type, torch.bfloat16, enabled=config.training.precision == "bfloat16"
    ):
        logits = model.train()(
            rgb, flow, groups, _nothing_dropped(model, videos, phase.clips.times, device)
        )
    return torch.stack([scores.float().sum() for scores in logits if scores is not None]).sum()


def _nothing_dropped(model: nn.Module, videos: int, frames: int, device: torch.device) -> Masks:
    """Dropout masks that keep everything: as large as real ones, and nothing random."""
    shapes: dict[str, DropoutShape] = model.dropout_shapes(frames)  # type: ignore[operator]
    return {
        stream: torch.ones(videos, shape.times, shape.features, dtype=torch.bool, device=device)
        for stream, shape in shapes.items()
    }


def _channels_last(clips: Tensor | None) -> Tensor | None:
    """Clips in the order in which the feed gives them."""
    if clips is None:
        return None
    return (
        clips.flatten(0, 1)
        .contiguous(memory_format=torch.channels_last)
        .unflatten(0, clips.shape[:2])
    )


def free_memory(device: torch.device, local_size: int) -> float:
    """Bytes that this rank may use: free memory of its GPU, or its share of the machine's
    or the cgroup's."""
    if device.type == "cuda":
        return float(torch.cuda.mem_get_info(device)[0])
    # What the dry pass has freed is kept for the training, but is no more taken.
    give_back_freed_memory()
    available = float(os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"))
    limit = Path("/sys/fs/cgroup/memory.max")
    if limit.is_file() and limit.read_text().strip().isdigit():
        used = int(Path("/sys/fs/cgroup/memory.current").read_text())
        available = min(available, float(int(limit.read_text()) - used))
    return available / local_size
