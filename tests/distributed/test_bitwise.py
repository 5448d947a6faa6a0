"""training.reproducible: bitwise: the weights have one SHA-256 on every layout; `reproduce` sees one bit that differs.

A small matrix of a few steps; `python -m tests.campaigns.bitwise` has the large one, and the control: ordinary
training, whose hashes differ. tests/unit/test_exact.py has one in a single process.
"""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from hpc_stres.__main__ import main
from hpc_stres.evaluation.scores import Scores
from hpc_stres.run.product import metrics_line
from tests.campaigns.bitwise import BITWISE, DEEPSPEED, LOW, digest, train_all

pytestmark = pytest.mark.distributed
# Of four steps of the tiny config in groups of 5, on AMD's processors with AVX2: MKL takes other ways on Intel's.
GOLDEN = "94c85b3ae1ce861975db269c2550652c19d8e6adac0dc81796ef06f8d5b45146"
GOLDEN_TORCH = "2.13.0"
BASE = ["training.norm_group=5", "training.log_every_steps=2"]
SCORED_ON = (1, 3)
FOUR, TWO = "training.max_steps=4", "training.max_steps=2"


@pytest.fixture(scope="module")
def runs(data_root, tmp_path_factory):
    """Run folders by name: layouts of one training, of one in bfloat16 with dropout, and an ordinary one."""
    folder = tmp_path_factory.mktemp("bitwise")
    dropping = ["training.dropout=0.5", LOW, TWO]
    works = {
        "one rank": (1, "st_resnet", [BITWISE, FOUR]),
        "three ranks": (3, "st_resnet", [BITWISE, FOUR, DEEPSPEED]),
        # Resumed below, on one rank, one group after another.
        "begun on two": (2, "st_resnet", [BITWISE, TWO]),
        "dropping, one": (1, "motion", [BITWISE, *dropping]),
        "dropping, three": (3, "motion", [BITWISE, *dropping]),
        "ordinary, one": (1, "motion", dropping),
    }
    asked: list[dict] = [
        {"world": world, "phase": phase, "overrides": [*BASE, *more], "run_dir": folder / name,
         "data_root": str(data_root)}
        for name, (world, phase, more) in works.items()
    ]  # fmt: skip
    # The run that two ranks began is another's from step 2 on.
    accumulated = [*asked[0]["overrides"], "training.max_micro_batch=5"]
    begun = folder / "begun on two"
    asked.append({**asked[0], "run_dir": begun, "overrides": accumulated})
    # What the tests' evaluation scores, on other numbers of ranks.
    trained = {**next(one for one in asked if one["run_dir"].name == "dropping, one")}
    for world in SCORED_ON:
        run_dir = folder / f"scored on {world}"
        copied = {"copy_of": str(folder / "dropping, one"), "run_dir": run_dir, "world": world}
        asked.append({**trained, **copied})
    train_all(asked)
    return folder


def test_ranks_engines_micro_steps_and_resumes_do_not_show(runs):
    names = ("one rank", "three ranks", "begun on two")
    assert len({digest(runs / name, "st_resnet") for name in names}) == 1


def test_nor_do_they_with_dropout_in_bfloat16(runs):
    assert digest(runs / "dropping, one", "motion") == digest(runs / "dropping, three", "motion")


def test_scores_have_the_same_bits_on_any_number_of_ranks(runs):
    """Those of a bfloat16 training, whose weights, and so its tests, are float32."""
    one, three = (
        Scores.load(runs / f"scored on {world}" / "scores" / "split1_motion.npz")
        for world in SCORED_ON
    )
    assert one.ids == three.ids
    assert one.logits.tobytes() == three.logits.tobytes()
    assert len(one.ids) == 8
    assert len(np.unique(one.logits)) > 8


def test_the_bits_are_those_of_a_day_long_ago(runs):
    cpu = Path("/proc/cpuinfo")
    is_amd = cpu.is_file() and "AuthenticAMD" in cpu.read_text()
    if not is_amd or torch.__version__.split("+")[0] != GOLDEN_TORCH:
        pytest.skip(f"the golden hash is of torch {GOLDEN_TORCH} on AMD's processors with AVX2")
    assert digest(runs / "one rank", "st_resnet") == GOLDEN


def rows(run_dir):
    path = run_dir / "phases" / "st_resnet" / "metrics.jsonl"
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_hashes_are_in_the_metrics_and_losses_have_the_same_bits(runs):
    one, three = rows(runs / "one rank"), rows(runs / "three ranks")
    for key in ("step", "weights_sha256", "tensors", "loss", "loss_motion", "accuracy_motion"):
        assert [row[key] for row in one] == [row[key] for row in three], key
    assert [row["step"] for row in one] == [2, 4]
    assert one[0]["weights_sha256"] != one[1]["weights_sha256"]


def reproduce(capsys, *arguments):
    code = main(["reproduce", *map(str, arguments)])
    said = capsys.readouterr()
    return code, said.out + said.err


def test_reproduce_trains_the_first_steps_again_on_another_number_of_ranks(runs, capsys):
    """For real: a new process repeats what three ranks did."""
    code, said = reproduce(capsys, runs / "three ranks", "--steps", 2)
    assert (code, said) == (0, "st_resnet: identical to step 2\n")


def test_reproduce_names_the_first_step_and_tensor_that_differ(runs, tmp_path, capsys):
    other = tmp_path / "other"
    shutil.copytree(runs / "one rank", other)
    changed = rows(other)
    changed[1]["tensors"]["motion.fc.bias"] = "0" * 16
    changed[1]["weights_sha256"] = "0" * 64
    path = other / "phases" / "st_resnet" / "metrics.jsonl"
    path.write_text("".join(metrics_line(row) for row in changed))
    code, said = reproduce(capsys, runs / "three ranks", "--steps", 4, "--against", other)
    assert code == 1
    assert said.startswith(
        "st_resnet: identical to step 2; at step 4 these differ: motion.fc.bias\n"
    )
    assert reproduce(capsys, runs / "three ranks", "--steps", 3, "--against", other)[0] == 0


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (["--steps", "1"], 1, "The first are at the steps 2, 4"),
        (["--steps", "0"], 2, "--steps 0: expected 1 or more"),
        (["--steps", "4", "--phase", "appearence"], 2, "--phase appearence: this run trains"),
    ],
)
def test_reproduce_refuses_what_it_cannot_check(runs, capsys, arguments, code, words):
    got, said = reproduce(capsys, runs / "one rank", *arguments)
    assert got == code
    assert words in said


def test_reproduce_refuses_a_run_without_hashes(runs, capsys):
    code, said = reproduce(capsys, runs / "ordinary, one", "--steps", 2)
    assert code == 1
    assert "trained without training.reproducible=bitwise" in said
