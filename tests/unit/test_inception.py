"""Inception-v3: the published counts and names, and the numbers of an independent construction."""

import pytest
import torch

from hpc_stres.models.resnet import run_units
from hpc_stres.models.trunks.inception import InceptionOptions, InceptionV3
from tests.unit.inception_oracle import Oracle


def count(module):
    return sum(parameter.numel() for parameter in module.parameters())


def lively(model):
    """Weights and statistics of which none is a one or a zero that hides a mistake."""
    generator = torch.Generator().manual_seed(3)
    for name, tensor in model.state_dict().items():
        if name.endswith("num_batches_tracked"):
            continue
        drawn = torch.rand(tensor.shape, generator=generator, dtype=torch.float64)
        if name.endswith("conv.weight"):
            tensor.copy_((drawn - 0.5) * (24.0 / tensor[0].numel()) ** 0.5)
        elif name.endswith(("bn.weight", "running_var")):
            tensor.copy_(drawn + 0.5)
        else:
            tensor.copy_(drawn - 0.5)
    return model


def scores(model, x):
    y = model.stem(x, None)
    maps = []
    for stage in model.stages():
        maps.append(y := run_units(list(stage), y, 1, None))
    second = model.AuxLogits(maps[1]) if model.options.auxiliary_head else None
    return model.fc(maps[-1].mean(dim=(2, 3))), second


@pytest.mark.parametrize(("auxiliary", "expected"), [(False, 23_834_568), (True, 27_161_264)])
def test_it_has_the_published_number_of_parameters(auxiliary, expected):
    with torch.device("meta"):
        model = InceptionV3(3, 1000, InceptionOptions(auxiliary_head=auxiliary))
    assert count(model) == expected
    assert model.features == 2048


@pytest.mark.parametrize(("width", "planes", "side"), [(4, 3, 299), (8, 20, 107), (64, 3, 75)])
def test_it_computes_what_an_independent_construction_does(width, planes, side):
    # The auxiliary head takes maps of 17 places or so, from 299 pixels.
    options = InceptionOptions(width=width, auxiliary_head=side == 299)
    model = lively(InceptionV3(planes, 7, options).double().eval())
    x = torch.randn(2, planes, side, side, generator=torch.Generator().manual_seed(1)).double()
    with torch.no_grad():
        given, second = scores(model, x)
        expected, expected_second = Oracle(model.state_dict())(x)
    assert given.abs().max() > 0.1
    torch.testing.assert_close(given, expected, rtol=1e-5, atol=1e-8)
    if side == 299:
        torch.testing.assert_close(second, expected_second, rtol=1e-5, atol=1e-8)


def test_frames_that_are_too_small_and_widths_that_do_not_divide_are_refused():
    model = InceptionV3(3, 4, InceptionOptions(width=4)).eval()
    with pytest.raises(ValueError, match="74x90 are too small for Inception-v3, which takes 75"):
        model.stem(torch.zeros(1, 3, 74, 90), None)
    with pytest.raises(ValueError, match="width is 6; Inception-v3 takes multiples of 4"):
        InceptionOptions(width=6)


def test_a_published_file_starts_either_stream():
    from hpc_stres.models import build_model
    from hpc_stres.models.weights import is_trunk, load_into, to_streams
    from hpc_stres.registry.model import TrunkSection

    published = lively(InceptionV3(3, 1000, InceptionOptions(width=4, auxiliary_head=True)))
    state = published.state_dict()
    assert is_trunk(state)
    trunk = TrunkSection(family="inception_v3", width=4)
    for stream in ("appearance", "motion"):
        model = build_model(stream, 5, **{stream: trunk})
        report = load_into(model, to_streams(state, [stream], "mirror", False), "file")
        assert report.replaced == [f"{stream}.fc.weight", f"{stream}.fc.bias"]
        assert not report.missing
        first = getattr(model, stream).Conv2d_1a_3x3.conv.weight
        order = (
            [0, 1, 2] if stream == "appearance" else [(0, 1, 2, 2, 1, 0)[n % 6] for n in range(20)]
        )
        assert torch.equal(first, published.Conv2d_1a_3x3.conv.weight[:, order])
