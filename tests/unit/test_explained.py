"""What no command expected is told in a sentence: what the machine lacks or refuses, and where."""

import errno
import threading
from pathlib import Path

import pytest

from hpc_stres import errors
from hpc_stres.launch import status, submit
from hpc_stres.run.paths import PhasePaths, naming
from hpc_stres.training.metrics import MetricsLog, _leave_to_the_caller
from tests.conftest import run_python

# Commands that write where the first argument says, as a script of a checkout and as a command.
STARTS = {
    "submit.py": ["launch/submit.py", "--phase", "motion", "--run-dir"],
    "status.py": ["launch/status.py"],
    "hpc-stres export": ["-m", "hpc_stres", "export", "--run-dir", "/nothing", "--out"],
}


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (OSError(errno.EROFS, "Read-only file system", "/run/x"), "/run/x: cannot be read or written: Read-only"),
        (OSError(errno.EMFILE, "Too many open files", "/run/x"), "/run/x: this process gets no more memory, threads"),
        (OSError(errno.EMFILE, "Too many open files"), "this process gets no more memory, threads or open files: "),
        (MemoryError(), "this process gets no more memory, threads or open files: MemoryError"),
        (RuntimeError("can't start new thread"), "open files: can't start new thread"),
        (RuntimeError("[enforce fail at alloc_cpu.cpp] DefaultCPUAllocator: can't allocate memory"), "alloc_cpu"),
        (KeyError("x"), "unexpected KeyError: 'x'\nAdd --debug"),
        (OSError("no number, no name"), "unexpected OSError: no number, no name"),
    ],
)  # fmt: skip
def test_what_nobody_expected_is_told_in_a_sentence(error, said):
    told = errors.explained(error)
    assert said in str(told)
    assert told.code == 1
    assert len(str(told).splitlines()) == 2


def test_a_rank_that_is_gone_is_told_from_a_program_that_is_wrong():
    from torch.distributed import DistNetworkError

    assert "another rank is gone: reset by peer" in str(
        errors.explained(DistNetworkError("reset by peer"))
    )
    assert "unexpected RuntimeError" in str(
        errors.explained(RuntimeError("shapes cannot be multiplied"))
    )


@pytest.mark.parametrize("name", STARTS)
def test_a_folder_that_cannot_be_made_costs_a_sentence(name, tmp_path):
    """Under a file there can be no folder, whoever asks."""
    (tmp_path / "file").touch()
    done = run_python(*STARTS[name], str(tmp_path / "file" / "run"))
    assert done.returncode in (1, 2), done.stderr
    assert done.stderr.startswith(f"{name}: "), done.stderr
    assert str(tmp_path / "file") in done.stderr
    assert len(done.stderr.splitlines()) <= 3


@pytest.mark.parametrize("module", [submit, status])
def test_the_scripts_of_a_checkout_tell_it_as_the_commands_do(module, monkeypatch, capsys):
    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device", "/run/jobs.json")

    monkeypatch.setattr(module, "run", full)
    assert module.main(["run"] if module is status else []) == 1
    assert "/run/jobs.json: cannot be read or written: No space" in capsys.readouterr().err
    with pytest.raises(OSError, match="No space"):
        module.main(["run", "--debug"] if module is status else ["--debug"])


@pytest.mark.parametrize("name", [None, b"/run/x", "/run/x"])
def test_an_error_has_a_name_that_can_be_shown(name):
    with pytest.raises(OSError, match="Read-only") as error, naming(Path("/run/x")):
        raise OSError(errno.EROFS, "Read-only file system", name)
    assert error.value.filename == "/run/x"


def test_a_failure_of_tensorboards_thread_is_left_to_who_called_it(capsys):
    shown = []
    hook = _leave_to_the_caller(shown.append)
    assert _leave_to_the_caller(hook) is hook, "once is enough"
    event_file_writer = pytest.importorskip("tensorboard.summary.writer.event_file_writer")
    thread = event_file_writer._AsyncWriterThread(None, None, 1)

    def raised(error, of):
        return threading.ExceptHookArgs((type(error), error, None, of))

    hook(raised(OSError(errno.ENOSPC, "full"), thread))
    assert shown == []
    others = [raised(ValueError("wrong"), thread), raised(OSError("x"), threading.Thread())]
    for other in others:
        hook(other)
    assert shown == others


def test_events_on_a_full_disk_are_an_error_with_their_name_and_no_traceback_of_a_thread(
    tmp_path, monkeypatch
):
    shown = []
    monkeypatch.setattr(threading, "excepthook", shown.append)
    log = MetricsLog(PhasePaths(tmp_path), 0)
    log.write({"step": 1, "loss": 1.0})
    log.events.flush()
    (events,) = (tmp_path / "events").iterdir()
    events.unlink()
    events.symlink_to("/dev/full")
    log.write({"step": 2, "loss": 1.0})
    with pytest.raises(OSError, match="No space left"):
        log.events.flush()
    with pytest.raises(OSError, match="No space left") as error:
        log.write({"step": 3, "loss": 1.0})
    assert str(tmp_path / "events") in str(error.value)
    for writer in log.events.all_writers.values():
        writer.event_writer._async_writer._worker.join()
    assert shown == []
    log.stream.close()


@pytest.mark.parametrize(
    ("error", "is_remembered"),
    [
        (PermissionError(errno.EACCES, "Permission denied", "/data/a.avi"), False),
        (OSError(errno.ESTALE, "Stale file handle"), False),
        (ValueError("Invalid data found"), True),
    ],
)
def test_what_the_machine_refuses_once_is_not_remembered_of_a_video(
    error, is_remembered, monkeypatch
):
    """A read that fails in the middle of a video is tried again by the next prepare."""
    from hpc_stres.prepare import worker_tasks
    from hpc_stres.prepare.video import UndecodableError, reason_of

    def refuse(*_):
        raise UndecodableError(f"{reason_of(error)} (after 13 frames)")

    rejected = []
    monkeypatch.setattr(worker_tasks.fingerprint, "stamp_of", lambda *_: "stamp")
    monkeypatch.setattr(worker_tasks.fingerprint, "content_of", lambda *_: "content")
    monkeypatch.setattr(worker_tasks.imports, "prepare_one", refuse)
    monkeypatch.setattr(worker_tasks, "_reject", lambda *told: rejected.append(told[2:5]))
    assert worker_tasks._prepare_steadily(None, None, None, None) == 0
    ((reason, source, stamp),) = rejected
    assert "after 13 frames" in reason
    assert (source, stamp) == (
        ("content", "stamp") if is_remembered else (worker_tasks.UNKNOWN, None)
    )
