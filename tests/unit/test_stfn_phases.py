"""STFN as phases of a run: end to end, with cached features, resumed, and every option that it has."""

import json
import shutil

import numpy as np
import pytest
import torch
import yaml
from safetensors.torch import load_file

from hpc_stres.config.loading import load_config
from hpc_stres.errors import ConfigError, UserError
from hpc_stres.parallel.world import find_world
from tests.conftest import TINY

SEGMENTS = {"segments": 3, "crop": "centre", "frame_grid": 2}


def config_file(folder, **changes):
    """The tiny config with a recipe of its own: two streams, their features, and STFN with frozen trunks."""
    tree = yaml.safe_load(TINY.read_text())
    tree["recipe"] = "stfn_resnet101"
    trunk = {"stages": [2, 2]}
    schedule = {"schedule": [[3, 1.0e-2]]}
    tree["phases"] = {
        "motion": {"model": {"motion": trunk}, "optimise": schedule},
        "appearance": {"model": {"appearance": trunk}, "optimise": schedule},
        "features": {"kind": "features", "starts_from": ["motion", "appearance"], "frame_grid": 2},
        "stfn": {
            "starts_from": ["features"],
            "model": {"appearance": trunk, "motion": trunk, "trunks": "frozen"},
            "clips": dict(SEGMENTS),
            "optimise": {**schedule, "dropout": 0.5},
        },
    }
    tree = json.loads(json.dumps(tree))
    for dotted, value in changes.items():
        at = tree["phases"]
        *path, last = dotted.split("__")
        for key in path:
            at = at.setdefault(key, {})
        at[last] = value
    path = folder / "stfn.yaml"
    path.write_text(yaml.safe_dump(tree))
    return path


def load(folder, data_root, *overrides, **changes):
    return load_config(
        config_file(folder, **changes),
        [f"data.root={data_root}", "training.precision=float64", *overrides],
    )


def train(config, phase, run_dir, allowed=()):
    from hpc_stres.registry import PHASE_KINDS
    from hpc_stres.registry.phase import entry_point

    run = entry_point(PHASE_KINDS.get(config.phase(phase).kind).run)
    assert run(config, phase, run_dir, find_world({}), allowed)


@pytest.fixture(scope="module")
def finished(tmp_path_factory, data_root):
    """A run whose streams and features are done."""
    folder = tmp_path_factory.mktemp("stfn")
    config = load(folder, data_root)
    for phase in ("motion", "appearance", "features"):
        train(config, phase, folder / "run")
    return config, folder / "run"


def weights(run_dir):
    return load_file(run_dir / "phases" / "stfn" / "weights.safetensors")


def beside(run_dir, target):
    """Another run folder with the same finished streams."""
    for phase in ("motion", "appearance"):
        shutil.copytree(run_dir / "phases" / phase, target / "phases" / phase)
    return target


def test_cached_features_and_clips_give_the_same_network_and_scores(finished, tmp_path, data_root):
    config, run_dir = finished
    train(config, "stfn", run_dir)
    clips = load(tmp_path, data_root, stfn__starts_from=["motion", "appearance"])
    other = beside(run_dir, tmp_path / "run")
    train(clips, "stfn", other, ("phases",))
    one, two = weights(run_dir), weights(other)
    assert one.keys() == two.keys()
    moved = 0
    for name, tensor in one.items():
        torch.testing.assert_close(tensor, two[name], rtol=1e-9, atol=1e-11)
        moved += name.startswith(("fusion", "appearance_sequence")) and bool(tensor.abs().sum() > 0)
    assert moved > 10
    # The trunks are the streams', untouched.
    streams = load_file(run_dir / "phases" / "motion" / "weights.safetensors")
    kept = [n for n in streams if n in one and ".fc." not in n]
    assert kept
    assert all(torch.equal(streams[n], one[n]) for n in kept)
    from hpc_stres.evaluation.evaluate import evaluate

    results = [
        evaluate(c, d, find_world({}), ["stfn"]) for c, d in ((config, run_dir), (clips, other))
    ]
    tables = [r["splits"]["1"] for r in results]
    assert list(tables[0]) == ["stfn"]
    assert (
        "clip of one chunk from each of 3 segments and their flips, middle square"
        in tables[0]["stfn"]["protocol"]
    )
    scores = [np.load(d / "scores" / "split1_stfn.npz")["logits"] for d in (run_dir, other)]
    np.testing.assert_allclose(scores[0], scores[1], rtol=1e-9)


