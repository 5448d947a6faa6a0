"""The report's figures against the score files, its order, its colours, its times; runs are made up."""

import itertools
import json
import math
import re
from dataclasses import replace

import numpy as np
import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from hpc_stres.__main__ import main
from hpc_stres.config.loading import load_config, load_run
from hpc_stres.evaluation.report import examples, inside, laps, matrix, several, style
from hpc_stres.evaluation.report.facts import gather
from hpc_stres.evaluation.report.page import write_report
from hpc_stres.evaluation.scores import Scores
from hpc_stres.models.temporal import TAPS
from hpc_stres.run.paths import RunPaths, read_sealed, write_sealed
from tests.unit.made_up_run import make_finished_run


@pytest.fixture(scope="module")
def run_dir(tmp_path_factory):
    folder = tmp_path_factory.mktemp("page") / "run"
    write_report(make_finished_run(folder, 8, 12), folder)
    return folder


def page_of(run_dir):
    return (run_dir / "report.html").read_text(encoding="utf-8")


def visible(page):
    return re.sub(
        r"\s+",
        " ",
        re.sub(r"<[^>]*>", " ", re.sub(r"<(style|script).*?</\1>", "", page, flags=re.S)),
    )


def raw(run_dir, phase):
    with np.load(RunPaths(run_dir).scores(1, phase)) as data:
        return data["ids"].tolist(), data["labels"], data["logits"], data["classes"].tolist()


def test_figures_are_those_of_the_score_files(run_dir):
    """Computed again from the arrays alone."""
    page, text = page_of(run_dir), visible(page_of(run_dir))
    _, labels, star, classes = raw(run_dir, "st_resnet_star")
    right = star.argmax(1) == labels
    assert (
        f"ST-ResNet* names {right.sum()} of {len(labels)} test videos correctly: {100 * right.mean():.1f} %"
        in text
    )
    both = (raw(run_dir, "appearance")[2] + raw(run_dir, "motion")[2]) / 2
    before = both.argmax(1) == labels
    repaired, broken = int((right & ~before).sum()), int((before & ~right).sum())
    n, k = repaired + broken, min(repaired, broken)
    p = min(1.0, 2 * sum(math.comb(n, i) for i in range(k + 1)) / 2**n)
    assert f"{100 * (repaired - broken) / len(labels):.1f} points more than Two-Stream" in text
    assert f"{repaired} videos repaired, {broken} broken" in text
    digit, power = f"{p:.0e}".split("e")
    assert f"p = {digit} \u00b7 10<sup>{int(power)}</sup>" in page
    data = json.loads(re.search(r'<script type="application/json">(.*?)</script>', page)[1])
    counted = {
        (classes.index(data["names"][r]), classes.index(data["names"][c])): n
        for r, c, n in data["cells"]
    }
    wanted = {}
    for true, answer in zip(labels.tolist(), star.argmax(1).tolist(), strict=True):
        wanted[true, answer] = wanted.get((true, answer), 0) + 1
    assert counted == wanted
    for number, name in enumerate(classes):
        own = labels == number
        assert f"{name} {right[own].sum()} of {own.sum()}" in text


def test_it_takes_what_the_statistics_say_where_they_are(run_dir, tmp_path):
    folder = tmp_path / "run"
    config = make_finished_run(folder, 8, 12)
    results = read_sealed(folder / "results.json", "")
    star = results["splits"]["1"]["st_resnet_star"]
    star["intervals"] = {"top1": [71.5, 97.5], "top5": [98, 100], "mean_class": [70, 96]}
    star |= {
        "mean_class": 88.25,
        "groups": {"count": 48, "words": "48 recordings (from names)", "method": "cluster"},
    }
    bins = [{"low": 0, "high": 0.5, "videos": 2, "confidence": 0.4, "accuracy": 0.5}]
    star["calibration"] = {"ece": 0.123, "bins": bins, "temperature": None, "scaled": None}
    star["per_class"] = [{"class": "Class001", "interval": [12.0, 34.0]}]
    star["validation"] = {"top1": 77.5, "videos": 20}
    results["comparisons"] = {"1": [{
        "first": "st_resnet_star", "second": "two_stream", "difference": -12.5, "interval": [-20.0, -5.0], "p": 0.004,
        "p_holm": 0.01, "repaired": 3, "broken": 15, "groups": 48, "test": "sign_flip",
    }]}  # fmt: skip
    write_sealed(folder / "results.json", results)
    text = visible(write_report(config, folder).read_text(encoding="utf-8"))
    assert "(95 % interval 71.5 to 97.5)" in text
    assert (
        "12.5 points more than Two-Stream (95 % interval +5.0 to +20.0): 15 videos repaired, 3 broken"
        in text
    )
    assert "permutation test over recordings" in text
    assert "Intervals over 48 recordings (from names)." in text
    assert "88.25" in text
    assert "Expected calibration error 12.3 points" in text
    page = write_report(config, folder).read_text(encoding="utf-8")
    assert "held out ends at 77.5" in page
    assert re.search(r'aria-label="Class001: \d+ %, interval 12 to 34"', page)


