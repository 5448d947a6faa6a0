"""The process group, this rank's device, and the teams that share norm groups."""

import os
import socket
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist

from hpc_stres.bootstrap import World, process_group_environment
from hpc_stres.errors import UserError
from hpc_stres.layout import Layout

# Long until the first step (compilation, cold file systems), short from then on, so that a lost rank is noticed.
START_TIMEOUT = timedelta(minutes=10)
STEP_TIMEOUT = timedelta(minutes=3)


def choose_device(world: World) -> torch.device:
    """One GPU a rank where there are GPUs, else the CPU with its share of the cores."""
    if torch.cuda.is_available():
        device = torch.device("cuda", world.local_rank % torch.cuda.device_count())
        torch.cuda.set_device(device)
        return device
    if "OMP_NUM_THREADS" not in os.environ or world.source == "torchrun":
        cores = len(os.sched_getaffinity(0))
        torch.set_num_threads(max(1, cores // world.local_size))
    return torch.device("cpu")


def start(world: World, device: torch.device) -> None:
    """Join the process group; also for a world of one, so that there is one code path."""
    os.environ.update(process_group_environment(world))
    if world.size == 1:
        _choose_free_port()
    backend = "nccl" if device.type == "cuda" else "gloo"
    try:
        dist.init_process_group(backend, rank=world.rank, world_size=world.size, timeout=START_TIMEOUT)
    except (RuntimeError, ValueError) as error:
        raise UserError(
            f"rank {world.rank} of {world.size} could not join the others at {world.address}:{world.port} "
            f"({world.source}): {str(error).splitlines()[0]}\nSet MASTER_ADDR and MASTER_PORT if that address is wrong."
        ) from None


def _choose_free_port() -> None:
    """A lone process needs no agreed port; two on one machine must not meet."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        os.environ["MASTER_ADDR"], os.environ["MASTER_PORT"] = "127.0.0.1", str(probe.getsockname()[1])


def stop() -> None:
    """Leave the process group."""
    if dist.is_initialized():
        dist.destroy_process_group()


def shorten_timeouts(groups: list[Any]) -> None:
    """From the long start time-out to the short one."""
    for group in [None, *groups]:
        if group is not None or dist.is_initialized():
            dist.distributed_c10d._set_pg_timeout(STEP_TIMEOUT, group)


def make_teams(layout: Layout, world: World) -> Any:
    """The process group of this rank's team; None where a team is one rank. Every rank makes every group, in order."""
    if layout.team_size == 1:
        return None
    mine = None
    for ranks in layout.teams:
        group = dist.new_group(ranks)
        if world.rank in ranks:
            mine = group
    return mine


def agree(values: list[float], group: Any, largest: bool = True) -> list[float]:
    """The largest (or smallest) of each value over all ranks, through host memory: no device is made to wait."""
    tensor = torch.tensor(values, dtype=torch.float64)
    dist.all_reduce(tensor, dist.ReduceOp.MAX if largest else dist.ReduceOp.MIN, group=group)
    return [float(value) for value in tensor]


def make_control_group() -> Any:
    """A gloo group of everyone for small agreements between hosts."""
    return dist.new_group(backend="gloo")
