"""Jobs run the code that was submitted: a copy by content, and a run that began with other code is refused."""

import dataclasses
import multiprocessing
import os
import shutil
import subprocess
import sys

import pytest

from hpc_stres.errors import ConfigError, UserError
from hpc_stres.launch import code as snapshots
from hpc_stres.launch.chain import submit
from hpc_stres.run.paths import read_json, read_sealed
from tests.conftest import ROOT

KEPT = ("__init__.py", "errors.py", "layout.py", "launch/mpi.sh", "native/norm.cpp")


@pytest.fixture
def sources(tmp_path, monkeypatch):
    """A small package in the place of ours, that a test may change."""
    folder = tmp_path / "checkout"
    for name in KEPT:
        (folder / "hpc_stres" / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / "hpc_stres" / name, folder / "hpc_stres" / name)
    (folder / "configs" / "recipes").mkdir(parents=True)
    (folder / "configs" / "one.yaml").write_text("seed: 1\n")
    (folder / "hpc_stres" / "notes.txt").write_text("not code")
    monkeypatch.setattr(snapshots, "SOURCES", folder)
    monkeypatch.setattr(snapshots, "CONFIGS", folder / "configs")
    monkeypatch.setattr(snapshots, "carry_kernels", lambda folder: None)
    return folder


def change(sources):
    with (sources / "hpc_stres" / "layout.py").open("a") as stream:
        stream.write("# newer\n")


def copies(runs):
    return sorted(path.name for path in (runs / ".code").iterdir() if path.is_dir())


def test_submissions_of_one_code_share_a_copy_that_nobody_can_write(sources, tmp_path):
    runs = tmp_path / "runs"
    folders = [runs / "a", runs / "b"]
    first, second = (snapshots.take_code(folder, [folder], False, {}) for folder in folders)
    assert first == second
    assert first.parent == runs / ".code"
    assert copies(runs) == [first.name]
    files = {p.relative_to(first).as_posix() for p in first.rglob("*") if p.is_file()}
    assert {name for name in files if "__pycache__" not in name} == {
        "configs/one.yaml", "files.json", *(f"hpc_stres/{name}" for name in KEPT)
    }  # fmt: skip
    assert any("__pycache__" in name for name in files)
    assert not [path for path in first.rglob("*") if path.stat().st_mode & 0o222]
    assert read_sealed(folders[1] / "code.json", "")["digest"] == first.name


def test_other_code_is_refused_with_the_files_and_taken_when_asked_for(sources, tmp_path):
    run = tmp_path / "runs" / "a"
    old = snapshots.take_code(run, [run], False, {})
    (run / "provenance.json").write_text('{"seed": 1}')
    change(sources)
    (sources / "hpc_stres" / "new.py").write_text("x = 1\n")
    (sources / "hpc_stres" / "errors.py").unlink()
    with pytest.raises(UserError, match=r"changed hpc_stres/layout\.py, added") as refused:
        snapshots.take_code(run, [run], False, {})
    assert "removed hpc_stres/errors.py" in str(refused.value)
    assert "--adopt-code" in str(refused.value)
    assert len(str(refused.value).splitlines()) <= 3
    with pytest.raises(UserError, match="Jobs 12, 13 are in the queue with the old code"):
        snapshots.take_code(run, [run], True, {run: ["12", "13"]})
    assert copies(tmp_path / "runs") == [old.name]
    new = snapshots.take_code(run, [run], True, {})
    note = read_sealed(run / "code.json", "")
    assert [entry["digest"] for entry in note["history"]] == [old.name, new.name]
    assert read_json(run / "provenance.json")["code"]["digest"] == new.name
    assert snapshots.take_code(run, [run], False, {}) == new


def test_another_profile_is_no_other_code(sources, tmp_path):
    run = tmp_path / "runs" / "a"
    old = snapshots.take_code(run, [run], False, {})
    (sources / "configs" / "mine.yaml").write_text("seed: 2\n")
    assert snapshots.take_code(run, [run], False, {}) != old


def test_a_copy_that_was_changed_is_made_again_and_no_job_runs_in_it(
    sources, tmp_path, monkeypatch
):
    run = tmp_path / "runs" / "a"
    copy = snapshots.take_code(run, [run], False, {})
    monkeypatch.setattr(snapshots, "SOURCES", copy)
    monkeypatch.setattr(snapshots, "CONFIGS", copy / "configs")
    snapshots.refuse_changed_copy(copy)
    (copy / "hpc_stres").chmod(0o755)
    (copy / "hpc_stres" / "layout.py").chmod(0o644)
    change(copy)
    with pytest.raises(UserError, match="somebody has changed"):
        snapshots.refuse_changed_copy(copy)
    with pytest.raises(ConfigError, match="Python finds"):
        snapshots.refuse_changed_copy(tmp_path)
    monkeypatch.setattr(snapshots, "SOURCES", sources)
    monkeypatch.setattr(snapshots, "CONFIGS", sources / "configs")
    assert snapshots.take_code(run, [run], False, {}) == copy
    assert snapshots.code_of(copy).files == snapshots.code_of(sources).files


