"""TV-L1's GPU kernels: neither tiles nor several iterations a launch nor batches nor the order of threads change a bit.

Run pixel after pixel on the CPU, by a compiler that may not reorder any sum: then what is equal is equal to the bit.
"""

import ctypes
import subprocess

import numpy as np
import pytest

from hpc_stres import native
from hpc_stres.data.flow import run_kernels, tvl1
from tests.unit.test_flow import PYRAMIDS, emulated, moved, texture

AS_WRITTEN = ("-O1", "-std=c++17", "-fPIC", "-shared", "-pthread", "-Wno-psabi")
SHIFTS = ((0, 0), (1.5, -0.7), (3.0, 1.2))
# A pixel; a picture inside of a tile; one narrower than a border; tiles side by side; tiles above each other too.
SIZES = [(1, 1), (17, 31), (70, 3), (3, 140), (40, 70)]


@pytest.fixture(scope="module")
def exact(tmp_path_factory):
    """`build_exact`, once."""
    if native.compiler() is None:
        pytest.skip("no g++ on this machine")
    return build_exact(tmp_path_factory.mktemp("exact"))


def build_exact(folder):
    """The kernels of the GPU and the sweeps of the CPU, each operation rounded as it is written."""

    def build(source, *flags):
        out = folder / f"{source}.so"
        command = [native.compiler(), *AS_WRITTEN, *flags, str(native.SOURCES / source)]
        subprocess.run([*command, "-o", str(out)], check=True)
        return ctypes.CDLL(str(out))

    return build("tvl1.cu", "-include", "cmath", "-x", "c++"), build("tvl1.cpp")


def scene(size, shifts=SHIFTS):
    picture = texture(96, 144)
    frames = [moved(picture, [[1, 0, dx], [0, 1, dy]])[: size[0], : size[1]] for dx, dy in shifts]
    return np.ascontiguousarray(np.stack(frames))


def solve(kernels, frames, pyramid, last_first=False, **options):
    flow = np.empty((len(frames) - 1, 2, *frames.shape[1:]), np.float32)
    ctypes.c_int.in_dll(kernels, "emulated_last_thread_first").value = last_first
    work = run_kernels(kernels, frames, flow, pyramid, **options)
    return flow, work


def sweeps(library, frames, pyramid):
    flow = np.empty((len(frames) - 1, 2, *frames.shape[1:]), np.float32)
    pointers = [ctypes.c_void_p(array.ctypes.data) for array in (frames, flow)]
    size = len(flow), *frames.shape[1:], pyramid == "paper", 1
    assert library.tvl1_batch(pointers[0], *size, pointers[1]) == 0
    return flow


@pytest.mark.parametrize("pyramid", PYRAMIDS)
@pytest.mark.parametrize("size", SIZES)
def test_neither_tiles_nor_launches_nor_threads_nor_batches_change_a_bit(exact, size, pyramid):
    kernels, cpu = exact
    frames = scene(size)
    one_by_one, work = solve(kernels, frames, pyramid, depth=1)
    # The CPU's sweeps know no tiles: where all operations are rounded as written, nothing is different.
    assert np.array_equal(one_by_one, sweeps(cpu, frames, pyramid))
    assert work.updates > 0
    for options in ({}, {"depth": 7, "last_first": True}, {"depth": 4, "cache_bytes": 1}):
        flow, same = solve(kernels, frames, pyramid, **options)
        assert np.array_equal(flow, one_by_one), options
        assert same.updates == work.updates, options


def test_pairs_at_rest_leave_the_batch(exact):
    kernels, _ = exact
    moving = scene((24, 40), ((0, 0), (2.5, 1.0)))
    frames = np.concatenate([moving[:1]] * 8 + [moving[1:]])
    (flow, alone), (flows, together) = (
        solve(kernels, some, "opencv4") for some in (moving, frames)
    )
    assert np.array_equal(flows[-1], flow[0])
    assert not flows[:-1].any()
    # Two scales of five warps: seven pairs at rest have places in two chunks of each warp, since the second is on its
    # way when the first one's answer comes, and in none after that.
    assert together.places == alone.places + 7 * 2 * 10
    assert alone.places > 3 * 10


def test_equal_pairs_have_equal_flow_wherever_they_are(exact):
    kernels, _ = exact
    frames = scene((33, 47), [(n % 2 * 1.7, 0) for n in range(5)])
    flow, _ = solve(kernels, frames, "paper")
    assert np.array_equal(flow[0], flow[2])
    assert np.array_equal(flow[1], flow[3])
    assert np.abs(flow[0]).mean() > 0.5


def test_the_kernels_as_they_are_built_are_near_the_cpus_at_several_tiles():
    frames = scene((40, 70))
    difference = np.linalg.norm(tvl1(frames) - emulated(frames), axis=1)
    assert float(difference.mean()) < 0.01


def test_no_kernel_spills_registers(tmp_path):
    compiler = native.cuda_compiler()
    if compiler is None:
        pytest.skip("no nvcc on this machine")
    listing = subprocess.run([compiler, "--list-gpu-arch"], capture_output=True, text=True)
    known = [n for n in ("80", "90", "100") if f"compute_{n}" in listing.stdout.split()]
    assert known
    for number in known:
        target = tmp_path / f"sm_{number}.cubin"
        flags = ("-O3", "-std=c++17", "-Xptxas=-v", "-cubin", f"-arch=sm_{number}")
        command = [compiler, *flags, "-o", str(target), str(native.SOURCES / "tvl1.cu")]
        run = subprocess.run(command, capture_output=True, text=True, check=False)
        assert run.returncode == 0, run.stderr
        assert target.read_bytes()[:4] == b"\x7fELF"
        lines = [line.strip() for line in run.stderr.splitlines() if "bytes spill stores" in line]
        assert len(lines) >= 15
        assert set(lines) == {"0 bytes stack frame, 0 bytes spill stores, 0 bytes spill loads"}
