"""What the resize kernel cannot take is refused, and never read or written outside its arrays."""

import numpy as np
import pytest
import torch

from hpc_stres.data.augment import finish_on_cpu, resize_taps
from tests.unit.test_resize import call


def test_the_kernel_itself_refuses_what_lies_outside_the_picture():
    picture, out = np.zeros((20, 30), np.uint8), np.zeros((10, 10, 1), np.float32)
    down, across = resize_taps(20, 10, True), resize_taps(30, 10, True)
    assert call(down, across, picture, out) == 0
    for shifted in (
        down[0] - 1,
        down[0] + 20,
        np.full(10, -(2**31), np.int32),
        np.full(10, 2**31 - 1, np.int32),
    ):
        assert call((shifted.astype(np.int32), down[1]), across, picture, out) == 1
    assert call(down, (across[0] + 1, across[1]), picture, out) == 1
    for sizes in (
        {"height": 0},
        {"width": -1},
        {"height": 2**31 - 1},
        {"width": 65535, "height": 65535},
        {"count": 65},
    ):
        assert call(down, across, picture, out, **sizes) == 1, sizes


GRAY = np.zeros((20, 30), np.uint8)
STACK = [GRAY] * 20
READ_ONLY = np.zeros((16, 16, 20), np.float32)
READ_ONLY.flags.writeable = False
HUGE = np.lib.stride_tricks.as_strided(np.zeros(1, np.uint8), (65535, 65535), (0, 0))
TOO_WIDE = np.lib.stride_tricks.as_strided(np.zeros(1, np.uint8), (1, 1 << 32), (0, 0))
REFUSED = {
    "no picture": {"pictures": []},
    "a picture without pixels": {"pictures": [np.zeros((0, 30), np.uint8)] * 20},
    "a picture without columns": {"pictures": [np.zeros((20, 0), np.uint8)] * 20},
    "a picture without channels": {"pictures": [np.zeros((20, 30, 0), np.uint8)]},
    "an unequal picture": {"pictures": [*STACK[:-1], np.zeros((20, 29), np.uint8)]},
    "a smaller picture at the start": {"pictures": [np.zeros((2, 2), np.uint8), *STACK[:-1]]},
    "the same area, another shape": {"pictures": [*STACK[:-1], np.zeros((30, 20), np.uint8)]},
    "floats": {"pictures": [GRAY.astype(np.float32)] * 20},
    "signed bytes": {"pictures": [GRAY.astype(np.int8)] * 20},
    "one of another type": {"pictures": [*STACK[:-1], GRAY.astype(np.uint16)]},
    "lists": {"pictures": [GRAY.tolist()] * 20},
    "tensors": {"pictures": [torch.from_numpy(GRAY)] * 20},
    "several coloured pictures": {"pictures": [np.zeros((20, 30, 3), np.uint8)] * 20},
    "a line": {"pictures": [np.zeros(30, np.uint8)] * 20},
    "a number": {"pictures": [np.uint8(3)] * 20},
    "four axes": {"pictures": [np.zeros((1, 20, 30, 3), np.uint8)]},
    "65 pictures": {"pictures": [GRAY] * 65},
    "65 channels": {"pictures": [np.zeros((20, 30, 65), np.uint8)]},
    "4 GiB": {"pictures": [HUGE]},
    "more than 1 GiB together": {"pictures": [HUGE[:8192, :8192]] * 17},
    "4 GiB in one line": {"pictures": [TOO_WIDE] * 20},
    "side 0": {"side": 0},
    "a side below 0": {"side": -16},
    "a side of 2^31": {"side": 2**31},
    "a side of 2^32 + 16": {"side": 2**32 + 16},
    "half a pixel": {"side": 16.5},
    "a side as text": {"side": "16"},
    "yes as a side": {"side": True},
    "out too small": {"out": np.zeros((16, 15, 20), np.float32)},
    "out with planes first": {"out": np.zeros((20, 16, 16), np.float32)},
    "out flat": {"out": np.zeros(16 * 16 * 20, np.float32)},
    "out of doubles": {"out": np.zeros((16, 16, 20))},
    "out in the other byte order": {"out": np.zeros((16, 16, 20), ">f4")},
    "out with gaps": {"out": np.zeros((16, 32, 20), np.float32)[:, ::2]},
    "out in another order": {"out": np.zeros((20, 16, 16), np.float32).transpose(1, 2, 0)},
    "out between bytes": {
        "out": np.zeros(4 * 5120 + 1, np.uint8)[1:].view(np.float32).reshape(16, 16, 20)
    },
    "out for reading only": {"out": READ_ONLY},
    "out a list": {"out": [0.0] * 5120},
    "a scale of doubles": {"scale": np.ones(20)},
    "a scale too short": {"scale": np.ones(19, np.float32)},
    "a scale for all": {"scale": np.float32(1)},
    "a scale with gaps": {"scale": np.ones(40, np.float32)[::2]},
    "a shift too short": {"shift": np.ones(3, np.float32)},
    "a shift as a list": {"shift": [0.0] * 20},
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_the_kernel_cannot_take_is_refused(name):
    out = np.full((16, 16, 20), 7, np.float32)
    good = {
        "pictures": STACK,
        "side": 16,
        "scale": np.ones(20, np.float32),
        "shift": np.zeros(20, np.float32),
    }
    given = {**good, "out": out, **REFUSED[name]}
    with pytest.raises(ValueError, match=r"^(pictures|side|out|scale|shift): "):
        finish_on_cpu(
            given["pictures"],
            given["side"],
            True,
            (given["scale"], given["shift"]),
            False,
            given["out"],
        )
    assert (out == 7).all()
    finish_on_cpu(STACK, 16, True, (good["scale"], good["shift"]), False, out)
    assert (out == 0).all()
