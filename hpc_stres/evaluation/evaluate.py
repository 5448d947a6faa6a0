"""Test the finished phases of a run: each video once on any number of ranks, gathered by id, summed
in sorted order.

An evaluation has one owner: its first rank holds the lock of the run's scores, the other ranks
follow it, and a second evaluation of the same run waits. What the ranks do together (start, refuse,
stop) they agree on, so that the failure of one ends all of them with a sentence.
"""

import hashlib
import json
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from hpc_stres.config.loading import plain
from hpc_stres.config.recipe import Phases, ordered_phases
from hpc_stres.config.schema import Config
from hpc_stres.data.augment import Levels
from hpc_stres.data.feed import ClipReader
from hpc_stres.errors import UserError
from hpc_stres.evaluation import networks, parts, protocol, scores
from hpc_stres.evaluation.finished import held_out_by, read_finished
from hpc_stres.evaluation.groups import groups_of
from hpc_stres.evaluation.results import class_names, score_path, summarise
from hpc_stres.models.building import DTYPES
from hpc_stres.parallel import process_groups
from hpc_stres.parallel.world import World
from hpc_stres.phases.train import train_phase
from hpc_stres.registry import PHASE_KINDS
from hpc_stres.registry.phase import entry_point
from hpc_stres.run.data_set import refuse_other_data_set
from hpc_stres.run.ownership import owned
from hpc_stres.run.paths import RunPaths
from hpc_stres.run.product import checked_product, finished_weights
from hpc_stres.run.progress import Progress
from hpc_stres.store.held_out import held_out, trained_facts
from hpc_stres.store.labels import label_table
from hpc_stres.store.reader import Store, VideoRow
from hpc_stres.store.staging import open_store

# How long a second evaluation of the same run waits for the first one.
PATIENCE_SECONDS = 300.0
# Options of testing on which no video's scores depend.
UNSCORED = (
    "allow_missing", "groups", "validation_share", "validation_column", "validation_every_steps",
)  # fmt: skip
# A network file system may show other hosts' new files this late.
LATE_FILE_SECONDS = 60.0


@dataclass(frozen=True)
class Scoring:
    """One phase of an evaluation: what its scores are made by, and each video's key."""

    name: str
    weights: Path
    made_by: dict[str, Any]
    keys: dict[str, str]


def evaluate(
    config: Config, run_dir: Path, world: World, phases: list[str] | None = None
) -> dict[str, Any] | None:
    """Score every finished phase, write scores/ and results.json; returns the results
    on the first rank."""
    torch.set_num_threads(protocol.EVALUATION_THREADS)
    device = process_groups.choose_device(world)
    torch.set_num_threads(protocol.EVALUATION_THREADS)
    process_groups.start(world, device)
    try:
        results = _evaluate_in_group(config, run_dir, world, phases, device)
    except BaseException:
        # A rank that failed leaves at once; leaving the group may wait for the others.
        if world.size == 1:
            process_groups.stop()
        raise
    process_groups.stop()
    return results


def _evaluate_in_group(
    config: Config, run_dir: Path, world: World, phases: list[str] | None, device: torch.device
) -> dict[str, Any] | None:
    paths = RunPaths(run_dir)
    control = process_groups.make_control_group()
    with _failing_together(control):
        store = open_store(config, check=world.is_first)
        if world.is_first:
            refuse_other_data_set(run_dir, trained_facts(store, config))
        chosen = _finished_phases(config.phases, paths, phases)
        label_table(store, config.data)  # refuses a store of the other kind of labels
        videos = _test_videos(config, store)
        held = sorted(store.rows[row].id for row in held_out(store, config))
    with _owned_by_first(paths, world, control):
        for name in chosen:
            if PHASE_KINDS.get(config.phases[name].kind).scores is not None:
                with _failing_together(control):
                    if world.is_first:
                        _take_scores(config, name, paths, store, videos, held)
                continue
            with _failing_together(control):
                scoring = _scoring(config, name, paths, store, [*videos, *held])
            todo = _todo(config.data.split, scoring, paths, [*videos, *held], world, control)[
                world.rank :: world.size
            ]
            with _failing_together(control):
                _score_phase(config, scoring, paths, store, todo, world, device)
            with _failing_together(control):
                if world.is_first:
                    patience = LATE_FILE_SECONDS if world.size > 1 else 0.0
                    _gather(config, scoring, paths, store, videos, patience)
                    if held:
                        _gather(config, scoring, paths, store, held, patience, of_held_out=True)
        with _failing_together(control):
            results = summarise(config, run_dir, store) if world.is_first else None
    return results


