"""The plan's arithmetic against numbers worked out by hand, and the wall times that submit.py takes from it."""

import contextlib
import json
import os
import random

import pytest

from hpc_stres.config.loading import load_config
from hpc_stres.errors import ConfigError, UserError
from hpc_stres.launch.jobs import make_jobs, wall_time
from hpc_stres.run.paths import RunPaths, write_sealed
from hpc_stres.tools import gpus, planner
from hpc_stres.tools.planner import Speed, Speeds
from tests.conftest import ROOT, TINY, run_python, tiny_config

SPEED = Speed(
    seconds_per_video=0.5,
    overhead_s=0.1,
    update_s=0.2,
    gradient_bytes=4_000_000,
    flop_per_video=1e9,
)


@pytest.fixture
def config():
    return load_config(
        ROOT / "configs" / "ucf101.yaml", ["cluster.gpus_per_node=4", "cluster.nodes=2"], "slurm"
    )


@pytest.fixture
def speeds(config):
    return Speeds(
        phases=dict.fromkeys(config.phases, SPEED), pictures_per_s=1000.0, rgb_bytes=20_000, flow_bytes=5_000,
        network_bytes_per_s=1e9, test_videos=3783, on_cpu=False, source="", network_source="",
    )  # fmt: skip


def test_a_phase_by_hand(config, speeds):
    # 128 = 32 groups of 4; over 8 ranks 4 groups a rank, all at once: 16 videos in 1 micro-step.
    found = planner.predict(config, "st_resnet", 2, speeds)
    assert found.ranks == 8
    assert found.arithmetic_s == pytest.approx(0.1 + 16 * 0.5 + 0.2)
    assert found.feed_s == pytest.approx(16 * (5 + 100) / 1000)
    assert found.all_reduce_s == pytest.approx(2 * 7 / 8 * 4e6 / 1e9)
    assert found.step_s == pytest.approx(8.3 + 0.007)
    assert found.hours == pytest.approx(80_000 * 8.307 / 3600)
    assert found.node_hours == pytest.approx(2 * found.hours)
    assert found.limit == "arithmetic"
    assert found.read_bytes_per_s == pytest.approx(128 * (5 * 20_000 + 100 * 5_000) / 8.307)


def test_cpu_ranks_share_their_cores_with_the_feed(config, speeds):
    from dataclasses import replace

    found = planner.predict(config, "st_resnet", 2, replace(speeds, on_cpu=True))
    assert found.step_s == pytest.approx(8.3 + 16 * 105 / 1000 + 0.007)


def test_each_of_the_three_can_be_the_limit(config, speeds):
    from dataclasses import replace

    assert (
        planner.predict(config, "motion", 2, replace(speeds, pictures_per_s=10.0)).limit == "feed"
    )
    assert (
        planner.predict(config, "motion", 2, replace(speeds, network_bytes_per_s=1.0)).limit
        == "all-reduce"
    )
    assert (
        planner.predict(config, "motion", 1, replace(speeds, network_bytes_per_s=1.0)).all_reduce_s
        > 0
    )
    alone = load_config(TINY)
    tiny = replace(speeds, phases=dict.fromkeys(alone.phases, SPEED))
    assert planner.predict(alone, "motion", 1, tiny).all_reduce_s == 0


def test_motion_reads_no_rgb_and_appearance_no_flow(config):
    assert planner.pictures(config.phase("motion")) == (0, 20)
    assert planner.pictures(config.phase("appearance")) == (1, 0)
    assert planner.pictures(config.phase("st_resnet_star")) == (11, 220)


def test_the_chain_is_its_longest_path(config, speeds):
    plans = {p.name: p for p in planner.predict_all(config, list(config.phases), 2, speeds)}
    longest = max(plans["motion"].hours, plans["appearance"].hours)
    total = (
        longest + plans["st_resnet"].hours + plans["st_resnet_star"].hours + plans["evaluate"].hours
    )
    assert planner.chain_hours(config.phases, plans) == pytest.approx(total)


