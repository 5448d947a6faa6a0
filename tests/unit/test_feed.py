"""DALI's clips against a plain PIL and NumPy version of the same request."""

import io

import numpy as np
import pytest
import torch
from PIL import Image

from hpc_stres.data.augment import FLOW_STD, TORCHVISION_MEAN, TORCHVISION_STD, resize_planes
from hpc_stres.data.feed import Ahead, ClipReader
from hpc_stres.data.requests import Box, Request, requests, sampler
from hpc_stres.errors import UserError
from hpc_stres.prepare.video import encode_jpeg
from hpc_stres.store.reader import PreparedVideo, Store, write_store
from tests.conftest import tiny_config

SIDE = 32


def oracle(store, request, side, antialias=True):
    """RGB (T, 3, side, side) and flow (T, 20, side, side) of a request in grey levels, by PIL."""

    def cut(jpeg):
        box = request.box
        picture = Image.open(io.BytesIO(jpeg.tobytes()))
        picture = picture.crop((box.left, box.top, box.left + box.width, box.top + box.height))
        if antialias or side >= max(box.height, box.width):
            picture = picture.resize((side, side), Image.Resampling.BICUBIC)
        planes = np.asarray(picture, np.float32)
        return planes[:, ::-1] if request.flip else planes

    rgb = [cut(store.rgb(request.video, frame)).transpose(2, 0, 1) for frame in request.frames]
    flow = []
    for stack in request.flow:
        planes = [cut(store.flow(request.video, pair, axis)) for pair in stack for axis in (0, 1)]
        if request.flip:
            planes = [255 - plane if n % 2 == 0 else plane for n, plane in enumerate(planes)]
        flow.append(np.stack(planes))
    return np.stack(rgb), np.stack(flow)


def levels(clips, number):
    """A clip's tensors back in grey levels."""
    mean, std = (
        np.array(v, np.float32)[:, None, None] for v in (TORCHVISION_MEAN, TORCHVISION_STD)
    )
    return clips.rgb[number].numpy() * std + mean, clips.flow[number].numpy() * FLOW_STD[
        "torchvision"
    ] + 128


@pytest.fixture(params=["kernel", "torch"])
def arithmetic(request, monkeypatch):
    """Both ways to finish pictures: the CPU kernel, and torch's as a GPU uses it."""
    if request.param == "torch":
        monkeypatch.setattr("hpc_stres.native.find", lambda name: None)


@pytest.mark.usefixtures("arithmetic")
@pytest.mark.parametrize("flip", [False, True])
@pytest.mark.parametrize(
    "box", [Box(0, 0, 48, 48), Box(3, 7, 33, 40), Box(16, 1, 32, 32), Box(5, 5, 20, 24)]
)
def test_every_augmentation_is_within_a_grey_level_of_pil(store, flip, box):
    request = Request(
        0, 3, 0, (6, 9, 12), tuple(tuple(range(f - 5, f + 5)) for f in (6, 9, 12)), box, flip
    )
    clips = ClipReader(store, SIDE, "torchvision").read([request])
    for found, expected in zip(levels(clips, 0), oracle(store, request, SIDE), strict=True):
        difference = np.abs(found - expected)
        assert difference.mean() <= 1.0
        assert difference.max() <= 3.0


def test_real_requests_of_every_phase_match(data_root, store):
    config = tiny_config(data_root)
    for phase in ("appearance", "st_resnet", "st_resnet_star"):
        batch = requests(config, 1, phase)[:4]
        clips = ClipReader(store, SIDE, "torchvision").read(batch)
        assert clips.rgb.shape == (4, len(batch[0].frames), 3, SIDE, SIDE)
        assert clips.rgb[0].is_contiguous(memory_format=torch.channels_last)
        assert clips.ids == [store.rows[r.video].id for r in batch]
        assert clips.labels.tolist() == [r.label for r in batch]
        for number, request in enumerate(batch):
            for found, expected in zip(
                levels(clips, number), oracle(store, request, SIDE), strict=True
            ):
                assert np.abs(found - expected).max() <= 3.0


def test_without_antialias_the_kernel_is_not_widened():
    ramp = torch.arange(64, dtype=torch.uint8).expand(1, 64, 64)
    wide, sharp = resize_planes(ramp, 16, True), resize_planes(ramp, 16, False)
    torch.testing.assert_close(wide[0, 4, 2:-2], sharp[0, 4, 2:-2], rtol=0, atol=0.6)
    stripes = ((torch.arange(64) % 2) * 255).to(torch.uint8).expand(1, 64, 64)
    assert (
        float(resize_planes(stripes, 16, True).std())
        < 12
        < float(resize_planes(stripes, 24, False).std())
    )


