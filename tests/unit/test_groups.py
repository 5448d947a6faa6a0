"""Recordings by names, column and pattern, in score files and results; held-out training videos."""

import csv
import json
from types import SimpleNamespace

import numpy as np
import pytest

from hpc_stres.config.loading import load_config
from hpc_stres.data.requests import sampler
from hpc_stres.errors import ConfigError, UserError
from hpc_stres.evaluation import results
from hpc_stres.evaluation.groups import Groups, by_names, by_pattern, groups_of
from hpc_stres.evaluation.scores import Scores
from hpc_stres.evaluation.table import results_table
from hpc_stres.run.experiment import FREE_KEYS, refuse_other_config
from hpc_stres.run.paths import RunPaths
from hpc_stres.store.held_out import held_out
from tests.conftest import TINY, tiny_config
from tests.unit.answered import make_run, make_scores, write_results
from tests.unit.untrained import evaluate_here
from tests.unit.untrained import make_run as make_finished


def test_official_names_tell_the_recording():
    ids = [
        "v_Run_g07_c03",
        "Run/v_Run_g07_c04",
        "RATRACE_wave_f_nm_np1_fr_goo_37",
        "mine_g7_c3_x",
        "plain",
    ]
    found = by_names(ids, ["Run", "Run", "wave", "Run", "Run"])
    assert found.names == ["v_Run_g07", "Run/v_Run_g07", "RATRACE_wave", "", ""]
    assert (found.source, found.count) == ("names", 5)
    assert by_names(["a", "b"], ["x", "x"]) == Groups(["", ""], "none")


def test_a_pattern_of_ones_own():
    assert by_pattern(["cam1-a-01", "cam1-a-02", "cam2-b-01", "odd"], r"(cam\d)-(\w)").count == 3
    with pytest.raises(UserError, match=r"evaluation.groups: .* fits none of 2 videos: a, b"):
        by_pattern(["a", "b"], r"(x)")
    for pattern in ("clip[0-9]+", "(", "nmes", "*"):
        with pytest.raises(ConfigError, match=r"evaluation\.groups: expected auto"):
            load_config(TINY, [f"evaluation.groups={json.dumps(pattern)}"])


@pytest.fixture
def listed(tmp_path):
    """A config whose CSV has a column of recordings."""
    with (tmp_path / "videos.csv").open("w", newline="") as stream:
        rows = [["path", "label", "split", "group"]]
        rows += [[f"{kind}{n}.avi", "ab"[n % 2], kind, f"r{n // 4}" if n < 8 else ""]
                 for kind in ("train", "test") for n in range(10)]  # fmt: skip
        csv.writer(stream).writerows(rows)
    return load_config(
        TINY, ["data.kind=csv", f"data.videos={tmp_path}", f"data.lists={tmp_path}/videos.csv"]
    )


def test_a_column_is_taken_first_and_kept_where_the_table_is_gone(listed, tmp_path, capsys):
    ids, labels = [f"test{n}" for n in range(10)], list("ab" * 5)
    found = groups_of("auto", listed.data, ids, labels)
    assert (found.names, found.source, found.count) == (
        ["r0"] * 4 + ["r1"] * 4 + ["", ""],
        "column",
        4,
    )
    assert groups_of("none", listed.data, ids, labels).count == 10
    assert groups_of(r"test(\d)", listed.data, ids, labels).source == "pattern"
    (tmp_path / "videos.csv").unlink()
    assert groups_of("auto", listed.data, ids, labels, kept=found) == found
    with pytest.raises(UserError, match="column `group`"):
        groups_of("column", listed.data, ids, labels)
    assert groups_of("auto", listed.data, ids, labels).source == "none"
    assert "the CSV is not here" in capsys.readouterr().err


def test_recordings_come_back_from_score_files_and_are_in_their_digest(tmp_path):
    scores = make_scores(1)
    scores.save(tmp_path / "s.npz")
    back = Scores.load(tmp_path / "s.npz")
    assert back.groups == scores.recordings
    with np.load(tmp_path / "s.npz") as data:
        arrays = {name: data[name] for name in data.files}
    assert len(arrays["groups"]) == len(arrays["ids"])
    np.savez(tmp_path / "s.npz", **{**arrays, "groups": arrays["groups"][::-1].copy()})
    with pytest.raises(UserError, match="its digest is wrong"):
        Scores.load(tmp_path / "s.npz")


