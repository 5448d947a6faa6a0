"""The whole chain through submit.py on this machine, its evaluation on several ranks, and its report."""

import json
import shutil

import numpy as np
import pytest

from hpc_stres.evaluation.scores import Scores
from hpc_stres.prepare.before import Old
from hpc_stres.store.listing import catalogue_of
from hpc_stres.store.location import store_folder
from hpc_stres.store.reader import Store
from hpc_stres.store.writer import write_index
from tests.conftest import tiny_config
from tests.distributed.conftest import submit
from tests.distributed.launching import clean_environment
from tests.forks import Command

pytestmark = pytest.mark.distributed
PHASES = ("motion", "appearance", "st_resnet", "st_resnet_star")


def test_it_leaves_everything_that_the_contract_names(chain):
    run_dir, output = chain
    for name in PHASES:
        for file in ("weights.safetensors", "metrics.jsonl", "done.json"):
            assert (run_dir / "phases" / name / file).is_file(), (name, file)
        assert (run_dir / "scores" / f"split1_{name}.npz").is_file()
    for file in ("config.yaml", "provenance.json", "results.json", "report.html"):
        assert (run_dir / file).is_file()
    results = json.loads((run_dir / "results.json").read_text())
    assert list(results["splits"]["1"]) == [
        "appearance",
        "motion",
        "two_stream",
        "st_resnet",
        "st_resnet_star",
    ]
    for column in results["splits"]["1"].values():
        assert column["videos"] == column["of"] == 8
        assert 0 <= column["top1"] <= column["top5"] <= 100
        assert column["protocol"].startswith("paper: 5 evenly spaced chunks and their flips")
    assert "ST-ResNet*" in output
    assert "report: " in output
    assert "WARNING" not in output


def test_a_second_call_says_that_it_is_finished(chain, data_root):
    run_dir, _ = chain
    before = (run_dir / "phases/st_resnet/weights.safetensors").stat().st_mtime_ns
    result = submit(data_root, run_dir)
    assert result.returncode == 0
    assert "every phase is done; nothing to submit" in result.stdout
    assert "ST-ResNet*" in result.stdout
    assert (run_dir / "phases/st_resnet/weights.safetensors").stat().st_mtime_ns == before


def evaluate(run_dir, world, *more):
    """Several ranks by torchrun."""
    words = ["-m", "hpc_stres", "evaluate", "--run-dir", str(run_dir), *more]
    if world > 1:
        words = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", world, *words]
    return Command(words, clean_environment()).finished()


def without_one_video(store_root, target):
    """A copy of the store in which one test video was rejected: seven are left, which neither 2 nor 3 divides."""
    shutil.copytree(store_root, target)
    store = Store(target)
    gone, old = store.ids(1, "test")[0], Old.of(store)
    del old.contents.videos[gone]
    source = store.source_of(store.listed(gone))
    row = {
        "id": gone,
        "path": "gone.avi",
        "reason": "InvalidDataError after 0 frames",
        "source": source,
    }
    write_index(store.paths, catalogue_of(store), [old.contents], [row], store.manifest["settings"])
    return gone


@pytest.fixture(scope="module")
def seven(chain, data_root, tmp_path_factory):
    """--set for data with seven test videos, and the one that is gone."""
    root = tmp_path_factory.mktemp("seven")
    gone = without_one_video(store_folder(tiny_config(data_root)), store_folder(tiny_config(root)))
    return ["--set", f"data.root={root}"], gone


@pytest.mark.parametrize("world", [1, 2, 3])
def test_the_same_logits_bit_for_bit_on_any_number_of_ranks(chain, seven, tmp_path, world):
    run_dir, _ = chain
    moved, gone = seven
    shutil.copytree(run_dir, tmp_path / "run")
    shutil.rmtree(tmp_path / "run" / "scores")
    result = evaluate(tmp_path / "run", world, *moved, "--allow-missing")
    assert result.returncode == 0, result.stderr[-2000:]
    assert "7 of 8" in result.stdout
    for name in PHASES:
        one, two = (
            Scores.load(folder / "scores" / f"split1_{name}.npz")
            for folder in (run_dir, tmp_path / "run")
        )
        assert two.ids == [identity for identity in one.ids if identity != gone]
        kept = [number for number, identity in enumerate(one.ids) if identity != gone]
        np.testing.assert_array_equal(one.logits[kept], two.logits)


def test_a_killed_evaluation_goes_on_where_it_was(chain, tmp_path):
    run_dir, _ = chain
    shutil.copytree(run_dir, tmp_path / "run")
    parts = tmp_path / "run" / "scores" / "parts"
    for part in parts.glob("*st_resnet_rank*"):
        lines = part.read_text().splitlines(keepends=True)
        part.write_text("".join(lines[:-1]) + lines[-1][:40])
    result = evaluate(tmp_path / "run", 1)
    assert result.returncode == 0, result.stderr[-2000:]
    one, two = (
        Scores.load(folder / "scores/split1_st_resnet.npz")
        for folder in (run_dir, tmp_path / "run")
    )
    np.testing.assert_array_equal(one.logits, two.logits)


def test_a_missing_test_video_is_refused(chain, seven, tmp_path):
    moved, gone = seven
    shutil.copytree(chain[0], tmp_path / "run")
    result = evaluate(tmp_path / "run", 1, *moved)
    assert result.returncode == 1
    assert f"1 of 8 test videos are missing: {gone} (InvalidDataError" in result.stderr


def test_a_failed_job_stops_those_that_wait_for_it_and_says_why(data_root, tmp_path):
    result = submit(
        data_root, tmp_path / "run", "--set", "phases.motion.optimise.schedule=[[5, 1.0e+30]]"
    )
    assert result.returncode == 1
    assert "job motion failed; its log: " in result.stderr
    assert "the loss is not finite" in result.stderr
    assert result.stderr.rstrip().endswith(
        "not started, because they wait for it: st_resnet_star, evaluate"
    )
    assert not (tmp_path / "run/phases/st_resnet_star").exists()


def test_the_report_stands_alone(chain):
    text = (chain[0] / "report.html").read_text()
    assert "http://" not in text
    assert "https://" not in text
    for words in (
        "Accuracy",
        "Learning curves",
        "What each phase repaired and broke",
        "data:image/jpeg;base64",
        "Provenance",
    ):
        assert words in text