def test_other_numbers_of_nodes_are_compared_and_what_cannot_be_cut_is_said(config, speeds):
    table = planner.comparison(config, list(config.phases), speeds, (1, 2, 8, 64, 512))
    assert float(table[0][1]) > float(table[1][1]) > float(table[2][1])
    assert table[-1][1] == "-"
    assert "cannot be cut" in table[-1][3]


NEEDS = {
    "motion": planner.Needs(1e9, 4_000_000),
    "st_resnet": planner.Needs(12.8 * gpus.RESNET50_FLOP, 4_000_000),
}


def ends_of(config, speeds, kind, share=0.5):
    return planner.published_speeds(config, NEEDS, kind, share, "made up", speeds)


def test_the_speed_of_a_gpu_is_a_range_of_published_figures_with_their_source(config, speeds):
    slow, fast = ends_of(config, speeds, "A100")
    # A video of 12.8 images' operations, at half of the speed at which ResNet-50 runs them.
    assert slow.phases["st_resnet"].seconds_per_video == pytest.approx(12.8 / (2470 * 0.5))
    assert fast.phases["st_resnet"].seconds_per_video == pytest.approx(12.8 / (3395 * 0.5))
    assert "nothing measured here" in slow.source
    assert "MLPerf" in slow.source
    assert "made up" in slow.source
    assert slow.pictures_per_s == gpus.PICTURES_PER_S_OF_A_CORE * (
        config.cluster.cpus_per_rank or 1
    )
    assert not slow.on_cpu
    with pytest.raises(ConfigError, match="no such GPU is known; there are v100, a100"):
        gpus.published("tpu", "bfloat16")
    with pytest.raises(ConfigError, match=r"float64; there is float32 and bfloat16\nWithout --gpu"):
        gpus.published("h100", "float64")


@pytest.mark.parametrize("kind", gpus.PUBLISHED)
@pytest.mark.parametrize("share", [0.2, 0.6, 1.0])
def test_no_plan_is_faster_than_the_record_of_its_gpu(config, speeds, kind, share):
    record = gpus.published(kind, config.training.precision)
    assert record.slow <= record.fast
    assert record.source
    for end in ends_of(config, speeds, kind, share):
        images_per_s = 12.8 / end.phases["st_resnet"].seconds_per_video
        assert images_per_s <= record.fast * (1 + 1e-9)
        # Nor near the peak of the data sheet: in the worst case the records' own share of it.
        assert 3 * gpus.RESNET50_FLOP * images_per_s < 0.3e12 * PEAK_TFLOPS[kind]


# Dense tensor-core peaks of the data sheets, in TFLOP/s.
PEAK_TFLOPS = {"v100": 125, "a100": 312, "h100": 989, "h200": 989, "l40s": 362}


def test_the_share_of_a_faster_or_slower_step_moves_the_plan_with_it(config, speeds):
    for name in NEEDS:
        times = [
            ends_of(config, speeds, "h100", share)[0].phases[name].seconds_per_video
            for share in (0.3, 0.6)
        ]
        assert times[0] == pytest.approx(2 * times[1])


def test_an_all_reduce_has_a_latency_and_a_bandwidth(config, speeds):
    from dataclasses import replace

    wire = planner.Wire(latency_s=1e-3, bytes_per_s=1e9)
    assert wire.all_reduce_s(1, 10**9) == 0
    assert wire.all_reduce_s(2, 0) == pytest.approx(2e-3)
    assert wire.all_reduce_s(4, 8_000_000) == pytest.approx(6e-3 + 1.5 * 8e-3)
    far = replace(speeds, network_latency_s=1e-4, node=wire)
    # Between nodes the network's figures count, inside one node its own.
    assert planner.predict(config, "motion", 2, far).all_reduce_s == pytest.approx(
        14e-4 + 2 * 7 / 8 * 4e6 / 1e9
    )
    assert planner.predict(config, "motion", 1, far).all_reduce_s == pytest.approx(
        6e-3 + 1.5 * 4e-3
    )


