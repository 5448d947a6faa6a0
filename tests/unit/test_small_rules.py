"""Small rules that larger tests pass by: each was broken in a mutant that no test noticed, or may be."""

import dataclasses
import hashlib
import json
import math
import resource
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from hpc_stres.config import tree
from hpc_stres.errors import ConfigError
from hpc_stres.evaluation import fusion_weights, gradcam, measures, statistics
from hpc_stres.evaluation.scores import Scores, summary
from hpc_stres.handcrafted.classifier import LEAST_SHARE, basis_of
from hpc_stres.launch.journal import Journal
from hpc_stres.layout import plan
from hpc_stres.listings import official
from hpc_stres.listings.listing import Video
from hpc_stres.models import dropout, protobuf_wire
from hpc_stres.models.interaction import Interaction
from hpc_stres.models.two_stream import window_means
from hpc_stres.parallel import reach
from hpc_stres.parallel.world import World
from hpc_stres.run import data_set, product
from hpc_stres.run.accounting import Costs
from hpc_stres.run.paths import RunPaths
from hpc_stres.store import fingerprint
from hpc_stres.store.format import NO_SHA256, Stamp, StorePaths
from hpc_stres.training import metrics
from hpc_stres.training.engine import DeepSpeedEngine
from tests.conftest import tiny_config


def test_a_split_is_official_by_its_lists_and_the_classes_of_its_videos(monkeypatch):
    def digest(value):
        return hashlib.sha256(json.dumps(value).encode()).hexdigest()

    lists = digest([["run", "wave"], ["a.avi", "b.avi"], ["c.avi"]])
    labels = digest([["a.avi", "run"], ["b.avi", "wave"], ["c.avi", "run"]])
    monkeypatch.setattr(official, "DIGESTS", {"other": {}, "made up": {2: (lists, labels)}})
    given = (["wave", "run"], ["y/b.avi", "x/a.avi"], ["x/c.avi"])
    right = {"y/b.avi": 0, "x/a.avi": 1, "x/c.avi": 1}
    assert official.official_name(*given, 2) == "made up"
    assert official.official_name(*given, 2, right) == "made up"
    assert official.official_name(*given, 2, {**right, "x/c.avi": 0}) is None
    assert official.official_name(*given, 1) is None
    assert official.official_name(given[0], given[2], given[1], 2) is None


@pytest.mark.parametrize(("faults", "lost"), [
    ({0: "x"}, [1]), ({0: "x", 3: "y"}, [0]), ({1: "x", 2: "y"}, [2]), ({0: "x", 2: "y"}, [1, 3]),
])  # fmt: skip
def test_who_is_reached_by_nobody_is_lost_and_not_whom_it_complains_of(faults, lost):
    place = reach.Place(
        SimpleNamespace(address="n0", port=1), "n0", (0, 1, 2, 3), ("n0", "n1", "n2", "n3")
    )
    accused = [node for node, _, _ in reach._dead(place, list(faults.items())).blamed]
    assert sorted(accused) == [f"n{n}" for n in lost]


@pytest.mark.parametrize(("size", "source"), [(1, "environment"), (2, "torchrun")])
def test_nobody_is_looked_for_alone_or_under_an_agent(size, source, monkeypatch):
    monkeypatch.setattr(reach, "refuse_unresolvable", lambda *_: pytest.fail("looked for"))
    reach.check(World(0, size, 0, 1, "nowhere", 1, source), "n0", 0.1, {})


def test_a_group_is_cut_where_whole_ones_leave_a_rank_a_quarter_more_work():
    # Five groups of 4 over two ranks: 12 and 8 videos, a fifth above even. Three: 8 and 4, a third.
    assert plan(20, 4, 2).team_size == 1
    assert plan(12, 4, 2).team_size == 2


def test_memory_is_in_gib():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    assert before <= metrics.memory_gib(torch.device("cpu")) * 1024**3 <= 1.5 * before


def test_maps_and_odds_by_hand():
    assert gradcam.as_share(np.array([0.5, 0.25, 0.0])).tolist() == [1.0, 0.5, 0.0]
    assert gradcam.as_share(np.zeros(3)).tolist() == [0.0] * 3
    logits = torch.tensor([1.0, -0.5, 0.25], dtype=torch.float64)
    share = math.exp(-0.5) / sum(map(math.exp, logits.tolist()))
    assert float(gradcam.log_odds(logits, 1)) == pytest.approx(math.log(share / (1 - share)))
    assert float(gradcam.log_odds(logits[:2], 0)) == pytest.approx(1.5)
    assert float(gradcam.log_odds(logits[:1], 0)) == 1.0