def test_results_and_table_say_which_and_how_many(tmp_path):
    config, paths = make_run(tmp_path / "run", 1, phases=("motion", "appearance"))
    whole = write_results(config, paths)
    column = whole["splits"]["1"]["motion"]
    assert column["groups"]["count"] == 24
    assert column["groups"]["method"] == "cluster"
    assert (
        "intervals over recordings, stratified by class: 24 recordings (from the names of clips)"
        in results_table(whole)
    )
    rows = whole["comparisons"]["1"]
    assert [(row["first"], row["second"]) for row in rows] == [
        ("appearance", "motion"), ("appearance", "two_stream"), ("motion", "two_stream")
    ]  # fmt: skip
    assert all(row["p_holm"] >= row["p"] for row in rows)
    assert all(row["test"] == "sign_flip" for row in rows)
    single = load_config(TINY, ["evaluation.groups=none", "seed=1"])
    found = results.columns(single, paths.root)
    assert found["motion"].recordings.count == 72
    assert results.comparisons(found)[0]["test"] == "mcnemar"


def test_wider_where_clips_of_a_recording_succeed_together(tmp_path):
    config, paths = make_run(tmp_path / "run", 1)
    found = results.columns(config, paths.root)["appearance"]
    alike = np.repeat(np.random.default_rng(1).random(24) < 0.7, 3)
    logits = np.where(alike[:, None], np.eye(4)[found.labels], -np.eye(4)[found.labels])
    from hpc_stres.evaluation.measures import measure

    grouped = measure(found.labels, found.classes, logits, found.recordings)
    alone = measure(found.labels, found.classes, logits, Groups([""] * 72, "none"))
    widths = [column["interval95"][1] - column["interval95"][0] for column in (grouped, alone)]
    assert widths[0] > 1.4 * widths[1]
    assert grouped["interval95"] == grouped["intervals"]["top1"]


# ---- held-out training videos


@pytest.mark.parametrize("share", [0.01, 0.2, 0.34, 0.5])
def test_held_out_recordings_are_whole_of_every_class_and_not_trained_on(data_root, store, share):
    config = tiny_config(data_root, f"evaluation.validation_share={share}")
    rows = held_out(store, config)
    trained = set(sampler(config, "motion", store).videos)
    listed = set(store.present(1, "train"))
    assert trained | set(rows) == listed
    assert not trained & set(rows)
    for label in range(len(store.classes)):
        own = [row for row in listed if store.rows[row].label == label]
        count = sum(row in set(rows) for row in own)
        assert count == max(1, int(share * len(own) + 0.5))
    assert rows == held_out(store, config)
    assert held_out(store, tiny_config(data_root)) == []


def clips_of(ids):
    """A store's listing of training videos of one class, as far as holding out reads it."""
    rows = [SimpleNamespace(id=name, label=0) for name in ids]
    return SimpleNamespace(
        rows=rows, classes=["Run"], label_sets=None, present=lambda *which: list(range(len(rows)))
    )


