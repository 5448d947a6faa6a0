"""A rank that is slow, and one that hangs: named by the others with its host, its time and its place."""

import json
import re

import pytest

from hpc_stres.run.bad_nodes import node_name
from tests import poison
from tests.conftest import ROOT
from tests.distributed.launching import command, metrics, start_torchrun

pytestmark = pytest.mark.distributed
HANGS_AT = 28


def test_a_slow_rank_is_named_and_one_that_hangs_too(data_root, tmp_path):
    poison.write(tmp_path / "poison")
    words = command(
        data_root, tmp_path, "motion", "training.log_every_steps=5", "training.step_timeout_minutes=0.5",
        "phases.motion.optimise.schedule=[[100000, 0.001]]", "training.checkpoint_every_steps=10",
    )  # fmt: skip
    poisoned = {"POISON": "slow, then hangs", "POISONED": "rank 1"}
    path = {"PYTHONPATH": f"{ROOT}:{tmp_path / 'poison'}"}
    ranks = start_torchrun(words, 2, poisoned | path)
    try:
        assert ranks.wait() != 0
    finally:
        ranks.kill()
    output = ranks.output
    slow = re.search(
        r"motion: rank 1 on (\S+) is ([\d.]+) times slower than the others for 2\d steps", output
    )
    assert slow, output[-3000:]
    assert slow[1] == node_name()
    assert float(slow[2]) > 1.5
    rows = metrics(tmp_path, "motion")
    assert rows[3]["slow"].startswith("rank 1 on")
    # It sleeps between its data and its forward pass: the others spend that time in the reduction.
    assert rows[-1]["reduce_s_worst_rank"] == 0
    assert rows[-1]["reduce_s_worst"] > max(0.15, rows[-1]["forward_s_worst"])
    assert any(row["checkpoint_s"] > 0 for row in rows)
    lines = (tmp_path / "phases/motion/stall/summary.txt").read_text().splitlines()
    assert len(lines) == 3
    assert f"ranks [1] did not arrive at step {HANGS_AT + 1} within 0.5 min: rank 1 on" in lines[0]
    assert re.match(r"rank 1 was in step \(<?string>?|rank 1 was in step \(", lines[1]), lines
    assert "micro_step" in lines[1] or "train (" in lines[1], lines
    assert all(line in output for line in lines)
    folder = tmp_path / "phases/motion/stall"
    assert "all_reduce" in (folder / "rank00000.flight.json").read_text()
    assert "Timeout" in (folder / "rank00001.txt").read_text()
    (stall,) = [json.loads(x) for x in (tmp_path / "nodes.jsonl").read_text().splitlines()]
    assert (stall["kind"], stall["node"]) == ("stall", node_name())
