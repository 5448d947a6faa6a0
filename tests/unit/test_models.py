"""The networks: every published layer, size and wiring, each claim by a test that can fail."""

import pytest
import torch

from hpc_stres.models import build_model
from hpc_stres.models.interaction import Interaction
from hpc_stres.models.temporal import TemporalConv, fold_time, temporal_max_pool, unfold_time
from hpc_stres.models.weights import inflate_conv1
from hpc_stres.registry import MODELS

SMALL = {"stages": (2, 2, 2, 2), "width": 4}


def clips(videos=2, frames=5, side=32, dtype=torch.float64, width=None):
    generator = torch.Generator().manual_seed(0)
    shape = (side, width or side)
    rgb = torch.randn(videos, frames, 3, *shape, generator=generator, dtype=dtype)
    return rgb, torch.randn(videos, frames, 20, *shape, generator=generator, dtype=dtype)


def small(name, **options):
    torch.manual_seed(1)
    return build_model(name, 6, **SMALL, **options).double()


def count(module):
    return sum(parameter.numel() for parameter in module.parameters())


@pytest.mark.parametrize("depth", [50, 101])
def test_temporal_convolutions_add_5570560_parameters_a_stream(depth):
    with torch.device("meta"):
        joint = build_model("st_resnet", 101, depth)
        for stream in ("appearance", "motion"):
            single = build_model(stream, 101, depth)
            assert count(getattr(joint, stream)) - count(getattr(single, stream)) == 5_570_560


def test_resnet50_has_the_published_size():
    with torch.device("meta"):
        assert count(build_model("appearance", 1000)) == 25_557_032
        assert count(build_model("appearance", 1000, variant="msra")) == 25_557_032 + 64


def test_stm_adds_its_temporal_layers():
    with torch.device("meta"):
        stm, single = build_model("stm_resnet", 101), build_model("appearance", 101)
    assert count(stm.appearance) - count(single.appearance) == 1_044_480 + 960


def test_sixteen_temporal_layers_stand_in_unit_2_around_the_3x3():
    model = small("st_resnet")
    names = [name for name, module in model.named_modules() if isinstance(module, TemporalConv)]
    expected = [
        f"{s}.layer{n}.1.conv{c}"
        for s in ("appearance", "motion")
        for n in range(1, 5)
        for c in (1, 3)
    ]
    assert names == expected


@pytest.mark.parametrize(
    ("name", "frames", "left"),
    [("appearance", 1, 1), ("motion", 1, 1), ("st_resnet", 5, 5), ("st_resnet", 25, 25), ("st_resnet_star", 11, 4),
     ("st_resnet_star", 25, 11), ("stm_resnet", 5, 1), ("stm_resnet", 25, 21)],
)  # fmt: skip
def test_time_outputs(name, frames, left):
    output = small(name).eval()(*clips(1, frames))
    present = {stream: getattr(output, stream) for stream in ("appearance", "motion")}
    for stream, logits in present.items():
        if name in present and stream != name:
            assert logits is None
        else:
            assert logits.shape == (1, left, 6)


@pytest.mark.parametrize("stream", ["appearance", "motion"])
def test_temporal_receptive_field_is_5_9_13_17(stream):
    """Chunks that reach the middle one after conv2..conv5, by gradients."""
    model = small("st_resnet", direction="off").eval()
    trunk = getattr(model, stream)
    reached = []
    for stages in range(1, 5):
        rgb, flow = (clip.requires_grad_() for clip in clips(1, 21))
        x = trunk.stem((rgb if stream == "appearance" else flow).flatten(0, 1), None)
        from hpc_stres.models.resnet import run_units

        for stage in list(trunk.stages())[:stages]:
            x = run_units(list(stage), x, 21, None)
        clip = rgb if stream == "appearance" else flow
        (gradient,) = torch.autograd.grad(x[10].square().sum(), clip)
        reached.append(int((gradient.abs().sum((0, 2, 3, 4)) > 0).sum()))
    assert reached == [5, 9, 13, 17]


