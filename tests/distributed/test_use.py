"""What comes after training: own videos, exported models, all splits together."""

import json
import shutil

import numpy as np
import pytest
from safetensors.torch import load_file

from hpc_stres.data.video import UndecodableError, count_frames
from hpc_stres.evaluation.scores import Scores
from tests.conftest import run_python

pytestmark = pytest.mark.distributed


@pytest.fixture(scope="module")
def test_video(chain, data_root):
    """A test video's file, and its scores by ST-ResNet* in the run."""
    scores = Scores.load(chain[0] / "scores" / "split1_st_resnet_star.npz")
    (path,) = (data_root / "binding" / "videos").rglob(f"{scores.ids[0]}.avi")
    return path, scores


@pytest.fixture(scope="module")
def exported(chain, tmp_path_factory):
    folder = tmp_path_factory.mktemp("exported")
    result = run_python("-m", "hpc_stres", "export", "--run-dir", chain[0], "--out", folder)
    assert result.returncode == 0, result.stderr
    return folder, result.stdout


def predict(*words):
    return run_python("-m", "hpc_stres", "predict", *words)


def softmax(values):
    shares = np.exp(values - values.max())
    return shares / shares.sum()


def test_a_test_videos_answer_is_that_of_the_evaluation(chain, test_video):
    path, scores = test_video
    result = predict("--run-dir", chain[0], "--json", "--over-time", path)
    assert result.returncode == 0, result.stderr
    found = json.loads(result.stdout)
    expected = softmax(scores.logits[0])
    best = int(expected.argmax())
    assert found["top"][0]["class"] == scores.classes[best]
    assert found["top"][0]["probability"] == pytest.approx(float(expected[best]), abs=1e-6)
    assert len(found["top"]) == 5
    assert len(found["over_time"]) == 1  # five chunks, pooled over five
    other = json.loads(predict("--run-dir", chain[0], "--phase", "st_resnet", "--json", "--over-time", path).stdout)
    assert len(other["over_time"]) == 5


def test_an_annotated_video_and_a_flow_strip_are_saved(chain, test_video, tmp_path):
    import cv2

    path, _ = test_video
    result = predict("--run-dir", chain[0], "--save", tmp_path / "out", path)
    assert result.returncode == 0, result.stderr
    assert count_frames(tmp_path / "out" / f"{path.stem}.annotated.avi") == count_frames(path)
    strip = cv2.imread(str(tmp_path / "out" / f"{path.stem}.flow.png"))
    assert strip.shape[0] == 2 * 48
    assert strip.std() > 10


def test_real_clips_are_answered_and_the_broken_ones_named(chain, clips):
    files = sorted(path for path in clips.iterdir() if path.suffix in (".avi", ".mp4", ".mkv", ".mov"))
    whole, broken = [], []
    for path in files:
        try:
            whole.append((path, count_frames(path)))
        except UndecodableError:
            broken.append(path)
    assert len(whole) > 10
    assert broken
    result = predict("--run-dir", chain[0], "--quick", "--json", *files)
    assert result.returncode == 1
    answers = {row["video"]: row["frames"] for row in map(json.loads, result.stdout.splitlines())}
    assert answers == {str(path): count for path, count in whole}
    lines = result.stderr.strip().splitlines()
    assert len(lines) == len(broken)
    for path, line in zip(broken, lines, strict=True):
        assert line.startswith(f"hpc-stres predict: {path}: ")
    alone = predict("--run-dir", chain[0], "--quick", broken[0])
    assert alone.returncode == 1
    assert len(alone.stderr.strip().splitlines()) == 1


def test_an_exported_model_answers_like_the_run(chain, exported, test_video):
    path, _ = test_video
    folder, _ = exported
    one = json.loads(predict("--run-dir", chain[0], "--json", path).stdout)
    result = predict("--model", folder, "--json", path)
    assert result.returncode == 0, result.stderr
    two = json.loads(result.stdout)
    assert [row["class"] for row in one["top"]] == [row["class"] for row in two["top"]]
    for a, b in zip(one["top"], two["top"], strict=True):
        assert a["probability"] == pytest.approx(b["probability"], abs=1e-5)


def test_export_states_its_differences_and_keeps_torchvisions_names(chain, exported):
    folder, output = exported
    found = json.loads((folder / "export.json").read_text())
    assert found["difference"]["torch.export"] < 1e-5
    assert found["difference"]["onnx"] < 1e-4
    assert "onnx differs from the network by" in output
    state = load_file(folder / "appearance.safetensors")
    for name in ("conv1.weight", "bn1.running_var", "layer1.0.downsample.0.weight", "layer2.1.conv3.weight", "fc.bias"):
        assert name in state
    run = load_file(chain[0] / "phases" / "st_resnet_star" / "weights.safetensors")
    assert {f"appearance.{name}" for name in state} == {name for name in run if name.startswith("appearance.")}
    assert state["layer1.1.conv1.weight"].shape[2:] == (3, 1)


def test_wrong_calls_say_what_is_wrong(chain, tmp_path, test_video):
    path, _ = test_video
    result = predict("--model", tmp_path, path)
    assert result.returncode == 2
    assert "neither a run folder nor an exported model" in result.stderr
    assert predict("--run-dir", chain[0], "--phase", "stfn", path).returncode == 2
    assert predict(path).returncode == 2
    result = run_python("-m", "hpc_stres", "export", "--run-dir", tmp_path, "--out", tmp_path / "x")
    assert result.returncode == 2


def test_all_splits_are_combined_and_their_mean_is_printed(chain, tmp_path):
    from hpc_stres.evaluation.evaluate import combine_splits
    from hpc_stres.evaluation.table import results_table

    results = json.loads((chain[0] / "results.json").read_text())
    folders = []
    for number in (1, 2, 3):
        folders.append(tmp_path / f"split{number}")
        table = {name: {**column, "top1": column["top1"] + number} for name, column in results["splits"]["1"].items()}
        folders[-1].mkdir()
        (folders[-1] / "results.json").write_text(json.dumps({**results, "splits": {str(number): table}}))
    combined = combine_splits(tmp_path, folders)
    assert combined == json.loads((tmp_path / "results.json").read_text())
    for name, column in results["splits"]["1"].items():
        assert combined["mean"][name] == pytest.approx(column["top1"] + 2)
    text = results_table({**combined, "data": "ucf101"})
    assert "92.76" in text
    assert text.count("  mean ") == len(combined["mean"]) == 5


def test_folders_of_the_same_split_are_tested_but_have_no_mean(chain, tmp_path):
    for number in (1, 2):
        shutil.copytree(chain[0], tmp_path / f"split{number}")
    result = run_python("-m", "hpc_stres", "evaluate", "--run-dir", tmp_path, "--phase", "motion")
    assert result.returncode == 1
    assert "split 1 again; each folder must be of another split" in result.stderr
    assert not (tmp_path / "results.json").exists()
