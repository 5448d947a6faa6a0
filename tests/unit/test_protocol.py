"""Testing one video: windows in space, odd lengths, memory that does not follow a video's length."""

import numpy as np
import pytest
import torch
from torch.nn import functional

from hpc_stres.config.schema import EvaluationConfig
from hpc_stres.data.feed import ClipReader
from hpc_stres.data.requests import flow_stack
from hpc_stres.evaluation import protocol
from hpc_stres.models import build_model
from hpc_stres.prepare.video import encode_jpeg
from hpc_stres.store.reader import PreparedVideo, Store, write_store

PAPER = EvaluationConfig(chunks=25)


@pytest.fixture(scope="module")
def lengths(tmp_path_factory):
    """A store with videos of 1, 3, 9 and 5,000 frames of 48x64."""
    root = tmp_path_factory.mktemp("lengths")
    random = np.random.default_rng(0)
    frames = [encode_jpeg(random.integers(0, 255, (48, 64, 3), np.uint8), 90) for _ in range(10)]
    planes = [encode_jpeg(random.integers(100, 150, (48, 64), np.uint8), 90) for _ in range(10)]
    videos = []
    for count in (1, 3, 9, 5000):
        rgb = [frames[n % 10] for n in range(count)]
        flow = [planes[n % 10] for n in range(2 * max(1, count - 1))]
        name = f"v{count:04d}"
        videos.append(PreparedVideo(name, 0, 48, 64, rgb, flow))
    write_store(root, videos, ["a", "b"], test=[video.id for video in videos])
    return Store(root)


@pytest.mark.parametrize("name", ["v0001", "v0003", "v0009", "v5000"])
@pytest.mark.parametrize("network", ["appearance", "motion", "st_resnet", "st_resnet_star"])
def test_videos_of_any_length_are_scored(lengths, name, network):
    torch.manual_seed(1)
    model = build_model(network, 2, width=4, stages=(2, 2)).eval()
    streams = (network != "motion", network != "appearance")
    reader = ClipReader(lengths, None, "torchvision", streams=streams, most=512)
    number = lengths.number[name]
    clips = protocol.test_requests(lengths.rows[number], number, PAPER)
    assert [clip.flip for clip in clips] == [False, True]
    assert all(len(clip.frames) == 25 for clip in clips)
    found = protocol.score_video(model, reader, clips, torch.float32)
    for used, scores in zip(streams, found, strict=True):
        assert (scores is not None) == used
        if scores is not None:
            assert scores.shape == ((11, 2) if network == "st_resnet_star" else (25, 2))
            assert scores.dtype == np.float64
            assert np.isfinite(scores).all()


def test_chunks_are_spread_over_the_whole_video(lengths):
    number = lengths.number["v5000"]
    (clip, _) = protocol.test_requests(lengths.rows[number], number, PAPER)
    steps = np.diff(clip.frames)
    assert clip.frames[0] == 5
    assert clip.frames[-1] == 5000 - 1 - 5
    assert steps.max() - steps.min() <= 1
    assert clip.flow[3] == tuple(range(clip.frames[3] - 5, clip.frames[3] + 5))


def test_a_video_shorter_than_the_flow_stack_is_mirrored(lengths):
    number = lengths.number["v0003"]
    (clip, _) = protocol.test_requests(lengths.rows[number], number, PAPER)
    assert set(clip.frames) == {0, 1, 2}
    # Frame 0 wants pairs -5 to 4 of two pairs: ... 0 1 | 1 0 | 0 1 | 1 0 ... mirrored at both ends.
    assert flow_stack(0, 2, "mirror") == (0, 0, 1, 1, 0, 0, 1, 1, 0, 0)
    assert all(0 <= pair < 2 for stack in clip.flow for pair in stack)


def test_a_wide_frame_is_the_mean_over_its_windows_one_by_one():
    """8x11 places have 2x5 windows of 7x7; each is pooled and classified by itself here."""
    torch.manual_seed(2)
    model = build_model("appearance", 5, width=4, stages=(2, 2, 2, 2)).double().eval()
    clip = torch.randn(1, 1, 3, 256, 340, dtype=torch.float64)
    kept = []
    model.appearance.layer4[-1].register_forward_hook(
        lambda module, into, out: kept.append(torch.relu(out))
    )
    with torch.no_grad():
        logits = model(clip, None).appearance[0, 0]
        (places,) = kept
        assert places.shape[2:] == (8, 11)
        windows = [places[:, :, i : i + 7, j : j + 7] for i in range(2) for j in range(5)]
        one_by_one = torch.stack(
            [model.appearance.fc(window.mean(dim=(2, 3)))[0] for window in windows]
        )
    assert len(windows) == 10
    torch.testing.assert_close(logits, one_by_one.mean(dim=0), rtol=1e-12, atol=1e-14)


def test_crops_agree_with_the_frame_only_away_from_the_padding():
    """One stage sees 21 pixels to each side: further from its edge than that, a crop cannot tell that it is one."""
    torch.manual_seed(3)
    model = build_model("appearance", 5, width=4, stages=(2,)).double().eval()
    frame = torch.randn(1, 3, 256, 340, dtype=torch.float64)
    kept = []
    model.appearance.layer1[-1].register_forward_hook(lambda module, into, out: kept.append(out))
    with torch.no_grad():
        model(frame[None], None)
        model(frame[None, :, :, :224, 32:256], None)
    whole, crop = kept[0][:, :, : 224 // 4, 8 : 8 + 224 // 4], kept[1]
    inner = (slice(None), slice(None), slice(7, -7), slice(7, -7))
    torch.testing.assert_close(whole[inner], crop[inner], rtol=1e-10, atol=1e-12)
    assert float((whole - crop).abs().max()) > 1e-3


def test_frames_at_once_change_memory_and_not_the_scores():
    torch.manual_seed(4)
    model = build_model("st_resnet", 3, width=4, stages=(2, 2)).double().eval()
    rgb, flow = (torch.randn(1, 11, planes, 64, 64, dtype=torch.float64) for planes in (3, 20))
    found = []
    with torch.no_grad():
        for model.frames_at_once in (1, 5, 11):
            found.append(model(rgb, flow).appearance)
    with_gradients = model(rgb, flow).appearance.detach()
    for other in (*found[1:], with_gradients):
        torch.testing.assert_close(found[0], other, rtol=1e-12, atol=1e-14)


def test_logits_are_averaged_without_a_softmax(lengths):
    torch.manual_seed(5)
    model = build_model("appearance", 2, width=4, stages=(2, 2)).eval()
    reader = ClipReader(lengths, None, "torchvision", streams=(True, False), most=512)
    number = lengths.number["v0009"]
    clips = protocol.test_requests(lengths.rows[number], number, EvaluationConfig(chunks=5))
    found = protocol.score_video(model, reader, clips, torch.float32).appearance
    with torch.no_grad():
        passes = [model(reader.read([clip]).rgb, None).appearance[0].double() for clip in clips]
    np.testing.assert_array_equal(found, torch.stack(passes).mean(dim=0).numpy())
    assert functional.softmax(torch.from_numpy(found), dim=-1).sum() != pytest.approx(found.sum())
