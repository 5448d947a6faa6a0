"""STFN's modules: every kernel, padding, merge, operator and direction against plain torch."""

import pytest
import torch
from torch.nn import functional

from hpc_stres.models.resnet import Trunk, TrunkOptions
from hpc_stres.models.sequence_fusion import FusionBlock, join
from hpc_stres.models.stfn import JoinOptions, Stfn
from hpc_stres.models.temporal_inception import (
    SequenceConv,
    SequenceOptions,
    TemporalInception,
    shared_out,
)
from hpc_stres.models.trunks.inception import InceptionOptions, InceptionV3

SMALL = TrunkOptions(stages=(1, 1), width=4)


def sequence(videos=3, segments=5, channels=10):
    generator = torch.Generator().manual_seed(4)
    shape = (videos * segments, channels, 1, 1)
    return torch.rand(shape, generator=generator, dtype=torch.float64)


def network(options=None, trunk=SMALL, classes=6, **dropout):
    torch.manual_seed(2)
    model = Stfn(classes, Trunk(3, classes, trunk), Trunk(20, classes, trunk),
                 options or JoinOptions(), dropout)  # fmt: skip
    model = model.double()
    for name, tensor in model.state_dict().items():
        if name.endswith(("running_mean", "bias")):
            tensor.copy_(torch.randn_like(tensor) * 0.3)
    return model


def clips(videos=2, segments=3, side=16):
    generator = torch.Generator().manual_seed(5)
    return tuple(
        torch.randn(videos, segments, planes, side, side, generator=generator, dtype=torch.float64)
        for planes in (3, 20)
    )


@pytest.mark.parametrize("kernel", [1, 2, 3, 4, 5, 6])
@pytest.mark.parametrize("even", ["after", "before"])
def test_a_kernel_keeps_the_length_and_an_even_one_looks_one_step_further(kernel, even):
    layer = SequenceConv(10, 4, kernel, even).double()
    x = sequence()
    given = layer(x, 5).flatten(1).unflatten(0, (3, 5))
    short, long = (kernel - 1) // 2, kernel // 2
    sides = (short, long) if even == "after" else (long, short)
    padded = functional.pad(x.flatten(1).unflatten(0, (3, 5)).transpose(1, 2), sides)
    expected = functional.conv1d(padded, layer.weight[..., 0]).transpose(1, 2)
    torch.testing.assert_close(given, expected)
    assert given.shape == (3, 5, 4)


@pytest.mark.parametrize("merge", ["concatenate", "sum"])
@pytest.mark.parametrize("kernels", [(2, 3, 4, 5), (3,), (2, 5, 7)])
def test_the_module_is_its_input_plus_its_branches(merge, kernels):
    module = TemporalInception(10, SequenceOptions(kernels=kernels, merge=merge)).double()
    x = sequence()
    module.train()
    given = module(x, 5)
    outputs = []
    for branch in module.branches:
        y = branch.conv(x, 5).flatten(1)
        y = (y - y.mean(0)) / torch.sqrt(y.var(0, unbiased=False) + 1e-5)
        outputs.append(y.clamp(min=0))
    added = torch.cat(outputs, 1) if merge == "concatenate" else sum(outputs)
    torch.testing.assert_close(given.flatten(1), x.flatten(1) + added)
    assert bool((given >= 0).all())


def test_channels_are_shared_out_evenly_and_too_few_are_refused():
    assert shared_out(10, 4) == [3, 3, 2, 2]
    assert shared_out(2048, 4) == [512] * 4
    with pytest.raises(ValueError, match="3 channels are too few to share among 4 kernels"):
        TemporalInception(3, SequenceOptions())


@pytest.mark.parametrize("operation", ["average", "maximum", "multiply"])
def test_operators_are_symmetric_and_what_they_say(operation):
    one, other = sequence(), sequence().flip(0)
    expected = {
        "average": (one + other) / 2,
        "maximum": one.maximum(other),
        "multiply": one * other,
    }
    assert torch.equal(join(one, other, operation), expected[operation])
    assert torch.equal(join(one, other, operation), join(other, one, operation))


