"""One SGD step by hand: rates and decay of every kind of parameter, and what each stream's loss
weighs."""

import pytest
import torch
from torch.nn import functional

from hpc_stres.models import Logits, build_model
from hpc_stres.parallel import process_groups
from hpc_stres.training.engine import make_engine
from hpc_stres.training.loss import phase_loss
from tests.conftest import altered, tiny_config

SMALL = {"stages": (2, 2), "width": 4, "variant": "msra"}
RATE, DECAY, MOMENTUM = 0.1, 0.25, 0.9


def kind_of(name):
    """(rate multiplier, whether decayed) of a parameter as published, from its name alone."""
    module, what = name.rsplit(".", 1)
    is_norm = module.split(".")[-1].startswith("bn") or module.endswith("downsample.1")
    if is_norm:
        return (2, False) if what == "weight" else (1, False)
    if module.endswith(".temporal"):
        return 1, True
    return (2, False) if what == "bias" else (1, True)


@pytest.fixture
def alone():
    """A process group of one."""
    from hpc_stres.parallel.world import find_world, kept_environment

    with kept_environment():
        process_groups.start(find_world({}), torch.device("cpu"))
        yield
        process_groups.stop()


def test_two_steps_by_hand_move_every_parameter_at_its_rate_and_with_its_decay(alone):
    config = tiny_config(
        "x",
        f"training.weight_decay={DECAY}",
        f"training.momentum={MOMENTUM}",
        "training.engine=ddp",
    ).training
    model = build_model("stm_resnet", 3, **SMALL).double()
    engine = make_engine(model, config, torch.device("cpu"), 1)
    generator = torch.Generator().manual_seed(5)
    expected = {name: value.detach().clone() for name, value in model.named_parameters()}
    momentum = {name: torch.zeros_like(value) for name, value in expected.items()}
    kinds = set()
    for _ in range(2):
        for name, parameter in model.named_parameters():
            multiplier, decayed = kind_of(name)
            kinds.add((multiplier, decayed))
            parameter.grad = torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
            slope = parameter.grad + (DECAY * expected[name] if decayed else 0)
            momentum[name] = MOMENTUM * momentum[name] + slope
            expected[name] = expected[name] - RATE * multiplier * momentum[name]
        engine.step(RATE)
    assert kinds == {(1, True), (2, False), (1, False)}
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(
            parameter.detach(), expected[name], rtol=1e-12, atol=1e-12, msg=name
        )
    names = [name for name, _ in model.named_parameters()]
    for wanted in (
        "motion.conv1.bias",
        "motion.fc.bias",
        "motion.bn1.weight",
        "motion.layer1.1.temporal.bias",
    ):
        assert wanted in names, "each kind of parameter is there"


@pytest.mark.parametrize("over_time", ["sum", "mean"])
@pytest.mark.parametrize("weights", [(1.0, 1.0), (0.5, 2.0), (0.0, 1.0)])
def test_each_streams_loss_has_its_weight(over_time, weights):
    generator = torch.Generator().manual_seed(3)
    scores = [
        torch.randn(4, 3, 5, generator=generator, dtype=torch.float64, requires_grad=True)
        for _ in range(2)
    ]
    labels = torch.tensor([0, 4, 2, 2])
    phase = altered(
        tiny_config("x").phase("st_resnet"), loss_over_time=over_time,
        loss_weight_appearance=weights[0], loss_weight_motion=weights[1],
    )  # fmt: skip
    total, sums = phase_loss(Logits(*scores), labels, phase)
    by_hand = []
    for stream in scores:
        times = [
            functional.cross_entropy(stream[:, time], labels, reduction="sum") for time in range(3)
        ]
        by_hand.append(sum(times) / (3 if over_time == "mean" else 1))
    torch.testing.assert_close(total, weights[0] * by_hand[0] + weights[1] * by_hand[1])
    # What is logged is each stream's own loss.
    torch.testing.assert_close(sums["appearance"].loss, by_hand[0].detach())
    torch.testing.assert_close(sums["motion"].loss, by_hand[1].detach())
    total.backward()
    assert (scores[0].grad.abs().max() > 0) == (weights[0] > 0)
