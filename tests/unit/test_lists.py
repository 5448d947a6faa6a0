"""Lists of any data set's own, and several splits for every kind: what is read, and what is refused with its line."""

import pytest

from hpc_stres.config.schema import DataConfig
from hpc_stres.errors import FieldError, UserError
from hpc_stres.listings import splits
from hpc_stres.listings.lists import read_lists
from hpc_stres.listings.sources import read_listing


def write(folder, **files):
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in files.items():
        (folder / name.replace("__", ".")).write_text(text, encoding="utf-8")
    return folder


def make(folder, *names):
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(name.encode())


def test_paths_and_labels_in_every_habit_of_writing_them(tmp_path):
    """VideoMAE's `path label`, commas, tabs, names with spaces, quotes, Windows' line ends: one listing."""
    expected = {
        "run/a b": "run",
        "run/c": "run",
        "sit down/d": "sit down",
        "sit down/e": "sit down",
    }
    habits = [
        (
            "run/a b.mp4 0\r\nsit down/d.avi 1\r\n",
            "run/c.mp4 0\nsit down/e.mkv 1\n",
            "run\nsit down\n",
        ),
        (
            "run/a b.mp4,run\nsit down/d.avi,sit down\n",
            "run/c.mp4, run\nsit down/e.mkv , sit down\n",
            None,
        ),
        (
            "run/a b.mp4\trun\nsit down/d.avi\tsit down\n",
            '"run/c.mp4" run\n"sit down/e.mkv" sit down\n',
            None,
        ),
        ("run/a b.mp4\nsit down/d.avi\n", "./run/c.mp4\nsit down//e.mkv\n", None),
        ("run/a b.mp4 1\nsit down/d.avi 2\n", "run/c.mp4\nsit down/e.mkv\n", "1 run\n2 sit down\n"),
        (
            "run/a b.mp4 007\nsit down/d.avi 012\n",
            "run/c.mp4 7\nsit down/e.mkv 12\n",
            "7 run\n12 sit down\n",
        ),
    ]
    for number, (train, test, classes) in enumerate(habits):
        lists = write(tmp_path / f"lists{number}", train__txt=train, test__txt=test)
        if classes:
            write(lists, classes__txt=classes)
        listing = read_lists(tmp_path / "videos", lists)
        assert {
            name: listing.classes[video.label] for name, video in listing.videos.items()
        } == expected, number
        assert listing.classes == ["run", "sit down"]
        assert listing.train == {1: ["run/a b", "sit down/d"]}
        assert listing.test == {1: ["run/c", "sit down/e"]}
        assert listing.videos["run/c"].path == tmp_path / "videos" / "run" / "c.mp4"


@pytest.mark.parametrize(
    "names",
    [
        [("train{}.txt", "test{}.txt")],
        [("train_{}.csv", "val_{}.csv")],
        [("trainlist{:02d}.txt", "testlist{:02d}.txt")],
        [("train_split{}.txt", "test_split{}.txt")],
        [("Training-{}.lst", "Testing-{}.lst")],
    ],
)
def test_any_number_of_splits_under_any_usual_names(tmp_path, names):
    (train, test), count = names[0], 11
    for split in range(1, count + 1):
        write(tmp_path / "l")
        (tmp_path / "l" / train.format(split)).write_text(
            "a/1.mp4\nb/1.mp4\n" + f"a/t{split}.mp4\n"
        )
        (tmp_path / "l" / test.format(split)).write_text("a/2.mp4\nb/2.mp4\n")
    listing = read_lists(tmp_path, tmp_path / "l")
    assert list(listing.train) == list(listing.test) == list(range(1, count + 1))
    assert [ids[-1] for ids in listing.train.values()] == [
        f"a/t{split}" for split in range(1, count + 1)
    ]


def test_val_tests_where_there_is_no_test_and_is_said_where_there_is(tmp_path):
    rows = "a/1.mp4\n", "a/2.mp4\n", "a/3.mp4\n"
    lists = write(tmp_path, train__txt=rows[0], test__txt=rows[1], val__txt=rows[2])
    listing = read_lists(tmp_path, lists)
    assert listing.test == {1: ["a/2"]}
    assert len(listing.notes) == 1
    assert "val.txt: not read" in listing.notes[0]


def test_classes_of_frame_folders_and_absolute_paths(tmp_path):
    lists = write(
        tmp_path / "l", train__txt="x/v 1 0\n/abs/w.mp4 1\n", test__txt="x/u 1\tnot\nx/w 1 1\n"
    )
    write(lists, classes__txt="0 zero\n1 one\n")
    with pytest.raises(UserError, match=r"test\.txt:1: 'not' is no class"):
        read_lists(tmp_path / "v", lists)
    write(lists, test__txt="x/u 1\t0\nx/w 1 1\n")
    listing = read_lists(tmp_path / "v", lists)
    assert sorted(listing.videos) == ["abs/w", "x/u 1", "x/v 1", "x/w 1"]
    assert str(listing.videos["abs/w"].path) == "/abs/w.mp4"


