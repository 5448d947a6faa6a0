"""Packing on little more than the disk of the store, and killed at any moment without loss."""

import itertools
import shutil
from pathlib import Path

import pytest

from hpc_stres.prepare import run as preparing
from hpc_stres.prepare.run import prepare
from hpc_stres.store import packing, writer
from hpc_stres.store.location import store_folder
from hpc_stres.store.reader import Store, StorePaths, verify
from tests.conftest import digests
from tests.unit.listed import own_config, root, rows_of, work, write_csv  # noqa: F401

VIDEOS = 7


class Killed(BaseException):
    """Nothing is cleaned up after this."""


@pytest.fixture
def small_shards(monkeypatch):
    """Two or three of the tiny videos a shard."""
    batches = packing.batches
    monkeypatch.setattr(
        packing, "batches", lambda sizes, _: batches(sizes, 2 * max(sizes.values(), default=1) - 1)
    )


@pytest.fixture
def several(root, work, small_shards):  # noqa: F811
    """A listing of a few videos whose store is not begun, and the folder as it is with that."""
    shutil.rmtree(root / "stores")
    write_csv(root, rows_of(root, VIDEOS))
    return own_config(root)


def bytes_of(*folders):
    return sum(
        path.stat().st_size for folder in folders if folder.is_dir() for path in folder.iterdir()
    )


def kill_at(monkeypatch, point):
    """Nothing happens from the so-many-th rename or removal on: it, and all after it, raise."""
    calls = itertools.count()

    def dying(real):
        def act(*arguments, **options):
            if next(calls) >= point:
                raise Killed
            return real(*arguments, **options)

        return act

    monkeypatch.setattr("os.replace", dying(packing.atomic_path.__globals__["os"].replace))
    monkeypatch.setattr(Path, "unlink", dying(Path.unlink))


def test_killed_at_any_rename_or_removal_nothing_is_made_twice_and_the_shards_are_the_same(
    several, root, work, tmp_path, monkeypatch  # noqa: F811
):  # fmt: skip
    with monkeypatch.context() as patch:
        patch.setattr(preparing.Preparation, "_pack", killed)
        with pytest.raises(Killed):
            prepare(several, quiet=True)
    shutil.copytree(root / "stores", tmp_path / "parts")
    expected = digests(prepare(several, quiet=True))
    assert len([name for name in expected if name.startswith("shards/")]) >= 3
    work.clear()
    survived = set()
    for point in itertools.count():
        shutil.rmtree(root / "stores")
        shutil.copytree(tmp_path / "parts", root / "stores")
        with monkeypatch.context() as patch:
            kill_at(patch, point)
            try:
                prepare(several, quiet=True)
                break
            except Killed:
                pass
        survived.add(len(list(StorePaths(store_folder(several)).parts.glob("packed-*"))))
        prepare(several, quiet=True)
        assert work == [], "every video was made before the kill, and none is made again"
        assert digests(store_folder(several)) == expected
    assert point > 3 * VIDEOS
    assert survived >= {0, 1, 2, 3}, "it was killed with every number of shards finished"


def killed(*_):
    raise Killed


def test_parts_and_shards_together_never_take_twice_the_disk(several, monkeypatch):
    peaks = []
    write = packing.write_shard

    def watched(path, parts, number):
        made = write(path, parts, number)
        store = StorePaths(store_folder(several))
        peaks.append(bytes_of(store.parts, store.shards))
        return made

    monkeypatch.setattr(packing, "write_shard", watched)
    store = StorePaths(prepare(several, quiet=True))
    sizes = [path.stat().st_size for path in store.shards.iterdir()]
    assert len(peaks) == len(sizes) >= 3
    records = 16_384 * len(sizes)
    assert max(peaks) <= sum(sizes) + max(sizes) + records
    assert sum(sizes) + max(sizes) + records < 2 * sum(sizes), "or this would show nothing"


def test_a_video_changed_after_its_shard_was_packed_is_made_again(several, root, work, monkeypatch):  # noqa: F811
    from tests.unit.test_store_listing import replace_video

    with monkeypatch.context() as patch:
        patch.setattr(writer, "write_index", killed)
        with pytest.raises(Killed):
            prepare(several, quiet=True)
    store = StorePaths(store_folder(several))
    assert len(list(store.parts.glob("packed-*"))) >= 3
    assert not [path for path in store.parts.glob("*.tar")], "the parts went with their shards"
    rows = rows_of(root, VIDEOS)
    replace_video(root / "binding" / "videos" / rows[2][0])
    write_csv(root, rows[1:])  # and one is no longer listed
    work.clear()
    made = Store(prepare(several, quiet=True))
    assert work == [rows[2][0][:-4]]
    assert [row.id for row in made.rows] == sorted(row[0][:-4] for row in rows[1:])
    assert verify(made) == []
    work.clear()
    prepare(several, quiet=True)
    assert work == []


def test_a_record_of_a_shard_that_is_cut_counts_for_nothing(several, work, monkeypatch):  # noqa: F811
    with monkeypatch.context() as patch:
        patch.setattr(writer, "write_index", killed)
        with pytest.raises(Killed):
            prepare(several, quiet=True)
    store = StorePaths(store_folder(several))
    refuse_or_keep_each_flip(store, 0)
    cut = store.shard(1)
    lost = set(packing.read_packed(store, 1).videos)
    cut.write_bytes(cut.read_bytes()[:-512])
    work.clear()
    made = Store(prepare(several, quiet=True))
    assert set(work) == lost
    assert verify(made) == []


def refuse_or_keep_each_flip(store, number):
    """A record with a bit turned counts for nothing, or says what it said."""
    path = store.packed(number)
    whole, before = path.read_bytes(), told(store, number)
    outcomes = []
    for bit in range(0, 8 * len(whole), 8 * len(whole) // 400):
        turned = bytearray(whole)
        turned[bit // 8] ^= 1 << bit % 8
        path.write_bytes(turned)
        outcomes.append(told(store, number))
        assert outcomes[-1] in (None, before), f"bit {bit}"
    path.write_bytes(whole)
    assert outcomes.count(None) > 200


def told(store, number):
    """What a record says, offsets included; None where it counts for nothing."""
    packed = packing.read_packed(store, number)
    if packed is None:
        return None
    packing._offsets_of.cache_clear()
    offsets = packing._offsets_of(store.packed(number), 0).tobytes()
    return repr(packed), offsets
