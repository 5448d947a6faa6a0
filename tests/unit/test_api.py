"""Use from Python: what an import brings, predictions, clips for torch's DataLoader."""

import dataclasses
import multiprocessing
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader

import hpc_stres as hs
from hpc_stres import native
from hpc_stres.config.loading import load_config
from hpc_stres.data.augment import Levels
from hpc_stres.data.feed import ClipReader
from hpc_stres.data.requests import Box, Request, spread_frames
from hpc_stres.data.test_clips import TestClips
from hpc_stres.errors import UserError
from hpc_stres.evaluation import predict as scoring
from hpc_stres.evaluation import protocol
from hpc_stres.evaluation.preprocessing import preprocessing
from hpc_stres.store.format import PreparedVideo
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


def test_clips_are_taken_to_where_the_network_is(data_root, tmp_path):
    """A video is read on the CPU, and the network may be on a GPU: here on a device without numbers."""
    make_run(tiny_config(data_root), tmp_path / "run", [f"c{n}" for n in range(8)], ["st_resnet"])
    model, seen = hs.load_model(tmp_path / "run", device="meta"), []
    model.call.register_forward_pre_hook(lambda module, given: seen.extend(given))
    model(torch.zeros(1, 5, 3, 32, 32), torch.zeros(1, 5, 20, 32, 32))
    assert [clip.device.type for clip in seen] == ["meta", "meta"]


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


@pytest.mark.parametrize("segments", [None, 1, 2, 3, 7])
@pytest.mark.parametrize("frames", [3, 40, 333])
def test_flow_is_computed_of_every_pair_that_the_networks_clips_read(monkeypatch, segments, frames):
    """Any other pair would be read as if nothing moved; a network of segments reads other pairs."""
    given, read = {}, []
    prepared = PreparedVideo("v", 0, 8, 8, [b""] * frames, [b""] * (2 * (frames - 1)))

    def score(network, reader, clips, dtype):
        read.extend(pair for clip in clips for stack in clip.flow for pair in stack)
        times = 1 if segments else len(clips[0].frames)
        return scoring.protocol.VideoScores(None, np.zeros((times, 2)))

    monkeypatch.setattr(scoring.guard, "count_frames", lambda path: frames)
    monkeypatch.setattr(scoring.guard, "prepare", lambda *_, **more: given.update(more) or prepared)
    monkeypatch.setattr(scoring.protocol, "score_video", score)
    network = SimpleNamespace(
        evaluation=tiny_config("/nowhere").evaluation, clips=TestClips(segments), settings=None,
        labels="single", classes=["a", "b"], dtype=None, weights=None, reader=lambda clip: None,
    )  # fmt: skip
    answer = scoring.predict(network, Path("v.avi"), quick=False)
    assert given["wanted"] == set(read)
    assert len(answer.frames) == len(answer.over_time)


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


@pytest.mark.parametrize("start", ["fork", "spawn", "forkserver"])
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


def test_test_clips_are_as_large_as_the_test_makes_them(data_root, store):
    config = tiny_config(data_root, "phases.motion.model.motion.side=40")
    tested = hs.ClipDataset(store, 1, "motion", kind="test", config=config)
    wanted = TestClips.of(config.phases["motion"], config.data.crop)
    read = ClipReader(
        store, None, Levels.of("torchvision"), streams=(False, True), scale=wanted.scale
    )
    number = tested.videos[0]
    request = protocol.test_requests(store.rows[number], number, config.evaluation, wanted)[0]
    assert tested[0]["flow"].shape[-2:] == (60, 60)
    assert (tested[0]["flow"] - read.read([request]).flow[0]).abs().max() < 1 / 57


def test_a_network_of_segments_is_tested_on_its_middle_squares(data_root, store):
    config = load_config(
        ROOT / "configs" / "binding_stfn.yaml",
        [f"data.root={data_root}", "data.short_side=48", "data.crop=32"],
    )
    tested = hs.ClipDataset(store, 1, "stfn_frozen", kind="test", config=config)
    assert tested[0]["rgb"].shape == (5, 3, 32, 32)
    row = store.rows[tested.videos[0]]
    stacks = protocol.test_requests(row, 0, config.evaluation, tested.tested)
    assert tested._request(0).frames == stacks[0].frames


@pytest.mark.parametrize("phase", ["stfn", "stfn_frozen", "motion"])
def test_what_an_export_says_of_its_sampling_is_what_the_test_does(phase, store):
    """Worked out from the metadata alone, for videos of any length."""
    config = load_config(ROOT / "configs" / "binding_stfn.yaml")
    options = config.phases[phase]
    told = preprocessing(config, options, ["rgb", "flow"])
    assert told["view"]["part"] == ("middle square" if phase == "stfn_frozen" else "full frame")
    clips = TestClips.of(options, config.data.crop)
    for frames in (1, 2, 9, 10, 11, 12, 13, 17, 30, 61, 200):
        row = dataclasses.replace(store.rows[0], frames=frames, flow_pairs=max(1, frames - 1))
        requests = protocol.test_requests(row, 0, config.evaluation, clips)
        expected = [request.frames for request in requests if not request.flip]
        assert frames_told(told["sampling"], frames) == expected
        assert any(request.flip for request in requests) == told["sampling"]["flips"]


def frames_told(cut, count):
    """The frames of each clip, by the words of `preprocessing.sampling`."""
    first, last = cut["first_frame"], count - cut["last_frame_from_end"]
    first, last = (first, last) if first <= last else (0, count - 1)
    if "chunks" in cut:
        chunks = cut["chunks"]
        steps = [first + (last - first) * n / (chunks - 1) for n in range(chunks)]
        return [tuple(int(step + 0.5) for step in steps)]
    every = list(range(first, last + 1, cut["frame_grid"]))
    n, segments = len(every), cut["segments"]
    edges = [(n * s // segments, n * (s + 1) // segments) for s in range(segments)]
    return [
        tuple(every[min(low + int(share * max(high - low, 1)), n - 1)] for low, high in edges)
        for share in cut["shares"]
    ]


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
