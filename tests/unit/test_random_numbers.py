"""Random numbers come from the counter: dropout masks, first weights; and nothing in training draws
from elsewhere."""

import ast
import hashlib
import random
from itertools import pairwise

import numpy as np
import pytest
import torch

from hpc_stres import counter
from hpc_stres.models import build_model
from hpc_stres.models.building import build_phase_model
from hpc_stres.models.dropout import DropoutShape, draw_masks
from hpc_stres.models.initialise import initialise
from hpc_stres.training import memory
from hpc_stres.training.trainer import Trainer
from tests.conftest import ROOT, tiny_config
from tests.distributed.train_worker import global_generators
from tests.unit.trained import train

SMALL = {"stages": (2, 2), "width": 4}
CPU = torch.device("cpu")


def masks(
    positions, seed=1, phase="motion", step=3, rate=0.8, times=5, features=400, stream="motion"
):
    shapes = {stream: DropoutShape(rate, times, features)}
    return draw_masks(seed, phase, step, positions, shapes, CPU)[stream]


def test_a_mask_belongs_to_seed_phase_step_position_and_stream():
    whole = masks(range(6))
    assert torch.equal(masks([4, 1]), whole[[4, 1]])
    others = [
        masks([1]), masks([2]), masks([1], seed=2), masks([1], phase="other"), masks([1], step=4),
        masks([1], stream="appearance"),
    ]  # fmt: skip
    for number, one in enumerate(others):
        for other in others[number + 1 :]:
            # Independent masks at rate 0.8 agree where both keep or both drop: 0.68 of 2000 places.
            assert 0.6 < (one == other).float().mean() < 0.76


def test_a_masks_bits_are_those_of_the_counter():
    """The values that a seed stands for must not change with the code."""
    key = int.from_bytes(hashlib.sha256(b"motion").digest()[:8], "big")
    expected = np.random.Generator(np.random.Philox(key=[9, key], counter=[0, 17, 5, 2**33]))
    found = masks([5], seed=9, step=2**33, rate=0.5, times=2, features=3)
    assert np.array_equal(found[0].numpy(), expected.random((2, 3), np.float32) >= np.float32(0.5))


@pytest.mark.parametrize("rate", [0.1, 0.5, 0.8, 0.99])
def test_dropped_features_are_of_the_rate_and_the_mean_stays(rate):
    found = masks(range(200), rate=rate, times=2, features=500)
    share = 1 - found.double().mean().item()
    assert abs(share - rate) < 5 * (rate * (1 - rate) / found.numel()) ** 0.5
    model = build_model("motion", 3, **SMALL, dropout=rate).double().train()
    flow = torch.randn(
        4, 1, 20, 32, 32, dtype=torch.float64, generator=torch.Generator().manual_seed(1)
    )
    shapes = model.dropout_shapes(1)
    drawn = draw_masks(1, "motion", 0, range(4), shapes, CPU)
    caught = []
    model.motion.fc.register_forward_pre_hook(lambda module, arguments: caught.append(arguments[0]))
    model(None, flow, masks=drawn)
    model.dropout = {}
    model(None, flow)
    scaled, whole = caught
    kept = drawn["motion"].flatten(0, 1)
    assert torch.equal(scaled[~kept], torch.zeros_like(scaled[~kept]))
    torch.testing.assert_close(scaled[kept], whole[kept] / (1 - rate))


def test_a_network_in_a_run_wants_the_masks_that_it_drops_by():
    model = build_model("motion", 3, **SMALL, dropout=0.5).train()
    flow = torch.zeros(2, 1, 20, 32, 32)
    with pytest.raises(ValueError, match="no dropout mask for the motion stream"):
        model(None, flow, masks={})
    with pytest.raises(ValueError, match="does not fit features"):
        model(None, flow, masks={"motion": torch.ones(2, 2, 32, dtype=torch.bool)})
    model(None, flow)
    model.eval()(None, flow, masks={})
    assert build_model("motion", 3, **SMALL).dropout_shapes(1) == {}
    joint = build_model("stm_resnet", 3, **SMALL, dropout=0.5)
    assert joint.dropout_shapes(7) == {"motion": DropoutShape(0.5, 3, joint.motion.features)}


