"""Every figure of results.json and of `hpc-stres table --format csv`, worked out again from scores/*.npz.

  python -m tests.campaigns.recompute runs/ucf101 runs/binding      runs of one's own
  python -m tests.campaigns.recompute --made-up 40 --seed 1         made-up ones with odd labels, recordings and ties

Nothing of hpc_stres computes here: NumPy's loops, SciPy and scikit-learn do, from the arrays as they lie on the disk.
Exit status 1, and a line for each figure that differs by more than 1e-9 of its size, if anything does. Intervals over
recordings are worked out from their description in hpc_stres/evaluation/statistics.py, one recording at a time.
"""

import argparse
import csv
import io
import itertools
import json
import math
import sys
import tempfile
from dataclasses import replace
from pathlib import Path

import numpy as np

from tests.campaigns.by_hand import (
    calibration,
    holm,
    mean_loss,
    names_of,
    paired,
    read,
    several_labels,
    single_label,
    temperature_of,
    top,
)

# ---- a run


def columns_of(run_dir, split, wanted):
    """The columns of results.json as arrays; the late fusion is the mean of both single streams."""
    files = {
        path.stem.partition("_")[2]: path
        for path in (run_dir / "scores").glob(f"split{split}_*.npz")
    }
    columns = {name: read(path) for name, path in files.items() if name in wanted}
    if "two_stream" in wanted:
        parts = [columns[name] for name in ("appearance", "motion")]
        columns["two_stream"] = {
            **parts[0],
            "logits": (parts[0]["logits"] + parts[1]["logits"]) / 2,
        }
    found = (run_dir / "scores" / "validation").glob(f"split{split}_*.npz")
    held = {path.stem.partition("_")[2]: read(path) for path in found}
    if {"appearance", "motion"} <= set(held):
        both = (held["appearance"]["logits"] + held["motion"]["logits"]) / 2
        held["two_stream"] = {**held["appearance"], "logits": both}
    return columns, held


def expected_of(column, held):
    logits, labels, classes = column["logits"], column["labels"], column["classes"].tolist()
    groups = names_of(column["groups"])
    if labels.ndim == 2:
        return several_labels(logits, labels, classes, groups)
    found = single_label(logits, labels, classes, groups) | {
        "calibration": calibration(logits, labels)
    }
    if held is not None:
        found["validation"] = {
            "top1": 100 * top(held["logits"], held["labels"], 1).mean(),
            "videos": len(held["labels"]),
        }
    return found


def differences(expected, found, where):
    """A line for each figure that is not as expected; figures that only one of both has are left to the caller."""
    if isinstance(expected, dict):
        for key, value in expected.items():
            if not isinstance(found, dict) or key not in found:
                yield f"{where}.{key}: missing"
            elif key == "bins":
                there = [
                    [n, row["videos"], row["accuracy"]]
                    for n, row in enumerate(found[key])
                    if row["videos"]
                ]
                yield from differences(value, there, f"{where}.bins")
            else:
                yield from differences(value, found[key], f"{where}.{key}")
    elif isinstance(expected, list):
        if len(expected) != len(found):
            yield f"{where}: {len(expected)} entries expected, {len(found)} there"
        for number, pair in enumerate(zip(expected, found, strict=False)):
            yield from differences(*pair, f"{where}[{number}]")
    elif isinstance(expected, str) or expected is None:
        if expected != found:
            yield f"{where}: {expected!r} expected, {found!r} there"
    elif found is None or not math.isclose(expected, found, rel_tol=1e-9, abs_tol=1e-9):
        yield f"{where}: {expected!r} expected, {found!r} there"


