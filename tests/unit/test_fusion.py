"""Fusing score files: by name and never by position, with what is missing counted."""

import json
import random

import numpy as np
import pytest

from hpc_stres.errors import ConfigError, UserError
from hpc_stres.evaluation import fusion
from hpc_stres.evaluation.scores import Scores
from tests.conftest import run_python

CLASSES = ["run", "jump", "sit"]
IDS = ["v_a", "v_b", "v_c", "v_d"]
LABELS = [0, 1, 2, 0]


@pytest.fixture
def network(tmp_path):
    """Our own scores: right on a and b."""
    logits = np.array([[5.0, 1, 0], [0, 40, 1], [3, 0, 2], [0, 0, 9]])
    path = tmp_path / "net.npz"
    Scores(IDS, np.array(LABELS), CLASSES, logits, {}).save(path)
    return path


def write_csv(path, ids=IDS, classes=("sit", "run", "jump"), labels=None, scale=1.0):
    """Hand-crafted scores: right on c and d, in another order of columns and rows."""
    best = {"v_a": "jump", "v_b": "run", "v_c": "sit", "v_d": "run"}
    lines = [",".join(["id", *(["label"] if labels else []), *classes])]
    for name in reversed(ids):
        values = [
            scale * (3.0 if best[fusion.video_name(name).rpartition("/")[2]] == c else 0.1)
            for c in classes
        ]
        lines.append(",".join([name, *([labels[name]] if labels else []), *map(str, values)]))
    path.write_text("\n".join(lines) + "\n")
    return path


def test_normalised_weighted_mean_by_hand(network, tmp_path):
    files = [fusion.read(network), fusion.read(write_csv(tmp_path / "idt.csv"))]
    fused, total = fusion.fuse(files, [2.0, 1.0], False)
    net = np.array([3.0, 0, 2]) / np.sqrt(13)
    idt = np.array([0.1, 0.1, 3.0]) / np.sqrt(9.02)
    np.testing.assert_allclose(fused.logits[2], (2 * net + idt) / 3, rtol=1e-14)
    assert total == 4
    assert fused.ids == IDS
    assert fused.labels.tolist() == LABELS


def test_the_scale_of_a_file_does_not_matter(network, tmp_path):
    one = [fusion.read(network), fusion.read(write_csv(tmp_path / "one.csv"))]
    ten = [fusion.read(network), fusion.read(write_csv(tmp_path / "ten.csv", scale=1000.0))]
    np.testing.assert_allclose(
        fusion.fuse(one, [1, 1], False)[0].logits, fusion.fuse(ten, [1, 1], False)[0].logits
    )


def test_folders_and_extensions_of_ids_are_no_part_of_a_name(network, tmp_path):
    ids = ["Run/v_a.avi", "v_b.avi", "Sit\\v_c.mp4", "v_d"]
    found, _ = fusion.fuse(
        [fusion.read(network), fusion.read(write_csv(tmp_path / "x.csv", ids=ids))], [1, 1], False
    )
    assert found.ids == IDS


def test_a_missing_video_is_refused_or_counted(network, tmp_path):
    files = [fusion.read(network), fusion.read(write_csv(tmp_path / "x.csv", ids=IDS[:3]))]
    with pytest.raises(
        UserError, match=r"1 of 4 videos are not in every file: v_d is not in .*x\.csv"
    ):
        fusion.fuse(files, [1, 1], False)
    fused, total = fusion.fuse(files, [1, 1], True)
    assert (fused.ids, total) == (IDS[:3], 4)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("name,run\nv_a,1\n", "line 1: expected a header"),
        ("id,run,jump,sit\nv_a,1,2\n", "line 2: 3 cells under a header of 4"),
        ("id,run,jump,sit\nv_a,1,2,x\n", "line 2: could not convert"),
        ("id,run,jump,sit\nv_a,1,2,3\nv_a.avi,1,2,3\n", "the video v_a is there twice"),
        ("id,run,run,sit\nv_a,1,2,3\n", "the class run is there twice"),
        ("id,run,jump,sit\nv_a,1,2,nan\n", "a score of video v_a is not a finite number"),
        ("id,run,jump,stand\nv_a,1,2,3\n", "its classes are not those of .*sit, stand"),
        (
            "id,label,run,jump,sit\nv_a,jump,1,2,3\n",
            "video v_a is jump here and run in another file",
        ),
    ],
)
def test_what_is_wrong_is_named(network, tmp_path, text, words):
    path = tmp_path / "bad.csv"
    path.write_text(text)
    with pytest.raises(UserError, match=words):
        fusion.fuse([fusion.read(network), fusion.read(path)], [1, 1], True)


def score_file(path, ids, labels=None):
    """A file of so many videos in three classes."""
    logits = np.eye(3)[np.arange(len(ids)) % 3]
    arrays = {} if labels is None else {"labels": np.array(labels)}
    np.savez(path, ids=np.array(ids), classes=np.array(CLASSES), logits=logits, **arrays)
    return fusion.read(path)


FOLDERS = ["jump/clip01", "jump/clip02", "run/clip01"]


