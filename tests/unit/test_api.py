"""Use from Python: what an import brings, predictions, clips for torch's DataLoader."""

import multiprocessing
import subprocess
import sys

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader

import hpc_stres as hs
from hpc_stres import native
from hpc_stres.data.augment import Levels
from hpc_stres.data.feed import ClipReader
from hpc_stres.data.requests import Box, Request, spread_frames
from hpc_stres.errors import UserError
from hpc_stres.evaluation import predict as scoring
from tests.conftest import ROOT, tiny_config
from tests.unit.untrained import make_run
from tests.waiting import PATIENCE_SECONDS


@pytest.fixture(scope="module")
def clips(data_root, store):
    config = tiny_config(data_root)
    return hs.ClipDataset(store.paths.root, 1, "st_resnet", config=config)


def test_clips_are_those_of_the_first_split_and_pass_unless_others_are_asked_for(clips, store):
    unasked = hs.ClipDataset(store, config=tiny_config(store.paths.root.parent))
    assert list(unasked.videos) == list(clips.videos)
    first = unasked[0]
    unasked.set_epoch(0)
    assert torch.equal(first["rgb"], unasked[0]["rgb"])
    assert torch.equal(first["flow"], unasked[0]["flow"])


def test_an_import_brings_nothing_heavy():
    code = (
        "import sys, hpc_stres as hs; names = dir(hs); "
        "heavy = {'torch', 'numpy', 'cv2', 'av', 'yaml', 'nvidia'} & set(sys.modules); assert not heavy, heavy; "
        "assert {'load_model', 'predict', 'ClipDataset', 'build_model'} <= set(names); "
        "assert callable(hs.build_model) and hs.models.build_model is hs.build_model; "
        "assert hs.data.requests is not None if hasattr(hs.data, 'requests') else True"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT)
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        hs.nothing  # noqa: B018


def test_a_prediction_is_that_of_the_command(data_root, tmp_path):
    make_run(tiny_config(data_root), tmp_path / "run", [f"c{n}" for n in range(8)], ["motion"])
    video = min((data_root / "binding" / "videos").rglob("*.avi"))
    model = hs.load_model(tmp_path / "run", device="cpu")
    expected = scoring.predict(model, video, quick=False).probabilities
    assert expected.sum() == pytest.approx(1)
    for answer in (
        hs.predict(video, model),
        hs.predict(str(video), str(tmp_path / "run")),
        model.predict(video),
    ):
        assert np.array_equal(answer.probabilities, expected)
        assert len(answer.top()) == 5
    (tmp_path / "no.avi").write_bytes(b"no video")
    for name in ("none.avi", "no.avi"):
        with pytest.raises(UserError, match=name):
            hs.predict(tmp_path / name, model)


def test_a_clip_is_what_the_feed_makes_of_the_same_request(clips, store):
    reader = ClipReader(store, 32, Levels.of("torchvision"))
    for number in range(0, len(clips), 5):
        item, request = clips[number], clips._request(number)
        read = reader.read([request])
        assert item["id"] == read.ids[0]
        assert item["label"] == int(read.labels[0])
        # Two decoders of JPEG; levels are 1 / 57 apart.
        assert (item["flow"] - read.flow[0]).abs().max() < 1 / 57
        assert (item["rgb"] - read.rgb[0]).abs().max() < 3 / 57


def test_every_video_of_the_split_is_an_item_and_epochs_differ(clips, store):
    assert sorted(clips[n]["id"] for n in range(len(clips))) == sorted(store.ids(1, "train"))
    first = clips[3]
    assert torch.equal(first["flow"], clips[3]["flow"])
    assert clips[-1]["id"] == clips[len(clips) - 1]["id"]
    clips.set_epoch(1)
    other = clips[3]
    clips.set_epoch(0)
    assert other["id"] == first["id"]
    assert not torch.equal(first["flow"], other["flow"])
    with pytest.raises(IndexError):
        clips[len(clips)]


@pytest.mark.parametrize("start", ["fork", "spawn"])
def test_workers_read_the_same_after_the_parent_has_read(clips, store, start):
    expected = [clips[n] for n in range(4)]
    # The feed's decoder, with threads of its own, was used in this process before the fork.
    ClipReader(store, 32, Levels.of("torchvision")).read([clips._request(0)])
    part = torch.utils.data.Subset(clips, range(4))
    loader = DataLoader(
        part,
        2,
        num_workers=1,
        multiprocessing_context=multiprocessing.get_context(start),
        timeout=PATIENCE_SECONDS,
    )
    batches = list(loader)
    assert [name for batch in batches for name in batch["id"]] == [item["id"] for item in expected]
    assert torch.equal(
        torch.cat([batch["flow"] for batch in batches]), torch.stack([i["flow"] for i in expected])
    )
    assert torch.equal(
        torch.cat([batch["rgb"] for batch in batches]), torch.stack([i["rgb"] for i in expected])
    )


def test_test_clips_are_full_frames_evenly_spaced(data_root, store):
    config = tiny_config(data_root)
    tested = hs.ClipDataset(store, 1, "motion", kind="test", config=config)
    assert "rgb" not in tested[0]
    row = store.rows[tested.videos[0]]
    frames = spread_frames(row.frames, config.evaluation.chunks)
    stacks = tuple(tuple(range(frame - 5, frame + 5)) for frame in frames)
    request = Request(
        0, tested.videos[0], 0, frames, stacks, Box(0, 0, row.height, row.width), False
    )
    read = ClipReader(store, None, Levels.of("torchvision"), streams=(False, True)).read([request])
    assert (tested[0]["flow"] - read.flow[0]).abs().max() < 1 / 57


def test_without_the_kernel_torch_finishes_the_clips(clips, monkeypatch):
    with_kernel = clips[0]
    monkeypatch.setattr(native, "find", lambda name: None)
    assert (clips[0]["flow"] - with_kernel["flow"]).abs().max() < 1e-4
    assert (clips[0]["rgb"] - with_kernel["rgb"]).abs().max() < 1e-4


def test_wrong_calls_say_what_is_wrong(store, data_root, tmp_path):
    config = tiny_config(data_root)
    for words, message in (
        ({"store": tmp_path}, "."),
        ({"phase": "stresnet"}, "the recipe has"),
        ({"kind": "val"}, "train or test"),
        ({"split": 9}, "has no split 9"),
    ):
        with pytest.raises(UserError, match=message):
            hs.ClipDataset(**{"store": store, "phase": "motion", "config": config, **words})
    assert hs.ClipDataset(store.paths.root)[0]["rgb"].shape[-1] == 42  # 7/8 of 48, without a config