def check_temperature(column, held, found, where):
    """The loss at our temperature is the least that SciPy finds; top-1 is that of the logits as scored."""
    ours = found["calibration"]["temperature"]
    if held is None or ours is None:
        return
    best, least = temperature_of(held["logits"], held["labels"])
    loss = mean_loss(held["logits"] / ours, held["labels"])
    if loss > least + 1e-9:
        yield f"{where}: loss {loss} at temperature {ours}, {least} at {best}"
    yield from differences(
        calibration(column["logits"], column["labels"], ours),
        found["calibration"]["scaled"],
        f"{where}.scaled",
    )


def check_table(results, text):
    """Figures of the CSV are those of results.json."""
    rows = {
        (row["split"], row["column"], row["class"], row["measure"]): row
        for row in csv.DictReader(io.StringIO(text))
    }
    for split, table in results["splits"].items():
        for name, column in table.items():
            pairs = [
                ("", key, column[key])
                for key in ("top1", "top5", "mean_class", "map")
                if key in column
            ]
            pairs += [(row["class"], key, row[key]) for row in column["per_class"]
                      for key in ("recall", "precision", "f1", "ap") if row.get(key) is not None]  # fmt: skip
            for label, key, value in pairs:
                row = rows.get((split, name, label, key))
                if row is None or float(row["value"]) != value:
                    yield f"csv, split {split}, {name}, {label}, {key}: {value} expected, {row} there"


def check_run(run_dir):
    """Lines that say what of a run is not as its scores say, and how many figures were compared."""
    results = json.loads((run_dir / "results.json").read_text())
    wrong, counted = [], 0
    for split, table in results["splits"].items():
        home = run_dir / f"split{split}" if (run_dir / f"split{split}").is_dir() else run_dir
        columns, held = columns_of(home, split, set(table))
        for name, found in table.items():
            where = f"split {split}, {name}"
            expected = expected_of(columns[name], held.get(name))
            wrong += differences(expected, found, where)
            counted += sum(1 for _ in leaves(expected))
            if "calibration" in found:
                wrong += check_temperature(columns[name], held.get(name), found, where)
        tests = results["comparisons"][split]
        pairs = [(one, two) for one, two in itertools.combinations(table, 2)]
        if [(test["first"], test["second"]) for test in tests] != pairs:
            wrong.append(f"split {split}: comparisons are not all pairs of columns")
        for test, corrected in zip(tests, holm([test["p"] for test in tests]), strict=True):
            expected = paired(columns[test["first"]], columns[test["second"]]) | {
                "p_holm": corrected
            }
            wrong += differences(
                expected, test, f"split {split}, {test['first']} -> {test['second']}"
            )
            counted += sum(1 for _ in leaves(expected))
    wrong += check_table(results, table_of(run_dir))
    return wrong, counted


def leaves(value):
    if isinstance(value, dict | list):
        for item in value.values() if isinstance(value, dict) else value:
            yield from leaves(item)
    else:
        yield value


def table_of(run_dir):
    """What the command prints."""
    import contextlib

    from hpc_stres.__main__ import main

    out = io.StringIO()
    with contextlib.redirect_stdout(out):
        code = main(["table", "--run-dir", str(run_dir), "--format", "csv"])
    assert code == 0, out.getvalue()
    return out.getvalue()


# ---- made-up runs

CASES = (
    "official names",
    "column",
    "one-clip recordings",
    "one recording",
    "shared recordings",
    "several labels",
)


