"""Faults that need whole programs: another home, locale and working folder; a launcher that is killed."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import psutil

from tests.campaign.children import End
from tests.campaign.experiments import Workshop
from tests.campaign.judge import CRASHED, Failure, last_words
from tests.campaign.plan import Experiment

ROOT = Path(__file__).resolve().parent.parent.parent
LIMIT_SECONDS = 400.0
# Processes of a launcher that was killed end by themselves within so long.
ORPHANS_SECONDS = 60.0


def _environment(**more: str) -> dict[str, str]:
    kept = {k: v for k, v in os.environ.items() if k not in ("LD_PRELOAD", "CAMPAIGN_LOADED")}
    return {**kept, "PYTHONPATH": str(ROOT), **more}


def train_elsewhere(
    shop: Workshop, experiment: Experiment, root: Path, run_dir: Path, fault: dict[str, Any]
) -> End:
    """The experiment's command as a program of its own in an odd place."""
    words = [sys.executable, "-m", "hpc_stres", *shop.argv(experiment, root, run_dir)]
    environment = _environment(
        LC_ALL=fault["locale"], HOME=fault["home"], PYTHONUTF8="", XDG_CACHE_HOME=str(root.parent / "cache"),
    )  # fmt: skip
    if not fault["home"]:
        del environment["HOME"], environment["XDG_CACHE_HOME"]
    folder = fault["folder"]
    if folder == "removed":
        gone, folder = root.parent / "gone", "/"
        gone.mkdir()
        words = ["sh", "-c", 'cd "$0" && rmdir "$0" && exec "$@"', str(gone), *words]
    started = time.monotonic()
    done = subprocess.run(
        words, env=environment, cwd=folder, umask=fault["umask"], capture_output=True, text=True,
        errors="replace", timeout=LIMIT_SECONDS, check=False,
    )  # fmt: skip
    return End([done.returncode], done.stdout + done.stderr, seconds=time.monotonic() - started)


def _has_come(sign: str, run_dir: Path, phase: str) -> bool:
    """Whether a run is so far as its sign says."""
    of_phase = run_dir / "phases" / phase
    signs = {
        "config": run_dir / "config.yaml", "logs": run_dir / "logs", "heartbeat": of_phase / "heartbeat",
        "latest": of_phase / "checkpoints" / "latest", "done": of_phase / "done.json", "scores": run_dir / "scores",
    }  # fmt: skip
    return signs[sign].exists()


def kill_launcher(
    shop: Workshop, experiment: Experiment, root: Path, run_dir: Path, sign: str
) -> None:
    """Start the launcher, kill it at a sign, wait for the end of what it started, and start it again."""
    words = [
        sys.executable, "launch/submit.py", "--config", shop.argv(experiment, root, run_dir)[2], "--phase",
        experiment.phase, "--cluster", "local", "--run-dir", str(run_dir), *shop.settings(experiment, root),
    ]  # fmt: skip
    output = shop.base / "outputs" / "launcher.txt"
    output.parent.mkdir(exist_ok=True)
    with output.open("w") as stream:
        process = subprocess.Popen(
            words, env=_environment(), cwd=ROOT, stdout=stream, stderr=subprocess.STDOUT,
            start_new_session=True,
        )  # fmt: skip
        deadline = time.monotonic() + LIMIT_SECONDS
        while process.poll() is None and not _has_come(sign, run_dir, experiment.phase):
            if time.monotonic() > deadline:
                process.kill()
                raise Failure(CRASHED, f"the launcher never came to {sign}")
            time.sleep(0.05)
        family = _family(process.pid)
        process.send_signal(signal.SIGKILL)
        process.wait()
    _, left = psutil.wait_procs(family, timeout=ORPHANS_SECONDS)
    for orphan in left:
        orphan.kill()
    if left:
        raise Failure(CRASHED, f"the launcher was killed, but {len(left)} of its processes ran on")
    again = subprocess.run(
        words, env=_environment(), cwd=ROOT, capture_output=True, text=True, errors="replace",
        timeout=LIMIT_SECONDS, check=False,
    )  # fmt: skip
    if again.returncode != 0:
        words_said = last_words(again.stdout + again.stderr)
        raise Failure(CRASHED, f"after {sign} the same submit failed: {words_said}")


def _family(pid: int) -> list[psutil.Process]:
    try:
        return psutil.Process(pid).children(recursive=True)
    except psutil.NoSuchProcess:
        return []
