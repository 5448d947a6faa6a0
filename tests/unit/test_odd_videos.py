"""Odd video files: each gives frames, or one sentence; sizes are known before pixels, and what is missing is noted."""

import os
import random
import struct
from pathlib import Path

import av
import cv2
import numpy as np
import pytest

from hpc_stres.errors import UserError
from hpc_stres.listings.listing import Video
from hpc_stres.prepare import guard
from hpc_stres.prepare.extract import failures_reject, prepare_video
from hpc_stres.prepare.video import UndecodableError, count_frames, stored_size, write_video
from hpc_stres.store.location import Settings

SETTINGS = Settings(16, 95, "native")
# More rounds of the fuzz than every day's: HPC_STRES_FUZZ_ROUNDS=5000.
ROUNDS = int(os.environ.get("HPC_STRES_FUZZ_ROUNDS", "40"))


def smooth(count, height=48, width=64):
    rows, columns = np.mgrid[:height, :width]
    return [
        np.stack([rows * 3 + 5 * n, columns * 3, rows + columns], 2).astype(np.uint8)
        for n in range(count)
    ]


def encode(path, frames, codec="mpeg4", **options):
    with av.open(str(path), "w", options=options) as container:
        stream = container.add_stream(codec, rate=25)
        stream.height, stream.width = frames[0].shape[:2]
        stream.pix_fmt = "yuv420p"
        stream.codec_context.gop_size = 4
        for frame in frames:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        container.mux(stream.encode())
    return path


def reason(path, settings=SETTINGS, **limits):
    with pytest.raises(UndecodableError) as caught:
        prepare_video(Video("v", path, 0), settings, **limits)
    assert len(str(caught.value).splitlines()) == 1
    return str(caught.value)


def test_what_is_no_video_is_refused_by_what_it_is(tmp_path):
    path = tmp_path / "a.avi"
    for suffix in (".png", ".jpg", ".bmp", ".webp"):
        path.write_bytes(cv2.imencode(suffix, smooth(1)[0])[1].tobytes())
        assert "a still picture" in reason(path), suffix
    path.write_bytes(b"")
    assert reason(path) == "an empty file"
    path.write_bytes(b"This is a letter, not a film.\n" * 50)
    reason(path)
    path.unlink()
    assert "FileNotFoundError" in reason(path)
    path.mkdir()
    assert reason(path) == "not a regular file"
    path.rmdir()
    os.mkfifo(path)
    assert reason(path) == "not a regular file"


def test_sound_with_a_picture_on_its_cover_is_no_video(tmp_path):
    path = tmp_path / "song.mp4"
    cover = tmp_path / "cover.png"
    cv2.imwrite(str(cover), smooth(1)[0])
    with av.open(str(path), "w") as container:
        sound = container.add_stream("aac", rate=44100)
        with av.open(str(cover)) as picture:
            packets = [packet for packet in picture.demux(picture.streams.video[0]) if packet.size]
            stream = container.add_stream_from_template(picture.streams.video[0])
            stream.disposition = av.stream.Disposition.attached_pic
            for packet in packets:
                packet.stream = stream
                container.mux(packet)
        silence = av.AudioFrame.from_ndarray(
            np.zeros((2, 1024), np.float32), format="fltp", layout="stereo"
        )
        silence.sample_rate = 44100
        container.mux(sound.encode(silence))
        container.mux(sound.encode())
    assert reason(path) == "no video stream"


def test_a_list_of_other_files_is_not_followed(tmp_path):
    write_video(tmp_path / "real.avi", smooth(4), 25)
    for name, text in (
        ("a.avi", "ffconcat version 1.0\nfile real.avi\n"),
        ("b.m3u8", "#EXTM3U\n#EXT-X-TARGETDURATION:1\n#EXTINF:1,\nreal.ts\n#EXT-X-ENDLIST\n"),
        (
            "c.avi",
            "v=0\no=- 0 0 IN IP4 127.0.0.1\ns=x\nc=IN IP4 127.0.0.1\nt=0 0\nm=video 5004 RTP/AVP 96\n",
        ),
    ):
        (tmp_path / name).write_text(text)
        reason(tmp_path / name)


