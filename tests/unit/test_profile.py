"""`train --profile`: a trace, a page, and the same training as without."""

import gzip
import json
import re
from types import SimpleNamespace

import pytest
import torch

from hpc_stres.parallel.world import find_world
from hpc_stres.run.paths import RunPaths
from hpc_stres.training import profile
from hpc_stres.training.phase import train as train_phase
from tests.conftest import tiny_config
from tests.unit.trained import train


def profiled(data_root, run_dir, steps):
    config = tiny_config(data_root, f"training.max_steps={steps}")
    assert train_phase(config, "motion", run_dir, find_world({}), (), True)
    return RunPaths(run_dir).phase("motion").root


def test_a_profiled_training_is_the_same_training(data_root, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(profile, "LIMIT_BYTES", 1 << 20)
    monkeypatch.setattr(profile, "LIMIT_SIDE", 64)
    root = profiled(data_root, tmp_path / "profiled", 6)
    weights = train(data_root, tmp_path / "plain", "motion", "training.max_steps=6")
    from safetensors.torch import load_file

    for name, value in load_file(root / "weights.safetensors").items():
        assert torch.equal(value, weights[name]), name
    page = (root / "profile" / "summary.txt").read_text()
    assert "3 steps recorded" in page
    assert page in capsys.readouterr().out
    shares = [
        float(value)
        for value in re.findall(
            r"^.{3,60}? +[\d.e-]+ +([\d.]+)%", page.split("The longest")[0], re.M
        )
    ]
    assert 95 < sum(shares) < 105, page
    lines = {line.split("  ")[0]: line for line in page.splitlines()}
    assert "GFLOP/s" in lines["convolution"]
    assert "GB/s" in lines["normalisation, ReLU, residual sum"]
    trace = json.loads(gzip.decompress((root / "profile" / "trace.json.gz").read_bytes()))
    names = {event.get("name") for event in trace["traceEvents"]}
    assert {
        "aten::conv2d",
        "hpc_stres::sub_batch_norm",
        "hpc_stres::sub_batch_norm_backward",
    } <= names
    assert sorted(path.name for path in (root / "profile").iterdir()) == [
        "summary.txt",
        "trace.json.gz",
    ]


class Recorder:
    """Stands in for torch's profiler, which the test above runs."""

    def __init__(self, log, **options):
        self.log = log

    def start(self):
        self.log.append("start")

    def stop(self):
        self.log.append("stop")


@pytest.mark.parametrize(
    ("first", "last", "stopped_at", "start", "stop"),
    [
        (0, 9, 9, 2, 5),
        (4, 100, 100, 6, 9),
        (0, 1, 1, 0, 1),
        (0, 2, 2, 1, 2),
        (0, 4, 4, 2, 4),
        (0, 9, 3, 2, 3),
    ],
)
def test_steps_that_are_recorded(first, last, stopped_at, start, stop, tmp_path, monkeypatch):
    """Two steps go before, three are recorded; a short or a stopped training has what it has."""
    log = []
    monkeypatch.setattr(torch.profiler, "profile", lambda **options: Recorder(log, **options))
    paths = SimpleNamespace(root=tmp_path)
    recorded = profile.StepProfile(paths, torch.device("cpu"), torch.float32, 1)
    monkeypatch.setattr(recorded, "_write_trace", lambda profiler: log.append("written"))
    monkeypatch.setattr(Recorder, "events", lambda self: [], raising=False)
    monkeypatch.setattr(profile, "measure_limits", lambda device, dtype: profile.Limits(1.0, 1.0))
    recorded.begin(first, last)
    at = {}
    for step in range(first, stopped_at):
        if log and "start" not in at:
            at["start"] = step
        recorded.step_done(step + 1)
        if "stop" in log and "stop" not in at:
            at["stop"] = step + 1
    recorded.end(stopped_at)
    assert log == ["start", "stop", "written"]
    assert at["start"] == start
    assert at.get("stop", stopped_at) == stop


def event(name, micros, thread=1, shapes=(), flops=0):
    return SimpleNamespace(
        name=name, self_cpu_time_total=micros, self_device_time_total=0.0, thread=thread,
        input_shapes=[list(shape) for shape in shapes], flops=flops,
    )  # fmt: skip


def test_the_feeds_threads_take_no_time_of_the_step():
    events = [
        event("aten::convolution", 5),
        event("aten::add", 2),
        event("aten::copy_", 90, thread=2),
    ]
    assert profile.busiest_thread(events, False) == events[:2]


def test_work_is_sorted_once_and_counted():
    events = [
        event("aten::conv2d", 0, flops=10),
        event("aten::mkldnn_convolution", 3e6),
        event("ConvolutionBackward0", 1e6),
        event("hpc_stres::sub_batch_norm", 2e6, shapes=[(2, 3, 4, 5), (), (3,)]),
        event("Optimizer.step#SGD.step", 1e6),
        event("aten::_foreach_add_", 1e6),
        event("made up", 5e5),
    ]
    kinds, names = profile.sort_work(events, False, 2)
    seconds = {kind: work.seconds for kind, work in kinds.items()}
    assert seconds == {
        "convolution": 4.0, "normalisation, ReLU, residual sum": 2.0, "optimiser": 2.0, profile.REST: 0.5,
    }  # fmt: skip
    assert kinds["convolution"].flop == 30
    # x twice, the parameters, and the result.
    assert kinds["normalisation, ReLU, residual sum"].bytes == 2 * (3 * 120 + 3)
    assert names["made up"].calls == 1
