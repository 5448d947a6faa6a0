"""Importing frames and flow that other tools extracted, in each of their layouts."""

import random
import struct

import cv2
import numpy as np
import pytest

from hpc_stres.config.schema import DataConfig
from hpc_stres.data.flow import decode_flow, encode_flow
from hpc_stres.listings import sources
from hpc_stres.listings.splits import Video, problems
from hpc_stres.prepare import imports
from hpc_stres.prepare.run import prepare
from hpc_stres.prepare.video import UndecodableError, encode_jpeg
from hpc_stres.store.location import Settings
from hpc_stres.store.reader import Store
from tests.conftest import tiny_config

FRAMES, SIZE = 6, (48, 64)
SETTINGS = Settings(48, 95, "imported")
LAYOUTS = ("tsn", "tsn_same_folder", "uv")


def rgb(number, size=SIZE):
    return encode_jpeg(np.random.default_rng(number).integers(0, 255, (*size, 3), np.uint8), 90)


def flow(number, axis, size=SIZE):
    pixels = np.full(size, (-1) ** axis * (number + 1.0), np.float32)
    return encode_jpeg(encode_flow(pixels), 95)


def write(folder, prefix, digits, pictures, start=1):
    folder.mkdir(parents=True, exist_ok=True)
    for number, picture in enumerate(pictures, start):
        (folder / f"{prefix}{number:0{digits}d}.jpg").write_bytes(picture)


def extract(root, layout, pairs=FRAMES - 1, size=SIZE, name="v_a"):
    """One video as a tool left it; returns the folders of frames and of flow."""
    planes = [[flow(n, axis, size) for n in range(pairs)] for axis in (0, 1)]
    if layout == "uv":
        write(root / "rgb" / name, "frame", 6, [rgb(n, size) for n in range(FRAMES)])
        for letter, own in zip("uv", planes, strict=True):
            write(root / "flow" / letter / name, "frame", 6, own)
        return root / "rgb", root / "flow"
    same = layout == "tsn_same_folder"
    frames = root / "all" if same else root / "rgb"
    write(frames / name, "img_", 5, [rgb(n, size) for n in range(FRAMES)])
    target, prefix, digits = (frames, "flow_{}_", 5) if same else (root / "flow", "{}_", 4)
    for letter, own in zip("xy", planes, strict=True):
        write(target / name, prefix.format(letter), digits, own)
    return frames, target


@pytest.mark.parametrize("layout", LAYOUTS)
def test_files_of_the_right_size_are_kept_byte_for_byte(tmp_path, layout):
    frames, planes = extract(tmp_path, layout)
    found = imports.import_video(Video("v_a", frames / "v_a", 3), SETTINGS, str(planes))
    assert found.rgb == [rgb(n) for n in range(FRAMES)]
    assert found.flow == [flow(n, axis) for n in range(FRAMES - 1) for axis in (0, 1)]
    assert (found.height, found.width, found.label) == (*SIZE, 3)


def test_a_repeated_last_pair_goes(tmp_path):
    frames, planes = extract(tmp_path, "tsn", pairs=FRAMES)
    found = imports.import_video(Video("v_a", frames / "v_a", 0), SETTINGS, str(planes))
    assert len(found.flow) == 2 * (FRAMES - 1)


def test_flow_of_another_size_grows_with_the_picture(tmp_path):
    frames, planes = extract(tmp_path, "tsn", size=(96, 128))
    found = imports.import_video(Video("v_a", frames / "v_a", 0), SETTINGS, str(planes))
    assert (found.height, found.width) == SIZE
    for pair in range(FRAMES - 1):
        for axis in (0, 1):
            levels = cv2.imdecode(
                np.frombuffer(found.flow[2 * pair + axis], np.uint8), cv2.IMREAD_GRAYSCALE
            )
            wanted = (-1) ** axis * (pair + 1.0) / 2
            assert float(np.abs(decode_flow(levels) - wanted).max()) < 0.2, (pair, axis)


