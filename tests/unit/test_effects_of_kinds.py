"""Every option of STFN, of hand-crafted features and of fusions, changed alone, changes what comes out."""

from concurrent.futures import Executor, Future
from dataclasses import fields

import numpy as np
import pytest
import torch

from hpc_stres.handcrafted import tasks
from hpc_stres.handcrafted.extraction import Extraction
from hpc_stres.handcrafted.parts import Parts
from hpc_stres.handcrafted.phase import videos_of
from hpc_stres.models import build_model
from hpc_stres.models.families.stfn import StfnOptions
from hpc_stres.phases.features import FeaturesPhase
from hpc_stres.phases.fuse import FusePhase
from hpc_stres.phases.handcrafted import DESCRIPTORS, FeatureOptions, HandcraftedPhase, TrackOptions
from hpc_stres.registry.model import AppearanceOptions, MotionOptions
from hpc_stres.registry.phase import Phase
from tests.conftest import tiny_config
from tests.unit import test_tracks

STFN = {
    "blocks": 1, "operation": "maximum", "direction": "motion_to_appearance", "kernels": (2, 3), "merge": "sum",
    "even_padding": "before", "head_reads": "joined", "segment_pool": "maximum", "trunks": "frozen",
}  # fmt: skip
# Of hand-crafted features what comes behind the trajectories; those of trajectories are in test_tracks.
ENCODING = {
    "descriptors": ("hof", "hog"), "gaussians": 3, "vocabulary_videos": 3, "vocabulary_samples": 60, "cost": 0.01,
}  # fmt: skip
# test_fusion_weights and test_handcrafted_phase (fuse), test_stfn_phases and test_feature_cache (features).
ELSEWHERE = {"weights", "weights_from", "frame_grid", "short_video", "antialias"}


def names(kind, *without):
    return {f.name for f in fields(kind)} - {f.name for other in without for f in fields(other)}


def test_no_option_is_left_out_here():
    assert names(StfnOptions, AppearanceOptions, MotionOptions) == set(STFN)
    assert names(FeatureOptions, TrackOptions) == set(ENCODING)
    assert names(HandcraftedPhase, FeatureOptions, Phase) == set()
    marks = test_tracks.test_every_option_has_an_effect.pytestmark
    (changes,) = [mark.args[1] for mark in marks if mark.name == "parametrize"]
    assert {key for change in changes for key in change} == names(TrackOptions)
    assert names(FusePhase, Phase) | names(FeaturesPhase, Phase) == ELSEWHERE


def stfn_prints(**options):
    """Scores in training and in test, and the parameters that are trained."""
    torch.manual_seed(6)
    model = build_model("stfn", 5, stages=(2, 2), width=4, norm_group=2, **options).double()
    generator = torch.Generator().manual_seed(7)
    clips = [
        torch.randn((2, 4, planes, 16, 16), generator=generator, dtype=torch.float64)
        for planes in (3, 20)
    ]
    with torch.no_grad():
        scores = [*model.train()(*clips), *model.eval()(*clips)]
    moving = [name for name, value in model.named_parameters() if value.requires_grad]
    return torch.stack([score.flatten() for score in scores]).numpy(), moving


@pytest.mark.parametrize("option", STFN)
def test_every_option_of_stfn_has_an_effect(option):
    scores, moving = stfn_prints()
    others, other_moving = stfn_prints(**{option: STFN[option]})
    assert np.abs(scores - others).max() > 1e-3 or moving != other_moving


class AtOnce(Executor):
    """Work is done when it is asked for."""

    def submit(self, function, *arguments):
        future = Future()
        future.set_result(function(*arguments))
        return future


def made_up(job, video, key):
    """Descriptors drawn for a video, those of its class around a place of their own."""
    random = np.random.default_rng(sum(video.encode()))
    return {name: random.standard_normal((20, 6)).astype(np.float32) for name in DESCRIPTORS}


@pytest.fixture
def scored(store, data_root, tmp_path, monkeypatch):
    """Scores of the tiny store's test videos, of made-up trajectories and real everything else."""
    monkeypatch.setattr(tasks, "_settle", lambda: None)
    monkeypatch.setattr(tasks, "_described", made_up)

    def made(number, **options):
        chosen = FeatureOptions(**{"gaussians": 2, "vocabulary_samples": 400, **options})
        job = tasks.Job(tmp_path, Parts(tmp_path / f"{number}"), "idt", 1, chosen)
        videos = videos_of(store, tiny_config(data_root))
        return Extraction(job, store, videos, AtOnce(), quiet=True).run().scores

    return made


def test_every_option_of_the_encoding_has_an_effect(scored):
    pytest.importorskip("sklearn")
    before = scored(0)
    assert before.shape == (8, 8)
    np.testing.assert_array_equal(before, scored(1))
    for number, (option, value) in enumerate(ENCODING.items(), 2):
        assert np.abs(scored(number, **{option: value}) - before).max() > 1e-3, option
