"""A video cut into segments, one chunk from each: in training a random one, at test the middle.

The places that a chunk can have are those of a flow stack that lies inside the video (all frames
where none does), or every n-th of them. Segments are equal shares of these places; where there are
fewer places than segments, neighbours share one.
"""

from collections.abc import Sequence


def places(first: int, last: int, every: int) -> range:
    """Frames at which a chunk can be: every n-th from `first` to `last`."""
    return range(first, last + 1, every)


def segment_frames(choices: Sequence[int], shares: Sequence[float]) -> tuple[int, ...]:
    """One frame of each segment; a share from 0 to below 1 says where in its segment it is."""
    count, segments = len(choices), len(shares)
    frames = []
    for number, share in enumerate(shares):
        start, stop = count * number // segments, count * (number + 1) // segments
        frames.append(choices[min(start + int(share * max(stop - start, 1)), count - 1)])
    return tuple(frames)


def test_shares(clips: int) -> list[float]:
    """Where in their segments the frames of each of some test clips are: evenly, one the middle."""
    return [(number + 0.5) / clips for number in range(clips)]


def test_clips(chunks: int, segments: int) -> int:
    """How many clips of so many segments a protocol of `chunks` gives a video: at least one."""
    return max(1, chunks // segments)
