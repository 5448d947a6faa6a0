"""Evaluations that overlap, are killed, meet damaged files or diverged weights: the right numbers, or a sentence."""

import json
import os
import random
import shutil
import signal
import subprocess
import sys

import numpy as np
import pytest

from hpc_stres.errors import ConfigError, UserError
from hpc_stres.evaluation import evaluate as module
from hpc_stres.evaluation import parts
from hpc_stres.evaluation.finished import load_trained
from hpc_stres.evaluation.results import columns
from hpc_stres.evaluation.scores import Scores
from hpc_stres.evaluation.table import read_results
from hpc_stres.models.weights import read_state
from hpc_stres.run.paths import RunPaths, write_sealed
from tests.conftest import run_python, tiny_config
from tests.forks import Command
from tests.unit.untrained import evaluate_here, finish, make_run
from tests.waiting import wait_until

PHASES = ("motion", "appearance")


@pytest.fixture(scope="module")
def scored(data_root, store, tmp_path_factory):
    """An evaluated run of untrained streams."""
    run_dir = tmp_path_factory.mktemp("scored") / "run"
    make_run(tiny_config(data_root), run_dir, store.classes, PHASES)
    evaluate_here(run_dir)
    return run_dir


@pytest.fixture
def run(scored, tmp_path):
    return RunPaths(shutil.copytree(scored, tmp_path / "run"))


def result_bytes(run_dir):
    return (run_dir / "results.json").read_bytes()


def start_evaluation(run_dir, *more):
    return Command(["-m", "hpc_stres", "evaluate", "--run-dir", run_dir, *more])


def test_what_is_scored_is_not_scored_again_and_gives_the_same_bits(scored, run, monkeypatch):
    monkeypatch.setattr(module.protocol, "score_video", None)
    evaluate_here(run.root)
    assert result_bytes(run.root) == result_bytes(scored)


@pytest.mark.parametrize("seed", range(4))
def test_after_a_kill_at_any_moment_the_results_have_the_same_bits(scored, run, seed):
    """Each part file loses its end at a random byte, another attempt has scored some of its videos as well."""
    draw = random.Random(seed)
    for path in sorted(parts.folder(run).iterdir()):
        whole = path.read_bytes()
        path.write_bytes(whole[: draw.randrange(len(whole))])
        path.with_name(path.name.replace("_rank00000_", "_rank00001_")).write_bytes(
            whole[: draw.randrange(len(whole))]
        )
    for path in (run.results, run.scores(1, "motion")):
        path.unlink()
    evaluate_here(run.root)
    assert result_bytes(run.root) == result_bytes(scored)
    one, two = (
        Scores.load(folder / "scores" / "split1_motion.npz") for folder in (scored, run.root)
    )
    np.testing.assert_array_equal(one.logits, two.logits)


def wait_for_scores(process, run):
    """Until it has scored a video, or has ended."""
    wait_until(
        lambda: process.poll() is not None or any(parts.folder(run).glob("*.jsonl")), "scores"
    )


def test_an_evaluation_that_was_killed_is_resumed(scored, run):
    # A machine may be so fast that it ends first: then it is tried again.
    for _ in range(5):
        shutil.rmtree(run.root / "scores")
        run.results.unlink()
        process = start_evaluation(run.root)
        try:
            wait_for_scores(process, run)
        finally:
            process.kill()
        if not run.results.is_file():
            break
    assert process.returncode == -signal.SIGKILL
    assert not run.results.is_file()
    evaluate_here(run.root)
    assert result_bytes(run.root) == result_bytes(scored)


def test_evaluations_at_once_give_the_same_bits(scored, run):
    shutil.rmtree(run.root / "scores")
    run.results.unlink()
    both = [start_evaluation(run.root), start_evaluation(run.root, "--phase", "motion")]
    for process in both:
        assert process.finished().returncode == 0, process.errors
    assert columns(tiny_config("unused"), run.root).keys() == {"appearance", "motion", "two_stream"}
    evaluate_here(run.root)
    assert result_bytes(run.root) == result_bytes(scored)


