"""Numbers that are computed from scores, against scikit-free arithmetic; columns matched by id."""

import io
import math
import pickle
import zipfile

import numpy as np
import pytest

from hpc_stres.errors import UserError
from hpc_stres.evaluation import fusion
from hpc_stres.evaluation.published import PUBLISHED_PROTOCOL, official_data_set
from hpc_stres.evaluation.scores import (
    Scores,
    from_videos,
    interval95,
    mcnemar,
    mean_of,
    read_npz,
    right,
    summary,
)
from hpc_stres.evaluation.table import results_table
from hpc_stres.listings import official

CLASSES = ["a", "b", "c", "d", "e", "f"]


def scores(seed, count=20, streams=("appearance", "motion")):
    random = np.random.default_rng(seed)
    videos = {
        f"v{n:02d}": {s: random.standard_normal((3, 6)) for s in streams} for n in range(count)
    }
    return from_videos(videos, {f"v{n:02d}": n % 6 for n in range(count)}, CLASSES)


def test_logits_are_means_over_time_then_streams():
    found = scores(0)
    expected = (found.streams["appearance"].mean(1) + found.streams["motion"].mean(1)) / 2
    np.testing.assert_array_equal(found.logits, expected)
    assert found.ids == sorted(found.ids)


def test_top_1_and_top_5():
    found = scores(1)
    order = np.argsort(-found.logits, axis=1)
    assert right(found).sum() == (order[:, 0] == found.labels).sum()
    assert right(found, 5).sum() == sum(
        label in row[:5] for label, row in zip(found.labels, order, strict=True)
    )
    assert summary(found, 22, "p")["videos"] == 20
    assert summary(found, 22, "p")["of"] == 22


def test_late_fusion_needs_the_same_videos():
    one, two = scores(0, streams=("appearance",)), scores(1, streams=("motion",))
    fused = mean_of(one, two)
    np.testing.assert_array_equal(fused.logits, (one.logits + two.logits) / 2)
    with pytest.raises(UserError, match="different videos: v19"):
        mean_of(one, scores(1, count=19))


def test_wilson_interval():
    low, high = interval95(48, 96)
    assert (round(low, 2), round(high, 2)) == (40.19, 59.81)
    assert interval95(96, 96)[1] == 100.0
    assert interval95(0, 10)[0] == 0.0


def test_mcnemar_is_the_exact_binomial_test():
    one, two = scores(3), scores(4)
    only_one, only_two, p = mcnemar(one, two)
    n, k = only_one + only_two, min(only_one, only_two)
    assert p == min(1.0, 2 * sum(math.comb(n, i) for i in range(k + 1)) * 0.5**n)
    assert mcnemar(one, one) == (0, 0, 1.0)


def test_files_come_back_the_same(tmp_path):
    found = scores(5)
    found.save(tmp_path / "s.npz")
    back = Scores.load(tmp_path / "s.npz")
    assert (back.ids, back.classes) == (found.ids, found.classes)
    np.testing.assert_array_equal(back.logits, found.logits)
    np.testing.assert_array_equal(back.streams["motion"], found.streams["motion"])
    with pytest.raises(UserError, match="no such score file"):
        Scores.load(tmp_path / "none.npz")


def column(**more):
    return {"top1": 50.0, "top5": 90.0, "videos": 96, "of": 96, "interval95": [40.0, 60.0], "protocol": "p",
            "title": "ST-ResNet", "published": 92.76, **more}  # fmt: skip


def three_splits(**more):
    figures = {"ucf101": 92.76, "hmdb51": 65.57}
    splits = {
        str(n): {"st_resnet": column(title="ST-ResNet", published=figures)} for n in (1, 2, 3)
    }
    words = f"{PUBLISHED_PROTOCOL}, full frame"
    return {"data": "ucf101", "official": "ucf101", "protocol": words, "splits": splits,
            "mean": {"st_resnet": 50.0}, **more}  # fmt: skip


def test_the_table_says_k_of_n():
    text = results_table(three_splits(splits={"1": {"st_resnet": column(videos=95)}}))
    assert "95 of 96" in text


def test_published_figures_stand_only_beside_means_of_their_own_data_set_and_protocol():
    text = results_table(three_splits())
    rows = [line.split() for line in text.splitlines() if line.startswith("ST-ResNet")]
    assert [row[-1] for row in rows] == ["96", "96", "96", "92.76"]
    for other in (
        {"official": None}, {"official": "mine"}, {"protocol": "quick: one clip"},
        {"splits": {"1": {"st_resnet": column(published={"ucf101": 92.76})}}},
        {"splits": {str(n): {"st_resnet": column(videos=95, published={"ucf101": 92.76})} for n in (1, 2, 3)}},
    ):  # fmt: skip
        text = results_table(three_splits(**other))
        assert "92.76" not in text, other
        assert "published" not in text, other


