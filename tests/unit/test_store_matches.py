"""Training on another data set than the store's is refused with the difference."""

import csv
import shutil
import time

import pytest

from hpc_stres.errors import UserError
from hpc_stres.listings import sources
from hpc_stres.prepare.run import prepare
from hpc_stres.store.listing import check_matches
from hpc_stres.store.location import store_folder, store_is_ready
from hpc_stres.store.reader import Store
from hpc_stres.store.staging import open_store
from tests.conftest import tiny_config
from tests.unit.listed import own_config, rows_of, write_csv


def test_training_refuses_a_store_of_another_listing_and_says_the_difference(root):
    rows = rows_of(root)
    write_csv(root, rows)
    config = own_config(root)
    assert not store_is_ready(config)
    prepare(config, quiet=True)
    assert store_is_ready(config)
    rows[2][1] = rows[3][1] = "jump"
    write_csv(root, rows[:-1])
    assert not store_is_ready(config)
    with pytest.raises(
        UserError,
        match=r"changed since it was prepared: 1 removed: .*; 2 relabelled: (.|\n)*hpc-stres prep",
    ):
        open_store(config, check=True)
    open_store(config)  # the commands that look after a store open it all the same


def test_training_refuses_a_replaced_video(root):
    write_csv(root, rows_of(root))
    config = own_config(root)
    prepare(config, quiet=True)
    path = root / "binding" / "videos" / rows_of(root)[3][0]
    data = bytearray(path.read_bytes())
    data[1000] ^= 1
    path.write_bytes(data)  # the same size
    with pytest.raises(UserError, match="1 whose video is another than before"):
        open_store(config, check=True)


def test_without_the_originals_what_can_be_known_is_compared(root, capsys):
    rows = rows_of(root)
    write_csv(root, rows)
    config = own_config(root)
    prepare(config, quiet=True)
    shutil.rmtree(root / "binding")
    open_store(config, check=True)
    assert store_is_ready(config)
    rows[2][1] = "jump"
    write_csv(root, rows)
    with pytest.raises(UserError, match="1 relabelled"):
        open_store(config, check=True)
    (root / "own.csv").unlink()
    capsys.readouterr()
    open_store(config, check=True)
    assert "are not here to compare with" in capsys.readouterr().err


def test_the_comparison_takes_about_a_second_for_ucf101s_size(tmp_path, data_root):
    """A quarter of its 13,320 videos in a quarter of the time."""
    from hpc_stres.store import fingerprint, writer
    from hpc_stres.store.format import StorePaths
    from hpc_stres.store.listing import catalogue

    rows = []
    for number in range(3_330):
        path = tmp_path / "v" / f"c{number % 101}" / f"v_{number}.avi"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"%d" % number)
        rows.append(
            [
                path.relative_to(tmp_path / "v").as_posix(),
                f"c{number % 101}",
                "train" if number % 4 else "test",
            ]
        )
    with (tmp_path / "own.csv").open("w", newline="") as stream:
        csv.writer(stream).writerows([["path", "label", "split"], *rows])
    config = tiny_config(
        tmp_path, "data.kind=csv", f"data.videos={tmp_path}/v", f"data.lists={tmp_path}/own.csv"
    )
    listing = sources.read_listing(config.data)
    found = {
        name: fingerprint.content_of(video, config.data) for name, video in listing.videos.items()
    }
    paths = StorePaths(store_folder(config))
    rejected = [
        {"id": name, "path": "", "reason": "", "source": list(source)}
        for name, source in found.items()
    ]
    writer.write_index(paths, catalogue(config.data, listing, found), [], rejected, {})
    stamps = {
        name: fingerprint.stamp_of(video, config.data) for name, video in listing.videos.items()
    }
    fingerprint.write_seen(paths, {name: (stamps[name], found[name].sha256) for name in stamps})
    started = time.process_time()
    check_matches(Store(paths.root), config)
    assert time.process_time() - started < 3  # a comparison that reads contents would take minutes
