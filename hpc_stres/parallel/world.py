"""Rank, world and address from Slurm, Open MPI or MPICH, torchrun, or a single process;
half-set is refused."""

import contextlib
import os
import re
import zlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace

from hpc_stres.errors import ConfigError

# Below Linux's ephemeral range (32768 and up), so that no outgoing connection sits on the port.
FIRST_PORT, PORT_COUNT = 12000, 16000


@dataclass(frozen=True)
class World:
    """Which of its peers this process is."""

    rank: int
    size: int
    local_rank: int
    local_size: int
    address: str
    port: int
    source: str
    # Whether other processes know the port: a launcher's agent that listens there, or ranks that
    # computed it as well.
    port_is_agreed: bool = True

    @property
    def is_first(self) -> bool:
        return self.rank == 0


def find_world(environment: Mapping[str, str] | None = None) -> World:
    """Read the launcher's variables; a launcher that was found but is incomplete is an error,
    never a lone process."""
    env = os.environ if environment is None else environment
    if any(name in env for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK")):
        world = _from_torchrun(env)
    elif "OMPI_COMM_WORLD_SIZE" in env or "PMI_SIZE" in env:
        world = _from_mpi(env)
    elif (
        "SLURM_PROCID" in env
        and "SLURM_STEP_ID" in env
        and env["SLURM_STEP_ID"] not in _BATCH_STEPS
    ):
        world = _from_slurm(env)
    else:
        world = World(0, 1, 0, 1, "127.0.0.1", _port(env), "single")
    _refuse_lone_tasks(world, env)
    if not 0 <= world.rank < world.size:
        raise ConfigError(
            f"rank {world.rank} of a world of {world.size} ({world.source}): the environment is wrong"
        )
    # One rank under a launcher starts like two: a port that the launcher gave is kept. A lone
    # process takes any port.
    agreed = world.size > 1 or (world.source != "single" and "MASTER_PORT" in env)
    return replace(world, port_is_agreed=agreed)


# The batch script of a job and an interactive shell are single processes although Slurm
# names its tasks.
_BATCH_STEPS = ("4294967291", "4294967290", "batch", "interactive")


def _refuse_lone_tasks(world: World, env: Mapping[str, str]) -> None:
    tasks = env.get("SLURM_NTASKS", "1")
    step = env.get("SLURM_STEP_NUM_TASKS", tasks)
    inside_step = env.get("SLURM_STEP_ID", "batch") not in _BATCH_STEPS
    if world.size == 1 and inside_step and tasks.isdigit() and int(tasks) > 1 and step != "1":
        raise ConfigError(
            f"SLURM_NTASKS is {tasks} but the group has a world of 1 ({world.source}): {tasks} copies would train "
            "apart.\nStart with `srun python -m hpc_stres train ...`, without setting RANK or WORLD_SIZE by hand."
        )


def _numbers(env: Mapping[str, str], names: list[str], launcher: str) -> list[int]:
    missing = [name for name in names if name not in env]
    if missing:
        present = [name for name in names if name in env]
        raise ConfigError(
            f"half-set environment: {launcher} sets {', '.join(names)}, but {', '.join(missing)} "
            f"{'is' if len(missing) == 1 else 'are'} missing beside {', '.join(present) or 'its size'}.\n"
            "Start all ranks with one launcher, or unset these variables to run alone."
        )
    try:
        return [int(env[name]) for name in names]
    except ValueError:
        shown = ", ".join(f"{name}={env[name]}" for name in names)
        raise ConfigError(f"{launcher}'s variables are not numbers: {shown}") from None


def _from_torchrun(env: Mapping[str, str]) -> World:
    rank, size, local_rank = _numbers(env, ["RANK", "WORLD_SIZE", "LOCAL_RANK"], "torchrun")
    if size > 1:
        _numbers(env, ["MASTER_PORT"], "torchrun")
        if "MASTER_ADDR" not in env:
            raise ConfigError(
                "half-set environment: MASTER_ADDR is missing beside RANK and WORLD_SIZE"
            )
    local_size = int(env.get("LOCAL_WORLD_SIZE", "1"))
    return World(
        rank,
        size,
        local_rank,
        local_size,
        env.get("MASTER_ADDR", "127.0.0.1"),
        _port(env),
        "torchrun",
    )


def _from_mpi(env: Mapping[str, str]) -> World:
    if "OMPI_COMM_WORLD_SIZE" in env:
        prefix, launcher = "OMPI_COMM_WORLD_", "Open MPI"
        names = [prefix + part for part in ("RANK", "SIZE", "LOCAL_RANK", "LOCAL_SIZE")]
        rank, size, local_rank, local_size = _numbers(env, names, launcher)
    else:
        launcher = "MPICH"
        rank, size = _numbers(env, ["PMI_RANK", "PMI_SIZE"], launcher)
        local_rank = int(env.get("MPI_LOCALRANKID", "0"))
        local_size = int(env.get("MPI_LOCALNRANKS", "1"))
    return World(
        rank,
        size,
        local_rank,
        local_size,
        _mpi_address(env, size, local_size),
        _port(env),
        launcher,
    )


def _mpi_address(env: Mapping[str, str], size: int, local_size: int) -> str:
    if "MASTER_ADDR" in env:
        return env["MASTER_ADDR"]
    if "SLURM_JOB_NODELIST" in env:
        return expand_nodes(env["SLURM_JOB_NODELIST"])[0]
    if size > local_size:
        raise ConfigError(
            "mpirun over several nodes: set MASTER_ADDR to the first node (mpirun -x MASTER_ADDR=NODE)"
        )
    return "127.0.0.1"


def _from_slurm(env: Mapping[str, str]) -> World:
    names = ["SLURM_PROCID", "SLURM_NTASKS", "SLURM_LOCALID"]
    rank, size, local_rank = _numbers({**env, "SLURM_NTASKS": _step_tasks(env)}, names, "srun")
    nodes = env.get("SLURM_STEP_NODELIST", env.get("SLURM_JOB_NODELIST", ""))
    if size > 1 and not nodes and "MASTER_ADDR" not in env:
        raise ConfigError(
            "half-set environment: SLURM_JOB_NODELIST is missing beside SLURM_PROCID and SLURM_NTASKS"
        )
    address = env.get("MASTER_ADDR") or (expand_nodes(nodes)[0] if nodes else "127.0.0.1")
    tasks = re.match(
        r"\d+", env.get("SLURM_STEP_TASKS_PER_NODE", env.get("SLURM_TASKS_PER_NODE", "1"))
    )
    return World(
        rank, size, local_rank, int(tasks.group()) if tasks else 1, address, _port(env), "srun"
    )


def _step_tasks(env: Mapping[str, str]) -> str:
    return env.get("SLURM_STEP_NUM_TASKS", env.get("SLURM_NTASKS", ""))


def _port(env: Mapping[str, str]) -> int:
    if env.get("MASTER_PORT", "").isdigit():
        return int(env["MASTER_PORT"])
    job = (
        env.get("SLURM_JOB_ID")
        or env.get("OMPI_MCA_ess_base_jobid")
        or env.get("PMIX_NAMESPACE")
        or str(os.getppid())
    )
    tag = "/".join([job, env.get("SLURM_RESTART_COUNT", "0"), env.get("SLURM_STEP_ID", "0")])
    return FIRST_PORT + zlib.crc32(tag.encode()) % PORT_COUNT


def expand_nodes(text: str) -> list[str]:
    """Host names of a Slurm node list: `a[01-03,7],b` is a01 a02 a03 a7 b."""
    nodes: list[str] = []
    for item in re.findall(r"[^,\[]+(?:\[[^\]]*\][^,\[]*)*", text):
        nodes += _expand_item(item)
    if not nodes:
        raise ConfigError(f"cannot read the node list {text!r}")
    return nodes


def _expand_item(item: str) -> list[str]:
    match = re.match(r"([^\[]*)\[([^\]]*)\](.*)", item)
    if not match:
        return [item]
    head, ranges, tail = match.groups()
    tails = _expand_item(tail)
    numbers: list[str] = []
    for part in ranges.split(","):
        low, _, high = part.partition("-")
        width = len(low)
        numbers += [f"{n:0{width}d}" for n in range(int(low), int(high or low) + 1)]
    return [head + number + rest for number in numbers for rest in tails]


@contextlib.contextmanager
def kept_environment() -> Iterator[None]:
    """Run a block and leave the environment's variables as they were before it, however it ends."""
    before = dict(os.environ)
    try:
        yield
    finally:
        for name in set(os.environ) - set(before):
            del os.environ[name]
        os.environ.update(before)


def process_group_environment(world: World) -> dict[str, str]:
    """Variables that torch.distributed and DeepSpeed read."""
    return {
        "RANK": str(world.rank),
        "WORLD_SIZE": str(world.size),
        "LOCAL_RANK": str(world.local_rank),
        "LOCAL_WORLD_SIZE": str(world.local_size),
        "MASTER_ADDR": world.address,
        "MASTER_PORT": str(world.port),
    }
