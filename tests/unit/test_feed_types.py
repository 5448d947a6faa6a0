"""Clips come in the network's type: what the kernel writes as bfloat16 is what torch would round its floats to."""

import numpy as np
import pytest
import torch

from hpc_stres.data.augment import finish_on_cpu
from hpc_stres.data.buffers import Buffers
from hpc_stres.data.feed import ClipReader
from hpc_stres.data.requests import requests, sampler
from hpc_stres.models.building import build_phase_model
from tests.conftest import tiny_config


@pytest.mark.parametrize("planes", [1, 2, 3, 20])
@pytest.mark.parametrize(
    ("source", "side"), [((48, 40), 32), ((31, 57), 33), ((7, 9), 24), ((16, 16), 16)]
)
def test_bfloat16_is_the_rounded_float32_bit_for_bit(planes, source, side):
    random = np.random.default_rng(planes * side)
    packed = planes == 3
    shape = (*source, 3) if packed else source
    pictures = [
        random.integers(0, 256, shape, dtype=np.uint8) for _ in range(1 if packed else planes)
    ]
    for deviation in (1.0, 57.63, 1e-30, 1e30):
        scale = np.full(planes, 1 / deviation, np.float32)
        shift = random.normal(0, 100 / deviation, planes).astype(np.float32)
        for flip in (False, True):
            floats = np.empty((side, side, planes), np.float32)
            halves = np.empty((side, side, planes), np.uint16)
            for out in (floats, halves):
                finish_on_cpu(pictures, side, True, (scale, shift), flip, out)
            expected = torch.from_numpy(floats).to(torch.bfloat16).view(torch.uint16).numpy()
            assert (halves == expected).all()


def test_what_is_no_number_stays_none_and_other_arrays_are_refused():
    picture = [np.full((8, 8), 200, np.uint8)]
    out = np.zeros((8, 8, 1), np.uint16)
    for value in (np.nan, np.inf, -np.inf):
        finish_on_cpu(
            picture, 8, True, (np.ones(1, np.float32), np.full(1, value, np.float32)), False, out
        )
        expected = torch.tensor(value).to(torch.bfloat16)
        assert np.array_equal(
            torch.from_numpy(out).view(torch.bfloat16).float().numpy()[0, 0, 0],
            expected.float(),
            True,
        )
    good = (np.ones(1, np.float32), np.zeros(1, np.float32))
    for wrong in (
        np.zeros((8, 8, 2), np.uint16),
        np.zeros((8, 8, 1), np.int16),
        np.zeros((8, 16, 1), np.uint16)[:, ::2],
    ):
        with pytest.raises(ValueError, match="out:"):
            finish_on_cpu(picture, 8, True, good, False, wrong)


@pytest.mark.parametrize("compiler", [True, False])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, torch.float64])
def test_the_feed_delivers_what_it_is_asked_for(data_root, store, dtype, compiler, monkeypatch):
    if not compiler:
        monkeypatch.setattr("hpc_stres.native.compiler", lambda: None)
    batch = requests(sampler(tiny_config(data_root), "st_resnet", store), 3)[:4]
    plain = ClipReader(store, 32, "torchvision").read(batch)
    clips = ClipReader(store, 32, "torchvision", dtype=dtype).read(batch)
    for own, other in ((clips.rgb, plain.rgb), (clips.flow, plain.flow)):
        assert own.dtype == dtype
        assert other.dtype == torch.float32
        assert torch.equal(own, other.to(dtype))
        assert own.flatten(0, 1).is_contiguous(memory_format=torch.channels_last)


def test_the_network_computes_the_same_bits_from_clips_in_its_type(data_root, store):
    config = tiny_config(data_root, "training.precision=bfloat16")
    batch = requests(sampler(config, "st_resnet", store), 3)[:4]
    model = build_phase_model(config, "st_resnet", len(store.classes)).eval()
    found = []
    for dtype in (torch.float32, torch.bfloat16):
        clips = ClipReader(store, 32, "torchvision", dtype=dtype).read(batch)
        with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
            found.append(model(clips.rgb, clips.flow))
    assert torch.equal(found[0].appearance, found[1].appearance)
    assert torch.equal(found[0].motion, found[1].motion)


def test_memory_of_one_type_serves_another_and_is_not_shared_while_it_is_held():
    buffers = Buffers()
    floats = buffers.take((100, 10))
    address = floats.ctypes.data
    held = floats[5:]
    other = buffers.take((100, 10), np.uint16)
    assert other.ctypes.data != address
    assert (other.dtype, other.shape) == (np.uint16, (100, 10))
    del floats, held
    again = buffers.take((400, 5), np.uint16)
    assert again.ctypes.data == address
    assert again.nbytes == 4000
    view = torch.from_numpy(again).view(torch.bfloat16)
    del again
    assert buffers.take((1000,)).ctypes.data != view.data_ptr()