def test_validation_is_in_per_cent_of_its_own_videos():
    def column(labels):
        names = [f"v{n}" for n in range(4)]
        logits = np.array([[2.0, 1.0]] * 4)
        return Scores(names, np.array(labels), ["a", "b"], logits, {})

    figures = summary(column([0, 1, 1, 1]), 4, "full", column([0, 0, 0, 1]))
    assert figures["validation"] == {"top1": 75.0, "videos": 4}
    assert figures["top1"] == 25.0


@pytest.mark.parametrize("text", ["seed", "=1", "a..b=1", ".a=1", "a" + ".a" * 50 + "=1"])
def test_an_override_is_a_key_and_a_value(text):
    with pytest.raises(ConfigError, match=r"expected key\.subkey=value"):
        tree.parse_overrides([text])


def test_a_value_in_a_message_is_at_most_80_characters_long():
    assert tree.shown("a" * 80) == "a" * 80
    assert tree.shown("a" * 81) == "a" * 77 + "..."
    assert tree.shown("a b") == "'a b'"
    assert "very many digits" in tree.shown(10**40)
    assert tree.shown(10**40 - 1) == "9" * 40


def test_stamps_are_read_as_they_were_written_and_of_folders_the_newest_counts(tmp_path):
    paths = StorePaths(tmp_path)
    seen = {"a": (Stamp(1, 2, 3), "f" * 64), "b": (Stamp(4, 5, 6), "0" * 64)}
    fingerprint.write_seen(paths, seen)
    assert fingerprint.read_seen(paths) == seen
    frames = tmp_path / "frames"
    frames.mkdir()
    for name in ("1.jpg", "2.jpg"):
        (frames / name).write_bytes(b"abc")
    parts = [path.stat() for path in (*frames.iterdir(), frames)]
    video = Video("frames", frames, 0)
    stamp = fingerprint.stamp_of(video, tiny_config("x").data)
    assert stamp.size == sum(part.st_size for part in parts)
    assert stamp.mtime_ns == max(part.st_mtime_ns for part in parts)
    assert stamp.ctime_ns == max(part.st_ctime_ns for part in parts)


def test_what_has_changed_in_a_data_set_is_said():
    then = {"classes": ["a", "b"], "train": 5, "held_out": 1}
    now = {"classes": ["a", *"cdefg"], "train": 6, "held_out": 2}
    assert data_set._difference(then, now) == (
        "classes new: c, d, e and 2 more; classes gone: b; other training videos are held out, by "
        "the list's columns; 5 training videos then, 6 now"
    )
    three = {**then, "classes": ["a", "b", "c", "d", "e"]}
    assert data_set._difference(then, three) == "classes new: c, d, e"
    assert data_set._difference(then, then).startswith("labels, splits or contents")


def test_the_time_on_nodes_is_all_but_the_queue():
    busy = ("startup", "training", "checkpoints", "repeated", "evaluation", "other")
    costs = Costs(**{field.name: 2.0**n for n, field in enumerate(dataclasses.fields(Costs))})
    assert costs.busy == sum(getattr(costs, name) for name in busy)


def test_a_request_is_never_younger_than_now(tmp_path, monkeypatch):
    monkeypatch.setattr("time.time", lambda: 1000.0)
    ages = [
        Journal(tmp_path, {"asked": {"time": asked}}).asked_seconds_ago
        for asked in (1000, 999.5, 2000)
    ]
    assert ages == [0.0, 0.5, 0.0]


def test_each_time_of_a_video_has_a_dropout_mask_of_its_own_and_the_mean_is_kept():
    shapes = {"motion": dropout.DropoutShape(0.5, 3, 64)}
    masks = dropout.draw_masks(1, "p", 2, [0, 5], shapes, torch.device("cpu"))["motion"]
    assert masks.shape == (2, 3, 64)
    rows = {tuple(row) for row in masks.flatten(0, 1).tolist()}
    assert len(rows) == 6
    x = torch.arange(1.0, 13.0, dtype=torch.float64).view(6, 2)
    mask = torch.tensor([[[1, 0]] * 3, [[0, 1]] * 3], dtype=torch.bool)
    dropped = dropout.drop(x, 0.75, mask)
    assert torch.equal(dropped, x * mask.flatten(0, 1) * 4)
    with pytest.raises(ValueError, match="does not fit"):
        dropout.drop(x, 0.75, mask[:1])