@pytest.mark.parametrize("direction", ["both", "motion_to_appearance", "appearance_to_motion"])
def test_only_a_receiver_feels_the_other_stream(direction):
    block = FusionBlock(10, "average", direction, SequenceOptions()).double().eval()
    one, other = sequence(), sequence().flip(0)
    a, m = block(one, other, 5)
    a_changed, m_changed = block(one * 2, other, 5)
    assert torch.equal(m, m_changed) == (direction == "motion_to_appearance")
    a_changed, m_changed = block(one, other * 2, 5)
    assert torch.equal(a, a_changed) == (direction == "appearance_to_motion")
    assert m_changed.shape == one.shape


def test_features_of_frozen_trunks_give_what_the_clips_give():
    frozen = network(JoinOptions(trunks_frozen=True, blocks=1))
    rgb, flow = clips(3, 5)
    a = frozen.features_of(frozen.appearance, rgb, None).flatten(1).unflatten(0, (3, 5))
    m = frozen.features_of(frozen.motion, flow, None).flatten(1).unflatten(0, (3, 5))
    for model in (frozen.train(), frozen.eval()):
        end_to_end, cached = model(rgb, flow), model(a, m)
        for one, other in zip(end_to_end, cached, strict=True):
            assert one.shape == (3, 1, 6)
            torch.testing.assert_close(one, other, rtol=1e-12, atol=1e-12)
    with pytest.raises(ValueError, match="rgb are features, but this network's trunks are trained"):
        network()(a, m)


def test_frozen_trunks_learn_nothing_and_keep_their_statistics():
    model = network(JoinOptions(trunks_frozen=True)).train()
    before = {k: v.clone() for k, v in model.state_dict().items()}
    logits = model(*clips())
    (logits.appearance.square().sum() + logits.motion.square().sum()).backward()
    for name, parameter in model.named_parameters():
        is_trunk = name.startswith(("appearance.", "motion.")) and ".fc." not in name
        assert (parameter.grad is None) == is_trunk, name
    for name, tensor in model.state_dict().items():
        if name.startswith(("appearance.", "motion.")):
            assert torch.equal(tensor, before[name]), name
    assert not any(m.training for m in (model.appearance, model.motion))
    moved = [k for k, v in model.state_dict().items() if not torch.equal(v, before[k])]
    assert moved
    assert all(
        name.startswith(("appearance_sequence", "motion_sequence", "fusion")) for name in moved
    )


@pytest.mark.parametrize("frozen", [False, True])
def test_every_trainable_parameter_gets_a_gradient(frozen):
    for operation, blocks, reads, direction, pool in (
        ("average", 2, "own", "both", "mean"), ("multiply", 1, "joined", "both", "maximum"),
        ("maximum", 0, "joined", "both", "mean"), ("average", 1, "own", "motion_to_appearance", "mean"),
    ):  # fmt: skip
        model = network(JoinOptions(
            operation=operation, direction=direction, blocks=blocks, head_reads=reads,
            segment_pool=pool, trunks_frozen=frozen,
        )).train()  # fmt: skip
        logits = model(*clips())
        # The first output apart, so that a plain sum's vanishing gradients do not hide anything.
        loss = sum(functional.cross_entropy(x[:, 0], torch.tensor([0, 3])) for x in logits)
        loss.backward()
        missing = [n for n, p in model.named_parameters() if p.requires_grad and p.grad is None]
        assert not missing


def test_plain_feature_fusion_is_two_classifiers_on_the_joined_features():
    model = network(JoinOptions(blocks=0, head_reads="joined")).eval()
    rgb, flow = clips()
    a = model.features_of(model.appearance, rgb, None)
    m = model.features_of(model.motion, flow, None)
    a, m = model.appearance_sequence(a, 3), model.motion_sequence(m, 3)
    joined = ((a + m) / 2).flatten(1).unflatten(0, (2, 3)).mean(1)
    given = model(rgb, flow)
    torch.testing.assert_close(given.appearance[:, 0], model.appearance.fc(joined))
    torch.testing.assert_close(given.motion[:, 0], model.motion.fc(joined))


