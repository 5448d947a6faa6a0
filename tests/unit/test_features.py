"""Features of videos of any length: each row against the network by hand; ranks, kills, layouts."""

import json
import os
from pathlib import Path

import numpy as np
import pytest
import torch

from hpc_stres.__main__ import main
from hpc_stres.config.loading import load_config
from hpc_stres.data.feed import ClipReader
from hpc_stres.data.requests import Box, Request
from hpc_stres.errors import ConfigError, UserError
from hpc_stres.evaluation import features, networks, windows
from hpc_stres.evaluation.predict import PreparedClip
from hpc_stres.evaluation.sources import find_videos
from hpc_stres.evaluation.windows import Windows
from hpc_stres.listings.splits import Video
from hpc_stres.parallel.world import World
from hpc_stres.prepare.extract import prepare_video
from hpc_stres.prepare.video import write_video
from tests.conftest import ROOT, digests, tiny_config
from tests.unit.test_flow import moved, texture
from tests.unit.untrained import make_run

CPU = torch.device("cpu")
CHUNKS, SPACING, STRIDE, FRAMES = 5, 2, 3, 36


@pytest.fixture(scope="module")
def made(data_root, tmp_path_factory):
    """A run of untrained networks, a video of 45 frames, and its prepared form."""
    folder = tmp_path_factory.mktemp("features ä")
    config = tiny_config(data_root)
    make_run(
        config,
        folder / "run",
        [f"class {n}" for n in range(8)],
        ["motion", "st_resnet", "st_resnet_star"],
    )
    picture = texture(48, 64)
    shown = [moved(picture, [[1, 0, 0.8 * n], [0, 1, 0.4 * n]]) for n in range(FRAMES)]
    write_video(
        folder / "film.avi", [np.repeat(frame[..., None], 3, axis=-1) for frame in shown], 25
    )
    write_video(folder / "short.avi", [np.repeat(shown[0][..., None], 3, axis=-1)] * 9, 25)
    return folder


@pytest.fixture
def small_pieces(monkeypatch):
    monkeypatch.setattr(features, "PIECE_WINDOWS", 5)
    monkeypatch.setattr(features, "BYTES_OF_A_RANK", 1)


def network_of(made, phase="st_resnet_star"):
    return networks.load(made / "run", phase, [], CPU)


def task_of(made, out, phase):
    network = network_of(made, phase)
    world = World(0, 1, 0, 1, "127.0.0.1", 12345, "test")
    return features.make_task(network, Windows(1, 1, 1), "streams", out, world)


def clip_of(path, network):
    """A video as it is prepared, read like a store."""
    return PreparedClip(prepare_video(Video(path.stem, path, 0), network.settings), path)


def extract(
    made,
    out,
    rank=0,
    size=1,
    layout="streams",
    stride=STRIDE,
    phase="st_resnet_star",
    video="film.avi",
):
    network = network_of(made, phase)
    cut = Windows(CHUNKS if phase != "motion" else 1, SPACING, stride)
    world = World(rank, size, rank, size, "127.0.0.1", 12345, "test")
    task = features.make_task(network, cut, layout, out, world)
    return features.extract(task, find_videos([made / video]), CPU)


def by_hand(made, phase="st_resnet_star"):
    """Each window of the film through the network, its frames and pairs counted here."""
    network = network_of(made, phase)
    seen = {}
    for stream in ("appearance", "motion"):
        trunk = getattr(network.call, stream)
        trunk.fc.register_forward_hook(
            lambda module, given, out, stream=stream: seen.__setitem__(stream, given[0])
        )
    clip = clip_of(made / "film.avi", network)
    reader = ClipReader(clip, None, network.levels, streams=(True, True))
    rows = {"appearance": [], "motion": []}
    start = 0
    while start + 4 * SPACING + 10 <= FRAMES - 1:
        frames = tuple(start + 5 + SPACING * chunk for chunk in range(CHUNKS))
        stacks = tuple(tuple(range(frame - 5, frame + 5)) for frame in frames)
        read = reader.read([Request(0, 0, 0, frames, stacks, Box(0, 0, 48, 64), False)])
        with torch.no_grad():
            network(read.rgb.to(network.dtype), read.flow.to(network.dtype))
        for stream, values in seen.items():
            rows[stream].append(values.double().mean(dim=0).float().numpy())
        start += STRIDE
    return {stream: np.stack(values) for stream, values in rows.items()}