@pytest.mark.parametrize("padding", ["zeros", "replicate"])
def test_a_repeated_frame_gives_the_frame_networks_output_away_from_the_borders(padding):
    single = {stream: small(stream).eval() for stream in ("appearance", "motion")}
    joint = small("st_resnet", direction="off", temporal_padding=padding).eval()
    from hpc_stres.models.weights import load_into

    load_into(joint, single["appearance"].state_dict() | single["motion"].state_dict(), "streams")
    rgb, flow = (clip.expand(-1, 21, -1, -1, -1) for clip in clips(1, 1))
    output = joint(rgb, flow)
    for stream, logits in output._asdict().items():
        expected = getattr(single[stream](rgb[:, :1], flow[:, :1]), stream)[0, 0]
        torch.testing.assert_close(logits[0, 10], expected, rtol=1e-10, atol=1e-10)
        at_border = torch.allclose(logits[0, 0], expected, rtol=1e-3)
        assert at_border == (padding == "replicate")


def test_temporal_convolution_equals_conv3d():
    layer = TemporalConv(5, 7).double()
    x = torch.randn(2 * 6, 5, 3, 4, dtype=torch.float64)
    reference = torch.nn.functional.conv3d(
        x.unflatten(0, (2, 6)).transpose(1, 2), layer.weight[..., None], padding=(1, 0, 0)
    )
    torch.testing.assert_close(layer(x, 6), reference.transpose(1, 2).flatten(0, 1))
    torch.testing.assert_close(unfold_time(fold_time(x, 6), 3, 4), x, rtol=0, atol=0)


def test_fold_time_does_not_copy_channels_last():
    x = torch.randn(6, 5, 3, 4).to(memory_format=torch.channels_last)
    assert fold_time(x, 3).data_ptr() == x.data_ptr()


def test_stm_starts_as_identity():
    layer = TemporalConv(4, 4, "identity", bias=True)
    x = torch.randn(6, 4, 2, 2)
    assert torch.equal(layer(x, 3), x)


def test_temporal_max_pool_is_a_maximum_over_windows():
    x = torch.randn(2 * 11, 3, 2, 2)
    pooled = temporal_max_pool(x, 11, 5, 2).unflatten(0, (2, 4))
    expected = x.unflatten(0, (2, 11))[:, 2:7].amax(1)
    assert torch.equal(pooled[:, 1], expected)
    with pytest.raises(ValueError, match="4 time steps are too few for a temporal pool over 5"):
        temporal_max_pool(x[:8], 4, 5, 2)


def test_the_two_places_of_the_temporal_pool_differ():
    paper, released = (
        small("st_resnet_star", temporal_pool=p).eval() for p in ("after_pool5", "before_average")
    )
    released.load_state_dict(paper.state_dict())
    # Only a last map larger than one place tells the two apart.
    inputs = clips(1, 7, 64)
    assert not torch.allclose(paper(*inputs).appearance, released(*inputs).appearance)


def junction_inputs(model, name, unit, run):
    """What a unit's residual branch and shortcut read while `run` is called."""
    seen = {}
    hook = (
        getattr(model, name)
        .layer2[unit]
        .register_forward_pre_hook(lambda module, args: seen.update(into=args[0]))
    )
    run()
    hook.remove()
    return seen["into"]


def test_motion_joins_the_residual_branch_of_unit_2_only():
    model = small("st_resnet").eval()
    rgb, flow = clips()
    first = junction_inputs(model, "appearance", 1, lambda: model(rgb, flow))
    second = junction_inputs(model, "appearance", 1, lambda: model(rgb, 2 * flow))
    # The shortcut at the first junction does not feel the motion signal; layer 2's carries layer 1's residual.
    other = small("st_resnet").eval()
    stage1 = []
    hook = other.appearance.layer1[1].register_forward_pre_hook(
        lambda module, args: stage1.append(args[0])
    )
    other(rgb, flow)
    other(rgb, 2 * flow)
    hook.remove()
    assert torch.equal(stage1[0].skip, stage1[1].skip)
    assert not torch.allclose(stage1[0].branch, stage1[1].branch)
    assert not torch.allclose(first.branch, second.branch)


