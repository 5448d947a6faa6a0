"""Videos of several classes: measures as scikit-learn's, lists, loss, and the same weights on any layout."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch

from hpc_stres.data.dataset import ClipDataset
from hpc_stres.errors import ConfigError, UserError
from hpc_stres.evaluation import multilabel, statistics
from hpc_stres.evaluation.hub import model_card
from hpc_stres.evaluation.networks import from_run
from hpc_stres.evaluation.predict import sigmoid
from hpc_stres.evaluation.results import columns
from hpc_stres.listings import splits
from hpc_stres.models import Logits
from hpc_stres.prepare.run import prepare
from hpc_stres.run.paths import RunPaths, sha256
from hpc_stres.run.product import read_metrics
from hpc_stres.store.labels import label_table
from hpc_stres.store.reader import Store
from hpc_stres.training.loss import phase_loss
from tests.conftest import tiny_config
from tests.unit.listed import own_config, rows_of, write_csv
from tests.unit.trained import train
from tests.unit.untrained import evaluate_here, make_run

# 40 videos of 3 classes, with ties; what scikit-learn 1.7's average_precision_score, f1_score and hamming_loss say.
TRUTH = (
    "000 110 011 001 000 000 010 101 001 001 010 010 001 000 100 001 101 000 000 100 001 010 000 100 000 "
    "000 010 000 000 010 000 001 010 100 101 001 010 111 000 000 "
)
SCORES = (
    "1.9 -1.2 0.3 0.7 -0.1 -1 -0 1.4 0.5 0.1 0.7 1.3 0.9 0.5 0.5 1.8 0.6 0.1 0.7 0.1 -0.3 1.8 0.6 2.5 0 "
    "-1.5 2.9 1.1 -1.1 2.4 0 -0.8 -0.4 -0.5 2.6 -0.8 -0.3 -0.3 0.6 -0.9 0.2 1.1 1.6 -0.9 -1.1 0.1 -0.7 "
    "0.4 -0.7 2 1.9 -1 0.9 1.3 -2.4 -0.5 -0.4 1.6 -0.1 -0.2 -0.1 1.9 3.2 -0.5 0.1 2.7 -1 -0.6 0 1.5 1 0.4 "
    "-0.9 0.5 0.2 1.9 -0 -1.3 -1 2.5 -0.5 -2.1 -0.6 0 1.2 -1 0.7 0.8 0.3 -0.2 1.8 1.7 0.9 0.3 1.1 0.9 "
    "-0.1 0.1 0 0.9 2.8 -0.2 2.3 1.3 0.8 1.2 -2.2 1.1 0.9 -1.4 -1.2 2.1 0.7 -0.1 -0.4 -0.5 0.7 0.5 -0.3 "
    "-0.7 "
)
AVERAGE_PRECISIONS = (0.5856624937765289, 0.3840110235325547, 0.7315307911461757)
MEAN, MICRO_F1, MACRO_F1, HAMMING = (
    0.5670681028184198,
    0.5544554455445545,
    0.5505050505050505,
    0.375,
)


def sample():
    truth = np.array([[int(bit) for bit in row] for row in TRUTH.split()])
    return truth, np.array([float(word) for word in SCORES.split()]).reshape(truth.shape)


def test_measures_are_scikit_learns():
    truth, scores = sample()
    plan = statistics.design(np.zeros(len(truth), int))
    found = multilabel.measure(truth, ["a", "b", "c"], scores, plan)
    assert [row["ap"] / 100 for row in found["per_class"]] == pytest.approx(
        AVERAGE_PRECISIONS, abs=1e-12
    )
    assert found["map"] / 100 == pytest.approx(MEAN, abs=1e-12)
    assert found["micro_f1"] / 100 == pytest.approx(MICRO_F1, abs=1e-12)
    assert found["macro_f1"] / 100 == pytest.approx(MACRO_F1, abs=1e-12)
    assert found["hamming"] / 100 == pytest.approx(HAMMING, abs=1e-12)
    low, high = found["map_interval"]
    assert low < found["map"] < high


def test_average_precision_does_not_depend_on_the_order_of_videos_and_needs_a_positive():
    truth, scores = sample()
    for seed in range(5):
        order = np.random.default_rng(seed).permutation(len(truth))
        assert multilabel.mean_average_precision(truth[order], scores[order]) == pytest.approx(
            MEAN, abs=1e-12
        )
    assert multilabel.average_precision(np.zeros(4), np.arange(4.0)) is None
    assert multilabel.average_precision(np.ones(4), np.zeros(4)) == 1.0


def read(tmp_path, text):
    (tmp_path / "v.csv").write_text("path,label,split\n" + text)
    return splits.read_csv(tmp_path, tmp_path / "v.csv", several=True)


def test_a_cell_holds_several_classes(tmp_path):
    listing = read(
        tmp_path, "a.avi,run|wave,train\nb.avi,wave | run,test\nc.avi,sit,train\nd.avi,sit,test\n"
    )
    assert listing.classes == ["run", "sit", "wave"]
    names = {
        i: [listing.classes[n] for n in listing.classes_of(v.label)]
        for i, v in listing.videos.items()
    }
    assert names == {"a": ["run", "wave"], "b": ["run", "wave"], "c": ["sit"], "d": ["sit"]}
    assert listing.label_sets == [[0, 2], [1]]


@pytest.mark.parametrize("cell", ["run|", "|", "run||wave", "run|run"])
def test_a_wrong_cell_is_named_with_its_line(tmp_path, cell):
    with pytest.raises(UserError, match=r"v\.csv:2: label is .*each once"):
        read(tmp_path, f"a.avi,{cell},train\nb.avi,run,test\n")


def test_each_class_needs_a_training_and_a_test_video(tmp_path):
    with pytest.raises(UserError, match="no test video in split 1 of: wave"):
        read(tmp_path, "a.avi,run|wave,train\nb.avi,run,test\n")


def test_the_loss_is_torchs_mean_over_classes():
    random = torch.Generator().manual_seed(1)
    scores = torch.randn(4, 3, 5, generator=random, dtype=torch.float64)
    labels = (torch.rand(4, 5, generator=random) < 0.4).long()
    phase = tiny_config("data").phase("st_resnet")
    total, sums = phase_loss(Logits(scores, None), labels, phase)
    bce = torch.nn.BCEWithLogitsLoss()
    expected = sum(bce(scores[n, t], labels[n].double()) for n in range(4) for t in range(3))
    assert total.item() == pytest.approx(expected.item(), rel=1e-12)
    answers = scores.mean(1).argmax(1)
    assert sums["appearance"].right.item() == sum(labels[n, answers[n]].item() for n in range(4))


def test_each_class_has_a_probability_of_its_own():
    logits = np.array([[0.0, 800.0, -800.0], [1.0, 2.0, -3.0]])
    np.testing.assert_allclose(sigmoid(logits)[0], [0.5, 1.0, 0.0])
    np.testing.assert_allclose(sigmoid(logits)[1], 1 / (1 + np.exp(-logits[1])), rtol=1e-12)


@pytest.fixture
def several(root):
    """The tiny videos, listed with one or two classes each; the config and the store."""
    rows = rows_of(root)
    for number, row in enumerate(rows):
        row[1] = ("jump|walk", "walk", "jump|sit")[number // 2 % 3]
    write_csv(root, rows)
    config = own_config(root, "data.labels=multi")
    return config, Store(prepare(config, quiet=True))


def overrides_of(config):
    return [
        f"data.{key}={getattr(config.data, key)}" for key in ("kind", "videos", "lists", "labels")
    ]


def test_the_same_weights_whatever_the_micro_batch_and_their_scores_are_measured(
    root, several, tmp_path
):
    config, store = several
    assert store.classes == ["jump", "sit", "walk"]
    own = [*overrides_of(config), "training.precision=float64", "training.max_steps=2"]
    own.append("evaluation.validation_share=0.3")
    whole = train(root, tmp_path / "whole", "motion", *own)
    cut = train(root, tmp_path / "cut", "motion", *own, "training.max_micro_batch=4")
    assert whole.keys() == cut.keys()
    assert max((whole[name] - cut[name]).abs().max().item() for name in whole) < 1e-12
    results = evaluate_here(tmp_path / "whole")
    column = results["splits"]["1"]["motion"]
    looks = read_metrics(RunPaths(tmp_path / "whole").phase("motion"))[-1]
    assert looks["validation_videos"] == column["validation"]["videos"] > 0
    # The sum over the five outputs of the binary cross-entropy, at one output as in training.
    assert 0 < looks["validation_loss_motion"] < 2
    scores = columns(config, tmp_path / "whole")["motion"]
    assert scores.labels.shape == (5, 3)
    assert column["map"] == pytest.approx(
        100 * multilabel.mean_average_precision(scores.labels, scores.logits)
    )
    assert results["labels"] == "multi"
    assert "confusion" not in column
    assert RunPaths(tmp_path / "whole").results.is_file()
    assert from_run(tmp_path / "whole", "motion", [], torch.device("cpu")).labels == "multi"


@pytest.mark.parametrize(("sets", "labels"), [(None, "multi"), ([[0], [0, 1]], "single")])
def test_a_store_of_the_other_kind_of_labels_is_refused_where_its_lists_are_gone(sets, labels):
    store = SimpleNamespace(label_sets=sets, classes=["a", "b"], place="store")
    config = tiny_config("data", "data.kind=csv", f"data.labels={labels}")
    with pytest.raises(UserError, match=f"the config says {labels}"):
        label_table(store, config.data)
    other = tiny_config(
        "data", "data.kind=csv", f"data.labels={'single' if labels == 'multi' else 'multi'}"
    )
    table = label_table(store, other.data)
    assert table is None or table.tolist() == [[1, 0], [1, 1]]


def test_clips_and_a_model_card_of_several_classes(several, tmp_path):
    config, store = several
    clips = ClipDataset(store, 1, "motion", "test", config)
    for clip in (clips[0], clips[1]):
        row = store.rows[store.number[clip["id"]]]
        assert np.flatnonzero(clip["label"]).tolist() == store.label_sets[row.label]
    paths = make_run(config, tmp_path / "run", store.classes, ("motion",))
    weights = sha256(paths.phase("motion").weights)
    exported = {"phase": "motion", "classes": store.classes, "weights_sha256": weights}
    assert "Not tested yet" in model_card(config, paths, exported)
    column = evaluate_here(paths.root, "evaluation.protocol=quick")["splits"]["1"]["motion"]
    card = model_card(config, paths, exported)
    assert f"mean average precision {column['map']:.2f} %" in card
    assert f"Protocol: {column['protocol']}." in card
    assert column["protocol"].startswith("quick")
    assert "Not tested yet" in model_card(config, paths, {**exported, "weights_sha256": "0" * 64})


def test_several_labels_need_a_table():
    with pytest.raises(ConfigError, match=r"data\.labels: expected single, or data\.kind csv"):
        tiny_config("data", "data.labels=multi")


def test_a_store_of_the_other_kind_of_labels_is_refused(root, several, tmp_path):
    config, _ = several
    own = [word for word in overrides_of(config) if "labels" not in word]
    with pytest.raises(UserError, match=r"data\.labels"):
        train(root, tmp_path / "run", "motion", *own, "training.max_steps=1")
