"""`training.reproducible: bitwise`: the trainer's part. The weights have the same bits
on every layout.

The network computes in units (exact/session.py) under a guard that refuses what might mix them
(exact/mode.py). Gradients, moments, running statistics and the sums of the metrics are
integers until all ranks have added theirs (exact/digits.py). Nobody else reduces: the engines
are told not to.
"""

import hashlib
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from hpc_stres.data.feed import Clips
from hpc_stres.errors import UserError
from hpc_stres.models import Logits, norm_cpu, pool
from hpc_stres.models.dropout import Masks
from hpc_stres.models.exact.digits import MOMENT, MOST_TERMS, digits_of
from hpc_stres.models.exact.mode import UnitByUnit
from hpc_stres.models.exact.session import Session
from hpc_stres.models.exact_network import attach
from hpc_stres.parallel import process_groups
from hpc_stres.run.pinning import level
from hpc_stres.training.loss import StreamSums, phase_loss
from hpc_stres.training.trainable import fold_moving_statistics

if TYPE_CHECKING:
    from hpc_stres.training.trainer import Trainer


class ExactTraining:
    """One rank's bitwise training of one phase."""

    def __init__(self, trainer: "Trainer", model: Any) -> None:
        config, device = trainer.config, trainer.device
        self.trainer, self.model, self.phase = trainer, model, trainer.phase
        self.unit = config.training.unit
        self.threads = process_groups.cpu_threads(trainer.world)
        units_a_step = self.phase.optimise.global_batch // self.unit
        if units_a_step > MOST_TERMS:
            raise UserError(
                f"training.reproducible: bitwise: {units_a_step} units a step; an exact sum has room for "
                f"{MOST_TERMS}\nSet training.unit higher."
            )
        _refuse_unlike_ranks(device, trainer.control)
        trainer.say(f"bitwise: units of {self.unit}, {kernels_of(device)['kernels']} kernels")
        self.session = Session(model, device, self.threads)
        self.mode = UnitByUnit(
            self.session, torch.bfloat16 if config.training.precision == "bfloat16" else None
        )
        self.layers = attach(model, self.session, self.mode)

    def micro_step(self, number: int, clips: Clips, masks: Masks) -> None:
        """Forward and backward of one micro-batch, unit by unit."""
        trainer = self.trainer
        self.session.units = len(clips.labels) // self.unit
        last = number == trainer.layout.micro_steps - 1
        rgb, flow = trainer.as_input(clips.rgb), trainer.as_input(clips.flow)
        with trainer.cast(), self.mode:
            logits = trainer.engine.forward(last, rgb, flow, trainer.groups[number], masks)
        losses, sums = self.loss(logits, trainer.labels_of(clips))
        trainer.clock.forward_done()
        trainer.engine.backward_exactly(losses)
        trainer.clock.backward_done(last)
        trainer.count_loss(torch.stack([loss.detach() for loss in losses]).sum(), sums)

    def loss(self, logits: Logits, labels: Tensor) -> tuple[list[Tensor], dict[str, StreamSums]]:
        """Each unit's loss, divided by the global number of videos, and the micro-batch's sums."""
        losses, collected = [], []
        streams = [
            [None] * self.session.units if scores is None else scores.split(self.unit)
            for scores in logits
        ]
        for *scores, some in zip(*streams, labels.split(self.unit), strict=True):
            loss, sums = phase_loss(Logits(*scores), some, self.phase)
            losses.append(loss / self.phase.optimise.global_batch)
            collected.append(sums)
        sums = {stream: _added([one[stream] for one in collected]) for stream in collected[0]}
        return losses, sums

    def fold_statistics(self) -> None:
        """Fold what all ranks collected into the running statistics of the layers that move."""
        sums = self.session.statistics
        assert sums is not None
        sums.reduce()
        for name, layer in self.layers.items():
            if layer.training:
                layer.fold(sums.total(name))
        sums.clear()

    def close(self) -> None:
        """End the threads."""
        self.session.close()


def exact_training(trainer: "Trainer", model: Any) -> ExactTraining | None:
    """What the config asks for; None where it asks for nothing."""
    is_asked = trainer.config.training.reproducible == "bitwise"
    return ExactTraining(trainer, model) if is_asked else None


def fold_statistics(trainer: "Trainer") -> None:
    """After a step: the running statistics of the layers that move."""
    if trainer.exact is not None:
        trainer.exact.fold_statistics()
    else:
        fold_moving_statistics(trainer.model, trainer.world.size > 1)


def kernels_of(device: torch.device) -> dict[str, Any]:
    """What bits depend on beside config and data, as this rank has it."""
    facts: dict[str, Any] = {"torch": torch.__version__, **level()}
    if device.type == "cuda":
        cudnn = torch.backends.cudnn.version()
        name = torch.cuda.get_device_name(device)
        return facts | {"kernels": name, "cudnn": cudnn, "cuda": torch.version.cuda}
    # Plain torch rounds otherwise than the package's compiled normalisation and pools.
    is_compiled = norm_cpu.library() is not None and pool.library() is not None
    facts["own"] = "compiled" if is_compiled else "plain torch"
    return facts | {"kernels": torch.backends.cpu.get_cpu_capability()}


def _refuse_unlike_ranks(device: torch.device, control: Any) -> None:
    """Ranks on different processors, or with other versions, would compute other bits."""
    facts = kernels_of(device)
    text = " ".join(f"{name} {facts[name]}" for name in sorted(facts))
    fingerprint = hashlib.sha256(text.encode()).hexdigest()
    if not process_groups.is_same_everywhere(fingerprint, control):
        raise UserError(
            f"training.reproducible: bitwise: the ranks differ in what bits depend on; this one has {text}\n"
            "Use nodes of one kind and one environment, or training.reproducible=off."
        )


def _added(parts: list[StreamSums]) -> StreamSums:
    """Units' sums as one: the losses' digits, and in a last number how many had none."""
    digits, misfits = digits_of(torch.stack([part.loss for part in parts]), MOMENT)
    loss = torch.cat([digits.sum(dim=1), misfits[None]])
    return StreamSums(loss, torch.stack([part.right for part in parts]).sum())
