"""A copy of a store on a node's own disk: compared with checksums, of this user alone, out of no link's reach."""

import errno
import os
import random
import signal
import subprocess
import sys

import pytest

from hpc_stres.errors import UserError
from hpc_stres.store import staging
from hpc_stres.store.reader import PreparedVideo, Store, verify, write_store
from hpc_stres.store.staging import staged
from tests.conftest import ROOT, digests
from tests.waiting import PATIENCE_SECONDS, wait_until

COPY = """
import sys; from pathlib import Path
from hpc_stres.store.reader import Store, verify
from hpc_stres.store.staging import staged
print(len(verify(Store(staged(Path(sys.argv[1]), sys.argv[2])))), flush=True)
"""


@pytest.fixture
def source(tmp_path):
    """A store of 31 made-up videos."""
    generator = random.Random(1)
    videos = [
        PreparedVideo(
            f"v{n}", 0, 48, 64, [generator.randbytes(400) for _ in range(5)], [generator.randbytes(200)] * 8
        )
        for n in range(31)
    ]  # fmt: skip
    write_store(tmp_path / "store", videos, ["a"], [video.id for video in videos])
    return tmp_path / "store"


def whole(source, target):
    """Whether the copy is the store, file by file."""
    copied = {
        name: digest
        for name, digest in digests(target).items()
        if name not in (staging.COMPARED, "owner.lock")
    }
    return copied == digests(source)


def test_damaged_members_of_a_copy_are_copied_again(source, tmp_path):
    target = staged(source, str(tmp_path / "node"))
    assert whole(source, target)
    assert target.stat().st_mode & 0o777 == 0o700
    store = Store(target)
    with store.paths.shard(0).open("r+b") as stream:
        for number in range(31):
            stream.seek(int(store.places(number)[0][0]) + 3)
            stream.write(b"\0\1")
    assert len(verify(Store(target))) == 31
    assert whole(source, staged(source, str(tmp_path / "node")))


def test_damage_with_the_same_size_and_time_is_noticed_too(source, tmp_path):
    target = staged(source, str(tmp_path / "node"))
    for path in [*(target / "index").iterdir(), *(target / "shards").iterdir()]:
        if path.stat().st_size:
            then, data = path.stat(), bytearray(path.read_bytes())
            data[-1] ^= 1
            path.write_bytes(data)
            os.utime(path, ns=(then.st_atime_ns, then.st_mtime_ns))
    assert whole(source, staged(source, str(tmp_path / "node")))


def test_a_whole_copy_is_not_copied_or_read_again(source, tmp_path, monkeypatch):
    target = staged(source, str(tmp_path / "node"))
    times = {
        path: path.stat().st_mtime_ns
        for path in target.rglob("*")
        if path.is_file() and path.name != "owner.lock"
    }
    monkeypatch.setattr(staging, "sha256", lambda path: pytest.fail("read again"))
    staged(source, str(tmp_path / "node"))
    assert {path: path.stat().st_mtime_ns for path in times} == times


def test_links_are_removed_and_never_followed(source, tmp_path):
    target = staged(source, str(tmp_path / "node"))
    victim = tmp_path / "victim"
    victim.mkdir()
    (victim / "keep.txt").write_text("mine")
    shard = target / "shards" / "00000.tar"
    data = shard.read_bytes()
    (victim / "00000.tar").write_bytes(data)
    for path in (target / "shards", target / "index"):
        for file in path.iterdir():
            file.unlink()
        path.rmdir()
        path.symlink_to(victim)
    for name in ("manifest.json", "owner.lock", staging.COMPARED, "stranger"):
        (target / name).unlink(missing_ok=True)
        (target / name).symlink_to(victim / "keep.txt")
    assert whole(source, staged(source, str(tmp_path / "node")))
    assert not any(path.is_symlink() for path in target.rglob("*"))
    assert (victim / "keep.txt").read_text() == "mine"
    assert (victim / "00000.tar").read_bytes() == data
    shard.unlink()
    shard.symlink_to(victim / "00000.tar")  # even one with the right content
    assert whole(source, staged(source, str(tmp_path / "node")))
    assert not shard.is_symlink()


