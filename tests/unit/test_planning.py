"""The plan's arithmetic against numbers worked out by hand, and the wall times that submit.py takes from it."""

import contextlib
import json
import random

import pytest

from hpc_stres.config.loading import load_config
from hpc_stres.errors import ConfigError, UserError
from hpc_stres.launch.jobs import make_jobs, wall_time
from hpc_stres.run.paths import RunPaths, write_sealed
from hpc_stres.tools import planner
from hpc_stres.tools.planner import Speed, Speeds
from tests.conftest import ROOT, TINY, run_python

SPEED = Speed(seconds_per_video=0.5, overhead_s=0.1, update_s=0.2, gradient_bytes=4_000_000, flop_per_video=1e9)


@pytest.fixture
def config():
    return load_config(ROOT / "configs" / "ucf101.yaml", ["cluster.gpus_per_node=4", "cluster.nodes=2"], "slurm")


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

    assert planner.predict(config, "motion", 2, replace(speeds, pictures_per_s=10.0)).limit == "feed"
    assert planner.predict(config, "motion", 2, replace(speeds, network_bytes_per_s=1.0)).limit == "all-reduce"
    assert planner.predict(config, "motion", 1, replace(speeds, network_bytes_per_s=1.0)).all_reduce_s > 0
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
    total = longest + plans["st_resnet"].hours + plans["st_resnet_star"].hours + plans["evaluate"].hours
    assert planner.chain_hours(config, plans) == pytest.approx(total)


def test_other_numbers_of_nodes_are_compared_and_what_cannot_be_cut_is_said(config, speeds):
    table = planner.comparison(config, list(config.phases), speeds, (1, 2, 8, 64, 512))
    assert float(table[0][1]) > float(table[1][1]) > float(table[2][1])
    assert table[-1][1] == "-"
    assert "cannot be cut" in table[-1][3]


def test_a_named_gpu_replaces_the_arithmetic_and_says_so(config, speeds):
    found = planner.assumed(speeds, "A100", "bfloat16")
    assert found.phases["motion"].seconds_per_video == pytest.approx(3 * 1e9 / (312e12 * 0.25))
    assert "not measured" in found.source
    with pytest.raises(ConfigError, match="no such GPU is known; there are v100, a100"):
        planner.assumed_kind("tpu")


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
    words = ["-m", "hpc_stres", "plan", "--config", TINY, "--set", f"data.root={data_root}", "--run-dir", tmp_path]
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
    import torch

    from hpc_stres.models.building import build_phase_model
    from hpc_stres.tools.measure import _flop

    config = load_config(ROOT / "configs" / "ucf101.yaml", ["training.precision=float32"])
    model = build_phase_model(config, "appearance", 101)
    # ResNet-50 takes 4.1 billion multiply-adds at 224.
    assert _flop(model, config, "appearance", torch.device("cpu")) == pytest.approx(2 * 4.1e9, rel=0.02)
