"""Sampling by segments: every length of video, number of segments and grid."""

import numpy as np
import pytest

from hpc_stres.data import segments
from hpc_stres.data.requests import segment_places
from hpc_stres.data.segments import places, segment_frames


def test_a_share_of_each_segment_covers_it_whole_and_nothing_else():
    """Against NumPy's own cut into nearly equal parts, turned to ours: 7 over 3 are 2, 2, 3."""
    for count in range(1, 40):
        choices = range(3, 3 + 2 * count, 2)
        for number in range(1, 12):
            drawn = [
                {segment_frames(choices, [share] * number)[k] for share in np.arange(0, 1, 0.01)}
                for k in range(number)
            ]
            edges = [count * k // number for k in range(number + 1)]
            for k, seen in enumerate(drawn):
                own = set(choices[edges[k] : edges[k + 1]])
                assert seen == (own or {choices[edges[k]]})
            if count >= number:
                assert set().union(*drawn) == set(choices)
                sizes = [len(seen) for seen in drawn]
                assert max(sizes) - min(sizes) <= 1
            assert list(segment_frames(choices, [0.5] * number)) == sorted(
                segment_frames(choices, [0.5] * number)
            )


def test_places_and_test_clips():
    assert list(places(5, 16, 4)) == [5, 9, 13]
    assert list(places(5, 5, 4)) == [5]
    assert [segments.test_clips(25, s) for s in (1, 3, 5, 7, 30)] == [25, 8, 5, 3, 1]
    assert segments.test_shares(1) == [0.5]
    assert segments.test_shares(2) == pytest.approx([0.25, 0.75])


def test_every_length_of_video_has_places_inside_it():
    """Shorter than a flow stack, exactly one, longer; a grid coarser than the video."""
    for count in range(1, 60):
        for every in (1, 2, 7, 100):
            choices = segment_places(count, every)
            assert min(choices) >= 0
            assert max(choices) < count
            has_stack = count >= 11
            assert min(choices) == (5 if has_stack else 0)
            assert max(choices) <= (count - 6 if has_stack else count - 1)
            for shares in ([0.0, 0.999999, 0.5], [0.999999] * 9):
                frames = segment_frames(choices, shares)
                assert set(frames) <= set(choices)
                assert list(frames) == sorted(frames)
