"""How jobs are asked for: the `cluster` section of the config, which profiles of configs/clusters fill."""

from dataclasses import dataclass, field
from typing import Literal

from hpc_stres.errors import check_field

# What the launcher tells jobs apart and chains them by.
OWN_SBATCH_OPTIONS = frozenset((
    "job-name", "comment", "dependency", "kill-on-invalid-dep", "output", "error", "open-mode", "signal", "array",
    "wait", "test-only", "parsable", "nodes", "ntasks", "ntasks-per-node",
))  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class ClusterConfig:
    """How jobs are asked for; one profile per cluster under configs/clusters."""

    scheduler: Literal["slurm", "local"] = "local"
    """slurm: sbatch through submitit; local: the same jobs as processes of this machine."""
    nodes: int = 1
    """Nodes of a training job."""
    gpus_per_node: int = 0
    """GPUs of a node, one rank each; 0: CPU ranks."""
    ranks_per_node: int | None = None
    """Ranks of a node where there is no GPU; none: 1."""
    cpus_per_rank: int | None = None
    """Cores of each rank; none: the scheduler's default, and on one machine the cores shared evenly."""
    memory_gib_per_node: int | None = None
    """Memory of a node in GiB."""
    prepare_memory_gib: int | None = None
    """Memory of the job that prepares the store in GiB; none: `memory_gib_per_node`."""
    minutes: int = 1440
    """Wall time of one job in minutes."""
    links: int = 1
    """Jobs chained with afterany inside one phase, for phases longer than the wall time."""
    partition: str | None = None
    """Slurm partition."""
    cpu_partition: str | None = None
    """Slurm partition of the job that prepares the store; none: that of the other jobs."""
    prepare_cpus: int | None = None
    """Cores of the job that prepares the store; none: as many as the ranks of one node together."""
    account: str | None = None
    """Slurm account."""
    qos: str | None = None
    """Slurm quality of service."""
    constraint: str | None = None
    """Slurm node constraint."""
    gpu_type: str | None = None
    """Type of GPU asked for, as in --gpus-per-node=TYPE:4; `hpc-stres plan` knows some types by name."""
    exclusive: bool = False
    """Ask for whole nodes."""
    continuation: Literal["chain", "requeue"] = "chain"
    """After a wall time that was too short: chain (`links` jobs queued at once), or requeue (the same job again)."""
    sbatch: dict[str, str | int | bool] = field(default_factory=dict)
    """Further sbatch options by their long names: {reservation: course, mail-type: END}; false leaves one out."""
    srun_args: tuple[str, ...] = ()
    """Further arguments of the srun in each job: ["--mpi=pmi2"]."""
    scheduler_seconds: float = 60.0
    """How long an answer of the scheduler may take before the command gives up."""
    modules: tuple[str, ...] = ()
    """Modules that a job loads first."""
    environment: dict[str, str | int] = field(default_factory=dict)
    """Variables of a job: NCCL's, MASTER_ADDR, proxies. Nothing of NCCL's is set unless it is given here."""
    setup: tuple[str, ...] = ()
    """Shell lines that run before a job's command, after modules and environment."""
    image: str | None = None
    """Apptainer image in which jobs run; none: the environment that submits."""
    binds: tuple[str, ...] = ()
    """Folders visible inside the image besides the repository, the run folder and the data, as SOURCE[:TARGET]."""
    preflight: bool = True
    """Check ranks, GPUs, versions and the network before the first phase of a submission trains (Slurm only)."""
    min_all_reduce_gb_per_s: float = 0.0
    """Slowest all-reduce of 64 MB that the preflight accepts, in GB a second."""
    arrival_seconds: float = 60.0
    """How long the preflight waits for all ranks to reach the first one before it names those that did not."""
    avoid_bad_nodes_hours: float = 24.0
    """How long a node that failed this run (nodes.jsonl) is left out of its later jobs; 0: none is left out."""
    restarts_without_checkpoint: int = 3
    """Attempts of one job in a row that may end without a new checkpoint; then its chain stops and says why."""

    def __post_init__(self) -> None:
        check_field(self.nodes >= 1, "nodes", "expected 1 or more")
        check_field(self.gpus_per_node >= 0, "gpus_per_node", "expected 0 or more")
        check_field(self.minutes >= 1, "minutes", "expected 1 or more")
        check_field(self.links >= 1, "links", "expected 1 or more")
        check_field(self.scheduler_seconds > 0, "scheduler_seconds", "expected a number above 0")
        taken = sorted(OWN_SBATCH_OPTIONS & {key.replace("_", "-") for key in self.sbatch})
        check_field(
            not taken, "sbatch", f"expected no {', '.join(taken)}: submit.py sets that itself"
        )
        check_field(
            self.min_all_reduce_gb_per_s >= 0, "min_all_reduce_gb_per_s", "expected 0 or more"
        )
        check_field(self.arrival_seconds > 0, "arrival_seconds", "expected a number above 0")
        check_field(self.avoid_bad_nodes_hours >= 0, "avoid_bad_nodes_hours", "expected 0 or more")
        check_field(
            self.restarts_without_checkpoint >= 1,
            "restarts_without_checkpoint",
            "expected 1 or more",
        )
        for key in (
            "ranks_per_node",
            "cpus_per_rank",
            "memory_gib_per_node",
            "prepare_cpus",
            "prepare_memory_gib",
        ):
            value = getattr(self, key)
            check_field(value is None or value >= 1, key, "expected 1 or more")

    @property
    def ranks_of_a_node(self) -> int:
        """One a GPU, or CPU ranks."""
        return self.gpus_per_node or self.ranks_per_node or 1

    @property
    def ranks(self) -> int:
        """Ranks of a training job."""
        return self.nodes * self.ranks_of_a_node