@pytest.mark.parametrize(("height", "width"), [(2, 2), (16, 1024), (1024, 16), (2, 256), (34, 34)])
def test_extreme_shapes_are_prepared(tmp_path, height, width):
    path = encode(tmp_path / "v.avi", smooth(3, height, width))
    found = prepare_video(Video("v", path, 0), SETTINGS)
    assert (len(found.rgb), len(found.flow)) == (3, 4)
    assert (found.height, found.width) == stored_size(height, width, 16, 2**30)
    assert cv2.imdecode(np.frombuffer(found.rgb[0], np.uint8), 1).shape[:2] == (
        found.height,
        found.width,
    )


def test_a_shape_beyond_a_jpeg_is_a_reason(tmp_path):
    """Narrow pictures grow with their short side: 16 x 4096 would be stored as 256 x 65536."""
    path = encode(tmp_path / "v.mp4", smooth(2, 4096, 16))
    assert "16 x 4096 pixels would be stored as 256 x 65536" in reason(
        path, Settings(256, 95, "native")
    )
    assert "data.max_pixels=100000" in reason(path, Settings(48, 95, "native"), max_pixels=100_000)


def test_sizes_are_checked_before_and_while_decoding(tmp_path, monkeypatch):
    path = encode(tmp_path / "v.mp4", smooth(2, 64, 80))
    assert reason(path, max_pixels=5119) == "80 x 64 pixels are more than data.max_pixels=5119"
    assert len(prepare_video(Video("v", path, 0), SETTINGS, max_pixels=5120).rgb) == 2
    # Raw frames carry no size of their own: the header's is believed, and it lies.
    raw = encode(tmp_path / "v.avi", smooth(2, 64, 80), "rawvideo")
    raw.write_bytes(
        raw.read_bytes().replace(struct.pack("<II", 80, 64), struct.pack("<II", 12_000, 12_000))
    )
    assert reason(raw) == "12000 x 12000 pixels are more than data.max_pixels=67108864"
    # A transport stream may change its size on the way.
    changing = tmp_path / "v.ts"
    parts = [
        encode(tmp_path / f"{n}.ts", smooth(3, *size), "mpeg2video")
        for n, size in enumerate(((64, 80), (96, 128)))
    ]
    changing.write_bytes(b"".join(part.read_bytes() for part in parts))
    assert "128 x 96 pixels are more than" in reason(changing, max_pixels=6000)
    assert len(prepare_video(Video("v", changing, 0), SETTINGS).rgb) == count_frames(changing)


def test_any_error_of_a_library_is_a_reason_but_the_machines_are_not():
    for error in (
        KeyError("x"),
        ZeroDivisionError(),
        RuntimeError("first line\nlast line"),
        OSError("no number"),
    ):
        with (
            pytest.raises(UndecodableError, match=type(error).__name__) as caught,
            failures_reject(),
        ):
            raise error
        assert len(str(caught.value).splitlines()) == 1
    with pytest.raises(UndecodableError, match="cannot be read: Input"), failures_reject():
        raise OSError(5, "no disk")
    for error in (MemoryError(), cv2.error("x")):
        error.code = -4
        with pytest.raises(UndecodableError, match="more memory than data"), failures_reject():
            raise error
    with pytest.raises(UserError, match="no compiler"), failures_reject():
        raise UserError("no compiler")


def test_a_reason_has_words_and_no_numbers(tmp_path):
    """FFmpeg's own numbers mean nothing to anybody, and whoever prints a reason names the file."""
    path = tmp_path / "it's a text.mp4"
    path.write_text("no video")
    with pytest.raises(UndecodableError) as caught:
        count_frames(path)
    assert str(caught.value).startswith(
        "InvalidDataError: Invalid data found when processing input"
    )
    assert "Errno" not in str(caught.value)
    assert "text.mp4" not in str(caught.value)


