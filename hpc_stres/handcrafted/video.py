"""A video's gray frames and flow out of the store."""

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from hpc_stres.errors import UserError
from hpc_stres.handcrafted.tracks import Film
from hpc_stres.store.format import REPAIR

if TYPE_CHECKING:
    from hpc_stres.store.reader import Store


def read_video(store: "Store", number: int, with_colour: bool = False) -> Film:
    """Frames, and the flow from each to the next in pixels."""
    import cv2

    from hpc_stres.data.flow import decode_flow

    row = store.rows[number]
    shard, count = store.paths.shard(row.shard), min(row.frames, row.flow_pairs + 1)
    frames = [store.rgb(number, frame) for frame in range(count)]
    gray = [_decoded(data, cv2.IMREAD_GRAYSCALE, shard, row.id) for data in frames]
    colour = (
        [_decoded(data, cv2.IMREAD_COLOR, shard, row.id) for data in frames]
        if with_colour
        else None
    )
    flow = []
    for pair in range(count - 1):
        planes = [
            _decoded(store.flow(number, pair, axis), cv2.IMREAD_GRAYSCALE, shard, row.id)
            for axis in (0, 1)
        ]
        flow.append(decode_flow(np.stack(planes, axis=-1)))
    return Film(gray, flow, colour)


def _decoded(data: NDArray[np.uint8], kind: int, shard: Path, video_id: str) -> NDArray[np.uint8]:
    import cv2

    plane = cv2.imdecode(data, kind)
    if plane is None:
        raise UserError(f"{shard}: a frame of video {video_id} does not decode\n{REPAIR}")
    return np.asarray(plane, np.uint8)
