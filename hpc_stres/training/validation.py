"""Looks at the held-out videos while a phase trains: its validation curve.

Each rank scores its part of the videos, one at a time, by the quick protocol with the moving
statistics, as `evaluate --protocol quick` would; so a figure depends on the weights alone and not
on how many ranks there are. What each video gave is put together by its number and added in that
order, so the same digits come out on any layout. A look changes nothing of the training: weights,
statistics, requests and random numbers are those of a run without it.

Ranks agree before every video whether to stop. A look that is broken off is taken again when the
phase resumes at that step, before it trains on.
"""

import math
import time
from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch
import torch.distributed as dist
from torch import Tensor

from hpc_stres.data.augment import Levels
from hpc_stres.data.features import FeatureReader
from hpc_stres.data.feed import ClipReader
from hpc_stres.data.requests import Request, flow_stack, spread_frames
from hpc_stres.data.test_clips import TestClips, test_requests
from hpc_stres.models import Logits
from hpc_stres.parallel import process_groups
from hpc_stres.store.held_out import held_out
from hpc_stres.training.loss import phase_loss, right_answers
from hpc_stres.training.trainable import set_training_mode

if TYPE_CHECKING:
    from hpc_stres.training.instruments import Instruments
    from hpc_stres.training.metrics import MetricsLog
    from hpc_stres.training.trainer import Trainer

# Where nothing is said: so many looks at a phase.
LOOKS = 10
BOTH = "both"


