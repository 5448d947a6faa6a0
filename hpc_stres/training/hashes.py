"""Hashes of a network's weights and statistics: what two trainings are compared by, bit for bit."""

import hashlib
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn

if TYPE_CHECKING:
    from hpc_stres.training.trainer import Trainer

# Of each tensor so many letters are written down, 64 bits; of all together the whole SHA-256.
TENSOR_LETTERS = 16


def digest_of(tensor: Tensor) -> str:
    """SHA-256 of a tensor's type, shape and bytes."""
    digest = hashlib.sha256(f"{tensor.dtype} {tuple(tensor.shape)}".encode())
    digest.update(_bytes_of(tensor))
    return digest.hexdigest()


def _bytes_of(tensor: Tensor) -> Any:
    return tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data


def state_hashes(model: nn.Module) -> dict[str, Any]:
    """`weights_sha256` of the whole state in the order of names, and `tensors` by name."""
    each = {name: digest_of(tensor) for name, tensor in sorted(model.state_dict().items())}
    whole = hashlib.sha256("".join(f"{name} {digest}\n" for name, digest in each.items()).encode())
    tensors = {name: digest[:TENSOR_LETTERS] for name, digest in each.items()}
    return {"weights_sha256": whole.hexdigest(), "tensors": tensors}


def line_is_due(trainer: "Trainer") -> bool:
    """Whether metrics.jsonl gets a line after this step: at the end of a lap, or for its hash."""
    training, step = trainer.config.training, trainer.step
    every = training.hash_every_steps
    is_lap = step % training.log_every_steps == 0 or step == trainer.steps
    return is_lap or bool(every and step % every == 0)


def hashes_of_line(trainer: "Trainer") -> dict[str, Any]:
    """What a line of metrics.jsonl says of the weights, on the first rank."""
    training = trainer.config.training
    is_wanted = training.hash_every_steps or training.reproducible == "bitwise"
    if not trainer.world.is_first or not is_wanted:
        return {}
    return state_hashes(trainer.model)


def start_fingerprint(trainer: "Trainer", model: nn.Module) -> str:
    """Of what this rank begins with. One rank has nobody to differ from."""
    digest = hashlib.sha256(f"{trainer.step} {trainer.trail}".encode())
    digest.update(np.asarray(trainer.sampler.videos, np.int32).tobytes())
    for tensor in model.state_dict().values() if trainer.world.size > 1 else ():
        digest.update(_bytes_of(tensor))
    return digest.hexdigest()
