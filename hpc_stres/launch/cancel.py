"""Ending a whole run: all its jobs in the queue, or the submit that runs it on this machine."""

import contextlib
import fcntl
import os
import re
import shutil
import signal
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from hpc_stres.config.cluster import ClusterConfig
from hpc_stres.config.loading import load_resolved
from hpc_stres.errors import ConfigError, UserError
from hpc_stres.launch import scheduler
from hpc_stres.launch.chain import SUBMIT_PATIENCE_SECONDS, locked, sbatch_lock
from hpc_stres.launch.journal import Journal
from hpc_stres.launch.scheduler import Row, Token
from hpc_stres.launch.survey import fates_of, inherited_lock, rows_of_folder, settle
from hpc_stres.run.paths import RunPaths, read_json, runs_together

GONE_PATIENCE_SECONDS = 60.0
LOCAL_PATIENCE_SECONDS = 60.0


def cancel_run(run_dir: Path) -> None:
    """End everything of a run, also of the splits in a folder that `--split all` was given; says
    what it ended."""
    folders = [folder for folder in (run_dir, *runs_together(run_dir)) if _is_run(folder)]
    if not folders:
        raise ConfigError(
            f"{run_dir}: this is no run folder: it has neither config.yaml nor jobs.json"
        )
    ended = sum(cancel_folder(folder) for folder in folders)
    if not ended:
        print(f"{run_dir}: nothing to cancel: no job of this run waits or runs")


def _is_run(folder: Path) -> bool:
    paths = RunPaths(folder)
    return paths.config.exists() or paths.jobs.exists() or paths.lock.exists()


def cancel_folder(run_dir: Path) -> int:
    """End the jobs of one folder; returns how many."""
    ended = _end_local_run(run_dir)
    if not RunPaths(run_dir).jobs.exists() and (
        _runs_locally(run_dir) or not shutil.which("squeue")
    ):
        return ended
    if shutil.which("squeue") is None:
        raise ConfigError(
            f"{run_dir}: its jobs are on Slurm, and there is no squeue on this machine"
        )
    with (
        locked(run_dir, SUBMIT_PATIENCE_SECONDS),
        inherited_lock(sbatch_lock(run_dir), SUBMIT_PATIENCE_SECONDS),
    ):
        return ended + _cancel_jobs(run_dir)


def _cancel_jobs(run_dir: Path) -> int:
    seconds = _seconds(run_dir)
    journal, damage = _journal(run_dir)
    rows = scheduler.look(seconds)
    if journal is not None and journal.asked is not None:
        rows = settle(journal, rows, seconds, [])
    mine = _mine(run_dir, rows, journal, seconds)
    names = {row.number: row.token.phase if row.token else "?" for row in mine}
    if mine:
        scheduler.cancel(names, seconds)
        left = scheduler.wait_until_gone(names, seconds, GONE_PATIENCE_SECONDS)
        if left:
            numbers = ", ".join(f"{row.number} ({row.state.lower()})" for row in left)
            raise UserError(
                f"{run_dir}: cancelled, but still in the queue: {numbers}\nCancel again, or ask squeue."
            )
        for number, name in sorted(names.items(), key=lambda item: scheduler.order(item[0])):
            print(f"  {name:<16} job {number} cancelled")
    if damage is not None:
        text = str(damage).splitlines()[0]
        print(
            f"{text}\n  its jobs were found by this folder's mark in the queue; move that file away to submit again"
        )
    return len(mine)


def _mine(run_dir: Path, rows: Sequence[Row], journal: Journal | None, seconds: float) -> list[Row]:
    """Jobs of the queue that are this run's, by their marks and by their ids. One that the journal
    knows and squeue does not list is asked for elsewhere: it is not taken for gone."""
    mine = rows_of_folder(run_dir, list(rows), journal.run if journal is not None else "")
    if journal is None:
        return mine
    by_number, marked = {row.number: row for row in rows}, {row.number for row in mine}
    for name, job in journal.jobs.items():
        for number, row in fates_of(job, by_number, seconds).items():
            if number not in marked and (row.is_alive or row.never_starts):
                mine.append(replace(row, token=Token(journal.run, name, 0, 0)))
    return mine


def _journal(run_dir: Path) -> tuple[Journal | None, UserError | None]:
    """The folder's journal; where it is damaged, its jobs are found in the queue by the folder's
    mark alone."""
    try:
        return Journal.read(run_dir), None
    except UserError as error:
        return None, error


def _seconds(run_dir: Path) -> float:
    for folder in (run_dir, *runs_together(run_dir)):
        path = RunPaths(folder).config
        with contextlib.suppress(UserError):
            if path.is_file():
                return load_resolved(path).cluster.scheduler_seconds
    return ClusterConfig().scheduler_seconds


def _end_local_run(run_dir: Path) -> int:
    """Interrupt a submit that runs this folder's phases as processes of this machine; its phases
    are kept."""
    path = RunPaths(run_dir).lock
    owner = read_json(path)
    if not owner or _is_free(path) or not _runs_locally(run_dir):
        return 0
    host, pid = owner.get("host"), owner.get("process")
    if host != os.uname().nodename or not isinstance(pid, int):
        raise UserError(
            f"{run_dir}: this run is at work in process {pid} on {host}\nCancel it there."
        )
    if not _is_submit(pid):
        raise UserError(
            f"{run_dir}: its lock is held by process {pid}, which is no submit.py\nEnd that by hand."
        )
    os.kill(pid, signal.SIGINT)
    deadline = time.monotonic() + LOCAL_PATIENCE_SECONDS
    while not _is_free(path):
        if time.monotonic() >= deadline:
            raise UserError(
                f"{run_dir}: process {pid} was interrupted and has not ended yet\nCancel again, or end it."
            )
        time.sleep(0.2)
    print(f"  the submit that ran on this machine (process {pid}) has ended; what is done is kept")
    return 1


def _runs_locally(run_dir: Path) -> bool:
    path = RunPaths(run_dir).config
    return path.is_file() and load_resolved(path).cluster.scheduler == "local"


def _is_submit(pid: int) -> bool:
    try:
        words = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
    except OSError:
        return False
    return any(re.search(rb"(^|/)(submit(\.py)?|demo|ablate)$", word) for word in words)


def _is_free(path: Path) -> bool:
    """Whether no process that this machine knows of holds a lock."""
    with path.open("a+") as stream:
        try:
            fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        except OSError:
            return _gone(read_json(path))
    return True


def _gone(owner: dict[str, Any]) -> bool:
    return not Path(f"/proc/{owner.get('process')}").exists()