def test_without_extracted_flow_it_is_computed(tmp_path):
    frames, _ = extract(tmp_path, "tsn")
    found = imports.import_video(Video("v_a", frames / "v_a", 0), Settings(48, 95, "native"), None)
    assert len(found.flow) == 2 * (FRAMES - 1)


@pytest.mark.parametrize(
    ("gone", "words"),
    [
        ("rgb/v_a/img_00003.jpg", "number 3 is missing"),
        ("flow/v_a/x_0002.jpg", "number 2 is missing"),
        ("flow/v_a/y_0005.jpg", "5 files of x or u flow, but 4 of y or v"),
    ],
)
def test_gaps_are_reasons_for_rejection(tmp_path, gone, words):
    frames, planes = extract(tmp_path, "tsn")
    (tmp_path / gone).unlink()
    with pytest.raises(UndecodableError, match=words):
        imports.import_video(Video("v_a", frames / "v_a", 0), SETTINGS, str(planes))


def test_too_few_pairs_and_missing_folders_are_reasons(tmp_path):
    frames, planes = extract(tmp_path, "tsn", pairs=3)
    with pytest.raises(UndecodableError, match="6 frames want 5 flow pairs, but there are 3"):
        imports.import_video(Video("v_a", frames / "v_a", 0), SETTINGS, str(planes))
    with pytest.raises(UndecodableError, match="no folder"):
        imports.import_video(Video("v_b", frames / "v_b", 0), SETTINGS, str(planes))


def test_a_whole_data_set_of_folders_is_prepared(tmp_path):
    for label in ("run", "sit"):
        for number in range(8):
            extract(tmp_path / "x" / label, "tsn_same_folder", name=f"v{number}")
    (tmp_path / "frames").mkdir()
    for label in ("run", "sit"):
        (tmp_path / "x" / label / "all").rename(tmp_path / "frames" / label)
    frames = tmp_path / "frames"
    config = tiny_config(
        tmp_path, "data.kind=folder", f"data.frames={frames}", f"data.flow_frames={frames}"
    )
    store = Store(prepare(config, quiet=True))
    assert len(store.rows) == 16
    assert store.classes == ["run", "sit"]
    assert store.manifest["settings"]["flow_backend"] == "imported"
    number = store.number["run/v3"]
    assert store.rgb(number, 2).tobytes() == rgb(2)
    assert store.flow(number, 1, 1).tobytes() == flow(1, 1)


def test_frames_that_another_tool_extracted_are_imported(clips):
    """Ten frames, and flow of every second pair only: the frames go in, the flow is refused with its reason."""
    video = Video("tvl1_reference", clips / "tvl1_reference", 0)
    found = imports.import_video(video, Settings(240, 95, "native"), None)
    assert (len(found.rgb), len(found.flow), found.height, found.width) == (10, 18, 240, 320)
    assert found.rgb[0] == (video.path / "img_00001.jpg").read_bytes()
    with pytest.raises(UndecodableError, match="10 frames want 9 flow pairs, but there are 5"):
        imports.import_video(video, Settings(240, 95, "imported"), str(clips))


def test_our_flow_is_that_of_the_reference_where_it_shows_the_same_pair(clips, record_property):
    """The reference's files do not say which pairs they show; two of the five show one of ours."""
    from hpc_stres.data.flow import tvl1

    folder = clips / "tvl1_reference"
    frames = np.stack(
        [cv2.imread(str(p), cv2.IMREAD_GRAYSCALE) for p in sorted(folder.glob("img_*.jpg"))]
    )
    ours = encode_flow(tvl1(frames)).astype(float)
    closest = []
    for x, y in zip(sorted(folder.glob("x_*.jpg")), sorted(folder.glob("y_*.jpg")), strict=True):
        planes = np.stack([cv2.imread(str(p), cv2.IMREAD_GRAYSCALE) for p in (x, y)]).astype(float)
        closest.append(min(float(np.abs(pair - planes).mean()) for pair in ours))
    record_property("grey_levels", closest)
    print(
        "mean difference to the closest of our pairs, grey levels:",
        [round(value, 2) for value in closest],
    )
    assert sorted(closest)[1] < 1.0