def test_masks_go_through_activation_checkpointing():
    """What is computed again for the backward pass is what was computed."""
    model = build_model("stm_resnet", 3, **SMALL, dropout=0.5).train()
    generator = torch.Generator().manual_seed(1)
    clips = [torch.randn(2, 5, planes, 32, 32, generator=generator) for planes in (3, 20)]
    drawn = draw_masks(1, "st_resnet", 0, range(2), model.dropout_shapes(5), CPU)
    gradients = []
    for checkpointing in (False, True):
        model.activation_checkpointing = checkpointing
        model.zero_grad()
        logits = model(*clips, masks=drawn)
        (logits.motion.square().sum() + logits.appearance.sum()).backward()
        gradients.append([parameter.grad.clone() for parameter in model.parameters()])
    for one, two in zip(*gradients, strict=True):
        torch.testing.assert_close(one, two)


def first_weights(name="motion", seed=7, phase="motion", **options):
    model = build_model(name, 5, **(SMALL | options))
    initialise(model, seed, phase)
    return model.state_dict()


def test_first_weights_are_of_the_seed_the_phase_and_the_layers_name_alone():
    one = first_weights()
    torch.rand(3)
    assert all(torch.equal(value, one[name]) for name, value in first_weights().items())
    deeper = first_weights(stages=(3, 2))
    shared = [name for name in one if "weight" in name and not name.startswith("motion.layer2.0")]
    assert all(torch.equal(one[name], deeper[name]) for name in shared)
    random_ones = [name for name, value in one.items() if "weight" in name and value.ndim > 1]
    for other in (first_weights(seed=8), first_weights(phase="other")):
        assert not any(torch.equal(one[name], other[name]) for name in random_ones)
    for first, second in pairwise(random_ones):
        assert not torch.equal(one[first].flatten()[:8], one[second].flatten()[:8]), (
            "layers must not share numbers"
        )


def test_first_weights_have_hes_and_the_classifiers_spread():
    state = first_weights("st_resnet", width=32)
    for name, fan_out in (
        ("motion.conv1.weight", 32 * 49),
        ("appearance.layer1.0.conv2.weight", 32 * 9),
    ):
        assert state[name].std().item() == pytest.approx((2 / fan_out) ** 0.5, rel=0.05), name
    temporal = state["motion.layer2.1.conv1.weight"]
    assert torch.equal(temporal[:, :, 0], temporal[:, :, 2])
    assert temporal.sum(2).std().item() == pytest.approx((2 / 64) ** 0.5, rel=0.05)
    assert state["motion.fc.weight"].std().item() == pytest.approx(0.01, rel=0.1)
    assert state["motion.fc.bias"].abs().max() == 0
    stm = first_weights("stm_resnet")["motion.layer1.1.temporal.weight"][:, :, 1, 0]
    assert torch.equal(stm, torch.eye(4))


def test_a_phases_network_leaves_the_global_generator_alone():
    config = tiny_config("x", "phases.motion.optimise.dropout=0.8")
    before = global_generators()
    one = build_phase_model(config, "motion", 5)
    first = {name: value.clone() for name, value in one.state_dict().items()}
    memory.dry_pass(one, config, "motion", CPU, 2)
    assert global_generators() == before
    torch.rand(7)
    other = build_phase_model(config, "motion", 5).state_dict()
    assert all(torch.equal(value, other[name]) for name, value in first.items())


