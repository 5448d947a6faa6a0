"""STM-ResNet: its layers, starts and interactions, the deep motion trunk, the losses, and its recipes' numbers."""

import itertools

import pytest
import torch
from torch.nn import functional

from hpc_stres.config.loading import load_config
from hpc_stres.errors import ConfigError, UserError
from hpc_stres.models import Logits, build_model
from hpc_stres.models.interaction import Interaction
from hpc_stres.models.temporal import TemporalConv
from hpc_stres.models.weights import drop_other_streams, load_into
from hpc_stres.registry.model import TrunkSection
from hpc_stres.training.loss import phase_loss
from tests.conftest import ROOT

SMALL = {"stages": (2, 2), "width": 4}


def clips(frames=5, side=32):
    generator = torch.Generator().manual_seed(0)
    shape = (2, frames, 3, side, side)
    rgb = torch.randn(shape, generator=generator, dtype=torch.float64)
    return rgb, torch.randn((2, frames, 20, side, side), generator=generator, dtype=torch.float64)


def small(name, **options):
    torch.manual_seed(1)
    model = build_model(name, 6, **SMALL, **options).double()
    for key, tensor in model.state_dict().items():
        if key.endswith("running_mean"):
            tensor.copy_(torch.randn_like(tensor))
    return model


def count(module):
    return sum(parameter.numel() for parameter in module.parameters())


@pytest.mark.parametrize("training", [False, True])
def test_without_gating_stm_begins_as_its_two_streams_exactly(training):
    """To the last bit, up to the pool over time, which the single streams do not have."""
    singles = {stream: small(stream) for stream in ("appearance", "motion")}
    joint = small("stm_resnet", direction="off")
    load_into(joint, singles["appearance"].state_dict() | singles["motion"].state_dict(), "streams")
    rgb, flow = clips()
    for model in (joint, *singles.values()):
        model.train(training)
    for stream, model in singles.items():
        given, expected = (streams_before_pool(m, stream, rgb, flow) for m in (joint, model))
        assert torch.equal(given, expected)
        pooled = functional.relu(expected).unflatten(0, (2, 5)).amax(1)
        logits = getattr(model, stream).fc(pooled.mean((2, 3)))
        torch.testing.assert_close(getattr(joint(rgb, flow), stream)[:, 0], logits)


@pytest.mark.parametrize(("variant", "deep"), [("torchvision", True), ("msra", False)])
def test_a_stream_that_receives_nothing_begins_as_it_was_whatever_else_is_chosen(variant, deep):
    """Each direction, operation and placement, also with a deeper motion trunk: to the last bit."""
    stages = {"appearance": (2, 2), "motion": (3, 2) if deep else (2, 2)}
    trunks = {
        name: TrunkSection(stages=own, width=4, variant=variant) for name, own in stages.items()
    }
    singles = {s: build_model(s, 6, **{s: trunk}).double().eval() for s, trunk in trunks.items()}
    rgb, flow = clips(side=16)
    alone = {s: streams_before_pool(m, s, rgb, flow) for s, m in singles.items()}
    state = singles["appearance"].state_dict() | singles["motion"].state_dict()
    for direction, operation, placement in itertools.product(
        ("motion_to_appearance", "appearance_to_motion", "both"), ("add", "multiply", "concatenate"),
        ("residual", "direct"),
    ):  # fmt: skip
        chosen = {"direction": direction, "operation": operation, "placement": placement}
        joint = build_model("stm_resnet", 6, **trunks, **chosen).double().eval()
        load_into(joint, state, "streams")
        # A direct concatenation begins as the receiver alone.
        is_nothing = (operation, placement) == ("concatenate", "direct")
        for stream, expected in alone.items():
            is_same = torch.equal(streams_before_pool(joint, stream, rgb, flow), expected)
            assert is_same == (stream not in joint.interaction.receivers or is_nothing), chosen
    off = build_model("stm_resnet", 6, **trunks, direction="off").double().eval()
    load_into(off, state, "streams")
    for stream, expected in alone.items():
        assert torch.equal(streams_before_pool(off, stream, rgb, flow), expected)


def streams_before_pool(model, stream, rgb, flow):
    """The last unit's output of a stream."""
    seen = {}
    last = getattr(model, stream).layer2[-1]
    hook = last.register_forward_hook(lambda module, into, out: seen.update(x=out))
    model(rgb, flow)
    hook.remove()
    return seen["x"]


@pytest.mark.parametrize(
    ("init", "taps"), [("identity", (0, 1, 0)), ("average", (1, 1, 1)), ("difference", (-1, 3, -1))]
)
def test_new_layers_begin_as_filters_of_each_channel(init, taps):
    x = torch.randn(2 * 6, 3, 2, 2, dtype=torch.float64)
    layer = TemporalConv(3, 3, init, bias=True).double()
    scale = 3 if init == "average" else 1
    padded = functional.pad(x.unflatten(0, (2, 6)), (0, 0, 0, 0, 0, 0, 1, 1))
    expected = sum(
        tap / scale * padded[:, place : place + 6] for place, tap in enumerate(taps)
    ).flatten(0, 1)
    torch.testing.assert_close(layer(x, 6), expected)
    model = small("stm_resnet", temporal_init=init)
    assert {m.init for m in model.modules() if isinstance(m, TemporalConv)} == {init}


