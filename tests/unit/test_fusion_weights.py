"""Weights of a fusion that are chosen: on held-out training recordings, never on what they are tested on."""

import math

import numpy as np
import pytest

from hpc_stres.config.loading import load_config
from hpc_stres.errors import ConfigError, UserError
from hpc_stres.evaluation import fusion_weights
from hpc_stres.evaluation.fusion import l2_normalised
from hpc_stres.evaluation.fusion_weights import candidates, choose, deal
from hpc_stres.evaluation.scores import Scores
from hpc_stres.parallel.world import find_world
from hpc_stres.registry import PHASE_KINDS
from hpc_stres.registry.phase import entry_point
from hpc_stres.run.paths import RunPaths
from hpc_stres.store.held_out import held_out
from tests.conftest import TINY, tiny_config
from tests.unit.untrained import evaluate_here
from tests.unit.untrained import make_run as make_finished

CLASSES = 4


def drawn(seed, strengths, videos=120, classes=CLASSES):
    """Labels, and scores of parts that know the class the better the stronger they are."""
    random = np.random.default_rng(seed)
    labels = random.integers(0, classes, videos)
    truth = np.eye(classes)[labels]
    parts = [random.standard_normal(truth.shape) + strength * truth for strength in strengths]
    return labels, [l2_normalised(part) for part in parts]


def top1(parts, weights, labels):
    fused = sum(weight * part for weight, part in zip(weights, parts, strict=True))
    return float((fused.argmax(axis=1) == labels).mean())


def groups_of(videos, clips=3):
    return [f"g{number // clips}" for number in range(videos)]


@pytest.mark.parametrize(("parts", "steps"), [(2, 20), (3, 20), (4, 20), (5, 10), (9, 5), (40, 2)])
def test_candidates_are_all_weights_in_equal_steps_and_the_plain_average(parts, steps):
    points = candidates(parts)
    np.testing.assert_allclose(points.sum(axis=1), 1)
    assert (points >= 0).all()
    assert len(points) == math.comb(steps + parts - 1, parts - 1) + 1
    assert len({tuple(row) for row in np.round(points * steps).astype(int)[:-1]}) == len(points) - 1
    assert np.allclose(points[-1], 1 / parts)


@pytest.mark.parametrize("clips", [1, 2, 7])
def test_a_recording_is_in_one_fold_and_classes_are_spread(clips):
    labels = np.repeat(np.arange(3), 42)
    names = groups_of(len(labels), clips)
    folds = deal(labels, names)
    assert set(folds) == set(range(fusion_weights.MOST_FOLDS))
    for name in set(names):
        assert len({fold for fold, own in zip(folds, names, strict=True) if own == name}) == 1
    for label in range(3):
        recordings = {name: folds[n] for n, name in enumerate(names) if labels[n] == label}
        counts = np.bincount(list(recordings.values()), minlength=fusion_weights.MOST_FOLDS)
        assert counts.max() - counts.min() <= 1
    # The same whatever the order of the videos; and videos without a name are recordings of their own.
    turned = deal(labels[::-1], names[::-1])[::-1]
    assert np.array_equal(folds, turned)
    assert len(set(deal(labels, [""] * len(labels)))) == fusion_weights.MOST_FOLDS


@pytest.mark.parametrize("recordings", [[], ["one"], ["one"] * 9])
def test_one_recording_is_too_few_to_choose_on(recordings):
    labels, parts = drawn(0, (1, 1), len(recordings))
    with pytest.raises(UserError, match="two held-out recordings or more"):
        choose(parts, labels, recordings)


