"""What is left of a training that stood still: stacks and flight records of its ranks,
told in three lines.

Each rank's stack is in `stall/rankNNNNN.txt`. A rank that hangs writes it by a timer of the
interpreter, which needs nothing of the hanging code; one that waited for it writes it when its
patience is over. Pure, no torch: the ranks summarise it, and where none of them is left, the
job's own script.
"""

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from hpc_stres.run.paths import PhasePaths, read_json, write_text

FRAME = re.compile(r'  File "(?P<file>[^"]+)", line (?P<line>\d+) in (?P<function>.+)')
MOST_NAMED = 6


@dataclass(frozen=True)
class Stall:
    """Ranks that did not arrive, their nodes, and where the first of them is."""

    late: tuple[int, ...]
    nodes: tuple[str, ...]
    place: str
    waiting: tuple[int, ...]
    step: int

    @property
    def named(self) -> str:
        """`rank 2 on n3`, for all that are late."""
        shown = [f"rank {r} on {n}" for r, n in zip(self.late, self.nodes, strict=True)][
            :MOST_NAMED
        ]
        more = len(self.late) - len(shown)
        return ", ".join(shown) + (f" and {more} more" if more else "")


def frames(text: str) -> list[tuple[str, bool]]:
    """Frames of the main thread, innermost first, of what faulthandler wrote:
    `function (file:line)`, and whether it is of this package."""
    blocks = re.split(r"\n(?=(?:Current thread|Thread) 0x)", text)
    # The main thread is written last; the first that knows the loop is surer.
    chosen = next((b for b in blocks if " in train\n" in b or b.endswith(" in train")), blocks[-1])
    return [
        (
            f"{match['function'].strip()} ({'/'.join(Path(match['file']).parts[-2:])}:{match['line']})",
            "hpc_stres" in Path(match["file"]).parts,
        )
        for match in map(FRAME.match, chosen.splitlines())
        if match
    ]


def where(paths: PhasePaths, rank: int) -> str:
    """The innermost call of a rank, and the innermost one of this package's own code."""
    try:
        text = paths.stack(rank).read_text(encoding="utf-8", errors="replace")
    except OSError:
        text = ""
    calls = frames(text)
    if not calls:
        return "left no stack: its process is stopped, or gone with its node"
    inner, is_own = calls[0]
    caller = "" if is_own else next((text for text, own in calls if own), "")
    return f"was in {inner}" + (f", called from {caller}" if caller else "")


def examine(paths: PhasePaths, world_size: int, waiting_word: str) -> Stall | None:
    """Who is late, by the heartbeats: ranks that waited say so. None where all
    wait, or none does."""
    beats = [read_json(paths.heartbeat(rank)) for rank in range(world_size)]
    waiting = tuple(r for r, beat in enumerate(beats) if beat.get("where") == waiting_word)
    late = tuple(r for r in range(world_size) if r not in waiting)
    if not waiting or not late:
        return None
    nodes = tuple(
        str(beats[r].get("node") or beats[r].get("host") or "an unknown node") for r in late
    )
    step = max(int(beats[r].get("step", 0)) for r in waiting)
    return Stall(late, nodes, where(paths, late[0]), waiting, step)


def summary(phase: str, paths: PhasePaths, stall: Stall, minutes: float) -> list[str]:
    """The three lines."""
    count = len(stall.waiting)
    return [
        f"{phase}: ranks {list(stall.late)} did not arrive at step {stall.step + 1} within {minutes:g} min: "
        f"{stall.named}; {count} {'rank' if count == 1 else 'ranks'} waited",
        f"rank {stall.late[0]} {stall.place}",
        f"stacks and flight records of the ranks: {paths.stall}",
    ]


def write_summary(paths: PhasePaths, lines: Sequence[str]) -> None:
    """For whoever looks at the folder later."""
    write_text(paths.stall / "summary.txt", "\n".join(lines) + "\n")


def flight_text(record: object) -> str:
    """A flight record as text."""
    return record if isinstance(record, str) else json.dumps(record, default=str)
