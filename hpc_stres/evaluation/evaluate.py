"""Test the finished phases of a run: each video once on any number of ranks, gathered by id, summed in sorted order."""

import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np
import torch

from hpc_stres.bootstrap import World
from hpc_stres.config import Config
from hpc_stres.configfile import plain
from hpc_stres.data.feed import ClipReader
from hpc_stres.data.shards import Store
from hpc_stres.data.stage import open_store
from hpc_stres.errors import UserError
from hpc_stres.evaluation import protocol, scores
from hpc_stres.evaluation.scores import Scores
from hpc_stres.models.weights import load_into, read_state
from hpc_stres.progress import Progress
from hpc_stres.recipe import ordered_phases
from hpc_stres.runpaths import RunPaths, read_json, read_json_lines, sha256, write_json
from hpc_stres.training import distributed, start

TWO_STREAM = "two_stream"


def evaluate(config: Config, run_dir: Path, world: World, phases: list[str] | None = None) -> dict[str, Any] | None:
    """Score every finished phase and write scores/ and results.json; the results on the first rank, None elsewhere."""
    paths = RunPaths(run_dir)
    store = open_store(config, check=world.is_first)
    chosen = [p for p in phases or ordered_phases(config.phases) if paths.phase(p).done.is_file()]
    if not chosen:
        raise UserError(f"{run_dir}: no finished phase to evaluate\nTrain one first: hpc-stres train --phase ...")
    videos = _test_videos(config, store)
    torch.set_num_threads(protocol.EVALUATION_THREADS)
    device = distributed.choose_device(world)
    torch.set_num_threads(protocol.EVALUATION_THREADS)
    distributed.start(world, device)
    control = distributed.make_control_group()
    for name in chosen:
        _score_phase(config, name, paths, store, videos, world, device)
        torch.distributed.barrier(group=control)
        if world.is_first:
            _gather(config, name, paths, store, videos)
        torch.distributed.barrier(group=control)
    distributed.stop()
    return summarise(config, run_dir, store) if world.is_first else None


def _test_videos(config: Config, store: Store) -> list[str]:
    """Sorted ids of the test videos that are there; refuses when some are not, unless that is allowed."""
    wanted = store.ids(config.data.split, "test")
    present = sorted(name for name in wanted if name in store.number)
    missing = sorted(set(wanted) - set(present))
    if missing and not config.evaluation.allow_missing:
        reason = store.rejected.get(missing[0], "not in the store")
        raise UserError(
            f"{len(missing)} of {len(wanted)} test videos are missing: {', '.join(missing[:3])} ({reason})\n"
            "Mend the data, or add --allow-missing: every number then says k of n."
        )
    return present


def _part_file(paths: RunPaths, split: int, phase: str, rank: int) -> Path:
    return paths.root / "scores" / "parts" / f"split{split}_{phase}_rank{rank:05d}.jsonl"


def _part_files(paths: RunPaths, split: int, phase: str) -> list[Path]:
    return sorted((paths.root / "scores" / "parts").glob(f"split{split}_{phase}_rank*.jsonl"))


def _key(config: Config, name: str, paths: RunPaths) -> str:
    """What scores depend on: the weights and the protocol. Parts with another key are of another evaluation."""
    made_of = [sha256(start.finished_weights(paths, name)), plain(config.evaluation), config.training.precision]
    return hashlib.sha256(json.dumps(made_of, sort_keys=True).encode()).hexdigest()[:16]


def _score_phase(
    config: Config, name: str, paths: RunPaths, store: Store, videos: list[str], world: World, device: torch.device
) -> None:
    """This rank's share of a phase's videos, a line a video; what a killed run has scored is not scored again."""
    key, split = _key(config, name, paths), config.data.split
    rows = [row for path in _part_files(paths, split, name) for row in read_json_lines(path)]
    done = {row["id"] for row in rows if row["key"] == key}
    # Whether a video is done must look the same to every rank before any of them writes.
    torch.distributed.barrier()
    todo = [video for video in videos if video not in done][world.rank :: world.size]
    phase = config.phase(name)
    model = start.build_phase_model(config, name, len(store.classes)).to(device).eval()
    load_into(model, read_state(paths.phase(name).weights), str(paths.phase(name).weights))
    reader = ClipReader(
        store, None, config.model.variant, streams=(phase.uses_rgb, phase.uses_flow), device_id=device.index, most=512
    )
    part = _part_file(paths, split, name, world.rank)
    part.parent.mkdir(parents=True, exist_ok=True)
    _mend_torn_line(part)
    with (
        part.open("a", encoding="utf-8") as stream,
        Progress(f"test {name}", len(todo), "videos", world.is_first) as bar,
    ):
        for number, video in enumerate(todo, 1):
            index = store.number[video]
            clips = protocol.test_requests(store.rows[index], index, config.evaluation)
            found = protocol.score_video(model, reader, clips, start.DTYPES[config.training.precision])
            row = {"id": video, "key": key, **{s: v.tolist() for s, v in found._asdict().items() if v is not None}}
            stream.write(json.dumps(row) + "\n")
            stream.flush()
            bar.update(number)