def test_a_second_evaluation_names_the_owner_and_is_refused_when_its_patience_ends(
    run, monkeypatch, capsys
):
    monkeypatch.setattr(module, "PATIENCE_SECONDS", 0.5)
    before = {path: path.read_bytes() for path in sorted(parts.folder(run).iterdir())}
    lock = run.root / "scores" / "owner.lock"
    holder = subprocess.Popen(
        [sys.executable, "-c", "import fcntl, sys, time\nf = open(sys.argv[1], 'r+')\nfcntl.flock(f, fcntl.LOCK_EX)\n"
         "f.write('{\"process\": 7, \"host\": \"node9\", \"since\": \"noon\"}')\nf.flush()\nprint(1, flush=True)\n"
         "time.sleep(3600)", str(lock)], stdout=subprocess.PIPE, text=True)  # fmt: skip
    try:
        assert holder.stdout.readline() == "1\n"
        with pytest.raises(UserError, match="this run is being evaluated by process 7 on node9"):
            evaluate_here(run.root)
    finally:
        holder.kill()
        holder.communicate()
    assert "process 7 on node9, since noon; waiting up to" in capsys.readouterr().err
    assert {path: path.read_bytes() for path in sorted(parts.folder(run).iterdir())} == before


def test_two_attempts_that_disagree_are_refused_by_name(run):
    path = next(parts.folder(run).glob("split1_motion_*"))
    row = json.loads(path.read_text().splitlines()[0])
    row["motion"][0][0] += 1.0
    write_line(path.with_name(path.name.replace("rank00000", "rank00001")), row)
    with pytest.raises(
        UserError, match=f"video {row['id']} was scored twice, with different results"
    ):
        evaluate_here(run.root)


def write_line(path, row):
    write_sealed(path, row)
    path.write_text(json.dumps(json.loads(path.read_text())) + "\n")


def test_damaged_rows_are_named_and_their_videos_scored_again(scored, run, capsys):
    path = next(parts.folder(run).glob("split1_motion_*"))
    lines = path.read_bytes().splitlines(keepends=True)
    old = {key: value for key, value in json.loads(lines[2]).items() if key != "checksum"}
    lines[0], lines[1] = lines[0].replace(b"0.", b"1.", 1), b"\x00\xff" + lines[1]
    lines[2] = json.dumps(old).encode() + b"\n"
    path.write_bytes(b"".join(lines))
    evaluate_here(run.root)
    said = capsys.readouterr().err
    for number, what in ((1, "damaged"), (2, "damaged"), (3, "written by version 0.2")):
        assert f"{path}, line {number}: {what}; its video is scored again" in said
    assert result_bytes(run.root) == result_bytes(scored)


@pytest.mark.parametrize("sign", [1, -1])
def test_scores_that_are_not_finite_stop_an_evaluation(run, data_root, store, sign):
    state = read_state(run.phase("motion").weights)
    # Weights that are finite and whose sums are not: what is read is fine, what comes out is not.
    state["motion.fc.weight"][0] = sign * 3e38
    state["motion.fc.bias"][0] = sign * 3e38
    finish(tiny_config(data_root), run, "motion", state, store.classes)
    before = result_bytes(run.root)
    result = run_python("-m", "hpc_stres", "evaluate", "--run-dir", run.root)
    assert result.returncode == 1
    lines = result.stderr.strip().splitlines()[-3:]
    assert "phase motion: the motion score of video v_" in lines[0]
    assert str(run.phase("motion").weights) in lines[1]
    assert result_bytes(run.root) == before


