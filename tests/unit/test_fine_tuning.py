"""Fine-tuning: what a phase may start from, what of it moves, and that the rest is bit for bit what it was."""

import dataclasses
import json
import shutil

import pytest
import torch
from safetensors.torch import load_file

from hpc_stres.config.schedule import Curve, Plateau, scaled, total_steps
from hpc_stres.errors import ConfigError, UserError
from hpc_stres.models import build_model
from hpc_stres.models.weights import save_state, to_torchvision
from hpc_stres.run.paths import PhasePaths, write_sealed
from hpc_stres.run.starts import find_start
from hpc_stres.training.first_weights import load_first_weights
from hpc_stres.training.trainable import freeze
from tests.conftest import tiny_config
from tests.unit.trained import train
from tests.unit.untrained import make_run

CLASSES = [f"class{n}" for n in range(8)]


@pytest.fixture(scope="module")
def run(data_root, tmp_path_factory):
    """A run whose phases are finished, on classes of its own, with statistics that are not the first ones."""
    folder = tmp_path_factory.mktemp("run") / "ucf run"
    config = tiny_config(data_root)
    paths = make_run(config, folder, CLASSES, list(config.phases))
    for phase in config.phases:
        state = load_file(paths.phase(phase).weights)
        for name, value in state.items():
            if not value.is_floating_point():
                continue
            # Means below zero keep what lies behind the ReLUs alive.
            value += {"running_mean": -0.25, "running_var": 0.25}.get(
                name.rsplit(".", 1)[1], 0.25 * (".fc." in name)
            )
        from tests.unit.untrained import finish

        finish(config, paths, phase, state, CLASSES)
    return folder


def started(data_root, phase, source, classes=CLASSES, *overrides):
    """The network of a phase after it took up its first weights, and what was said."""
    config = tiny_config(data_root, f"phases.{phase}.weights={json.dumps(str(source))}", *overrides)
    from hpc_stres.models.building import build_phase_model
    from hpc_stres.run.paths import RunPaths

    model = build_phase_model(config, phase, len(classes))
    said = load_first_weights(model, config, phase, RunPaths(data_root / "none"), classes)
    return model.state_dict(), said


def export_of(run, folder):
    """What an export of the motion phase holds beside its programs."""
    folder.mkdir()
    shutil.copy(run / "phases" / "motion" / "weights.safetensors", folder)
    from hpc_stres.run.paths import sha256

    found = {
        "classes": CLASSES,
        "files": {"weights.safetensors": sha256(folder / "weights.safetensors")},
    }
    write_sealed(folder / "export.json", found)
    return folder


def test_a_run_a_phase_its_file_and_an_export_start_a_phase_alike(data_root, run, tmp_path):
    expected = load_file(run / "phases" / "motion" / "weights.safetensors")
    phase, exported = run / "phases" / "motion", export_of(run, tmp_path / "exported")
    sources = [
        run,
        phase,
        phase / "weights.safetensors",
        exported,
        exported / "weights.safetensors",
    ]
    for source in sources:
        state, said = started(data_root, "motion", source)
        assert all(torch.equal(state[name], value) for name, value in expected.items()), source
        assert "loaded" in said
        assert "replaced" not in said


@pytest.mark.parametrize("classes", [CLASSES[::-1], CLASSES[:5], [*CLASSES[:-1], "other"]])
def test_the_classifier_of_other_classes_is_never_kept(data_root, run, tmp_path, classes):
    """As many classes under other names, or in another order, are other classes."""
    expected = load_file(run / "phases" / "motion" / "weights.safetensors")
    for source in (run, export_of(run, tmp_path / "exported")):
        state, said = started(data_root, "motion", source, classes)
        for name, value in expected.items():
            is_same = state[name].shape == value.shape and torch.equal(state[name], value)
            assert is_same == (".fc." not in name), name
        assert "2 replaced (motion.fc" in said