def test_features_are_what_the_network_says_of_those_frames(finished):
    from hpc_stres.data.augment import Levels
    from hpc_stres.data.feed import ClipReader
    from hpc_stres.data.requests import requests, sampler
    from hpc_stres.models.building import build_phase_model
    from hpc_stres.models.weights import load_into, read_state
    from hpc_stres.phases.train import train_phase
    from hpc_stres.store.location import store_folder
    from hpc_stres.store.reader import Store
    from hpc_stres.training.cached import open_features

    config, run_dir = finished
    store, features = Store(store_folder(config)), open_features(config, "features", run_dir)
    phase = train_phase(config, "motion")
    model = build_phase_model(config, "motion", len(store.classes))
    load_into(model, read_state(run_dir / "phases" / "motion" / "weights.safetensors"), "motion")
    reader = ClipReader(store, phase.side, Levels.of_phase(phase), streams=(False, True))
    batch = requests(sampler(config, "stfn", store), 2)
    assert {len(request.frames) for request in batch} == {3}
    assert {request.flip for request in batch} == {False, True}
    seen = {}
    model.motion.fc.register_forward_pre_hook(lambda module, into: seen.update(x=into[0]))
    for request in batch[:4]:
        with torch.no_grad():
            model.eval()(None, reader.read([request]).flow.double())
        taken = features.take(store.rows[request.video], request.frames, request.flip)["motion"]
        np.testing.assert_allclose(taken, seen["x"].numpy(), rtol=1e-9, atol=1e-12)


def test_a_killed_extraction_goes_on_where_it_was(finished, tmp_path, capsys):
    config, run_dir = finished
    from hpc_stres.training.cached import open_features

    cache = open_features(config, "features", run_dir).folder
    lines = next(cache.glob("*.jsonl"))
    whole = lines.read_bytes()
    ids = [json.loads(line)["video"] for line in whole.splitlines()]
    lines.write_bytes(b"\n".join(whole.splitlines()[:10]) + b"\n" + whole.splitlines()[10][:25])
    (cache / "index.json").unlink()
    with pytest.raises(UserError, match="this cache of features is not there any more"):
        open_features(config, "features", run_dir)
    train(config, "features", run_dir)
    said = capsys.readouterr().out
    assert "is not there any more; its features are computed again" in said
    assert f"{len(ids) - 10} videos" in said
    features = open_features(config, "features", run_dir)
    assert sorted(features.entries) == sorted(ids)
    # Attempts agree: the new part holds the numbers that the old one had.
    old = {json.loads(line)["video"]: json.loads(line)["sha256"] for line in whole.splitlines()}
    assert {name: entry.sha256 for name, entry in features.entries.items()} == old


def test_streams_that_were_trained_again_are_noticed(finished, tmp_path, data_root):
    _, run_dir = finished
    from hpc_stres.training.cached import open_features

    copy = tmp_path / "run"
    shutil.copytree(run_dir, copy)
    shutil.rmtree(copy / "phases" / "motion")
    longer = load(tmp_path, data_root, motion__optimise={"schedule": [[2, 1.0e-2]]})
    (copy / "config.yaml").unlink()
    train(longer, "motion", copy, ("phases",))
    with pytest.raises(UserError, match="were trained again since"):
        open_features(longer, "features", copy)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"stfn__model__trunks": "trained"}, "model.trunks: features caches what trunks say; expected frozen"),
        ({"stfn__clips__crop": "borders"}, "clips.crop: features caches the middle square"),
        ({"stfn__clips__frame_grid": 3}, "clips.frame_grid: 3, but features made features with 2"),
        ({"stfn__clips__antialias": False}, "clips.antialias: False, but features made features with True"),
        ({"stfn__clips__short_video": "repeat"}, "clips.short_video: repeat, but"),
        ({"stfn__starts_from": ["features", "motion"]}, "features makes features of both streams"),
        ({"features__starts_from": ["motion"]}, "features has no features of the appearance stream"),
        ({"stfn__model__motion": {"stages": [3, 2]}}, "model.motion: another trunk than that of motion"),
        ({"features__starts_from": []}, "starts_from: expected the phases whose trunks are used"),
        ({"features__frame_grid": 0}, "frame_grid: expected 1 or more"),
        ({"stfn__clips__segments": None}, "clips.segments: stfn reads whole videos"),
        ({"stfn__clips__chunks": 3}, "clips.chunks: no effect"),
        ({"stfn__clips__stride": [1, 2]}, "clips.stride: no effect"),
        ({"motion__clips": {"frame_grid": 2}}, "clips.frame_grid: no effect in a phase of motion: there are no"),
        ({"appearance__clips": {"segments": 3}}, "clips.segments: no effect in a phase of appearance"),
        ({"appearance__optimise__softmax": "joint"}, "optimise.softmax: no effect in a phase of appearance"),
        ({"stfn__model__blocks": 4}, "blocks: expected 0 to 3"),
        ({"stfn__model__kernels": []}, "kernels: expected one or more lengths"),
        ({"stfn__model__blocks": 0, "stfn__model__operation": "multiply"}, "operation: no effect"),
        ({"stfn__model__kernels": [3], "stfn__model__even_padding": "before"}, "even_padding: no effect"),
        ({"stfn__model__motion": {"family": "inception_v3", "depth": 50}}, "depth: no effect"),
        ({"stfn__model__motion": {"family": "inception_v3", "depth": None, "side": 60}}, "side: expected 75 pixels"),
        ({"stfn__model__motion": {"family": "inception_v3", "depth": None, "width": 6}}, "width: expected a multiple"),
        ({"other": {"model": {"name": "st_resnet", "motion": {"family": "inception_v3"}}}},
         "model.motion.family: st_resnet has resnet"),
    ],
)  # fmt: skip
def test_what_does_not_fit_is_refused_in_words(tmp_path, data_root, changes, message):
    with pytest.raises(ConfigError, match=message):
        load(tmp_path, data_root, **changes)


