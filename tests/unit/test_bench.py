"""The bench's own arithmetic, its parts, and that what it measures is what a run takes."""

import ast
import importlib
import itertools
import json
import time

import numpy as np
import pytest

from hpc_stres.store.reader import Store
from hpc_stres.tools.bench import figures, growth
from hpc_stres.tools.bench.figures import (
    Figure,
    Timing,
    interleaved,
    judged,
    quotients,
    ratio,
    text_row,
)
from hpc_stres.tools.bench.parts import PARTS
from tests.conftest import ROOT, run_python

BENCH = ROOT / "hpc_stres" / "tools" / "bench"


def test_contestants_take_turns_each_after_a_call_that_does_not_count():
    calls = []
    timings = interleaved(3, lambda: calls.append("a"), lambda: calls.append("b"))
    assert "".join(calls) == "aabb" * 3
    assert [len(timing.seconds) for timing in timings] == [3, 3]


def test_the_median_counts_and_the_spread_is_that_of_the_quartiles():
    timing = Timing((1.0, 2.0, 3.0, 4.0, 100.0))
    assert timing.median_s == 3.0
    assert timing.spread == pytest.approx((4.0 - 2.0) / 2 / 3.0)
    assert Timing((2.0,)).spread == 0
    # A busy round slows both: their own ratio stays.
    assert quotients(Timing((2.0, 20.0)), Timing((1.0, 10.0))) == (2.0, 2.0)


def test_verdicts():
    assert ratio("p", "w", (2.9, 3.1, 3.2), 3.0).verdict == "met"
    assert ratio("p", "w", 2.99, 3.0).verdict == "MISSED"
    assert ratio("p", "w", 0.8, 0.75, at_most=True).verdict == "MISSED"
    assert ratio("p", "w", 2.0).verdict == ""
    assert judged(Figure("p", "w", 51.0, "MiB"), 50.0).verdict == "MISSED"
    assert text_row(Figure("p", "w", 1.0, "s", spread=0.25))[3] == "25 %"


def test_time_on_a_core_does_not_count_what_others_do():
    (asleep,) = interleaved(1, lambda: time.sleep(0.05), clock=time.thread_time)
    assert asleep.median_s < 0.04


@pytest.mark.parametrize("part", PARTS)
def test_each_part_is_a_file_with_its_function(part):
    module = importlib.import_module(f"hpc_stres.tools.bench.{PARTS[part].file}")
    assert callable(getattr(module, f"bench_{part}"))


def imports_of(path):
    """Modules of the bench that a file imports anywhere in it, functions included."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith(
            "hpc_stres.tools.bench"
        ):
            tail = node.module.removeprefix("hpc_stres.tools.bench").strip(".")
            found |= {tail} if tail else {alias.name for alias in node.names}
    return found


def test_no_file_of_the_bench_imports_one_that_imports_it():
    graph = {path.stem: imports_of(path) for path in BENCH.glob("*.py")}
    assert graph["resnet50"] >= {"figures", "scene"}

    def reaches(start, goal, seen=()):
        return any(
            one == goal or (one not in seen and reaches(one, goal, (*seen, one)))
            for one in graph.get(start, ())
        )

    assert [name for name in graph if reaches(name, name)] == []


def test_a_synthetic_index_is_a_store_and_its_requests_are_the_samplers(tmp_path):
    from hpc_stres.data.requests import requests, requests_at

    growth.write_synthetic_index(tmp_path, 300)
    store = Store(tmp_path)
    assert len(store.rows) == 300
    assert store.number[store.rows[299].id] == 299
    source = growth._sampler(store)
    assert requests_at(source, 2, [5, 9]) == [requests(source, 2)[n] for n in (5, 9)]
    found = growth._requests(tmp_path, 300, 1)
    times = {figure.what: figure.value for figure in found}
    assert times["300 videos, 1 ranks: requests of a step on one rank"] > times[
        "300 videos, 32 ranks: requests of a step on one rank"
    ]  # fmt: skip


def test_packing_in_the_bench_takes_little_more_than_the_store(tmp_path):
    speed, share = growth._packing(tmp_path)
    assert speed.value > 0
    assert 1.0 < share.value < growth.DISK_SHARE


def test_what_a_rank_holds_of_a_store_does_not_grow_with_its_videos(tmp_path):
    """In bytes of arrays, which no other test's memory disturbs: 30 a video, and no object."""
    growth.write_synthetic_index(tmp_path, 20_000, frames=4)
    store = Store(tmp_path)
    arrays = [value for value in vars(store).values() if isinstance(value, np.ndarray)]
    assert sum(array.nbytes for array in arrays) < 30 * 20_000
    held = [
        value
        for value in vars(store).values()
        if isinstance(value, (list, dict)) and len(value) > 1000
    ]
    assert held == []


