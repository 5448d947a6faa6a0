"""Full, read-only and impossible places: a sentence with the path in it, and nothing that was prepared is lost."""

import os
import subprocess

import pytest

from hpc_stres.errors import UserError
from hpc_stres.prepare import disk
from hpc_stres.prepare.run import prepare
from hpc_stres.run.tables import size_text
from hpc_stres.store.location import store_folder
from hpc_stres.store.reader import Store, verify
from tests.conftest import digests, tiny_config

FEW = ("data.binding.train_videos=8", "data.binding.test_videos=8", "data.binding.frames=4")


@pytest.fixture
def small_disk(tmp_path):
    """A file system of one megabyte, and a function that mounts it again with other options."""
    place = tmp_path / "disk"
    place.mkdir()

    def mount(options):
        return subprocess.run(
            ["mount", *options, str(place)], capture_output=True, check=False
        ).returncode

    if os.geteuid() != 0 or mount(["-t", "tmpfs", "-o", "size=1m", "none"]) != 0:
        pytest.skip("only root can mount a file system, and not everywhere")
    yield place, lambda options: mount(["-o", f"remount,{options}"])
    subprocess.run(["umount", "-l", str(place)], check=True)


def test_a_disk_that_fills_while_it_runs_loses_nothing(small_disk, work, monkeypatch, tmp_path):
    place, remount = small_disk
    config = tiny_config(place, *FEW)
    monkeypatch.setattr(disk, "estimate", lambda *more: "")
    assert remount("size=300k") == 0
    with pytest.raises(
        UserError,
        match=rf"{place}/.*: No space left on device\nWhat is prepared is kept: free some",
    ):
        prepare(config, quiet=True)
    done = len(list(store_folder(config).rglob("parts/*.tar")))
    assert 0 < done < 16
    del work[:]
    assert remount("size=4m") == 0
    prepare(config, quiet=True)
    assert len(work) == 16 - done
    assert verify(Store(store_folder(config))) == []
    undisturbed = tiny_config(tmp_path / "other", *FEW)
    prepare(undisturbed, quiet=True)
    assert digests(store_folder(config)) == digests(store_folder(undisturbed))


def test_a_read_only_store_is_used_and_not_changed(small_disk, work):
    place, remount = small_disk
    config = tiny_config(place, *FEW)
    assert remount("size=4m") == 0
    folder = prepare(config, quiet=True)
    assert remount("ro") == 0
    assert prepare(config, quiet=True) == folder
    other = tiny_config(place, *FEW, "data.jpeg_quality=80")
    with pytest.raises(
        UserError,
        match=rf"{place}/.*: Read-only file system\nSet data.root to a folder that you can",
    ):
        prepare(other, quiet=True)


def test_a_root_that_is_a_file_is_a_sentence(tmp_path, work):
    (tmp_path / "root").write_text("")
    with pytest.raises(
        UserError, match=rf"{tmp_path}/root/.*: Not a directory\nSet data.root to a folder"
    ):
        prepare(tiny_config(tmp_path / "root", *FEW), quiet=True)


@pytest.mark.parametrize(
    ("count", "text"), [(0, "0 bytes"), (900, "900 bytes"), (70_000, "68.4 KiB"),
     (3 << 20, "3.0 MiB"), (5 << 40, "5.0 TiB")],
)  # fmt: skip
def test_sizes_are_never_rounded_to_nothing(count, text):
    assert size_text(count) == text