def lying(picture, height, width):
    """A JPEG whose header says another size."""
    data = bytearray(picture)
    place = next(data.index(marker) for marker in (b"\xff\xc0", b"\xff\xc2") if marker in data)
    data[place + 5 : place + 9] = struct.pack(">HH", height, width)
    return bytes(data)


@pytest.mark.parametrize("size", [(65500, 65500), (30000, 30000), (0, 64)])
@pytest.mark.parametrize(
    "place", ["rgb/v_a/img_00001.jpg", "rgb/v_a/img_00003.jpg", "flow/v_a/y_0002.jpg"]
)
def test_sizes_are_read_before_pixels(tmp_path, monkeypatch, size, place):
    frames, planes = extract(tmp_path, "tsn")
    path = tmp_path / place
    path.write_bytes(lying(path.read_bytes(), *size) + b"after the end")
    decoded = []
    decode = cv2.imdecode
    monkeypatch.setattr(
        cv2, "imdecode", lambda data, kind: decoded.append(len(data)) or decode(data, kind)
    )
    with pytest.raises(UndecodableError, match=f"{path.name}: .*{size[1]} x {size[0]} pixels"):
        imports.import_video(Video("v_a", frames / "v_a", 0), SETTINGS, str(planes))
    assert path.stat().st_size not in decoded


def turned(picture):
    """A JPEG with an EXIF block that says: turn it by a quarter."""
    tiff = b"II*\0\x08\0\0\0\x01\0" + struct.pack("<HHII", 0x0112, 3, 1, 6) + bytes(4)
    block = b"Exif\0\0" + tiff
    return picture[:2] + b"\xff\xe1" + struct.pack(">H", len(block) + 2) + block + picture[2:]


def png(picture):
    return cv2.imencode(
        ".png", cv2.imdecode(np.frombuffer(picture, np.uint8), cv2.IMREAD_UNCHANGED)
    )[1].tobytes()


def test_png_files_become_jpeg_and_a_png_named_jpg_too(tmp_path):
    frames, _ = extract(tmp_path, "tsn")
    (frames / "v_a" / "img_00002.jpg").write_bytes(png(rgb(1)))
    (frames / "v_a" / "img_00004.jpg").rename(frames / "v_a" / "img_00004.png")
    (frames / "v_a" / "img_00004.png").write_bytes(png(rgb(3)))
    found = imports.import_video(Video("v_a", frames / "v_a", 0), Settings(48, 95, "native"), None)
    assert len(found.rgb) == FRAMES
    assert all(data.startswith(b"\xff\xd8") and data.endswith(b"\xff\xd9") for data in found.rgb)
    assert found.rgb[0] == rgb(0)
    assert found.rgb[1] != rgb(1)


def test_a_picture_that_its_header_turns_is_stored_upright(tmp_path):
    folder = tmp_path / "v_a"
    write(folder, "img_", 5, [turned(rgb(n, (64, 48))) for n in range(3)])
    found = imports.import_video(Video("v_a", folder, 0), Settings(48, 95, "native"), None)
    assert (found.height, found.width) == (48, 64)
    for data in found.rgb:
        assert cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_IGNORE_ORIENTATION).shape[
            :2
        ] == (48, 64)