@pytest.mark.parametrize("parts", [2, 3, 4])
def test_candidates_are_all_shares_in_the_finest_steps_that_are_few_enough(parts, monkeypatch):
    def count(steps):
        return math.comb(steps + parts - 1, parts - 1)

    for steps in (10, 5):
        monkeypatch.setattr(fusion_weights, "MOST_CANDIDATES", count(steps))
        points = fusion_weights.candidates(parts)
        assert len(points) == count(steps) + 1
        assert np.allclose(points.sum(axis=1), 1)
        assert len(np.unique(np.round(points[:-1] * steps).astype(int), axis=0)) == count(steps)
    assert np.allclose(points[-1], 1 / parts)


def test_an_interaction_that_needs_channels_is_refused_without():
    for options in ({"learned_scale": True}, {"operation": "concatenate"}):
        with pytest.raises(ValueError, match="needs the channels"):
            Interaction(**options)
    assert Interaction(operation="add").receivers


def test_a_damaged_row_of_metrics_is_left_out_and_named(tmp_path, capsys):
    paths = RunPaths(tmp_path).phase("motion")
    paths.root.mkdir(parents=True)
    rows = [product.metrics_line({"step": n}) for n in (1, 2, 3)]
    paths.metrics.write_text(rows[0] + rows[1].replace("2", "4", 1) + rows[2] + rows[0][:9])
    assert [row["step"] for row in product.read_metrics(paths)] == [1, 3]
    said = capsys.readouterr().err
    assert f"{paths.metrics}:2: " in said
    assert len(said.splitlines()) == 1
    assert product.read_metrics(RunPaths(Path(tmp_path)).phase("none")) == []


def test_deepspeed_is_given_a_loss_that_its_average_makes_a_sum():
    """It averages over ranks and micro-steps, as tests/distributed sees; here what it is given."""
    given, steps = [], []
    engine = DeepSpeedEngine.__new__(DeepSpeedEngine)
    engine.exact, engine.ranks, engine.micro_steps = None, 3, 4
    engine.engine = SimpleNamespace(
        set_gradient_accumulation_boundary=lambda last: steps.append(last),
        backward=given.append, step=lambda: steps.append("step"),
    )  # fmt: skip
    engine.backward(torch.tensor(0.5), last=False)
    engine.backward(None, last=False)
    engine.backward(torch.tensor(0.25), last=True)
    assert [float(loss) for loss in given] == [6.0, 3.0]
    assert steps == [False, "step", False, "step", True]


def test_floats_of_a_message_are_whole_and_in_bytes():
    def field(wire, data):
        return protobuf_wire.Field(5, wire, 0, memoryview(data))

    numbers = protobuf_wire.packed_floats(field(protobuf_wire.BYTES, bytes(8)), np.float32)
    assert numbers.tolist() == [0.0, 0.0]
    for wire, data in ((protobuf_wire.BYTES, bytes(7)), (protobuf_wire.VARINT, b"")):
        with pytest.raises(protobuf_wire.WireError, match="not of numbers of 4 bytes"):
            protobuf_wire.packed_floats(field(wire, data), np.float32)


def test_directions_of_next_to_nothing_are_left_out():
    for size, next_to_nothing in ((0.25, 0.9), (4.0, 0.6)):
        values = np.diag([size, size / 2, size * LEAST_SHARE * next_to_nothing])
        assert basis_of(values).vectors.shape == (3, 2)


@pytest.mark.parametrize("length", [1, 2, 5, 9])
def test_averages_over_windows_as_a_matrix(length):
    side = min(length, 3)
    rows = window_means(length, torch.zeros((), dtype=torch.float64), 3)
    x = torch.arange(float(length), dtype=torch.float64) ** 2
    expected = [x[first : first + side].mean() for first in range(length - side + 1)]
    torch.testing.assert_close(rows @ x, torch.stack(expected))


def test_the_hash_of_nothing_that_is_known_is_as_long_as_any():
    assert set(NO_SHA256) == {"0"}
    assert len(NO_SHA256) == len(hashlib.sha256().hexdigest())


def test_f1_where_as_many_answers_are_given_as_there_are_videos():
    labels = np.array([0, 1, 1, 0])
    answers = np.eye(2)[[0, 1, 0, 1]]
    plan = statistics.design(labels, [f"r{n}" for n in range(4)])
    rows = measures.per_class(labels, ["a", "b"], answers, plan)
    assert [row["f1"] for row in rows] == [50.0, 50.0]
