"""`hpc-stres init`: what it sees of any folder of videos, the config that it writes, and what it refuses."""

import argparse
import os
import shutil

import pytest

from hpc_stres.commands import init
from hpc_stres.config.loading import load_config
from hpc_stres.errors import UserError
from hpc_stres.evaluation import hub, networks
from hpc_stres.listings.listing import Listing
from hpc_stres.models import build_model
from hpc_stres.models.building import build_phase_model
from hpc_stres.models.weights import save_state
from hpc_stres.prepare import look as looking
from hpc_stres.prepare.look import Probe
from hpc_stres.run.paths import RunPaths, sha256, write_sealed
from hpc_stres.run.starts import frames_of_export
from hpc_stres.store.location import Settings
from hpc_stres.tools.new_config import quoted, schedule_scale, stride_for
from hpc_stres.training.first_weights import load_first_weights
from tests.conftest import tiny_config
from tests.unit import faulty_jobs
from tests.unit.test_fine_tuning import CLASSES
from tests.unit.untrained import make_run


@pytest.fixture(scope="module")
def clip(data_root):
    """One decodable video of 24 frames."""
    return next((data_root / "binding" / "videos").rglob("*.avi"))


@pytest.fixture
def videos(tmp_path, clip):
    """Folders of classes in a place with spaces, quotes and other letters."""
    home = tmp_path / "my 'vidéos' #1: \"ü\""
    for label in ("run", "sit"):
        for number in range(5):
            target = home / label / f"{label} {number}.avi"
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(clip, target)
    return home


@pytest.fixture
def here(tmp_path, monkeypatch):
    """A folder to work in, on a machine with neither Slurm nor a GPU, whose decoding runs in this process."""
    folder = tmp_path / "work"
    folder.mkdir()
    monkeypatch.chdir(folder)
    monkeypatch.setattr("shutil.which", lambda name: None)
    monkeypatch.setattr(
        looking, "_in_children", lambda function, jobs, seconds: [function(*job) for job in jobs]
    )
    monkeypatch.setattr(looking, "FRAMES", 3)
    return folder


def run(*words):
    parser = argparse.ArgumentParser()
    init.add_arguments(parser)
    return init.run(parser.parse_args([*map(str, words)]))


def test_a_folder_of_classes_gets_a_config_that_works_from_anywhere(
    videos, here, tmp_path, monkeypatch, capsys
):
    assert run("mine", "--videos", videos) == 0
    out = capsys.readouterr().out
    assert "10 videos of 2 classes" in out
    assert "24 to 24 frames" in out
    assert "small networks" in out
    assert "from scratch" in out
    assert f"written: {here}/mine.yaml" in out
    monkeypatch.chdir(tmp_path)
    config = load_config(here / "mine.yaml")
    assert (config.data.kind, config.data.videos, config.data.root) == (
        "folder",
        str(videos),
        str(here / "data"),
    )
    assert config.model.weights is None
    assert [config.steps(name) for name in ("motion", "st_resnet")] == [100, 170]
    # Strides fit 24 frames, of which ten are one stack of flow.
    assert config.phase("st_resnet").clips.stride == (1, 3)
    assert not (here / "data").exists(), "looking makes nothing but the config"


def test_relative_places_and_names_are_made_absolute(videos, here, capsys):
    os.symlink(videos, here / "v")
    assert (
        run("sub.yaml", "--videos", "v", "--root", "stores", "--size", "full", "--from-scratch")
        == 0
    )
    config = load_config(here / "sub.yaml")
    assert config.data.videos == str(here / "v")
    assert config.data.root == str(here / "stores")
    assert config.model.stages is None
    assert "hours on one A100" in capsys.readouterr().out


def test_a_config_that_is_there_stays_unless_forced(videos, here):
    (here / "mine.yaml").write_text("precious")
    with pytest.raises(UserError, match=r"mine\.yaml is there already\n.*--force"):
        run("mine", "--videos", videos)
    assert (here / "mine.yaml").read_text() == "precious"
    assert run("mine", "--videos", videos, "--force") == 0
    assert load_config(here / "mine.yaml").data.kind == "folder"


def test_a_place_that_cannot_be_written_is_said(videos, here):
    (here / "file").write_text("")
    with pytest.raises(
        UserError, match=r"file/mine\.yaml: cannot be written: .*\nName another place with --out"
    ):
        run("mine", "--videos", videos, "--out", here / "file" / "mine.yaml")


