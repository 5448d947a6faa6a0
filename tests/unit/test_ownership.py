"""One owner at a time: refused by name, waited for, taken over from the dead, also without kernel locks."""

import errno
import fcntl
import json
import os
import subprocess
import sys
import threading
import time

import pytest

from hpc_stres.errors import UserError
from hpc_stres.run import ownership
from hpc_stres.run.ownership import owned
from tests.waiting import PATIENCE_SECONDS, wait_until

HOLDER = """
import sys, time
from pathlib import Path
from hpc_stres.run.ownership import owned
with owned(Path(sys.argv[1]), "held"):
    print("mine", flush=True)
    time.sleep(3600)
"""


@pytest.fixture
def holder(tmp_path):
    """Another process that owns the lock."""
    process = subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(tmp_path / "owner.lock")],
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout.readline() == "mine\n"
    yield process
    process.kill()
    process.wait()


def elsewhere(path, age_seconds):
    """A lock file that an owner on another host wrote, touched so long ago."""
    path.write_text(json.dumps({"process": 1, "host": "another-host", "since": "today"}))
    then = time.time() - age_seconds
    os.utime(path, (then, then))


def test_a_second_comer_is_refused_with_the_owners_name(tmp_path, holder):
    with (
        pytest.raises(
            UserError, match=f"being trained by process {holder.pid} on {os.uname().nodename}"
        ),
        owned(tmp_path / "owner.lock", "being trained"),
    ):
        pass


def test_a_patient_second_comer_waits(tmp_path):
    order = []

    def first():
        with owned(tmp_path / "owner.lock", "held"):
            order.append("first")
            time.sleep(0.5)
            order.append("first ends")

    thread = threading.Thread(target=first)
    thread.start()
    wait_until(lambda: order, "the first owner")
    with owned(tmp_path / "owner.lock", "held", patience_seconds=PATIENCE_SECONDS):
        order.append("second")
    thread.join()
    assert order == ["first", "first ends", "second"]


def test_a_killed_owner_owns_nothing(tmp_path, holder):
    holder.kill()
    holder.wait()
    with owned(tmp_path / "owner.lock", "held"):
        pass


def test_a_live_owner_on_another_host_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(ownership, "STALE_SECONDS", PATIENCE_SECONDS)
    path = tmp_path / "owner.lock"
    elsewhere(path, 0)
    threading.Timer(0.5, os.utime, [path]).start()
    with pytest.raises(UserError, match="held by process 1 on another-host"), owned(path, "held"):
        pass


def test_a_silent_owner_on_another_host_is_taken_over_when_stale(tmp_path, monkeypatch):
    monkeypatch.setattr(ownership, "STALE_SECONDS", 1.0)
    path = tmp_path / "owner.lock"
    elsewhere(path, 0)
    started = time.monotonic()
    with owned(path, "held"):
        assert time.monotonic() - started > 0.5


def test_an_owner_touches_its_file(tmp_path, monkeypatch):
    monkeypatch.setattr(ownership, "BEAT_SECONDS", 0.05)
    path = tmp_path / "owner.lock"
    with owned(path, "held"):
        os.utime(path, (1, 1))
        wait_until(lambda: path.stat().st_mtime > 2, "a touch")


def test_where_the_kernel_has_no_locks_the_named_owner_counts(tmp_path, holder, monkeypatch):
    def no_locks(stream, flags):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "flock", no_locks)
    with (
        pytest.raises(UserError, match=f"held by process {holder.pid}"),
        owned(tmp_path / "owner.lock", "held"),
    ):
        time.sleep(0)
    holder.kill()
    holder.wait()
    with owned(tmp_path / "owner.lock", "held"):
        pass