def test_segments_meet_in_the_sequence_and_videos_do_not():
    model = network().eval()
    rgb, flow = clips(2, 5)
    whole = model(rgb, flow)
    single = model(rgb[1:], flow[1:])
    torch.testing.assert_close(whole.appearance[1:], single.appearance)
    turned = model(rgb.flip(1), flow.flip(1))
    assert not torch.allclose(whole.appearance, turned.appearance)


def test_both_trunks_in_training_feel_the_loss_and_recomputing_changes_nothing():
    gradients = []
    for recomputes in (False, True):
        model = network().train()
        model.activation_checkpointing = recomputes
        sum(x.square().sum() for x in model(*clips())).backward()
        gradients.append({n: p.grad for n, p in model.named_parameters()})
    assert all(gradient is not None for gradient in gradients[0].values())
    for name, gradient in gradients[0].items():
        torch.testing.assert_close(gradient, gradients[1][name], rtol=1e-10, atol=1e-12)


def test_dropout_acts_on_the_features_before_each_head():
    model = network(None, appearance=0.5, motion=0.0).train()
    shapes = model.dropout_shapes(3)
    assert list(shapes) == ["appearance"]
    assert (shapes["appearance"].times, shapes["appearance"].features) == (1, 32)
    rgb, flow = clips()
    nothing = model(rgb, flow, masks={"appearance": torch.zeros(2, 1, 32, dtype=torch.bool)})
    bias = model.appearance.fc.bias.expand(2, 1, 6)
    torch.testing.assert_close(nothing.appearance, bias)
    with pytest.raises(ValueError, match="no dropout mask for the appearance stream"):
        model(rgb, flow, masks={})


def test_trunks_of_two_kinds_meet_where_their_features_are_as_many():
    inception = InceptionV3(3, 6, InceptionOptions(width=4))
    resnet = Trunk(20, 6, TrunkOptions(stages=(1, 1, 1, 1), width=4))
    assert inception.features == resnet.features == 128
    model = Stfn(6, inception, resnet, JoinOptions(blocks=1)).eval()
    output = model(torch.zeros(1, 3, 3, 75, 80), torch.zeros(1, 3, 20, 32, 32))
    assert output.motion.shape == (1, 1, 6)
    narrow = Trunk(20, 6, TrunkOptions(stages=(1, 1), width=4))
    with pytest.raises(ValueError, match="the appearance trunk has 128 and the motion trunk 32"):
        Stfn(6, inception, narrow, JoinOptions())


@pytest.mark.parametrize(
    ("rgb", "flow", "message"),
    [(None, (1, 3, 20, 16, 16), "reads rgb, but got None"),
     ((1, 3, 4, 16, 16), (1, 3, 20, 16, 16), r"rgb must be \(videos, segments, 3"),
     ((1, 3, 3, 16, 16), (1, 4, 20, 16, 16), r"differ in \(videos, segments\): \(1, 3\) and \(1, 4\)"),
     ((1, 3, 3, 16, 16), (1, 3, 33), "flow must be"),
    ],
)  # fmt: skip
def test_inputs_of_the_wrong_shape_are_refused(rgb, flow, message):
    with pytest.raises(ValueError, match=message):
        network()(*(None if s is None else torch.zeros(s).double() for s in (rgb, flow)))


def test_it_is_built_by_name_like_every_model():
    from hpc_stres.models import build_model

    model = build_model(
        "stfn", 6, stages=(2, 2), width=4, norm_group=2, blocks=1, kernels=(3,), dropout=0.5
    )
    assert len(model.fusion) == 1
    assert {m.group_size for m in model.modules() if hasattr(m, "group_size")} == {2}
    assert set(model.dropout_shapes(7)) == {"appearance", "motion"}
    output = model.eval()(torch.zeros(2, 7, 3, 32, 32), torch.zeros(2, 7, 20, 32, 32))
    assert output.appearance.shape == output.motion.shape == (2, 1, 6)
    with pytest.raises(ValueError, match="no option 'kernel'"):
        build_model("stfn", 6, kernel=3)