@pytest.mark.parametrize(
    ("form", "groups"), [("v_Run_g{:02d}_c{:02d}", "auto"), ("cam{}-take{}", "(cam[0-9]+)-")]
)
def test_clips_of_a_recording_are_held_out_together(form, groups):
    store = clips_of([form.format(group, clip) for group in range(1, 9) for clip in range(1, 5)])
    config = load_config(TINY, ["evaluation.validation_share=0.25", f"evaluation.groups={groups}"])
    rows = held_out(store, config)
    assert len(rows) == 8
    assert len({row // 4 for row in rows}) == 2
    alone = load_config(TINY, ["evaluation.validation_share=0.25", "evaluation.groups=none"])
    assert len({row // 4 for row in held_out(store, alone)}) > 2
    with pytest.raises(
        UserError, match=r"evaluation\.groups=column: the list has no column `group`"
    ):
        held_out(
            store,
            load_config(TINY, ["evaluation.validation_share=0.5", "evaluation.groups=column"]),
        )


@pytest.mark.parametrize("share", [0.1, 0.3, 0.5])
def test_a_recording_of_several_classes_is_held_out_whole_or_not_at_all(share):
    """A person who does many of the actions, as in a data set of one's own: half of him is no test."""
    draw = np.random.default_rng(3)
    ids, labels = [], []
    for person in range(12):
        for label in range(5):
            if draw.random() < 0.6 or label == person % 5:
                ids.append(f"p{person:02d}_action{label}")
                labels.append(label)
    ids, labels = [*ids, "alone_action5"], [*labels, 5]
    rows = [SimpleNamespace(id=name, label=label) for name, label in zip(ids, labels, strict=True)]
    store = SimpleNamespace(
        rows=rows, classes=list("abcdef"), label_sets=None, present=lambda *_: range(len(rows))
    )
    config = load_config(TINY, [f"evaluation.validation_share={share}", "evaluation.groups=^(.+)_"])
    held = set(held_out(store, config))
    out, trained = (
        {ids[row].split("_")[0] for row in part} for part in (held, set(range(len(ids))) - held)
    )
    assert not out & trained
    for label in range(6):
        own = {row for row in range(len(ids)) if labels[row] == label}
        assert own - held
        assert len(own & held) >= int(share * len(own) + 0.5) or label == 5


def test_the_last_video_of_a_class_is_trained_on_where_videos_have_several():
    sets = [[0], *([0, number] for number in range(1, 10))]
    rows = [SimpleNamespace(id=f"v{n}", label=n if n < 10 else 0) for n in range(30)]
    store = SimpleNamespace(
        rows=rows,
        classes=list("abcdefghij"),
        label_sets=sets,
        present=lambda *_: range(len(rows)),
    )
    held = held_out(store, load_config(TINY, ["evaluation.validation_share=0.5"]))
    assert held
    assert max(held) > 9 >= min(set(range(30)) - set(held))
    assert not set(range(1, 10)) & set(held)


def test_a_pattern_that_holds_nothing_of_a_name_leaves_it_alone():
    store = clips_of(["x_1", "y_2", "cam1_3", "cam1_4", "z_5"])
    config = load_config(TINY, ["evaluation.validation_share=0.3", "evaluation.groups=(cam.)?_"])
    assert by_pattern(["x_1", "cam1_3"], "(cam.)?_").names == ["", "cam1"]
    assert len(held_out(store, config)) < 3


def test_a_class_of_one_recording_is_trained_on():
    store = clips_of([f"v_Run_g01_c{clip:02d}" for clip in range(5)])
    assert held_out(store, load_config(TINY, ["evaluation.validation_share=0.5"])) == []


def test_what_is_held_out_may_not_change_later_and_older_configs_held_out_nothing():
    plain = {"evaluation": {"protocol": "paper"}, "data": {"kind": "csv"}}
    now = {"evaluation": {"protocol": "quick", "validation_share": 0.0, "groups": "auto"},
           "data": {"kind": "csv", "labels": "single"}}  # fmt: skip
    refuse_other_config(plain, now, FREE_KEYS)
    for key, value in (("validation_share", 0.1), ("groups", "none")):
        other = {**now, "evaluation": {**now["evaluation"], key: value}}
        with pytest.raises(UserError, match=f"evaluation.{key}"):
            refuse_other_config(plain, other, FREE_KEYS)
    with pytest.raises(UserError, match=r"data\.labels"):
        refuse_other_config(plain, {**now, "data": {"kind": "csv", "labels": "multi"}}, FREE_KEYS)


def test_held_out_videos_are_scored_and_give_the_temperature(data_root, store, tmp_path):
    config = tiny_config(data_root, "evaluation.validation_share=0.34")
    run = make_finished(config, tmp_path / "run", store.classes, ("motion",))
    found = evaluate_here(run.root)
    column = found["splits"]["1"]["motion"]
    kept = Scores.load(run.root / "scores" / "validation" / "split1_motion.npz")
    assert set(kept.ids) == {store.rows[row].id for row in held_out(store, config)}
    assert not set(kept.ids) & set(store.ids(1, "test"))
    assert column["calibration"]["temperature"] > 0
    assert column["calibration"]["fitted_on"] == {"videos": len(kept.ids)}
    assert column["validation"]["videos"] == len(kept.ids)
    assert set(Scores.load(RunPaths(run.root).scores(1, "motion")).ids) == set(store.ids(1, "test"))
    for word in ("evaluation.validation_share=0.5", "evaluation.groups=none"):
        from hpc_stres.evaluation.finished import load_trained

        with pytest.raises(ConfigError, match=r"evaluation\.validation_share"):
            load_trained(run.root, [word])


def test_a_phase_that_was_trained_on_the_held_out_videos_is_refused(data_root, store, tmp_path):
    run = make_finished(tiny_config(data_root), tmp_path / "run", store.classes, ("motion",))
    text = run.config.read_text().replace("validation_share: 0.0", "validation_share: 0.34")
    assert text != run.config.read_text()
    run.config.write_text(text)
    with pytest.raises(UserError, match=r"trained with nothing held out, .*were trained on"):
        evaluate_here(run.root)
