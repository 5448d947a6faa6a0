"""Several runs: what changed and what came of it, seeds and splits, recomputed here from the score files."""

import json
import math

import numpy as np
import pytest

from hpc_stres.__main__ import main
from hpc_stres.errors import UserError
from hpc_stres.evaluation import compare, study
from hpc_stres.evaluation.scores import Scores
from hpc_stres.run.paths import RunPaths
from tests.unit.answered import make_run, make_scores, write_results

PHASES = ("motion", "appearance")


@pytest.fixture
def array(tmp_path):
    """Three seeds of two splits of one experiment, and two seeds of another."""
    for seed in (1, 2, 3):
        for split in (1, 2):
            write_results(
                *make_run(
                    tmp_path / f"array/seed{seed}/split{split}", seed, phases=PHASES, split=split
                )
            )
    for seed in (11, 12):
        momentum = ["training.momentum=0.8"]
        write_results(*make_run(tmp_path / f"other/seed{seed}", seed, 1.6, momentum, phases=PHASES))
    return tmp_path


def hits(folder, name, split=1):
    scores = Scores.load(RunPaths(folder).scores(split, name))
    return dict(zip(scores.ids, (scores.logits.argmax(1) == scores.labels).tolist(), strict=True))


def test_compare_says_what_changed_and_which_videos(array):
    one, two = array / "array/seed1/split1", array / "other/seed11"
    found = compare.compare(one, [two])
    changes = {row["key"]: (row["first"], row["second"]) for row in found["changes"][0]["config"]}
    assert changes == {"seed": (1, 11), "training.momentum": (0.9, 0.8)}
    row = next(row for row in found["accuracy"] if row["first"] == "motion")
    was, now = hits(one, "motion"), hits(two, "motion")
    assert set(row["repaired_videos"]) == {name for name in was if now[name] and not was[name]}
    assert set(row["broken_videos"]) == {name for name in was if was[name] and not now[name]}
    assert row["difference"] == pytest.approx(
        100 * (sum(now.values()) - sum(was.values())) / len(was)
    )
    assert (
        sum(one["repaired"] for one in row["classes"])
        == row["repaired"]
        == len(row["repaired_videos"])
    )
    assert row["interval"][0] <= row["difference"] <= row["interval"][1]
    assert len(found["accuracy"]) == 3


def test_a_run_compared_with_itself_has_changed_in_nothing(array):
    one = array / "array/seed1/split1"
    found = compare.compare(one, [one])
    assert (
        found["changes"][0]["config"]
        == found["changes"][0]["code"]
        == found["changes"][0]["data"]
        == []
    )
    assert all(
        (row["difference"], row["p"], row["repaired"]) == (0.0, 1.0, 0) for row in found["accuracy"]
    )


def test_folders_of_splits_are_compared_split_by_split(array):
    found = compare.compare(array / "array/seed1", [array / "array/seed2"])
    assert sorted({row["split"] for row in found["accuracy"]}) == [1, 2]
    with pytest.raises(UserError, match="none of the splits of"):
        compare.compare(array / "array/seed1/split2", [array / "other/seed11"])


def test_runs_of_other_classes_labels_or_videos_are_refused_or_matched(array):
    one, two = array / "array/seed1/split1", array / "other/seed11"
    path = RunPaths(two).scores(1, "motion")
    scores = Scores.load(path)
    shared = compare.narrowed(scores, scores.ids[5:])
    shared.save(path)
    RunPaths(two).scores(1, "appearance").unlink()
    assert compare.compare(one, [two])["accuracy"][0]["videos"] == len(scores.ids) - 5
    wrong = Scores(
        scores.ids, np.roll(scores.labels, 1), scores.classes, scores.logits, {}, scores.made_by
    )
    wrong.save(path)
    with pytest.raises(UserError, match="has another label in each"):
        compare.compare(one, [two])
    Scores(scores.ids, scores.labels, [*"abcd"], scores.logits, {}, scores.made_by).save(path)
    with pytest.raises(UserError, match="the classes differ: "):
        compare.compare(one, [two])
    path.unlink()
    with pytest.raises(UserError, match="nothing was evaluated here"):
        compare.compare(one, [two])


def test_a_secret_in_a_config_is_not_shown(tmp_path):
    one = make_run(tmp_path / "one", 1)[1].root
    two = make_run(tmp_path / "two", 1, overrides=["cluster.environment={API_KEY: hush}"])[1].root
    assert "hush" not in json.dumps(compare.compare(one, [two]))


def test_study_puts_seeds_and_splits_together(array):
    found = study.study([array / "array", array / "other"])
    assert [len(one["runs"]) for one in found["experiments"]] == [6, 2]
    assert "momentum=0.8" in found["experiments"][1]["name"]
    column = found["experiments"][0]["columns"]["motion"]
    tops = {(s, k): 100 * np.mean(list(hits(array / f"array/seed{s}/split{k}", "motion", k).values()))
            for s in (1, 2, 3) for k in (1, 2)}  # fmt: skip
    seeds = [np.mean([tops[s, k] for k in (1, 2)]) for s in (1, 2, 3)]
    assert column["over_seeds"]["mean"] == pytest.approx(np.mean(seeds))
    assert column["over_seeds"]["deviation"] == pytest.approx(np.std(seeds, ddof=1))
    half = 4.302652729749459 * np.std(seeds, ddof=1) / math.sqrt(3)
    assert column["over_seeds"]["interval"][0] == pytest.approx(np.mean(seeds) - half)
    assert column["by_split"]["1"]["count"] == 3
    assert column["over_splits"]["count"] == 2