DAMAGE = {
    "source": "hpc_stres/layout.py",
    "config": "configs/one.yaml",
    "compiled": "hpc_stres/__pycache__/layout.*.pyc",
    "kernel": "hpc_stres/native/prebuilt/norm-1.so",
    "list": "files.json",
}


@pytest.mark.parametrize("kind", DAMAGE)
def test_one_changed_byte_of_a_copy_is_named_by_the_job_and_healed_by_the_next_submit(
    sources, tmp_path, monkeypatch, kind
):
    def carry(folder):
        (folder / "prebuilt").mkdir()
        (folder / "prebuilt" / "norm-1.so").write_bytes(b"a kernel")

    monkeypatch.setattr(snapshots, "carry_kernels", carry)
    run = tmp_path / "runs" / "a"
    copy = snapshots.take_code(run, [run], False, {})
    assert snapshots.changes_in(copy) == []
    (file,) = copy.glob(DAMAGE[kind])
    content = bytearray(file.read_bytes())
    content[-2] ^= 1
    file.chmod(0o644)
    file.write_bytes(content)
    with monkeypatch.context() as in_the_job:
        in_the_job.setattr(snapshots, "SOURCES", copy)
        with pytest.raises(UserError) as refused:
            snapshots.refuse_changed_copy(copy)
    assert file.name in str(refused.value)
    assert len(str(refused.value).splitlines()) <= 3
    assert snapshots.take_code(run, [run], False, {}) == copy
    assert snapshots.changes_in(copy) == []
    assert copies(run.parent) == [copy.name]


def test_a_file_that_is_gone_or_new_is_a_change_and_another_pythons_compiled_one_is_none(
    sources, tmp_path
):
    run = tmp_path / "runs" / "a"
    copy = snapshots.take_code(run, [run], False, {})
    (copy / "hpc_stres" / "__pycache__").chmod(0o755)
    (copy / "hpc_stres" / "__pycache__" / "layout.cpython-399.pyc").touch()
    assert snapshots.changes_in(copy) == []
    (copy / "hpc_stres").chmod(0o755)
    (copy / "hpc_stres" / "new.py").touch()
    assert snapshots.changes_in(copy)[0] == "hpc_stres/new.py is new"
    (copy / "hpc_stres" / "new.py").unlink()
    (copy / "hpc_stres" / "errors.py").unlink()
    assert snapshots.changes_in(copy)[0] == "hpc_stres/errors.py is gone"


def test_nothing_but_code_is_copied_and_no_more_than_the_limit(sources, tmp_path, monkeypatch):
    for name in (".env", "id_rsa", "weights.pth", ".hidden.yaml", "notes.md"):
        (sources / "hpc_stres" / name).write_text("secret")
    (sources / "configs" / "gone.yaml").symlink_to(sources / "nowhere")
    os.mkfifo(sources / "configs" / "pipe.yaml")
    run = tmp_path / "runs" / "a"
    copy = snapshots.take_code(run, [run], False, {})
    files = {p.relative_to(copy).as_posix() for p in copy.rglob("*") if p.is_file()}
    assert {name for name in files if "__pycache__" not in name} == {
        "configs/one.yaml", "files.json", *(f"hpc_stres/{name}" for name in KEPT)
    }  # fmt: skip
    assert [
        p for p in copy.rglob("*") if b"secret" in (p.read_bytes() if p.is_file() else b"")
    ] == []
    (sources / "configs" / "videos.yaml").write_bytes(b"x" * 3_000_000)
    monkeypatch.setattr(snapshots, "MOST_BYTES", 2 << 20)
    with pytest.raises(UserError, match=r"2\.0 MiB at most(.|\n)*videos\.yaml \(2\.9 MiB\)"):
        snapshots.take_code(run, [run], False, {})
    assert copies(run.parent) == [copy.name]


def test_an_installed_package_is_copied_from_among_others(sources, tmp_path, monkeypatch):
    """As pip installs it: configs inside the package, and other packages beside it; no git."""
    (sources / "hpc_stres" / "configs").mkdir()
    (sources / "hpc_stres" / "configs" / "own.yaml").write_text("seed: 3\n")
    (sources / "numpy").mkdir()
    (sources / "numpy" / "__init__.py").touch()
    monkeypatch.setattr(snapshots, "CONFIGS", sources / "hpc_stres" / "configs")
    run = tmp_path / "runs" / "räume mit raum, 12%" / "a"
    copy = snapshots.take_code(run, [run], False, {})
    files = {p.relative_to(copy).as_posix() for p in copy.rglob("*.*") if p.is_file()}
    assert {name for name in files if "__pycache__" not in name} == {
        "hpc_stres/configs/own.yaml", "files.json", *(f"hpc_stres/{name}" for name in KEPT)
    }  # fmt: skip
    monkeypatch.setattr(snapshots, "SOURCES", copy)
    monkeypatch.setattr(snapshots, "CONFIGS", copy / "hpc_stres" / "configs")
    snapshots.refuse_changed_copy(copy)


