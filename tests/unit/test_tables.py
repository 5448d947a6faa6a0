"""Tables and lists that people write: read right, or refused with the line; never an error without a sentence."""

import codecs
import random
from functools import partial

import pytest

from hpc_stres.errors import UserError
from hpc_stres.listings import splits

HEADER = "path,label,split\n"
PAIR = "b.mp4,run,test\nc.mp4,run,train\n"


def read(tmp_path, text):
    table = tmp_path / "videos.csv"
    table.write_bytes(text if isinstance(text, bytes) else text.encode())
    return splits.read_csv(tmp_path, table)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", r"videos.csv:1: no column path and no column label"),
        (HEADER, "no rows under the header"),
        (HEADER + PAIR + "a.mp4,run\n", r"videos.csv:4: 2 cells under a header of 3"),
        (HEADER + PAIR + "a,b.mp4,run,train\n", r"videos.csv:4: 4 cells under a header of 3"),
        (HEADER + PAIR + "a.mp4, ,train\n", r"videos.csv:4: the label is empty"),
        (HEADER + PAIR + ",run,train\n", r"videos.csv:4: the path is empty"),
        (HEADER + PAIR + "a.mp4,run,\n", r"videos.csv:4: split is ''; expected train or test"),
        (
            HEADER + PAIR + "a.mp4,run,training\n",
            r"videos.csv:4: split is 'training'; expected train or test",
        ),
        (HEADER + PAIR + "..,run,train\n", r"videos.csv:4: '..' is not the name of a file"),
        (HEADER + PAIR + "/,run,train\n", r"videos.csv:4: .* is not the name of a file"),
        (HEADER + PAIR + '"a.mp4,run,train\n', r"videos.csv:4: this row cannot be read"),
        (
            HEADER + '"a.mp4,run,train\n' + PAIR + '"d.mp4,run,train\n',
            r"videos.csv:2: (this row|a cell goes)",
        ),
        (
            "path,label,split,label\n" + "a,b,train,c\n",
            r"videos.csv:1: two columns are named label",
        ),
        ("path,label\na.mp4,run\n", "expected a column split"),
        ("path,label,split,split1\na.mp4,run,train,train\n", "expected a column split, or"),
        (
            (HEADER + PAIR + "café.mp4,run,train\n").encode("latin-1"),
            r"videos.csv:4: this text is not UTF-8",
        ),
        ((HEADER + PAIR).encode("utf-16-le"), r"videos.csv:1: a NUL byte"),
        (codecs.BOM_UTF16_LE + (HEADER + PAIR).encode("utf-16-le") + b"\0", "not UTF-16"),
        (HEADER + PAIR + "a\0.mp4,run,train\n", r"videos.csv:4: a NUL byte"),
        (HEADER + PAIR + "x" * 200_000 + ",run,train\n", r"videos.csv:4: this row cannot be read"),
        (HEADER + PAIR + "a.mp4,rnu,train\n", "no test video in split 1 of: rnu"),
        (HEADER + PAIR + "d.mp4,sit,test\n", "no training video in split 1 of: sit"),
        (HEADER + PAIR + "b.avi,run,train\n", "two videos have the id b"),
    ],
)
def test_each_mistake_is_named_with_its_line(tmp_path, text, words):
    with pytest.raises(UserError, match=words) as caught:
        read(tmp_path, text)
    assert len(str(caught.value).splitlines()) <= 3


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
@pytest.mark.parametrize("line_end", ["\n", "\r\n", "\r"])
@pytest.mark.parametrize("delimiter", [",", ";", "\t"])
def test_tables_of_every_editor_are_read(tmp_path, encoding, line_end, delimiter):
    lines = ["Path, label ,SPLIT", '"a b, c.mp4",läuft,train', "", "sub/c.mp4,läuft,Test"]
    if delimiter != ",":
        lines = [
            line.replace('"a b, c.mp4"', "a b+ c.mp4").replace(",", delimiter).replace("+", ",")
            for line in lines
        ]
    listing = read(tmp_path, line_end.join(lines).encode(encoding))
    assert (listing.classes, listing.train, listing.test) == (
        ["läuft"],
        {1: ["a b, c"]},
        {1: ["sub/c"]},
    )


