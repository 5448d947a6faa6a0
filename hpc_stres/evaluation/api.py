"""Trained networks from Python, in two lines: `load_model` and `predict`."""

import os
from pathlib import Path
from typing import TYPE_CHECKING

from hpc_stres.errors import UserError
from hpc_stres.evaluation import networks
from hpc_stres.evaluation.networks import Network
from hpc_stres.prepare.video import UndecodableError

if TYPE_CHECKING:
    import torch

    from hpc_stres.evaluation.predict import Prediction


def load_model(
    folder: "str | os.PathLike[str]",
    phase: str | None = None,
    device: "str | torch.device | None" = None,
) -> Network:
    """A trained network: the last finished phase of a run folder (or `phase`), or what
    `hpc-stres export` wrote.

    It is called with clips, as `model(rgb, flow)`: rgb (videos, time, 3, H, W), flow (videos, time,
    20, H, W), each None where the network does not read it; it returns `.appearance` and `.motion`,
    (videos, time, classes) or None. `device`: the GPU where there is one.
    """
    import torch

    from hpc_stres.evaluation import predict as scoring

    chosen = scoring.device() if device is None else torch.device(device)
    return networks.load(Path(folder), phase, [], chosen)


def predict(
    video: "str | os.PathLike[str]", model: "Network | str | os.PathLike[str]", quick: bool = False
) -> "Prediction":
    """Decode, prepare and score one video file as a test video is: `.top()`,
    `.probabilities`, `.over_time`.

    `model` is what `load_model` returned, or a folder that it reads. `quick`: one clip from the
    middle of the video instead of the whole protocol. A video that cannot be read is a
    UserError that says why.
    """
    from hpc_stres.evaluation import predict as scoring

    network = model if isinstance(model, Network) else load_model(model)
    path = Path(video)
    if not path.is_file():
        raise UserError(f"{path}: no such file")
    try:
        return scoring.predict(network, path, quick)
    except UndecodableError as error:
        raise UserError(f"{path}: {error}") from None
