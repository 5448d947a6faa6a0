"""The feed of a GPU without one: how requests are cut into runs, which share the CPU decodes, and that clips do not
depend on either."""

import importlib.util
import itertools
import random
import threading

import numpy as np
import pytest
import torch

from hpc_stres.config.schema import TrainingConfig
from hpc_stres.data.device_feed import FIRST_SHARE, DeviceFeed, Order, Split, runs, upload
from hpc_stres.data.requests import Box
from hpc_stres.errors import FieldError
from tests.conftest import run_python


def order(pictures, picture_bytes=100, first=0):
    jpegs = [np.array([first + n], np.uint8) for n in range(pictures)]
    return Order(jpegs, Box(0, 0, 1, 1), [[n] for n in range(pictures)], False, picture_bytes)


def test_runs_fit_the_budgets_whatever_comes_and_lose_nothing():
    source = random.Random(3)
    for _ in range(300):
        orders = [
            order(source.randint(1, 9), source.randint(1, 400))
            for _ in range(source.randint(0, 12))
        ]
        most_bytes, most_pictures = source.randint(1, 4000), source.randint(1, 30)
        made = list(runs(orders, most_bytes, most_pictures))
        assert [one for run in made for one in run] == orders
        for run in made:
            fits = sum(one.bytes for one in run) <= most_bytes
            fits = fits and sum(len(one.jpegs) for one in run) <= most_pictures
            assert fits or len(run) == 1
        for run, after in itertools.pairwise(made):
            both = [*run, after[0]]
            too_much = sum(one.bytes for one in both) > most_bytes
            assert too_much or sum(len(one.jpegs) for one in both) > most_pictures, (
                "no run too early"
            )


def test_the_cpus_share_follows_the_measured_rates():
    orders = [order(10) for _ in range(20)]
    split = Split()
    assert split.cpu_orders(orders) == FIRST_SHARE * 20
    for gpu_per_s, cpu_per_s in ((870, 130), (330, 670), (475, 525), (1e5, 1)):
        for _ in range(40):
            count = split.cpu_orders(orders)
            gpu, cpu = (20 - count) * 10, count * 10
            split.measured((gpu, gpu / gpu_per_s), (cpu, cpu / cpu_per_s))
        share = cpu_per_s / (cpu_per_s + gpu_per_s)
        assert split.cpu_share == pytest.approx(share, abs=1e-3)
        # Rounded down to whole videos; one at least, so that a CPU that becomes fast again is noticed.
        assert split.cpu_orders(orders) == max(int(share * 20), 1)


def test_the_gpu_always_has_something_to_decode():
    for gpu_per_s, cpu_per_s in ((0.0, 0.0), (1.0, 1e9), (1e-9, 1e9), (5.0, 0.0)):
        split = Split(gpu_per_s, cpu_per_s)
        for count in range(6):
            taken = split.cpu_orders([order(3)] * count)
            assert (1 <= taken < count) if count > 1 else taken == 0
    # Of no time at all there is still a rate.
    split = Split()
    split.measured((10, 0.0), (10, 0.0))
    assert split.cpu_share == 0.5


def decoded(jpegs, boxes):
    assert len(jpegs) == len(boxes)
    return [torch.full((2, 3, 1), int(jpeg[0]), dtype=torch.uint8) for jpeg in jpegs]


@pytest.mark.parametrize("budget", [1, 700, 10**9])
@pytest.mark.parametrize("is_mixed", [False, True])
def test_pictures_come_in_order_whoever_decodes_them(is_mixed, budget):
    orders = [order(count, first=10 * n) for n, count in enumerate((3, 1, 4, 2, 1, 5))]
    feed = DeviceFeed(torch.device("cpu"), budget)
    threads = set()

    def on_cores(jpegs, boxes):
        threads.add(threading.current_thread().name)
        return [picture.numpy() for picture in decoded(jpegs, boxes)]

    seen, taken = [], []
    for part in feed.parts(orders, decoded, on_cores if is_mixed else None, 100):
        taken += part.orders
        seen += [int(picture[0, 0, 0]) for picture in part.pictures]
        assert all(picture.shape == (2, 3, 1) for picture in part.pictures)
    assert taken == orders
    assert seen == [int(jpeg[0]) for one in orders for jpeg in one.jpegs]
    has_shared = is_mixed and budget > 1
    assert bool(threads) == has_shared
    assert bool(feed.split.cpu_per_s) == has_shared


