"""A store is the data set that it says it is: other data sets, edited lists, replaced videos, the least work."""

import os
import re
import shutil

import numpy as np
import pytest

from hpc_stres.errors import UserError
from hpc_stres.prepare import run as preparing
from hpc_stres.prepare.run import prepare
from hpc_stres.prepare.video import decode, write_video
from hpc_stres.store.listing import check_matches, missing_originals
from hpc_stres.store.location import store_folder
from hpc_stres.store.reader import Store, verify
from tests.conftest import tiny_config
from tests.unit.listed import answers, from_scratch, own_config, rows_of, write_csv

# -- identity ----------------------------------------------------------------------------------------------------------


def test_other_data_sets_under_one_root_have_other_stores(tmp_path):
    base = tiny_config(tmp_path, "data.kind=folder")
    others = [
        tiny_config(tmp_path, "data.kind=folder", f"data.videos={tmp_path}/second"),
        tiny_config(tmp_path, "data.kind=folder", "data.videos=/elsewhere/second"),
        tiny_config(tmp_path, "data.kind=folder", "data.test_fraction=0.5"),
        tiny_config(tmp_path, "data.kind=folder", "data.jpeg_quality=90"),
        tiny_config(tmp_path, "data.kind=folder", f"data.frames={tmp_path}/f"),
        tiny_config(
            tmp_path,
            "data.kind=folder",
            f"data.frames={tmp_path}/f",
            f"data.flow_frames={tmp_path}/g",
        ),
        tiny_config(tmp_path, "data.kind=csv"),
        tiny_config(tmp_path, "data.kind=csv", f"data.lists={tmp_path}/b.csv"),
        tiny_config(tmp_path, "seed=8"),
    ]
    folders = {store_folder(config) for config in (base, *others)}
    assert len(folders) == 1 + len(others)


def test_the_same_data_set_has_one_store_wherever_it_is_called_from(tmp_path, monkeypatch):
    (tmp_path / "deep").mkdir()
    written_out = tiny_config(tmp_path, "data.kind=folder", f"data.videos={tmp_path}/folder/videos")
    monkeypatch.chdir(tmp_path)
    relative = tiny_config(".", "data.kind=folder", "data.videos=folder/videos")
    monkeypatch.chdir(tmp_path / "deep")
    upwards = tiny_config("..", "data.kind=folder")
    names = {store_folder(config).name for config in (written_out, relative, upwards)}
    assert len(names) == 1
    moved = tiny_config(tmp_path / "moved", "data.kind=folder")
    assert store_folder(moved).name in names


def test_a_second_folder_gets_its_own_store(root, work):
    """Two folders under one root: the second one's store holds the second one's videos."""
    first = root / "binding" / "videos"
    classes = sorted(p.name for p in first.iterdir())
    for name in classes[:2]:
        shutil.copytree(first / name, root / "two" / f"second{name}")
    configs = [
        tiny_config(root, "data.kind=folder", f"data.videos={p}") for p in (first, root / "two")
    ]
    one, two = (Store(prepare(config, quiet=True)) for config in configs)
    assert one.classes == classes
    assert two.classes == [f"second{name}" for name in classes[:2]]
    assert work == []  # the demonstration store had all of these frames
    assert [answers(Store(store_folder(config)))[0] for config in configs] == [
        one.classes,
        two.classes,
    ]


def test_the_demonstration_data_set_of_another_seed_has_other_videos(root):
    config = tiny_config(root, "seed=8", "data.binding.frames=4")
    other = Store(prepare(config, quiet=True))
    assert {row.frames for row in other.rows} == {4}
    assert {row.frames for row in Store(store_folder(tiny_config(root))).rows} == {24}


# -- the least work ----------------------------------------------------------------------------------------------------


def test_another_csv_over_the_same_videos_copies_frames(root, work, tmp_path):
    write_csv(root, rows_of(root))
    store = Store(prepare(own_config(root), quiet=True))
    assert work == []
    assert len(store.rows) == 10
    assert answers(store) == from_scratch(root, tmp_path)
    assert len(work) == 10
    assert verify(store) == []


