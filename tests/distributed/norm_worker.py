"""One rank of a world over which one norm group lies: compares its part with a single-process reference."""

import sys

import torch
import torch.distributed as dist

from hpc_stres.models import SubBatchNorm2d, assign_groups, defer_statistics, fold_statistics

VIDEOS, FRAMES, CHANNELS = 8, 2, 3


def layer(relu):
    torch.manual_seed(3)
    made = SubBatchNorm2d(CHANNELS, relu=relu).double()
    with torch.no_grad():
        made.weight.uniform_(0.5, 2)
        made.bias.uniform_(-1, 1)
    defer_statistics(made)
    return made


def run(made, x, owners, team):
    """Output, loss gradient and parameter gradients of some videos of a batch in two groups."""
    x = x.clone().requires_grad_()
    y = made(x, assign_groups(owners, 2, FRAMES, torch.float64, team))
    (
        y.sin() * torch.arange(1.0, 1 + y.shape[1], dtype=torch.float64)[:, None, None]
    ).sum().backward()
    return y.detach(), x.grad


def main():
    dist.init_process_group("gloo")
    # Contiguous tensors go through plain torch, channels-last ones through the fused kernels.
    compare(torch.contiguous_format, relu=False)
    compare(torch.channels_last, relu=False)
    compare(torch.channels_last, relu=True)
    dist.destroy_process_group()


def compare(order, relu):
    """This rank's part of two groups over all ranks against the whole of them on one."""
    rank, world = dist.get_rank(), dist.get_world_size()
    generator = torch.Generator().manual_seed(0)
    x = (
        torch.randn(VIDEOS * FRAMES, CHANNELS, 3, 2, generator=generator, dtype=torch.float64) * 2
        + 1
    )
    owners = torch.arange(VIDEOS) % 2
    reference, own = layer(relu), layer(relu)
    # The reference is plain torch in every case.
    y, grad = run(reference, x, owners, None)
    fold_statistics(reference, distributed=False)
    # Uneven cuts: the first rank takes one video more than an even share.
    edges = [0, *(1 + VIDEOS * (r + 1) // world for r in range(world - 1)), VIDEOS]
    mine = slice(edges[rank], edges[rank + 1])
    frames = slice(mine.start * FRAMES, mine.stop * FRAMES)
    own_y, own_grad = run(
        own, x[frames].contiguous(memory_format=order), owners[mine], dist.group.WORLD
    )
    for parameter in own.parameters():
        dist.all_reduce(parameter.grad)
    fold_statistics(own, distributed=True)
    pairs = [(own_y, y[frames]), (own_grad, grad[frames]), (own.weight.grad, reference.weight.grad)]
    pairs += [(own.bias.grad, reference.bias.grad), (own.running_mean, reference.running_mean)]
    pairs += [(own.running_var, reference.running_var)]
    for number, (found, expected) in enumerate(pairs):
        torch.testing.assert_close(
            found, expected, rtol=1e-11, atol=1e-11, msg=lambda m, n=number: f"pair {n}: {m}"
        )


if __name__ == "__main__":
    sys.exit(main())
