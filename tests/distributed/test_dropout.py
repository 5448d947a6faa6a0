"""With dropout the trained weights are those of any other layout, of any engine, and of a run that
was interrupted."""

import pytest
from torch.nn import functional

from tests.distributed.launching import (
    identical,
    largest_difference,
    metrics,
    train_together,
    weights,
)
from tests.unit.trained import train

pytestmark = pytest.mark.distributed
FLOAT64 = "training.precision=float64"
MICRO_STEPS = "training.max_micro_batch=4"
# Of a single stream, with looks at held-out videos.
LOOKS = [
    FLOAT64, "phases.motion.optimise.dropout=0.8", "training.max_micro_batch=5", "training.max_steps=3",
    "evaluation.validation_share=0.34", "evaluation.validation_every_steps=2",
]  # fmt: skip
# A single stream as released, and a joint network whose motion stream has a temporal pool before
# its dropout.
CASES = {
    "motion": ["phases.motion.optimise.dropout=0.8"],
    "st_resnet": [
        "phases.st_resnet.optimise.dropout=0.5", "phases.st_resnet.model.name=stm_resnet",
        "phases.st_resnet.clips.chunks=6",
        "phases.st_resnet.optimise.schedule=[[4, 0.001]]", "training.global_batch=7",
    ],
}  # fmt: skip


def difference(one, two):
    """Without the biases that a normalisation takes away again: their gradient is nothing but
    rounding."""
    without = [
        {name: value for name, value in state.items() if ".temporal.bias" not in name}
        for state in (one, two)
    ]
    return largest_difference(*without)


def run(data_root, run_dir, phase, *more):
    return train(data_root, run_dir, phase, FLOAT64, *CASES[phase], *more)


@pytest.fixture(scope="module")
def references(data_root, tmp_path_factory):
    """One rank, one micro-step."""
    return {phase: run(data_root, tmp_path_factory.mktemp(phase), phase) for phase in CASES}


@pytest.fixture(scope="module")
def two_ranks(data_root, tmp_path_factory):
    """Over two ranks. DeepSpeed comes last, for it can be started once in a process only."""
    folders = {
        (phase, engine): tmp_path_factory.mktemp(f"{phase}_{engine}")
        for phase, engine in (("motion", "ddp"), ("st_resnet", "ddp"), ("motion", "deepspeed"))
    }
    trainings = [
        (
            phase,
            folder,
            [FLOAT64, *CASES[phase], f"training.engine={engine}", "training.max_micro_batch=5"],
        )
        for (phase, engine), folder in folders.items()
    ]
    folders["looks"] = tmp_path_factory.mktemp("looks")
    trainings.insert(0, ("motion", folders["looks"], LOOKS))
    # Every rank of an experiment that does not belong here refuses, and none waits for the one that
    # knows why.
    other = [*trainings[1][2], "training.momentum=0.5"]
    refusals = ["training.momentum: 0.9 there, 0.5 now", "another rank refused to train motion in"]
    train_together(data_root, 2, [*trainings, ("motion", trainings[1][1], other, refusals)])
    return folders


def test_two_ranks_agree_with_one_to_1e9(references, two_ranks):
    pairs = [(key, folder) for key, folder in two_ranks.items() if key != "looks"]
    for (phase, engine), folder in pairs:
        assert difference(references[phase], weights(folder, phase)) < 1e-9, engine


@pytest.mark.parametrize("phase", CASES)
def test_micro_steps_agree_with_one_to_1e9(data_root, tmp_path, references, phase):
    assert difference(references[phase], run(data_root, tmp_path, phase, MICRO_STEPS)) < 1e-9


def test_resumed_is_bit_identical_to_straight(data_root, tmp_path, references):
    for steps in (3, 7):
        run(data_root, tmp_path, "motion", f"training.max_steps={steps}")
    assert identical(references["motion"], run(data_root, tmp_path, "motion"))


def test_torchs_own_dropout_would_fail_both(data_root, tmp_path, references, monkeypatch):
    """So the tests above can fail; and the masks matter to the weights."""
    own = "hpc_stres.models.two_stream.drop"
    monkeypatch.setattr(own, lambda x, rate, mask: functional.dropout(x, rate))
    straight = run(data_root, tmp_path / "straight", "motion")
    cut = run(data_root, tmp_path / "cut", "motion", MICRO_STEPS)
    assert difference(straight, cut) > 1e-3
    run(data_root, tmp_path / "resumed", "motion", "training.max_steps=5")
    assert difference(straight, run(data_root, tmp_path / "resumed", "motion")) > 1e-3
    assert difference(straight, references["motion"]) > 1e-3


def test_looks_at_held_out_videos_say_the_same_on_two_ranks(data_root, tmp_path, two_ranks):
    """By one process and by two that share the videos out."""
    train(data_root, tmp_path, "motion", *LOOKS)
    looks = [
        [row for row in metrics(folder, "motion") if "validation_videos" in row]
        for folder in (tmp_path, two_ranks["looks"])
    ]
    assert [row["step"] for row in looks[0]] == [row["step"] for row in looks[1]] == [2, 3]
    for one, two in zip(*looks, strict=True):
        assert one["validation_videos"] == two["validation_videos"] > 2
        assert one["validation_accuracy_motion"] == two["validation_accuracy_motion"]
        loss = one["validation_loss_motion"], two["validation_loss_motion"]
        assert abs(loss[0] - loss[1]) < 1e-12 * loss[0]
