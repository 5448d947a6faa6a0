"""A copy of the tiny data set, listed by tables of a test's own, and a count of what is decoded."""

import csv
import shutil

import pytest

from hpc_stres.prepare import run as preparing
from hpc_stres.prepare import worker_tasks
from hpc_stres.prepare.run import prepare
from hpc_stres.store.reader import Store
from tests.conftest import tiny_config


@pytest.fixture
def root(data_root, store, tmp_path):
    """A copy of the tiny data set and its store, under which other stores find its frames."""
    shutil.copytree(data_root, tmp_path / "root")
    return tmp_path / "root"


@pytest.fixture
def work(monkeypatch):
    """Ids of the videos that were decoded, in this process."""
    made = []
    one = worker_tasks.imports.prepare_one

    def counted(video, *more):
        made.append(video.id)
        return one(video, *more)

    class Inline:
        """Work is done when it is asked for."""

        def submit(self, function, *arguments):
            from concurrent.futures import Future

            future = Future()
            try:
                future.set_result(function(*arguments))
            except BaseException as error:
                future.set_exception(error)
            return future

        def __enter__(self):
            return self

        def __exit__(self, *more):
            return None

    monkeypatch.setattr(worker_tasks.imports, "prepare_one", counted)
    monkeypatch.setattr(preparing.worker_tasks, "executor_of", lambda workers: Inline())
    monkeypatch.setattr(preparing.disk, "estimate", lambda *more: "")
    return made


def own_config(root, *more, name="own"):
    videos = f"data.videos={root}/binding/videos"
    return tiny_config(root, "data.kind=csv", videos, f"data.lists={root}/{name}.csv", *more)


def write_csv(root, rows, name="own"):
    with (root / f"{name}.csv").open("w", newline="") as stream:
        writer = csv.writer(stream)
        writer.writerow(["path", "label", "split"])
        writer.writerows(rows)


def rows_of(root, count=10):
    """Pairs of a test and a training video, of two classes in turn."""
    paths = sorted((root / "binding" / "videos").rglob("*.avi"))[:count]
    names = [path.relative_to(root / "binding" / "videos").as_posix() for path in paths]
    return [
        [name, ("jump", "walk")[n // 2 % 2], ("test", "train")[n % 2]]
        for n, name in enumerate(names)
    ]


def answers(store):
    """All that a reader can ask, by id: what two stores of the same data set must agree on."""
    members = {
        row.id: (
            row.label,
            row.frames,
            store.member(n, "rgb").tobytes(),
            store.member(n, "flow").tobytes(),
        )
        for n, row in enumerate(store.rows)
    }
    lists = {kind: store.ids(1, kind) for kind in ("train", "test")}
    return store.classes, members, lists, store.rejected


def from_scratch(root, tmp_path, *more):
    """What a store made anew of the same lists and videos answers."""
    shutil.copytree(root / "binding", tmp_path / "anew" / "binding")
    shutil.copy(root / "own.csv", tmp_path / "anew" / "own.csv")
    return answers(Store(prepare(own_config(tmp_path / "anew", *more), quiet=True)))
