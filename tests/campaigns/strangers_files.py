"""Videos as strangers have them, and what lies beside them: for tests.campaigns.strangers."""

import os
import shutil
from fractions import Fraction

import av
import numpy as np

# Name of the file, codec, pixel format, height, width, frames; then what is odd about it.
KINDS = [
    ("plain.mp4", "libx264", "yuv420p", 48, 64, 24, ""),
    ("CAPITALS.MP4", "libx264", "yuv420p", 48, 64, 24, ""),
    ("with sound.mkv", "libx264", "yuv420p", 48, 64, 24, "sound"),
    ("motion jpeg.avi", "mjpeg", "yuvj420p", 48, 64, 24, ""),
    ("vp9.webm", "libvpx-vp9", "yuv420p", 48, 64, 24, ""),
    ("vp8.webm", "libvpx", "yuv420p", 48, 64, 24, ""),
    ("av1.mkv", "libsvtav1", "yuv420p", 64, 64, 20, ""),
    ("hevc ten bits.mp4", "libx265", "yuv420p10le", 48, 64, 24, ""),
    ("prores.mov", "prores_ks", "yuv422p10le", 48, 64, 24, ""),
    ("theora.ogv", "libtheora", "yuv420p", 48, 64, 24, ""),
    ("mpeg1.mpg", "mpeg1video", "yuv420p", 48, 64, 24, ""),
    ("mpeg2.TS", "mpeg2video", "yuv420p", 48, 64, 24, ""),
    ("windows.wmv", "wmv2", "yuv420p", 48, 64, 24, ""),
    ("flash.flv", "flv", "yuv420p", 48, 64, 24, ""),
    ("phone.3gp", "h263", "yuv420p", 96, 128, 24, ""),
    ("loop.gif", "gif", "rgb8", 48, 64, 12, ""),
    ("odd 17x31.mp4", "libx264", "yuv444p", 31, 17, 24, ""),
    ("portrait.mp4", "libx264", "yuv420p", 120, 48, 24, ""),
    ("grey.mkv", "ffv1", "gray", 48, 64, 24, ""),
    ("sixteen bits grey.mkv", "ffv1", "gray16le", 48, 64, 24, ""),
    ("alpha.mkv", "ffv1", "bgra", 48, 64, 24, ""),
    ("variable rate.mkv", "libx264", "yuv420p", 48, 64, 24, "variable"),
    ("turned.mp4", "libx264", "yuv420p", 48, 64, 24, "turned"),
    ("one frame.mp4", "libx264", "yuv420p", 48, 64, 1, ""),
    ("two frames.avi", "mpeg4", "yuv420p", 48, 64, 2, ""),
    ("nine frames.avi", "mpeg4", "yuv420p", 48, 64, 9, ""),
    ("it's \"quoted\" & #1 100%.mp4", "libx264", "yuv420p", 48, 64, 24, ""),
    ("Übung_ß_日本語_🎬.mp4", "libx264", "yuv420p", 48, 64, 24, ""),
    ("-dash.mp4", "libx264", "yuv420p", 48, 64, 24, ""),
    ("a.b.c.mp4", "libx264", "yuv420p", 48, 64, 24, ""),
    ("file:concat:|x.mp4", "libx264", "yuv420p", 48, 64, 24, ""),
]  # fmt: skip
# Quick encoders, and silent ones.
QUIET = {
    "libvpx-vp9": {"cpu-used": "8", "deadline": "realtime"},
    "libx265": {"x265-params": "log-level=none"},
}
CLASSES = ("high jump", "Öl & 'Zitat' \"x\"", "c'est #3")


