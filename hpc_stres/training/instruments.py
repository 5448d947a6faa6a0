"""What watches a training while it runs: the time of its steps, of their parts on every rank, and
whether they go on.

The loop says what it does in one word each (`waiting`, `began`, `forward_done`, ...); everything
that is made of it comes out of `times`, at the steps at which a row of metrics is written.
"""

import sys
import time
from collections.abc import Iterator
from types import TracebackType
from typing import Any, TypeVar

from hpc_stres.run.bad_nodes import accuse, node_name
from hpc_stres.run.waits import Waits
from hpc_stres.training import timing
from hpc_stres.training.stall import StallWatch

Item = TypeVar("Item")


class Instruments:
    """One rank's; `with Instruments(trainer) as clock`."""

    def __init__(self, trainer: Any) -> None:
        self.trainer = trainer
        self.lap_start = self.step_start = time.monotonic()
        self.waited_s, self.waited_in_step_s, self.steps = 0.0, 0.0, 0
        self.mark: Any = None
        self.is_in_step = False
        self.waited_before = 0.0
        videos = sum(len(share.positions) for share in trainer.layout.shares[trainer.world.rank])
        self.rank_clock = timing.RankClock(trainer.device, trainer.model, videos)
        self.is_alone = trainer.world.size == 1
        nodes = [node_name()] if self.is_alone else timing.gather_nodes(trainer.control)
        self.stragglers = timing.Stragglers(nodes)
        self.watch = StallWatch(
            trainer.paths, trainer.world.rank, trainer.config.training.start_timeout_minutes
        )

    def __enter__(self) -> "Instruments":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.rank_clock.close()
        self.watch.close()

    # -- what the loop says ------------------------------------------------------------------------

    def waiting(self, feed: Iterator[Item]) -> Item:
        """Take the next item and count the wait; the first one of a step begins it."""
        if not self.is_in_step:
            self.is_in_step = True
            self.rank_clock.begin_step()
        started = time.monotonic()
        item = next(feed)
        seconds = time.monotonic() - started
        self.waited_s += seconds
        self.waited_in_step_s += seconds
        return item

    def began(self) -> None:
        """A forward pass, or the engine's step, begins."""
        self.mark, self.waited_before = self.rank_clock.mark(), Waits.seconds

    def forward_done(self) -> None:
        """The forward pass and the loss are there; the backward pass begins."""
        self.mark = self.rank_clock.forward(self.mark, self.waited_before)
        self.waited_before = Waits.seconds

    def backward_done(self, last: bool) -> None:
        """A micro-step is done; after the last one all ranks have waited for each other."""
        self.rank_clock.backward(self.mark, self.waited_before, last)

    def step(self) -> float:
        """Seconds of the step that ends now."""
        self.rank_clock.step(self.mark, self.waited_in_step_s)
        self.waited_in_step_s, self.is_in_step = 0.0, False
        self.watch.alive()
        now = time.monotonic()
        seconds, self.step_start = now - self.step_start, now
        self.steps += 1
        return seconds

    def first_step_done(self) -> None:
        """What was slow at the start is over."""
        self.watch.patience(self.trainer.config.training.step_timeout_minutes)

    def saved(self, seconds: float) -> None:
        """Training stood still for a checkpoint."""
        self.rank_clock.saved(seconds)

    def restart(self) -> None:
        """Count from now on: what was done since the last lap was no training."""
        self.lap()
        self.step_start = self.lap_start
        self.watch.alive()

    # -- what comes of it --------------------------------------------------------------------------

    def lap(self) -> tuple[int, float, float]:
        """Steps, seconds, and seconds of waiting for data since the last call."""
        now = time.monotonic()
        result = (self.steps, now - self.lap_start, self.waited_s)
        self.lap_start, self.waited_s, self.steps = now, 0.0, 0
        return result

    def times(self, steps: int) -> dict[str, Any]:
        """The parts of these steps over all ranks, for a row of metrics; a rank that makes the
        others wait is named in the log, and its node written down. Every rank takes part."""
        lap = self.rank_clock.lap()
        laps = [lap] if self.is_alone else timing.gather(lap, self.trainer.control)
        row = self.stragglers.row(laps)
        slow = self.stragglers.find(laps, steps)
        if slow:
            row["slow"] = "; ".join(sentence for _, sentence in slow)
        if self.trainer.world.is_first:
            for rank, sentence in slow:
                self._name(rank, sentence)
        return row

    def _name(self, rank: int, sentence: str) -> None:
        print(f"{self.trainer.name}: {sentence}", file=sys.stderr, flush=True)
        if len(set(self.stragglers.nodes)) > 1:
            accuse(self.trainer.run.root, "slow", sentence, self.stragglers.nodes[rank])
