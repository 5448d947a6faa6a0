"""What is done is what its checksums say: copied, touched, moved or seen from elsewhere, a run is the run."""

import os
import shutil

import pytest

from hpc_stres.config.loading import load_config, load_run
from hpc_stres.errors import UserError
from hpc_stres.launch.jobs import evaluation_is_done, is_done
from hpc_stres.run.experiment import claim_run_folder
from hpc_stres.run.paths import RunPaths, write_sealed
from hpc_stres.run.product import read_done
from tests.conftest import TINY, tiny_config
from tests.unit.untrained import finish_without_weights


@pytest.fixture
def run(tmp_path):
    """A run that is done and evaluated, as far as its checksums say."""
    config, paths = tiny_config(tmp_path / "data"), RunPaths(tmp_path / "run")
    claim_run_folder(config, paths.root)
    for name in config.phases:
        finish_without_weights(config, paths, name)
    table = {name: {"weights": read_done(paths.phase(name))["sha256"]} for name in config.phases}
    write_sealed(paths.results, {"splits": {"1": table}})
    return paths


def state(run_dir):
    config, paths = load_run(run_dir), RunPaths(run_dir)
    return [is_done(config, paths, name) for name in config.phases], evaluation_is_done(
        config, paths
    )


WHOLE = [True] * 4, True


def test_a_copied_run_is_the_run_whatever_its_times(run, tmp_path):
    assert state(run.root) == WHOLE
    copy = shutil.copytree(run.root, tmp_path / "copy", copy_function=shutil.copyfile)
    times = iter(range(10**9, 2 * 10**9, 10**6))
    for path in sorted(copy.rglob("*"), reverse=True):
        os.utime(path, (next(times),) * 2)
    assert state(copy) == WHOLE
    os.utime(copy / "results.json", (1, 1))
    assert state(copy) == WHOLE


def test_a_product_that_changed_or_went_is_not_done(run, capsys):
    weights = run.phase("motion").weights
    weights.write_bytes(b"motioN")
    done, evaluated = state(run.root)
    assert (done, evaluated) == ([False, True, True, True], True)
    assert f"{weights}: missing, or not what the phase finished with" in capsys.readouterr().err
    weights.write_bytes(b"motion")
    assert state(run.root) == WHOLE
    weights.unlink()
    assert state(run.root)[0][0] is False


def test_weights_that_were_trained_anew_are_not_evaluated(run):
    config = load_run(run.root)
    finish_without_weights(config, run, "motion", 99)
    assert state(run.root)[1] is True, "the same weights are the same, however long they took"
    run.phase("motion").weights.write_bytes(b"others")
    from hpc_stres.run.paths import sha256

    done = read_done(run.phase("motion"))
    write_sealed(run.phase("motion").done, done | {"sha256": sha256(run.phase("motion").weights)})
    assert state(run.root) == ([True] * 4, False)


def test_a_run_folder_means_the_same_files_from_every_folder(tmp_path, monkeypatch):
    """Relative paths of the command that began a run are looked up there, and never again."""
    home, elsewhere = tmp_path / "home", tmp_path / "elsewhere"
    home.mkdir()
    elsewhere.mkdir()
    monkeypatch.chdir(home)
    overrides = [
        "data.root=store",
        "data.videos=my videos",
        "data.kind=folder",
        "model.weights=w.pth",
    ]
    overrides += [
        "phases.motion.weights=../run/phases/motion",
        "phases.st_resnet.model.motion.weights=m.pth",
    ]
    config = load_config(TINY, overrides)
    claim_run_folder(config, home / "run")
    monkeypatch.chdir(elsewhere)
    again = load_run(home / "run")
    assert again == config
    assert again.data.root == str(home / "store")
    assert again.data.videos == str(home / "my videos")
    assert again.phase("motion").weights == str(tmp_path / "run" / "phases" / "motion")
    assert again.phase("st_resnet").model.motion.weights == str(home / "m.pth")
    assert again.phase("appearance").model.appearance.weights == str(home / "w.pth")
    # The same experiment, spelt from elsewhere, may go on in this folder.
    spelt = ["data.root=../home/store", "data.videos=../home/x/../my videos", *overrides[2:3]]
    spelt += [f"model.weights={home}/w.pth", "phases.motion.weights=../run/phases/motion"]
    spelt += ["phases.st_resnet.model.motion.weights=../home/m.pth"]
    claim_run_folder(load_config(TINY, spelt), home / "run")


def test_a_project_that_was_moved_is_the_same_experiment(tmp_path, monkeypatch):
    """The paths of its config are absolute; its data set is known by its content, wherever it is."""
    places = ["data.root=data", "data.kind=folder", "data.videos=videos"]
    for name in ("before", "after"):
        (tmp_path / name).mkdir()
        monkeypatch.chdir(tmp_path / name)
        if name == "after":
            shutil.copytree(tmp_path / "before" / "run", "run")
        claim_run_folder(load_config(TINY, places), tmp_path / name / "run", update=True)
    assert load_run(tmp_path / "after" / "run").data.videos == str(tmp_path / "after" / "videos")
    with pytest.raises(UserError, match="of another experiment"):
        claim_run_folder(load_config(TINY, [*places, "data.folds=3"]), tmp_path / "after" / "run")


def test_names_of_published_weights_and_home_folders_are_no_relative_paths(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path / "me"))
    config = load_config(TINY, ["model.weights=resnet50", "data.root=~/data"])
    assert config.model.weights == "resnet50"
    assert config.data.root == str(tmp_path / "me" / "data")
    assert load_config(TINY, ["model.weights=none"]).model.weights is None
    (tmp_path / "resnet50").mkdir()
    assert load_config(TINY, ["model.weights=resnet50"]).model.weights == str(tmp_path / "resnet50")