def test_a_picture_that_cannot_be_decoded_on_the_cores_is_an_error_of_the_feed():
    def broken(jpegs, boxes):
        raise ValueError("damaged")

    feed = DeviceFeed(torch.device("cpu"))
    with pytest.raises(ValueError, match="damaged"):
        list(feed.parts([order(1), order(1)], decoded, broken, 100))


def test_an_upload_keeps_every_byte():
    source = np.random.default_rng(0)
    sizes = ((4, 5, 1), (1, 1, 3), (7, 2, 3))
    pictures = [source.integers(0, 256, size, dtype=np.uint8) for size in sizes]
    strided = source.integers(0, 256, (6, 8, 1), dtype=np.uint8)[::2, ::2]
    for before, after in zip(
        [*pictures, strided], upload([*pictures, strided], torch.device("cpu")), strict=True
    ):
        assert np.array_equal(before, after.numpy())
        assert after.is_contiguous()


def test_what_varies_from_run_to_run_is_refused_where_bits_are_promised():
    assert TrainingConfig(decode_on="both").decode_on == "both"
    with pytest.raises(FieldError, match="decode_on: expected device with reproducible: bitwise"):
        TrainingConfig(decode_on="both", reproducible="bitwise")


CLIPS = """
import sys
import torch
from hpc_stres.data.device_feed import DeviceFeed
from hpc_stres.data.feed import ClipReader
from hpc_stres.data.decoder import Decoder
from hpc_stres.data.requests import requests, sampler
from hpc_stres.store.reader import Store
from tests.conftest import tiny_config
from pathlib import Path
config = tiny_config(Path(sys.argv[1]))
store = Store(Path(sys.argv[2]))
compared = 0
for phase, dtype in (("st_resnet", torch.float32), ("appearance", torch.bfloat16)):
    batch = requests(sampler(config, phase, store), 0)[:3]
    streams = phase == "st_resnet", phase == "st_resnet"
    plain = ClipReader(store, 16, "torchvision", streams=(True, streams[1]), dtype=dtype).read(batch)
    for budget, is_mixed in ((1, False), (10**9, True)):
        reader = ClipReader(store, 16, "torchvision", streams=(True, streams[1]), dtype=dtype)
        reader.feed = DeviceFeed(torch.device("cpu"), budget)

        def on_device(decoder):
            # nvJPEG's place is taken by the CPU's decoder: its pictures are tensors of the device.
            return lambda jpegs, boxes: [torch.tensor(picture) for picture in decoder(jpegs, boxes)]

        for name in ("rgb", "flow"):
            decoders = getattr(reader, name)
            if decoders is not None:
                here = on_device(decoders.here)
                here.most = 64
                cores = Decoder(name == "flow", 64, 1, None) if is_mixed else None
                setattr(reader, name, decoders._replace(here=here, on_cores=cores))
        clips = reader.read(batch)
        for own, other in ((clips.rgb, plain.rgb), (clips.flow, plain.flow)):
            if other is None:
                assert own is None
                continue
            assert own.shape == other.shape and own.dtype == dtype
            assert own.flatten(0, 1).is_contiguous(memory_format=torch.channels_last)
            bound = 1e-3 if dtype == torch.float32 else 0.04
            assert (own.float() - other.float()).abs().max() <= bound
            compared += 1
print(compared)
"""


@pytest.mark.skipif(
    importlib.util.find_spec("triton") is None, reason="no triton in this environment"
)
def test_clips_of_the_gpus_way_are_those_of_the_cpus(data_root, store):
    result = run_python(
        "-c", CLIPS, data_root, store.paths.root, env={"TRITON_INTERPRET": "1"}
    )  # fmt: skip
    assert result.returncode == 0, result.stderr
    assert result.stdout == "6\n"