def test_ids_with_folders_are_matched_as_whole_paths(tmp_path):
    full = score_file(tmp_path / "full.npz", FOLDERS, [0, 1, 2])
    other = score_file(
        tmp_path / "other.npz", [f"videos/{name}.mpeg" for name in reversed(FOLDERS)]
    )
    fused, total = fusion.fuse([full, other], [1, 0], False)
    assert (fused.ids, fused.labels.tolist(), total) == (FOLDERS, [0, 1, 2], 3)
    np.testing.assert_array_equal(fused.logits, np.eye(3))


@pytest.mark.parametrize("ids", [["clip01", "clip02"], ["clip01.avi"], ["./clip01.mp4"]])
def test_a_file_name_that_could_be_two_videos_is_refused_with_both(tmp_path, ids):
    full = score_file(tmp_path / "full.npz", FOLDERS, [0, 1, 2])
    short = score_file(tmp_path / "short.npz", ids)
    with pytest.raises(UserError, match=r"short\.npz: clip01 could be jump/clip01 or run/clip01"):
        fusion.fuse([full, short], [1, 1], True)
    with pytest.raises(UserError, match=r"full\.npz: clip01 could be jump/clip01 or run/clip01"):
        fusion.fuse([short, full], [1, 1], True)


def test_two_videos_of_one_file_name_are_never_taken_for_one(tmp_path):
    one = score_file(tmp_path / "one.npz", ["jump/clip01"], [0])
    two = score_file(tmp_path / "two.npz", ["run/clip01"])
    with pytest.raises(UserError, match="no video is in all of these files"):
        fusion.fuse([one, two], [1, 1], True)
    assert fusion.fuse([one, score_file(tmp_path / "three.npz", ["clip01"])], [1, 1], False)[
        0
    ].ids == ["jump/clip01"]


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"labels": [0, 1, 3]}, "video c has label 3, but there are 3 classes"),
        ({"labels": [0, -1, 2]}, "video b has label -1"),
        ({"labels": [0.0, 1.0, 2.0]}, "expected 3 whole numbers"),
        ({"labels": [0, 1]}, "labels are"),
        ({"logits": np.full((3, 3), np.nan)}, "a score of video a is not a finite number"),
        ({"logits": np.full((3, 3), np.inf)}, "a score of video a is not a finite number"),
        ({"logits": np.zeros((3, 4))}, "logits are"),
        ({"logits": np.zeros((3, 3), complex)}, "logits are"),
        (
            {"logits": np.zeros((0, 3)), "ids": np.array([], str), "labels": np.array([], int)},
            "it holds 0 videos",
        ),
        ({"ids": ["a", "b", "a.avi"]}, "the video a is there twice"),
        ({"ids": ["a", "", "c"]}, "a video without a name"),
        ({"ids": [["a", "b", "c"]]}, "expected a list of names"),
        ({"digest": "00"}, "damaged: its digest is wrong"),
    ],
)
def test_arrays_that_do_not_fit_each_other_are_refused(tmp_path, change, words):
    whole = {"ids": ["a", "b", "c"], "classes": CLASSES, "logits": np.eye(3), "labels": [0, 1, 2]}
    path = tmp_path / "bad.npz"
    np.savez(path, **{name: np.array(value) for name, value in (whole | change).items()})
    with pytest.raises(UserError, match=words):
        fusion.read(path)


@pytest.mark.parametrize("data", [b"id,run\nv\xe4,1\n", b"id,run\nv,\x001\n", b"", b"\n\n"])
def test_tables_that_are_no_text_are_refused(tmp_path, data):
    (tmp_path / "bad.csv").write_bytes(data)
    with pytest.raises(UserError, match=r"bad\.csv"):
        fusion.read(tmp_path / "bad.csv")


def test_every_flipped_bit_of_a_score_file_is_noticed_or_harmless(network):
    whole, right, draw = network.read_bytes(), fusion.read(network), random.Random(4)
    for _ in range(100):
        torn = bytearray(whole)
        torn[draw.randrange(len(torn))] ^= 1 << draw.randrange(8)
        network.write_bytes(torn)
        try:
            seen = fusion.read(network)
        except UserError:
            continue
        assert (seen.ids, seen.classes, seen.labels) == (right.ids, right.classes, right.labels)
        np.testing.assert_array_equal(seen.scores, right.scores)


def test_weights_are_checked(network):
    file = fusion.read(network)
    for weights in ([1.0], [-1.0, 2.0], [0.0, 0.0], [float("nan"), 1.0], [float("inf"), 1.0]):
        with pytest.raises(ConfigError, match="--weights"):
            fusion.fuse([file, file], weights, False)


def test_the_command_prints_each_file_and_the_fusion(network, tmp_path):
    write_csv(tmp_path / "idt.csv")
    words = ["-m", "hpc_stres", "fuse", network, tmp_path / "idt.csv", "--out", tmp_path / "fused.npz",
             "--weights", "2,1"]  # fmt: skip
    result = run_python(*words)
    assert result.returncode == 0, result.stderr
    rows = {line.split()[0]: line.split()[1] for line in result.stdout.splitlines()[2:5]}
    assert rows == {"net.npz": "50.00", "idt.csv": "50.00", "fused": "75.00"}
    again = fusion.read(tmp_path / "fused.npz")
    assert again.ids == IDS
    assert run_python(*words[:4], tmp_path / "none.csv").returncode == 1
    assert run_python(*words[:4], "--weights", "a").returncode == 2
    assert json.dumps(again.labels) == json.dumps(["run", "jump", "sit", "run"])
