"""What comes after training: own videos, exported models, all splits together."""

import json
import pickle
import random
import shutil
import zipfile
from dataclasses import replace

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from hpc_stres.errors import UserError
from hpc_stres.evaluation import networks
from hpc_stres.evaluation.scores import Scores
from hpc_stres.models.weights import read_state
from hpc_stres.prepare.video import UndecodableError, count_frames, decode, write_video
from hpc_stres.run.paths import write_sealed
from tests.conftest import ROOT, run_python

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
    other = json.loads(
        predict("--run-dir", chain[0], "--phase", "st_resnet", "--json", "--over-time", path).stdout
    )
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
    files = sorted(
        path for path in clips.iterdir() if path.suffix in (".avi", ".mp4", ".mkv", ".mov")
    )
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


class Evil:
    """Unpickling it makes a file."""

    def __init__(self, path):
        self.path = str(path)

    def __reduce__(self):
        return open, (self.path, "w")


def test_no_code_in_an_exported_folder_runs(exported, test_video, tmp_path):
    """The program is replaced by a pickle, and by an archive whose constants and inputs are pickles."""
    path, _ = test_video
    folder, harm = shutil.copytree(exported[0], tmp_path / "model"), tmp_path / "harm"
    expected = predict("--model", exported[0], "--json", path).stdout
    (folder / "model.pt2").write_bytes(pickle.dumps(Evil(harm)))
    assert predict("--model", folder, "--json", path).stdout == expected
    with (
        zipfile.ZipFile(exported[0] / "model.pt2") as good,
        zipfile.ZipFile(folder / "model.pt2", "w") as bad,
    ):
        for name in good.namelist():
            bad.writestr(
                name, pickle.dumps(Evil(harm)) if name.endswith(".pt") else good.read(name)
            )
    assert predict("--model", folder, "--json", path).stdout == expected
    torch_file = tmp_path / "weights.pth"
    torch_file.write_bytes(pickle.dumps({"conv1.weight": Evil(harm)}))
    with pytest.raises(UserError, match=r"weights\.pth: cannot read the weights"):
        read_state(torch_file)
    assert not harm.exists()


def test_damage_in_an_exported_folder_is_named(exported, test_video, tmp_path):
    path, _ = test_video
    folder = shutil.copytree(exported[0], tmp_path / "model")
    draw, said = random.Random(1), []
    for name in ("export.json", "weights.safetensors"):
        whole = (folder / name).read_bytes()
        right = networks.from_export(folder, torch.device("cpu"))
        for _ in range(100):
            torn = bytearray(whole)
            torn[draw.randrange(len(torn))] ^= 1 << draw.randrange(8)
            (folder / name).write_bytes(torn)
            try:
                assert (
                    replace(networks.from_export(folder, torch.device("cpu")), call=right.call)
                    == right
                )
            except UserError as error:
                said.append((name, str(error)))
        (folder / name).write_bytes(whole)
    assert len(said) > 100
    assert all(name in text for name, text in said)
    found = json.loads((folder / "export.json").read_text())
    write_sealed(folder / "export.json", {**found, "settings": {**found["settings"], "new": 1}})
    result = predict("--model", folder, path)
    assert result.returncode == 1
    assert "export.json: written by another version: " in result.stderr
    del found["sizes"]
    write_sealed(folder / "export.json", found)
    result = predict("--model", folder, path)
    assert result.returncode == 1
    assert "exported by version 0.2" in result.stderr


def test_export_states_its_differences_and_keeps_torchvisions_names(chain, exported):
    folder, output = exported
    found = json.loads((folder / "export.json").read_text())
    assert found["difference"]["torch.export"] < 1e-5
    assert found["difference"]["onnx"] < 1e-4
    assert "onnx differs from the network by" in output
    state = load_file(folder / "appearance.safetensors")
    for name in (
        "conv1.weight",
        "bn1.running_var",
        "layer1.0.downsample.0.weight",
        "layer2.1.conv3.weight",
        "fc.bias",
    ):
        assert name in state
    run = load_file(chain[0] / "phases" / "st_resnet_star" / "weights.safetensors")
    assert {f"appearance.{name}" for name in state} == {
        name for name in run if name.startswith("appearance.")
    }
    assert state["layer1.1.conv1.weight"].shape[2:] == (3, 1)


@pytest.fixture(scope="module")
def programs(exported):
    """The network, and both programs, opened once."""
    import onnxruntime

    folder, _ = exported
    session = onnxruntime.InferenceSession(
        str(folder / "model.onnx"), providers=["CPUExecutionProvider"]
    )
    program = torch.export.load(folder / "model.pt2").module()
    return networks.from_export(folder, torch.device("cpu")), program, session


