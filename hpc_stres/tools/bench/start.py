"""Seconds from a command to its first answer: what a person waits for, and what every job
of a chain pays."""

import os
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

from hpc_stres.config.loading import CONFIGS
from hpc_stres.tools.bench.figures import Figure, interleaved, judged

ANSWER_S = 1.0


def bench_start(threads: int, repeats: int) -> list[Figure]:
    """--help, the resolved config, and a training of one step of the demonstration's smallest
    phase, beside a bare interpreter and torch alone: seconds that the commands took a core, which
    other work on the machine does not change.
    """
    with tempfile.TemporaryDirectory() as folder:
        settings = ["--config", str(CONFIGS / "binding.yaml"), "--set", f"data.root={folder}"]
        words = {
            "a bare interpreter": ["-c", "pass"],
            "hpc-stres --help": ["-m", "hpc_stres", "--help"],
            "hpc-stres config": ["-m", "hpc_stres", "config", *settings],
            "import torch": ["-c", "import torch"],
        }
        _run(["-m", "hpc_stres", "prepare", *settings, *_few_videos()])
        timings = interleaved(
            repeats, *(_runner(arguments) for arguments in words.values()), clock=_children_s
        )
        figures = [
            Figure("start", name, timing.median_s, "s", spread=timing.spread)
            for name, timing in zip(words, timings, strict=True)
        ]
        (timing,) = interleaved(
            2, _one_step(Path(folder), [*settings, *_few_videos()]), clock=_children_s
        )
    first = Figure(
        "start", "hpc-stres train, one step, end to end", timing.median_s, "s", spread=timing.spread
    )
    return [
        figures[0],
        judged(figures[1], ANSWER_S),
        judged(figures[2], ANSWER_S),
        figures[3],
        first,
    ]


def _children_s() -> float:
    """Seconds on a core of all commands that have ended."""
    times = os.times()
    return times.children_user + times.children_system


def _few_videos() -> list[str]:
    few = ("data.binding.train_videos=32", "data.binding.test_videos=8")
    return [word for one in few for word in ("--set", one)]


def _runner(arguments: list[str]) -> Callable[[], None]:
    return lambda: _run(arguments)


def _run(arguments: list[str]) -> None:
    subprocess.run([sys.executable, *arguments], check=True, capture_output=True)


def _one_step(folder: Path, settings: list[str]) -> Callable[[], None]:
    turn = iter(range(1000))

    def train() -> None:
        run_dir = folder / f"run{next(turn)}"  # a finished phase is not trained again
        changes = ["--set", "training.max_steps=1", "--set", "training.engine=ddp"]
        _run(
            [
                "-m",
                "hpc_stres",
                "train",
                *settings,
                *changes,
                "--phase",
                "motion",
                "--run-dir",
                str(run_dir),
            ]
        )

    return train
