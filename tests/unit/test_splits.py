"""Official lists as they are found in the wild, and what is wrong with them said before work begins."""

import os
from pathlib import Path

import pytest

from hpc_stres.config.schema import BindingConfig, DataConfig
from hpc_stres.errors import UserError
from hpc_stres.listings import splits
from hpc_stres.listings.listing import Video
from hpc_stres.listings.official import official_name
from hpc_stres.prepare.binding import write_data_set
from tests.conftest import ROOT

OFFICIAL = ROOT.parent / "shared" / "splits"


@pytest.fixture
def ucf(tmp_path):
    """UCF101's layout with Windows line ends, trailing spaces and a byte order mark."""
    lists, videos = tmp_path / "lists", tmp_path / "videos"
    lists.mkdir()
    (lists / "classInd.txt").write_bytes("\ufeff1 Archery\r\n2 Yo Yo\r\n".encode())
    (lists / "trainlist01.txt").write_bytes(
        b"Archery/v_Archery_g08_c01.avi 1\r\nYo Yo/v_YoYo_g09_c01.avi 2 \r\n\r\n"
    )
    (lists / "testlist01.txt").write_bytes(b"Archery/v_Archery_g01_c01.avi\r\n")
    for name in (
        "Archery/v_Archery_g08_c01.avi",
        "Yo Yo/v_YoYo_g09_c01.avi",
        "Archery/v_Archery_g01_c01.avi",
    ):
        (videos / name).parent.mkdir(parents=True, exist_ok=True)
        (videos / name).write_bytes(b"x")
    return videos, lists


def test_ucf101_lists_with_crlf_and_trailing_spaces(ucf):
    listing = splits.read_ucf101(*ucf)
    assert listing.classes == ["Archery", "Yo Yo"]
    assert listing.train == {1: ["v_Archery_g08_c01", "v_YoYo_g09_c01"]}
    assert listing.test == {1: ["v_Archery_g01_c01"]}
    assert listing.videos["v_YoYo_g09_c01"].label == 1
    assert splits.problems(listing) == []


def test_missing_double_and_shared_groups_are_reported(ucf):
    videos, lists = ucf
    with (lists / "testlist01.txt").open("a") as stream:
        stream.write("Archery/v_Archery_g08_c02.avi\nArchery/v_Archery_g01_c01.avi\n")
    found = splits.problems(splits.read_ucf101(videos, lists))
    assert found == [
        f"missing: {videos}/Archery/v_Archery_g08_c02.avi",
        "split 1: v_Archery_g01_c01 is 2 times in test",
        "split 1: group v_Archery_g08 is in train and test",
    ]


HMDB_NAMES = (
    "a;b_hug_f_nm_np1_fr_med_0",
    "x[1]&(2)_hug_u_cm_np2_ba_bad_3",
    "plain_hug_l_nm_np1_le_goo_1",
)


def test_hmdb51_codes_and_odd_names(tmp_path):
    lists = tmp_path / "lists"
    lists.mkdir()
    for split in (1, 2, 3):
        codes = [(split + offset) % 3 for offset in range(3)]
        rows = "".join(
            f"{name}.avi {code} \r\n" for name, code in zip(HMDB_NAMES, codes, strict=True)
        )
        (lists / f"hug_test_split{split}.txt").write_bytes(rows.encode())
    listing = splits.read_hmdb51(tmp_path / "videos", lists)
    assert listing.classes == ["hug"]
    assert len(listing.videos) == 3
    for split in (1, 2, 3):
        codes = {name: (split + offset) % 3 for offset, name in enumerate(HMDB_NAMES)}
        assert listing.train[split] == [name for name in HMDB_NAMES if codes[name] == 1]
        assert listing.test[split] == [name for name in HMDB_NAMES if codes[name] == 2]


@pytest.mark.skipif(
    not OFFICIAL.is_dir(), reason="no ../shared/splits: the official lists are not here"
)
def test_official_lists_have_the_published_sizes(tmp_path):
    ucf = splits.read_ucf101(tmp_path, OFFICIAL / "ucfTrainTestlist")
    assert len(ucf.classes) == 101
    assert len(ucf.videos) == 13320
    assert [(len(ucf.train[k]), len(ucf.test[k])) for k in (1, 2, 3)] == [
        (9537, 3783),
        (9586, 3734),
        (9624, 3696),
    ]
    hmdb = splits.read_hmdb51(tmp_path, OFFICIAL / "testTrainMulti_7030_splits")
    assert len(hmdb.classes) == 51
    assert [(len(hmdb.train[k]), len(hmdb.test[k])) for k in (1, 2, 3)] == [(3570, 1530)] * 3
    assert not any("group" in line for line in splits.problems(ucf))


