"""One training step of ST-ResNet-50: against its convolutions alone, and beside
ResNet-50's images."""

from hpc_stres.tools.bench import network
from hpc_stres.tools.bench.figures import Figure
from hpc_stres.tools.bench.resnet50 import share_figures


def bench_step(threads: int, repeats: int) -> list[Figure]:
    """Both, in one run."""
    return [*network.bench_step(threads, repeats), *share_figures(repeats)]
