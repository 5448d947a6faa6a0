"""What all ranks have read since step 0, in one number that no layout changes.

Each position of each step has a mark of 64 bits; the trail is their sum. A rank adds up the marks
of what it reads, and the ranks' sums are added when the trail is written down: with the metrics, in
a checkpoint, in done.json.
"""

from collections.abc import Iterable
from typing import Any

import torch
import torch.distributed as dist

from hpc_stres.data.requests import MARK_BITS, Request, total

# Sums travel in pieces that a float64 adds exactly over as many ranks as there can be.
PIECE_BITS = 16
PIECES = MARK_BITS // PIECE_BITS


class Trail:
    """One rank's part of the trail. The feed's thread adds to it, some steps ahead
    of the training."""

    def __init__(self, step: int = 0, text: str = "") -> None:
        """Resume after a step, from what its checkpoint says of all ranks."""
        self._before, self._mine = int(text or "0", 16), 0
        self._after_step = {step: 0}

    def add(self, step: int, requests: Iterable[Request]) -> None:
        """This rank reads these positions of a step."""
        self._mine = (self._mine + total(step, requests)) % (1 << MARK_BITS)
        self._after_step[step + 1] = self._mine

    def after(self, step: int, group: Any) -> str:
        """The trail after so many steps, of all ranks of a group; every one of them must ask."""
        sums = torch.tensor(self.pieces(step), dtype=torch.float64)
        dist.all_reduce(sums, group=group)
        return self.joined(sums.tolist())

    def pieces(self, step: int) -> list[float]:
        """This rank's sum after a step, in numbers that may be added to other ranks'. No earlier
        step is asked for again: a long phase keeps no number for each of its steps."""
        mine = self._after_step[step]
        for old in [number for number in list(self._after_step) if number < step]:
            del self._after_step[old]
        mask = (1 << PIECE_BITS) - 1
        return [float(mine >> PIECE_BITS * n & mask) for n in range(PIECES)]

    def joined(self, sums: list[float]) -> str:
        """The text of all ranks' added pieces, and of what lies before this run."""
        everyone = sum(int(piece) << PIECE_BITS * n for n, piece in enumerate(sums))
        return f"{(self._before + everyone) % (1 << MARK_BITS):016x}"