def test_videos_of_several_labels_have_their_own_answer(tmp_path):
    """No confusions there, mean average precision in the lead, right where one of the labels is named."""
    folder = tmp_path / "run"
    config = make_finished_run(folder, 6, 5, phases=("motion", "st_resnet"))
    results, figures = (
        read_sealed(folder / "results.json", ""),
        {"motion": 61.25, "st_resnet": 87.5},
    )
    for phase, value in figures.items():
        path = RunPaths(folder).scores(1, phase)
        one = Scores.load(path)
        several_labels = np.eye(6, dtype=np.int64)[one.labels]
        several_labels[:, 0] = 1
        replace(one, labels=several_labels).save(path)
        column = results["splits"]["1"][phase]
        column |= {"map": value, "intervals": {"top1": [1, 2], "map": [value - 5, value + 5]}}
        column["per_class"] = [
            {"class": "Class002", "videos": 3, "ap": 43.25},
            {"class": "Class001", "ap": None},
        ]
        del column["top5"]
    write_sealed(folder / "results.json", results)
    text = visible(write_report(config, folder).read_text(encoding="utf-8"))
    assert "ST-ResNet reaches a mean average precision of 87.5 % on 30 test videos" in text
    assert "(95 % interval 82.5 to 92.5)" in text
    assert "61.25" in text
    assert "43.2" in text
    assert "there is no confusion of one for another" in text


def luminance(colour):
    levels = [int(colour[n : n + 2], 16) / 255 for n in (1, 3, 5)]
    linear = [v / 12.92 if v <= 0.04045 else ((v + 0.055) / 1.055) ** 2.4 for v in levels]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def contrast(one, two):
    light, dark = sorted((luminance(one), luminance(two)), reverse=True)
    return (light + 0.05) / (dark + 0.05)


@pytest.mark.parametrize("colours", [style.LIGHT, style.DARK], ids=["light", "dark"])
def test_every_text_has_the_contrast_of_level_aa(colours):
    assert contrast("#000000", "#ffffff") == pytest.approx(21)
    for text, ground in style.TEXT_ON_GROUND:
        assert contrast(colours[text], colours[ground]) >= 4.5, (text, ground)
    # Numbers of the confusion matrix stand on up to 40 % of a colour.
    for series in ("s0", "s1"):
        mixed = "#" + "".join(
            f"{round(0.4 * int(colours[series][n : n + 2], 16) + 0.6 * int(colours['ground'][n : n + 2], 16)):02x}"
            for n in (1, 3, 5)
        )
        assert contrast(colours["text"], mixed) >= 4.5


def test_classes_that_are_alike_lie_beside_each_other():
    draw = np.random.default_rng(2)
    place = draw.permutation(24)
    alike = np.exp(-np.abs(place[:, None] - place[None, :]) / 2.0)
    ordered = place[matrix.order(alike)]
    assert sorted(ordered) == list(range(24))
    steps = np.abs(np.diff(ordered))
    assert np.median(steps) == 1
    for size in (1, 2, 3):
        assert sorted(matrix.order(np.ones((size, size)))) == list(range(size))


@pytest.mark.parametrize("classes", [1, 2, 8, 17, 101])
def test_a_report_of_any_number_of_classes(tmp_path, classes):
    config = make_finished_run(tmp_path / "run", classes, 3)
    page = write_report(config, tmp_path / "run").read_text(encoding="utf-8")
    for number in range(classes):
        assert f"Class{number:03d}" in page
    assert len(page) < 3_000_000
    for number in matrix.window(classes, classes - 1):
        assert 0 <= number < classes


