"""Looks at held-out videos while training: what they say, when, and that they change nothing."""

import csv
import json
import os
import signal
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from hpc_stres.config.loading import load_config
from hpc_stres.errors import ConfigError, UserError
from hpc_stres.evaluation.report.laps import read_log
from hpc_stres.evaluation.scores import Scores
from hpc_stres.listings.columns import marked
from hpc_stres.run.experiment import FREE_KEYS
from hpc_stres.run.paths import RunPaths
from hpc_stres.store.held_out import held_out, trained_facts
from hpc_stres.training import validation
from tests.conftest import TINY, tiny_config
from tests.unit.trained import train
from tests.unit.untrained import evaluate_here

SHARE, STEPS = "evaluation.validation_share=0.34", "training.max_steps=3"


def rows_of(run_dir, phase):
    path = RunPaths(run_dir).phase(phase).metrics
    return [json.loads(line) for line in path.read_text().splitlines()]


def looks_of(run_dir, phase):
    return [row for row in rows_of(run_dir, phase) if "validation_videos" in row]


@pytest.fixture(scope="module")
def looked(data_root, store, tmp_path_factory):
    """A joint network of 3 steps with a look at every second and at the end."""
    run_dir = tmp_path_factory.mktemp("looked")
    every = "evaluation.validation_every_steps=2"
    weights = train(data_root, run_dir, "st_resnet", SHARE, every, STEPS)
    return run_dir, weights


def test_the_last_look_is_what_the_quick_test_of_the_product_says(looked, data_root, store):
    run_dir, _ = looked
    looks = looks_of(run_dir, "st_resnet")
    assert [row["step"] for row in looks] == [2, 3]
    config = tiny_config(data_root, SHARE)
    held = {store.rows[row].id: store.rows[row].label for row in held_out(store, config)}
    assert {row["validation_videos"] for row in looks} == {len(held)}
    evaluate_here(run_dir, "evaluation.protocol=quick")
    kept = Scores.load(run_dir / "scores" / "validation" / "split1_st_resnet.npz")
    assert set(kept.ids) == set(held)
    labels = np.array([held[name] for name in kept.ids])
    for stream in ("appearance", "motion"):
        logits = kept.streams[stream]
        top = np.exp(logits - logits.max(axis=2, keepdims=True))
        shares = top / top.sum(axis=2, keepdims=True)
        true = shares[np.arange(len(labels)), :, labels]
        # The clip of the quick test and that of training have as many chunks: losses add up over them alike.
        assert looks[-1][f"validation_loss_{stream}"] == pytest.approx(-np.log(true).sum(1).mean())
        right = (logits.mean(axis=1).argmax(axis=1) == labels).mean()
        assert looks[-1][f"validation_accuracy_{stream}"] == pytest.approx(right)
    both = sum(stream.mean(axis=1) for stream in kept.streams.values()).argmax(axis=1)
    assert looks[-1]["validation_accuracy_both"] == pytest.approx((both == labels).mean())


def test_looks_change_nothing_of_the_training(looked, data_root, tmp_path):
    run_dir, weights = looked
    never = "evaluation.validation_every_steps=0"
    generators = torch.get_rng_state()
    other = train(data_root, tmp_path, "st_resnet", SHARE, never, STEPS)
    assert torch.equal(generators, torch.get_rng_state())
    assert not looks_of(tmp_path, "st_resnet")
    assert all(torch.equal(weights[name], other[name]) for name in weights)
    last = rows_of(tmp_path, "st_resnet")[-1]["requests"]
    assert (
        last == [row["requests"] for row in rows_of(run_dir, "st_resnet") if "requests" in row][-1]
    )


def test_ten_looks_a_phase_where_nothing_is_said_and_none_without_held_out_videos(
    data_root, store, tmp_path
):
    train(data_root, tmp_path / "some", "motion", SHARE, STEPS)
    assert [row["step"] for row in looks_of(tmp_path / "some", "motion")] == [1, 2, 3]
    trainer = SimpleNamespace(
        config=tiny_config(data_root, SHARE),
        store=store,
        steps=95,
        phase=tiny_config(data_root).phases["motion"],
    )
    held = validation.HeldOut(trainer)
    assert [step for step in range(96) if held.is_due(step)] == [*range(10, 95, 10), 95]
    train(data_root, tmp_path / "none", "motion", "training.max_steps=1")
    assert not looks_of(tmp_path / "none", "motion")
    with pytest.raises(ConfigError, match=r"validation_every_steps: no effect without held-out"):
        load_config(TINY, ["evaluation.validation_every_steps=5"])
    assert "evaluation.validation_every_steps" in FREE_KEYS
    assert "evaluation.validation_column" not in FREE_KEYS


def test_a_stop_ends_a_look_and_the_next_link_takes_it_first(data_root, tmp_path, monkeypatch):
    """Interrupted in its second video; then resumed: the same rows as without the stop, each once."""
    words = SHARE, "evaluation.validation_every_steps=2", STEPS
    whole = train(data_root, tmp_path / "whole", "motion", *words)
    score, calls = validation.HeldOut._score, []

    def score_and_stop(self, row):
        calls.append(row)
        if len(calls) == 2:
            os.kill(os.getpid(), signal.SIGTERM)
        return score(self, row)

    monkeypatch.setattr(validation.HeldOut, "_score", score_and_stop)
    before = signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGUSR2)
    try:
        with pytest.raises(AssertionError):
            train(data_root, tmp_path / "cut", "motion", *words)
    finally:
        signal.signal(signal.SIGTERM, before[0])
        signal.signal(signal.SIGUSR2, before[1])
    assert len(calls) == 2
    assert not looks_of(tmp_path / "cut", "motion")
    assert RunPaths(tmp_path / "cut").phase("motion").checkpoint(2).is_dir()
    monkeypatch.setattr(validation.HeldOut, "_score", score)
    resumed = train(data_root, tmp_path / "cut", "motion", *words)
    assert all(torch.equal(whole[name], resumed[name]) for name in whole)
    figures = [
        [{k: v for k, v in row.items() if k.startswith("validation_") and "seconds" not in k} | {"step": row["step"]}
         for row in looks_of(tmp_path / name, "motion")] for name in ("whole", "cut")
    ]  # fmt: skip
    assert [row["step"] for row in figures[0]] == [2, 3]
    assert figures[0] == figures[1]


