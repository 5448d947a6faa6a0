"""Seconds of ranks by part, and which rank is slow."""

import time

import pytest
import torch
from torch import nn

from hpc_stres.run import stall
from hpc_stres.run.paths import PhasePaths, write_json
from hpc_stres.run.waits import Waits, waiting
from hpc_stres.training import timing
from hpc_stres.training.timing import Lap, RankClock, Stragglers, first_trainable


def lap(own, videos=4.0):
    return Lap((0.0, own / 2, own / 2, 0.1, 0.0), own, videos)


def named(sequence, nodes=("n1", "n2", "n3", "n4")):
    """Ranks that are named after each of these laps of ten steps."""
    stragglers = Stragglers(nodes)
    return [[rank for rank, _ in stragglers.find(laps, 10)] for laps in sequence]


EVEN, SLOW = [lap(0.2)] * 4, [lap(0.2), lap(0.2), lap(0.31), lap(0.2)]


@pytest.mark.parametrize(
    ("laps", "expected"),
    [
        ([EVEN] * 5, [[]] * 5),
        ([SLOW] * 3, [[], [2], []]),  # after twenty steps, and once
        ([SLOW, EVEN, SLOW, SLOW], [[], [], [], [2]]),  # in a row
        ([[lap(0.2), lap(0.2), lap(0.29), lap(0.2)]] * 3, [[]] * 3),  # less than one and a half
        (
            [[lap(0.010), lap(0.010), lap(0.019), lap(0.010)]] * 3,
            [[]] * 3,
        ),  # nothing that anybody waits for
        ([[lap(0.2), lap(0.2), lap(0.4, 8.0), lap(0.2)]] * 3, [[]] * 3),  # it has twice the videos
        (
            [[lap(0.2), lap(0.2), lap(0.2, 2.0), lap(0.2)]] * 3,
            [[]] * 3,
        ),  # as fast, with fewer videos
        (
            [[lap(0.2), lap(0.0, 0.0), lap(0.5), lap(0.2)]] * 2,
            [[], [2]],
        ),  # a rank without a share says nothing
    ],
)
def test_a_rank_is_named_when_it_is_slow_for_long_enough(laps, expected):
    assert named(laps) == expected


def test_of_two_ranks_the_slower_is_named_and_alone_nobody_is():
    assert named([[lap(0.2), lap(0.5)]] * 2, ("a", "b")) == [[], [1]]
    assert named([[lap(0.5)]] * 3, ("a",)) == [[]] * 3


def test_a_row_tells_mean_worst_and_whose():
    row = Stragglers(["a", "b"]).row([lap(0.2), lap(0.4)])
    assert row["forward_s"] == pytest.approx(0.15)
    assert (row["forward_s_worst"], row["forward_s_worst_rank"]) == (0.2, 1)
    assert row["forward_s_worst_host"] == "b"
    assert {f"{part}_s" for part in timing.PARTS} <= set(row)


class Slow(torch.autograd.Function):
    """Sleeps on the way back."""

    @staticmethod
    def forward(ctx, x):
        return x.clone()

    @staticmethod
    def backward(ctx, slope):
        time.sleep(0.05)
        return slope


def test_the_parts_of_a_real_step_are_what_was_slept_in_them():
    model = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 2))
    clock = RankClock(torch.device("cpu"), nn.ModuleDict({"stream": model}), videos=2)
    for _ in range(2):
        clock.begin_step()
        start, before = clock.mark(), Waits.seconds
        time.sleep(0.02)
        loss = Slow.apply(model(torch.ones(2, 3))).sum()
        with waiting():
            time.sleep(0.03)  # a norm group over several ranks: it waits for them
        start = clock.forward(start, before)
        before = Waits.seconds
        loss.backward()
        time.sleep(0.04)  # after the last gradient: the reduction
        clock.backward(start, before, last=True)
        clock.step(clock.mark(), 0.01)
    clock.saved(0.5)
    found = clock.lap()
    data, forward, backward, reduce, checkpoint = found.parts
    assert data == pytest.approx(0.01)
    assert checkpoint == pytest.approx(0.25)
    # Sleeps may take longer on a busy machine, never less.
    assert forward >= 0.02
    assert backward >= 0.05
    assert reduce >= 0.07
    assert found.own >= 0.07
    assert found.own - forward - backward < 0.03, "the reduction and the wait are not its own time"
    assert clock.lap().parts == (0.0,) * 5
    clock.close()


def test_hooks_are_on_the_first_trainable_parameter_of_each_stream():
    first, second = nn.Linear(2, 2), nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 1))
    for parameter in second[0].parameters():
        parameter.requires_grad_(False)
    model = nn.ModuleDict({"a": first, "b": second, "c": nn.ReLU()})
    found = first_trainable(model)
    assert [id(p) for p in found] == [id(first.weight), id(second[1].weight)]


# -- a training that stood still ------------------------------------------------------------

STACK = """Timeout (0:00:06)!
Thread 0x00007f01 (most recent call first):
  File "/x/threading.py", line 320 in wait

Thread 0x00007f02 (most recent call first):
  File "/x/store/pread.py", line 5 in pread
  File "/y/hpc_stres/store/reader.py", line 77 in read
  File "/y/hpc_stres/training/trainer.py", line 200 in train
"""


def stalled(tmp_path, beats, stack=STACK):
    paths = PhasePaths(tmp_path / "phases" / "motion")
    for rank, beat in enumerate(beats):
        if beat is not None:
            write_json(paths.heartbeat(rank), {"step": 40, "node": f"n{rank + 1}", **beat})
    paths.stall.mkdir(parents=True)
    if stack:
        paths.stack(1).write_text(stack)
    return paths


WAIT, STEP = {"where": "waiting"}, {"where": "step"}


def test_a_stall_is_three_lines_that_name_rank_node_and_place(tmp_path):
    paths = stalled(tmp_path, [WAIT, STEP, WAIT])
    found = stall.examine(paths, 3, "waiting")
    lines = stall.summary("motion", paths, found, 3.0)
    assert lines == [
        "motion: ranks [1] did not arrive at step 41 within 3 min: rank 1 on n2; 2 ranks waited",
        "rank 1 was in pread (store/pread.py:5), called from read (store/reader.py:77)",
        f"stacks and flight records of the ranks: {paths.stall}",
    ]


@pytest.mark.parametrize("stack", ["", None, "\0\1garbage\n  File"])
def test_a_rank_that_left_no_stack_is_named_all_the_same(tmp_path, stack):
    paths = stalled(tmp_path, [WAIT, STEP], stack)
    found = stall.examine(paths, 2, "waiting")
    assert found.named == "rank 1 on n2"
    assert found.place == "left no stack: its process is stopped, or gone with its node"


def test_where_all_wait_or_none_does_nobody_is_named(tmp_path):
    assert stall.examine(stalled(tmp_path / "a", [WAIT, WAIT]), 2, "waiting") is None
    assert stall.examine(stalled(tmp_path / "b", [STEP, STEP]), 2, "waiting") is None
    lost = stall.examine(stalled(tmp_path / "c", [WAIT, None]), 2, "waiting")
    assert lost.named == "rank 1 on an unknown node"