def test_several_splits_and_recordings_have_columns(tmp_path):
    text = "path,label,split1,split2,group\na.mp4,run,train,test,g1\nb.mp4,run,test,train,g2\nc.mp4,run,train,,g2\n"
    for name in "abc":
        (tmp_path / f"{name}.mp4").write_bytes(name.encode())
    listing = read(tmp_path, text)
    assert listing.train == {1: ["a", "c"], 2: ["b"]}
    assert listing.test == {1: ["b"], 2: ["a"]}
    assert splits.problems(listing) == ["split 1: group g2 is in train and test"]


BASE = "path,label,split,group\n" + "".join(
    f'"{label}/clip, {kind}{n}.mp4",{label},{kind},{kind}{n}\n'
    for label in ("1", "2") for kind in ("train", "test") for n in range(3)
)  # fmt: skip
PIECES = [
    b"\0",
    b"\xe9",
    b'"',
    b",",
    b"\n",
    b"\r",
    b";",
    b"\xff\xfe",
    b"..",
    b"/",
    b" ",
    b"path",
    b"label",
    b"\xed\xa0\x80",
]


def mutated(random_, data):
    for _ in range(random_.randint(1, 3)):
        place = random_.randrange(len(data) + 1)
        other = min(len(data), place + random_.choice((1, 2, 5, len(data) // 3)))
        kind = random_.choice((0, 1, 1, 2, 2, 2, 3, 4))
        if kind == 0:
            data = data[:place] + data[other:]
        elif kind == 1:
            data = data[:place] + random_.choice(PIECES) + data[place:]
        elif kind == 2:
            data = data[:place] + bytes([random_.randrange(256)]) + data[place + 1 :]
        elif kind == 3:
            data = data[:other] + data[place:]
        else:
            data = data[:place]
        data = data or b"\n"
    return data


def check(listing, complete):
    """A listing that was accepted is whole; official lists may leave a class out of a split, tables may not."""
    assert listing.classes
    assert all(listing.classes)
    for split, train in listing.train.items():
        ids = train + listing.test[split]
        assert set(ids) <= set(listing.videos)
        for used in (train, listing.test[split]):
            labels = {listing.videos[name].label for name in used}
            assert labels <= set(range(len(listing.classes)))
            assert not complete or len(labels) == len(listing.classes)
    splits.problems(listing)
    for video in listing.videos.values():
        video.id.encode()


def fuzz(reader, files, rounds, seed, complete=True):
    """Mutate one file after another; each is read whole or refused in three lines at most."""
    random_ = random.Random(seed)
    wholes = {path: path.read_bytes() for path in files}
    accepted = 0
    for number in range(rounds):
        path = files[number % len(files)]
        path.write_bytes(mutated(random_, wholes[path]))
        try:
            listing = reader()
            check(listing, complete)
            accepted += 1
        except UserError as error:
            lines = str(error).splitlines()
            assert 1 <= len(lines) <= 3
            assert str(path.parent) in lines[0] or lines[0].startswith("two videos")
            str(error).encode()
        path.write_bytes(wholes[path])
    return accepted


def test_three_thousand_mutated_tables(tmp_path):
    table = tmp_path / "videos.csv"
    table.write_text(BASE)
    check(splits.read_csv(tmp_path, table), complete=True)
    accepted = fuzz(lambda: splits.read_csv(tmp_path, table), [table], 3000, 1)
    assert 100 < accepted < 2900


def test_mutated_official_lists(tmp_path):
    ucf, hmdb = tmp_path / "ucf", tmp_path / "hmdb"
    ucf.mkdir()
    hmdb.mkdir()
    (ucf / "classInd.txt").write_text("1 Archery\n2 Yo Yo\n")
    (ucf / "trainlist01.txt").write_text("Archery/v_A_g08_c01.avi 1\nYo Yo/v_Y_g09_c01.avi 2\n")
    (ucf / "testlist01.txt").write_text("Archery/v_A_g01_c01.avi\nYo Yo/v_Y_g01_c01.avi\n")
    for split in (1, 2, 3):
        for name in ("hug", "run"):
            rows = [f"{name}{n}.avi {1 if (n + split) % 3 else 2}\n" for n in range(6)]
            (hmdb / f"{name}_test_split{split}.txt").write_text("".join(rows))

    for folder, reader in ((ucf, splits.read_ucf101), (hmdb, splits.read_hmdb51)):
        files = sorted(folder.iterdir())
        accepted = fuzz(partial(reader, tmp_path, folder), files, 900, 2, complete=False)
        assert 50 < accepted < 850