A, B = "a/1.mp4\n", "a/2.mp4\n"


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({}, r"no lists here\nExpected train.txt and test.txt"),
        ({"train__txt": A}, "split 1 has no test list"),
        ({"train1__txt": A, "test1__txt": B, "test3__txt": B}, "split 2 has no train and no"),
        ({"train__txt": A, "train1__csv": A, "test__txt": B}, "both train.txt and train1.csv"),
        (
            {"train__txt": "a/1.mp4 x\n", "test__txt": "a/1.mp4 y\n"},
            r"test\.txt:1: a/1\.mp4 is of class y here, of x in .*train",
        ),
        ({"train__txt": "a/1.mp4 x\n", "test__txt": "a/1.avi x\n"}, "have one name"),
        ({"train__txt": "1.mp4\n", "test__txt": B}, r"train\.txt:1: '1.mp4': no class"),
        ({"train__txt": A + "b/1.mp4\n", "test__txt": B}, "no test video in split 1 of: b"),
        (
            {"train__txt": "a/1.mp4 3\n", "test__txt": B, "classes__txt": "a\nb\n"},
            "'3' is no class of the",
        ),
        (
            {"train__txt": A, "test__txt": B, "classes__txt": "a\na\n"},
            r"classes\.txt:2: the class a is",
        ),
        (
            {"train__txt": "word\n", "test__txt": B},
            r"train\.txt:1: 'word': expected a path and a class",
        ),
        ({"train__txt": ".. 3\n", "test__txt": B}, "expected a path and a class"),
        ({"train__txt": A, "test__txt": B, "classes__txt": "\n"}, "no classes"),
    ],
)
def test_a_mistake_is_refused_with_its_place(tmp_path, files, message):
    with pytest.raises(UserError, match=message):
        read_lists(tmp_path, write(tmp_path / "l", **files))


def test_a_folder_of_lists_that_is_not_there_is_named(tmp_path):
    with pytest.raises(UserError, match=f"{tmp_path}/nowhere: no such folder of lists"):
        read_lists(tmp_path, tmp_path / "nowhere")


@pytest.mark.parametrize("folds", [2, 3, 5, 10])
def test_each_video_of_a_folder_tests_in_exactly_one_fold(tmp_path, folds):
    make(
        tmp_path, *(f"{label}/{n}.mp4" for label in ("run", "sit") for n in range(10 + len(label)))
    )
    listing = splits.read_folder(tmp_path, 0.25, folds)
    assert list(listing.train) == list(listing.test) == list(range(1, folds + 1))
    tested = [name for ids in listing.test.values() for name in ids]
    assert sorted(tested) == sorted(listing.videos)
    sizes = [len(ids) for ids in listing.test.values()]
    assert max(sizes) - min(sizes) <= 2, "a class's recordings are dealt out in turn"
    for split in listing.train:
        assert sorted(listing.train[split] + listing.test[split]) == sorted(listing.videos)
    assert splits.problems(listing) == []


def test_clips_of_one_recording_share_a_fold_and_few_recordings_are_refused(tmp_path):
    make(
        tmp_path,
        *(f"Yo/v_Yo_g{group:02d}_c{clip:02d}.avi" for group in range(1, 5) for clip in range(3)),
    )
    listing = splits.read_folder(tmp_path, 0.25, 4)
    assert splits.problems(listing) == []
    assert [len(ids) for ids in listing.test.values()] == [3, 3, 3, 3]
    with pytest.raises(UserError, match=r"no test video in split 5 of: Yo\n.*data.folds is 5"):
        splits.read_folder(tmp_path, 0.25, 5)


def test_folders_of_train_and_test_are_one_split(tmp_path):
    make(tmp_path, *(f"{kind}/run/{kind}{n}.mp4" for kind in ("train", "test") for n in range(4)))
    assert list(splits.read_folder(tmp_path, 0.25).train) == [1]
    with pytest.raises(
        UserError, match=r"test/ and train/ are the one split.*\nSet data.folds to 1"
    ):
        splits.read_folder(tmp_path, 0.25, 2)


def test_a_table_may_have_more_than_three_splits(tmp_path):
    header = "path,label," + ",".join(f"split{n}" for n in range(1, 6))
    rows = [
        f"v{n}.mp4,{'ab'[n % 2]}," + ",".join("test" if n // 2 == k else "train" for k in range(5))
        for n in range(10)
    ]
    (tmp_path / "videos.csv").write_text("\n".join([header, *rows]))
    listing = splits.read_csv(tmp_path, tmp_path / "videos.csv")
    assert [listing.test[k] for k in range(1, 6)] == [
        [f"v{2 * k}", f"v{2 * k + 1}"] for k in range(5)
    ]


def test_a_config_reads_lists_and_folds_and_has_no_other_split(tmp_path):
    make(tmp_path / "v", *(f"{label}/{n}.mp4" for label in ("run", "sit") for n in range(5)))
    write(tmp_path / "l", train__txt="run/0.mp4\nsit/0.mp4\n", test__txt="run/1.mp4\nsit/1.mp4\n")
    own = DataConfig(kind="lists", videos=str(tmp_path / "v"), lists=str(tmp_path / "l"), split=1)
    assert read_listing(own).train == {1: ["run/0", "sit/0"]}
    folds = DataConfig(kind="folder", videos=str(tmp_path / "v"), folds=5, split=5)
    assert sorted(read_listing(folds).test) == [1, 2, 3, 4, 5]
    with pytest.raises(FieldError, match="1 to 99"):
        DataConfig(split=100)
