"""One rank of a world over whose ranks norm groups lie: compares its part with a single-process reference."""

import sys

import torch
import torch.distributed as dist

from hpc_stres.models import SubBatchNorm2d, assign_groups, defer_statistics, fold_statistics

VIDEOS, FRAMES, CHANNELS = 8, 2, 3
# Contiguous tensors go through plain torch, channels-last ones through the fused kernels.
WAYS = (
    (torch.contiguous_format, False),
    (torch.channels_last, False),
    (torch.channels_last, True),
)


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
    world = list(range(dist.get_world_size()))
    for way in WAYS:
        compare(*way, [world], dist.group.WORLD)
    if len(world) == 4:
        # Two teams at once, each with videos of its own; neither is made of neighbours.
        teams = [[0, 2], [1, 3]]
        groups = [dist.new_group(team) for team in teams]
        own = next(
            group for team, group in zip(teams, groups, strict=True) if dist.get_rank() in team
        )
        for way in WAYS:
            compare(*way, teams, own)
    dist.destroy_process_group()


def compare(order, relu, teams, team):
    """This rank's part against the whole on one: two norm groups over all ranks of each team."""
    reference, own = layer(relu), layer(relu)
    pairs = []
    for number, ranks in enumerate(teams):
        generator = torch.Generator().manual_seed(number)
        x = torch.randn(VIDEOS * FRAMES, CHANNELS, 3, 2, generator=generator, dtype=torch.float64)
        x = (number + 2) * x + 1 + number
        owners = torch.arange(VIDEOS) % 2
        # The reference is plain torch in every case, one team's videos after the other's.
        y, grad = run(reference, x, owners, None)
        if dist.get_rank() in ranks:
            mine = share(ranks.index(dist.get_rank()), len(ranks))
            frames = slice(mine.start * FRAMES, mine.stop * FRAMES)
            part = x[frames].contiguous(memory_format=order)
            own_y, own_grad = run(own, part, owners[mine], team)
            pairs += [(own_y, y[frames]), (own_grad, grad[frames])]
    fold_statistics(reference, distributed=False)
    for parameter in own.parameters():
        dist.all_reduce(parameter.grad)
    fold_statistics(own, distributed=True)
    pairs += [(own.weight.grad, reference.weight.grad), (own.bias.grad, reference.bias.grad)]
    pairs += [(own.running_mean, reference.running_mean), (own.running_var, reference.running_var)]
    for number, (ours, expected) in enumerate(pairs):
        torch.testing.assert_close(
            ours, expected, rtol=1e-11, atol=1e-11, msg=lambda m, n=number: f"pair {n}: {m}"
        )


def share(rank, world):
    """Which videos are this rank's. Uneven: the first takes one more than an even share."""
    edges = [0, *(1 + VIDEOS * (r + 1) // world for r in range(world - 1)), VIDEOS]
    return slice(edges[rank], edges[rank + 1])


if __name__ == "__main__":
    sys.exit(main())