def make(folder, seed):
    """A run folder of one of the cases, with ties, a class that is not tested, and two equal columns."""
    from hpc_stres.evaluation.groups import Groups
    from tests.unit import answered

    random = np.random.default_rng(seed)
    case = CASES[seed % len(CASES)]
    classes = [f"class {n}" for n in range(int(random.integers(2, 9)))]
    tested = classes[1:] if len(classes) > 2 and random.random() < 0.5 else classes
    ids, labels, groups = [], [], []
    for label, name in enumerate(classes):
        for recording in range(int(random.integers(1, 6))) if name in tested else ():
            for clip in range(int(random.integers(1, 5))):
                own = f"{name}{recording}" if case != "shared recordings" else f"r{recording}"
                ids.append(
                    f"v_{name}_g{recording:02d}_c{clip:02d}"
                    if case == "official names"
                    else f"{own}_{label}_{clip}"
                )
                labels.append(label)
                groups.append({"one-clip recordings": "", "one recording": "all"}.get(case, own))
    phases = ("motion", "appearance", "st_resnet")
    words = (
        ["data.labels=multi"] if case == "several labels" else ["evaluation.validation_share=0.2"]
    )
    if case != "official names":
        folder.mkdir(parents=True, exist_ok=True)
        write_list(folder / "videos.csv", ids, [classes[n] for n in labels], groups)
        words += ["data.kind=csv", f"data.videos={folder}", f"data.lists={folder}/videos.csv"]
    config, paths = answered.make_run(folder, 1, overrides=words, phases=phases)
    truth = np.array(labels)
    if case == "several labels":
        truth = (random.random((len(ids), len(classes))) < 0.3).astype(np.int64)
        truth[np.arange(len(ids)), labels] = 1
        truth[:, 0] = 0 if tested != classes else truth[:, 0]
    named = Groups(groups, "column") if any(groups) and case != "official names" else None
    save_scores(paths, phases, ids, truth, classes, named, random)
    answered.write_results(config, paths)
    return case


def save_scores(paths, phases, ids, truth, classes, groups, random):
    """Whole numbers as logits give ties; the last column is the first once more."""
    from hpc_stres.evaluation.groups import Groups
    from hpc_stres.evaluation.scores import Scores

    order = np.argsort(ids)
    if groups is not None:
        groups = Groups([groups.names[n] for n in order], groups.source)
    sorted_ids, truth = [ids[n] for n in order], truth[order]
    first = None
    for number, name in enumerate(phases):
        logits = random.integers(-3, 4, (len(ids), len(classes))) / 2 + random.normal(
            0, number, (len(ids), len(classes))
        )
        hot = truth if truth.ndim == 2 else np.eye(len(classes))[truth]
        logits = logits + random.integers(0, 4) * hot
        first = logits if first is None else first
        logits = first if number == len(phases) - 1 else logits
        made_by = {"phase": name, "split": 1, "weights": "w", "protocol": "quick"}
        streams = {"appearance": logits[:, None, :]}
        whole = Scores(sorted_ids, truth, list(classes), logits, streams, made_by, groups)
        whole.save(paths.scores(1, name))
        if truth.ndim == 1:
            # Answers of training videos, more often right or wrong than those of test videos.
            held = logits + random.normal(0, 2) * hot
            replace(whole, logits=held).save(
                paths.root / "scores" / "validation" / f"split1_{name}.npz"
            )


def write_list(path, ids, names, groups):
    with path.open("w", newline="", encoding="utf-8") as stream:
        rows = [
            [f"{name}.avi", label, "test", group]
            for name, label, group in zip(ids, names, groups, strict=True)
        ]
        rows += [[f"train {label}.avi", label, "train", ""] for label in sorted(set(names))]
        csv.writer(stream).writerows([["path", "label", "split", "group"], *rows])


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("runs", nargs="*", type=Path)
    parser.add_argument("--made-up", type=int, default=0, metavar="N")
    parser.add_argument("--seed", type=int, default=1)
    args = parser.parse_args()
    wrong = figures = 0
    with tempfile.TemporaryDirectory() as home:
        todo = [(str(path), path, None) for path in args.runs]
        todo += [
            (f"made up {seed}", Path(home) / str(seed), seed)
            for seed in range(args.seed, args.seed + args.made_up)
        ]
        for title, folder, seed in todo:
            case = "" if seed is None else f" ({make(folder, seed)})"
            lines, counted = check_run(folder)
            figures += counted
            wrong += len(lines)
            for line in lines[:10]:
                print(f"{title}{case}: {line}")
    print(f"{len(todo)} runs, {figures} figures, {wrong} differ")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
