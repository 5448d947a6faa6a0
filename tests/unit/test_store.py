"""Preparing and the store: exact frames, byte ranges, restarts, damage that is found and named."""

import io
import json
import re
import shutil
import tarfile
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

from hpc_stres.data.flow import decode_flow, tvl1
from hpc_stres.errors import UserError
from hpc_stres.listings.splits import Video
from hpc_stres.prepare.extract import prepare_video
from hpc_stres.prepare.run import prepare
from hpc_stres.prepare.video import UndecodableError, decode, gray, target_size, write_video
from hpc_stres.store import format, reader, writer
from hpc_stres.store.location import Settings, store_folder
from hpc_stres.store.reader import Store, verify
from tests.conftest import TINY, digests, run_python, tiny_config

REAL_FRAMES = {
    "R6llTwEh07w.mp4": 303, "RATRACE_wave_f_nm_np1_fr_goo_37.avi": 72, "TrumanShow_wave_f_nm_np1_fr_med_26.avi": 48,
    "SchoolRulesHowTheyHelpUs_wave_f_nm_np1_ba_med_0.avi": 74, "WUzgd7C1pWA.mp4": 327, "av1_video.mkv": 125,
    "corrupted.mp4": None, "h264_10bits.mp4": 30, "h265_video.mp4": 10, "test.avi": 55, "unordered.mov": 4,
    "hmdb51_Turnk_r_Pippi_Michel_cartwheel_f_cm_np2_le_med_6.avi": 83, "v_BaseballPitch_g01_c01.avi": 107,
    "v_SoccerJuggling_g23_c01.avi": 240, "v_SoccerJuggling_g24_c01.avi": 251, "video_90.mov": 3,
}  # fmt: skip


@pytest.mark.parametrize("name", sorted(REAL_FRAMES))
def test_real_clips_decode_whole_or_are_rejected_with_a_reason(clips, name):
    expected = REAL_FRAMES[name]
    if expected is None:
        with pytest.raises(UndecodableError, match="after 28 frames"):
            list(decode(clips / name))
    else:
        assert sum(1 for _ in decode(clips / name)) == expected


def test_rotation_flags_turn_the_picture_upright(clips):
    assert next(decode(clips / "video_90.mov")).shape == (568, 320, 3)


@pytest.mark.parametrize(
    ("size", "short", "target"),
    [((240, 320), 256, (256, 340)), ((320, 240), 256, (340, 256)), ((240, 432), 256, (256, 460)),
     ((51, 75), 256, (256, 376)), ((256, 256), 256, (256, 256))],
)  # fmt: skip
def test_sizes_keep_the_aspect_and_are_even(size, short, target):
    assert target_size(*size, short) == target


@pytest.mark.parametrize("count", [1, 2, 17, 40])
def test_a_video_has_one_flow_pair_less_than_frames_whatever_the_batches(tmp_path, count):
    noise = np.random.default_rng(count).integers(0, 255, (64, 80, 3), np.uint8)
    frames = [np.roll(noise, number, axis=1) for number in range(count)]
    write_video(tmp_path / "v.avi", iter(frames), 25)
    prepared = prepare_video(Video("v", tmp_path / "v.avi", 0), Settings(64, 95, "native"))
    assert len(prepared.rgb) == count
    assert len(prepared.flow) == 2 * max(count - 1, 1)
    if count == 1:
        plane = np.asarray(Image.open(io.BytesIO(prepared.flow[0])))
        assert (plane == 128).all()
        return
    decoded = np.stack([gray(frame) for frame in decode(tmp_path / "v.avi")])
    last = [np.asarray(Image.open(io.BytesIO(jpeg))) for jpeg in prepared.flow[-2:]]
    # Quantisation takes half a level; JPEG at quality 95 a few on single pixels.
    assert np.abs(decode_flow(np.stack(last)) - tvl1(decoded[-2:])[0].clip(-20, 20)).mean() < 0.3


def test_every_slice_is_the_frame_it_names(store):
    for video, row in list(enumerate(store.rows))[:4]:
        for frame in (0, row.frames - 1):
            assert Image.open(io.BytesIO(store.rgb(video, frame).tobytes())).size == (
                row.width,
                row.height,
            )
        for pair in (0, row.flow_pairs - 1):
            assert Image.open(io.BytesIO(store.flow(video, pair, 1).tobytes())).mode == "L"
        with pytest.raises(IndexError, match=f"{row.id} has no frame {row.frames}"):
            store.rgb(video, row.frames)


