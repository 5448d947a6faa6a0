"""What every rank looks like before hours are spent: hosts, GPUs, cores, versions, clocks,
and the network.

`findings` is a pure function of the ranks' reports; `run` gathers them and measures an all-reduce.
"""

import hashlib
import os
import platform
import re
import shutil
import socket
import time
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from hpc_stres.config.cluster import ClusterConfig
from hpc_stres.errors import UserError
from hpc_stres.parallel import reach
from hpc_stres.parallel.world import World, kept_environment
from hpc_stres.run.bad_nodes import (
    accuse,
    job_number,
    node_name,
    read_accusations,
    restart_count,
)
from hpc_stres.run.paths import RunPaths, write_json
from hpc_stres.run.provenance import package_versions
from hpc_stres.run.tables import text_table

ALL_REDUCE_BYTES, REPEATS = 64_000_000, 3
MAX_CLOCK_SPREAD_S, MIN_SHM_MIB = 5.0, 64
PACKAGE = Path(__file__).resolve().parent


@dataclass(frozen=True)
class RankReport:
    """One rank's view of the place where it was put."""

    rank: int
    host: str
    node: str
    gpu: str
    cores: int
    machine_cores: int
    shm_mib: int
    clock: float
    code: str
    versions: dict[str, str]


def code_digest(package: Path = PACKAGE) -> str:
    """Hash of the package's source files, to see that every node runs the same code."""
    digest = hashlib.sha256()
    for path in sorted(package.rglob("*")):
        if path.suffix in (".py", ".cpp", ".h", ".cu") and path.is_file():
            digest.update(str(path.relative_to(package)).encode() + b"\0" + path.read_bytes())
    return digest.hexdigest()[:12]


def report_of(world: World) -> RankReport:
    """This rank's report."""
    shm = shutil.disk_usage("/dev/shm").free >> 20 if Path("/dev/shm").is_dir() else 0
    versions = {"python": platform.python_version(), **package_versions()}
    cores = len(os.sched_getaffinity(0))
    # Several slurmd on one machine are several nodes with one host name.
    node = os.environ.get("SLURMD_NODENAME", socket.gethostname())
    return RankReport(
        world.rank, socket.gethostname(), node, _gpu_uuid(world), cores, os.cpu_count() or 1, shm, time.time(),
        code_digest(), versions,
    )  # fmt: skip


def _gpu_uuid(world: World) -> str:
    import torch

    if not torch.cuda.is_available():
        return ""
    properties = torch.cuda.get_device_properties(world.local_rank % torch.cuda.device_count())
    return str(getattr(properties, "uuid", "")) or f"{socket.gethostname()}/{world.local_rank}"


def findings(reports: Sequence[RankReport]) -> tuple[list[str], list[str]]:
    """What refuses the run, and what is only worth knowing."""
    refused: list[str] = []
    shared = defaultdict(list)
    for report in reports:
        if report.gpu:
            shared[report.gpu].append(report.rank)
    for gpu, ranks in shared.items():
        if len(ranks) > 1:
            refused.append(
                f"ranks {_some(ranks)} share the GPU {gpu}: ask for GPUs per node, one rank each"
            )
    if 0 < len([r for r in reports if r.gpu]) < len(reports):
        refused.append(
            f"ranks {_some([r.rank for r in reports if not r.gpu])} have no GPU while others have one"
        )
    lonely = [report.rank for report in reports if report.cores == 1 < report.machine_cores]
    if lonely:
        refused.append(f"ranks {_some(lonely)} have one core: set cluster.cpus_per_rank")
    refused += _differences(reports)
    known = []
    spread = max(r.clock for r in reports) - min(r.clock for r in reports)
    if spread > MAX_CLOCK_SPREAD_S:
        known.append(
            f"the nodes' clocks differ by {spread:.0f} s: file times and the wall clock mislead"
        )
    small = [report.rank for report in reports if report.shm_mib < MIN_SHM_MIB]
    if small:
        known.append(f"ranks {_some(small)} have under {MIN_SHM_MIB} MiB of /dev/shm")
    return refused, known


def _differences(reports: Sequence[RankReport]) -> list[str]:
    """Ranks whose code or packages are not those of the majority."""
    differences = []
    values = [{"the code of hpc_stres": r.code, **r.versions} for r in reports]
    for name in sorted({name for each in values for name in each}):
        here = [each.get(name, "not installed") for each in values]
        usual = Counter(here).most_common(1)[0][0]
        others = [(r.rank, value) for r, value in zip(reports, here, strict=True) if value != usual]
        if others:
            rank, value = others[0]
            more = f" (and {len(others) - 1} more ranks)" if len(others) > 1 else ""
            differences.append(
                f"{name} is {value} on rank {rank}, {usual} elsewhere{more}: use one environment on all nodes"
            )
    return differences


def _some(ranks: Sequence[int]) -> str:
    return ", ".join(map(str, ranks[:6])) + (" ..." if len(ranks) > 6 else "")


def transport(log: str) -> str:
    """How NCCL's channels go, from its INFO log: `NET/IB`, `NET/Socket`, `P2P`, `SHM`, with
    the number of each."""
    kinds = re.findall(r"via (NET/\w+|P2P|SHM|COLLNET)", log)
    return ", ".join(f"{kind} x {count}" for kind, count in sorted(Counter(kinds).items()))