def test_a_deep_trunk_as_released_has_temporal_layers_in_two_stages():
    deep = TrunkSection(depth=152)
    with torch.device("meta"):
        single = count(build_model("motion", 101, 152).motion)
        second = build_model("stm_resnet", 101, motion=deep)
        released = build_model("stm_resnet", 101, motion=deep, temporal_units="as_released")
    assert count(second.motion) - single == 1_044_480 + 960
    assert count(released.motion) - single == 3 * (64**2 + 512**2) + 64 + 512
    # The shallow stream has all of its own.
    assert count(released.appearance) == count(second.appearance)


def test_streams_of_different_depth_meet():
    trunks = {
        "appearance": TrunkSection(stages=(2, 2, 2), width=4),
        "motion": TrunkSection(stages=(2, 3, 7), width=4),
    }
    model = build_model("stm_resnet", 6, temporal_units="as_released", **trunks).double().train()
    logits = model(*clips())
    (logits.appearance.sum() + logits.motion.sum()).backward()
    assert all(p.grad is not None for p in model.parameters())
    layers = [n for n, m in model.named_modules() if isinstance(m, TemporalConv)]
    assert [n for n in layers if n.startswith("motion")] == ["motion.layer1.1.temporal"]
    narrow = {**trunks, "motion": TrunkSection(stages=(2, 2, 2), width=8)}
    with pytest.raises(
        ConfigError, match=r"stages have \[16, 32, 64\] \(appearance\) and \[32, 64, 128\]"
    ):
        build_model("stm_resnet", 6, **narrow)
    assert build_model("stm_resnet", 6, direction="off", **narrow) is not None
    short = {**trunks, "motion": TrunkSection(stages=(2, 2), width=4)}
    with pytest.raises(ConfigError, match="number of stages"):
        build_model("stm_resnet", 6, direction="off", **short)


@pytest.mark.parametrize("operation", ["add", "multiply", "concatenate"])
@pytest.mark.parametrize("direction", ["motion_to_appearance", "appearance_to_motion", "both"])
def test_scaled_and_concatenated_signals(operation, direction):
    layer = Interaction(operation, direction, learned_scale=True, channels=(3, 4)).double()
    x = [torch.randn(2, 4, 3, 3, dtype=torch.float64) for _ in range(4)]
    a_sum, a, m_sum, m = x
    into_a, into_m = layer(*x, 2)
    for name, branch, base, own, sender in (
        ("appearance", into_a, a_sum, a, m),
        ("motion", into_m, m_sum, m, a),
    ):
        if name not in layer.receivers:
            assert branch.branch is own
            continue
        sent = 0.1 * sender
        expected = {"add": base + sent, "multiply": base * sent, "concatenate": base}[operation]
        torch.testing.assert_close(branch.branch, expected)
        assert branch.skip is own
    names = {name.split(".")[1] for name, _ in layer.named_parameters()}
    assert names == {f"{receiver}{stage}" for receiver in layer.receivers for stage in (1, 2)}
    for parameter in layer.parameters():
        parameter.data.add_(0.5)
    assert (
        not torch.allclose(layer(*x, 2)[0].branch, into_a.branch)
        or direction == "appearance_to_motion"
    )


def test_an_interaction_with_parameters_needs_its_channels():
    for options in ({"learned_scale": True}, {"operation": "concatenate"}):
        with pytest.raises(ValueError, match="needs the channels of each stage"):
            Interaction(**options)
        assert Interaction(direction="off", **options).receivers == ()


@pytest.mark.parametrize(
    "options", [{"learned_scale": True}, {"operation": "concatenate"}], ids=str
)
def test_what_joins_the_streams_is_trained_and_handed_on(options):
    parent, child = small("st_resnet", **options), small("st_resnet_star", **options)
    logits = parent.train()(*clips())
    (logits.appearance.square().sum() + logits.motion.square().sum()).backward()
    learned = {n: p for n, p in parent.named_parameters() if n.startswith("interaction.")}
    assert learned
    assert all(p.grad is not None and bool(p.grad.abs().sum() > 0) for p in learned.values())
    for parameter in learned.values():
        parameter.data.add_(0.25)
    load_into(child, drop_other_streams(parent.state_dict(), child), "parent")
    for name, parameter in learned.items():
        assert torch.equal(child.get_parameter(name), parameter)
    with pytest.raises(UserError, match="no place in this network for interaction"):
        load_into(small("st_resnet_star"), parent.state_dict(), "parent")