def test_looks_are_not_counted_as_training_or_as_lost(looked):
    run_dir, _ = looked
    log = read_log(load_config(run_dir / "config.yaml"), RunPaths(run_dir), "st_resnet")
    looks = sum(row["validation_seconds"] for row in looks_of(run_dir, "st_resnet"))
    trained = sum(row["seconds"] for row in rows_of(run_dir, "st_resnet") if "seconds" in row)
    assert log.validated_seconds == pytest.approx(looks)
    assert log.trained_seconds == pytest.approx(trained)
    assert log.lost_seconds < log.ends[-1] - log.ends[0] - 0.5 * looks
    videos = [
        row["videos_per_s"] * row["seconds"]
        for row in rows_of(run_dir, "st_resnet")
        if "seconds" in row
    ]
    assert log.videos_per_second == pytest.approx(sum(videos) / trained)


# ---- held out by a column


@pytest.fixture
def listed(tmp_path):
    """A config of a CSV in which recordings have a column and so have held-out videos, and what a store says of it."""
    rows = [["path", "label", "split", "group", "Fold"]]
    for n in range(16):
        rows.append(
            [f"clip{n}.avi", "ab"[n % 2], "train", f"r{n // 4}", "Val" if n in (1, 6, 7) else ""]
        )
    rows += [[f"test{n}.avi", "ab"[n % 2], "test", "", "val"] for n in range(4)]
    write_table(tmp_path, rows)
    store = SimpleNamespace(
        rows=[SimpleNamespace(id=f"clip{n}", label=n % 2) for n in range(16)], classes=["a", "b"], label_sets=None,
        present=lambda *which: list(range(16)),
    )  # fmt: skip
    words = ["data.kind=csv", f"data.videos={tmp_path}", f"data.lists={tmp_path}/videos.csv"]
    return store, words, rows


def write_table(folder, rows):
    with (folder / "videos.csv").open("w", newline="") as stream:
        csv.writer(stream).writerows(rows)


def test_a_column_names_the_held_out_part(listed, tmp_path):
    store, words, rows = listed
    named = load_config(TINY, [*words, "evaluation.validation_column=fold"])
    assert held_out(store, named) == [1, 6, 7]
    assert marked(named.data, "fold") == {
        "clip1",
        "clip6",
        "clip7",
        "test0",
        "test1",
        "test2",
        "test3",
    }
    with pytest.raises(UserError, match="no column absent"):
        held_out(store, load_config(TINY, [*words, "evaluation.validation_column=absent"]))
    with pytest.raises(ConfigError, match=r"validation_column: no effect beside validation_share"):
        load_config(TINY, [*words, "evaluation.validation_column=fold", SHARE])
    for word, message in (
        ("maybe", r"videos\.csv:3: fold is 'maybe'; expected val"),
        ("val", "every training video of b"),
    ):
        cells = [
            [*row[:-1], word if row[1] == "b" and row[2] == "train" else ""] for row in rows[1:]
        ]
        write_table(tmp_path, [rows[0], *cells])
        with pytest.raises(UserError, match=message):
            held_out(store, named)
    write_table(tmp_path, [rows[0], *([*row[:-1], ""] for row in rows[1:])])
    with pytest.raises(UserError, match="marks no training video"):
        held_out(store, named)
    (tmp_path / "videos.csv").unlink()
    with pytest.raises(UserError, match="a CSV with this column is needed"):
        held_out(store, named)


@pytest.mark.parametrize("groups", ["auto", "column"])
def test_a_share_takes_the_recordings_of_the_column_whole(listed, groups):
    store, words, _ = listed
    config = load_config(
        TINY, [*words, "evaluation.validation_share=0.25", f"evaluation.groups={groups}"]
    )
    rows = held_out(store, config)
    by_class = [{row // 4 for row in rows if row % 2 == label} for label in (0, 1)]
    assert [len(recordings) for recordings in by_class] == [1, 1]
    assert len(rows) == 4


def test_a_list_with_another_held_out_part_is_another_data_set(listed, tmp_path, monkeypatch):
    store, words, rows = listed
    monkeypatch.setattr("hpc_stres.store.held_out.facts_of", lambda *which: {"train": 16})
    from hpc_stres.run.data_set import claim_data_set, refuse_other_data_set

    config = load_config(TINY, [*words, "evaluation.validation_column=fold"])
    claim_data_set(tmp_path / "run", trained_facts(store, config))
    refuse_other_data_set(tmp_path / "run", trained_facts(store, config))
    assert "held_out" not in trained_facts(store, load_config(TINY, words))
    write_table(tmp_path, [*rows[:3], [*rows[3][:-1], "yes"], *rows[4:]])
    with pytest.raises(UserError, match="other training videos are held out"):
        refuse_other_data_set(tmp_path / "run", trained_facts(store, config))