def _take_scores(
    config: Config, name: str, paths: RunPaths, store: Store, videos: list[str], held: list[str]
) -> None:
    """The scores that a phase's own product holds: of this split's test videos, and of those held
    out where it has them."""
    _refuse_trained_on_held_out(config, paths, name)
    function = entry_point(PHASE_KINDS.get(config.phases[name].kind).scores or "")
    made: scores.Scores = function(config, name, paths.root, store)
    missing = sorted(set(videos) - set(made.ids))
    if missing:
        raise UserError(
            f"{paths.phase(name).root}: phase {name} has no scores of {len(missing)} test videos: "
            f"{', '.join(missing[:3])}, as they are now\n"
            f"Make them: hpc-stres train --phase {name} --run-dir {paths.root}"
        )
    product = checked_product(paths.phase(name))
    made.made_by.setdefault("protocol", f"scores of a phase of kind {config.phases[name].kind}")
    made.made_by.update({"phase": name, "split": config.data.split, "weights": product["sha256"]})
    for chosen in (videos, held if held and set(held) <= set(made.ids) else []):
        if chosen:
            part = made.only(chosen)
            groups = groups_of(config.evaluation.groups, config.data, part.ids, class_names(part))
            path = score_path(paths, config.data.split, name, chosen is held)
            replace(part, groups=groups).save(path)


def _refuse_trained_on_held_out(config: Config, paths: RunPaths, name: str) -> None:
    """Held-out videos must be held out of every network, and of other phases that say what they
    were trained with."""
    held_out_then, held_out_now = (
        read_finished(paths, name).held_out_by, held_out_by(config.evaluation)
    )  # fmt: skip
    has_network = PHASE_KINDS.get(config.phases[name].kind).scores is None
    is_silent = held_out_then is None and not has_network
    if not held_out_now or is_silent or held_out_then == held_out_now:
        return
    raise UserError(
        f"{paths.phase(name).root}: trained with {held_out_then or 'nothing'} held out, not with "
        f"{held_out_now}: its held-out videos were trained on\nTrain it again in another --run-dir."
    )


def _finished_phases(known: Phases, paths: RunPaths, named: list[str] | None) -> list[str]:
    """Phases to score: those that were named, which must be finished, or all that are."""
    everywhere = [
        name for name in ordered_phases(known) if PHASE_KINDS.get(known[name].kind).is_scored
    ]
    finished = [name for name in everywhere if paths.phase(name).done.is_file()]
    open_ones = [name for name in named or [] if name not in finished]
    if open_ones:
        raise UserError(
            f"{paths.root}: phase {open_ones[0]} is not finished\nTrain it first, or leave it out."
        )
    if not finished:
        raise UserError(
            f"{paths.root}: no finished phase to evaluate\nTrain one first: hpc-stres train --phase ..."
        )
    return named or finished


@contextmanager
def _failing_together(control: Any) -> Iterator[None]:
    """Every rank leaves the block, or every rank is refused: one rank's refusal is not
    another's endless wait."""
    failed: UserError | None = None
    try:
        yield
    except UserError as error:
        failed = error
    except OSError as error:
        where = error.filename or "a file of this run or of its store"
        kept = "What was scored is kept in scores/parts: evaluate again."
        failed = UserError(f"{where}: {error.strerror or error}\n{kept}")
    (any_failed,) = process_groups.agree([float(failed is not None)], control)
    if any_failed:
        raise failed or UserError("another rank of this evaluation stopped; its message says why")


@contextmanager
def _owned_by_first(paths: RunPaths, world: World, control: Any) -> Iterator[None]:
    """The first rank owns the scores of this run while the block runs."""
    with ExitStack() as stack:
        with _failing_together(control):
            if world.is_first:
                _own(paths, stack)
        yield


def _own(paths: RunPaths, stack: ExitStack) -> None:
    lock, what = paths.root / "scores" / "owner.lock", "this run is being evaluated"
    try:
        stack.enter_context(owned(lock, what))
    except UserError as error:
        first_line = str(error).splitlines()[0]
        print(
            f"{first_line}; waiting up to {PATIENCE_SECONDS / 60:.0f} minutes",
            file=sys.stderr,
            flush=True,
        )
        stack.enter_context(owned(lock, what, PATIENCE_SECONDS))


def _test_videos(config: Config, store: Store) -> list[str]:
    """Sorted ids of the test videos that are there; refuses when some are not, unless
    that is allowed."""
    wanted = store.ids(config.data.split, "test")
    present = sorted(name for name in wanted if name in store.number)
    missing = sorted(set(wanted) - set(present))
    if missing and not config.evaluation.allow_missing:
        reason = store.rejected.get(missing[0], "not in the store")
        raise UserError(
            f"{len(missing)} of {len(wanted)} test videos are missing: {', '.join(missing[:3])} ({reason})\n"
            "Fix the data, or add --allow-missing: every number then says k of n."
        )
    if not present:
        raise UserError(
            f"{store.place}: split {config.data.split} has no test videos that could be scored"
        )
    return present


