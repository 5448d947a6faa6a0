"""One odd video costs one video: each crash, hang or flood is a reason, and the next video is prepared."""

import os
import signal
import subprocess
import sys
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from dataclasses import replace
from multiprocessing import get_context
from pathlib import Path

import cv2
import numpy as np
import pytest

from hpc_stres.config.schema import DataConfig
from hpc_stres.errors import FieldError, UserError
from hpc_stres.listings.listing import Video
from hpc_stres.prepare import guard, imports
from hpc_stres.prepare.extract import prepare_video
from hpc_stres.prepare.run import prepare
from hpc_stres.prepare.video import UndecodableError, write_video
from hpc_stres.store.location import Settings
from hpc_stres.store.reader import Store
from tests.conftest import ROOT, tiny_config
from tests.waiting import wait_until

SETTINGS = Settings(48, 95, "native")
QUICK = guard.Limits(memory_gib=0.25, minutes=0.05)
LIMITS = {"hang": QUICK, "sleep": QUICK}


def pictures(count, height=48, width=64):
    random = np.random.default_rng(5)
    return [random.integers(0, 255, (height, width, 3), np.uint8) for _ in range(count)]


@pytest.fixture(scope="module")
def good(tmp_path_factory):
    path = tmp_path_factory.mktemp("good") / "good.avi"
    write_video(path, pictures(6), 25)
    return path