def test_what_seeds_agree_on(array):
    (one,) = study.study([array / "array"])["experiments"]
    row = next(row for row in one["agreement"] if (row["split"], row["column"]) == (1, "motion"))
    right = [hits(array / f"array/seed{seed}/split1", "motion") for seed in (1, 2, 3)]
    assert row["all_right"] == sum(all(seed[name] for seed in right) for name in right[0])
    assert row["never_right"] == sorted(
        name for name in right[0] if not any(seed[name] for seed in right)
    )
    assert row["all_right"] + row["some_right"] + row["none_right"] == 72
    curve = one["curves"]["motion"]["loss"]
    assert [point[0] for point in curve] == [1, 2, 3]
    assert curve[0][1:] == pytest.approx(
        [2.02, np.std([0.01, 0.01, 0.02, 0.02, 0.03, 0.03], ddof=1), 6]
    )


def test_a_damaged_row_of_a_curve_is_named_and_left_out(array, capsys):
    metrics = RunPaths(array / "array/seed1/split1").phase("motion").metrics
    lines = metrics.read_text().splitlines(keepends=True)
    metrics.write_text(lines[0].replace("2.01", "9.01") + lines[1] + "{torn")
    (one,) = study.study([array / "array"])["experiments"]
    assert [point[3] for point in one["curves"]["motion"]["loss"]] == [5, 6, 5]
    error = capsys.readouterr().err
    assert "metrics.jsonl:1" in error
    assert "left out" in error


def test_two_recipes_are_compared_over_recordings_and_over_seeds(array):
    found = study.study([array / "array", array / "other"])
    row = next(row for row in found["comparisons"] if row["column"] == "motion")
    sides = [f"array/seed{seed}/split1" for seed in (1, 2, 3)], ["other/seed11", "other/seed12"]
    mean = [
        np.mean([list(hits(array / folder, "motion").values()) for folder in folders])
        for folders in sides
    ]
    assert row["difference"] == pytest.approx(100 * (mean[1] - mean[0]))
    assert row["seeds"] == [3, 2]
    assert 0 < row["p"] < 0.01
    assert 0 < row["p_over_seeds"] < 1


def test_one_run_has_no_interval_and_the_same_run_twice_is_refused(array, tmp_path):
    one = array / "array/seed1/split1"
    (found,) = study.study([one, one])["experiments"]
    assert len(found["runs"]) == 1
    assert found["columns"]["motion"]["over_seeds"]["interval"] is None
    make_run(tmp_path / "again", 1, phases=PHASES)
    with pytest.raises(UserError, match=r"seed 1 and split 1 are those of"):
        study.study([one, tmp_path / "again"])
    with pytest.raises(UserError, match="no run folder here or under it"):
        study.study([tmp_path / "nowhere"])


def test_runs_of_different_protocols_have_no_mean(array):
    two = array / "array/seed2/split1"
    made_by = {"phase": "motion", "split": 1, "weights": "w", "protocol": "paper"}
    make_scores(5, **made_by).save(RunPaths(two).scores(1, "motion"))
    with pytest.raises(UserError, match="there is no mean of both"):
        study.study([array / "array"])


def test_columns_of_one_run_may_be_tested_in_different_ways(array):
    """Hand-crafted features and segments are tested in ways of their own, by every run alike."""
    for seed in (1, 2, 3):
        for split in (1, 2):
            made_by = {"phase": "motion", "split": split, "weights": "w", "protocol": "Fisher"}
            run = array / f"array/seed{seed}/split{split}"
            make_scores(seed, **made_by).save(RunPaths(run).scores(split, "motion"))
    (found,) = study.study([array / "array"])["experiments"]
    assert {"motion", "appearance"} <= set(found["columns"])


def test_the_commands_write_their_files(array, capsys):
    assert main(["study", str(array / "array"), "--out", str(array / "out")]) == 0
    runs = [str(array / "array/seed1"), str(array / "array/seed2")]
    assert main(["compare", *runs, "--json", str(array / "c.json")]) == 0
    text = capsys.readouterr().out
    assert "over 3 seeds" in text
    assert "recordings turned around" in text
    assert len(json.loads((array / "c.json").read_text())["accuracy"]) == 6
    assert (array / "out/study.csv").read_text().startswith("experiment,column,split,seed,top1")
    assert len(list((array / "out").glob("*.svg"))) == len(list((array / "out").glob("*.pdf"))) == 4
    (array / "file").write_text("")
    assert main(["compare", *runs, "--json", str(array / "file/c.json")]) == 1
    assert main(["study", *runs, "--out", str(array / "file")]) == 1
    refused = capsys.readouterr().err
    assert refused.count("cannot be written: ") == 2
    assert main(["compare", str(array / "out"), str(array / "array/seed2")]) == 2
    error = capsys.readouterr().err
    assert "no run folder" in error
    assert len(error.splitlines()) <= 3
