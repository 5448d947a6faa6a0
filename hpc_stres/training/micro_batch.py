"""How many videos fit into the network at once, on every rank."""

from typing import TYPE_CHECKING

import torch

from hpc_stres.errors import UserError
from hpc_stres.layout import plan
from hpc_stres.parallel import process_groups
from hpc_stres.training import memory

if TYPE_CHECKING:
    from hpc_stres.training.trainer import Trainer


def agreed_micro_batch(trainer: "Trainer", model: torch.nn.Module) -> int:
    """What fits in memory on every rank: estimated, then tried, and halved once after
    running out of memory."""
    batch, group, size = (
        trainer.phase.optimise.global_batch,
        trainer.phase.optimise.norm_group,
        trainer.world.size,
    )
    unit = trainer.config.training.unit
    least = memory.smallest_share(batch, group, size, unit)
    fits = memory.fitting_micro_batch(
        model, trainer.config, trainer.name, trainer.device, trainer.world.local_size
    )
    for attempt in (1, 2):
        (agreed,) = process_groups.agree([float(fits)], trainer.control, largest=False)
        fits = max(min(int(agreed), batch), least)
        share = plan(batch, group, size, fits, unit).largest_micro_batch
        went_well = memory.try_micro_batch(
            model, trainer.config, trainer.name, trainer.device, share
        )
        (failed,) = process_groups.agree([float(not went_well)], trainer.control)
        if not failed:
            return fits
        if attempt == 1:
            trainer.say(f"{share} videos at once do not fit in memory; trying half")
            fits = max(share // 2, least)
    raise UserError(
        f"{trainer.name}: {share} videos at once do not fit in memory\n"
        "Set training.max_micro_batch lower, or training.activation_checkpointing=true, or use more ranks."
    )
