"""What stops a training on every rank: a loss, weights or momentum that are not finite numbers."""

from typing import TYPE_CHECKING

from torch import Tensor

from hpc_stres.data.requests import requests_at
from hpc_stres.errors import UserError
from hpc_stres.models.state import not_finite, some
from hpc_stres.parallel import process_groups

if TYPE_CHECKING:
    from hpc_stres.training.trainer import Trainer


def refuse_bad_loss(trainer: "Trainer") -> None:
    """Stop on every rank when any rank met a loss that is not a number."""
    (worst,) = process_groups.agree([float(trainer.bad_step.item())], trainer.control)
    if worst < 0:
        return
    step, mine = int(worst), int(trainer.bad_step.item())
    if mine < 0:
        raise UserError(
            f"{trainer.name}: another rank met a loss that is not finite at step {step}"
        )
    positions = [p for share in trainer.layout.shares[trainer.world.rank] for p in share.positions]
    batch = requests_at(trainer.sampler, step, positions[:8])
    ids = ", ".join(trainer.store.rows[request.video].id for request in batch)
    raise UserError(
        f"{trainer.name}: the loss is not finite at step {step} on rank {trainer.world.rank}; its videos: {ids}\n"
        "The last checkpoint is untouched. Lower the learning rate, or use float32."
    )


def refuse_bad_state(trainer: "Trainer", momentum: dict[str, Tensor] | None = None) -> None:
    """Stop on every rank before a NaN or an infinity gets into a checkpoint or the product."""
    bad = not_finite(trainer.model.state_dict()) + [
        f"the momentum of {n}" for n in not_finite(momentum or {})
    ]
    refusal = UserError(
        f"{trainer.name}: NaN or infinite values in {some(bad)} after step {trainer.step}; they were not saved\n"
        "The last checkpoint is untouched. Lower the learning rate, or use float32."
    )
    process_groups.refuse_together(
        refusal if bad else None, trainer.control, f"the weights of step {trainer.step}"
    )