def test_members_are_what_tar_and_ffmpeg_read(store):
    import av

    with tarfile.open(store.paths.shard(0)) as tar:
        row = store.rows[0]
        data = tar.extractfile(f"{row.id}.rgb.mjpeg").read()
        assert data == store.member(0, "rgb").tobytes()
        assert json.loads(tar.extractfile(f"{row.id}.json").read())["id"] == row.id
    with av.open(io.BytesIO(data), format="mjpeg") as container:
        assert sum(1 for _ in container.decode(video=0)) == row.frames


def test_the_result_does_not_depend_on_the_workers(data_root, store, tmp_path):
    shutil.copytree(data_root / "binding", tmp_path / "binding")
    prepare(tiny_config(tmp_path, "data.workers=1"), quiet=True)
    # Other tests of this session may have left cached features beside the store's own files.
    own = {
        name: digest
        for name, digest in digests(store.paths.root).items()
        if not name.startswith("features/")
    }
    assert digests(store_folder(tiny_config(tmp_path))) == own


@pytest.fixture
def copy(store, tmp_path):
    shutil.copytree(store.paths.root, tmp_path / "copy")
    return tmp_path / "copy"


def test_a_whole_store_verifies(copy):
    assert verify(Store(copy)) == []


def test_a_flipped_byte_anywhere_is_found_and_named(copy):
    path = reader.StorePaths(copy).shard(0)
    whole = path.read_bytes()
    with tarfile.open(path) as tar:
        members = {m.name: (m.offset_data, m.offset_data + m.size) for m in tar.getmembers()}
    for place in np.random.default_rng(0).integers(0, len(whole), 12):
        damaged = bytearray(whole)
        damaged[place] ^= 0x10
        path.write_bytes(damaged)
        found = verify(Store(copy))
        assert len(found) == 1
        inside = [name for name, (start, stop) in members.items() if start <= place < stop]
        named = inside and not inside[0].endswith(".json")
        assert (inside[0] if named else "00000.tar: a header or padding") in found[0]


def test_the_verify_command_says_which_member_and_fails(copy, data_root, tmp_path):
    target = store_folder(tiny_config(tmp_path))
    shutil.copytree(copy, target)
    assert (
        run_python(
            "-m", "hpc_stres", "verify", "--config", TINY, "--set", f"data.root={tmp_path}"
        ).returncode
        == 0
    )
    with reader.StorePaths(target).shard(0).open("r+b") as stream:
        stream.seek(int(Store(target).offsets[3]))
        stream.write(b"\0" * 8)
    result = run_python(
        "-m", "hpc_stres", "verify", "--config", TINY, "--set", f"data.root={tmp_path}"
    )
    assert result.returncode == 1
    assert ".rgb.mjpeg is damaged" in result.stdout


def folder_config(root, *overrides):
    return tiny_config(root, "data.kind=folder", f"data.videos={root}/mine", *overrides)


def test_videos_that_do_not_decode_are_rejected_by_name(data_root, tmp_path):
    source = data_root / "binding" / "videos"
    shutil.copytree(source, tmp_path / "mine")
    broken = next(iter(sorted((tmp_path / "mine").rglob("*.avi"))))
    broken.write_bytes(b"this is no video")
    with pytest.raises(
        UserError,
        match=r"1 of 32 videos do not decode, more than data\.max_rejected=0\nfirst: .*InvalidData",
    ):
        prepare(folder_config(tmp_path), quiet=True)
    root = prepare(folder_config(tmp_path, "data.max_rejected=0.5"), quiet=True)
    store = Store(root)
    assert list(store.rejected) == [str(broken.relative_to(tmp_path / "mine").with_suffix(""))]
    assert len(store.rows) == 31


def test_a_full_disk_is_refused_before_work_begins(data_root, tmp_path, monkeypatch):
    shutil.copytree(data_root / "binding", tmp_path / "binding")
    room = {"f_bavail": 1, "f_frsize": 1000, "f_files": 10**6, "f_favail": 10**6}
    monkeypatch.setattr("os.statvfs", lambda path: SimpleNamespace(**room))
    with pytest.raises(
        UserError, match=r"preparing needs about \d+\.\d [KM]iB, 1000 bytes are free"
    ):
        prepare(tiny_config(tmp_path))
    room |= {"f_bavail": 10**9, "f_favail": 20}
    with pytest.raises(UserError, match=r"preparing needs 4\d inodes, 20 are free"):
        prepare(tiny_config(tmp_path))
    room |= {"f_files": 0, "f_favail": 0}  # a file system that does not count them
    prepare(tiny_config(tmp_path))