class Lists:
    """A store's lists: videos by name, all of the first class."""

    def __init__(self, classes, train, test):
        self.label_sets = None
        self.classes, self.lists = classes, {"train": train, "test": test}
        self.names, self.labels = [*train, *test], [0] * (len(train) + len(test))

    def id_of(self, row):
        return self.names[row]

    def ids(self, split, kind):
        return self.lists[kind]


def test_a_data_set_is_official_only_with_its_own_lists(monkeypatch):
    lists = Lists(["a", "b"], ["v1", "v2"], ["v3"])
    digests = (
        official._digest(official.canonical_lists(lists.classes, ["v1", "v2"], ["v3"])),
        official._digest(
            official.canonical_labels(
                lists.classes, ["v1", "v2", "v3"], dict.fromkeys(lists.names, 0)
            )
        ),
    )
    assert official_data_set("ucf101", lists, 1) is None
    monkeypatch.setitem(official.DIGESTS, "ucf101", {1: digests})
    assert official_data_set("ucf101", lists, 1) == "ucf101"
    assert official_data_set("folder", lists, 1) is None
    assert official_data_set("ucf101", lists, 2) is None
    assert official_data_set("ucf101", Lists(["a", "b"], ["v1", "v3"], ["v2"]), 1) is None
    lists.labels[1] = 1
    assert official_data_set("ucf101", lists, 1) is None


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"v00": {"appearance": np.zeros((3, 5))}}, "scores of video v00"),
        ({"v01": {"motion": np.zeros((3, 6))}}, "scores of video v01"),
        ({"v01": {}}, "scores of video v01"),
    ],
)
def test_scores_of_other_shapes_are_refused(change, words):
    videos = {f"v{n:02d}": {"appearance": np.zeros((3, 6))} for n in range(3)}
    labels = {name: 1 for name in videos}
    from_videos(videos, labels, CLASSES)
    with pytest.raises(UserError, match=words):
        from_videos(videos | change, labels, CLASSES)


def test_empty_scores_and_labels_outside_the_classes_are_refused():
    with pytest.raises(UserError, match="no scored videos"):
        from_videos({}, {}, CLASSES)
    for label in (-1, 6):
        with pytest.raises(UserError, match=f"video v has label {label}, but there are 6 classes"):
            from_videos({"v": {"appearance": np.zeros((3, 6))}}, {"v": label}, CLASSES)


class Evil:
    """Unpickling it makes a file."""

    def __init__(self, path):
        self.path = str(path)

    def __reduce__(self):
        return open, (self.path, "w")


def test_no_score_file_runs_code(tmp_path):
    harm = tmp_path / "harm"
    np.savez(
        tmp_path / "evil.npz",
        ids=np.array([Evil(harm)], dtype=object),
        classes=["a"],
        logits=np.zeros((1, 1)),
    )
    (tmp_path / "bare.npz").write_bytes(pickle.dumps(Evil(harm)))
    for name in ("evil.npz", "bare.npz"):
        for reader in (Scores.load, fusion.read):
            with pytest.raises(UserError, match=name):
                reader(tmp_path / name)
    assert not harm.exists()


def test_a_file_that_was_rewritten_with_another_number_is_refused(tmp_path):
    path = tmp_path / "s.npz"
    scores(5).save(path)
    with np.load(path) as data:
        arrays = {name: data[name] for name in data.files}
    for name in ("logits", "labels"):
        changed = arrays[name].copy()
        changed.flat[0] += 1
        np.savez(path, **{**arrays, name: changed})
        for reader in (Scores.load, fusion.read):
            with pytest.raises(UserError, match=r"s\.npz: damaged: its digest is wrong"):
                reader(path)


def test_files_without_a_digest_are_refused(tmp_path):
    found = scores(5)
    np.savez(
        tmp_path / "old.npz",
        ids=found.ids,
        labels=found.labels,
        classes=CLASSES,
        logits=found.logits,
    )
    with pytest.raises(UserError, match=r"old\.npz: it has no digest .*0\.2"):
        Scores.load(tmp_path / "old.npz")


@pytest.mark.parametrize("cut", [b"}", b"'", b", }", b"(", b"shape"])
def test_a_header_that_numpy_cannot_parse_is_a_damaged_file(tmp_path, cut):
    """NumPy reads it as Python, of any version: what is no Python ends in errors of three kinds."""
    stream = io.BytesIO()
    np.save(stream, np.arange(3.0))
    array = stream.getvalue().replace(cut, b" " * len(cut), 1)
    path = tmp_path / "scores.npz"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("logits.npy", array)
    with pytest.raises(UserError, match=r"damaged, or no .npz of plain arrays"):
        read_npz(path)