@pytest.mark.parametrize("seed", range(4))
def test_no_video_is_scored_by_weights_that_its_own_recording_had_a_say_in(seed):
    """Each fold again, by looking through all candidates one by one."""
    labels, parts = drawn(seed, (1.5, 1.2))
    names = groups_of(len(labels))
    chosen = choose(parts, labels, names)
    folds = deal(labels, names)
    hits = 0
    for fold in set(folds):
        others = [part[folds != fold] for part in parts]
        seen = {
            share: round(top1(others, (share, 1 - share), labels[folds != fold]) * 1e6)
            for share in [number / 20 for number in range(21)]
        }
        tied = [share for share, hit in seen.items() if hit == max(seen.values())]
        middle = np.mean([*tied, *[0.5] * (seen[0.5] == max(seen.values()))])
        share = min(tied, key=lambda s: (round(abs(s - middle), 9), s))
        fused = share * parts[0] + (1 - share) * parts[1]
        hits += int((fused.argmax(axis=1) == labels)[folds == fold].sum())
        if chosen.facts["cross_validated_top1"] >= max(chosen.facts["parts_top1"]):
            np.testing.assert_allclose(chosen.unseen[folds == fold], fused[folds == fold])
    assert chosen.facts["cross_validated_top1"] == pytest.approx(100 * hits / len(labels))


def test_parts_that_know_different_things_are_fused_and_one_that_knows_nothing_is_left_out():
    labels, parts = drawn(3, (2.0, 2.0))
    half = np.arange(len(labels)) % 2 == 0
    # Scores that are nearly the same for all classes: unit length, and no opinion.
    flat = l2_normalised(1 + 0.05 * np.random.default_rng(1).standard_normal(parts[0].shape))
    one, two = np.where(half[:, None], parts[0], flat), np.where(half[:, None], flat, parts[1])
    chosen = choose([one, two], labels, groups_of(len(labels)))
    assert 0.2 < chosen.weights[0] < 0.8
    assert top1([one, two], chosen.weights, labels) > max(
        top1([one], (1,), labels), top1([two], (1,), labels)
    )
    perfect = l2_normalised(np.eye(CLASSES)[labels] + 0.1)
    wrong = l2_normalised(np.eye(CLASSES)[(labels + 1) % CLASSES] + 0.1)
    assert choose([perfect, wrong], labels, groups_of(len(labels))).weights[0] > 0.5


def test_what_does_worse_than_its_best_part_on_unseen_videos_is_not_fused():
    fused = alone = 0
    for seed in range(40):
        labels, parts = drawn(seed, (1.6, 0.2, 0.0), videos=24)
        chosen = choose(parts, labels, groups_of(24, 2))
        helps = chosen.facts["cross_validated_top1"] >= max(chosen.facts["parts_top1"])
        fused, alone = fused + helps, alone + (not helps)
        if not helps:
            best = int(np.argmax(chosen.facts["parts_top1"]))
            assert chosen.weights == tuple(np.eye(3)[best])
            np.testing.assert_array_equal(chosen.unseen, parts[best])
    assert min(fused, alone) > 2


@pytest.mark.parametrize("strengths", [(3.0, 0.0), (3.0, 1.0), (2.0, 2.0), (4.0, 0.5, 0.0)])
def test_on_other_videos_the_best_part_does_not_become_worse_by_more_than_a_point(strengths):
    losses = []
    for seed in range(12):
        labels, parts = drawn(seed, strengths, videos=64)
        weights = choose(parts, labels, groups_of(64)).weights
        unseen, tested = drawn(1000 + seed, strengths, videos=1500)
        best = max(top1([part], (1,), unseen) for part in tested)
        losses.append(best - top1(tested, weights, unseen))
    assert np.mean(losses) < 0.01


def test_videos_of_several_classes_are_fused_too():
    random = np.random.default_rng(5)
    several = (random.random((60, CLASSES)) < 0.4).astype(np.int64)
    several[:, 0] |= several.sum(axis=1) == 0
    known = l2_normalised(several + 0.3 * random.standard_normal(several.shape))
    noise = l2_normalised(random.standard_normal(several.shape))
    chosen = choose([known, noise], several, [""] * 60)
    assert chosen.weights[0] > 0.5
    assert chosen.facts["parts_top1"][0] > 90


# ---- as a phase of a run

FUSE = "phases.both={kind: fuse, starts_from: [motion, appearance], weights_from: held_out}"
SHARE = "evaluation.validation_share=0.34"


