"""Without a C++ compiler everything works: said once, slower, the same numbers to rounding."""

import subprocess
import sys
import time

import numpy as np
import pytest

from hpc_stres import native
from hpc_stres.data.flow import encode_flow, tvl1
from hpc_stres.listings.splits import Video
from hpc_stres.native.tvl1_numpy import tvl1_batch
from hpc_stres.prepare import guard
from hpc_stres.prepare.extract import prepare_video
from hpc_stres.prepare.video import write_video
from hpc_stres.store.location import Settings
from tests.conftest import run_python
from tests.unit.test_flow import moved, texture
from tests.unit.tvl1_oracle import tvl1_oracle

SETTINGS = Settings(32, 95, "native", "paper")


@pytest.fixture
def no_compiler(tmp_path, monkeypatch):
    """A machine without a compiler and without a cache; returns what its children inherit."""
    monkeypatch.setenv("CXX", "no-such-compiler")
    monkeypatch.setenv("HPC_STRES_CACHE", str(tmp_path / "empty cache"))
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr("tempfile.tempdir", None)
    monkeypatch.delenv(native.TOLD_VARIABLE, raising=False)
    for known in (native._load, native.find):
        known.cache_clear()
    guard.close()
    yield
    guard.close()
    for known in (native._load, native.find):
        known.cache_clear()


def moving(height=48, width=64, count=5):
    picture = texture(height, width)
    return np.stack([moved(picture, [[1, 0, 1.3 * n], [0, 1, -0.6 * n]]) for n in range(count)])


def in_numpy(frames, pyramid, threads=1):
    flow = np.full((len(frames) - 1, 2, *frames.shape[1:]), np.nan, np.float32)
    tvl1_batch(frames, pyramid == "paper", threads, flow)
    return flow


@pytest.mark.parametrize(
    "frames", [moving(), moving(33, 90, 3), np.stack([texture(40, 33).astype(np.uint8)] * 2)]
)
def test_numpy_agrees_with_the_kernel(frames):
    kernel, ours = tvl1(frames), in_numpy(frames, "paper")
    assert np.abs(kernel - ours).mean() < 1e-3
    levels = [encode_flow(flow).astype(int) for flow in (kernel, ours)]
    assert np.abs(levels[0] - levels[1]).max() <= 1
    assert (levels[0] != levels[1]).mean() < 0.01
    # This pyramid's median makes much of little: noise of 1e-4 grey levels moves it by as much.
    assert np.abs(tvl1(frames, pyramid="opencv4") - in_numpy(frames, "opencv4")).mean() < 0.03


def test_numpy_agrees_with_the_oracle():
    frames = moving(33, 40, 3)
    assert np.abs(in_numpy(frames, "paper") - tvl1_oracle(frames)).max() < 0.01


@pytest.mark.parametrize("pyramid", ["paper", "opencv4"])
def test_a_pair_does_not_feel_the_pairs_beside_it(pyramid, monkeypatch):
    # A pair that stands, which comes to rest at once, between pairs that move.
    frames = moving(32, 40)
    frames[2] = frames[1]
    whole = in_numpy(frames, pyramid)
    assert not whole[1].any()
    assert np.array_equal(whole, in_numpy(frames, pyramid, threads=3))
    alone = np.concatenate([in_numpy(frames[n : n + 2], pyramid) for n in range(4)])
    assert np.array_equal(whole, alone)


@pytest.mark.parametrize("pyramid", ["paper", "opencv4"])
@pytest.mark.parametrize("size", [(1, 1), (1, 2), (2, 1), (1, 40), (3, 5), (31, 33)])
def test_numpy_takes_pictures_of_any_size(pyramid, size):
    frames = np.random.default_rng(0).integers(0, 256, (3, *size), np.uint8)
    assert np.isfinite(in_numpy(frames, pyramid)).all()
    assert in_numpy(frames[:1], pyramid).shape == (0, 2, *size)


@pytest.mark.usefixtures("no_compiler")
def test_it_is_said_once_and_by_the_first_process_only(monkeypatch, capfd):
    assert native.find("tvl1") is None
    assert native.find("resize") is None
    command = [
        sys.executable,
        "-c",
        "from hpc_stres import native; assert native.find('tvl1') is None",
    ]
    subprocess.run(command, check=True)
    said = capfd.readouterr().err
    assert said.count("no C++ compiler") == said.count("\n") == 1
    monkeypatch.delenv(native.TOLD_VARIABLE)
    monkeypatch.setenv("OMPI_COMM_WORLD_RANK", "1")
    subprocess.run(command, check=True)
    assert capfd.readouterr().err == ""


@pytest.mark.usefixtures("no_compiler")
def test_a_compiler_that_is_too_old_is_none(tmp_path, monkeypatch, capfd):
    old = tmp_path / "old-g++"
    old.write_text(
        '#!/bin/sh\necho "error: unrecognized command line option -std=c++17" >&2; exit 1\n'
    )
    old.chmod(0o755)
    monkeypatch.setenv("CXX", str(old))
    assert np.isfinite(tvl1(moving(20, 20, 2))).all()
    assert "old-g++ cannot build" in capfd.readouterr().err


@pytest.mark.usefixtures("no_compiler")
def test_a_video_is_prepared_in_a_guarded_child(tmp_path):
    frames = np.repeat(moving(32, 40)[..., None], 3, axis=-1)
    write_video(tmp_path / "v.avi", frames, 25)
    made = guard.prepare(Video("v", tmp_path / "v.avi", 0), SETTINGS)
    assert made == prepare_video(Video("v", tmp_path / "v.avi", 0), SETTINGS)
    assert len(made.flow) == 8


def test_a_kernel_in_the_cache_needs_no_compiler(tmp_path, monkeypatch):
    monkeypatch.setenv("HPC_STRES_CACHE", str(tmp_path))
    load = ("-c", "from hpc_stres import native; native.load('resize')")
    assert run_python(*load, env={"CXX": "no-such-compiler"}).returncode != 0
    assert run_python(*load).returncode == 0
    assert run_python(*load, env={"CXX": "no-such-compiler"}).returncode == 0


def test_it_is_slower_but_not_out_of_reach():
    """The figure that `doctor` gives: NumPy takes 3 to 30 times the kernel's time."""
    frames = moving(64, 64, 9)
    seconds = {}
    for name, work in (("kernel", tvl1), ("numpy", lambda f: in_numpy(f, "paper"))):
        work(frames[:2])
        begun = time.process_time()
        work(frames)
        seconds[name] = time.process_time() - begun
    assert seconds["numpy"] < 60 * seconds["kernel"]