def run(cluster: ClusterConfig, world: World, run_dir: Path | None) -> list[str]:
    """Gather, judge and measure on every rank; the lines to show on the first one. Refuses on all
    of them alike.

    The training that may follow in the same process finds everything as if this had not run:
    environment, process group, number of threads.
    """
    reach_each_other(cluster, world, run_dir)
    import torch

    from hpc_stres.parallel import process_groups

    threads = torch.get_num_threads()
    with kept_environment():
        try:
            reports, (refused, known), speed, how = _measure(world, run_dir)
        except BaseException:
            # A rank that failed leaves at once; leaving the group may wait for the others.
            if world.size == 1:
                process_groups.stop()
            raise
        finally:
            torch.set_num_threads(threads)
        process_groups.stop()
    if world.size > 1 and 0.0 < speed < cluster.min_all_reduce_gb_per_s:
        refused.append(
            f"an all-reduce of 64 MB runs at {speed:.2f} GB/s ({how}), under cluster.min_all_reduce_gb_per_s="
            f"{cluster.min_all_reduce_gb_per_s:g}"
        )
    if run_dir is not None and world.is_first:
        rows = [asdict(report) for report in reports]
        preflight = {
            "all_reduce_gb_per_s": speed,
            "transport": how,
            "refused": refused,
            "warnings": known,
            "ranks": rows,
        }
        write_json(RunPaths(run_dir).preflight, preflight)
        _accuse_nodes(run_dir, reports)
    if refused:
        raise UserError("these ranks should not train together:\n" + "\n".join(refused[:2]))
    return [
        _table(reports),
        *known,
        f"all-reduce of 64 MB over {world.size} ranks: {speed:.2f} GB/s ({how})",
    ]


def reach_each_other(cluster: ClusterConfig, world: World, run_dir: Path | None) -> None:
    """Names and connections first: they take a moment, and a process group that misses a
    rank takes minutes."""
    try:
        reach.check(world, node_name(), cluster.arrival_seconds)
    except reach.Unreachable as error:
        # Who is named first is the cause: what ranks see when the first one has left is not.
        if run_dir is not None and (job_number(), restart_count()) not in [
            (row.job, row.restart) for row in read_accusations(run_dir)
        ]:
            for node, kind, reason in error.blamed:
                accuse(run_dir, kind, reason, node)
        raise


def _accuse_nodes(run_dir: Path, reports: Sequence[RankReport]) -> None:
    """Nodes that have no GPU while others have one."""
    if 0 < len([r for r in reports if r.gpu]) < len(reports):
        for node in dict.fromkeys(report.node for report in reports if not report.gpu):
            accuse(run_dir, "gpu", "a rank found no GPU there while others have one", node)


def _measure(
    world: World, run_dir: Path | None
) -> tuple[list[RankReport], tuple[list[str], list[str]], float, str]:
    """Every rank's report, what is to be said of them, the all-reduce in GB a second, and how it
    went."""
    import torch.distributed as dist

    from hpc_stres.parallel import process_groups

    device = process_groups.choose_device(world)
    folder = None if run_dir is None else RunPaths(run_dir).logs / "preflight"
    log = _nccl_log(folder) if device.type == "cuda" and folder is not None else None
    process_groups.start(world, device)
    dist.barrier(group=process_groups.make_control_group())
    gathered: list[Any] = [None] * world.size
    dist.all_gather_object(gathered, report_of(world))
    judged = findings(gathered)
    speed = 0.0 if judged[0] else _all_reduce_gb_per_s(device, world)
    how = (
        transport(log.read_text("utf-8", "replace"))
        if log is not None and log.is_file()
        else device.type
    )
    return gathered, judged, speed, how


def _nccl_log(folder: Path) -> Path:
    """Ask NCCL to say what it connects, in a file of this process."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"nccl_{socket.gethostname()}_{os.getpid()}.log"
    os.environ.setdefault("NCCL_DEBUG", "INFO")
    os.environ.setdefault("NCCL_DEBUG_SUBSYS", "INIT,NET,GRAPH")
    os.environ["NCCL_DEBUG_FILE"] = str(path)
    return path


def _all_reduce_gb_per_s(device: Any, world: World) -> float:
    """Bytes over seconds of the best of a few all-reduces; the slowest rank counts."""
    import torch
    import torch.distributed as dist

    if world.size == 1:
        return 0.0
    data = torch.ones(ALL_REDUCE_BYTES // 4, device=device)
    best = float("inf")
    for _ in range(REPEATS):
        dist.barrier()
        started = time.perf_counter()
        dist.all_reduce(data)
        if device.type == "cuda":
            torch.cuda.synchronize()
        seconds = torch.tensor([time.perf_counter() - started], device=device)
        dist.all_reduce(seconds, dist.ReduceOp.MAX)
        best = min(best, float(seconds))
    return ALL_REDUCE_BYTES / best / 1e9


def _table(reports: Sequence[RankReport]) -> str:
    rows = [
        [
            str(r.rank),
            r.node,
            r.gpu or "-",
            f"{r.cores} of {r.machine_cores}",
            f"{r.shm_mib} MiB",
            r.code,
        ]
        for r in reports
    ]
    return text_table(["rank", "node", "GPU", "cores", "/dev/shm", "code"], rows)