def test_missing_lists_and_folders_are_named(tmp_path):
    for kind in ("ucf101", "hmdb51", "folder", "csv"):
        with pytest.raises(UserError, match=str(tmp_path)):
            splits.read_listing(DataConfig(kind=kind, root=str(tmp_path)))


def test_binding_lists_are_balanced_and_disjoint(tmp_path):
    write_data_set(
        tmp_path / "v",
        tmp_path / "l",
        BindingConfig(train_videos=16, test_videos=8, frames=2, side=48),
        1,
    )
    listing = splits.read_ucf101(tmp_path / "v", tmp_path / "l")
    assert splits.problems(listing) == []
    for split in (1, 2, 3):
        assert (len(listing.train[split]), len(listing.test[split])) == (16, 8)
        labels = [listing.videos[name].label for name in listing.test[split]]
        assert sorted(labels) == list(range(8))
    assert len({tuple(ids) for ids in listing.test.values()}) == 3


def make(folder, *names):
    for name in names:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(name.encode())


@pytest.mark.parametrize("fraction", [0.05, 0.25, 0.5, 0.9])
def test_each_class_of_a_folder_gets_its_share(tmp_path, fraction):
    """round(fraction * n) test videos of n, at least one and never all, for every n."""
    for count in range(2, 24):
        make(tmp_path, *(f"class{count:02d}/{number}.mp4" for number in range(count)))
    listing = splits.read_folder(tmp_path, fraction)
    for label, count in enumerate(range(2, 24)):
        tests = sum(listing.videos[name].label == label for name in listing.test[1])
        assert tests == max(1, min(count - 1, int(fraction * count + 0.5))), count
    assert sorted(listing.train[1] + listing.test[1]) == sorted(listing.videos)
    assert splits.problems(listing) == []


def test_an_added_video_moves_at_most_one_other_and_no_other_class(tmp_path):
    make(tmp_path, *(f"{label}/{number}.mp4" for label in ("run", "walk") for number in range(30)))
    before = splits.read_folder(tmp_path, 0.25)
    assert len(before.test[1]) == 16
    for number in range(30, 50):
        make(tmp_path, f"run/{number}.mp4")
        after = splits.read_folder(tmp_path, 0.25)
        moved = set(before.test[1]) - set(after.test[1])
        assert len(moved) <= 1
        assert all(name.startswith("run/") for name in moved)
        before = after


def test_the_split_does_not_depend_on_the_order_of_a_folder(tmp_path, monkeypatch):
    make(tmp_path, *(f"{label}/{number}.mp4" for label in ("run", "walk") for number in range(30)))
    listing = splits.read_folder(tmp_path, 0.25)
    given = os.listdir
    monkeypatch.setattr(os, "listdir", lambda folder: sorted(given(folder), reverse=True))
    assert splits.read_folder(tmp_path, 0.25) == listing


UCF_STYLE = [
    f"Yo/v_Yo_g{group:02d}_c{clip:02d}.avi" for group in range(1, 9) for clip in range(1, 6)
]
HMDB_STYLE = [
    f"wave/Movie{film}_wave_f_nm_np1_fr_goo_{clip}.avi" for film in range(8) for clip in range(5)
]


def test_clips_of_one_recording_stay_together(tmp_path):
    make(tmp_path, *UCF_STYLE, *HMDB_STYLE)
    listing = splits.read_folder(tmp_path, 0.25)
    assert splits.problems(listing) == []
    assert len(listing.test[1]) == 2 * 2 * 5
    for name in listing.test[1]:
        prefix = name[:-4] if "/v_Yo" in name else name[:-2]
        assert sum(other.startswith(prefix) for other in listing.test[1]) == 5, name


def test_classes_that_cannot_be_split_are_refused_by_name(tmp_path):
    make(tmp_path, "run/a.mp4", "run/b.mp4", "sit/a.mp4")
    with pytest.raises(UserError, match=r"no training video in split 1 of: sit\n.*test_fraction"):
        splits.read_folder(tmp_path, 0.25)
    make(tmp_path, "sit/b.mp4", "notes/readme.txt")
    with pytest.raises(UserError, match="of: notes\n"):
        splits.read_folder(tmp_path, 0.25)
    make(tmp_path, "notes/v_x_g01_c01.mp4", "notes/v_x_g01_c02.mp4")
    with pytest.raises(UserError, match="of: notes\n"):
        splits.read_folder(tmp_path, 0.25)
    (tmp_path / "frames" / "run" / "a").mkdir(parents=True)
    with pytest.raises(UserError, match="of: run\n"):
        splits.read_frame_folders(tmp_path / "frames", 0.25)