FORBIDDEN = {
    torch: ["rand", "randn", "randint", "randperm", "rand_like", "randn_like", "bernoulli", "normal", "multinomial",
            "manual_seed"],
    torch.Tensor: ["uniform_", "normal_", "bernoulli_", "random_", "exponential_"],
    torch.nn.functional: ["dropout"],
    np.random: ["rand", "randn", "random", "randint", "permutation", "shuffle", "choice", "uniform", "normal", "seed"],
    random: ["random", "randint", "shuffle", "choice", "sample", "uniform", "seed"],
}  # fmt: skip


def test_training_draws_from_no_global_generator(data_root, tmp_path, monkeypatch):
    """Their state is the same before and after a run, and while the loop runs they raise."""
    loop, went_through = Trainer.train, []

    def guarded(self):
        def refuse(*arguments, **options):
            raise AssertionError("a global generator was asked for a number")

        with monkeypatch.context() as patch:
            for owner, names in FORBIDDEN.items():
                for name in names:
                    patch.setattr(owner, name, refuse)
            with pytest.raises(AssertionError, match="global generator"):
                torch.rand(1)
            went_through.append(loop(self))
            return went_through[-1]

    monkeypatch.setattr(Trainer, "train", guarded)
    before = global_generators()
    options = ["phases.motion.optimise.dropout=0.8", "training.activation_checkpointing=true"]
    train(data_root, tmp_path, "motion", *options, "training.max_steps=3")
    assert went_through == [True]
    assert global_generators() == before


# torch's own generator is drawn from when a layer is made outside a run, and by a network that is
# given no masks.
EXCEPTIONS = {
    ("models/initialise.py", "torch.manual_seed"), ("models/resnet.py", "torch.randn"),
    ("models/temporal.py", "torch.randn"), ("models/interaction.py", "torch.randn"),
    ("models/temporal_inception.py", "torch.randn"), ("models/trunks/inception.py", "torch.randn"),
    ("models/dropout.py", "functional.dropout"),
}  # fmt: skip
NAMES = {
    *(f"torch.{name}" for name in FORBIDDEN[torch]), *(f"np.random.{name}" for name in FORBIDDEN[np.random]),
    *(f"random.{name}" for name in FORBIDDEN[random]), "functional.dropout", "F.dropout", "nn.Dropout",
    "nn.init.kaiming_normal_", "nn.init.normal_", "np.random.default_rng", "torch.seed",
}  # fmt: skip


def uses(source):
    """Dotted names in a source that stand for a global generator, and methods that draw from one in
    place."""
    tree = list(ast.walk(ast.parse(source)))
    modules = {alias.name for node in tree if isinstance(node, ast.Import) for alias in node.names}
    for node in tree:
        if isinstance(node, ast.Attribute):
            name = ast.unparse(node)
            if name.startswith("random.") and "random" not in modules:
                continue  # a generator of its own under that name
            if name in NAMES or node.attr in FORBIDDEN[torch.Tensor]:
                yield name
        elif isinstance(node, ast.ImportFrom) and node.module in (
            "random",
            "numpy.random",
            "torch.random",
        ):
            yield f"{node.module} import"


def test_no_code_of_training_names_a_global_generator():
    assert set(uses("import torch\ntorch.rand(1)\nx.normal_()\nfrom random import random")) == {
        "torch.rand", "x.normal_", "random import",
    }  # fmt: skip
    package = ROOT / "hpc_stres"
    found = {
        (str(path.relative_to(package)), name)
        for folder in ("training", "data", "models")
        for path in (package / folder).rglob("*.py")
        for name in uses(path.read_text(encoding="utf-8"))
    }
    assert found == EXCEPTIONS


def test_kinds_of_random_numbers_never_meet():
    kinds = [
        counter.SAMPLE,
        counter.GROUP,
        counter.ORDER,
        counter.WEIGHTS,
        *counter.DROPOUT.values(),
    ]
    assert len(set(kinds)) == len(kinds)
    draws = {float(counter.generator(1, "a", kind, step, position).random()) for kind in kinds for step in range(3)
             for position in range(3)}  # fmt: skip
    assert len(draws) == 9 * len(kinds)