def test_missing_videos_are_reported_before_work_begins(data_root, tmp_path):
    shutil.copytree(data_root / "binding", tmp_path / "binding")
    lists = tmp_path / "binding" / "splits" / "testlist01.txt"
    name = lists.read_text().splitlines()[0]
    config = tiny_config(
        tmp_path,
        "data.kind=ucf101",
        f"data.videos={tmp_path}/binding/videos",
        f"data.lists={lists.parent}",
    )
    (tmp_path / "binding" / "videos" / name).unlink()
    with pytest.raises(UserError, match="missing: .*" + re.escape(name.split("/")[1])):
        prepare(config, quiet=True)


def write_large_index(root, videos, frames):
    """The index of a store of so many videos; the shards themselves are sparse files."""
    paths = reader.StorePaths(root)
    paths.index.mkdir()
    paths.shards.mkdir()
    name = np.char.add("v_", np.char.zfill(np.arange(videos).astype(str), 7)).astype("S9")
    step, size = 3 * frames, 9
    listing = np.zeros(videos, format.LISTING)
    listing["start"], listing["id_bytes"] = np.arange(videos) * size, size
    listing["label"] = np.arange(videos) % 101
    rows = np.zeros(videos, format.VIDEOS)
    number = np.arange(videos)
    rows["listed"], rows["frames"], rows["flow_pairs"] = number, frames, frames - 1
    rows["height"], rows["width"], rows["shard"] = 256, 340, number // (1 + videos // 100)
    rows["rgb_first"], rows["flow_first"] = number * step, number * step + frames + 1
    columns = {
        "listing": listing, "names": name.view(np.uint8), "splits": number.astype(np.int32), "videos": rows,
        "offsets": np.arange(videos * step, dtype=np.int64),
    }  # fmt: skip
    index = {role: writer._save(paths, role, column) for role, column in columns.items()}
    index["remarks"] = writer.write_remarks(paths, [])
    sums = {}
    for shard in range(100):
        with paths.shard(shard).open("wb") as stream:
            stream.truncate(10**10)
        sums[paths.shard(shard).name] = {"bytes": 10**10, "sha256": ""}
    writer.write_manifest(
        paths,
        {
            "format": 2, "kind": "csv", "settings": {}, "classes": [str(n) for n in range(101)],
            "train": {"1": [0, videos]}, "test": {"1": [0, 0]}, "index": index, "shards": sums,
        },
    )  # fmt: skip


@pytest.mark.parametrize(("videos", "frames", "mib"), [(13_320, 188, 50), (1_000_000, 8, 50)])
def test_a_large_store_opens_fast_and_small(tmp_path, videos, frames, mib):
    """UCF101's size, and a million videos: under 50 MB, and in a part of the time of an object for each video."""
    write_large_index(tmp_path, videos, frames)
    # VmHWM is this program's own peak; getrusage would count what the process had before it became this program.
    code = (
        "import re, sys, time; from pathlib import Path; from hpc_stres.store.reader import Store\n"
        "peak = lambda: int(re.search(r'VmHWM:\\s+(\\d+)', Path('/proc/self/status').read_text())[1]) / 1024\n"
        "before = peak(); start = time.process_time()\n"
        "store = Store(Path(sys.argv[1])); row = store.rows[-1]\n"
        "assert store.number[row.id] == len(store.rows) - 1; seconds = time.process_time() - start\n"
        "used = peak() - before; start = time.process_time()\n"
        "objects = [store.rows[number] for number in range(0, len(store.rows), 20)]\n"
        "print(seconds, used, len(store.rows), 20 * (time.process_time() - start))"
    )
    seconds, used, rows, objects_seconds = map(
        float, run_python("-c", code, tmp_path).stdout.split()
    )
    assert rows == videos
    assert used < mib
    assert seconds < 1 + objects_seconds / 5


def test_an_unprepared_store_says_what_to_do(tmp_path):
    with pytest.raises(UserError, match="no prepared store here\nRun `hpc-stres prepare`"):
        Store(tmp_path)