def _take(place):
    return snapshots.take_code(place, [place], False, {})


def test_many_submits_at_once_make_one_whole_copy(sources, tmp_path):
    runs = [tmp_path / "runs" / f"run{number}" for number in range(6)]
    with multiprocessing.get_context("fork").Pool(6) as pool:
        places = pool.map(_take, runs, chunksize=1)
    assert len(set(places)) == 1
    assert snapshots.changes_in(places[0]) == []
    assert copies(tmp_path / "runs") == [places[0].name]


def test_where_somebody_else_began_the_copies_a_run_has_its_own(sources, tmp_path, monkeypatch):
    """Two users of one folder of runs."""
    runs = tmp_path / "runs"
    first = snapshots.take_code(runs / "a", [runs / "a"], False, {})
    theirs = {runs / ".code": os.W_OK, runs / ".code" / "lock": os.W_OK}
    for place in theirs:
        with monkeypatch.context() as other_user:
            may = lambda path, mode, place=place: path != place  # noqa: E731
            other_user.setattr(os, "access", may)
            own = snapshots.take_code(runs / "b", [runs / "b"], False, {})
        assert own == runs / "b" / ".code" / first.name
    assert snapshots.copies_folder(runs / "b") == runs / ".code"


def test_places_that_jobs_cannot_import_from_are_refused(sources, tmp_path, monkeypatch):
    with pytest.raises(ConfigError, match="PYTHONPATH cannot hold a name with ':'"):
        _take(tmp_path / "at 12:30" / "run")
    assert _take(tmp_path / "runs" / "at 12:30").parent == tmp_path / "runs" / ".code"
    monkeypatch.setattr(snapshots, "SOURCES", tmp_path / "package.zip")
    with pytest.raises(ConfigError, match="no folder of files"):
        _take(tmp_path / "runs" / "b")


def test_copies_that_no_run_names_are_removed(sources, tmp_path, capsys):
    runs = tmp_path / "runs"
    old, kept = runs / "old", runs / "group" / "seed1"
    first = snapshots.take_code(old, [old], False, {})
    change(sources)
    second = snapshots.take_code(runs / "group", [kept], False, {})
    shutil.rmtree(old)
    snapshots.remove_old_code(runs)
    assert copies(runs) == [second.name]
    assert str(first) in capsys.readouterr().out
    (kept / "code.json").write_text("{")
    with pytest.raises(UserError, match="Nothing was removed"):
        snapshots.remove_old_code(runs)
    assert copies(runs) == [second.name]
    with pytest.raises(ConfigError, match=r"no folder \.code"):
        snapshots.remove_old_code(tmp_path)


def test_where_nothing_may_be_written_beside_a_run_the_copy_is_in_it(tmp_path, monkeypatch):
    monkeypatch.setattr(os, "access", lambda path, mode: path != tmp_path)
    assert snapshots.copies_folder(tmp_path / "run") == tmp_path / "run" / ".code"


def test_the_scripts_of_a_submission_import_from_the_copy(fake, request_of, sources, tmp_path):
    request = request_of()
    submit(request)
    copy = tmp_path / ".code" / copies(tmp_path)[0]
    text = next((request.run_dir / "logs" / "motion").glob("*_submission.sh")).read_text()
    assert f"export PYTHONPATH={copy}${{PYTHONPATH:+" in text
    assert "export PYTHONSAFEPATH=1" in text
    change(sources)
    submit(request)  # nothing is submitted, so nothing is asked
    for job in fake.jobs.values():
        job["state"] = "FAILED"
    with pytest.raises(UserError, match="this run is of other code"):
        submit(request)
    submit(dataclasses.replace(request, adopt_code=True))
    assert len(copies(tmp_path)) == 2


def test_python_started_in_a_checkout_finds_the_copy_all_the_same(sources, tmp_path):
    run = tmp_path / "runs" / "a"
    copy = snapshots.take_code(run, [run], False, {})
    change(sources)
    environment = {**os.environ, "PYTHONPATH": str(copy), "PYTHONSAFEPATH": "1"}
    words = [sys.executable, "-m", "hpc_stres.layout"]
    show = [sys.executable, "-c", "import hpc_stres.layout as l; print(l.__file__)"]
    said = subprocess.run(
        show, cwd=sources, env=environment, capture_output=True, text=True, check=True
    )
    assert said.stdout.strip() == str(copy / "hpc_stres" / "layout.py")
    assert subprocess.run(words, cwd=sources, env=environment, check=False).returncode == 0
