"""Hand-crafted features of a whole store, piece by piece: the same bytes however it is made."""

import os
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from hpc_stres.errors import UserError
from hpc_stres.handcrafted.extraction import Extraction, StoppedEarly
from hpc_stres.handcrafted.parts import Parts, read_arrays, write_arrays
from hpc_stres.phases.handcrafted import FeatureOptions
from hpc_stres.handcrafted.tasks import Job
from hpc_stres.prepare.worker_tasks import executor_of
from tests.conftest import digests

pytest.importorskip("sklearn")
OPTIONS = FeatureOptions(
    scales=1, step=8, length=6, gaussians=2, vocabulary_videos=5, vocabulary_samples=400, least_motion_pixels=0.5
)  # fmt: skip


def job_of(store, folder, **changes):
    return Job(store.paths.root, Parts(Path(folder)), "idt", 7, replace(OPTIONS, **changes))


def extract(store, folder, workers=1, stop_after=None):
    with executor_of(workers) as executor:
        extraction = Extraction(job_of(store, folder), store, 1, executor, quiet=True)
        if stop_after is not None:
            extraction.stop.wanted = lambda: len(list(Path(folder).glob("fisher-*"))) >= stop_after
        return extraction.run()


@pytest.fixture(scope="module")
def whole(store, tmp_path_factory):
    folder = tmp_path_factory.mktemp("parts")
    return folder, extract(store, folder)


def test_two_workers_killed_and_resumed_make_the_bytes_of_one(store, whole, tmp_path):
    with pytest.raises(StoppedEarly):
        extract(store, tmp_path, 2, stop_after=3)
    made = sorted(tmp_path.glob("fisher-*"))
    assert 3 <= len(made) < 32
    # One piece torn by a kill, one with a changed bit, one that was not touched.
    made[0].write_bytes(made[0].read_bytes()[:100])
    damaged = bytearray(made[1].read_bytes())
    damaged[len(damaged) // 2] ^= 1
    made[1].write_bytes(damaged)
    before = os.stat(made[2]).st_mtime_ns
    result = extract(store, tmp_path, 2)
    assert os.stat(made[2]).st_mtime_ns == before
    assert digests(tmp_path) == digests(whole[0])
    np.testing.assert_array_equal(result.scores, whole[1].scores)


def test_every_test_video_is_scored_by_machines_of_all_classes(store, whole):
    result = whole[1]
    assert result.ids == sorted(store.ids(1, "test"))
    assert result.scores.shape == (8, 8)
    numbers = sum(2 * words["means"].size for words in result.vocabularies.values())
    assert result.classifier.weights.shape == (8, numbers)
    assert [store.classes[label] for label in result.labels] == [
        name.partition("_")[2].partition("_")[0] for name in result.ids
    ]
    # Machines of so few videos tell their own training videos apart.
    folder = Parts(whole[0])
    assert len(list(folder.root.glob("fisher-*"))) == 32
    assert len(list(folder.root.glob("sample-*"))) == 5
    assert np.isfinite(result.scores).all()


def test_other_settings_use_no_piece_of_these(store, whole):
    job, row = job_of(store, whole[0]), store.rows[0]
    others = [job_of(store, whole[0], cost=1.0), job_of(store, whole[0], step=9), replace(job, seed=8)]
    assert len({one.video_key(row) for one in [job, *others]}) == 4
    assert job.video_key(row) != job.video_key(store.rows[1])


def test_a_piece_is_read_under_its_own_key_only(tmp_path):
    write_arrays(tmp_path / "p.npz", "key", {"a": np.arange(3)})
    assert read_arrays(tmp_path / "p.npz", "other") is None
    assert read_arrays(tmp_path / "nothing.npz", "key") is None
    np.testing.assert_array_equal(read_arrays(tmp_path / "p.npz", "key")["a"], [0, 1, 2])


def test_a_split_without_training_videos_is_refused(store, tmp_path, monkeypatch):
    monkeypatch.setattr(store, "present", lambda split, kind: [] if kind == "train" else [0])
    with pytest.raises(UserError, match="no training videos"):
        Extraction(job_of(store, tmp_path), store, 1, None, quiet=True)