@pytest.mark.parametrize(
    "shape", [(1, 5, 32, 48), (1, 25, 97, 131), (4, 6, 160, 213), (2, 8, 9, 60), (1, 7, 1, 1)]
)
def test_programs_take_any_batch_time_and_size(programs, shape):
    network, program, session = programs
    batch, time, height, width = shape
    draw = torch.Generator().manual_seed(1)
    clips = [torch.randn(batch, time, planes, height, width, generator=draw) for planes in (3, 20)]
    with torch.no_grad():
        expected, exact = network(*clips), program(*clips)
    onnx = session.run(
        None, {name: clip.numpy() for name, clip in zip(("rgb", "flow"), clips, strict=True)}
    )
    for right, one, two in zip(expected, exact, onnx, strict=True):
        scale = float(right.abs().max())
        assert one.shape == right.shape
        assert float((one - right).abs().max()) < 1e-4 * scale
        assert float(np.abs(two - right.numpy()).max()) < 1e-4 * scale


def test_an_export_carries_no_clips(exported):
    """Only weights, code and shapes: the clips that it was traced with would be most of it."""
    folder, _ = exported
    assert (folder / "model.pt2").stat().st_size < 3_000_000


def test_a_shared_folder_is_the_export(exported, test_video, tmp_path):
    path, _ = test_video
    folder = shutil.copytree(exported[0] / "hub", tmp_path / "shared")
    assert {file.name for file in folder.iterdir()} == {
        "config.json",
        "model.safetensors",
        "README.md",
    }
    one = predict("--model", exported[0], "--json", path)
    two = predict("--model", folder, "--json", path)
    assert two.returncode == 0, two.stderr
    assert two.stdout == one.stdout
    config = json.loads((folder / "config.json").read_text())
    assert config["id2label"]["0"] in config["label2id"]
    card = (folder / "README.md").read_text()
    assert card.startswith("---\n")
    assert "95 % interval" in card
    assert "Protocol: paper: 5 evenly spaced chunks" in card
    assert config["hpc_stres"]["weights_sha256"] in card
    config["hpc_stres"]["classes"][0] = "another"
    (folder / "config.json").write_text(json.dumps(config))
    result = predict("--model", folder, path)
    assert result.returncode == 1
    assert "config.json: damaged" in result.stderr


ONLY_THESE = """
import builtins, runpy, sys
real = builtins.__import__
def guarded(name, *rest, **more):
    assert name.split(".")[0] not in ("torch", "hpc_stres", "av", "nvidia"), name
    return real(name, *rest, **more)
builtins.__import__ = guarded
sys.argv = sys.argv[1:]
runpy.run_path(sys.argv[0], run_name="__main__")
"""


@pytest.mark.parametrize(("frames", "points"), [(24, 0.5), (1, 0.06)])
def test_the_serving_example_answers_like_predict(exported, test_video, tmp_path, frames, points):
    """With onnxruntime, NumPy and OpenCV alone. Its flow is OpenCV's; where nothing moves, all is the same."""
    path, _ = test_video
    if frames == 1:
        path = tmp_path / "one frame.avi"
        write_video(path, [next(decode(test_video[0]))], 25)
    example = ROOT / "examples" / "serve_onnx.py"
    result = run_python("-c", ONLY_THESE, example, exported[0] / "model.onnx", path)
    assert result.returncode == 0, result.stderr
    served = {
        line.split("%")[1].strip(): float(line.split("%")[0]) for line in result.stdout.splitlines()
    }
    assert len(served) == 5
    told = json.loads(predict("--model", exported[0], "--json", path).stdout)
    answers = {row["class"]: 100 * row["probability"] for row in told["top"]}
    for name in set(served) & set(answers):
        assert served[name] == pytest.approx(answers[name], abs=points)
    assert len(set(served) & set(answers)) >= 4


def test_the_notebook_runs(chain, tmp_path):
    cells = json.loads((ROOT / "examples" / "first_steps.ipynb").read_text())["cells"]
    code = "\n".join("".join(cell["source"]) for cell in cells if cell["cell_type"] == "code")
    result = run_python(
        "-c", code, cwd=tmp_path, env={"RUN": str(chain[0]), "PYTHONPATH": str(ROOT)}
    )
    assert result.returncode == 0, result.stderr
    assert result.stdout.count("%") == 5


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
    from hpc_stres.evaluation.results import combine_splits
    from hpc_stres.evaluation.table import read_results, results_table

    results = read_results(chain[0] / "results.json")
    folders = []
    for number in (1, 2, 3):
        folders.append(tmp_path / f"split{number}")
        table = {
            name: {**column, "top1": column["top1"] + number}
            for name, column in results["splits"]["1"].items()
        }
        folders[-1].mkdir()
        write_sealed(folders[-1] / "results.json", {**results, "splits": {str(number): table}})
    combined = combine_splits(tmp_path, folders)
    assert combined == read_results(tmp_path / "results.json")
    for name, column in results["splits"]["1"].items():
        assert combined["mean"][name] == pytest.approx(column["top1"] + 2)
    text = results_table(combined)
    assert "92.76" not in text
    assert text.count("  mean ") == len(combined["mean"]) == 5


def test_folders_of_the_same_split_are_tested_but_have_no_mean(chain, tmp_path):
    for number in (1, 2):
        shutil.copytree(chain[0], tmp_path / f"split{number}")
    result = run_python("-m", "hpc_stres", "evaluate", "--run-dir", tmp_path, "--phase", "motion")
    assert result.returncode == 1
    assert "split 1 again; each folder must be of another split" in result.stderr
    assert not (tmp_path / "results.json").exists()
