"""One file adds a model, a data set, a schedule, a kind of phase; every command knows it then."""

import json
import shutil

import pytest
import torch

from hpc_stres import registry
from hpc_stres.config.loading import load_config, load_run
from hpc_stres.config.schedule import learning_rate
from hpc_stres.errors import ConfigError, UserError
from hpc_stres.launch.jobs import is_done, make_jobs
from hpc_stres.listings.splits import read_listing
from hpc_stres.prepare.run import prepare
from hpc_stres.run.paths import RunPaths
from hpc_stres.run.product import read_metrics
from hpc_stres.store.location import store_folder
from hpc_stres.store.reader import Store
from tests.conftest import ROOT, TINY, run_python
from tests.unit.trained import train
from tests.unit.untrained import evaluate_here

EXTENSIONS = ROOT / "tests" / "unit" / "extensions"
MIXED = [
    f"extensions=['{EXTENSIONS / 'own_model.py'}', '{EXTENSIONS / 'own_rest.py'}']",
    "phases.own={model: {name: mixed, channels: 6}, clips: {chunks: 3, stride: [1, 2]},"
    " optimise: {schedule: {name: triangle, steps: 6, options: {top: 0.01}}}}",
    "phases.prior={kind: prior, starts_from: [own], prefers: 3}",
    "training.checkpoint_every_steps=2",
    "training.log_every_steps=1",
]


@pytest.fixture(autouse=True)
def _as_before():
    with registry.temporarily():
        yield


@pytest.fixture(scope="module")
def run_dir(data_root, tmp_path_factory):
    """A run whose phases are a model and a kind that the package does not have."""
    folder = tmp_path_factory.mktemp("own") / "run"
    with registry.temporarily():
        train(data_root, folder, "own", *MIXED)
        config = load_config(TINY, [f"data.root={data_root}", *MIXED])
        job = make_jobs(config, folder, ["prior"], True)[0]
        assert (job.nodes, job.ranks_per_node, job.gpus_per_node) == (1, 1, 0)
        result = run_python("-m", "hpc_stres", *job.commands[0])
        assert result.returncode == 0, result.stderr
    return folder


def test_a_model_in_one_file_trains_on_a_schedule_in_one_function(run_dir):
    rows = read_metrics(RunPaths(run_dir).phase("own"))
    assert [row["rate"] for row in rows] == pytest.approx(
        [0.01 * (1 - abs(2 * s / 7 - 1)) for s in range(1, 7)]
    )
    assert {"loss_appearance", "loss_motion"} < set(rows[0])


def test_it_resumes_to_the_same_weights(run_dir, data_root, tmp_path):
    half = [*MIXED, "training.max_steps=3"]
    train(data_root, tmp_path / "run", "own", *half)
    (tmp_path / "run" / "phases" / "own" / "done.json").unlink()
    resumed = train(data_root, tmp_path / "run", "own", *MIXED)
    from safetensors.torch import load_file

    whole = load_file(RunPaths(run_dir).phase("own").weights)
    assert set(resumed) == set(whole)
    for name, tensor in whole.items():
        assert torch.equal(tensor, resumed[name]), name


def test_it_is_evaluated_reported_and_exported(run_dir, tmp_path):
    results = evaluate_here(run_dir)
    columns = results["splits"]["1"]
    assert {name: column["title"] for name, column in columns.items()} == {
        "own": "Mixed",
        "prior": "Prior",
    }
    # All test videos are called class 3, and one of each eight is.
    assert columns["prior"]["top1"] == 12.5
    for words in (["report", "--run-dir", run_dir],
                  ["export", "--run-dir", run_dir, "--phase", "own", "--out", tmp_path / "out"]):  # fmt: skip
        result = run_python("-m", "hpc_stres", *words)
        assert result.returncode == 0, result.stderr
    page = (run_dir / "report.html").read_text()
    assert "Mixed" in page
    assert "Prior" in page
    assert (
        json.loads((tmp_path / "out" / "export.json").read_text())["sizes"]["model"]["channels"]
        == 6
    )


def test_it_is_described():
    file = EXTENSIONS / "own_model.py"
    result = run_python("-m", "hpc_stres", "describe", "mixed", "--extension", file, "--classes", 5)
    assert result.returncode == 0, result.stderr
    # 7 x 7 filters over 3 and 20 planes, moments, classifiers: by hand.
    total = 8 * 49 * 23 + 2 * 8 + 4 * 8 + 2 * (8 * 5 + 5)
    assert f"{total:,}" in result.stdout