def test_each_row_is_what_the_classifier_reads_in_that_window(made, tmp_path):
    assert extract(made, tmp_path) == []
    expected = by_hand(made)
    for stream, rows in expected.items():
        written = np.load(tmp_path / f"film.{stream}.npy")
        assert written.dtype == np.float32
        assert written.shape == rows.shape == ((FRAMES - 1 - 18) // STRIDE + 1, rows.shape[1])
        np.testing.assert_allclose(written, rows, rtol=1e-5, atol=1e-6)
        assert np.ptp(written, axis=0).max() > 0.01  # windows differ
    told = json.loads((tmp_path / "film.json").read_text())
    keys = (
        "frames",
        "frame_rate",
        "windows",
        "window_frames",
        "stride_frames",
        "first_centre_frame",
    )
    assert [told[key] for key in keys] == [FRAMES, 25.0, 6, 18, 3, 9.0]
    assert not list((tmp_path / ".parts").rglob("*.npz"))


@pytest.mark.usefixtures("small_pieces")
def test_any_number_of_ranks_writes_the_same_bytes(made, tmp_path):
    for size in (1, 3):
        for rank in reversed(range(size)):
            assert not (tmp_path / str(size) / "film.json").exists()
            assert extract(made, tmp_path / str(size), rank, size, stride=1) == []
    one, three = (
        {k: v for k, v in digests(tmp_path / n).items() if ".parts" not in k} for n in ("1", "3")
    )
    assert one == three
    assert len(one) == 3


@pytest.mark.usefixtures("small_pieces")
def test_killed_at_any_piece_it_resumes_with_the_same_bytes(made, tmp_path, monkeypatch):
    extract(made, tmp_path / "whole", stride=1)
    expected = {k: v for k, v in digests(tmp_path / "whole").items() if ".parts" not in k}
    computed, write = [], features.Work._write

    def killed_after_two(self, piece, rows):
        write(self, piece, rows)
        computed.append(piece)
        if len(computed) % 2 == 0:
            raise KeyboardInterrupt

    monkeypatch.setattr(features.Work, "_write", killed_after_two)
    for _ in range(10):
        try:
            extract(made, tmp_path / "killed", stride=1)
            break
        except KeyboardInterrupt:
            assert not (tmp_path / "killed" / "film.json").exists()
    assert computed == list(range(4)), "no piece is computed twice"
    assert {k: v for k, v in digests(tmp_path / "killed").items() if ".parts" not in k} == expected
    extract(made, tmp_path / "killed", stride=1)
    assert len(computed) == 4, "what is done is not done again"
    (tmp_path / "killed" / "film.motion.npy").write_bytes(b"cut")
    monkeypatch.setattr(features.Work, "_write", write)
    extract(made, tmp_path / "killed", stride=1)
    assert {k: v for k, v in digests(tmp_path / "killed").items() if ".parts" not in k} == expected


@pytest.mark.usefixtures("small_pieces")
def test_a_damaged_piece_is_computed_again(made, tmp_path, capsys, monkeypatch):
    extract(made, tmp_path / "whole", stride=1)
    with monkeypatch.context() as patch:
        patch.setattr(features.Work, "_finish", lambda *arguments: None)
        extract(made, tmp_path / "torn", stride=1)
    piece = sorted((tmp_path / "torn" / ".parts" / "film").iterdir())[2]
    data = bytearray(piece.read_bytes())
    data[len(data) // 2] ^= 1
    piece.write_bytes(data)
    extract(made, tmp_path / "torn", stride=1)
    assert "damaged" in capsys.readouterr().err
    for name in ("film.motion.npy", "film.appearance.npy"):
        assert (tmp_path / "torn" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()


def test_memory_does_not_grow_with_the_video(made, tmp_path, monkeypatch):
    most, advance = [], windows.Passing.advance

    def watched(self, *arguments):
        advance(self, *arguments)
        most.append((len(self.kept_rgb), len(self.kept_flow)))

    monkeypatch.setattr(windows.Passing, "advance", watched)
    extract(made, tmp_path, stride=1)
    # A window, the batch's other windows, and what a batch of flow brings.
    assert max(max(pair) for pair in most) <= 18 + features.WINDOWS_AT_ONCE + 17
    assert len(most) == 5


def actionformer_reads(folder, name):
    """As its data sets do: np.load(FEAT_FOLDER/PREFIX + id + '.npy'), transposed to (channels, time)."""
    return np.ascontiguousarray(np.load(folder / f"{name}.npy").astype(np.float32).transpose())


def mstcn_reads(folder, name, labels, sample_rate):
    """As its batch generator does: features and labels of the same length, every n-th of both."""
    read = np.load(folder / f"{name}.npy")
    classes = np.zeros(min(read.shape[1], len(labels)))
    return read[:, ::sample_rate], classes[::sample_rate]


def test_layouts_of_other_programs(made, tmp_path):
    extract(made, tmp_path / "s")
    streams = [
        np.load(tmp_path / "s" / f"film.{stream}.npy") for stream in ("appearance", "motion")
    ]
    joined = np.concatenate(streams, axis=1)
    extract(made, tmp_path / "a", layout="actionformer")
    assert np.array_equal(actionformer_reads(tmp_path / "a", "film"), joined.T)
    extract(made, tmp_path / "m", layout="mstcn")
    read, classes = mstcn_reads(tmp_path / "m", "film", [0] * FRAMES, 1)
    assert read.shape == (joined.shape[1], FRAMES)
    assert classes.shape == (FRAMES,)
    told = json.loads((tmp_path / "m" / "film.json").read_text())
    centres = told["first_centre_frame"] + told["stride_frames"] * np.arange(told["windows"])
    for frame in range(FRAMES):
        distances = np.abs(centres - frame)
        nearest = np.flatnonzero(distances == distances.min())
        assert any(np.array_equal(read[:, frame], joined[n]) for n in nearest)


@pytest.mark.parametrize("frames", [1, 2, 11, 18, 19])
def test_short_videos_have_one_row(made, tmp_path, frames):
    picture = np.repeat(texture(48, 64).astype(np.uint8)[..., None], 3, axis=-1)
    write_video(made / f"short{frames}.avi", [picture] * frames, 25)
    for layout in ("streams", "mstcn"):
        assert extract(made, tmp_path / layout, video=f"short{frames}.avi", layout=layout) == []
    assert np.load(tmp_path / "streams" / f"short{frames}.motion.npy").shape[0] == 1
    assert np.load(tmp_path / "mstcn" / f"short{frames}.npy").shape[1] == frames


def test_other_features_in_the_folder_are_not_overwritten(made, tmp_path):
    extract(made, tmp_path)
    before = digests(tmp_path)
    with pytest.raises(UserError, match="features of another network, video or window"):
        extract(made, tmp_path, stride=2)
    assert digests(tmp_path) == before


def test_the_command_names_what_does_not_decode_and_writes_the_rest(made, tmp_path, capsys):
    folder = tmp_path / "videos"
    (folder / "deep").mkdir(parents=True)
    (folder / "bad.avi").write_bytes(b"no video")
    (folder / "deep" / "film.avi").write_bytes((made / "film.avi").read_bytes())
    out = str(tmp_path / "out")
    assert (
        main(["features", str(made / "run"), str(folder), "--out", out, "--phase", "motion"]) == 1
    )
    captured = capsys.readouterr()
    assert "bad.avi: " in captured.err
    assert "motion: windows of 10 frames" in captured.out
    assert (tmp_path / "out" / "deep" / "film.motion.npy").is_file()
    for words, code in (
        (["nothing.avi", "--out", out], 2),
        ([str(made / "film.avi"), "--out", out, "--stride", "0"], 2),
        ([str(made / "film.avi"), "--out", out, "--chunks", "3"], 2),
    ):
        assert main(["features", str(made / "run"), *words]) == code
        assert len(capsys.readouterr().err.splitlines()) <= 3


def test_a_folder_is_searched_as_prepare_searches_it(made, tmp_path):
    """Hidden files are left out, links are followed but not for ever; a pipe or a dead link costs itself."""
    folder, elsewhere = tmp_path / "videos", tmp_path / "elsewhere"
    folder.mkdir()
    elsewhere.mkdir()
    (elsewhere / "film.AVI").write_bytes((made / "short.avi").read_bytes())
    (folder / "linked").symlink_to(elsewhere)
    (elsewhere / "round").symlink_to(folder)
    (folder / "._film.avi").write_bytes(b"\0\5\26\7")
    (folder / "__MACOSX").mkdir()
    (folder / "__MACOSX" / "film.avi").write_bytes(b"\0\5\26\7")
    (folder / "dead.avi").symlink_to(folder / "nothing.avi")
    os.mkfifo(folder / "pipe.avi")
    sources = find_videos([folder])
    assert [source.name for source in sources] == ["dead", "linked/film", "pipe"]
    task = task_of(made, tmp_path / "out", "motion")
    failed = features.extract(task, sources, CPU)
    assert [line.split(": ")[1] for line in failed] == ["cannot be read", "not a regular file"]
    assert np.load(tmp_path / "out" / "linked" / "film.motion.npy").shape[0] == 1


def test_a_name_that_is_not_utf8_is_refused_in_words(made, tmp_path):
    path = Path(os.fsdecode(os.fsencode(tmp_path) + b"/caf\xe9.avi"))
    path.write_bytes((made / "short.avi").read_bytes())
    with pytest.raises(UserError, match=r"caf\\xe9.avi: this file name is not UTF-8"):
        find_videos([tmp_path])


def test_how_far_a_long_video_is_is_said(made, tmp_path, monkeypatch, small_pieces):
    told = []
    monkeypatch.setattr(features.Progress, "update", lambda self, done, note="": told.append(note))
    extract(made, tmp_path, stride=1)
    assert told == ["film: its frames are counted", "film: 5 of 18 windows", "film: 10 of 18 windows",
                    "film: 15 of 18 windows", "film: 18 of 18 windows", "film"]  # fmt: skip


def test_a_network_for_larger_pictures_sees_them_as_in_its_test(data_root, made, tmp_path):
    config = tiny_config(data_root, "phases.motion.model.motion.side=40")
    make_run(config, tmp_path / "run", ["a", "b"], ["motion"])
    task = task_of(tmp_path, tmp_path / "out", "motion")
    assert features.extract(task, find_videos([made / "short.avi"]), CPU) == []
    network, clip = task.network, clip_of(made / "short.avi", task.network)
    seen = []
    network.call.motion.fc.register_forward_pre_hook(lambda module, given: seen.append(given[0]))
    request = task.windows.request(0, clip.rows[0])
    read = ClipReader(clip, None, network.levels, streams=(False, True), scale=40 / 32).read(
        [request]
    )
    assert read.flow.shape[-2:] == (60, 80)
    with torch.no_grad():
        network(None, read.flow.to(network.dtype))
    np.testing.assert_allclose(
        np.load(tmp_path / "out" / "short.motion.npy"), seen[0].numpy(), rtol=1e-5, atol=1e-6
    )


def test_windows_are_as_long_as_what_was_trained():
    """Clips at the middle of their strides; of segments, a flow stack apart, as many as there are."""
    stfn = load_config(ROOT / "configs" / "binding_stfn.yaml").phases
    joint = load_config(ROOT / "configs" / "binding.yaml").phases
    assert networks.clip_of(stfn["stfn"]) == (5, 10)
    assert networks.clip_of(stfn["motion"])[0] == 1
    assert networks.clip_of(joint["st_resnet"]) == (5, 3)
    assert networks.clip_of(joint["st_resnet_star"]) == (7, 2)


def test_names_that_meet_are_refused(made, tmp_path):
    (tmp_path / "film.avi").write_bytes(b"another")
    with pytest.raises(ConfigError, match="would both be written as film"):
        find_videos([made / "film.avi", tmp_path / "film.avi"])
    assert len(find_videos([made / "film.avi", made / "film.avi"])) == 1