class Options:
    """What the loss reads of a phase."""

    def __init__(self, **changes):
        self.optimise = self
        self.loss_over_time, self.softmax, self.agreement_loss = "sum", "each", 0.0
        self.loss_weight_appearance = self.loss_weight_motion = 1.0
        self.__dict__.update(changes)


def test_one_softmax_and_the_agreement_loss_are_what_they_say():
    generator = torch.Generator().manual_seed(2)
    a, m = (torch.randn(3, 4, 5, generator=generator, dtype=torch.float64) for _ in range(2))
    labels = torch.tensor([0, 4, 2])
    plain, _ = phase_loss(Logits(a, m), labels, Options())

    def cross_entropy(x):
        return -sum(x[v, t].log_softmax(0)[labels[v]] for v in range(3) for t in range(4))

    torch.testing.assert_close(plain, cross_entropy(a) + cross_entropy(m))
    joint, sums = phase_loss(Logits(a, m), labels, Options(softmax="joint"))
    torch.testing.assert_close(joint, cross_entropy((a + m) / 2))
    mean, _ = phase_loss(Logits(a, m), labels, Options(softmax="joint", loss_over_time="mean"))
    torch.testing.assert_close(mean, joint / 4)
    assert set(sums) == {"appearance", "motion"}
    agreeing, _ = phase_loss(Logits(a, m), labels, Options(agreement_loss=0.5))
    distance = (a.softmax(2) - m.softmax(2)).abs().sum()
    torch.testing.assert_close(agreeing, plain + 0.5 * distance)
    same, _ = phase_loss(Logits(a, a), labels, Options(agreement_loss=0.5))
    torch.testing.assert_close(same, 2 * cross_entropy(a))


def steps(config, phase):
    return [tuple(plateau) for plateau in config.phases[phase].optimise.schedule]


def test_recipes_of_stm_carry_the_released_numbers():
    ucf = load_config(ROOT / "configs" / "ucf101.yaml", ["recipe=stm_released"])
    stm = ucf.phases["stm_resnet"]
    assert (stm.clips.chunks, stm.clips.stride, stm.clips.window) == (5, (5, 35), "released")
    assert (stm.clips.stride_shared_by, stm.clips.short_video) == ("group", "repeat")
    assert (stm.optimise.global_batch, stm.optimise.norm_group, stm.optimise.dropout) == (
        128,
        4,
        0.8,
    )
    assert (stm.model.operation, stm.model.temporal_pool, stm.model.norm_average) == (
        "multiply",
        "before_average",
        "sigma",
    )
    assert steps(ucf, "stm_resnet") == [(746, 1e-3), (373, 1e-4), (373, 1e-5), (373, 1e-6)]
    assert ucf.phases["motion"].model.conv1_inflation == "mean"
    deep = load_config(ROOT / "configs" / "ucf101.yaml", ["recipe=stm_released_r152"])
    assert (
        deep.phases["stm_resnet"].trunk("motion").depth,
        deep.phases["stm_resnet"].trunk("appearance").depth,
    ) == (
        152,
        50,
    )
    assert deep.phases["stm_resnet"].model.temporal_units == "as_released"


def test_hmdb51_takes_its_own_lengths():
    """Epochs of 3570 videos: 140, 2790, 279, 28 and 140 steps for the factors of the code."""
    hmdb = load_config(ROOT / "configs" / "hmdb51.yaml", ["recipe=released"])
    assert steps(hmdb, "motion") == [(2790, rate) for rate in (1e-2, 1e-3, 1e-4, 1e-5)]
    assert steps(hmdb, "appearance") == [(2 * 140, 1e-2), (140, 1e-3), (140, 1e-4)]
    assert steps(hmdb, "st_resnet") == [(3 * 279, 1e-3), (3 * 279, 1e-4), (2 * 279, 1e-5)]
    assert steps(hmdb, "st_resnet_star") == [(28, 1e-4), (28, 1e-5)]
    assert hmdb.phases["st_resnet"].clips.stride == (5, 15)
    ucf = load_config(ROOT / "configs" / "ucf101.yaml", ["recipe=released"])
    assert steps(ucf, "motion")[0] == (7451, 1e-2)
    for recipe, dropout in (("stm_released", 0.8), ("stm_released_r152", 0.9)):
        config = load_config(ROOT / "configs" / "hmdb51.yaml", [f"recipe={recipe}"])
        assert steps(config, "stm_resnet") == [(280, 1e-3), (140, 1e-4), (140, 1e-5), (140, 1e-6)]
        assert config.phases["stm_resnet"].optimise.dropout == dropout
    # What a config says of its own is laid over both.
    own = load_config(
        ROOT / "configs" / "hmdb51.yaml",
        ["recipe=released", "phases.motion.optimise.schedule=[[5, 0.1]]"],
    )
    assert steps(own, "motion") == [(5, 0.1)]
    with pytest.raises(ConfigError, match=r"there are .*released, stfn"):
        load_config(ROOT / "configs" / "hmdb51.yaml", ["recipe=relesed"])
