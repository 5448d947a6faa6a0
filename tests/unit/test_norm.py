"""SubBatchNorm2d against torch's BatchNorm2d on each group, and its gradients against finite differences."""

import pytest
import torch
from torch import nn

from hpc_stres.models import SubBatchNorm2d, assign_groups, defer_statistics, fold_statistics
from hpc_stres.models.norm import statistics_dtype

CHANNELS = 6


def sample(count, frames=1, dtype=torch.float64):
    generator = torch.Generator().manual_seed(count)
    return torch.randn(count * frames, CHANNELS, 4, 3, generator=generator, dtype=dtype) * 3 + 5


def pair(group_size, **options):
    own, reference = (
        SubBatchNorm2d(CHANNELS, group_size, **options).double(),
        nn.BatchNorm2d(CHANNELS, momentum=0.05).double(),
    )
    with torch.no_grad():
        own.weight.uniform_(0.5, 2)
        own.bias.uniform_(-1, 1)
        reference.weight.copy_(own.weight)
        reference.bias.copy_(own.bias)
    return own, reference


@pytest.mark.parametrize(
    ("count", "group_size"), [(8, 4), (8, 8), (8, None), (7, 3), (10, 4), (5, 5), (9, 1)]
)
def test_each_interleaved_group_equals_torch(count, group_size):
    own, reference = pair(group_size)
    x = sample(count)
    y = own(x)
    groups = 1 if group_size is None else -(-count // group_size)
    means, variances, weights = [], [], []
    for group in range(groups):
        reference.reset_running_stats()
        torch.testing.assert_close(
            y[group::groups], reference(x[group::groups]), rtol=0, atol=1e-12
        )
        means.append((reference.running_mean / 0.05, len(x[group::groups])))
        variances.append(((reference.running_var - 0.95) / 0.05, len(x[group::groups])))
        weights.append(len(x[group::groups]))
    mean = sum(value * n for value, n in means) / count
    variance = sum(value * n for value, n in variances) / count
    torch.testing.assert_close(own.running_mean, 0.05 * mean)
    torch.testing.assert_close(own.running_var, 0.95 + 0.05 * variance)
    assert int(own.num_batches_tracked) == 1


def test_evaluation_equals_torch():
    own, reference = pair(None)
    x = sample(6)
    own(x)
    reference(x)
    torch.testing.assert_close(own.eval()(x), reference.eval()(x), rtol=0, atol=1e-12)


def test_names_are_those_of_batch_norm():
    assert list(SubBatchNorm2d(4, 2).state_dict()) == list(nn.BatchNorm2d(4).state_dict())
    nn.BatchNorm2d(4).load_state_dict(SubBatchNorm2d(4, 2).state_dict())


@pytest.mark.parametrize(("count", "group_size"), [(4, 2), (5, 2), (3, None)])
def test_gradients_equal_finite_differences(count, group_size):
    own, _ = pair(group_size)
    x = torch.randn(count, CHANNELS, 2, 2, dtype=torch.float64, requires_grad=True)

    def run(x, weight, bias):
        return torch.func.functional_call(own, {"weight": weight, "bias": bias}, (x,))

    assert torch.autograd.gradcheck(run, (x, own.weight, own.bias))


def test_frames_of_a_video_share_its_group():
    own, reference = pair(None)
    videos, frames, owners = 5, 3, torch.tensor([1, 0, 1, 1, 0])
    x = sample(videos, frames)
    y = own(x, assign_groups(owners, 2, frames, torch.float64)).unflatten(0, (videos, frames))
    for group in (0, 1):
        chosen = owners == group
        expected = reference(x.unflatten(0, (videos, frames))[chosen].flatten(0, 1))
        torch.testing.assert_close(y[chosen].flatten(0, 1), expected, rtol=0, atol=1e-12)


def test_sigma_average_follows_the_released_code():
    own, _ = pair(2, average="sigma")
    x = sample(5)
    own(x)
    moments = [
        (g.mean((0, 2, 3)), (g.var((0, 2, 3), correction=0) + 1e-5).sqrt(), len(g))
        for g in (x[0::3], x[1::3], x[2::3])
    ]
    sigma = sum(s * n for _, s, n in moments) / 5
    start = (torch.ones(CHANNELS, dtype=torch.float64) + 1e-5).sqrt()
    torch.testing.assert_close(own.running_var, (0.95 * start + 0.05 * sigma) ** 2 - 1e-5)
    variance, _ = pair(2, average="variance")
    variance(x)
    assert not torch.allclose(own.running_var, variance.running_var)


def test_statistics_fold_once_whatever_the_accumulation():
    at_once, _ = pair(None)
    in_parts = SubBatchNorm2d(CHANNELS).double()
    in_parts.load_state_dict(at_once.state_dict())
    defer_statistics(at_once)
    defer_statistics(in_parts)
    x, owners = sample(7), torch.arange(7) % 3
    at_once(x, assign_groups(owners, 3, 1, torch.float64))
    before = in_parts.running_mean.clone()
    for group in range(3):
        chosen = owners == group
        in_parts(
            x[chosen],
            assign_groups(torch.zeros(int(chosen.sum()), dtype=torch.long), 1, 1, torch.float64),
        )
    assert torch.equal(in_parts.running_mean, before), "nothing is folded before the step ends"
    for layer in (at_once, in_parts):
        fold_statistics(layer, distributed=False)
    torch.testing.assert_close(at_once.running_mean, in_parts.running_mean, rtol=1e-12, atol=0)
    torch.testing.assert_close(at_once.running_var, in_parts.running_var, rtol=1e-12, atol=0)
    assert int(in_parts.num_batches_tracked) == 1


def test_channels_last_is_kept_and_statistics_are_float32_under_bfloat16():
    own = SubBatchNorm2d(CHANNELS, 4)
    x = sample(8, dtype=torch.float32).to(memory_format=torch.channels_last)
    y = own(x)
    assert y.is_contiguous(memory_format=torch.channels_last)
    with torch.autocast("cpu", torch.bfloat16):
        low = own(x.bfloat16())
    assert low.dtype == torch.bfloat16
    assert own.running_mean.dtype == torch.float32
    assert statistics_dtype(torch.bfloat16) == torch.float32
    torch.testing.assert_close(low.float(), y, rtol=0.02, atol=0.05)


def test_large_means_do_not_cost_digits():
    own, _ = pair(None)
    x = sample(4).float() + 1000
    own.float()
    y = own(x)
    z = (y - own.bias[:, None, None]) / own.weight[:, None, None]
    torch.testing.assert_close(
        z.var((0, 2, 3), correction=0), torch.ones(CHANNELS), rtol=1e-3, atol=0
    )


def test_a_group_larger_than_the_batch_is_refused_by_its_numbers():
    with pytest.raises(ValueError, match=r"8 videos is larger than the batch of 5"):
        SubBatchNorm2d(CHANNELS, 8)(sample(5))
    with pytest.raises(ValueError, match="group_size is 0"):
        SubBatchNorm2d(CHANNELS, 0)