@pytest.fixture
def marked(tmp_path):
    """A store of one video: a bright square whose place tells the frame, in RGB and in flow alike."""
    rgb, flow = [], []
    for number in range(24):
        picture = np.full((48, 64), 60, np.uint8)
        picture[10:18, 2 * number : 2 * number + 8] = 220
        rgb.append(encode_jpeg(np.repeat(picture[..., None], 3, axis=2), 95))
        if number < 23:
            flow += [encode_jpeg(picture, 95), encode_jpeg(255 - picture, 95)]
    write_store(tmp_path, [PreparedVideo("v", 0, 48, 64, rgb, flow)], ["a"], train=["v"])
    return Store(tmp_path)


@pytest.mark.usefixtures("arithmetic")
@pytest.mark.parametrize("flip", [False, True])
def test_rgb_and_flow_show_the_same_place_and_time(marked, flip):
    frames = (6, 10, 15)
    request = Request(
        0, 0, 0, frames, tuple(tuple(range(f - 5, f + 5)) for f in frames), Box(4, 8, 40, 48), flip
    )
    clips = ClipReader(marked, 48, "torchvision").read([request])
    rgb, flow = levels(clips, 0)
    for chunk, frame in enumerate(frames):
        middle = flow[chunk, 10:12]
        bright = np.argwhere(rgb[chunk, 0] > 150)[:, 1].mean()
        # Under a flip u is 255 - u: the square that is bright in u becomes dark.
        u = np.argwhere(middle[0] < 105 if flip else middle[0] > 150)[:, 1].mean()
        v = np.argwhere(middle[1] < 105)[:, 1].mean()
        assert abs(bright - u) < 0.5
        assert abs(bright - v) < 0.5
        expected = 2 * frame + 3.5 - 8
        assert abs(bright - (47 - expected if flip else expected)) < 1


@pytest.mark.usefixtures("arithmetic")
def test_a_flip_mirrors_and_inverts_u_to_the_pixel(store):
    stacks = (tuple(range(1, 11)),)
    one, two = (
        ClipReader(store, None, "msra")
        .read([Request(0, 2, 0, (6,), stacks, Box(0, 0, 48, 48), flip)])
        .flow[0, 0]
        + 128
        for flip in (False, True)
    )
    assert torch.equal(two[0::2], 255 - one[0::2].flip(-1))
    assert torch.equal(two[1::2], one[1::2].flip(-1))


def test_a_damaged_frame_is_named_and_not_replaced(marked):
    start = int(marked.offsets[marked.rows[0].rgb_first + 7])
    shard = marked.paths.shard(0)
    data = bytearray(shard.read_bytes())
    data[start : start + 64] = bytes(64)
    shard.write_bytes(data)
    request = Request(0, 0, 0, (6, 7), ((1,) * 10, (2,) * 10), Box(0, 0, 48, 64), False)
    with pytest.raises(UserError, match="RGB frame 7 of video v does not decode"):
        ClipReader(Store(marked.paths.root), 32, "msra").read([request])


def test_work_ahead_keeps_order_passes_errors_on_and_stops():
    def items():
        yield from range(5)
        raise ValueError("broken at 5")

    with Ahead(items(), 2) as ahead:
        assert [next(ahead) for _ in range(5)] == list(range(5))
        with pytest.raises(ValueError, match="broken at 5"):
            next(ahead)
    endless = iter(int, 1)
    with Ahead(endless, 2) as ahead:
        next(ahead)
    assert not ahead._thread.is_alive()


def test_clips_that_are_still_held_keep_their_memory(store):
    """Buffers come back only when nobody holds what is in them."""
    reader = ClipReader(store, 32, "torchvision")
    batch = requests(sampler(tiny_config(store.paths.root.parent.parent), "st_resnet", store), 0)
    first = reader.read(batch[:2])
    kept = first.flow.clone()
    views = first.flow[:, 0]
    others = [reader.read(batch[n : n + 2]) for n in range(2, 8, 2)]
    assert torch.equal(first.flow, kept)
    addresses = {clips.flow.data_ptr() for clips in (first, *others)}
    assert len(addresses) == 4
    del first
    assert torch.equal(views, kept[:, 0])
    again = reader.read(batch[:2])
    assert again.flow.data_ptr() not in {clips.flow.data_ptr() for clips in others} | {
        views.data_ptr()
    }
    assert torch.equal(again.flow, kept)
    del others
    assert reader.read(batch[2:4]).flow.data_ptr() in addresses