def test_failures_come_first(run_dir):
    from hpc_stres.evaluation.report.facts import gather

    facts = gather(load_run(run_dir), run_dir)
    chosen = examples.choose(facts, "st_resnet_star")
    _, labels, star, _ = raw(run_dir, "st_resnet_star")
    wrong = star.argmax(1) != labels
    kinds = [bool(wrong[one.index]) for one in chosen]
    assert kinds == sorted(kinds, reverse=True), "wrong ones, then right ones"
    assert len({one.index for one in chosen}) == len(chosen)
    shares = np.exp(star - star.max(1, keepdims=True))
    sure = (shares / shares.sum(1, keepdims=True)).max(1)
    every = np.all(
        [raw(run_dir, p)[2].argmax(1) != labels for p in ("motion", "appearance", "st_resnet")],
        axis=0,
    )
    both = (raw(run_dir, "appearance")[2] + raw(run_dir, "motion")[2]).argmax(1) != labels
    hopeless = np.nonzero(every & both & wrong)[0]
    first = [one.index for one in chosen if "every column" in one.why]
    assert first == sorted(hopeless, key=lambda n: -sure[n])[:2]
    rest = [n for n in np.nonzero(wrong)[0] if n not in first]
    assert [one.index for one in chosen if "most confident" in one.why] == sorted(
        rest, key=lambda n: -sure[n]
    )[:2]


def test_the_command_in_the_box_means_this_run(run_dir):
    """Its config, read as a config file from anywhere, is the run's."""
    text = visible(page_of(run_dir))
    assert (
        f"hpc-stres submit --config {run_dir.resolve()}/config.yaml --cluster local --run-dir again"
        in text
    )
    again, own = load_config(run_dir / "config.yaml", []), load_run(run_dir)
    assert (again.phases, again.data, again.training, again.evaluation) == (
        own.phases, own.data, own.training, own.evaluation,
    )  # fmt: skip


def test_times_add_up(run_dir):
    """Each made-up phase: ten steps of 2 s, and half a minute between the fifth and the sixth."""
    log = laps.read_log(load_run(run_dir).phases["motion"], RunPaths(run_dir), "motion")
    assert log.trained_seconds == pytest.approx(20.0)
    assert log.waited_seconds == pytest.approx(5.0)
    assert log.lost_seconds == pytest.approx(30.0)
    assert log.videos_per_second == pytest.approx(5.0)
    line = laps.timeline({"motion": log})
    assert line.by_clock
    assert line.length == pytest.approx(50.0)


def test_rows_of_older_versions_give_training_time(tmp_path):
    config = make_finished_run(tmp_path / "run", 4, 3, timed=False)
    logs = {
        name: laps.read_log(config.phases[name], RunPaths(tmp_path / "run"), name)
        for name in ("motion", "st_resnet")
    }
    assert logs["motion"].lost_seconds is None
    line = laps.timeline(logs)
    assert not line.by_clock
    assert line.starts["st_resnet"] == pytest.approx(line.ends["motion"][-1])
    assert "not recorded" in write_report(config, tmp_path / "run").read_text(encoding="utf-8")


def test_kernels_begin_unmoved_and_are_seen_to_move():
    average = np.repeat(np.random.default_rng(0).normal(size=(4, 5, 1)), 3, axis=2)
    assert inside.kernel("conv1.weight", average, inside.SPREAD).moved == pytest.approx(0.0)
    for start in TAPS.values():
        begun = np.eye(4)[..., None] * np.array(start)
        assert inside.kernel("temporal.weight", begun, start).moved == pytest.approx(0.0)
        begun[0, 0] += (0.1, -0.2, 0.3)
        assert inside.kernel("temporal.weight", begun, start).moved > 0.01
    identity = np.zeros((4, 4, 3))
    identity[..., 1] = np.eye(4)
    assert inside.kernel("temporal.weight", identity, TAPS["identity"]).moved == 0.0
    identity[0, 0] = (-1.0, 1.0, 0.0)
    seen = inside.kernel("temporal.weight", identity, TAPS["identity"])
    assert seen.moved == pytest.approx(1 / 5)
    assert seen.differences == pytest.approx(1 / 16)


