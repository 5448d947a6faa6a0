"""A video's gray frames and flow out of the store."""

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from hpc_stres.errors import UserError
from hpc_stres.store.format import REPAIR

if TYPE_CHECKING:
    from hpc_stres.store.reader import Store

Gray = NDArray[np.uint8]
Flow = NDArray[np.float32]


def read_video(store: "Store", number: int) -> tuple[list[Gray], list[Flow]]:
    """Gray frames, and the flow from each to the next in pixels (height, width, 2)."""
    from hpc_stres.data.flow import decode_flow

    row = store.rows[number]
    gray = [_plane(store.rgb(number, frame), store.paths.shard(row.shard), row.id) for frame in range(row.frames)]
    flow = []
    for pair in range(min(row.flow_pairs, row.frames - 1)):
        planes = [_plane(store.flow(number, pair, axis), store.paths.shard(row.shard), row.id) for axis in (0, 1)]
        flow.append(decode_flow(np.stack(planes, axis=-1)))
    return gray[: len(flow) + 1], flow


def _plane(data: NDArray[np.uint8], shard: Path, video_id: str) -> Gray:
    import cv2

    plane = cv2.imdecode(data, cv2.IMREAD_GRAYSCALE)
    if plane is None:
        raise UserError(f"{shard}: a frame of video {video_id} does not decode\n{REPAIR}")
    return np.asarray(plane, np.uint8)
