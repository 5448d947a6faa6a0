"""The cache of features: what goes in comes out, torn and damaged parts, other contents."""

from pathlib import Path

import numpy as np
import pytest

from hpc_stres.errors import UserError
from hpc_stres.store.features import (
    INDEX,
    Features,
    FeatureWriter,
    cache_folder,
    content_of,
    finish,
    written,
)
from hpc_stres.store.format import VideoRow


def video(name, frames=30, sha="a"):
    return VideoRow(
        id=name, label=0, frames=frames, flow_pairs=frames - 1, height=8, width=8, shard=0,
        rgb_first=0, flow_first=0, rgb_sha256=sha, flow_sha256=sha,
    )  # fmt: skip


def numbers(seed, flips=2, places=7, type_of=np.float32):
    drawn = np.random.default_rng(seed)
    return {
        "appearance": drawn.random((flips, places, 5)).astype(type_of),
        "motion": drawn.random((flips, places, 3)).astype(type_of),
    }


def cache(folder, rows, **options):
    for rank, row in enumerate(rows):
        FeatureWriter(folder, rank).write(row, numbers(rank, **options), 5, 3)
    entries = written(folder, {row.id: content_of(row) for row in rows})
    finish(folder, {"weights": "x"}, entries)
    return Features(folder)


@pytest.mark.parametrize("type_of", [np.float32, np.float64])
def test_what_goes_in_comes_out(tmp_path, type_of):
    rows = [video("b"), video("a")]
    features = cache(tmp_path, rows, type_of=type_of)
    for number, row in enumerate(rows):
        wanted = numbers(number, type_of=type_of)
        for flip in (False, True):
            given = features.take(row, (5, 23, 8, 8), flip)
            for stream, values in given.items():
                assert values.dtype == type_of
                assert np.array_equal(values, wanted[stream][int(flip), [0, 6, 1, 1]])


def test_one_writer_holds_many_videos_and_a_kill_costs_one(tmp_path):
    rows = [video("a"), video("b"), video("c")]
    writer = FeatureWriter(tmp_path, 0)
    for number, row in enumerate(rows):
        writer.write(row, numbers(number), 5, 3)
    contents = {row.id: content_of(row) for row in rows}
    assert list(written(tmp_path, contents)) == ["a", "b", "c"]
    lines = next(tmp_path.glob("*.jsonl"))
    whole = lines.read_bytes()
    lines.write_bytes(whole[:-20])
    assert list(written(tmp_path, contents)) == ["a", "b"]
    lines.write_bytes(whole.replace(b'"offset": 0', b'"offset": 4'))
    assert list(written(tmp_path, contents)) == ["b", "c"]
    lines.write_bytes(whole)
    data = next(tmp_path.glob("*.bin"))
    data.write_bytes(data.read_bytes()[:-1])
    assert list(written(tmp_path, contents)) == ["a", "b"]


def test_a_video_that_was_prepared_again_is_not_taken(tmp_path):
    features = cache(tmp_path, [video("a")])
    assert not written(tmp_path, {"a": content_of(video("a", sha="other"))})
    with pytest.raises(UserError, match="video a was prepared again since"):
        features.take(video("a", sha="other"), (5,), False)
    with pytest.raises(UserError, match="video z has no features"):
        features.take(video("z"), (5,), False)


def test_frames_beside_the_grid_and_mirrored_ones_that_are_not_there_are_refused(tmp_path):
    features = cache(tmp_path, [video("a")], flips=1)
    for frame in (4, 6, 2, 26):
        with pytest.raises(UserError, match=f"no features of frame {frame} of video a"):
            features.take(video("a"), (frame,), False)
    with pytest.raises(UserError, match="no features of mirrored frames"):
        features.take(video("a"), (5,), True)


def test_every_flipped_byte_is_noticed(tmp_path):
    cache(tmp_path, [video("a")])
    data, index = next(tmp_path.glob("*.bin")), tmp_path / INDEX
    whole = data.read_bytes()
    for place in range(0, len(whole), 37):
        data.write_bytes(whole[:place] + bytes([whole[place] ^ 1]) + whole[place + 1 :])
        with pytest.raises(UserError, match="the features of video a are damaged"):
            Features(tmp_path).take(video("a"), (5,), False)
    data.unlink()
    with pytest.raises(UserError, match="No such file"):
        Features(tmp_path).take(video("a"), (5,), False)
    index.write_bytes(index.read_bytes().replace(b'"places": 7', b'"places": 8'))
    with pytest.raises(UserError, match="checksum is wrong"):
        Features(tmp_path)


def test_another_network_has_another_folder():
    folders = {cache_folder(Path("s"), {"weights": w, "every": e}) for w in "ab" for e in (1, 2)}
    assert len(folders) == 4
