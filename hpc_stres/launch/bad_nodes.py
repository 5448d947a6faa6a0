"""Which nodes later jobs of a run leave out, and why: for whoever submits, and for whoever asks."""

from pathlib import Path

from hpc_stres.config.cluster import ClusterConfig
from hpc_stres.config.loading import load_resolved
from hpc_stres.errors import UserError
from hpc_stres.run.bad_nodes import Accusation, excluded_nodes
from hpc_stres.run.paths import RunPaths


def excluded(place: Path, cluster: ClusterConfig | None = None) -> list[str]:
    """Names for `sbatch --exclude`, of a run folder; empty where none is avoided. Without `cluster`
    the run's own settings say for how long."""
    return sorted(avoided(place, cluster))


def avoided(place: Path, cluster: ClusterConfig | None = None) -> dict[str, Accusation]:
    """The same, newest first, with what each did."""
    return excluded_nodes(place, (cluster or _settings(place)).avoid_bad_nodes_hours)


def _settings(place: Path) -> ClusterConfig:
    path = RunPaths(place).config
    try:
        return load_resolved(path).cluster if path.is_file() else ClusterConfig()
    except UserError:
        return ClusterConfig()  # whoever needs that file says what is wrong with it


def reasons(place: Path, cluster: ClusterConfig | None = None) -> list[str]:
    """A line for each node that is avoided."""
    hours = (cluster or _settings(place)).avoid_bad_nodes_hours
    return [
        f"node {node} is left out for {hours:g} h since {row.when} ({row.kind}, job {row.job or '-'}): {row.reason}; "
        "cluster.avoid_bad_nodes_hours=0 takes it again"
        for node, row in avoided(place, cluster).items()
    ]