def picture_of(draw, number, height, width, kind):
    """A frame: a smooth ground that moves, by kind in another direction."""
    ground = draw[:, : 2 * width]
    step = (3 * number) % width
    rolled = np.roll(ground, (step, -step, step // 2)[kind], axis=kind % 2)
    return np.ascontiguousarray(rolled[:height, :width])


def ground_of(seed, height, width):
    """Smooth noise of three colours, larger than a frame."""
    import cv2

    small = np.random.default_rng(seed).integers(0, 256, (6, 12, 3), np.uint8)
    return cv2.resize(small, (2 * width, height), interpolation=cv2.INTER_CUBIC)


def write(path, codec, pixels, height, width, frames, odd, kind, seed):
    """One video; what this machine's encoders cannot do is said by the exception."""
    formats = {".ts": "mpegts", ".3gp": "3gp", ".wmv": "asf", ".ogv": "ogg"}
    name = formats.get(path.suffix.lower())
    ground = ground_of(seed, height, width)
    with av.open(f"file:{path}", "w", format=name) as container:
        stream = container.add_stream(codec, rate=25)
        stream.height, stream.width, stream.pix_fmt = height, width, pixels
        stream.codec_context.thread_count = 1
        stream.options = QUIET.get(codec, {})
        if odd == "variable":
            stream.codec_context.time_base = Fraction(1, 1000)
            stream.options = {"tune": "zerolatency"}
        sound = container.add_stream("aac", rate=44_100) if odd == "sound" else None
        for number in range(frames):
            frame = av.VideoFrame.from_ndarray(
                picture_of(ground, number, height, width, kind), format="rgb24"
            )
            if odd == "variable":
                frame.pts, frame.time_base = 40 * number + 9 * (number % 5), Fraction(1, 1000)
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
        if sound is not None:
            beep = np.zeros((1, 44_100), np.float32)
            heard = av.AudioFrame.from_ndarray(beep, format="fltp", layout="mono")
            heard.rate = 44_100
            container.mux(sound.encode(heard))
            container.mux(sound.encode())
    if odd == "turned":
        turn(path)


def turn(path):
    """Write a quarter turn into the track's matrix, as telephones do."""
    content = bytearray(path.read_bytes())
    start = content.index(b"tkhd") + 4
    matrix = start + (52 if content[start] else 40)
    quarter = (0, 0x10000, 0, -0x10000, 0, 0, 0, 0, 0x40000000)
    for place, value in enumerate(quarter):
        content[matrix + 4 * place : matrix + 4 * place + 4] = value.to_bytes(4, "big", signed=True)
    path.write_bytes(bytes(content))


def make_classes(root, kinds=KINDS, at_least=4):
    """CLASS/VIDEO of all kinds, dealt out in turn; returns what could not be encoded here."""
    missing = []
    for number, (name, *how) in enumerate(kinds):
        kind = number % len(CLASSES)
        path = root / CLASSES[kind] / name
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            write(path, *how, kind, number)
        except (av.error.FFmpegError, ValueError, OSError) as error:
            missing.append(f"{name}: {error}")
            path.unlink(missing_ok=True)
    for kind, label in enumerate(CLASSES):
        for number in range(at_least):
            target = root / label / f"more {number}.avi"
            target.parent.mkdir(parents=True, exist_ok=True)
            write(target, "mpeg4", "yuv420p", 48, 64, 20, "", kind, 100 * kind + number)
    return missing


def litter(root):
    """What lies beside videos and is none."""
    some = root / CLASSES[0]
    (some / ".DS_Store").write_bytes(b"\0\0\0\1Bud1")
    (some / "._plain.mp4").write_bytes(b"\0\5\26\7\0\2\0\0Mac OS X")
    (some / "Thumbs.db").write_bytes(b"\xd0\xcf")
    (some / "notes.txt").write_text("notes", encoding="utf-8")
    (root / "__MACOSX" / CLASSES[0]).mkdir(parents=True)
    (root / "__MACOSX" / CLASSES[0] / "._plain.mp4").write_bytes(b"\0\5\26\7")
    (root / ".ipynb_checkpoints").mkdir()
    (some / "deeper" / "still").mkdir(parents=True)
    shutil.copy(some / "plain.mp4", some / "deeper" / "still" / "plain.mp4")
    elsewhere = root.parent / "elsewhere"
    elsewhere.mkdir()
    shutil.copy(some / "plain.mp4", elsewhere / "in a linked folder.mp4")
    shutil.copy(some / "plain.mp4", root.parent / "linked.mp4")
    (some / "link.mp4").symlink_to(root.parent / "linked.mp4")
    (some / "linked").symlink_to(elsewhere)
    (elsewhere / "loop").symlink_to(elsewhere)


def breakage(root):
    """Files that have a video's name and are none."""
    some = root / CLASSES[1]
    (some / "empty.mp4").write_bytes(b"")
    (some / "text.mp4").write_text("this is no video", encoding="utf-8")
    whole = next(some.glob("*.mp4")).read_bytes()
    (some / "cut.mp4").write_bytes(whole[: len(whole) // 2])
    (some / "folder.mp4").mkdir()
    os.mkfifo(some / "pipe.avi")
    (some / "nowhere.mp4").symlink_to(root / "no such file.mp4")
    (some / "second name.mp4").symlink_to(some / "cut.mp4")