def test_a_plain_trunks_classifier_is_never_kept(data_root, tmp_path):
    """ImageNet has as many classes as some data sets of videos."""
    plain = to_torchvision(
        build_model("appearance", 8, stages=(2, 2), width=4).state_dict(), "appearance"
    )
    save_state(plain, tmp_path / "plain.safetensors")
    for phase in ("appearance", "motion"):
        state, said = started(data_root, phase, tmp_path / "plain.safetensors")
        assert torch.equal(state[f"{phase}.layer1.0.conv1.weight"], plain["layer1.0.conv1.weight"])
        assert not torch.equal(state[f"{phase}.fc.weight"], plain["fc.weight"])
        assert f"2 replaced ({phase}.fc" in said


def test_a_published_file_is_found_by_its_name(data_root, tmp_path):
    plain = to_torchvision(
        build_model("appearance", 5, stages=(2, 2), width=4).state_dict(), "appearance"
    )
    with pytest.raises(
        UserError,
        match=r"weights: resnet50: .* not here yet: .*\n.*hpc-stres weights resnet50 --to",
    ):
        find_start("resnet50", "motion", "motion", str(tmp_path))
    save_state(plain, tmp_path / "weights" / "resnet50.safetensors")
    assert (
        find_start("resnet50", "motion", "motion", str(tmp_path)).path.name
        == "resnet50.safetensors"
    )


def test_a_run_gives_the_phase_of_the_same_name_or_of_the_same_model(data_root, run, tmp_path):
    assert find_start(str(run), "motion", "motion", "").path.parent.name == "motion"
    assert find_start(str(run), "second_motion", "motion", "").path.parent.name == "motion"
    with pytest.raises(
        UserError, match=r"which phase should mine start from\?.*none trained stm_resnet\nName one"
    ):
        find_start(str(run), "mine", "stm_resnet", "")


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (
            lambda run: (run / "phases/motion/done.json").unlink(),
            "neither a run, nor a phase|is not finished|which phase",
        ),
        (
            lambda run: (run / "phases/motion/weights.safetensors").write_bytes(b"x"),
            "are not the weights",
        ),
        (lambda run: (run / "phases/motion/weights.safetensors").unlink(), "are not the weights"),
        (lambda run: shutil.rmtree(run), "no such weights file, run or export"),
    ],
)
def test_what_is_missing_or_damaged_is_refused(run, tmp_path, damage, message):
    copy = shutil.copytree(run, tmp_path / "copy")
    damage(copy)
    for source in (copy / "phases" / "motion", copy):
        with pytest.raises(UserError, match=message):
            find_start(str(source), "motion", "motion", "")


def test_a_damaged_export_is_refused(run, tmp_path):
    folder = export_of(run, tmp_path / "exported")
    data = bytearray((folder / "weights.safetensors").read_bytes())
    data[-1] ^= 1
    (folder / "weights.safetensors").write_bytes(data)
    with pytest.raises(UserError, match="its checksum is wrong"):
        find_start(str(folder), "motion", "motion", "")


MOVES = {
    "head": lambda name: ".fc." in name,
    "last_stage": lambda name: ".fc." in name or ".layer2." in name,
    "temporal": lambda name: (
        ".fc." in name or name.endswith((".1.conv1.weight", ".1.conv3.weight"))
    ),
}


CASES = [("head", "motion"), ("last_stage", "motion"), ("temporal", "st_resnet")]


