"""Damage of every kind is found, named, and mended into the bytes of the first day."""

import random
import shutil
from dataclasses import replace

import pytest

from hpc_stres.errors import ConfigError, UserError
from hpc_stres.prepare import repair
from hpc_stres.store.location import Settings, store_folder
from hpc_stres.store.reader import Store, verify
from hpc_stres.store.staging import COMPARED, open_store, staged
from tests.conftest import TINY, digests, run_python, tiny_config

SETTINGS = Settings.of(tiny_config("data").data)


@pytest.fixture
def copy(data_root, store, tmp_path):
    """A copy of the tiny data set and its store: its config, its folder, and the first day's bytes."""
    shutil.copytree(data_root, tmp_path / "copy")
    config = tiny_config(tmp_path / "copy")
    root = store_folder(config)
    return config, root, digests(root)


def flip(path, place):
    data = bytearray(path.read_bytes())
    data[place] ^= 0x40
    path.write_bytes(data)


@pytest.mark.parametrize("seed", range(6))
def test_flipped_bytes_anywhere_in_a_shard_are_mended(copy, seed):
    config, root, first_day = copy
    generator = random.Random(seed)
    path = generator.choice(sorted((root / "shards").iterdir()))
    for _ in range(2):
        flip(path, generator.randrange(path.stat().st_size))
    assert verify(Store(root))
    done = repair.repair(config, quiet=True)
    assert any("the same bytes as at first" in line for line in done)
    assert digests(root) == first_day
    assert verify(Store(root)) == []


def test_a_missing_and_a_cut_shard_are_mended(copy):
    config, root, first_day = copy
    path = sorted((root / "shards").iterdir())[0]
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises(UserError, match="bytes long, not"):
        Store(root)
    assert "bytes long, not" in "\n".join(verify(Store(root, check_shards=False)))
    repair.repair(config, quiet=True)
    assert digests(root) == first_day
    path.unlink()
    assert verify(Store(root, check_shards=False)) == [f"{path.name}: the shard is missing"]
    repair.repair(config, quiet=True)
    assert digests(root) == first_day


@pytest.mark.parametrize("role", ["videos", "offsets", "listing", "splits", "names", "manifest"])
def test_a_damaged_index_is_read_anew_out_of_the_shards(copy, role):
    config, root, first_day = copy
    name = (
        "manifest.json"
        if role == "manifest"
        else f"index/{Store(root).manifest['index'][role]['name']}"
    )
    flip(root / name, (root / name).stat().st_size - 20)
    words = [
        "-m",
        "hpc_stres",
        "verify",
        "--config",
        TINY,
        "--set",
        f"data.root={config.data.root}",
    ]
    result = run_python(*words)
    assert result.returncode == 1
    assert f"{name}: damaged: its checksum is wrong" in result.stdout
    result = run_python(*words, "--repair")
    assert result.returncode == 0, result.stdout + result.stderr
    assert "all whole" in result.stdout
    assert digests(root) == first_day
    (root / name).unlink()
    assert run_python(*words, "--repair").returncode == 0
    assert digests(root) == first_day


def test_only_what_is_damaged_is_prepared_again(copy, monkeypatch):
    config, root, first_day = copy
    store = Store(root)
    row = store.rows[5]
    place = int(store.offsets[row.rgb_first]) + 100
    flip(store.paths.shard(row.shard), place)
    made = []
    one = repair.imports.prepare_one
    monkeypatch.setattr(
        repair.imports,
        "prepare_one",
        lambda video, *more: made.append(video.id) or one(video, *more),
    )
    repair.repair(config, quiet=True)
    assert made == [row.id]
    assert digests(root) == first_day


def test_other_bytes_than_at_first_bring_a_new_index(copy, monkeypatch):
    """Another version of a codec: the mended shard is longer, and everything is still found where the index says."""
    config, root, _ = copy
    before = Store(root)
    row = before.rows[0]
    intact = {
        r.id: before.member(n, "rgb").tobytes() for n, r in enumerate(before.rows) if r.id != row.id
    }
    flip(before.paths.shard(row.shard), int(before.offsets[row.rgb_first]) + 100)
    one = repair.imports.prepare_one

    def other_codec(video, settings, data):
        made = one(video, settings, data)
        return type(made)(
            made.id, made.label, made.height, made.width, [made.rgb[0], *made.rgb], made.flow
        )

    monkeypatch.setattr(repair.imports, "prepare_one", other_codec)
    assert any("and the index with it" in line for line in repair.repair(config, quiet=True))
    after = Store(root)
    assert verify(after) == []
    assert after.rows[0].frames == row.frames + 1
    assert {
        r.id: after.member(n, "rgb").tobytes() for n, r in enumerate(after.rows) if r.id != row.id
    } == intact


def test_an_original_that_is_gone_is_named(copy):
    config, root, _ = copy
    path = sorted((root / "shards").iterdir())[0]
    path.unlink()
    shutil.rmtree(config.data.root + "/binding/videos")
    with pytest.raises(UserError, match="cannot be prepared again: the original is gone"):
        repair.repair(config, quiet=True)


# -- a copy on the node's own disk -------------------------------------------------------------------------------------


def test_a_staged_store_is_a_whole_copy_made_once(copy, tmp_path, monkeypatch):
    config, root, first_day = copy
    monkeypatch.setenv("NODE_DISK", str(tmp_path / "node"))
    there = tiny_config(config.data.root, "data.stage=$NODE_DISK/x")
    store = open_store(there)
    assert store.paths.root == tmp_path / "node" / "x" / root.name
    kept = {name: digest for name, digest in digests(store.paths.root).items() if name != COMPARED}
    assert kept == first_day
    written = store.paths.manifest.stat().st_mtime_ns
    assert open_store(there).paths.manifest.stat().st_mtime_ns == written


def test_a_copy_that_was_cut_short_is_made_again(copy, tmp_path):
    _config, root, _ = copy
    target = staged(root, str(tmp_path / "node"))
    shard = sorted((target / "shards").iterdir())[0]
    shard.write_bytes(shard.read_bytes()[:100])
    assert verify(Store(staged(root, str(tmp_path / "node")))) == []


def test_a_variable_that_is_not_set_is_no_folder(copy):
    config, _, _ = copy
    with pytest.raises(ConfigError, match=r"data.stage: \$NO_SUCH_DISK: this variable is not set"):
        open_store(tiny_config(config.data.root, "data.stage=$NO_SUCH_DISK"))


def test_a_scanned_shard_gives_the_rows_of_the_index(store):
    videos, offsets = repair.scan_shard(store.paths.shard(0), SETTINGS)
    expected = [replace(row, label=-1) for row in store.rows if row.shard == 0]
    assert [packed.row for packed in videos.values()] == expected
    assert offsets.tolist() == store.offsets[: len(offsets)].tolist()