@pytest.fixture
def faulty():
    """Children with the faults of faulty_decoder.py; one that still lives serves the next test."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            guard,
            "CHILD",
            guard.CHILD.replace("hpc_stres.prepare.guarded", "tests.unit.faulty_decoder"),
        )
        patch.setattr(guard, "_idle", FAULTY)
        yield


FAULTY: list = []


@pytest.fixture(scope="module", autouse=True)
def no_child_stays():
    yield
    guard.close()
    while FAULTY:
        FAULTY.pop().close()


def named(good, tmp_path, name):
    path = tmp_path / f"{name}.avi"
    path.write_bytes(good.read_bytes())
    return Video(name, path, 2)


FAULTS = {
    "segfault": r"killed by signal 11 \(SIGSEGV\)",
    "abort": r"killed by signal 6 \(SIGABRT\)",
    "kill": r"killed by signal 9 \(SIGKILL\) twice",
    "leaves": "ended with status 3",
    "hang": r"took longer than 0.05 minutes for a frame \(data.video_minutes\)",
    "sleep": r"took longer than 0.05 minutes for a frame \(data.video_minutes\)",
    "eats": r"more memory than data.video_memory_gib allows",
    "endless": r"grew beyond 0.25 GiB after 4097 frames",
    "strange": r"KeyError: ",
}


@pytest.mark.parametrize("fault", FAULTS)
def test_each_fault_is_a_reason_and_the_next_video_is_prepared(faulty, good, tmp_path, fault):
    limits = LIMITS.get(fault, guard.Limits(memory_gib=0.25))
    with pytest.raises(UndecodableError, match=FAULTS[fault]) as caught:
        guard.prepare(named(good, tmp_path, fault), SETTINGS, limits)
    assert len(str(caught.value).splitlines()) == 1
    expected = prepare_video(Video("good", good, 2), SETTINGS)
    assert guard.prepare(Video("good", good, 2), SETTINGS) == expected


def test_a_death_that_an_earlier_video_may_have_caused_does_not_count(faulty, good, tmp_path):
    for _ in range(2):
        assert len(guard.prepare(named(good, tmp_path, "only_fresh"), SETTINGS).rgb) == 6


def test_frames_are_counted_in_a_child_too(good, tmp_path):
    assert guard.count_frames(good) == 6
    with pytest.raises(UndecodableError, match="64 x 48 pixels are more than"):
        guard.count_frames(good, guard.Limits(max_pixels=100))
    (tmp_path / "empty.avi").touch()
    with pytest.raises(UndecodableError, match="an empty file"):
        guard.count_frames(tmp_path / "empty.avi")
    assert guard.count_frames(good) == 6


def test_one_kill_from_outside_does_not_reject(faulty, good, tmp_path):
    assert len(guard.prepare(named(good, tmp_path, "kill_once"), SETTINGS).rgb) == 6
    assert (tmp_path / "kill_once.avi.marked").exists()


def test_one_child_serves_many_videos_and_survives_what_ends_a_job(faulty, good, tmp_path):
    """The signals that a job's end sends are its parent's to answer: none of them makes a rejection."""
    video = named(good, tmp_path, "tells")
    child = int(guard.prepare(video, SETTINGS).note)
    for name in ("SIGTERM", "SIGINT", "SIGHUP", "SIGUSR1", "SIGUSR2"):
        os.kill(child, getattr(signal, name))
        assert int(guard.prepare(video, SETTINGS).note) == child
    assert os.getsid(child) == child
    os.kill(child, signal.SIGKILL)
    assert int(guard.prepare(video, SETTINGS).note) != child


def test_a_child_ends_with_its_parent_even_while_it_hangs(faulty, good, tmp_path):
    video = named(good, tmp_path, "sleep")
    code = (
        "import sys; from pathlib import Path; from hpc_stres.prepare import guard\n"
        "from hpc_stres.listings.listing import Video; from hpc_stres.store.location import Settings\n"
        f"guard.CHILD = {guard.CHILD!r}\n"
        f"guard.prepare(Video('v', Path({str(video.path)!r}), 0), Settings(48, 95, 'native'))\n"
    )
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    parent = subprocess.Popen([sys.executable, "-c", code], env=environment)
    try:
        asleep = Path(f"{video.path}.pid")
        wait_until(lambda: asleep.is_file() and asleep.read_text(), "the hanging child")
        child = int(asleep.read_text())
    finally:
        parent.kill()
        parent.wait()
    try:
        wait_until(lambda: not is_running(child), "the child's end")
    finally:
        if is_running(child):
            os.kill(child, signal.SIGKILL)


def is_running(pid):
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except OSError:
        return False


def test_a_child_that_cannot_start_is_no_fault_of_the_video(good, monkeypatch):
    guard.close()
    monkeypatch.setattr(guard, "CHILD", "raise ImportError('no module av')")
    with pytest.raises(UserError, match=r"did not start: .*no module av"):
        guard.prepare(Video("v", good, 0), SETTINGS)
    monkeypatch.setattr(sys, "executable", "/no/such/python")
    with pytest.raises(UserError, match=r"did not start: .*No such file"):
        guard.prepare(Video("v", good, 0), SETTINGS)


def test_a_machine_without_what_flow_needs_is_no_fault_of_the_video(good, monkeypatch):
    guard.close()
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    with pytest.raises(UserError, match="there is no CUDA GPU here"):
        guard.prepare(Video("v", good, 0), replace(SETTINGS, flow_backend="cuda"))
    guard.close()


def test_threads_and_processes_have_children_of_their_own(good):
    expected = prepare_video(Video("good", good, 2), SETTINGS)
    videos = [Video("good", good, 2)] * 4
    with ThreadPoolExecutor(2) as threads:
        assert list(threads.map(guard.prepare, videos, [SETTINGS] * 4)) == [expected] * 4
    guard.prepare(videos[0], SETTINGS)
    with ProcessPoolExecutor(2, get_context("fork")) as forked:
        assert list(forked.map(guard.prepare, videos, [SETTINGS] * 4)) == [expected] * 4
    assert guard.prepare(videos[0], SETTINGS) == expected


def test_a_large_frame_within_the_pixels_may_be_beyond_the_memory(tmp_path):
    path = tmp_path / "large.avi"
    write_video(path, [np.zeros((4000, 4000, 3), np.uint8)] * 2, 25)
    data = DataConfig(video_memory_gib=0.03)
    with pytest.raises(UndecodableError, match=r"more memory than data.video_memory_gib allows"):
        imports.prepare_one(Video("v", path, 0), SETTINGS, data)
    assert len(imports.prepare_one(Video("v", path, 0), SETTINGS, DataConfig()).rgb) == 2
    with pytest.raises(
        UndecodableError, match=r"4000 x 4000 pixels are more than data.max_pixels=15999999"
    ):
        imports.prepare_one(Video("v", path, 0), SETTINGS, DataConfig(max_pixels=15_999_999))


def test_a_suspended_process_has_not_waited():
    clock = guard._Clock(guard.Limits(minutes=0.05))
    clock.last -= 3600
    clock.tick(started=True)
    assert clock.silent_seconds < 3


@pytest.mark.parametrize("key", ["max_pixels", "video_memory_gib", "video_minutes"])
@pytest.mark.parametrize("value", [0, -1, float("inf"), float("nan")])
def test_limits_are_finite_and_above_0(key, value):
    with pytest.raises(FieldError, match=key):
        DataConfig(**{key: value})


def test_one_odd_video_costs_one_video_of_prepare(tmp_path, good):
    """Through the command's own workers: everything odd is rejected with its reason, everything good is stored."""
    videos = tmp_path / "videos"
    for label in ("run", "sit"):
        (videos / label).mkdir(parents=True)
        for number in range(4):
            (videos / label / f"{number}.avi").write_bytes(good.read_bytes())
    whole = good.read_bytes()
    odd = {
        "half": whole[: len(whole) // 2],
        "png": cv2.imencode(".png", pictures(1)[0])[1].tobytes(),
        "empty": b"",
    }
    for name, data in odd.items():
        (videos / "run" / f"{name}.avi").write_bytes(data)
    os.mkfifo(videos / "run" / "pipe.avi")
    write_video(videos / "sit" / "narrow.avi", [np.zeros((6000, 4, 3), np.uint8)] * 2, 25)
    write_video(videos / "sit" / "large.avi", [np.zeros((600, 600, 3), np.uint8)] * 2, 25)
    config = tiny_config(
        tmp_path,
        "data.kind=folder",
        f"data.videos={videos}",
        "data.max_rejected=0.9",
        "data.max_pixels=300000",
    )
    store = Store(prepare(config, quiet=True))
    assert store.rejected["run/png"].startswith("a still picture")
    assert store.rejected["run/empty"] == "an empty file"
    assert store.rejected["run/pipe"] == "cannot be read: not a regular file"
    assert "would be stored as 48 x 72000" in store.rejected["sit/narrow"]
    assert "600 x 600 pixels are more than data.max_pixels=300000" in store.rejected["sit/large"]
    assert len(store.rows) == 9
    assert 0 < store.rows[store.number["run/half"]].frames < 6


def test_a_stream_gives_the_same_as_a_prepared_video_however_its_child_dies(good, monkeypatch):
    expected = prepare_video(Video("good", good, 2), SETTINGS)
    pairs = set(range(10))
    parts = list(guard.stream(good, SETTINGS, pairs))
    assert [data for letter, data in parts if letter == "r"] == expected.rgb
    assert [data for letter, data in parts if letter == "f"] == expected.flow
    # Its child, used before, is killed in the middle: a second one makes the rest.
    passing = guard.stream(good, SETTINGS, pairs)
    first = [next(passing) for _ in range(3)]
    os.kill(_child_of(passing).process.pid, signal.SIGKILL)
    assert first + list(passing) == parts
    # One who has read enough leaves no child behind.
    passing = guard.stream(good, SETTINGS, pairs)
    next(passing)
    child = _child_of(passing)
    passing.close()
    assert child.process.poll() is not None


def _child_of(passing):
    return passing.gi_frame.f_locals["child"]