def test_the_command_lists_its_parts_and_writes_figures(tmp_path):
    listed = run_python("-m", "hpc_stres", "bench", "list")
    assert listed.returncode == 0
    assert all(part in listed.stdout for part in PARTS)
    bad = run_python("-m", "hpc_stres", "bench", "flow", "--repeats", "0")
    assert bad.returncode == 2
    assert len(bad.stderr.strip().splitlines()) <= 3


def test_figures_are_written_after_each_part(tmp_path, monkeypatch, capsys):
    from hpc_stres.__main__ import main
    from hpc_stres.tools.bench import parts

    def measured(part, threads, repeats):
        if part == "feed":
            raise KeyboardInterrupt
        return [Figure(part, "w", 1.0, "s")]

    monkeypatch.setattr(parts, "measure", measured)
    assert main(["bench", "all", "--json", str(tmp_path / "b.json")]) == 130
    content = json.loads((tmp_path / "b.json").read_text())
    before = list(itertools.takewhile(lambda name: name != "feed", parts.PARTS))
    assert [one["part"] for one in content["figures"]] == before != []
    assert set(content["machine"]) >= {"cpu", "cores", "threads", "torch", "load"}
    assert figures.read_figure(tmp_path / "b.json", "step", "w") == 1.0


@pytest.mark.parametrize("order", ["as listed", "shuffled", "sparse", "none"])
def test_what_weights_depend_on_is_the_checksum_of_the_whole_list(tmp_path, monkeypatch, order):
    from hpc_stres.run.paths import checksum
    from hpc_stres.store import listing

    growth.write_synthetic_index(tmp_path, 500, frames=4)
    store = Store(tmp_path)
    rows = np.arange(500, dtype=np.int32)
    mixed = np.random.default_rng(1).permutation(rows)
    chosen = {"as listed": rows, "shuffled": mixed, "sparse": rows[::37], "none": rows[:0]}[order]
    store.split_rows = np.ascontiguousarray(chosen)
    store.manifest["train"]["1"] = [0, len(chosen)]
    ids, _, sources = store.read_listing()
    whole = [[ids[row], int(store.labels[row]), sources[row].sha256, True] for row in chosen]
    for at_once in (7, 10_000):
        monkeypatch.setattr(listing, "DIGEST_ROWS", at_once)
        assert listing.facts_of(store, 1)["digest"] == checksum(whole)


def test_the_roofline_of_a_gpus_flow_by_hand():
    from hpc_stres.tools.bench import flow
    from hpc_stres.training.profile import Limits

    roof = flow.roofline(1e9, Limits(bytes_per_s=1e12, flop_per_s=1e13), cache_bytes_per_s=4e12)
    # Twelve planes pass for the primal update and ten for the dual one, four bytes a number.
    assert roof.memory_one_by_one == pytest.approx(1e9 * 88 / 1e12)
    # 54 x 22 of 64 x 32 pixels are kept; ten planes are read with the border, six written, for five iterations.
    kept = 54 * 22 / 2048
    assert roof.cache == pytest.approx(1e9 * 4 * (10 / kept + 6) / 5 / 4e12)
    assert roof.arithmetic == pytest.approx(1e9 * 58 / kept / 1e13)
    assert roof.tiles_s == roof.arithmetic
    shown = flow.gpu_figures("paper", figures.Timing((0.02,)), roof)
    by_name = {one.what: one.value for one in shown}
    assert by_name["paper on the GPU: ours"] == pytest.approx(flow.GPU_PAIRS / 0.02)
    assert by_name["paper on the GPU: of the roofline of tiles"] == pytest.approx(
        roof.tiles_s / 0.02
    )


def test_the_roofline_counts_the_tiles_that_the_kernels_have():
    import re

    from hpc_stres import native
    from hpc_stres.tools.bench import flow

    text = "".join((native.SOURCES / name).read_text() for name in ("tvl1_tile.h", "tvl1_device.h"))
    sides = re.search(r"kTileCols = (\d+), kTileRows = (\d+)", text)
    assert (int(sides[2]), int(sides[1])) == flow.TILE
    assert int(re.search(r"kDepth = (\d+)", text)[1]) == flow.DEPTH


@pytest.mark.parametrize(("share", "verdict"), [(0.64, "MISSED"), (0.66, "met"), (1.36, "MISSED")])
def test_a_prediction_is_judged_on_both_sides(share, verdict):
    from hpc_stres.tools.bench.plan import within

    assert within("w", share, 0.35).verdict == verdict


def test_packing_by_several_processes_makes_the_same_shards_and_forgets_none(tmp_path):
    growth._packing(tmp_path / "one")
    speed, again = growth._packing_at_once(tmp_path / "several")
    assert speed.value > 0
    assert again.verdict == "met"
    stores = [sorted((tmp_path / name / "shards").iterdir()) for name in ("one", "several")]
    assert len(stores[0]) == 8
    assert [path.read_bytes() for path in stores[0]] == [path.read_bytes() for path in stores[1]]
