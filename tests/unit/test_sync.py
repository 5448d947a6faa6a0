"""Replays of metrics.jsonl in trackers' folders: every step once, whatever happened before."""

import subprocess
import sys

import pytest
import yaml

from hpc_stres.__main__ import main
from hpc_stres.evaluation.report import replay
from hpc_stres.run.paths import RunPaths
from hpc_stres.run.product import read_metrics
from hpc_stres.training.metrics import MetricsLog
from tests.conftest import ROOT
from tests.unit.made_up_run import make_finished_run


@pytest.fixture
def run_dir(tmp_path):
    make_finished_run(tmp_path / "ein läuf", 4, 3, phases=("motion", "st_resnet"))
    return tmp_path / "ein läuf"


def sync(run_dir, out):
    assert main(["sync", str(run_dir), "--to", "mlflow", "--out", str(out), "--debug"]) == 0
    runs = {}
    for meta in out.glob("*/*/meta.yaml"):
        found = yaml.safe_load(meta.read_text())
        assert found["run_id"] == meta.parent.name
        runs[found["run_name"].split("/")[1]] = meta.parent
    return runs


def values(folder, key):
    lines = (folder / "metrics" / key).read_text().splitlines()
    return [(float(value), int(step)) for _, value, step in (line.split() for line in lines)]


def test_every_figure_is_there_once_however_often_it_is_synced(run_dir, tmp_path):
    for _ in range(2):
        runs = sync(run_dir, tmp_path / "mlruns")
    assert set(runs) == {"motion", "st_resnet"}
    for phase, folder in runs.items():
        rows = read_metrics(RunPaths(run_dir).phase(phase))
        assert values(folder, "rate") == [(row["rate"], row["step"]) for row in rows]
        assert (folder / "params" / "seed").read_text() == "1"
        assert len(values(folder, "test_top1")) == 1
    assert len(list((tmp_path / "mlruns").glob("*/*/meta.yaml"))) == 2


def test_steps_that_a_requeue_repeats_stand_once(run_dir, tmp_path):
    """A job is killed after step 7 and resumes from its checkpoint of step 5: rows 6 and 7 are written again."""
    paths = RunPaths(run_dir).phase("motion")
    first = values(sync(run_dir, tmp_path / "m")["motion"], "loss_motion")
    log = MetricsLog(paths, 5)
    for step in range(6, 13):
        log.write({"step": step, "loss_motion": 0.5})
    log.close()
    second = values(sync(run_dir, tmp_path / "m")["motion"], "loss_motion")
    assert [step for _, step in second] == list(range(1, 13))
    assert second[:5] == first[:5]
    assert {value for value, step in second if step > 5} == {0.5}


def test_what_a_killed_sync_left_is_no_obstacle_and_others_runs_stay(run_dir, tmp_path):
    runs = sync(run_dir, tmp_path / "m")
    home = next(iter(runs.values())).parent
    torn = home / f".{next(iter(runs.values())).name}.new" / "metrics"
    torn.mkdir(parents=True)
    (torn / "half").write_text("1")
    (home / "somebody").mkdir()
    (home / "somebody" / "mine").write_text("kept")
    again = sync(run_dir, tmp_path / "m")
    assert not list(home.glob(".*.new"))
    assert {name: values(folder, "rate") for name, folder in again.items()}
    assert (home / "somebody" / "mine").read_text() == "kept"


def test_runs_of_the_same_name_in_two_places_are_two(run_dir, tmp_path):
    make_finished_run(tmp_path / "other" / run_dir.name, 4, 3, phases=("motion",))
    for folder in (run_dir, tmp_path / "other" / run_dir.name):
        sync(folder, tmp_path / "m")
    assert len(list((tmp_path / "m").glob("*/*/meta.yaml"))) == 3


def test_refusals_are_sentences(tmp_path, run_dir, capsys, monkeypatch):
    make_finished_run(tmp_path / "empty", 4, 3, phases=())
    assert (
        main(["sync", str(tmp_path / "empty"), "--to", "mlflow", "--out", str(tmp_path / "m")]) == 1
    )
    assert "no phase has metrics yet" in capsys.readouterr().err
    monkeypatch.setitem(sys.modules, "wandb", None)
    assert main(["sync", str(run_dir), "--to", "wandb", "--out", str(tmp_path)]) == 1
    assert "wandb is not installed" in capsys.readouterr().err


def test_no_secret_travels(run_dir, tmp_path):
    config = RunPaths(run_dir).config
    text = config.read_text().replace(
        "  environment: {}\n", "  environment: {HF_TOKEN: hidden-1}\n"
    )
    assert "hidden-1" in text
    config.write_text(text)
    runs = sync(run_dir, tmp_path / "m")
    texts = [
        path.read_text() for folder in runs.values() for path in folder.rglob("*") if path.is_file()
    ]
    assert texts
    assert not [text for text in texts if "hidden-1" in text]


def test_mlflow_itself_reads_it(run_dir, tmp_path, monkeypatch):
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    mlflow = pytest.importorskip("mlflow", reason="mlflow is not installed")
    sync(run_dir, tmp_path / "m")
    client = mlflow.MlflowClient(tracking_uri=(tmp_path / "m").as_uri())
    experiment = client.get_experiment_by_name(replay.EXPERIMENT)
    runs = client.search_runs([experiment.experiment_id])
    assert {run.info.run_name.split("/")[1] for run in runs} == {"motion", "st_resnet"}
    for run in runs:
        history = client.get_metric_history(run.info.run_id, "rate")
        rows = read_metrics(RunPaths(run_dir).phase(run.data.tags["phase"]))
        assert sorted((m.step, m.value) for m in history) == [
            (row["step"], row["rate"]) for row in rows
        ]


def test_wandb_itself_writes_one_run_a_phase(run_dir, tmp_path, monkeypatch):
    pytest.importorskip("wandb", reason="wandb is not installed")
    monkeypatch.setenv("WANDB_MODE", "offline")
    for _ in range(2):
        assert main(["sync", str(run_dir), "--to", "wandb", "--out", str(tmp_path), "--debug"]) == 0
    folders = sorted((tmp_path / "wandb").glob("offline-run-*"))
    assert len(folders) == 2, "one a phase, however often it is synced"
    assert all(list(folder.glob("run-*.wandb")) for folder in folders)


def test_help_says_what_to_do_next():
    result = subprocess.run(
        [sys.executable, "-m", "hpc_stres", "sync", "--help"],
        capture_output=True,
        text=True,
        cwd=ROOT,
        check=False,
    )
    assert "mlflow ui --backend-store-uri" in result.stdout