@pytest.mark.parametrize(
    ("folders", "train", "test"),
    [
        (("train", "test"), "train", "test"),
        (("train", "val"), "train", "val"),
        (("Train", "Testing", "validation"), "Train", "Testing"),
    ],
)
def test_folders_of_splits_are_understood(tmp_path, folders, train, test):
    for folder in folders:
        make(
            tmp_path,
            *(f"{folder}/{label}/{folder}{n}.mp4" for label in ("run", "sit") for n in range(2)),
        )
    listing = splits.read_folder(tmp_path, 0.25)
    assert listing.classes == ["run", "sit"]
    assert sorted(listing.train[1]) == [
        f"{train}/{label}/{train}{n}" for label in ("run", "sit") for n in range(2)
    ]
    assert sorted(listing.test[1]) == [
        f"{test}/{label}/{test}{n}" for label in ("run", "sit") for n in range(2)
    ]
    assert len(listing.notes) == 1
    assert f"{train}/ trains (4 videos), {test}/ tests (4)" in listing.notes[0]
    assert ("validation/ is not read" in listing.notes[0]) == (len(folders) == 3)
    assert splits.problems(listing) == []
    make(tmp_path, f"{train}/jump/a.mp4")
    with pytest.raises(UserError, match=f"no test video in split 1 of: jump\n.*{test}/CLASS"):
        splits.read_folder(tmp_path, 0.25)


def test_one_recording_in_both_folders_of_splits_is_a_problem(tmp_path):
    make(tmp_path, "train/Yo/v_Yo_g01_c01.avi", "test/Yo/v_Yo_g01_c02.avi")
    found = splits.problems(splits.read_folder(tmp_path, 0.25))
    assert found == ["split 1: group Yo/v_Yo_g01 is in train and test"]


def test_classes_may_be_named_train_and_test(tmp_path):
    make(tmp_path, *(f"{label}/{n}.mp4" for label in ("train", "test") for n in range(4)))
    assert splits.read_folder(tmp_path, 0.25).classes == ["test", "train"]
    make(
        tmp_path,
        *(
            f"{label}/v{n}/img_00001.jpg"
            for label in ("frames/train", "frames/test")
            for n in range(4)
        ),
    )
    assert splits.read_frame_folders(tmp_path / "frames", 0.25).classes == ["test", "train"]


def test_hidden_and_system_names_are_neither_classes_nor_videos(tmp_path):
    make(tmp_path, *(f"{label}/{n}.mp4" for label in ("run", "sit") for n in range(4)))
    listing = splits.read_folder(tmp_path, 0.25)
    make(
        tmp_path,
        ".git/a.mp4",
        "__MACOSX/run/a.mp4",
        ".ipynb_checkpoints/a.mp4",
        "run/._1.mp4",
        "run/.x/a.mp4",
    )
    assert splits.read_folder(tmp_path, 0.25) == listing


def test_every_suffix_is_read_or_counted(tmp_path):
    names = [
        f"run/{n}{suffix}"
        for n, suffix in enumerate((".ts", ".MTS", ".3gp", ".ogv", ".gif", ".avi"))
    ]
    make(tmp_path, *names, "run/a.txt", "run/b.TXT", "run/noname", "run/c.srt", "loose.mp4")
    listing = splits.read_folder(tmp_path, 0.25)
    assert len(listing.videos) == 6
    assert listing.ignored == {".srt": 1, ".txt": 2, "(no suffix)": 1}
    assert "1 videos lie in no class folder" in listing.notes[0]
    for name in names:
        (tmp_path / name).unlink()
    with pytest.raises(
        UserError, match=r"no videos in the class folders \(1 x \(no suffix\), 1 x .srt, 2 x .txt\)"
    ):
        splits.read_folder(tmp_path, 0.25)


def test_links_are_followed_but_not_in_circles(tmp_path):
    make(tmp_path, *(f"v/run/{n}.mp4" for n in range(4)), "elsewhere/new.mp4")
    (tmp_path / "v" / "run" / "again").symlink_to(tmp_path / "v" / "run")
    (tmp_path / "v" / "run" / "more").symlink_to(tmp_path / "elsewhere")
    listing = splits.read_folder(tmp_path / "v", 0.25)
    assert sorted(listing.videos) == ["run/0", "run/1", "run/2", "run/3", "run/more/new"]