ODD_FILES = {
    "of another size": (lambda data: rgb(9, (50, 64)), "64 x 50 pixels, but the first has 64 x 48"),
    "cut off": (lambda data: data[: len(data) // 2], "its header is damaged: the file breaks off"),
    "cut in the header": (lambda data: data[:100], "its header is damaged"),
    "empty": (lambda data: b"", "an empty file"),
    "a text": (lambda data: b"hello " * 100, "neither a JPEG nor a PNG file"),
    "a gif": (lambda data: b"GIF89a" + data, "neither a JPEG nor a PNG file"),
    "a png cut off": (lambda data: png(data)[:300], "its header is damaged: the file breaks off"),
}


@pytest.mark.parametrize("odd", ODD_FILES)
def test_one_odd_picture_rejects_its_video_with_its_path(tmp_path, odd):
    change, words = ODD_FILES[odd]
    frames, planes = extract(tmp_path, "tsn")
    path = frames / "v_a" / "img_00003.jpg"
    path.write_bytes(change(path.read_bytes()))
    with pytest.raises(UndecodableError, match=f"{path}: .*{words}|{path}: {words}"):
        imports.import_video(Video("v_a", frames / "v_a", 0), SETTINGS, str(planes))


def test_two_files_with_one_number_and_folders_among_files_are_reasons(tmp_path):
    frames, planes = extract(tmp_path, "tsn")
    (frames / "v_a" / "img_3.jpg").write_bytes(rgb(2))
    with pytest.raises(UndecodableError, match=r"img_00003.jpg and img_3.jpg have one number"):
        imports.import_video(Video("v_a", frames / "v_a", 0), SETTINGS, str(planes))
    (frames / "v_a" / "img_3.jpg").unlink()
    (frames / "v_a" / "img_00007.jpg").mkdir()
    with pytest.raises(UndecodableError, match=r"img_00007.jpg: not a regular file"):
        imports.import_video(Video("v_a", frames / "v_a", 0), Settings(48, 95, "native"), None)


def test_flow_of_sixteen_bits_is_refused(tmp_path):
    frames, planes = extract(tmp_path, "tsn")
    (planes / "v_a" / "x_0002.jpg").write_bytes(
        cv2.imencode(".png", np.zeros(SIZE, np.uint16))[1].tobytes()
    )
    with pytest.raises(UndecodableError, match=r"x_0002.jpg: 16 bits; flow is read from 8 bits"):
        imports.import_video(Video("v_a", frames / "v_a", 0), SETTINGS, str(planes))


def test_broken_pictures_give_a_picture_or_a_reason(tmp_path):
    frames, planes = extract(tmp_path, "tsn", size=(16, 24))
    random_ = random.Random(3)
    files = [frames / "v_a" / "img_00002.jpg", planes / "v_a" / "x_0003.jpg"]
    wholes = [path.read_bytes() for path in files]
    accepted = 0
    for number in range(200):
        path, data = files[number % 2], bytearray(wholes[number % 2])
        for _ in range(random_.choice((1, 4))):
            data[random_.randrange(len(data))] = random_.randrange(256)
        path.write_bytes(bytes(data[: random_.choice((len(data), random_.randrange(len(data))))]))
        found = words = None
        try:
            found = imports.import_video(
                Video("v_a", frames / "v_a", 0), Settings(16, 95, "imported"), str(planes)
            )
        except UndecodableError as error:
            words = str(error)
        accepted += found is not None
        assert words is None or len(words.splitlines()) == 1
        assert found is None or (len(found.rgb), len(found.flow)) == (FRAMES, 2 * (FRAMES - 1))
        path.write_bytes(wholes[number % 2])
    assert 0 < accepted < 200


def test_recordings_are_kept_when_frames_are_imported(tmp_path):
    table = tmp_path / "videos.csv"
    table.write_text("path,label,split,group\na.avi,run,train,g1\nb.avi,run,test,g1\n")
    for name in "ab":
        (tmp_path / "frames" / name).mkdir(parents=True)
    data = DataConfig(kind="csv", lists=str(table), frames=str(tmp_path / "frames"))
    listing = sources.read_listing(data)
    assert listing.videos["a"].path == tmp_path / "frames" / "a"
    assert problems(listing) == ["split 1: group g1 is in train and test"]
