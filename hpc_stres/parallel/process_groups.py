"""The process group, this rank's device, and the teams that share norm groups."""

import os
import socket
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist

from hpc_stres.errors import UserError
from hpc_stres.layout import Layout
from hpc_stres.parallel.reach import refuse_unresolvable
from hpc_stres.parallel.world import World, process_group_environment


def choose_device(world: World) -> torch.device:
    """One GPU a rank where there are GPUs, else the CPU with its share of the cores."""
    if torch.cuda.is_available():
        device = torch.device("cuda", world.local_rank % torch.cuda.device_count())
        torch.cuda.set_device(device)
        return device
    torch.set_num_threads(cpu_threads(world))
    return torch.device("cpu")


def cpu_threads(world: World) -> int:
    """Threads of one rank: what our launcher says, what the user says, else an even
    share of the cores.

    torchrun sets OMP_NUM_THREADS to 1 by itself, which is nobody's wish.
    """
    named = os.environ.get("HPC_STRES_THREADS")
    if named is None and world.source != "torchrun":
        named = os.environ.get("OMP_NUM_THREADS")
    if named is not None and named.isdigit() and int(named) > 0:
        return int(named)
    return max(1, len(os.sched_getaffinity(0)) // world.local_size)


def start(world: World, device: torch.device, timeout_minutes: float = 10.0) -> None:
    """Join the process group; also for a world of one, so that there is one code path."""
    os.environ.update(process_group_environment(world))
    if not world.port_is_agreed:
        _choose_free_port()
    if world.size > 1:
        # The process group would look for a name that is not there until its time-out is over.
        refuse_unresolvable(world, os.environ.get("SLURMD_NODENAME") or socket.gethostname())
    backend = "nccl" if device.type == "cuda" else "gloo"
    try:
        timeout = timedelta(minutes=timeout_minutes)
        dist.init_process_group(backend, rank=world.rank, world_size=world.size, timeout=timeout)
    except (RuntimeError, ValueError) as error:
        raise UserError(
            f"rank {world.rank} of {world.size} could not join the others at {world.address}:{world.port} "
            f"({world.source}): {str(error).splitlines()[0]}\nSet MASTER_ADDR and MASTER_PORT if that address is wrong."
        ) from None


def _choose_free_port() -> None:
    """A lone process needs no agreed port; two on one machine must not meet."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        os.environ["MASTER_ADDR"], os.environ["MASTER_PORT"] = (
            "127.0.0.1",
            str(probe.getsockname()[1]),
        )


def stop() -> None:
    """Leave the process group."""
    if dist.is_initialized():
        dist.destroy_process_group()


def shorten_timeouts(groups: list[Any], timeout_minutes: float) -> None:
    """From the long time-out of the start to the short one of a step, for the world's
    group and these."""
    for group in [None, *(group for group in groups if group is not None)]:
        dist.distributed_c10d._set_pg_timeout(timedelta(minutes=timeout_minutes), group)


def make_teams(layout: Layout, world: World) -> Any:
    """The process group of this rank's team; None where a team is one rank. Every rank makes every
    group, in order."""
    if layout.team_size == 1:
        return None
    mine = None
    for ranks in layout.teams:
        group = dist.new_group(ranks)
        if world.rank in ranks:
            mine = group
    return mine


def agree(values: list[float], group: Any, largest: bool = True) -> list[float]:
    """The largest (or smallest) of each value over all ranks, through host memory: no device
    is made to wait."""
    tensor = torch.tensor(values, dtype=torch.float64)
    dist.all_reduce(tensor, dist.ReduceOp.MAX if largest else dist.ReduceOp.MIN, group=group)
    return [float(value) for value in tensor]


def describe_numerics(device: torch.device, precision: str) -> str:
    """Everything outside the config that can change digits, in one line for the log."""
    cudnn = torch.backends.cudnn
    return (
        f"{precision} on {device}, {torch.get_num_threads()} threads, torch {torch.__version__}, "
        f"tf32 products {torch.backends.cuda.matmul.allow_tf32}, tf32 convolutions {cudnn.allow_tf32}, "
        f"cuDNN benchmark {cudnn.benchmark}, deterministic {torch.are_deterministic_algorithms_enabled()}"
    )


def refuse_together(refusal: UserError | None, control: Any, what: str) -> None:
    """Every rank refuses when one does, so that none waits for a rank that has left. `what` is said
    by the others."""
    (refused,) = agree([float(refusal is not None)], control)
    if refusal is not None:
        raise refusal
    if refused:
        raise UserError(f"another rank refused {what}; its own message says why")


def is_same_everywhere(fingerprint: str, control: Any) -> bool:
    """Whether all ranks have this SHA-256."""
    # Four bytes at a time, which a float64 holds exactly.
    parts = [float(int(fingerprint[start : start + 8], 16)) for start in (0, 8, 16, 24)]
    return agree(parts, control) == agree(parts, control, largest=False)


def refuse_different_starts(fingerprint: str, control: Any) -> None:
    """Refuse ranks that begin with different weights, steps or videos, which a file system that
    lags behind can cause."""
    if not is_same_everywhere(fingerprint, control):
        raise UserError(
            "the ranks do not start from the same weights, step and videos: they read different files\n"
            "Start again when every node sees the same run folder; a network file system may lag by a minute."
        )


def make_control_group() -> Any:
    """A gloo group of everyone for small agreements between hosts."""
    return dist.new_group(backend="gloo")