def test_tables_and_lists_are_found_beside_the_videos(videos, here, capsys):
    rows = "".join(
        f"{label}/{label} {n}.avi,{label},{'test' if n else 'train'}\n"
        for label in ("run", "sit")
        for n in (0, 1)
    )
    (videos / "labels.csv").write_text("path,label,split\n" + rows)
    (videos / "other.csv").write_text("a,b\n1,2\n")
    run("table", "--videos", videos)
    config = load_config(here / "table.yaml")
    assert (config.data.kind, config.data.lists) == ("csv", str(videos / "labels.csv"))
    assert "4 videos of 2 classes" in capsys.readouterr().out
    (videos / "second.csv").write_text("path;label\n")
    with pytest.raises(UserError, match=r"several tables of videos: labels\.csv, second\.csv"):
        run("two", "--videos", videos)
    for name in ("labels.csv", "second.csv"):
        (videos / name).unlink()
    (videos / "train.txt").write_text("run/run 0.avi\nsit/sit 0.avi\n")
    (videos / "test.txt").write_text("run/run 1.avi\nsit/sit 1.avi\n")
    run("lists", "--videos", videos)
    assert load_config(here / "lists.yaml").data.kind == "lists"


def test_folds_and_train_and_test_folders(videos, here, capsys):
    run("folds", "--videos", videos, "--folds", 5)
    assert load_config(here / "folds.yaml").data.folds == 5
    out = capsys.readouterr().out
    assert "split 5: 8 train (4 of a class); 2 test (1 of a class)" in out
    assert "--split all" in out
    with pytest.raises(UserError, match=r"--folds 6|no test video in split 6"):
        run("more", "--videos", videos, "--folds", 6)
    for kind in ("train", "test"):
        for label in ("run", "sit"):
            (videos / kind).mkdir(exist_ok=True)
            shutil.copytree(videos / label, videos / kind / label)
    for label in ("run", "sit"):
        shutil.rmtree(videos / label)
    run("layout", "--videos", videos)
    assert "train/ trains (10 videos), test/ tests (10)" in capsys.readouterr().out


def test_what_cannot_be_read_is_said_and_does_not_stop_the_look(videos, here, capsys):
    (videos / "run" / "broken.avi").write_bytes(b"no video")
    (videos / "run" / "notes.txt").write_text("x")
    run("mine", "--videos", videos)
    out = capsys.readouterr().out
    assert "cannot be read: 1 of 11 videos" in out
    assert "prepare will refuse so many" in out
    assert "broken.avi" in out
    assert "files that are not read: 1 .txt" in out


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["mine", "--videos", "nowhere"], "no such folder"),
        (["../..", "--videos", "."], "NAME"),
        (["a b", "--videos", "."], "expected letters, digits"),
        (["mine", "--videos", "."], "no class folders here"),
        (["mine", "--videos", ".", "--lists", "none.csv"], "no such folder or table"),
        (["mine", "--videos", "VIDEOS", "--trainable", "head"], "expected --from as well"),
        (
            ["mine", "--videos", "VIDEOS", "--from", "nowhere"],
            "no published weights 'nowhere', and no such file",
        ),
        (["mine", "--videos", "VIDEOS", "--folds", "0"], "--folds 0"),
    ],
)
def test_what_cannot_be_is_refused_and_writes_nothing(videos, here, words, message):
    with pytest.raises(UserError, match=message):
        run(*[str(videos) if word == "VIDEOS" else word for word in words])
    assert list(here.iterdir()) == []


def test_fine_tuning_takes_sizes_and_streams_of_what_it_starts_from(
    videos, here, data_root, tmp_path, capsys
):
    config = tiny_config(data_root)
    make_run(config, tmp_path / "old run", CLASSES, ["motion", "appearance"])
    run("tuned", "--videos", videos, "--from", tmp_path / "old run", "--trainable", "head")
    tuned = load_config(here / "tuned.yaml")
    assert (tuned.model.stages, tuned.model.width) == ((2, 2), 4)
    # On frames of its size, and with the schedules and batches of small networks.
    assert (tuned.data.short_side, tuned.data.crop) == (48, 32)
    assert tuned.phase("st_resnet").optimise.global_batch == 32
    assert tuned.steps("motion") == 100
    for name in ("motion", "appearance"):
        assert tuned.phase(name).weights == str(tmp_path / "old run" / "phases" / name)
        assert tuned.phase(name).optimise.trainable == "head"
    assert tuned.phase("st_resnet").optimise.trainable == "all"
    run("one", "--videos", videos, "--from", tmp_path / "old run/phases/motion/weights.safetensors")
    one = load_config(here / "one.yaml")
    assert one.phase("motion").weights is not None
    assert one.phase("appearance").weights is None
    assert one.model.width == 4


@pytest.fixture
def joint_export(data_root, tmp_path):
    """What `export` writes of a joint network beside its programs, and the folder to share."""
    config = tiny_config(data_root)
    paths = make_run(config, tmp_path / "old run", CLASSES, ["st_resnet"])
    folder = tmp_path / "an export"
    folder.mkdir()
    shutil.copy(paths.phase("st_resnet").weights, folder / "weights.safetensors")
    made = {
        "phase": "st_resnet", "classes": CLASSES, "settings": Settings.of(config.data).as_json(),
        "weights_sha256": "", "sizes": networks.exported_sizes(config, "st_resnet"),
        "files": {"weights.safetensors": sha256(folder / "weights.safetensors")},
    }  # fmt: skip
    write_sealed(folder / "export.json", made)
    hub.write_folder(config, paths, made, folder / "weights.safetensors", folder / "hub")
    return folder


