"""Damage of a store's files is noticed when it is opened, or does not matter; never a signal, never a traceback."""

import json
import random
import shutil

import numpy as np
import pytest

from hpc_stres.errors import UserError
from hpc_stres.run.paths import sha256, write_json, write_sealed
from hpc_stres.store import format
from hpc_stres.store.reader import PreparedVideo, Store, verify, write_store

FLIPS = 120


@pytest.fixture
def small(tmp_path):
    """A store of six made-up videos."""
    generator = random.Random(1)
    videos = [
        PreparedVideo(
            f"c/v{n}", n % 3, 48, 64,
            [generator.randbytes(20 + n + frame) for frame in range(5)],
            [generator.randbytes(10 + plane) for plane in range(8)],
            "4 of 8 frames" if n == 2 else None,
        )
        for n in range(6)
    ]  # fmt: skip
    names = [video.id for video in videos]
    write_store(
        tmp_path / "s", videos, ["a", "b", "c"], names[:4], names[4:], {"flow_backend": "native"}
    )
    return tmp_path / "s"


def answers(store):
    rows = list(store.rows)
    frames = [store.rgb(n, f).tobytes() for n, row in enumerate(rows) for f in range(row.frames)]
    planes = [
        store.flow(n, p, a).tobytes()
        for n, row in enumerate(rows)
        for p in range(row.flow_pairs)
        for a in (0, 1)
    ]
    lists = [(store.ids(1, kind), store.present(1, kind)) for kind in ("train", "test")]
    numbers = [store.number[row.id] for row in rows]
    return rows, frames, planes, lists, numbers, store.classes, store.remarks, store.manifest


def index_files(root):
    return [root / "manifest.json", *sorted((root / "index").iterdir())]


def refusal_of(root, before):
    """Why a store is refused; one that is not must answer as before."""
    try:
        assert answers(Store(root)) == before
    except UserError as error:
        return str(error)
    return None


def test_flipped_bits_of_index_and_manifest_are_noticed_or_harmless(small):
    before, generator = answers(Store(small)), random.Random(7)
    noticed = 0
    for _ in range(FLIPS):
        path = generator.choice([path for path in index_files(small) if path.stat().st_size])
        whole = path.read_bytes()
        damaged = bytearray(whole)
        damaged[generator.randrange(len(whole))] ^= 1 << generator.randrange(8)
        path.write_bytes(damaged)
        refusal = refusal_of(small, before)
        path.write_bytes(whole)
        if refusal is not None:
            noticed += 1
            assert str(path) in refusal
            assert "hpc-stres" in refusal
    assert noticed > 0.8 * FLIPS


def test_flipped_bits_of_shards_are_all_noticed_by_verify(small):
    path, generator = Store(small).paths.shard(0), random.Random(3)
    whole = path.read_bytes()
    for _ in range(40):
        damaged = bytearray(whole)
        damaged[generator.randrange(len(whole))] ^= 1 << generator.randrange(8)
        path.write_bytes(damaged)
        assert len(verify(Store(small))) == 1
    path.write_bytes(whole)
    assert verify(Store(small)) == []


@pytest.mark.parametrize("keep", [0, 1, 0.3, 0.5, 0.99])
def test_files_that_are_cut_or_missing_are_named(small, keep):
    for path in [*index_files(small), *sorted((small / "shards").iterdir())]:
        whole = path.read_bytes()
        if not whole:
            continue
        path.write_bytes(whole[: int(len(whole) * keep) if keep != 1 else 1])
        with pytest.raises(UserError, match=path.name):
            answers(Store(small))
        path.unlink()
        with pytest.raises(
            UserError, match="no prepared store" if path.name == "manifest.json" else path.name
        ):
            answers(Store(small))
        path.write_bytes(whole)


