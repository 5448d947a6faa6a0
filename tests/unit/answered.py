"""Run folders that were never trained: a config and score files with answers of a test's own."""

import numpy as np

from hpc_stres.config.loading import dump, load_config
from hpc_stres.evaluation.scores import Scores
from hpc_stres.run.paths import RunPaths, write_sealed, write_text
from hpc_stres.run.product import metrics_line
from tests.conftest import TINY

CLASSES = ["Archery", "Basket & Ball", "C_100%", "Diving"]


def clip_ids(recordings=6, clips=3):
    """Ids in UCF101's form, and labels: recordings of clips in each of the classes."""
    ids, labels = [], []
    for label, name in enumerate(CLASSES):
        for group in range(1, recordings + 1):
            for clip in range(1, clips + 1):
                ids.append(f"v_{name}_g{group:02d}_c{clip:02d}")
                labels.append(label)
    return ids, np.array(labels)


def make_scores(seed, strength=1.0, ids=None, labels=None, **made_by):
    """Random logits, the true class's higher by `strength`."""
    if ids is None:
        ids, labels = clip_ids()
    logits = np.random.default_rng(seed).standard_normal((len(ids), len(CLASSES)))
    logits[np.arange(len(ids)), labels] += strength
    order = np.argsort(ids)
    streams = {"appearance": logits[order][:, None, :]}
    return Scores(
        [ids[n] for n in order], labels[order], list(CLASSES), logits[order], streams, made_by
    )


def make_run(
    root, seed, strength=1.0, overrides=(), phases=("appearance",), split=1, held_out=False
):
    """A run folder with score files of its phases, results.json without a store, and training curves."""
    config = load_config(TINY, [f"seed={seed}", f"data.split={split}", *overrides])
    paths = RunPaths(root)
    write_text(paths.config, dump(config))
    for number, name in enumerate(phases):
        made_by = {"phase": name, "split": split, "weights": "w", "protocol": "quick"}
        make_scores(1000 * seed + number, strength + number, **made_by).save(
            paths.scores(split, name)
        )
        rows = [{"step": step, "loss": 2.0 / step + 0.01 * seed, "loss_appearance": 2.0 / step + 0.01 * seed,
                 "accuracy_appearance": 0.1 * step} for step in (1, 2, 3)]  # fmt: skip
        write_text(paths.phase(name).metrics, "".join(map(metrics_line, rows)))
    return config, paths


def write_results(config, paths):
    """results.json as `summarise` makes it, without the store."""
    from hpc_stres.evaluation import results, scores

    found = results.columns(config, paths.root)
    held = results.columns(config, paths.root, held_out=True) if config.evaluation.holds_out else {}
    table = {
        name: scores.summary(column, len(column.ids), "quick", held.get(name))
        for name, column in found.items()
    }
    split = str(config.data.split)
    whole = {"data": "binding", "official": None, "recipe": config.recipe, "protocol": "quick", "flow": "native paper",
             "store": "s", "labels": "single", "splits": {split: table},
             "comparisons": {split: results.comparisons(found)}}  # fmt: skip
    write_sealed(paths.results, whole)
    return whole
