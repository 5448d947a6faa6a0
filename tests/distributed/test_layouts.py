"""The trained weights do not depend on the number of ranks, the micro-steps or the engine."""

import pytest

from hpc_stres.data.requests import mark, requests
from tests.conftest import tiny_config
from tests.distributed.launching import (
    STEPS,
    distance,
    identical,
    largest_difference,
    metrics,
    norm,
    train,
    weights,
)

pytestmark = pytest.mark.distributed
FLOAT64 = "training.precision=float64"


@pytest.fixture(scope="module")
def reference(data_root, tmp_path_factory):
    """Float64, one process, all three groups (4, 3, 3) in one micro-step."""
    run_dir = tmp_path_factory.mktemp("reference")
    output = train(data_root, run_dir, "st_resnet", 1, FLOAT64)
    assert "10 = 3 groups of 4/3/3, 3 groups a micro-step, 10 a rank, 1 micro-step" in output
    return run_dir


def requests_of(run_dir):
    return [row["requests"] for row in metrics(run_dir)]


@pytest.mark.parametrize(
    ("world", "limit", "layout"),
    [
        (1, 4, "one group a micro-step, 3 or 4 a rank, 3 micro-steps"),
        (2, 5, "over 2 ranks"),
        (3, 4, "on each of 3 ranks"),
        (3, 2, "one group a micro-step over 3 ranks, 1 or 2 a rank, 3 micro-steps"),
    ],
)
def test_float64_weights_agree_to_1e9_over_layouts(
    data_root, tmp_path, reference, world, limit, layout
):
    output = train(
        data_root, tmp_path, "st_resnet", world, FLOAT64, f"training.max_micro_batch={limit}"
    )
    assert layout in output
    assert largest_difference(weights(reference), weights(tmp_path)) < 1e-9
    assert requests_of(tmp_path) == requests_of(reference)
    assert metrics(tmp_path)[-1]["step"] == STEPS


def test_float64_weights_agree_to_1e9_on_four_ranks(data_root, tmp_path):
    """Groups of 5, which four ranks can share, uneven: 1, 1, 1 and 2 videos."""
    for world in (1, 4):
        train(
            data_root, tmp_path / str(world), "st_resnet", world, FLOAT64, "training.norm_group=5"
        )
    assert largest_difference(weights(tmp_path / "1"), weights(tmp_path / "4")) < 1e-9
    assert requests_of(tmp_path / "1") == requests_of(tmp_path / "4")


def test_the_trail_is_the_sum_over_the_whole_batches(reference, data_root):
    """Worked out from the contract of requests, without layouts and ranks."""
    config, marks = tiny_config(data_root), 0
    for step in range(STEPS):
        marks += sum(mark(step, request) for request in requests(config, step, "st_resnet"))
        for row in metrics(reference):
            if row["step"] == step + 1:
                assert row["requests"] == f"{marks % 2**64:016x}"


def test_training_moves_every_kind_of_tensor(reference, data_root, tmp_path):
    """The comparison above would be empty if nothing changed."""
    train(data_root, tmp_path, "st_resnet", 1, FLOAT64, "training.max_steps=1")
    one, last = weights(tmp_path), weights(reference)
    for name in one:
        assert not (one[name] == last[name]).all(), name


@pytest.fixture(scope="module")
def float32_reference(data_root, tmp_path_factory):
    """Weights after one step, whose rate is next to nothing, and of the whole run."""
    start, straight = tmp_path_factory.mktemp("start"), tmp_path_factory.mktemp("float32")
    train(data_root, start, "st_resnet", 1, "phases.st_resnet.optimise.schedule=[[1, 1.0e-9]]")
    train(data_root, straight, "st_resnet", 1)
    return start, straight


@pytest.mark.parametrize(
    ("world", "overrides"),
    [
        (1, ["training.engine=deepspeed"]),
        (1, ["training.engine=deepspeed", "training.max_micro_batch=4"]),
        (2, ["training.engine=deepspeed"]),
        (2, ["training.engine=deepspeed", "training.zero_stage=1"]),
        (3, ["training.engine=ddp", "training.max_micro_batch=2"]),
    ],
)
def test_float32_engines_agree_to_1e4(data_root, tmp_path, float32_reference, world, overrides):
    """As vectors, and measured against the way that training went: an activation within rounding of zero may fall to
    the other side of its ReLU, which a few numbers of so small a network feel."""
    start, straight = float32_reference
    train(data_root, tmp_path, "st_resnet", world, *overrides)
    off = distance(weights(straight), weights(tmp_path))
    assert off < 1e-4 * norm(weights(straight))
    assert off < 1e-2 * distance(weights(straight), weights(start))


@pytest.mark.parametrize("world", [1, 2])
def test_deepspeed_stage_0_in_float64_agrees_with_ddp_to_1e9(data_root, tmp_path, reference, world):
    train(data_root, tmp_path, "st_resnet", world, FLOAT64, "training.engine=deepspeed")
    assert largest_difference(weights(reference), weights(tmp_path)) < 1e-9


def test_zero_1_in_float64_agrees_to_float32_rounding(data_root, tmp_path, reference):
    """Its master weights are float32: each number agrees to that after a step, and all as a vector after twenty."""
    zero1 = [FLOAT64, "training.engine=deepspeed", "training.zero_stage=1"]
    train(data_root, tmp_path / "ddp", "st_resnet", 1, FLOAT64, "training.max_steps=1")
    train(data_root, tmp_path / "zero", "st_resnet", 2, *zero1, "training.max_steps=1")
    assert largest_difference(weights(tmp_path / "ddp"), weights(tmp_path / "zero")) < 1e-6
    train(data_root, tmp_path / "long", "st_resnet", 2, *zero1)
    assert distance(weights(reference), weights(tmp_path / "long")) < 1e-4 * norm(
        weights(reference)
    )


def test_the_same_layout_twice_is_bit_identical(data_root, tmp_path, float32_reference):
    train(data_root, tmp_path, "st_resnet", 1)
    assert identical(weights(float32_reference[1]), weights(tmp_path))