def test_the_wire_is_recovered_from_two_sizes(monkeypatch):
    import torch

    from hpc_stres.tools import measure

    wire = planner.Wire(latency_s=3e-5, bytes_per_s=2e9)
    seconds = [wire.all_reduce_s(4, size) for size in (0, measure.LONG_BYTES)]
    monkeypatch.setattr(measure.dist, "get_world_size", lambda: 4)
    monkeypatch.setattr(measure.dist, "all_reduce", lambda *_: None)
    monkeypatch.setattr(measure, "turns", lambda *_: seconds)
    found = measure.measure_wire(torch.device("cpu"))
    assert found.latency_s == pytest.approx(wire.latency_s)
    assert found.bytes_per_s == pytest.approx(wire.bytes_per_s, rel=0.05)


def test_as_many_ranks_measure_as_the_machine_has_room_for(monkeypatch):
    from hpc_stres.tools.measure import ranks_here

    monkeypatch.setattr("os.sched_getaffinity", lambda _: range(3))
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    for words, expected in (
        (("ranks_per_node=2",), 2),
        (("ranks_per_node=64",), 3),
        (("gpus_per_node=8",), 1),
    ):
        assert (
            ranks_here(load_config(TINY, [f"cluster.{word}" for word in words]).cluster) == expected
        )
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    monkeypatch.setattr("torch.cuda.device_count", lambda: 4)
    assert ranks_here(load_config(TINY, ["cluster.gpus_per_node=8"]).cluster) == 4


def killed(_):
    os._exit(9)


def test_a_rank_that_is_killed_while_it_measures_is_a_sentence(monkeypatch):
    from hpc_stres.tools import measure

    monkeypatch.setattr(measure, "_measure_as_rank", killed)
    with pytest.raises(
        UserError, match=r"one of 2 ranks that measured was killed.*\n.*fewer ranks"
    ):
        measure.side_by_side(load_config(TINY), [], 2, 8)


def test_two_ranks_measure_at_once_and_agree_on_the_wire(tmp_path):
    from hpc_stres.tools import measure

    config = tiny_config(tmp_path, "cluster.ranks_per_node=2")
    first, second = measure.side_by_side(config, ["motion"], 2, 8)
    assert first.wire == second.wire
    assert first.wire.latency_s > 0
    assert first.wire.bytes_per_s > 0
    assert first.phases["motion"].gradient_bytes == second.phases["motion"].gradient_bytes > 0
    assert first.pictures_per_s == measure.TYPICAL_PICTURES_PER_S, "there is no store"


def test_a_plan_for_a_gpu_that_is_not_here_measures_nothing(tmp_path, monkeypatch, capsys):
    """The command itself, with every measurement turned into an error."""
    from hpc_stres.__main__ import main
    from hpc_stres.tools import measure

    for name in ("turns", "side_by_side", "measure_wire", "measure"):
        monkeypatch.setattr(measure, name, lambda *_, name=name: pytest.fail(f"{name} was called"))
    words = [
        "plan",
        "--config",
        str(ROOT / TINY),
        "--set",
        f"data.root={tmp_path}",
        "--gpus-per-node",
        "2",
    ]
    assert main([*words, "--gpu", "h100", "--run-dir", str(tmp_path / "run")]) == 0
    said = capsys.readouterr().out
    assert " to " in said
    assert "nothing measured here" in said
    hours = planner.read_hours(tmp_path / "run" / "plan.json")
    assert set(hours) == {"motion", "appearance", "st_resnet", "st_resnet_star", "evaluate"}

    bench = tmp_path / "bench.json"
    figure = {"part": "step", "what": gpus.SHARE_FIGURE, "value": gpus.STEP_SHARE / 2, "unit": "x"}
    bench.write_text(json.dumps({"machine": {}, "figures": [figure]}))
    monkeypatch.setattr(gpus, "PICTURES_PER_S_OF_A_CORE", 1e12)
    assert main([*words, "--gpu", "h100", "--run-dir", str(tmp_path / "run")]) == 0
    quick = planner.read_hours(tmp_path / "run" / "plan.json")
    assert (
        main([*words, "--gpu", "h100", "--run-dir", str(tmp_path / "run"), "--bench", str(bench)])
        == 0
    )
    assert planner.read_hours(tmp_path / "run" / "plan.json")["st_resnet"] > quick["st_resnet"]
    capsys.readouterr()
    for text in (
        "",
        "[]",
        "{}",
        '{"figures": [{"part": "step"}]}',
        '{"figures": []}',
        '{"figures": 3}',
    ):
        bench.write_text(text)
        assert main([*words, "--gpu", "h100", "--bench", str(bench)]) == 1
        lines = capsys.readouterr().err.strip().splitlines()
        assert len(lines) <= 3
        assert "bench.json" in lines[0]
    assert main([*words, "--bench", str(bench)]) == 2