def test_the_junction_adds_rectified_motion_to_unrectified_appearance():
    model = small("st_resnet").eval()
    sums = {}
    for stream in ("appearance", "motion"):
        unit = getattr(model, stream).layer1[0]
        unit.register_forward_hook(
            lambda module, args, output, stream=stream: sums.setdefault(stream, output)
        )
    into = {}
    model.appearance.layer1[1].register_forward_pre_hook(
        lambda module, args: into.update(first=args[0])
    )
    model(*clips())
    torch.testing.assert_close(
        into["first"].branch, sums["appearance"] + sums["motion"].relu(), rtol=0, atol=0
    )
    torch.testing.assert_close(into["first"].skip, sums["appearance"].relu(), rtol=0, atol=0)
    assert (sums["appearance"] < 0).any()


def test_the_motion_stream_is_untouched_forwards_and_trained_by_both_losses():
    model = small("st_resnet")
    rgb, flow = clips()
    one, two = model(rgb, flow).motion, model(2 * rgb, flow).motion
    assert torch.equal(one, two)
    model.zero_grad()
    model(rgb, flow).appearance.sum().backward()
    assert model.motion.conv1.weight.grad.abs().sum() > 0
    assert model.motion.layer4[1].conv2.weight.grad is None, (
        "the last stage's unit 2 feeds no junction"
    )


@pytest.mark.parametrize("operation", ["add", "multiply"])
@pytest.mark.parametrize(
    "direction", ["motion_to_appearance", "appearance_to_motion", "both", "off"]
)
@pytest.mark.parametrize("placement", ["residual", "direct"])
def test_gradients_of_every_interaction_equal_finite_differences(operation, direction, placement):
    joined = Interaction(operation, direction, placement)
    tensors = [torch.randn(2, 3, 2, 2, dtype=torch.float64, requires_grad=True) for _ in range(2)]

    def run(a, m):
        into_a, into_m = joined(a, a.relu(), m, m.relu())
        return into_a.branch, into_a.skip, into_m.branch, into_m.skip

    assert torch.autograd.gradcheck(run, tensors)
    into_a, into_m = joined(tensors[0], tensors[0].relu(), tensors[1], tensors[1].relu())
    for into, own, other, receives in (
        (into_a, *tensors, direction in ("motion_to_appearance", "both")),
        (into_m, *tensors[::-1], direction in ("appearance_to_motion", "both")),
    ):
        if not receives:
            assert torch.equal(into.branch, own.relu())
            assert torch.equal(into.skip, own.relu())
            continue
        base = own if placement == "residual" else own.relu()
        expected = base + other.relu() if operation == "add" else base * other.relu()
        assert torch.equal(into.branch, expected)
        assert torch.equal(into.skip, own.relu() if placement == "residual" else expected)


def test_a_large_frame_gives_two_by_five_places():
    from hpc_stres.models.two_stream import spatial_average

    assert spatial_average(torch.zeros(1, 4, 8, 11)).shape == (1, 4, 2, 5)
    assert spatial_average(torch.zeros(1, 4, 7, 7)).shape == (1, 4, 1, 1)
    assert spatial_average(torch.zeros(1, 4, 4, 9)).shape == (1, 4, 1, 3)


def test_strides_and_pools_belong_to_the_variant():
    msra, torchvision = (small("appearance", variant=v) for v in ("msra", "torchvision"))
    assert (msra.appearance.layer2[0].conv1.stride, msra.appearance.layer2[0].conv2.stride) == (
        (2, 2),
        (1, 1),
    )
    assert (
        torchvision.appearance.layer2[0].conv1.stride,
        torchvision.appearance.layer2[0].conv2.stride,
    ) == (
        (1, 1),
        (2, 2),
    )
    assert msra.appearance.conv1.bias is not None
    assert torchvision.appearance.conv1.bias is None
    x = torch.zeros(1, 3, 224, 224, dtype=torch.float64)
    assert (
        msra.appearance.stem(x, None).shape[-1]
        == torchvision.appearance.stem(x, None).shape[-1]
        == 56
    )


def test_head_starts_small_and_without_bias():
    head = build_model("appearance", 101, stages=(2,), width=64).appearance.fc
    assert abs(float(head.weight.detach().std()) - 0.01) < 5e-4
    assert not head.bias.any()


