"""The compiled kernels: built once and whole by however many ask at once; nothing else is ever loaded."""

import concurrent.futures
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from hpc_stres import native
from hpc_stres.errors import UserError
from tests.conftest import ROOT, run_python
from tests.unit.kernels import ANSWER, AS_ROOT, CODE, LOAD, NOBODY, compilations, kept


def test_threads_and_processes_that_ask_at_once_get_one_library(tmp_path):
    env = {"HPC_STRES_CACHE": str(tmp_path / "a b"), "PATH": "/usr/bin:/bin"}
    with concurrent.futures.ThreadPoolExecutor(3) as pool:
        runs = [
            pool.submit(
                subprocess.run,
                [sys.executable, "-c", CODE],
                env=env,
                cwd=ROOT,
                capture_output=True,
                text=True,
            )
            for _ in range(3)
        ]
    for run in runs:
        assert run.result().returncode == 0, run.result().stderr
        assert run.result().stderr == ""
    assert kept(tmp_path / "a b").parent.name == f"user-{os.geteuid()}"


def test_without_a_compiler_the_mend_is_named(tmp_path, monkeypatch):
    monkeypatch.setenv("HPC_STRES_CACHE", str(tmp_path))
    monkeypatch.setenv("CXX", "no-such-compiler")
    native._load.cache_clear()
    with pytest.raises(UserError, match=r"no C\+\+ compiler to build the kernels\nInstall g\+\+"):
        native.load("tvl1")
    native._load.cache_clear()


