"""What `predict --save` writes: the video with its answers drawn into it, and a strip of
frames and flow."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from hpc_stres.data.flow import decode_flow
from hpc_stres.evaluation.pictures import colour_flow
from hpc_stres.evaluation.predict import Prediction
from hpc_stres.prepare.video import write_video
from hpc_stres.run.paths import atomic_path

STRIP_FRAMES, FRAMES_PER_SECOND = 8, 25
LINES, LINE_PIXELS = 3, 16


def save(prediction: Prediction, folder: Path) -> tuple[Path, Path]:
    """NAME.annotated.avi and NAME.flow.png; returns both paths."""
    import cv2

    video, strip = (
        folder / f"{prediction.path.stem}.annotated.avi",
        folder / f"{prediction.path.stem}.flow.png",
    )
    with atomic_path(video) as temporary:
        write_video(temporary, annotated(prediction), FRAMES_PER_SECOND)
    done, data = cv2.imencode(".png", flow_strip(prediction)[..., ::-1])
    assert done
    with atomic_path(strip) as temporary:
        temporary.write_bytes(data.tobytes())
    return video, strip


def annotated(prediction: Prediction) -> Iterator[NDArray[np.uint8]]:
    """Each frame with the answer of the video and, beneath, the answer around that time."""
    import cv2

    for number, jpeg in enumerate(prediction.clip.video.rgb):
        decoded = cv2.imdecode(np.frombuffer(jpeg, np.uint8), cv2.IMREAD_COLOR)
        assert decoded is not None
        picture = np.ascontiguousarray(decoded[..., ::-1])
        nearest = int(np.argmin([abs(frame - number) for frame in prediction.frames]))
        now = prediction.top(prediction.over_time[nearest], 1)[0]
        lines = [f"{name} {100 * value:.0f} %" for name, value in prediction.top(count=LINES)]
        _write(picture, [*lines, f"now: {now[0]} {100 * now[1]:.0f} %"])
        yield picture


def _write(picture: NDArray[np.uint8], lines: list[str]) -> None:
    """White text on a dark edge, readable on any background; letters that the font lacks
    become question marks."""
    import cv2

    scale = max(0.3, picture.shape[1] / 800)
    for number, line in enumerate(lines):
        place = (4, int((number + 1) * LINE_PIXELS * scale * 2.2))
        text = line.encode("ascii", "replace").decode()
        for colour, width in (((0, 0, 0), 3), ((255, 255, 255), 1)):
            cv2.putText(
                picture, text, place, cv2.FONT_HERSHEY_SIMPLEX, scale, colour, width, cv2.LINE_AA
            )


def flow_strip(prediction: Prediction) -> NDArray[np.uint8]:
    """Frames above their colour-coded flow, at times that were scored, so that their
    flow was computed."""
    import cv2

    clip, row = prediction.clip, prediction.clip.rows[0]
    places = sorted({min(frame, row.flow_pairs - 1) for frame in prediction.frames})
    chosen = [
        places[round(n)] for n in np.linspace(0, len(places) - 1, min(STRIP_FRAMES, len(places)))
    ]
    columns = []
    for frame in chosen:
        decoded = cv2.imdecode(np.array(clip.rgb(0, frame)), cv2.IMREAD_COLOR)
        planes = [
            cv2.imdecode(np.array(clip.flow(0, frame, axis)), cv2.IMREAD_GRAYSCALE)
            for axis in (0, 1)
        ]
        assert decoded is not None
        flow = decode_flow(np.stack([np.asarray(plane, np.uint8) for plane in planes]))
        columns.append(np.concatenate([decoded[..., ::-1], colour_flow(flow)], axis=0))
    return np.ascontiguousarray(np.concatenate(columns, axis=1), dtype=np.uint8)