def test_the_mean_of_logits_over_space_is_the_head_at_the_mean():
    model = small("appearance").eval()
    rgb, _ = clips(1, 1, 256, width=340)
    features = {}
    model.appearance.layer4[1].register_forward_hook(
        lambda module, args, output: features.update(last=output.relu())
    )
    logits = model(rgb, None).appearance[0, 0]
    assert features["last"].shape[-2:] == (8, 11)
    windows = [
        features["last"][..., y : y + 7, x : x + 7].mean((2, 3)) for y in range(2) for x in range(5)
    ]
    expected = torch.stack([model.appearance.fc(window)[0] for window in windows]).mean(0)
    torch.testing.assert_close(logits, expected)


@pytest.mark.parametrize("name", MODELS.names())
def test_recomputed_activations_change_nothing(name):
    inputs = clips(3, 5)
    gradients = []
    for recompute in (False, True):
        model = small(name, norm_group=2)
        model.activation_checkpointing = recompute
        sum(x.square().sum() for x in model(*inputs) if x is not None).backward()
        gradients.append([p.grad for p in model.parameters()])
    for one, two in zip(*gradients, strict=True):
        torch.testing.assert_close(one, two)


@pytest.mark.parametrize(
    ("rgb", "flow", "words"),
    [
        ((2, 5, 3, 32, 32), (2, 5, 18, 32, 32), r"flow must be .*20.*got \(2, 5, 18, 32, 32\)"),
        ((2, 5, 4, 32, 32), (2, 5, 20, 32, 32), r"rgb must be .*got \(2, 5, 4, 32, 32\)"),
        ((2, 5, 3, 32, 32), (2, 4, 20, 32, 32), r"\(2, 5, 32, 32\) and \(2, 4, 32, 32\)"),
        (
            (2, 4, 3, 32, 32),
            (2, 4, 20, 32, 32),
            "4 time steps are too few for the temporal pool over 5",
        ),
        (
            (2, 5, 3, 32, 32),
            (2, 5, 20, 32, 32),
            "norm group of 4 videos is larger than the batch of 2",
        ),
    ],
)
def test_bad_input_is_refused_by_its_numbers(rgb, flow, words):
    with pytest.raises(ValueError, match=words):
        small("st_resnet_star", norm_group=4)(torch.zeros(rgb).double(), torch.zeros(flow).double())


@pytest.mark.parametrize(
    ("arguments", "options", "words"),
    [(("resnet", 5), {}, "no model 'resnet'; there are"), (("motion", 5, 34), {}, "no depth 34"),
     (("motion", 5), {"widht": 3}, "no option 'widht'"), (("st_resnet", 5), {"stages": (1, 2)}, "second unit")],
)  # fmt: skip
def test_unknown_models_and_options_are_refused(arguments, options, words):
    with pytest.raises(ValueError, match=words):
        build_model(*arguments, **options)


def test_compiles_into_one_graph():
    model = build_model("st_resnet", 4, stages=(2,), width=4, norm_group=2)
    inputs = clips(4, 3, 16, torch.float32)
    expected = model(*inputs)
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(*inputs), expected)


def test_bfloat16_autocast_runs_and_statistics_stay_float32():
    model = build_model("st_resnet", 4, stages=(2, 2), width=8, norm_group=2)
    with torch.autocast("cpu", torch.bfloat16):
        output = model(*clips(4, 3, 32, torch.float32))
    output.appearance.float().sum().backward()
    assert all(buffer.dtype in (torch.float32, torch.long) for buffer in model.buffers())
    assert all(torch.isfinite(p.grad).all() for p in model.parameters() if p.grad is not None)


def test_conv1_inflation():
    weight = torch.randn(4, 3, 7, 7)
    mirror, mean = inflate_conv1(weight, "mirror", False), inflate_conv1(weight, "mean", True)
    order = [0, 1, 2, 2, 1, 0, 0, 1, 2, 2, 1, 0, 0, 1, 2, 2, 1, 0, 0, 1]
    assert all(
        torch.equal(mirror[:, plane], weight[:, source]) for plane, source in enumerate(order)
    )
    for plane in range(20):
        torch.testing.assert_close(mean[:, plane], weight.mean(1) * 3 / 20)
