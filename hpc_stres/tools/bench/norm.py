"""Sub-batch normalisation against torch's BatchNorm."""

from hpc_stres.tools.bench.figures import Figure, interleaved, quotients, ratio


def bench_norm(threads: int, repeats: int) -> list[Figure]:
    """Sub-batch normalisation of four groups against torch's BatchNorm over everything, forwards and backwards."""
    import torch

    from hpc_stres.models import SubBatchNorm2d

    x = torch.randn(32, 64, 56, 56).to(memory_format=torch.channels_last).requires_grad_()

    def run(layer: torch.nn.Module) -> None:
        layer(x).sum().backward()

    own, reference = SubBatchNorm2d(64, 8), torch.nn.BatchNorm2d(64)
    ours, theirs = interleaved(repeats, lambda: run(own), lambda: run(reference))
    return [ratio("norm", "4 groups, speed against torch's BatchNorm", quotients(theirs, ours))]