OPTIONS = [
    {"blocks": 0, "head_reads": "joined", "engine": "deepspeed"},
    {"blocks": 1, "operation": "maximum", "direction": "motion_to_appearance"},
    {
        "blocks": 3,
        "operation": "multiply",
        "direction": "appearance_to_motion",
        "segment_pool": "maximum",
    },
    {"kernels": [2, 4], "merge": "sum", "even_padding": "before", "norm_average": "sigma"},
]


@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_every_option_trains_on_the_same_features(finished, tmp_path, data_root, options):
    """The trunks' features are there: each of these costs a second."""
    _, run_dir = finished
    own = {key: value for key, value in options.items() if key != "engine"}
    changes = {f"stfn__model__{key}": value for key, value in own.items()}
    engine = options.get("engine", "ddp")
    config = load(tmp_path, data_root, f"training.engine={engine}", **changes)
    other = beside(run_dir, tmp_path / "run")
    shutil.copytree(run_dir / "phases" / "features", other / "phases" / "features")
    train(config, "stfn", other, ("phases",))
    names = weights(other)
    assert any(name.startswith("fusion.") for name in names) == (options.get("blocks") != 0)


def test_end_to_end_training_moves_the_trunks(finished, tmp_path, data_root):
    _, run_dir = finished
    clips = {"segments": 3}
    config = load(
        tmp_path, data_root, stfn__starts_from=["motion", "appearance"], stfn__clips=clips,
        stfn__model__trunks="trained", stfn__optimise={"schedule": [[2, 1.0e-2]], "agreement_loss": 1.0},
    )  # fmt: skip
    other = beside(run_dir, tmp_path / "run")
    train(config, "stfn", other, ("phases",))
    before = load_file(run_dir / "phases" / "motion" / "weights.safetensors")
    after = weights(other)
    assert not torch.equal(before["motion.conv1.weight"], after["motion.conv1.weight"])
    assert not torch.equal(before["motion.bn1.running_mean"], after["motion.bn1.running_mean"])


def test_inception_trains_and_is_tested_at_the_scale_of_its_training(tmp_path, data_root):
    trunk = {"family": "inception_v3", "width": 4, "side": 80}
    config = load(
        tmp_path, data_root, "training.global_batch=4", "training.norm_group=2",
        other={"model": {"name": "motion", "motion": trunk}, "optimise": {"schedule": [[1, 1.0e-2]]}},
    )  # fmt: skip
    train(config, "other", tmp_path / "run")
    from hpc_stres.evaluation import protocol
    from hpc_stres.evaluation.evaluate import evaluate
    from hpc_stres.phases.train import train_phase

    # Crops of 32 stored pixels become 80: a test frame of 48 becomes 120.
    clips = protocol.TestClips.of(train_phase(config, "other"), config.data.crop)
    assert clips.scale == 2.5
    results = evaluate(config, tmp_path / "run", find_world({}), ["other"])
    assert results["splits"]["1"]["other"]["videos"] == 8
