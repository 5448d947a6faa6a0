"""A phase of kind `handcrafted` from outside: who owns it, what is left to do, what
it leaves behind.

Parallel over videos: on the cores of one machine, or over the ranks of
`mpirun -n N hpc-stres train --phase NAME`.
"""

import os
import shutil
import sys
from concurrent.futures import Executor
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from hpc_stres.config.loading import plain
from hpc_stres.config.schema import Config, DataConfig
from hpc_stres.errors import UserError
from hpc_stres.evaluation.published import HANDCRAFTED_PROTOCOL
from hpc_stres.evaluation.scores import Scores
from hpc_stres.handcrafted.extraction import Extraction, Result, StoppedEarly, Videos
from hpc_stres.handcrafted.parts import Arrays, Parts, read_arrays, write_arrays
from hpc_stres.handcrafted.tasks import Job
from hpc_stres.phases.handcrafted import FeatureOptions
from hpc_stres.prepare.disk import cores
from hpc_stres.prepare.worker_tasks import executor_of
from hpc_stres.run.data_set import claim_data_set
from hpc_stres.run.experiment import claim_run_folder
from hpc_stres.run.ownership import owned
from hpc_stres.run.paths import PhasePaths, RunPaths
from hpc_stres.run.product import phase_is_done, write_product
from hpc_stres.run.provenance import write_provenance
from hpc_stres.store.features import content_of
from hpc_stres.store.format import StorePaths
from hpc_stres.store.held_out import held_out, trained_facts, trained_on
from hpc_stres.store.labels import label_table
from hpc_stres.store.listing import check_matches
from hpc_stres.store.location import store_folder
from hpc_stres.store.reader import Store

if TYPE_CHECKING:
    from hpc_stres.parallel.world import World

# Under Slurm the next link of a chain may start while the one before it still writes.
LINK_PATIENCE_SECONDS = 60.0
PRODUCTS = ("scores.npz", "classifier.npz")


def run(
    config: Config, name: str, run_dir: Path, world: "World", allowed: tuple[str, ...] = ()
) -> bool:
    """Make a phase's scores; False where it was asked to stop before its end."""
    # Under MPI every rank comes here: the first hands out the work, the others do it.
    with executor_of(config.data.workers or cores()) as executor:
        if executor is None:
            return True
        try:
            return _run(config, name, run_dir, allowed, executor)
        except OSError as error:
            raise UserError(
                f"{error.filename or run_dir}: cannot be read or written: {error.strerror or error}\n"
                "Put that right and run the same command again: what is made is kept."
            ) from error


def _run(
    config: Config, name: str, run_dir: Path, allowed: tuple[str, ...], executor: Executor
) -> bool:
    paths = RunPaths(run_dir).phase(name)
    claim_run_folder(config, run_dir, allowed)
    if _is_done(config, paths, name):
        return True
    store = Store(store_folder(config))
    check_matches(store, config)
    claim_data_set(run_dir, trained_facts(store, config), allowed)
    patience = LINK_PATIENCE_SECONDS if "SLURM_JOB_ID" in os.environ else 0.0
    with owned(paths.lock, "this phase is being made", patience):
        # It may have been finished while this process waited for its owner.
        if _is_done(config, paths, name):
            return True
        write_provenance(run_dir, config)
        job = job_of(config, name, run_dir)
        extraction = Extraction(job, store, videos_of(store, config), executor)
        extraction.stop.install()
        try:
            result = extraction.run()
        except StoppedEarly as reason:
            print(f"{name}: {reason}; what is made is kept", file=sys.stderr, flush=True)
            return False
        _write(config, name, run_dir, store, result)
        # Kept until here: the pieces of a finished phase are of no more use.
        shutil.rmtree(job.parts.root)
    return True


def _is_done(config: Config, paths: PhasePaths, name: str) -> bool:
    """Whether the product is whole and has scores of today's test videos, where they can be
    asked."""
    if not phase_is_done(paths, 1):
        return False
    folder = store_folder(config)
    if StorePaths(folder).manifest.is_file():
        store = Store(folder)
        current = _current_rows(_product(paths, name), store)
        others = {store.rows[n].id for n in videos_of(store, config).scored} - set(current)
        if others:
            print(f"{name}: {len(others)} videos to be scored are new or not as they were")
            return False
    print(f"{name}: done already")
    return True