def test_tensorboard_gets_figures_and_pictures_once(run_dir):
    write_report(load_run(run_dir), run_dir)
    events = EventAccumulator(str(run_dir / "events" / "test"), size_guidance={"images": 0})
    events.Reload()
    _, labels, star, _ = raw(run_dir, "st_resnet_star")
    (top1,) = events.Scalars("test_top1/st_resnet_star")
    assert top1.value == pytest.approx(100 * (star.argmax(1) == labels).mean())
    assert len(events.Images("confusion/st_resnet_star")) == 1


def test_several_runs_on_one_page(tmp_path, run_dir):
    folders = []
    for seed, split in itertools.product((1, 2, 3), (1,)):
        folders.append(tmp_path / f"läuf {seed}")
        make_finished_run(folders[-1], 8, 12, seed=seed, split=split)
    out = tmp_path / "all.html"
    assert main(["report", *map(str, folders), "--out", str(out), "--debug"]) == 0
    text = visible(out.read_text(encoding="utf-8"))
    figures = [
        100 * (raw(f, "st_resnet_star")[2].argmax(1) == raw(f, "st_resnet_star")[1]).mean()
        for f in folders
    ]
    mean, deviation = np.mean(figures), np.std(figures, ddof=1)
    half = 4.302653 * deviation / math.sqrt(3)
    assert (
        f"{mean:.1f} % of the test videos correctly, on average over 3 runs (deviation {deviation:.1f}"
        in text
    )
    assert f"{mean - half:.1f} to {mean + half:.1f}" in text
    assert "l%C3%A4uf%201/report.html" in out.read_text(encoding="utf-8")
    for figure in figures:
        assert f"{figure:.2f}" in text
    assert several.spread([5.0]) == (5.0, 0.0, 0.0)
    assert several.spread(range(41))[2] == pytest.approx(
        2.021075 * np.std(range(41), ddof=1) / 41**0.5
    )


def test_no_interval_of_an_accuracy_leaves_0_to_100(tmp_path):
    folders = [tmp_path / str(seed) for seed in (1, 2)]
    for seed, folder in enumerate(folders, 1):
        make_finished_run(
            folder, 4, 6, seed=seed, skill=(0.2, 3.0)[seed - 1], phases=("motion",), timed=False
        )
    page = several.several_page([gather(load_run(f), f) for f in folders], tmp_path / "all.html")
    assert "95 % interval of the mean 0.0 to 100.0)" in visible(page)
    assert " 0.0 - 100.0 " in visible(page)


def test_the_command_refuses_what_it_cannot_do(tmp_path, run_dir, capsys):
    for words, wanted in (
        ([], "no run folder"),
        ([run_dir, run_dir], "Add --out"),
        ([run_dir, "--out", tmp_path / "x.html"], "Leave --out away"),
        ([run_dir, run_dir, "--out", tmp_path / "x.html"], "named twice"),
    ):
        assert main(["report", *map(str, words)]) in (1, 2)
        assert wanted in capsys.readouterr().err


def test_a_plot_places_values_where_they_belong():
    from hpc_stres.evaluation.report.charts import axis, log_axis, time_axis

    assert axis([0.3, 9.7]).low <= 0.3
    assert axis([0.3, 9.7]).high >= 9.7
    assert log_axis([1e-3, 1e-1]).share(1e-2) == pytest.approx(0.5)
    assert time_axis(7200.0).ticks[-1][1] == "2 h"
    for values in ([], [0.0], [5.0, 5.0], [-3.0], [1e9]):
        found = axis(values)
        assert all(math.isfinite(found.share(value)) for value in values)
    assert time_axis(0.0).share(0.0) == 0.0


def test_pictures_of_the_strip_include_the_peaks():
    for times, peaks in (([5], [5]), (list(range(25)), [7, 19]), ([3, 9], [9])):
        places = examples._places(times, peaks)
        assert {times.index(p) for p in peaks} <= set(places)
        assert places == sorted(set(places))
        assert max(places) < len(times)


def test_a_flow_wheel_is_round_and_says_right_in_red():
    from hpc_stres.evaluation.pictures import flow_wheel

    wheel = flow_wheel(65)
    assert wheel[0, 0, 3] == 0
    assert wheel[32, 62, :3].tolist()[0] > 200
    assert wheel[32, 62, :3].tolist()[1] < 60
    assert wheel[32, 32, :3].tolist() == [255, 255, 255]