def _mend_torn_line(part: Path) -> None:
    """Drop a last line that a kill cut off, so that the next one starts on a line of its own."""
    if part.is_file():
        text = part.read_text(encoding="utf-8")
        if not text.endswith("\n"):
            part.write_text(text[: text.rfind("\n") + 1], encoding="utf-8")


def _gather(config: Config, name: str, paths: RunPaths, store: Store, videos: list[str]) -> None:
    """All ranks' lines into one score file; each video must be there exactly once."""
    key, split = _key(config, name, paths), config.data.split
    found: dict[str, dict[str, Any]] = {}
    for path in _part_files(paths, split, name):
        for row in read_json_lines(path):
            if row["key"] != key:
                continue
            if row["id"] in found:
                raise UserError(f"{path}: video {row['id']} was scored twice\nRemove scores/parts and evaluate again.")
            found[row["id"]] = {s: np.array(row[s], np.float64) for s in scores.STREAMS if s in row}
    missing = [video for video in videos if video not in found]
    if missing:
        raise UserError(f"{paths.root}: {len(missing)} videos were not scored: {', '.join(missing[:3])}")
    labels = {row.id: row.label for row in store.rows}
    scores.from_videos({video: found[video] for video in videos}, labels, store.classes).save(paths.scores(split, name))


def columns(config: Config, run_dir: Path) -> dict[str, Scores]:
    """The table's columns from the score files that are there, the two-stream fusion in its place."""
    paths, split = RunPaths(run_dir), config.data.split
    found: dict[str, Scores] = {}
    singles: dict[str, Scores] = {}
    for name in sorted(ordered_phases(config.phases), key=lambda n: _column_rank(config, n)):
        if not paths.scores(split, name).is_file():
            continue
        loaded = Scores.load(paths.scores(split, name))
        model = config.phases[name].model
        if model in scores.STREAMS:
            singles[model] = loaded
        found[name] = loaded
        if len(singles) == 2 and TWO_STREAM not in found:
            found[TWO_STREAM] = scores.mean_of(singles["appearance"], singles["motion"])
    return found


def _column_rank(config: Config, name: str) -> int:
    order = ["appearance", "motion", "st_resnet", "st_resnet_star", "stm_resnet"]
    return order.index(config.phases[name].model)


def summarise(config: Config, run_dir: Path, store: Store) -> dict[str, Any]:
    """results.json of the run folder from its score files."""
    wanted = len(store.ids(config.data.split, "test"))
    words = protocol.describe(config.evaluation)
    table = {name: scores.summary(column, wanted, words) for name, column in columns(config, run_dir).items()}
    results = {
        "data": config.data.kind,
        "recipe": config.recipe,
        "protocol": words,
        "flow": store.manifest["settings"]["flow_backend"],
        "store": sha256(store.paths.manifest),
        "splits": {str(config.data.split): table},
    }
    write_json(RunPaths(run_dir).results, results)
    return results


def combine_splits(run_dir: Path, folders: list[Path]) -> dict[str, Any]:
    """results.json above the splits' own: their tables, and the mean of each column that all of them have."""
    found = [read_json(RunPaths(folder).results) for folder in folders]
    for folder, results in zip(folders, found, strict=True):
        differing = [key for key in ("data", "recipe", "protocol", "flow") if results.get(key) != found[0].get(key)]
        if differing:
            raise UserError(f"{folder}: its {differing[0]} is not that of {folders[0]}; there is no mean of both")
    splits: dict[str, Any] = {}
    for folder, results in zip(folders, found, strict=True):
        for number, table in results["splits"].items():
            if number in splits:
                raise UserError(f"{folder}: split {number} again; each folder must be of another split")
            splits[number] = table
    shared = [name for name in next(iter(splits.values())) if all(name in table for table in splits.values())]
    mean = {name: sum(table[name]["top1"] for table in splits.values()) / len(splits) for name in shared}
    combined = {**found[0], "splits": splits, "mean": mean}
    write_json(RunPaths(run_dir).results, combined)
    return combined