def _product(paths: PhasePaths, name: str) -> Arrays:
    path = paths.root / "scores.npz"
    arrays = read_arrays(path, name)
    if arrays is None:
        raise UserError(
            f"{path}: missing or damaged\nRemove done.json beside it and run the phase again."
        )
    return arrays


def _current_rows(arrays: Arrays, store: Store) -> dict[str, int]:
    """Rows of the product whose videos the store has, with the content that was scored, by id.

    Products of older versions do not say the content.
    """
    ids = arrays["ids"].tolist()
    contents = arrays["contents"].tolist() if "contents" in arrays else [None] * len(ids)
    return {
        video: row
        for row, (video, content) in enumerate(zip(ids, contents, strict=True))
        if video in store.number and content in (None, content_of(store.rows[store.number[video]]))
    }


def job_of(config: Config, name: str, run_dir: Path) -> Job:
    """What all pieces of a phase have in common."""
    phase = config.phase(name)
    options = FeatureOptions(
        **{key: getattr(phase, key) for key in FeatureOptions.__dataclass_fields__}
    )
    parts = Parts(RunPaths(run_dir).phase(name).root / "parts")
    return Job(store_folder(config).absolute(), parts, name, config.seed, options)


def videos_of(store: Store, config: Config) -> Videos:
    """What is trained on, what is scored (test videos, and training videos that are held out), and
    labels' classes."""
    table = label_table(store, config.data)
    return Videos(
        trained_on(store, config).tolist(),
        [*store.present(config.data.split, "test"), *held_out(store, config)],
        np.eye(len(store.classes), dtype=bool) if table is None else table.astype(bool),
    )


def _write(config: Config, name: str, run_dir: Path, store: Store, result: Result) -> None:
    """The product: scores of the test and the held-out videos, and all that it takes to
    score another one."""
    root = RunPaths(run_dir).phase(name).root
    words: dict[str, Any] = {
        f"{descriptor}_{key}": value
        for descriptor, arrays in result.vocabularies.items()
        for key, value in arrays.items()
    }
    machines: dict[str, Any] = {
        "weights": result.classifier.weights,
        "biases": result.classifier.biases,
    }
    write_arrays(root / "classifier.npz", name, {**words, **machines})
    rows = [store.rows[store.number[video]] for video in result.ids]
    scored = {
        "ids": np.array(result.ids, str),
        "contents": np.array([content_of(row) for row in rows], str),
        "labels": labels_of(store, config.data, result.ids),
        "logits": result.scores,
    }
    write_arrays(root / "scores.npz", name, {**scored, "classes": np.array(store.classes, str)})
    facts = {
        "classes": store.classes,
        "without_trajectories": result.without_trajectories,
        "config": plain(config),
    }
    write_product(run_dir, name, PRODUCTS, facts)
    if result.without_trajectories:
        print(f"{name}: {result.without_trajectories} videos have no trajectory", file=sys.stderr)


def labels_of(store: Store, data: DataConfig, ids: list[str]) -> NDArray[np.int64]:
    """The videos' labels as the store has them; rows of 0 and 1 where they have several classes."""
    labels = np.array([store.rows[store.number[video]].label for video in ids], np.int64)
    table = label_table(store, data)
    return labels if table is None else table[labels]


def scores(config: Config, name: str, run_dir: Path, store: Store) -> Scores:
    """The test and held-out videos' distances from each class's plane.

    Labels are the store's, as those of networks are; a video that has been replaced since has no
    scores.
    """
    arrays = _product(RunPaths(run_dir).phase(name), name)
    if arrays["classes"].tolist() != store.classes:
        raise UserError(
            f"{store.place}: its classes are not those that phase {name} was trained on\n"
            "Evaluate on the data set of the training: check data.root."
        )
    current = _current_rows(arrays, store)
    logits = arrays["logits"][list(current.values())]
    ids = list(current)
    words = {"protocol": HANDCRAFTED_PROTOCOL}
    return Scores(ids, labels_of(store, config.data, ids), store.classes, logits, {}, words)