@pytest.mark.parametrize("place", [".", "weights.safetensors", "hub", "hub/model.safetensors"])
def test_an_export_of_a_joint_network_starts_both_streams(
    videos, here, data_root, joint_export, place
):
    run("tuned", "--videos", videos, "--from", joint_export / place, "--trainable", "head")
    tuned = load_config(here / "tuned.yaml")
    assert (tuned.data.short_side, tuned.data.crop) == (48, 32)
    assert (tuned.model.stages, tuned.model.width) == ((2, 2), 4)
    for name in ("motion", "appearance"):
        model = build_phase_model(tuned, name, 3)
        said = load_first_weights(model, tuned, name, RunPaths(here / "run"), ["a", "b", "c"])
        assert "4 summed over time" in said
        assert f"2 replaced ({name}.fc" in said


def test_a_damaged_export_is_refused_before_anything_is_written(videos, here, joint_export):
    shared = joint_export / "hub" / "config.json"
    shared.write_text(shared.read_text().replace("class1", "class9"))
    (joint_export / "export.json").write_text("{}")
    for place in (".", "hub"):
        with pytest.raises(UserError, match="Export the phase again"):
            run("tuned", "--videos", videos, "--from", joint_export / place)
    assert list(here.iterdir()) == []


def test_a_published_file_is_not_taken_for_the_export_of_this_folder(joint_export):
    assert frames_of_export(joint_export) == (48, 32)
    assert frames_of_export(joint_export / "resnet50") is None
    (joint_export / "other.safetensors").touch()
    assert frames_of_export(joint_export / "other.safetensors") is None


def test_somebody_elses_config_further_up_is_not_read(videos, here, data_root, tmp_path):
    (here / "config.yaml").write_text("a: program of another kind\n")
    (here / "config.json").write_text("[1]")
    state = build_model("motion", 5, stages=(2, 2), width=4).state_dict()
    save_state(state, here / "weights.safetensors")
    run("tuned", "--videos", videos, "--from", "weights.safetensors")
    assert load_config(here / "tuned.yaml").model.width == 4


def test_a_single_class_is_noted(videos, here, capsys):
    """Most often the folder above the one that was meant."""
    above = here / "above"
    above.mkdir()
    (above / "mine").symlink_to(videos)
    run("mine", "--videos", above)
    out = capsys.readouterr().out
    assert "only one class, mine: there is nothing to tell apart" in out
    assert "--videos" in out


@pytest.mark.parametrize("frames", [1, 11, 24, 60, 100, 250, 5000])
@pytest.mark.parametrize(("chunks", "published"), [(5, (5, 15)), (11, (1, 15)), (2, (1, 1))])
def test_strides_fit_the_videos_and_are_the_published_ones_where_they_do(frames, chunks, published):
    low, high = stride_for(frames, chunks, published)
    assert 1 <= low <= high <= published[1]
    assert high == 1 or (chunks - 1) * high + 10 <= frames
    if (chunks - 1) * published[1] + 10 <= frames and (frames - 10) // (
        chunks - 1
    ) >= 2 * published[0]:
        assert (low, high) == published


@pytest.mark.parametrize("videos", [1, 2, 38, 255, 9537, 240_000])
def test_schedules_are_scaled_by_the_number_of_videos(videos):
    assert schedule_scale(videos, False) == pytest.approx(videos / 9537, rel=0.01)
    assert schedule_scale(videos, True) == pytest.approx(max(1.0, videos / 256), rel=0.01)


def test_any_path_is_read_back_as_it_was():
    import yaml

    for text in (
        "a b",
        "x: y",
        "#",
        "'",
        '"',
        "ü ß 漢字",
        "\\",
        "~",
        "null",
        "- a",
        "{",
        "%",
        "a\u2028b",
    ):
        assert yaml.safe_load(f"key: {quoted(text)}   # note") == {"key": text}


@pytest.mark.parametrize(
    ("job", "reason"),
    [(faulty_jobs.dies, "its decoder breaks off"), (faulty_jobs.hangs, "it takes longer than")],
)
def test_a_video_that_breaks_or_holds_its_decoder_costs_itself_alone(job, reason, monkeypatch):
    if job is faulty_jobs.hangs:
        monkeypatch.setattr(looking, "cores", lambda: 1)  # two at once would wait twice
    answers = looking._in_children(job, [("a",), ("bad",), ("b",)], 10.0)
    assert [answers[0], answers[2]] == ["a", "b"]
    assert answers[1].startswith(reason)


def test_nothing_is_looked_at_in_an_empty_listing():
    seen = looking.look(Listing(["a"]), Settings(64, 95, "native", "paper"), 1000)
    assert (seen.probes, seen.cost, seen.stored_bytes, seen.median_frames) == ([], None, None, 0)
    assert Probe(1, 2, 3, 4.0).frames == 1
