"""Which clips of a video are tested: evenly spaced over the whole of it, whole frames, the same
in every process.

Read by evaluation, and by the looks at held-out videos while training.
"""

from dataclasses import dataclass

from hpc_stres.config.schema import EvaluationConfig
from hpc_stres.data import segments
from hpc_stres.data.requests import (
    Box,
    Request,
    centre_box,
    flow_stack,
    segment_places,
    spread_frames,
)
from hpc_stres.phases.train import TrainPhase
from hpc_stres.store.reader import VideoRow

QUICK_CHUNKS = 5


@dataclass(frozen=True)
class TestClips:
    """What a trained phase needs of test clips: segments, and its view of a frame.

    Whole frames, `scale` times as large; or with a `side` the middle squares that training saw.
    """

    __test__ = False

    segments: int | None = None
    frame_grid: int = 1
    side: int | None = None
    scale: float | None = None

    @classmethod
    def of(cls, phase: TrainPhase, crop: int) -> "TestClips":
        """Those of a phase whose training crops were `crop` pixels of a stored frame."""
        segments, grid = phase.clips.segments, phase.clips.frame_grid
        if phase.clips.crop == "centre":
            return cls(segments, grid, phase.side)
        return cls(segments, grid, None, None if phase.side == crop else phase.side / crop)


WHOLE_VIDEO = TestClips()


def test_requests(
    row: VideoRow,
    video: int,
    config: EvaluationConfig,
    clips: TestClips = WHOLE_VIDEO,  # noqa: PT028
) -> list[Request]:
    """The clips of one video under a protocol."""
    box = centre_box(row) if clips.side is not None else Box(0, 0, row.height, row.width)
    flips = (False, True) if config.protocol == "paper" and config.flips else (False,)
    requests = []
    for frames in _test_frames(row, config, clips):
        stacks = tuple(flow_stack(frame, row.flow_pairs, "mirror") for frame in frames)
        requests += [Request(0, video, row.label, frames, stacks, box, flip) for flip in flips]
    return requests


def _test_frames(
    row: VideoRow, config: EvaluationConfig, clips: TestClips
) -> list[tuple[int, ...]]:
    """RGB frames of each clip: one clip over the whole video, or clips of a frame a segment."""
    is_quick = config.protocol == "quick"
    if clips.segments is None:
        return [spread_frames(row.frames, QUICK_CHUNKS if is_quick else config.chunks)]
    choices = segment_places(row.frames, clips.frame_grid)
    count = 1 if is_quick else segments.test_clips(config.chunks, clips.segments)
    return [
        segments.segment_frames(choices, [share] * clips.segments)
        for share in segments.test_shares(count)
    ]
