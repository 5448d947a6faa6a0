"""How jobs are asked for: the `cluster` section of the config, which profiles of
configs/clusters fill."""

from dataclasses import dataclass, field
from typing import Literal

from hpc_stres.config.sbatch import wrong_sbatch, wrong_srun
from hpc_stres.errors import check_field


@dataclass(frozen=True, kw_only=True)
class PrepareJobConfig:
    """How the job that prepares the store is asked for, where it differs from the
    jobs that train."""

    partition: str | None = None
    """Slurm partition; none: that of the other jobs."""
    account: str | None = None
    """Slurm account; none: that of the other jobs."""
    qos: str | None = None
    """Slurm quality of service; none: that of the other jobs."""
    memory_gib: int | None = None
    """Memory of a node in GiB; none: `memory_gib_per_node`."""
    cores: int | None = None
    """Cores of a node; none: as many as the ranks of one node together."""
    minutes: int | None = None
    """Wall time in minutes; none: that of the other jobs."""
    nodes: int = 1
    """Nodes; more than one needs the launcher mpi."""
    launcher: Literal["processes", "mpi"] = "processes"
    """processes: one task whose processes share the cores; mpi: a rank a core,
    through srun or mpirun."""
    sbatch: dict[str, str | int | bool] = field(default_factory=dict)
    """Further sbatch options of this job alone, laid over `cluster.sbatch`;
    false leaves one out."""

    def __post_init__(self) -> None:
        for key in ("memory_gib", "cores", "minutes", "nodes"):
            value = getattr(self, key)
            check_field(value is None or value >= 1, key, "expected 1 or more")
        is_mpi = self.launcher == "mpi"
        check_field(self.nodes == 1 or is_mpi, "nodes", "expected 1, or launcher mpi")
        check_field(not is_mpi or self.cores is not None, "cores", "expected ranks a node for mpi")
        given = {
            "partition": self.partition, "account": self.account, "qos": self.qos, "minutes": True,
            "memory_gib_per_node": self.memory_gib, "cpus_per_rank": self.cores,
        }  # fmt: skip
        wrong = wrong_sbatch(self.sbatch, given)
        check_field(wrong is None, "sbatch", str(wrong))


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
    """Cores of each rank; none: the scheduler's default, and on one machine the
    cores shared evenly."""
    memory_gib_per_node: int | None = None
    """Memory of a node in GiB."""
    minutes: int = 1440
    """Wall time of one job in minutes."""
    links: int = 1
    """Jobs chained with afterany inside one phase, for phases longer than the wall time; each of
    them waits for the phases before as well."""
    partition: str | None = None
    """Slurm partition."""
    prepare: PrepareJobConfig = field(default_factory=PrepareJobConfig)
    """The job that prepares the store."""
    account: str | None = None
    """Slurm account."""
    qos: str | None = None
    """Slurm quality of service."""
    wckey: str | None = None
    """Slurm workload characterisation key; none: none is given."""
    constraint: str | None = None
    """Slurm node constraint."""
    gpu_type: str | None = None
    """Type of GPU asked for, as in --gpus-per-node=TYPE:4; `hpc-stres plan` knows
    some types by name."""
    gpus_by: Literal["gpus-per-node", "gres", "gpus-per-task"] = "gpus-per-node"
    """How GPUs are asked for: --gpus-per-node=4, --gres=gpu:4, or --gpus-per-task=1; ranks see
    all of their node."""
    exclusive: bool = False
    """Ask for whole nodes."""
    continuation: Literal["chain", "requeue"] = "chain"
    """After a wall time that was too short: chain (`links` jobs queued at once), or requeue (the
    same job again)."""
    sbatch: dict[str, str | int | bool] = field(default_factory=dict)
    """Further sbatch options by their long names: {reservation: course, mail-type: END}; false
    leaves one out. What is about GPUs is for jobs that have any."""
    srun_args: tuple[str, ...] = ()
    """Further arguments of the srun in each job: ["--mpi=pmi2"]."""
    scheduler_seconds: float = 60.0
    """How long an answer of the scheduler may take before the command gives up."""
    modules: tuple[str, ...] = ()
    """Modules that a job loads first."""
    environment: dict[str, str | int] = field(default_factory=dict)
    """Variables of a job: NCCL's, MASTER_ADDR, proxies. Nothing of NCCL's is set unless
    it is given here."""
    setup: tuple[str, ...] = ()
    """Shell lines that run before a job's command, after modules and environment."""
    image: str | None = None
    """Image in which jobs run; none: the environment that submits."""
    image_with: Literal["apptainer", "singularity", "pyxis"] = "apptainer"
    """What runs the image: apptainer or singularity in srun, or srun's own --container-image
    (enroot with pyxis)."""
    binds: tuple[str, ...] = ()
    """Folders visible inside the image besides the repository, the run folder and the data, as
    SOURCE[:TARGET]."""
    preflight: bool = True
    """Check ranks, GPUs, versions and the network before the first phases of a submission train, and
    that all ranks are there in every later job (Slurm only)."""
    min_all_reduce_gb_per_s: float = 0.0
    """Slowest all-reduce of 64 MB that the preflight accepts, in GB a second."""
    arrival_seconds: float = 60.0
    """How long the preflight waits for all ranks to reach the first one before it names
    those that did not."""
    avoid_bad_nodes_hours: float = 24.0
    """How long a node that failed this run (nodes.jsonl) is left out of its later jobs; 0:
    none is left out."""
    restarts_without_checkpoint: int = 3
    """Attempts of one job in a row that may end without a new checkpoint; then its chain
    stops and says why."""

    def __post_init__(self) -> None:
        check_field(self.nodes >= 1, "nodes", "expected 1 or more")
        check_field(self.gpus_per_node >= 0, "gpus_per_node", "expected 0 or more")
        check_field(self.minutes >= 1, "minutes", "expected 1 or more")
        check_field(self.links >= 1, "links", "expected 1 or more")
        check_field(self.scheduler_seconds > 0, "scheduler_seconds", "expected a number above 0")
        wrong = wrong_sbatch(self.sbatch, self.__dict__)
        check_field(wrong is None, "sbatch", str(wrong))
        wrong = wrong_srun(self.srun_args, self.image is not None and self.image_with == "pyxis")
        check_field(wrong is None, "srun_args", str(wrong))
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