def test_numbers_are_put_in_order_by_value(tmp_path):
    labels = ["10", "9", "2", "1"]
    make(tmp_path / "v", *(f"{label}/{n}.mp4" for label in labels for n in range(2)))
    assert splits.read_folder(tmp_path / "v", 0.25).classes == ["1", "2", "9", "10"]
    rows = [
        f"{label}/{n}.mp4,{label},{kind}"
        for label in labels
        for n, kind in enumerate(("train", "test"))
    ]
    (tmp_path / "t.csv").write_text("\n".join(["path,label,split", *rows]))
    assert splits.read_csv(tmp_path / "v", tmp_path / "t.csv").classes == ["1", "2", "9", "10"]
    make(tmp_path / "v", "run/0.mp4", "run/1.mp4")
    assert splits.read_folder(tmp_path / "v", 0.25).classes == ["1", "10", "2", "9", "run"]


def test_one_file_under_two_names_is_a_problem(tmp_path):
    make(tmp_path, "a.mp4", "c.mp4")
    (tmp_path / "b.mp4").symlink_to("a.mp4")
    (tmp_path / "d.mp4").hardlink_to(tmp_path / "c.mp4")
    table = tmp_path / "videos.csv"
    table.write_text(
        "path,label,split\na.mp4,run,train\nb.mp4,run,test\nc.mp4,run,train\nd.mp4,run,test\n"
    )
    found = splits.problems(splits.read_csv(tmp_path, table))
    assert len(found) == 2
    assert all("one file under two names" in line for line in found)
    table.write_text("path,label,split\na.mp4,run,train\n./a.mp4,run,test\nc.mp4,run,train\n")
    assert splits.problems(splits.read_csv(tmp_path, table)) == ["split 1: a is in train and test"]


def test_a_name_that_is_not_utf8_is_refused_and_can_be_printed(tmp_path):
    make(tmp_path, "run/a.mp4", "run/b.mp4")
    Path(os.fsdecode(os.fsencode(tmp_path) + b"/run/caf\xe9.mp4")).write_bytes(b"x")
    with pytest.raises(UserError, match=r"caf\\xe9.mp4: this file name is not UTF-8") as caught:
        splits.read_folder(tmp_path, 0.25)
    str(caught.value).encode("utf-8")


def test_labels_that_contradict_the_list_of_classes_are_refused(ucf):
    videos, lists = ucf
    (lists / "trainlist01.txt").write_bytes(
        b"Archery/v_Archery_g08_c01.avi 1\nYo Yo/v_YoYo_g09_c01.avi 1\n"
    )
    with pytest.raises(
        UserError, match=r"trainlist01.txt:2: .*label 1, but Yo Yo is number 2 in classInd"
    ):
        splits.read_ucf101(videos, lists)
    for text, words in (
        ("1 Archery\nYoYo\n", ":2: 'YoYo': expected a number"),
        ("1 A\n1 B\n", ":2: .*twice"),
    ):
        (lists / "classInd.txt").write_text(text)
        with pytest.raises(UserError, match=f"classInd.txt{words}"):
            splits.read_ucf101(videos, lists)


@pytest.mark.skipif(
    not OFFICIAL.is_dir(), reason="no ../shared/splits: the official lists are not here"
)
def test_official_splits_are_known_by_their_contents(tmp_path):
    ucf = splits.read_ucf101(tmp_path, OFFICIAL / "ucfTrainTestlist")
    hmdb = splits.read_hmdb51(tmp_path, OFFICIAL / "testTrainMulti_7030_splits")
    assert (ucf.is_official, hmdb.is_official) == ("ucf101", "hmdb51")
    for listing, name in ((ucf, "ucf101"), (hmdb, "hmdb51")):
        for split in (1, 2, 3):
            given = (listing.classes, listing.train[split], listing.test[split])
            assert official_name(*given, split) == name
            assert official_name(*given, split % 3 + 1) is None
            assert official_name(given[0], given[1][1:], given[2], split) is None
            assert official_name(given[0], given[2], given[1], split) is None
            assert official_name(given[0][:-1], *given[1:], split) is None
    first = next(iter(ucf.videos))
    ucf.videos[first] = Video(first, ucf.videos[first].path, 5)
    assert ucf.is_official is None


def test_other_data_under_a_kind_is_not_official(ucf):
    assert splits.read_ucf101(*ucf).is_official is None


def test_hidden_files_among_the_lists_are_not_classes(tmp_path):
    for name in ("hug_test_split1.txt", "._hug_test_split1.txt"):
        (tmp_path / name).write_text("a.avi 1\nb.avi 2\n")
    listing = splits.read_hmdb51(tmp_path, tmp_path)
    assert (listing.classes, listing.train, listing.test) == (["hug"], {1: ["a"]}, {1: ["b"]})
