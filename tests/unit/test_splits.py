"""Official lists as they are found in the wild, and what is wrong with them said before work begins."""

import pytest

from hpc_stres.config import BindingConfig, DataConfig
from hpc_stres.data import splits
from hpc_stres.data.binding import write_data_set
from hpc_stres.errors import UserError
from tests.conftest import ROOT

OFFICIAL = ROOT.parent / "shared" / "splits"


@pytest.fixture
def ucf(tmp_path):
    """UCF101's layout with Windows line ends, trailing spaces and a byte order mark."""
    lists, videos = tmp_path / "lists", tmp_path / "videos"
    lists.mkdir()
    (lists / "classInd.txt").write_bytes("\ufeff1 Archery\r\n2 Yo Yo\r\n".encode())
    (lists / "trainlist01.txt").write_bytes(b"Archery/v_Archery_g08_c01.avi 1\r\nYo Yo/v_YoYo_g09_c01.avi 2 \r\n\r\n")
    (lists / "testlist01.txt").write_bytes(b"Archery/v_Archery_g01_c01.avi\r\n")
    for name in ("Archery/v_Archery_g08_c01.avi", "Yo Yo/v_YoYo_g09_c01.avi", "Archery/v_Archery_g01_c01.avi"):
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
        "split 1: v_Archery_g01_c01 stands 2 times in test",
        "split 1: group v_Archery_g08 stands in train and test",
    ]


HMDB_NAMES = ("a;b_hug_f_nm_np1_fr_med_0", "x[1]&(2)_hug_u_cm_np2_ba_bad_3", "plain_hug_l_nm_np1_le_goo_1")


def test_hmdb51_codes_and_odd_names(tmp_path):
    lists = tmp_path / "lists"
    lists.mkdir()
    for split in (1, 2, 3):
        codes = [(split + offset) % 3 for offset in range(3)]
        rows = "".join(f"{name}.avi {code} \r\n" for name, code in zip(HMDB_NAMES, codes, strict=True))
        (lists / f"hug_test_split{split}.txt").write_bytes(rows.encode())
    listing = splits.read_hmdb51(tmp_path / "videos", lists)
    assert listing.classes == ["hug"]
    assert len(listing.videos) == 3
    for split in (1, 2, 3):
        codes = {name: (split + offset) % 3 for offset, name in enumerate(HMDB_NAMES)}
        assert listing.train[split] == [name for name in HMDB_NAMES if codes[name] == 1]
        assert listing.test[split] == [name for name in HMDB_NAMES if codes[name] == 2]


@pytest.mark.skipif(not OFFICIAL.is_dir(), reason="no ../shared/splits: the official lists are not here")
def test_official_lists_have_the_published_sizes(tmp_path):
    ucf = splits.read_ucf101(tmp_path, OFFICIAL / "ucfTrainTestlist")
    assert len(ucf.classes) == 101
    assert len(ucf.videos) == 13320
    assert [(len(ucf.train[k]), len(ucf.test[k])) for k in (1, 2, 3)] == [(9537, 3783), (9586, 3734), (9624, 3696)]
    hmdb = splits.read_hmdb51(tmp_path, OFFICIAL / "testTrainMulti_7030_splits")
    assert len(hmdb.classes) == 51
    assert [(len(hmdb.train[k]), len(hmdb.test[k])) for k in (1, 2, 3)] == [(3570, 1530)] * 3
    assert not any("group" in line for line in splits.problems(ucf))


def test_folders_are_split_by_name_and_stay_so(tmp_path):
    for label in ("run", "walk"):
        (tmp_path / label).mkdir()
        for number in range(40):
            (tmp_path / label / f"{number}.mp4").write_bytes(b"x")
    one = splits.read_folder(tmp_path, 0.25)
    assert one.classes == ["run", "walk"]
    assert 8 < len(one.test[1]) < 32
    (tmp_path / "run" / "new.mp4").write_bytes(b"x")
    two = splits.read_folder(tmp_path, 0.25)
    assert set(one.test[1]) <= set(two.test[1])
    assert splits.problems(two) == []


def test_csv_tables_and_their_mistakes(tmp_path):
    table = tmp_path / "videos.csv"
    table.write_text("path,label,split\na b.mp4,run,train\nsub/c.mp4,walk,test\n")
    listing = splits.read_csv(tmp_path, table)
    assert listing.train == {1: ["a b"]}
    assert listing.test == {1: ["sub/c"]}
    table.write_text("path,label,split\na.mp4,run,training\n")
    with pytest.raises(UserError, match=r"videos\.csv:2: split is 'training'"):
        splits.read_csv(tmp_path, table)
    table.write_text("file,class\n")
    with pytest.raises(UserError, match="path, label and split"):
        splits.read_csv(tmp_path, table)


def test_missing_lists_and_folders_are_named(tmp_path):
    for kind in ("ucf101", "hmdb51", "folder", "csv"):
        with pytest.raises(UserError, match=str(tmp_path)):
            splits.read_listing(DataConfig(kind=kind, root=str(tmp_path)))


def test_binding_lists_are_balanced_and_disjoint(tmp_path):
    write_data_set(tmp_path / "v", tmp_path / "l", BindingConfig(train_videos=16, test_videos=8, frames=2, side=48), 1)
    listing = splits.read_ucf101(tmp_path / "v", tmp_path / "l")
    assert splits.problems(listing) == []
    for split in (1, 2, 3):
        assert (len(listing.train[split]), len(listing.test[split])) == (16, 8)
        labels = [listing.videos[name].label for name in listing.test[split]]
        assert sorted(labels) == list(range(8))
    assert len({tuple(ids) for ids in listing.test.values()}) == 3
