"""Ranks that look for each other over real sockets: everyone ends with the same sentence, and the right node in it."""

import json
import socket
import threading
import time
from dataclasses import replace

import pytest

from hpc_stres.errors import UserError
from hpc_stres.parallel import reach
from hpc_stres.parallel.reach import Unreachable, nodes_by_rank
from hpc_stres.parallel.world import World
from hpc_stres.run.bad_nodes import read_accusations
from hpc_stres.tools import preflight
from tests.conftest import tiny_config

NODES = {"SLURM_JOB_NODELIST": "n[1-4]", "SLURM_TASKS_PER_NODE": "1(x4)"}


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def look(ranks, patience, size=4):
    """What each of these ranks ends with, and after how many seconds."""
    port, found = free_port(), {}

    def one(rank):
        world = World(rank, size, 0, 1, "127.0.0.1", port, "srun")
        started = time.monotonic()
        try:
            reach.check(world, f"n{rank + 1}", patience, NODES)
            found[rank] = None
        except UserError as error:
            found[rank] = error
        return time.monotonic() - started

    threads = [threading.Thread(target=one, args=(rank,)) for rank in ranks]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    return found


def test_ranks_that_are_all_there_find_each_other():
    assert look(range(4), 30) == dict.fromkeys(range(4))


def test_a_rank_that_does_not_come_is_named_by_all_with_its_node():
    found = look([0, 1, 3], 1.0)
    assert len({str(error) for error in found.values()}) == 1
    assert "rank 2 on n3 did not reach the first rank on n1" in str(found[0])
    assert [node for node, _, _ in found[3].blamed] == ["n3"]


def test_where_nobody_came_it_is_the_first_node_that_was_not_reached():
    (error,) = look([0], 0.5).values()
    assert [node for node, _, _ in error.blamed] == ["n1"]


def test_where_the_first_rank_is_not_there_the_others_say_so():
    found = look([2], 0.5)
    assert "n3 cannot reach the first rank at 127.0.0.1" in str(found[2])
    assert [node for node, _, _ in found[2].blamed] == ["n1"]


def test_a_node_that_reaches_the_first_and_is_reached_by_nobody(monkeypatch):
    real = reach._try_next

    def dead(position, table):
        return "10.0.0.3: timed out" if position in (1, 2) else real(position, table)

    monkeypatch.setattr(reach, "_try_next", dead)
    found = look(range(4), 30)
    # n3 is out of reach of n2, and what it says of n4 itself does not count.
    assert {tuple(node for node, _, _ in error.blamed) for error in found.values()} == {("n3",)}
    assert "rank 2 on n3: not reachable from the other nodes (from n2: 10.0.0.3" in str(found[0])


def test_others_connections_to_the_port_are_no_ranks(monkeypatch):
    monkeypatch.setattr(reach, "PEER_SECONDS", 1.0)
    port, result = free_port(), []
    worlds = [World(rank, 2, 0, 1, "127.0.0.1", port, "srun") for rank in range(2)]
    names = {"SLURM_JOB_NODELIST": "n[1-2]", "SLURM_TASKS_PER_NODE": "1(x2)"}
    first = threading.Thread(target=lambda: result.append(reach.check(worlds[0], "n1", 20, names)))
    first.start()
    for said in (b"GET / HTTP/1.1\r\n\r\n", json.dumps({"rank": 17, "port": 1}).encode() + b"\n"):
        deadline = time.monotonic() + 10
        while time.monotonic() < deadline:
            try:
                with socket.create_connection(("127.0.0.1", port), timeout=5) as stranger:
                    stranger.sendall(said)
                break
            except OSError:
                time.sleep(0.05)
    reach.check(worlds[1], "n2", 20, names)
    first.join(30)
    assert result == [None]


WORLD = World(1, 2, 0, 1, "no-such-host.invalid", 13000, "srun")


def test_a_name_that_does_not_resolve_is_told_at_once_and_by_name(monkeypatch):
    started = time.monotonic()
    with pytest.raises(
        Unreachable, match=r"the name no-such-host\.invalid of the first rank's node has no"
    ) as caught:
        reach.refuse_unresolvable(WORLD, "n2", ["no-such-host.invalid", "localhost"])
    assert time.monotonic() - started < reach.RESOLVE_SECONDS + 5
    assert [(node, kind) for node, kind, _ in caught.value.blamed] == [
        ("no-such-host.invalid", "name")
    ]
    # Where no other name resolves here either, it is this node that cannot resolve.
    with pytest.raises(Unreachable, match="n2 cannot resolve names") as caught:
        reach.refuse_unresolvable(WORLD, "n2", ["no-such-host.invalid", "n2", "nor-this.invalid"])
    assert caught.value.blamed[0][0] == "n2"
    reach.refuse_unresolvable(replace(WORLD, address="localhost"), "n2")


def test_a_mute_name_server_is_not_waited_for(monkeypatch):
    monkeypatch.setattr(socket, "getaddrinfo", lambda *a, **k: time.sleep(5))
    assert reach.resolve("n1", 0.1) == "no answer within 0 s"


def test_the_process_group_refuses_such_a_name_before_it_waits(monkeypatch):
    import torch

    from hpc_stres.parallel import process_groups
    from hpc_stres.parallel.world import kept_environment

    with (
        kept_environment(),
        pytest.raises(Unreachable, match=r"no-such-host\.invalid does not resolve"),
    ):
        process_groups.start(WORLD, torch.device("cpu"))


def test_the_preflight_writes_down_whom_it_misses_unless_the_cause_is_known(tmp_path, monkeypatch):
    blamed = [("n3", "network", "n3: did not come")]

    def refuse(*arguments):
        raise Unreachable("n3 did not come", blamed)

    monkeypatch.setattr(reach, "check", refuse)
    monkeypatch.setenv("SLURM_JOB_NUM_NODES", "4")
    for node, look in (("n3", preflight.reach_each_other), ("n1", preflight.run)):
        blamed[0] = (node, "network", "x")
        with pytest.raises(Unreachable):
            look(tiny_config("x").cluster, WORLD, tmp_path)
    assert [row.node for row in read_accusations(tmp_path)] == ["n3"]


@pytest.mark.parametrize(
    ("nodes", "tasks", "more", "expected"),
    [
        ("a[1-3]", "2(x2),1", {}, ["a1", "a1", "a2", "a2", "a3"]),
        ("a[1-3]", "2(x2),1", {"SLURM_DISTRIBUTION": "cyclic"}, ["a1", "a2", "a3", "a1", "a2"]),
        ("a[1-2]", "2(x2),1", {}, None),
        ("", "5", {}, None),
    ],
)
def test_which_node_a_rank_is_on(nodes, tasks, more, expected):
    environment = {"SLURM_JOB_NODELIST": nodes, "SLURM_TASKS_PER_NODE": tasks, **more}
    assert nodes_by_rank(environment, 5) == expected