@pytest.mark.parametrize(("trainable", "phase"), CASES)
def test_only_the_chosen_part_moves_and_the_rest_is_what_it_was(
    data_root, run, tmp_path, trainable, phase
):
    """Weights, running statistics and their counters of all that is frozen are bit for bit the same afterwards."""
    before = load_file(run / "phases" / phase / "weights.safetensors")
    after = train(
        data_root, tmp_path / "tuned", phase, f"phases.{phase}.weights={json.dumps(str(run))}",
        f"phases.{phase}.optimise.trainable={trainable}", f"phases.{phase}.optimise.schedule=[[3, 0.1]]",
    )  # fmt: skip
    statistics = ("running_mean", "running_var", "num_batches_tracked")
    for name, value in before.items():
        if ".fc." in name:
            continue  # of other classes: replaced
        is_same = torch.equal(after[name].to(value.dtype), value)
        in_last_stage = trainable == "last_stage" and ".layer2." in name
        if name.endswith(statistics):
            assert is_same != in_last_stage, name
        elif not name.endswith(".bias"):
            assert is_same != MOVES[trainable](name), name
        else:
            assert is_same or MOVES[trainable](name), name
    momentum = load_file(
        next((tmp_path / "tuned/phases" / phase / "checkpoints").glob("step*"))
        / "momentum.safetensors"
    )
    assert all(MOVES[trainable](name) for name in momentum)
    assert any(".fc." in name for name in momentum)


def test_a_linear_probe_stopped_and_resumed_is_the_undisturbed_one(data_root, run, tmp_path):
    options = [
        f"phases.motion.weights={json.dumps(str(run))}",
        "phases.motion.optimise.trainable=head",
    ]
    straight = train(data_root, tmp_path / "a", "motion", *options)
    train(data_root, tmp_path / "b", "motion", *options, "training.max_steps=5")
    PhasePaths(tmp_path / "b/phases/motion").done.unlink()
    resumed = train(data_root, tmp_path / "b", "motion", *options)
    assert all(torch.equal(straight[name], resumed[name]) for name in straight)


def test_what_a_network_does_not_have_cannot_be_all_that_moves(data_root):
    with pytest.raises(
        ConfigError,
        match=r"phases\.motion\.optimise\.trainable: motion has no convolutions over time",
    ):
        tiny_config(data_root, "phases.motion.optimise.trainable=temporal")
    with pytest.raises(UserError, match="this network has no such part"):
        freeze(torch.nn.Linear(2, 2), "last_stage")
    with pytest.raises(ConfigError, match="the classifier is all that moves"):
        tiny_config(
            data_root,
            "phases.motion.optimise.trainable=head",
            "phases.motion.optimise.classifier_only_steps=3",
        )


def test_a_scaled_schedule_keeps_its_plateaus(data_root):
    plateaus = (Plateau(30000, 1e-2), Plateau(10000, 1e-3), Plateau(3, 1e-4))
    for scale in (0.0001, 0.0123, 0.5, 1.0, 2.0, 7.3):
        found = scaled(plateaus, scale)
        assert [rate for _, rate in found] == [1e-2, 1e-3, 1e-4]
        assert [steps for steps, _ in found] == [
            max(1, round(steps * scale)) for steps, _ in plateaus
        ]
    curve = scaled(Curve(name="cosine", steps=1000, options={"rate": 0.1}), 0.25)
    assert total_steps(curve) == 250
    assert curve.rate(0) == pytest.approx(0.1)
    config = tiny_config(data_root, "training.schedule_scale=0.4")
    assert {name: config.steps(name) for name in config.phases} == {
        "motion": 4, "appearance": 4, "st_resnet": 8, "st_resnet_star": 4,
    }  # fmt: skip
    assert config.source_of("motion", "optimise.schedule_scale") == "training.schedule_scale"
    own = tiny_config(data_root, "phases.motion.optimise.schedule_scale=2")
    assert (own.steps("motion"), own.steps("appearance")) == (20, 10)
    # Laid over once more, as commands that change one value do, nothing is scaled twice.
    again = dataclasses.replace(config, seed=3)
    assert again.steps("st_resnet") == 8


@pytest.mark.parametrize("scale", ["0", "-1", "1001", ".nan"])
def test_a_scale_that_nobody_can_mean_is_refused(data_root, scale):
    for key in ("training.schedule_scale", "phases.motion.optimise.schedule_scale"):
        with pytest.raises(ConfigError, match=r"schedule_scale: expected"):
            tiny_config(data_root, f"{key}={scale}")