def test_edited_labels_classes_and_splits_cost_no_decoding(root, work, tmp_path):
    rows = rows_of(root)
    write_csv(root, rows)
    config = own_config(root)
    shard = Store(prepare(config, quiet=True)).paths.shard(0)
    before = shard.stat()
    rows[0][1] = rows[1][1] = "aaa"  # a new first class: all numbers of labels move
    rows[3][2] = "test"
    write_csv(root, rows)
    outcome = preparing.run(config, quiet=True)
    store = Store(outcome.folder)
    assert work == []
    assert (shard.stat().st_ino, shard.stat().st_mtime_ns) == (before.st_ino, before.st_mtime_ns)
    text = "\n".join(outcome.lines)
    assert f"changed: 2 relabelled: {rows[0][0][:-4]}, {rows[1][0][:-4]}" in text
    assert f"changed: 1 moved between splits: {rows[3][0][:-4]}" in text
    assert "changed: classes: 1 new: aaa" in text
    assert store.classes == ["aaa", "jump", "walk"]
    assert store.rows[store.number[rows[1][0][:-4]]].label == 0
    assert answers(store) == from_scratch(root, tmp_path)


def test_added_and_removed_videos(root, work, tmp_path):
    rows = rows_of(root, 12)
    write_csv(root, rows[:10])
    config = own_config(root)
    prepare(config, quiet=True)
    shutil.rmtree(store_folder(tiny_config(root)))  # nobody has the frames of the new ones
    write_csv(root, rows[3:])
    outcome = preparing.run(config, quiet=True)
    assert sorted(work) == sorted(row[0][:-4] for row in rows[10:])
    assert any(line.startswith("changed: 2 added") for line in outcome.lines)
    assert any(line.startswith("changed: 3 removed") for line in outcome.lines)
    store = Store(outcome.folder)
    assert verify(store) == []
    assert sorted(path.name for path in store.paths.shards.iterdir()) == ["00000.tar", "00001.tar"]
    assert answers(store) == from_scratch(root, tmp_path)


def test_shards_that_are_mostly_unused_are_packed_again(root, work, tmp_path):
    rows = rows_of(root)
    write_csv(root, rows)
    prepare(own_config(root), quiet=True)
    write_csv(root, rows[-4:])
    store = Store(prepare(own_config(root), quiet=True))
    assert work == []
    assert [path.name for path in store.paths.shards.iterdir()] == ["00001.tar"]
    assert verify(store) == []
    assert answers(store) == from_scratch(root, tmp_path)


def replace_video(path):
    """Another video in the place of one: the same frames backwards."""
    frames = list(decode(path))[::-1]
    write_video(path, iter(frames), 25)


@pytest.mark.parametrize("trick", ["plainly", "same size and time"])
def test_a_replaced_video_is_prepared_again(root, work, tmp_path, trick):
    rows = rows_of(root)
    write_csv(root, rows)
    config = own_config(root)
    prepare(config, quiet=True)
    path = root / "binding" / "videos" / rows[5][0]
    then = path.stat()
    if trick == "plainly":
        replace_video(path)
    else:
        data = bytearray(path.read_bytes())
        data[-5] ^= 1  # in the index at the file's end: it decodes all the same
        path.write_bytes(data)
        os.utime(path, ns=(then.st_atime_ns, then.st_mtime_ns))
    outcome = preparing.run(config, quiet=True)
    assert work == [rows[5][0][:-4]]
    assert f"changed: 1 whose video is another than before: {rows[5][0][:-4]}" in outcome.lines
    assert answers(Store(outcome.folder)) == from_scratch(root, tmp_path)


def test_a_copied_or_touched_data_set_is_not_prepared_again(root, work):
    write_csv(root, rows_of(root))
    config = own_config(root)
    prepare(config, quiet=True)
    bytes_before = Store(store_folder(config)).paths.manifest.read_bytes()
    for path in (root / "binding" / "videos").rglob("*.avi"):
        os.utime(path)
    check_matches(Store(store_folder(config)), config)
    outcome = preparing.run(config, quiet=True)
    assert work == []
    assert not [line for line in outcome.lines if line.startswith("changed")]
    assert Store(outcome.folder).paths.manifest.read_bytes() == bytes_before