def cut(path, share, target):
    target.write_bytes(path.read_bytes()[: int(path.stat().st_size * share)])
    return target


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("v.avi", {}),
        ("v.mp4", {"movflags": "faststart"}),
        ("v.mkv", {}),
        ("v.mov", {"movflags": "faststart"}),
    ],
)
@pytest.mark.parametrize("frames", [8, 60])
def test_a_video_cut_in_half_says_so(tmp_path, name, options, frames):
    random_ = np.random.default_rng(1)
    noise = [random_.integers(0, 255, (48, 64, 3), np.uint8) for _ in range(frames)]
    path = encode(tmp_path / name, noise, **options)
    whole = prepare_video(Video("v", path, 0), SETTINGS)
    assert (len(whole.rgb), whole.note) == (frames, None)
    half = prepare_video(Video("v", cut(path, 0.6, tmp_path / f"half{name}"), 0), SETTINGS)
    assert 0 < len(half.rgb) < 0.8 * frames
    assert half.note is not None
    if not name.endswith("mkv"):
        assert half.note.startswith(f"{len(half.rgb)} of {frames} frames")
    assert guard.prepare(Video("v", tmp_path / f"half{name}", 0), SETTINGS) == half


def test_a_video_without_its_table_of_frames_is_rejected(tmp_path):
    path = encode(tmp_path / "v.mp4", smooth(20))
    for share in (0.1, 0.5, 0.9):
        reason(cut(path, share, tmp_path / "cut.mp4"))


def test_one_frame_more_in_the_header_is_no_note(clips):
    """Encoders count one too many: HMDB51's own clips do."""
    for path in sorted(clips.iterdir()):
        if path.suffix == ".avi":
            assert prepare_video(Video("v", path, 0), SETTINGS, wanted=set()).note is None, path


def broken(random_, data):
    """Bytes flipped, cut out, repeated, or cut off at the end."""
    kind = random_.randrange(5)
    place = random_.randrange(len(data))
    other = min(len(data), place + random_.choice((1, 4, 64, 1000)))
    if kind == 0:
        return data[:place]
    if kind == 1:
        return data[:place] + data[other:]
    if kind == 2:
        return data[:other] + data[place:]
    changed = bytearray(data)
    for _ in range(random_.choice((1, 1, 8, 64))):
        # Half of the changes in the header, where sizes and counts are.
        top = len(data) if random_.random() < 0.5 else min(len(data), 512)
        changed[random_.randrange(top)] = random_.choice((0, 255, 127, random_.randrange(256)))
    return bytes(changed)


SEEDS = {
    "avi": ("v.avi", "mpeg4", {}),
    "mp4": ("v.mp4", "mpeg4", {"movflags": "faststart"}),
    "mkv": ("v.mkv", "mpeg4", {}),
    "ts": ("v.ts", "mpeg2video", {}),
    "gif": ("v.gif", "gif", {}),
}


@pytest.fixture(params=[*SEEDS, "unordered.mov", "video_90.mov"])
def seed_file(request, tmp_path):
    if request.param not in SEEDS:
        return Path(request.getfixturevalue("clips") / request.param)
    name, codec, options = SEEDS[request.param]
    if codec == "gif":
        from PIL import Image

        pictures = [Image.fromarray(frame) for frame in smooth(6)]
        pictures[0].save(tmp_path / name, save_all=True, append_images=pictures[1:], duration=40)
        return tmp_path / name
    return encode(tmp_path / name, smooth(6), codec, **options)


def test_broken_bytes_give_frames_or_a_reason(seed_file, tmp_path):
    """Never another error, never a hang; what is accepted is whole: every frame decodes, with flow between them."""
    random_ = random.Random(seed_file.name)
    data = seed_file.read_bytes()
    path = tmp_path / f"broken{seed_file.suffix}"
    limits = guard.Limits(max_pixels=1 << 20, memory_gib=0.5, minutes=1.0)
    accepted = 0
    for number in range(ROUNDS):
        path.write_bytes(broken(random_, data))
        found, words = None, "frames"
        try:
            found = guard.prepare(Video("v", path, 0), SETTINGS, limits)
        except UndecodableError as error:
            words = str(error)
        assert len(words.splitlines()) == 1, number
        assert "took longer" not in words, number
        if found is None:
            continue
        accepted += 1
        assert len(found.flow) == 2 * max(1, len(found.rgb) - 1)
        for picture in (found.rgb[0], found.rgb[-1], found.flow[0], found.flow[-1]):
            assert cv2.imdecode(np.frombuffer(picture, np.uint8), 1).shape[:2] == (
                found.height,
                found.width,
            )
    assert 0 < accepted < ROUNDS