def test_a_run_keeps_the_code_that_it_began_with(run_dir, data_root, tmp_path):
    edited = tmp_path / "own_model.py"
    edited.write_text((EXTENSIONS / "own_model.py").read_text() + "\n# another edition\n")
    changed = [MIXED[0].replace(str(EXTENSIONS / "own_model.py"), str(edited)), *MIXED[1:]]
    begun = pytest.raises(
        UserError, match=r"own_model\.py: this run was begun with another own_model\.py"
    )
    with registry.temporarily(), begun:
        train(data_root, run_dir, "own", *changed)
    # A copied run is the run: its config names its own copy of the code.
    copy = tmp_path / "copy"
    shutil.copytree(run_dir, copy)
    config = load_run(copy)
    assert str(copy / "extensions" / "own_model.py") in config.extensions
    assert is_done(config, RunPaths(copy), "own")


def test_a_damaged_product_is_not_scored(run_dir, tmp_path):
    copy = tmp_path / "copy"
    shutil.copytree(run_dir, copy)
    (copy / "phases" / "prior" / "prior.json").write_text("[9, 0, 0, 0, 0, 0, 0, 0]")
    with pytest.raises(UserError, match=r"prior\.json: this is not the file"):
        evaluate_here(copy, phases=["prior"])


def test_a_data_set_in_one_file(data_root, tmp_path):
    videos = tmp_path / "videos"
    sources = sorted((data_root / "binding" / "videos").glob("*/*.avi"))[:4]
    for number, source in enumerate(sources):
        target = (
            videos / f"class{number % 2}" / f"v{number}_{'train' if number < 2 else 'test'}.avi"
        )
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(source, target)
    config = load_config(
        TINY, [MIXED[0], "data.kind=suffixes", f"data.root={tmp_path}", f"data.videos={videos}"]
    )
    assert read_listing(config.data).test == {1: ["v2_test", "v3_test"]}
    prepare(config, quiet=True)
    store = Store(store_folder(config))
    assert store.classes == ["class0", "class1"]
    assert store.ids(1, "train") == ["v0_train", "v1_train"]


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("phases.motion.model.name=motoin", "no model 'motoin'; there are .*did you mean motion"),
        ("phases.x={kind: trian}", "no kind of phase 'trian'; there are .*did you mean train"),
        ("data.kind=ucf10", "no data set 'ucf10'; there are .*did you mean ucf101"),
        ("phases.x={kind: train}", "the key model is missing"),
        (
            "phases.x={model: motion}",
            r"phases\.x\.model: expected a mapping as \{name: motion\}, got 'motion'",
        ),
        (
            "phases.motion.chunks=3",
            r"phases\.motion\.chunks: unknown key; it is phases\.motion\.clips\.chunks",
        ),
        (
            "phases.motion.optimise.schedule={name: cosin, steps: 3}",
            "no schedule 'cosin'; .*did you mean cosine",
        ),
        ("phases.motion.optimise.schedule={name: cosine, steps: 3}", "cosine needs rate"),
        (
            "phases.motion.optimise.schedule={name: cosine, steps: 3, options: {rat: 1}}",
            "cosine has no rat; it has",
        ),
        (
            "phases.motion.optimise.schedule={name: cosine, steps: 0, options: {rate: 1}}",
            "expected 1 or more",
        ),
        ("extensions=[nothing.py]", r"extensions: .*nothing\.py: no such file"),
        (
            "extensions=[README.md]",
            r"README\.md: cannot be imported: SyntaxError|this is no Python file",
        ),
    ],
)
def test_a_wrong_name_is_refused_with_the_nearest(override, words, monkeypatch):
    monkeypatch.chdir(ROOT)
    with pytest.raises(ConfigError, match=words):
        load_config(TINY, [override])


def test_a_cosine_falls_from_its_rate_to_its_last():
    schedule = "phases.motion.optimise.schedule={name: cosine, steps: 11, options: {rate: 2, last: 1, warmup: 2}}"
    curve = load_config(TINY, [schedule]).phase("motion").optimise.schedule
    rates = [learning_rate(curve, step) for step in range(13)]
    assert rates[:3] == [1.0, 2.0, 2.0]
    assert rates[2:11] == sorted(rates[2:11], reverse=True)
    assert rates[10:] == pytest.approx([rates[10]] * 3)
    assert load_config(TINY, [schedule]).steps("motion") == 11


def test_two_files_do_not_share_a_name(tmp_path):
    registry.load_extension(EXTENSIONS / "own_model.py")
    other = tmp_path / "other.py"
    other.write_text((EXTENSIONS / "own_model.py").read_text() + "\n")
    with pytest.raises(
        ConfigError, match=r"there is another model of the name mixed: .*own_model\.py"
    ):
        registry.load_extension(other)