def test_the_wall_time_comes_from_the_plan(config, tmp_path):
    cluster = config.cluster  # 1440 minutes
    assert wall_time(cluster, None) == (1440, 1)
    assert wall_time(cluster, 4.0) == (310, 1)
    assert wall_time(cluster, 60.0) == (1440, 4)
    write_sealed(RunPaths(tmp_path).plan, {"hours": {"motion": 4.0, "st_resnet": 60.0}})
    jobs = {job.name: job for job in make_jobs(config, tmp_path, list(config.phases), True)}
    assert (jobs["motion"].minutes, jobs["motion"].links) == (310, 1)
    assert (jobs["st_resnet"].minutes, jobs["st_resnet"].links) == (1440, 4)
    assert jobs["appearance"].minutes == 1440


def test_the_command_measures_predicts_and_leaves_a_plan(data_root, store, tmp_path):
    words = [
        "-m",
        "hpc_stres",
        "plan",
        "--config",
        TINY,
        "--set",
        f"data.root={data_root}",
        "--run-dir",
        tmp_path,
    ]
    result = run_python(*words)
    assert result.returncode == 0, result.stderr
    assert "written: " in result.stdout
    plan = json.loads((tmp_path / "plan.json").read_text())
    assert set(plan["hours"]) == {"motion", "appearance", "st_resnet", "st_resnet_star", "evaluate"}
    assert all(hours > 0 for hours in plan["hours"].values())
    assert planner.read_hours(tmp_path / "plan.json") == plan["hours"]
    bad = run_python(*words, "--gpu", "tpu")
    assert bad.returncode == 2
    assert len(bad.stderr.strip().splitlines()) <= 3


def test_every_flipped_bit_of_a_plan_is_noticed_or_harmless(tmp_path):
    path = tmp_path / "plan.json"
    hours = {"motion": 4.25, "st_resnet": 60.0}
    write_sealed(path, {"hours": hours})
    whole, draw = path.read_bytes(), random.Random(6)
    for _ in range(100):
        torn = bytearray(whole)
        torn[draw.randrange(len(torn))] ^= 1 << draw.randrange(8)
        path.write_bytes(torn)
        with contextlib.suppress(UserError):
            assert planner.read_hours(path) == hours
    for wrong in ({}, {"hours": [1]}, {"hours": {"motion": -1.0}}, {"hours": {"motion": "4"}}):
        write_sealed(path, wrong)
        with pytest.raises(UserError, match=r"plan\.json: it holds no hours"):
            planner.read_hours(path)


def test_counted_operations_are_those_of_resnet_50():
    from hpc_stres.tools.measure import count_needs

    config = load_config(ROOT / "configs" / "ucf101.yaml", ["data.root=x"])
    needs = count_needs(config, ["appearance", "st_resnet"])
    # ResNet-50 takes 4.1 billion multiply-adds at 224, a video of five chunks 12.8 times as many.
    assert needs["appearance"].flop_per_video == pytest.approx(gpus.RESNET50_FLOP, rel=0.01)
    assert needs["st_resnet"].flop_per_video == pytest.approx(12.8 * gpus.RESNET50_FLOP, rel=0.01)


def test_the_reference_of_the_bench_is_resnet_50():
    import torch
    from torch.utils.flop_counter import FlopCounterMode

    from hpc_stres.tools.bench.resnet50 import resnet50

    with torch.device("meta"), FlopCounterMode(display=False) as counter, torch.no_grad():
        model = resnet50().eval()
        model(torch.empty(1, 3, 224, 224))
    assert sum(p.numel() for p in model.parameters()) == 25_557_032
    assert counter.get_total_flops() == pytest.approx(gpus.RESNET50_FLOP, rel=0.001)