def test_a_source_that_does_not_build_says_so(tmp_path, monkeypatch):
    monkeypatch.setenv("HPC_STRES_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(native, "SOURCES", tmp_path)
    (tmp_path / "wrong.cpp").write_text("int f( {")
    with pytest.raises(UserError, match="cannot build") as error:
        native.load("wrong")
    assert str(tmp_path / "wrong.cpp:1") in str(error.value).splitlines()[1]
    assert not list((tmp_path / "cache").rglob("*.so"))


@pytest.mark.parametrize("name", ["resize", "tvl1"])
def test_loading_a_kernel_leaves_denormal_numbers_alone(name):
    code = f"""
import threading
import numpy as np
from hpc_stres import native
small, one = np.full(8, 1e-40, np.float32), np.float32(1)
before = small * one
native.load({name!r})
native.load_emulated("tvl1")
results = [small * one]
thread = threading.Thread(target=lambda: results.append(small * one))
thread.start()
thread.join()
for result in results:
    assert (result == before).all() and (result != 0).all(), result
"""
    result = run_python("-c", code)
    assert result.returncode == 0, result.stderr


def test_kernels_of_one_process_are_told_apart(kernel):
    """They are loaded from memory, one after the other under the same file number."""
    assert [kernel(n) for n in (1, 2, 3, 2)] == [1, 2, 3, 2]


def other_library(tmp_path):
    """A whole library of the cache that was made from another source."""
    folder = tmp_path / "other"
    run = run_python("-c", LOAD, tmp_path / "kernels", env={"HPC_STRES_CACHE": str(folder)})
    assert run.returncode == 0, run.stderr
    return kept(folder).read_bytes()


def flip_bit(file, place):
    data = bytearray(file.read_bytes())
    data[place] ^= 4
    file.write_bytes(data)


DAMAGE = {
    "empty": lambda file: os.truncate(file, 0),
    "cut in half": lambda file: os.truncate(file, file.stat().st_size // 2),
    "cut by one byte": lambda file: os.truncate(file, file.stat().st_size - 1),
    "one byte more": lambda file: file.write_bytes(file.read_bytes() + b"0"),
    "a bit at the start": lambda file: flip_bit(file, 2),
    "a bit in the middle": lambda file: flip_bit(file, file.stat().st_size // 2),
    "a bit of the checksum": lambda file: flip_bit(file, -3),
    "zeros": lambda file: file.write_bytes(bytes(file.stat().st_size)),
    "text": lambda file: file.write_text("not a library"),
    "others may write": lambda file: file.chmod(0o666),
    "a link": lambda file: file.symlink_to(file.rename(file.parent.parent / "elsewhere")),
    "a dead link": lambda file: file.unlink() or file.symlink_to("nowhere"),
    "a pipe": lambda file: file.unlink() or os.mkfifo(file),
}


@pytest.mark.parametrize("name", DAMAGE)
def test_a_file_that_is_not_whole_and_ours_is_built_anew(
    name, kernel, tmp_path, monkeypatch, capfd
):
    assert kernel() == 42
    file = kept(tmp_path / "cache")
    whole = file.read_bytes()
    runs = compilations(monkeypatch)
    assert kernel() == 42
    assert runs == []
    DAMAGE[name](file)
    assert kernel() == 42
    assert runs == [1]
    assert not file.is_symlink()
    assert file.read_bytes() == whole
    assert file.stat().st_mode & 0o777 == 0o600
    assert kernel() == 42
    assert runs == [1]
    assert capfd.readouterr().err == ""


def test_a_library_under_another_ones_name_is_built_anew(kernel, tmp_path):
    assert kernel(13) == 13
    other = other_library(tmp_path)
    kept(tmp_path / "cache").unlink()
    assert kernel(42) == 42
    kept(tmp_path / "cache").write_bytes(other)
    assert kernel(42) == 42


@AS_ROOT
def test_a_file_of_another_user_is_not_loaded(kernel, tmp_path):
    assert kernel() == 42
    file = kept(tmp_path / "cache")
    os.chown(file, NOBODY, NOBODY)
    assert kernel() == 42
    assert file.stat().st_uid == os.geteuid()


def test_a_folder_in_place_of_the_file_costs_a_note(kernel, tmp_path, capfd):
    assert kernel() == 42
    file = kept(tmp_path / "cache")
    file.unlink()
    file.mkdir()
    assert kernel() == 42
    assert "compiled kernels are kept in" in capfd.readouterr().err


def link_away(folder):
    folder.rename(folder.parent / "moved")
    folder.symlink_to("moved")


def file_in_place(folder):
    folder.rename(folder.parent / "moved")
    folder.write_text("")


UNUSABLE = {
    "a link": link_away,
    "a file": file_in_place,
    "another user's": pytest.param(lambda folder: os.chown(folder, NOBODY, NOBODY), marks=AS_ROOT),
}


@pytest.mark.parametrize("spoil", UNUSABLE.values(), ids=UNUSABLE)
def test_a_folder_that_is_not_ours_is_passed_over_with_one_line(
    spoil, kernel, tmp_path, monkeypatch, capfd
):
    assert kernel() == 42
    folder = kept(tmp_path / "cache").parent
    spoil(folder)
    runs = compilations(monkeypatch)
    for _ in range(2):
        assert kernel() == 42
        (line,) = capfd.readouterr().err.splitlines()
        assert str(folder) in line
        assert f"kept in {tmp_path}/hpc_stres-{os.geteuid()}" in line
    assert runs == [1]
    # The second place is no better than the first: nothing is kept, and everything works.
    second = tmp_path / f"hpc_stres-{os.geteuid()}"
    second.rename(tmp_path / "away")
    second.write_text("")
    assert kernel() == 42
    (line,) = capfd.readouterr().err.splitlines()
    assert "each process compiles its kernels again" in line


def test_a_folder_that_is_open_to_others_is_closed(kernel, tmp_path):
    assert kernel() == 42
    folder = kept(tmp_path / "cache").parent
    folder.chmod(0o777)
    assert kernel() == 42
    assert folder.stat().st_mode & 0o777 == 0o700


def test_a_home_that_is_not_there_is_not_made(tmp_path):
    (tmp_path / "answer.cpp").write_text(ANSWER % 42)
    home = tmp_path / "no" / "home"
    env = {"HOME": str(home), "TMPDIR": str(tmp_path), "HPC_STRES_CACHE": "", "XDG_CACHE_HOME": ""}
    result = run_python("-c", LOAD, tmp_path, env=env)
    assert result.stdout == "42\n", result.stderr
    (line,) = result.stderr.splitlines()
    assert f"there is no home folder {home}" in line
    assert not home.exists()


@pytest.fixture
def open_folder():
    """A folder that every user can enter, all the way down."""
    with tempfile.TemporaryDirectory(dir="/tmp") as name:
        Path(name).chmod(0o777)
        yield Path(name)


AS_NOBODY = f"""
import os
from hpc_stres import native
os.setgroups([])
os.setgid({NOBODY})
os.setuid({NOBODY})
{LOAD}
"""


@AS_ROOT
def test_two_users_of_one_cache_do_not_meet(open_folder):
    """Nor does it help a third one to make a folder in another's name."""
    (open_folder / "answer.cpp").write_text(ANSWER % 42)
    shared = open_folder / "cache"
    shared.mkdir()
    shared.chmod(0o777)
    env = {"HPC_STRES_CACHE": str(shared), "TMPDIR": str(open_folder), "HOME": "/nonexistent"}
    for code in (LOAD, AS_NOBODY):
        run = run_python("-c", code, open_folder, env=env)
        assert (run.stdout, run.stderr) == ("42\n", "")
    for user in (0, NOBODY):
        assert kept(shared / f"user-{user}").stat().st_uid == user
    for path in (kept(shared / f"user-{NOBODY}"), shared / f"user-{NOBODY}"):
        os.chown(path, 12345, 12345)
        path.chmod(0o755)
    run = run_python("-c", AS_NOBODY, open_folder, env=env)
    assert run.stdout == "42\n"
    assert "belongs to user 12345" in run.stderr