class HeldOut:
    """The held-out videos of a phase, and when to look at them. Without any it is never due."""

    def __init__(self, trainer: "Trainer") -> None:
        self.trainer = trainer
        self.rows = held_out(trainer.store, trainer.config) if self._wanted() else []
        self.every = self._every()
        self.clips = TestClips.of(trainer.phase, trainer.config.data.crop)
        self.quick = replace(trainer.config.evaluation, protocol="quick")
        # Says that this rank goes on; before the first step nobody asks.
        self.alive: Callable[[], None] = lambda: None
        self._reader: ClipReader | FeatureReader | None = None
        self._outputs: int | None = None

    def _wanted(self) -> bool:
        evaluation = self.trainer.config.evaluation
        return evaluation.holds_out and evaluation.validation_every_steps != 0

    def _every(self) -> int:
        wanted = self.trainer.config.evaluation.validation_every_steps
        return wanted or max(1, -(-self.trainer.steps // LOOKS))

    def is_due(self, step: int) -> bool:
        """Whether the videos are looked at after a step: every so many, and at the end."""
        return (
            bool(self.rows) and step > 0 and (step % self.every == 0 or step == self.trainer.steps)
        )

    def catch_up(self, log: "MetricsLog | None") -> None:
        """Take the look that an earlier link of this phase left out, if it stopped at a
        step that has one."""
        trainer = self.trainer
        if not self.is_due(trainer.step):
            return
        known = float(log is not None and log.has(trainer.step, "validation_videos"))
        if process_groups.agree([known], trainer.control) == [0.0]:
            self.look(log)

    def look_when_due(self, log: "MetricsLog | None", clock: "Instruments") -> None:
        """After a step: look where this step has a look. Its time is none of the training's."""
        if self.is_due(self.trainer.step):
            self.alive = clock.watch.alive
            self.look(log)
            clock.restart()

    def look(self, log: "MetricsLog | None") -> None:
        """Score all videos and write a row; nothing is written where the ranks are asked
        to stop meanwhile."""
        trainer, started = self.trainer, time.monotonic()
        trainer.model.eval()
        try:
            figures = self._score_all()
        finally:
            set_training_mode(trainer.model)
        if figures is not None and log is not None:
            count, seconds = len(self.rows), time.monotonic() - started
            means = {name: total / count for name, total in sorted(figures.items())}
            for name in [name for name, mean in means.items() if not math.isfinite(mean)]:
                trainer.say(
                    f"step {trainer.step}: {name} of held-out videos is not a finite number"
                )
                del means[name]
            row = {"step": trainer.step} | {f"validation_{k}": mean for k, mean in means.items()}
            log.write({**row, "validation_videos": count, "validation_seconds": seconds})

    def _score_all(self) -> dict[str, float] | None:
        """Sums over all videos; none where the ranks stopped."""
        trainer, world = self.trainer, self.trainer.world
        table: dict[str, Tensor] = {}
        for first in range(0, len(self.rows), world.size):
            wishes = process_groups.agree([float(trainer.stop.wanted())], trainer.control)
            if wishes[0] > 0:
                return None
            self.alive()
            place = first + world.rank
            if place < len(self.rows):
                trainer.heartbeat.beat(trainer.step, "validation")
                for name, value in self._score(self.rows[place]).items():
                    table.setdefault(name, self._empty())[place] = value
        return self._sums(table)

    def _empty(self) -> Tensor:
        return torch.zeros(len(self.rows), dtype=torch.float64)

    def _sums(self, table: dict[str, Tensor]) -> dict[str, float]:
        """Each rank has filled in its own videos: adding zeros is exact, and the
        sum has one order."""
        streams = [
            n
            for n, used in zip(("appearance", "motion"), self.trainer.phase.streams, strict=True)
            if used
        ]
        names = [f"{what}_{name}" for name in streams for what in ("loss", "accuracy")]
        names += [f"accuracy_{BOTH}"] if len(streams) > 1 else []
        stacked = torch.stack([table.get(name, self._empty()) for name in names])
        dist.all_reduce(stacked, group=self.trainer.control)
        return dict(zip(names, stacked.sum(dim=1).tolist(), strict=True))

    @torch.no_grad()
    def _score(self, row: int) -> dict[str, float]:
        """Loss and right answers of one video, in float64."""
        trainer, phase = self.trainer, self.trainer.phase
        requests = test_requests(trainer.store.rows[row], row, self.quick, self.clips)
        logits = self._forward(requests)
        labels = torch.tensor([requests[0].label], device=trainer.device)
        if trainer.label_table is not None:
            labels = trainer.label_table[labels]
        _, sums = phase_loss(logits, labels, phase)
        figures: dict[str, float] = {}
        for stream, value in sums.items():
            figures[f"loss_{stream}"] = float(value.loss) * self._weight(logits, row)
            figures[f"accuracy_{stream}"] = float(value.right)
        if logits.appearance is not None and logits.motion is not None:
            together = logits.appearance.mean(dim=1) + logits.motion.mean(dim=1)
            figures[f"accuracy_{BOTH}"] = float(right_answers(together, labels))
        return figures

    def _forward(self, requests: list[Request]) -> Logits:
        trainer = self.trainer
        clips = self._read(requests)
        rgb = None if clips.rgb is None else clips.rgb.to(trainer.dtype)
        flow = None if clips.flow is None else clips.flow.to(trainer.dtype)
        # Not through __call__: a compiled network is compiled for the sizes of training.
        logits: Logits = trainer.model.forward(rgb, flow)
        return Logits(*(None if stream is None else stream.double() for stream in logits))

    def _weight(self, logits: Logits, row: int) -> float:
        """Where losses add up over time outputs: as many as a training clip has, so that
        both curves compare."""
        phase = self.trainer.phase
        if phase.optimise.loss_over_time == "mean" or self.clips.segments is not None:
            return 1.0
        if self._outputs is None:
            self._outputs = _outputs(self._forward([self._training_clip(row)]))
        return self._outputs / _outputs(logits)

    def _training_clip(self, row: int) -> Request:
        """A clip of a held-out video with as many chunks as in training, to count
        its time outputs."""
        trainer = self.trainer
        video = trainer.store.rows[row]
        (whole,) = test_requests(video, row, self.quick, self.clips)
        frames = spread_frames(video.frames, trainer.phase.clips.chunks)
        stacks = tuple(flow_stack(frame, video.flow_pairs, "mirror") for frame in frames)
        return whole._replace(frames=frames, flow=stacks)

    def _read(self, requests: list[Request]) -> Any:
        if self._reader is None:
            trainer = self.trainer
            reader = trainer.make_reader()
            if isinstance(reader, ClipReader):
                levels = Levels.of_phase(trainer.phase)
                reader = ClipReader(
                    trainer.store, self.clips.side, levels, streams=trainer.phase.streams,
                    device_id=trainer.device.index, most=512, scale=self.clips.scale,
                )  # fmt: skip
            self._reader = reader
        return self._reader.read(requests)


def _outputs(logits: Logits) -> int:
    some = logits.appearance if logits.appearance is not None else logits.motion
    assert some is not None
    return some.shape[1]
