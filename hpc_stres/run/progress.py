"""One progress line for a person who watches; a plain line now and then where
there is no terminal."""

import os
import shutil
import sys
import time
from pathlib import Path
from types import TracebackType

from hpc_stres.run.paths import write_json

PLAIN_INTERVAL_SECONDS = 10.0
FILE_INTERVAL_SECONDS = 0.5


class Progress:
    """`with Progress("prepare", total, "videos") as p: p.update(done, "loss 1.2")`."""

    def __init__(
        self, title: str, total: int, unit: str, enabled: bool = True, done: int = 0
    ) -> None:
        self.title, self.total, self.unit, self.enabled = title, total, unit, enabled
        self.first, self.started = done, time.monotonic()
        self.last_line = 0.0
        self.terminal = sys.stderr.isatty()
        # A launcher that watches names a file to write the same to.
        self.file = (
            Path(os.environ["HPC_STRES_PROGRESS"]) if "HPC_STRES_PROGRESS" in os.environ else None
        )
        self.last_file = 0.0

    def __enter__(self) -> "Progress":
        return self

    def update(self, done: int, note: str = "") -> None:
        """Show `done` of the total and a note."""
        if not self.enabled:
            return
        now = time.monotonic()
        if self.file is not None and (
            now - self.last_file >= FILE_INTERVAL_SECONDS or done >= self.total
        ):
            self.last_file = now
            line = self.line(done, note, now - self.started)
            row = {
                "done": done,
                "total": self.total,
                "first": self.first,
                "seconds": now - self.started,
            }
            write_json(self.file, {**row, "note": note, "line": line, "time": time.time()})
        interval = 0.1 if self.terminal else PLAIN_INTERVAL_SECONDS
        if now - self.last_line < interval and done < self.total:
            return
        self.last_line = now
        line = self.line(done, note, now - self.started)
        if self.terminal:
            # A line that wraps could not be drawn over again.
            line = line[: shutil.get_terminal_size().columns - 1]
        print(
            f"\r\x1b[2K{line}" if self.terminal else line,
            end="" if self.terminal else "\n",
            file=sys.stderr,
            flush=True,
        )

    def line(self, done: int, note: str, seconds: float) -> str:
        """The text of one update, by tqdm."""
        from tqdm import tqdm

        meter = tqdm.format_meter(
            done,
            self.total,
            seconds,
            prefix=f"{self.title:<16}",
            unit=f" {self.unit}",
            initial=self.first,
            bar_format="{desc} {n_fmt:>6}/{total_fmt} {percentage:3.0f}%  {rate_noinv_fmt}, {remaining} left",
        )
        return f"{meter}  {note}".rstrip()

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self.enabled and self.terminal:
            print(file=sys.stderr)


def duration(seconds: float) -> str:
    """Seconds as 4:07 or 2:03:09."""
    whole = round(seconds)
    hours, minutes = whole // 3600, whole // 60 % 60
    return f"{hours}:{minutes:02d}:{whole % 60:02d}" if hours else f"{minutes}:{whole % 60:02d}"