def test_a_repaired_video_is_tried_again_and_a_broken_one_is_not(root, work):
    rows = rows_of(root)
    write_csv(root, rows)
    config = own_config(root, "data.max_rejected=0.5")
    path = root / "binding" / "videos" / rows[0][0]
    whole = path.read_bytes()
    path.write_bytes(b"this is no video")
    outcome = preparing.run(config, quiet=True)
    name = rows[0][0][:-4]
    assert list(Store(outcome.folder).rejected) == [name]
    text = "\n".join(outcome.lines)
    assert f"1 rejected:\n  {rows[0][0]}: " in text
    assert (
        "test videos among them: 1 of split 1; evaluation will refuse unless evaluation.allow_missing"
        in text
    )
    assert work == [name]
    prepare(config, quiet=True)
    assert work == [name]
    # Under other limits what was rejected may pass.
    prepare(own_config(root, "data.max_rejected=0.5", "data.video_minutes=11"), quiet=True)
    assert work == [name, name]
    path.write_bytes(whole)
    store = Store(prepare(config, quiet=True))
    assert store.rejected == {}
    assert name in store.number


def test_parts_of_a_killed_run_do_not_outlive_their_source(root, work, monkeypatch):
    """Prepared before the kill, replaced before the resume, and a class added: labels and frames are the new ones."""
    shutil.rmtree(root / "stores")
    rows = rows_of(root, 6)
    write_csv(root, rows)
    config = own_config(root)

    def killed(self, names, old):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(preparing.Preparation, "_pack", killed)
        with pytest.raises(KeyboardInterrupt):
            prepare(config, quiet=True)
    assert len(work) == 6
    replace_video(root / "binding" / "videos" / rows[2][0])
    rows[2][1] = rows[3][1] = "aaa"
    write_csv(root, rows)
    store = Store(prepare(config, quiet=True))
    assert work[6:] == [rows[2][0][:-4]]
    labels = {row.id: store.classes[row.label] for row in store.rows}
    assert labels == {row[0][:-4]: row[1] for row in rows}


class Killed(BaseException):
    """Nothing is cleaned up after this."""


def test_killed_at_any_rename_the_store_is_the_old_or_the_new_one(
    root, work, tmp_path, monkeypatch
):
    rows = rows_of(root, 5)
    write_csv(root, rows[:4])
    config = own_config(root)
    old = answers(Store(prepare(config, quiet=True)))
    before = tmp_path / "before"
    shutil.copytree(root, before)
    rows[1][1] = rows[4][1] = "aaa"
    rows[2][2], rows[3][2] = "train", "test"
    write_csv(root, rows[1:])
    new = from_scratch(root, tmp_path)
    shutil.copy(root / "own.csv", before / "own.csv")
    seen, real = set(), os.replace
    for point in range(100):
        shutil.rmtree(root)
        shutil.copytree(before, root)
        calls = iter(range(1000))

        def replace(source, target, calls=calls, point=point):
            if next(calls) == point:
                raise Killed
            real(source, target)

        with monkeypatch.context() as patch:
            patch.setattr("os.replace", replace)
            try:
                prepare(config, quiet=True)
                break
            except Killed:
                pass
        store = Store(store_folder(config))
        assert verify(store) == []
        found = answers(store)
        assert found in (old, new)
        seen.add(found == new)
        assert answers(Store(prepare(config, quiet=True))) == new
    assert point > 8
    assert seen == {False, True}


# -- before a job waits in a queue -------------------------------------------------------------------------------------


def test_what_prepare_would_refuse_is_known_before(tmp_path):
    """A dead link, and one file under two names: a submit says them as prepare does."""
    videos = tmp_path / "videos"
    for label in ("run", "sit"):
        (videos / label).mkdir(parents=True)
        for number in range(3):
            write_video(videos / label / f"{number}.avi", [np.zeros((16, 16, 3), np.uint8)] * 3, 25)
    config = tiny_config(
        tmp_path, "data.kind=folder", f"data.videos={videos}", "data.max_rejected=0.9"
    )
    assert missing_originals(config.data) == []
    for name, target, words in (
        ("dead.avi", videos / "nothing.avi", "videos are not here, the first: .*dead.avi"),
        ("second.avi", videos / "run" / "0.avi", "one file under two names: .*second.avi"),
    ):
        (videos / "run" / name).symlink_to(target)
        (line,) = missing_originals(config.data)
        assert re.search(words, line)
        with pytest.raises(UserError, match=f"{name}.*\nCorrect the lists, or remove the file"):
            prepare(config, quiet=True)
        (videos / "run" / name).unlink()