def test_a_shard_that_is_cut_while_it_is_read_is_an_error_and_no_signal(small):
    store = Store(small)
    path = store.paths.shard(0)
    with path.open("r+b") as stream:
        stream.truncate(path.stat().st_size // 2)
    with pytest.raises(UserError, match=r"00000\.tar: ends before byte"):
        store.rgb(5, 0)


def change(root, role, edit):
    """Rewrite a file of the index, with checksums that fit: what no checksum finds."""
    manifest = json.loads((root / "manifest.json").read_text())
    entry = manifest["index"][role]
    path = root / "index" / entry["name"]
    rows = np.load(path)
    np.save(path, edit(rows))
    entry["bytes"], entry["sha256"] = path.stat().st_size, sha256(path)
    write_sealed(root / "manifest.json", manifest)


def with_value(field, row, value):
    def edit(rows):
        rows = rows.copy()
        rows[field][row] = value
        return rows

    return edit


@pytest.mark.parametrize(
    ("role", "edit", "message"),
    [
        ("listing", with_value("label", 1, -100), "labels outside of the 3 classes"),
        ("listing", with_value("label", 1, 3), "labels outside of the 3 classes"),
        ("listing", with_value("start", 2, 10**9), "names outside"),
        ("listing", lambda rows: rows[:-1], "rows of videos that the listing does not have"),
        ("splits", lambda rows: rows + 9, "videos that the listing does not have"),
        ("videos", with_value("shard", 0, 7), "rows of shards that the store does not have"),
        ("videos", with_value("rgb_first", 0, 10**9), "rows of offsets that are not there"),
        ("videos", with_value("flow_first", 0, -1), "rows of offsets that are not there"),
        ("videos", with_value("frames", 0, 0), "videos without frames or size"),
        ("videos", with_value("listed", 0, 1), "twice the same"),
        ("videos", lambda rows: rows[:-1], "1 videos are listed, but neither prepared nor rejected: c/v5"),
        ("offsets", lambda rows: rows + 10**9, "the offsets of video c/v0 are damaged"),
        ("offsets", lambda rows: rows[::-1], "the offsets of video c/v0 are damaged"),
        ("offsets", lambda rows: rows + 1, "the offsets of video c/v0 are damaged"),
        ("offsets", lambda rows: rows.astype(np.int32), "its header does not fit its content"),
        ("videos", lambda rows: rows.reshape(2, 3), "its header does not fit its content"),
    ],
)  # fmt: skip
def test_what_has_its_checksum_and_is_wrong_all_the_same_is_refused(small, role, edit, message):
    change(small, role, edit)
    with pytest.raises(UserError, match=message):
        answers(Store(small))


def test_a_store_of_the_first_format_is_refused_in_a_sentence(tmp_path):
    write_json(tmp_path / "manifest.json", {"format": 1, "settings": {}, "shards": {}})
    with pytest.raises(UserError, match=r"store format 1; this version reads 2: prepare again"):
        Store(tmp_path)


def test_numbers_find_every_id_and_no_other(small):
    store = Store(small)
    assert dict(store.number) == {row.id: n for n, row in enumerate(store.rows)}
    assert [name in store.number for name in ("c/v5", "c/v", "", "zz", "c/v55", 3)] == [True] + [
        False
    ] * 5
    with pytest.raises(KeyError):
        store.number["c/v9"]
    assert store.rows[-1] == store.rows[5]
    assert store.rows[1:3] == [store.rows[1], store.rows[2]]
    with pytest.raises(IndexError):
        store.rows[6]


def test_rejected_videos_are_listed_and_have_no_row(small, tmp_path):
    from hpc_stres.prepare.before import Old
    from hpc_stres.store.listing import catalogue_of
    from hpc_stres.store.writer import write_index

    shutil.copytree(small, tmp_path / "t")
    store = Store(tmp_path / "t")
    old = Old.of(store)
    del old.contents.videos["c/v1"]
    row = {"id": "c/v1", "path": "c/v1.avi", "reason": "no frame decodes", "source": [1, "0" * 64]}
    write_index(store.paths, catalogue_of(store), [old.contents], [row], {})
    found = Store(tmp_path / "t")
    assert found.rejected == {"c/v1": "no frame decodes"}
    assert "c/v1" in found.ids(1, "train")
    assert len(found.present(1, "train")) == 3
    assert "c/v1" not in found.number
    assert {row["id"]: row["note"] for row in found.remarks if "note" in row} == {
        "c/v2": "4 of 8 frames"
    }
    for n, own in enumerate(found.rows):
        assert (
            found.member(n, "flow").tobytes()
            == store.member(store.number[own.id], "flow").tobytes()
        )
    assert found.manifest["format"] == format.FORMAT