def test_a_folder_that_is_a_link_is_refused(source, tmp_path):
    (tmp_path / "node").mkdir()
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "node" / source.name).symlink_to(tmp_path / "elsewhere")
    with pytest.raises(UserError, match="a link, or a folder of another user"):
        staged(source, str(tmp_path / "node"))
    assert not any((tmp_path / "elsewhere").iterdir())


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can make a folder of another user")
def test_a_folder_of_another_user_is_refused(source, tmp_path):
    target = tmp_path / "node" / source.name
    target.mkdir(parents=True)
    os.chown(target, 12345, 12345)
    with pytest.raises(UserError, match=f"{target}: a link, or a folder of another user"):
        staged(source, str(tmp_path / "node"))


@pytest.mark.parametrize(
    ("mode", "is_refused"), [(0o777, True), (0o1777, False), (0o775, True), (0o755, False)]
)
def test_a_folder_in_which_others_can_replace_the_copy_is_refused(
    source, tmp_path, mode, is_refused
):
    (tmp_path / "node").mkdir()
    (tmp_path / "node").chmod(mode)
    if is_refused:
        with pytest.raises(UserError, match="other users can replace what is in this folder"):
            staged(source, str(tmp_path / "node"))
    else:
        assert whole(source, staged(source, str(tmp_path / "node")))


def test_a_full_disk_refuses_and_leaves_nothing(source, tmp_path, monkeypatch):
    real = os.fdopen

    def full(descriptor, *more):
        stream = real(descriptor, *more)

        class Full:
            def __enter__(self):
                return self

            def __exit__(self, *more):
                stream.close()

            def write(self, data):
                raise OSError(errno.ENOSPC, "No space left on device")

        return Full()

    monkeypatch.setattr(staging.os, "fdopen", full)
    with pytest.raises(
        UserError,
        match=rf"{tmp_path}/node/store/\S+: No space left on device\nLeave data.stage away",
    ):
        staged(source, str(tmp_path / "node"))
    assert not (tmp_path / "node" / "store").exists()
    monkeypatch.undo()
    monkeypatch.setattr(staging.shutil, "disk_usage", lambda path: type("U", (), {"free": 10})())
    with pytest.raises(UserError, match=r"has 10 bytes free, the store takes .* KiB more"):
        staged(source, str(tmp_path / "node"))


def test_a_damaged_source_is_named(source, tmp_path):
    with Store(source).paths.shard(0).open("r+b") as stream:
        stream.seek(3000)
        stream.write(b"\0\1\2")
    with pytest.raises(UserError, match=r"store/shards/00000.tar: damaged: its checksum is wrong"):
        staged(source, str(tmp_path / "node"))


def test_two_jobs_at_once_and_one_that_is_killed(source, tmp_path):
    words = [sys.executable, "-c", COPY, str(source), str(tmp_path / "node")]
    first = subprocess.Popen(words, cwd=ROOT, stdout=subprocess.PIPE)
    wait_until(
        lambda: first.poll() is not None or any((tmp_path / "node").rglob("*.tar")), "a shard"
    )
    first.send_signal(signal.SIGKILL)
    first.wait()
    both = [subprocess.Popen(words, cwd=ROOT, stdout=subprocess.PIPE, text=True) for _ in range(2)]
    assert [process.communicate(timeout=PATIENCE_SECONDS)[0] for process in both] == ["0\n", "0\n"]
    assert whole(source, tmp_path / "node" / "store")


def test_another_version_of_the_store_replaces_the_copy(source, tmp_path):
    target = staged(source, str(tmp_path / "node"))
    store = Store(target)
    videos = [PreparedVideo(f"w{n}", 0, 48, 64, [b"frame"] * 5, [b"plane"] * 8) for n in range(3)]
    write_store(source, videos, ["b"], [video.id for video in videos])
    for name in set(digests(source)) - {"manifest.json"} - used_by(Store(source)):
        (source / name).unlink()
    assert whole(source, staged(source, str(tmp_path / "node")))
    assert len(store.rgb(30, 4)) == 400  # a job that reads the old copy reads on


def used_by(store):
    return {f"index/{e['name']}" for e in store.manifest["index"].values()} | {
        f"shards/{name}" for name in store.manifest["shards"]
    }