def run_of(data_root, store, folder, *overrides):
    """Two networks of random weights, tested, and what fuses them, finished."""
    config = load_config(TINY, [f"data.root={data_root}", *overrides])
    paths = make_finished(config, folder, store.classes, ("motion", "appearance"))
    assert entry_point(PHASE_KINDS.get("fuse").run)(config, "both", folder, find_world({}), ())
    return paths


def test_a_phase_chooses_on_held_out_videos_and_is_tested_on_others(
    data_root, store, tmp_path, capsys
):
    paths = run_of(data_root, store, tmp_path / "run", FUSE, SHARE)
    table = evaluate_here(paths.root)["splits"]["1"]
    assert "weights chosen on held-out training recordings" in table["both"]["protocol"]
    said = capsys.readouterr().err
    both = Scores.load(paths.scores(1, "both"))
    facts = both.made_by["fuses"]["chosen"]
    assert f"both: {facts['weights'][0]:.3g} motion + {facts['weights'][1]:.3g} appearance" in said
    config = tiny_config(data_root, SHARE)
    held = {store.rows[row].id for row in held_out(store, config)}
    assert facts["videos"] == len(held)
    tested = [Scores.load(paths.scores(1, name)) for name in ("motion", "appearance")]
    assert both.ids == tested[0].ids
    assert not held & set(both.ids)
    parts = [l2_normalised(part.logits) for part in tested]
    expected = sum(w * part for w, part in zip(facts["weights"], parts, strict=True))
    np.testing.assert_allclose(both.logits, expected)
    # Its held-out videos are scored as well, each by weights that it had no say in: what a temperature is fitted on.
    kept = Scores.load(paths.root / "scores" / "validation" / "split1_both.npz")
    assert set(kept.ids) == held
    assert table["both"]["validation"]["videos"] == len(held)
    # What test videos look like changes no weight.
    for name in ("motion", "appearance"):
        part = Scores.load(paths.scores(1, name))
        part.logits[:] = -part.logits
        part.save(paths.scores(1, name))
    made = entry_point(PHASE_KINDS.get("fuse").scores)(
        load_config(paths.config, []), "both", paths.root, store
    )
    assert made.made_by["fuses"]["chosen"] == facts


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ((FUSE,), "weights_from: held_out needs held-out videos"),
        ((FUSE.replace("held_out}", "held_out, weights: [1, 2]}"), SHARE), "weights: no effect"),
        ((FUSE.replace("held_out", "test"), SHARE), "weights_from"),
    ],
)
def test_a_choice_without_held_out_videos_or_beside_given_weights_is_refused(overrides, message):
    with pytest.raises(ConfigError, match=message):
        load_config(TINY, list(overrides))


def test_a_chosen_fusion_stands_beside_no_published_figure():
    fuse = "phases.st_resnet_star_idt.weights_from"
    for way, figures in (("given", {"ucf101": 94.6, "hmdb51": 70.3}), ("held_out", {})):
        config = load_config(TINY, ["recipe=handcrafted", SHARE, f"{fuse}={way}"])
        assert config.phase("st_resnet_star_idt").published == figures


def test_a_part_that_was_trained_on_the_held_out_videos_is_refused(data_root, store, tmp_path):
    paths = run_of(data_root, store, tmp_path / "run", FUSE.replace("held_out", "given"))
    assert set(evaluate_here(paths.root)["splits"]["1"]) >= {"both", "motion", "appearance"}
    assert not (paths.root / "scores" / "validation").exists()
    text = paths.config.read_text().replace("validation_share: 0.0", "validation_share: 0.34")
    paths.config.write_text(text)
    with pytest.raises(UserError, match="trained with nothing held out"):
        evaluate_here(paths.root, phases=["both"])


def test_no_weights_are_chosen_where_a_part_knows_no_held_out_videos(data_root, store, tmp_path):
    paths = run_of(data_root, store, tmp_path / "run", FUSE, SHARE)
    evaluate_here(paths.root, phases=["motion", "appearance"])
    gone = RunPaths(paths.root).scores(1, "motion").parent / "validation" / "split1_motion.npz"
    gone.unlink()
    with pytest.raises(UserError, match="not all parts of both have scores of held-out videos"):
        evaluate_here(paths.root, phases=["both"])