def _scoring(
    config: Config, name: str, paths: RunPaths, store: Store, videos: list[str]
) -> Scoring:
    """What the scores of a phase depend on; refuses a store of other classes than the
    phase was trained on."""
    finished = read_finished(paths, name)
    _refuse_trained_on_held_out(config, paths, name)
    weights = finished_weights(paths, name)
    if finished.classes != store.classes:
        differing = sorted(set(finished.classes) ^ set(store.classes))[:3] or ["their order"]
        raise UserError(
            f"{store.place}: its {len(store.classes)} classes are not the {len(finished.classes)} that phase {name} "
            f"was trained on: {', '.join(differing)}\nEvaluate on the data set of the training: check data.root."
        )
    evaluation = {
        key: value for key, value in plain(config.evaluation).items() if key not in UNSCORED
    }
    clips = protocol.TestClips.of(train_phase(config, name), config.data.crop)
    made_by = {
        "phase": name, "split": config.data.split, "weights": finished.weights_sha256,
        "protocol": protocol.describe(config.evaluation, clips), "evaluation": evaluation,
        "options": plain(config.phases[name]), "precision": config.training.precision,
    }  # fmt: skip
    common = hashlib.sha256(json.dumps(made_by, sort_keys=True).encode())
    keys = {video: _key(common.copy(), store.rows[store.number[video]]) for video in videos}
    return Scoring(name, weights, made_by, keys)


def _key(digest: Any, row: VideoRow) -> str:
    """What the scores of one video depend on: the phase's part, and the content of the video."""
    digest.update(repr((row.frames, row.flow_pairs, row.rgb_sha256, row.flow_sha256)).encode())
    return str(digest.hexdigest()[:32])


def _todo(
    split: int, scoring: Scoring, paths: RunPaths, videos: list[str], world: World, control: Any
) -> list[str]:
    """Videos that no earlier attempt scored; the first rank looks, so that all ranks
    cut the same list."""
    is_open = torch.ones(len(videos), dtype=torch.uint8)
    with _failing_together(control):
        if world.is_first:
            done = parts.read_parts(paths, split, scoring.name, scoring.keys, loud=True)
            is_open = torch.tensor([video not in done for video in videos], dtype=torch.uint8)
    torch.distributed.broadcast(is_open, 0, group=control)
    return [video for video, wanted in zip(videos, is_open.tolist(), strict=True) if wanted]


def _score_phase(
    config: Config, scoring: Scoring, paths: RunPaths, store: Store, todo: list[str], world: World,
    device: torch.device,
) -> None:  # fmt: skip
    """This rank's share of a phase's videos, a line a video."""
    name = scoring.name
    phase = train_phase(config, name)
    model = (
        networks.finished_model(config, name, scoring.weights, len(store.classes)).to(device).eval()
    )
    wanted = protocol.TestClips.of(phase, config.data.crop)
    reader = ClipReader(
        store, wanted.side, Levels.of_phase(phase), streams=phase.streams, device_id=device.index, most=512,
        scale=wanted.scale,
    )  # fmt: skip
    writer = parts.PartWriter(paths, config.data.split, name, world.rank)
    with Progress(f"test {name}", len(todo), "videos", world.is_first) as bar:
        for number, video in enumerate(todo, 1):
            index = store.number[video]
            clips = protocol.test_requests(store.rows[index], index, config.evaluation, wanted)
            given = protocol.score_video(model, reader, clips, DTYPES[config.training.precision])
            streams = {
                stream: value for stream, value in given._asdict().items() if value is not None
            }
            refuse_not_finite(streams, video, f"phase {name}", scoring.weights)
            writer.write(video, scoring.keys[video], streams)
            bar.update(number)


def refuse_not_finite(streams: parts.Streams, video: str, what: str, weights: Path) -> None:
    """Stop at a score that is not a finite number: its class would be chance that
    looks like a result."""
    for stream, value in streams.items():
        if not np.isfinite(value).all():
            raise UserError(
                f"{what}: the {stream} score of video {video} is not a finite number\n"
                f"The weights have diverged: {weights}\nTrain the phase again, with a smaller learning rate."
            )


def _gather(
    config: Config, scoring: Scoring, paths: RunPaths, store: Store, videos: list[str], patience_seconds: float,
    of_held_out: bool = False,
) -> None:  # fmt: skip
    """All attempts' lines into one score file; each video must be there."""
    deadline = time.monotonic() + patience_seconds
    while True:
        scored = parts.read_parts(
            paths, config.data.split, scoring.name, {name: scoring.keys[name] for name in videos}
        )
        missing = [video for video in videos if video not in scored]
        if not missing:
            break
        if time.monotonic() >= deadline:
            raise UserError(
                f"{paths.root}: {len(missing)} videos were not scored: {', '.join(missing[:3])}"
            )
        time.sleep(1.0)
    for video, streams in scored.items():
        refuse_not_finite(streams, video, f"phase {scoring.name}", scoring.weights)
    labels = {video: store.rows[store.number[video]].label for video in videos}
    made = scores.from_videos(
        {video: scored[video] for video in videos}, labels, store.classes, store.label_sets
    )
    made.made_by.update(scoring.made_by)
    groups = groups_of(config.evaluation.groups, config.data, made.ids, class_names(made))
    replace(made, groups=groups).save(
        score_path(paths, config.data.split, scoring.name, of_held_out)
    )
