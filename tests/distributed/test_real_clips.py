"""Real videos of every kind: each is prepared with the frames that decode, or rejected with a reason."""

import json
import shutil

import pytest

from hpc_stres.prepare.video import UndecodableError, count_frames
from hpc_stres.store.location import store_folder
from hpc_stres.store.reader import Store, verify
from tests.conftest import TINY, run_python, tiny_config

pytestmark = pytest.mark.distributed


def test_each_real_clip_is_prepared_or_rejected(clips, tmp_path):
    files = sorted(
        path for path in clips.iterdir() if path.suffix in (".avi", ".mp4", ".mkv", ".mov")
    )
    for number, path in enumerate(files):
        target = tmp_path / "videos" / ("odd" if number % 2 else "even") / path.name
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(path, target)
    settings = [f"data.root={tmp_path}", "data.kind=folder", f"data.videos={tmp_path / 'videos'}"]
    words = [word for setting in settings for word in ("--set", setting)]
    result = run_python(
        "-m",
        "hpc_stres",
        "prepare",
        "--config",
        TINY,
        *words,
        "--set",
        "data.max_rejected=0.5",
    )
    assert result.returncode == 0, result.stderr
    assert "core-hours" in result.stdout
    assert "inodes" in result.stdout
    store = Store(store_folder(tiny_config(tmp_path, *settings[1:])))
    assert verify(store) == []
    seen = 0
    for path in files:
        name = next(
            n
            for n in (f"even/{path.stem}", f"odd/{path.stem}")
            if n in {**store.number, **store.rejected}
        )
        try:
            frames = count_frames(path)
        except UndecodableError:
            assert store.rejected[name]
            continue
        row = store.rows[store.number[name]]
        assert (row.frames, row.flow_pairs) == (frames, max(1, frames - 1)), path.name
        assert min(row.height, row.width) == 48
        seen += 1
    assert seen + len(store.rejected) == len(files)
    assert seen >= 10
    strict = run_python(
        "-m", "hpc_stres", "prepare", "--config", TINY, *words, "--set", "data.short_side=32", "--set", "data.crop=32",
    )  # fmt: skip
    assert strict.returncode == 1
    assert f"of {len(files)} videos do not decode" in strict.stderr
    assert json.dumps(sorted(store.rejected))
