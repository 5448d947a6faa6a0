"""A finished run folder without a training and without a store: scores, results and metrics of any size."""

import numpy as np

from hpc_stres.config.loading import dump, load_config, load_run
from hpc_stres.evaluation import scores as score_files
from hpc_stres.evaluation.protocol import describe
from hpc_stres.evaluation.results import columns
from hpc_stres.run.paths import RunPaths, write_sealed, write_text
from hpc_stres.run.product import metrics_line
from tests.conftest import TINY

SKILL = {"appearance": 1.2, "motion": 1.6, "st_resnet": 2.4, "st_resnet_star": 2.8}


def make_finished_run(
    run_dir, classes=8, videos=12, seed=1, split=1, phases=tuple(SKILL), timed=True, skill=1.0,
    looks=False,
):  # fmt: skip
    """Scores of so many videos a class from made-up logits; alike classes are `n` and `n ^ 1`."""
    config = load_config(TINY, [f"seed={seed}", f"data.split={split}", "data.root=/nowhere"])
    paths, draw = RunPaths(run_dir), np.random.default_rng([seed, split, classes])
    write_text(paths.config, dump(config))
    names = [
        f"Class{number:03d}" if number % 7 else f"AVeryLongNameOfAClass{number:03d}"
        for number in range(classes)
    ]
    ids = [f"v_{name}_g{n // 2 + 1:02d}_c{n % 2 + 1:02d}" for name in names for n in range(videos)]
    labels = np.repeat(np.arange(classes), videos)
    order = np.argsort(ids)
    ids, labels = [ids[n] for n in order], labels[order]
    for name in phases:
        paths.phase(name).root.mkdir(parents=True, exist_ok=True)
        made = made_up_scores(ids, labels, names, name, skill * SKILL[name], draw)
        made_by = {
            "phase": name,
            "split": split,
            "weights": "0" * 64,
            "protocol": describe(config.evaluation),
        }
        score_files.Scores(
            made.ids, made.labels, made.classes, made.logits, made.streams, made_by
        ).save(paths.scores(split, name))
        write_metrics(config, paths, name, draw, timed, looks)
    write_results(config, run_dir)
    return load_run(run_dir)


def made_up_scores(ids, labels, names, phase, skill, draw):
    streams = {}
    for stream in ("appearance", "motion") if phase.startswith("st_") else (phase,):
        logits = draw.normal(size=(len(ids), 3, len(names)))
        logits += draw.normal(size=(len(ids), 1, len(names)))
        logits[np.arange(len(ids)), :, labels] += 1.4 * skill
        logits[np.arange(len(ids)), :, np.minimum(labels ^ 1, len(names) - 1)] += 0.8 * skill
        streams[stream] = logits
    videos = {name: {s: value[n] for s, value in streams.items()} for n, name in enumerate(ids)}
    return score_files.from_videos(videos, dict(zip(ids, labels.tolist(), strict=True)), names)


def write_metrics(config, paths, name, draw, timed, looks):
    steps, rows, now = config.steps(name), [], 1.7e9 + 100 * list(SKILL).index(name)
    for step in range(1, steps + 1):
        # Between the fifth and the sixth step of each phase a job waited for half a minute.
        now += 2.0 + (30.0 if step == 6 else 0.0)
        row = {"step": step, "rate": 1e-3 if step <= 10 else 1e-4, "videos_per_s": 5.0, "data_wait": 0.25,
               "memory_gib": 1.5, "world_size": 2, "seconds": 2.0}  # fmt: skip
        row |= {"time": now} if timed else {}
        for stream in ("appearance", "motion") if name.startswith("st_") else (name,):
            row |= {
                f"loss_{stream}": 2.0 / step + 0.02 * float(draw.random()),
                f"accuracy_{stream}": 1 - 0.9 / step,
            }
        rows.append(row)
        if looks and step % 2 == 0:
            now += 1.0
            rows.append(look_at(step, name) | ({"time": now} if timed else {}))
    write_text(paths.phase(name).metrics, "".join(metrics_line(row) for row in rows))


def look_at(step, name):
    """A row on held-out videos: better with time, worse than on videos that were trained on."""
    streams = ("appearance", "motion") if name.startswith("st_") else (name,)
    row = {"step": step, "validation_videos": 12, "validation_seconds": 1.0}
    row |= {f"validation_loss_{stream}": 0.4 + 2.2 / step for stream in streams}
    row |= {f"validation_accuracy_{stream}": 0.8 - 0.9 / step for stream in streams}
    return row | ({"validation_accuracy_both": 0.9 - 0.9 / step} if len(streams) > 1 else {})


def write_results(config, run_dir):
    """results.json as the table has it, but for the store."""
    found = columns(config, run_dir)
    words = describe(config.evaluation)
    table = {
        name: score_files.summary(column, len(column.ids), words) for name, column in found.items()
    }
    results = {"data": "binding", "official": None, "recipe": config.recipe, "protocol": words, "flow": "native paper",
               "store": "f" * 64, "splits": {str(config.data.split): table}}  # fmt: skip
    write_sealed(RunPaths(run_dir).results, results)
