"""Training a phase of the tiny config inside the test's own process, which costs a second instead
of ten."""

from safetensors.torch import load_file

from hpc_stres.parallel.world import find_world
from tests.conftest import tiny_config


def train(data_root, run_dir, phase, *overrides, allowed=()):
    """Train to the end on one rank; returns the weights."""
    from hpc_stres.training.phase import train as train_phase

    config = tiny_config(data_root, *overrides)
    assert train_phase(config, phase, run_dir, find_world({}), allowed)
    return load_file(run_dir / "phases" / phase / "weights.safetensors")