def test_a_data_set_of_other_classes_is_refused(run, data_root, store):
    state = read_state(run.phase("motion").weights)
    finish(tiny_config(data_root), run, "motion", state, [*store.classes[:-1], "other"])
    with pytest.raises(
        UserError, match=r"classes are not the 8 that phase motion was trained on: .*other"
    ):
        evaluate_here(run.root)
    finish(tiny_config(data_root), run, "motion", state, store.classes[::-1])
    with pytest.raises(UserError, match="their order"):
        evaluate_here(run.root)


def test_weights_of_another_number_of_classes_are_refused(run, data_root, store):
    state = read_state(run.phase("motion").weights)
    for name in ("motion.fc.weight", "motion.fc.bias"):
        state[name] = state[name][:-1]
    finish(tiny_config(data_root), run, "motion", state, store.classes)
    with pytest.raises(UserError, match=r"motion\.fc\..* does not fit"):
        evaluate_here(run.root)


def test_scores_follow_the_network_and_the_content_of_each_video(
    run, data_root, store, monkeypatch
):
    """Another protocol, another network on the same weights, a video of another content: scored again."""
    videos = [store.rows[0].id]

    def key(*overrides):
        config = tiny_config(data_root, *overrides)
        return module._scoring(config, "motion", run, store, videos).keys[videos[0]]

    first = key()
    assert key() == key("evaluation.allow_missing=true") == first
    changes = (
        "evaluation.chunks=6",
        "evaluation.flips=false",
        "model.variant=msra",
        "training.precision=float64",
    )
    assert len({first, *(key(change) for change in changes)}) == 1 + len(changes)
    other = type(store.rows[0])(**{**vars(store.rows[0]), "rgb_sha256": "0" * 64})
    monkeypatch.setattr(store, "rows", [other, *store.rows[1:]])
    assert key() != first


def test_columns_keep_their_own_protocol(run):
    evaluate_here(run.root, "evaluation.protocol=quick", phases=["motion"])
    results = read_results(run.results)
    table = results["splits"]["1"]
    assert table["motion"]["protocol"].startswith("quick")
    assert table["appearance"]["protocol"].startswith("paper")
    assert "two_stream" not in table, "no mean of two protocols"
    assert results["protocol"] == "columns of different protocols"


def test_scores_of_replaced_weights_are_left_out(run, data_root, store, capsys):
    state = read_state(run.phase("motion").weights)
    state["motion.fc.bias"] += 1
    finish(tiny_config(data_root), run, "motion", state, store.classes)
    found = columns(tiny_config(data_root), run.root)
    assert list(found) == ["appearance"]
    assert (
        "split1_motion.npz: of weights that were replaced since; left out"
        in capsys.readouterr().err
    )


def test_a_damaged_done_file_and_one_of_an_older_version_are_sentences(run):
    done = run.phase("motion").done
    whole = json.loads(done.read_text())
    flip = done.read_text().replace(whole["classes"][0], "x" + whole["classes"][0][1:], 1)
    for text in (
        flip,
        "{",
        "[]",
        json.dumps({**whole, "classes": None}),
        json.dumps({"step": 3}),
        "\udcff",
    ):
        done.write_bytes(text.encode("utf-8", "surrogateescape"))
        with pytest.raises(UserError, match=r"done\.json"):
            evaluate_here(run.root)


def flipped(path, count, seed):
    """The file with one random bit flipped, `count` times; the file is whole again at the end."""
    whole, draw = path.read_bytes(), random.Random(seed)
    for _ in range(count):
        torn = bytearray(whole)
        torn[draw.randrange(len(torn))] ^= 1 << draw.randrange(8)
        path.write_bytes(torn)
        yield
    path.write_bytes(whole)


