"""Frames of a video and their colour-coded flow as one picture."""

from pathlib import Path

import cv2
import numpy as np

from hpc_stres.data.flow import tvl1
from hpc_stres.errors import UserError
from hpc_stres.evaluation.pictures import colour_flow
from hpc_stres.prepare.video import UndecodableError, decode, gray, resize, target_size
from hpc_stres.run.paths import write_bytes


def draw_flow(
    path: Path, out: Path, frames: int, short_side: int, backend: str, pyramid: str
) -> tuple[int, int]:
    """Write the picture; returns how many frames are in it, and how many the video has."""
    if not path.is_file():
        raise UserError(f"{path}: no such video")
    try:
        count = sum(1 for _ in decode(path))
        wanted = {round(value) for value in np.linspace(0, max(count - 2, 0), frames)}
        needed = wanted | {number + 1 for number in wanted}
        kept = {}
        for number, frame in enumerate(decode(path)):
            if number in needed:
                kept[number] = resize(
                    frame, *target_size(frame.shape[0], frame.shape[1], short_side)
                )
    except UndecodableError as error:
        raise UserError(f"{path}: {error}") from None
    if count < 2:
        raise UserError(f"{path}: one frame alone has no flow")
    columns = []
    for number in sorted(wanted):
        pair = np.stack([gray(kept[number]), gray(kept[number + 1])])
        flow = tvl1(pair, backend, pyramid=pyramid)[0]
        columns.append(np.concatenate([kept[number], colour_flow(flow)]))
    done, data = cv2.imencode(".png", np.concatenate(columns, axis=1)[..., ::-1])
    if not done:
        raise UserError(f"{out}: the picture could not be encoded")
    write_bytes(out, data.tobytes())
    return len(columns), count