def test_every_flipped_bit_of_results_and_scores_is_noticed_or_harmless(run):
    right = read_results(run.results)
    said = []
    for _ in flipped(run.results, 150, 1):
        try:
            assert read_results(run.results) == right
        except UserError as error:
            said.append(str(error))
    assert len(said) > 100
    path = run.scores(1, "motion")
    whole = Scores.load(path)
    for _ in flipped(path, 150, 2):
        try:
            seen = Scores.load(path)
        except UserError as error:
            said.append(str(error).replace("split1_motion.npz", "results.json"))
            continue
        assert (seen.ids, seen.classes, seen.made_by) == (whole.ids, whole.classes, whole.made_by)
        np.testing.assert_array_equal(seen.logits, whole.logits)
        np.testing.assert_array_equal(seen.labels, whole.labels)
    assert all("results.json" in text for text in said)


def test_every_flipped_bit_of_a_part_is_noticed_or_harmless(run, data_root, store):
    videos = sorted(store.ids(1, "test"))
    keys = module._scoring(tiny_config(data_root), "motion", run, store, videos).keys
    right = parts.read_parts(run, 1, "motion", keys)
    assert sorted(right) == videos
    for _ in flipped(next(parts.folder(run).glob("split1_motion_*")), 150, 3):
        for video, streams in parts.read_parts(run, 1, "motion", keys).items():
            np.testing.assert_array_equal(streams["motion"], right[video]["motion"])


def test_a_full_disk_while_scoring_is_a_sentence_and_loses_nothing(scored, run, monkeypatch):
    shutil.rmtree(parts.folder(run))
    written = []
    plain_write = parts.PartWriter.write

    def write(self, video, *more):
        if len(written) == 3:
            monkeypatch.setattr(self, "path", run.root / "config.yaml" / "part.jsonl")
        plain_write(self, video, *more)
        written.append(video)

    with monkeypatch.context() as patch:
        patch.setattr(parts.PartWriter, "write", write)
        with pytest.raises(UserError, match=r"cannot be written: .*\nWhat was scored is kept"):
            evaluate_here(run.root)
    assert len(written) == 3
    evaluate_here(run.root)
    assert result_bytes(run.root) == result_bytes(scored)
    assert os.path.isdir(parts.folder(run))


@pytest.mark.parametrize(
    ("override", "key"),
    [("data.split=2", "data.split"), ("model.variant=msra", "model.variant"), ("model.width=8", "model.width"),
     ("phases.st_resnet.model.temporal_padding=replicate", "phases.st_resnet.model.temporal_padding")],
)  # fmt: skip
def test_weights_are_used_only_as_they_were_trained(scored, override, key):
    with pytest.raises(
        ConfigError, match=f"--set {key}: the weights in .* were trained with another value"
    ):
        load_trained(scored, [override])
    assert load_trained(scored, ["data.root=x", "evaluation.chunks=9"]).evaluation.chunks == 9


def test_a_named_phase_that_is_not_finished_and_a_folder_that_cannot_be_written_are_sentences(run):
    with pytest.raises(UserError, match="phase st_resnet is not finished"):
        evaluate_here(run.root, phases=["motion", "st_resnet"])
    shutil.rmtree(run.root / "scores")
    (run.root / "scores").write_text("")
    with pytest.raises(UserError, match=r"scores.*: (Not a directory|File exists)\n"):
        evaluate_here(run.root)


def test_the_table_of_a_run_of_version_0_2_says_how_to_go_on(run):
    """Its scores have no digest and its results no checksum; the weights and their names are what is needed."""
    path = run.scores(1, "motion")
    with np.load(path) as data:
        np.savez(
            path, **{name: data[name] for name in data.files if name not in ("digest", "made_by")}
        )
    bare = {
        key: value
        for key, value in json.loads(run.results.read_text()).items()
        if key != "checksum"
    }
    run.results.write_text(json.dumps(bare))
    with pytest.raises(
        UserError, match=r"results\.json: it has no checksum .*0\.2\)\nRun `hpc-stres evaluate"
    ):
        read_results(run.results)
    with pytest.raises(
        UserError, match=r"split1_motion\.npz: it has no digest .*0\.2\)\nRemove it and run"
    ):
        columns(tiny_config("unused"), run.root)
    evaluate_here(run.root)
    assert read_results(run.results) == bare
