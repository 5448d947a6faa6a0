"""Rank and world from every launcher; half-set environments are refused."""

import contextlib
import os

import pytest

from hpc_stres.errors import ConfigError
from hpc_stres.parallel.world import (
    FIRST_PORT,
    PORT_COUNT,
    expand_nodes,
    find_world,
    kept_environment,
)

TORCHRUN = {
    "RANK": "5",
    "WORLD_SIZE": "8",
    "LOCAL_RANK": "1",
    "LOCAL_WORLD_SIZE": "4",
    "MASTER_ADDR": "n1",
    "MASTER_PORT": "29501",
}
OPENMPI = {
    "OMPI_COMM_WORLD_RANK": "1",
    "OMPI_COMM_WORLD_SIZE": "2",
    "OMPI_COMM_WORLD_LOCAL_RANK": "1",
    "OMPI_COMM_WORLD_LOCAL_SIZE": "2",
}
MPICH = {"PMI_RANK": "1", "PMI_SIZE": "2", "MPI_LOCALRANKID": "1", "MPI_LOCALNRANKS": "2"}


def slurm(nodes, per_node, rank):
    return {
        "SLURM_JOB_ID": "77", "SLURM_STEP_ID": "0", "SLURM_PROCID": str(rank), "SLURM_NTASKS": str(nodes * per_node),
        "SLURM_STEP_NUM_TASKS": str(nodes * per_node), "SLURM_LOCALID": str(rank % per_node),
        "SLURM_JOB_NODELIST": f"gpu[01-{nodes:02d}]", "SLURM_TASKS_PER_NODE": f"{per_node}(x{nodes})",
    }  # fmt: skip


def test_alone():
    world = find_world({})
    assert (world.rank, world.size, world.source) == (0, 1, "single")


@pytest.mark.parametrize("nodes", [1, 2, 4])
@pytest.mark.parametrize("per_node", [1, 3])
def test_slurm_ranks_over_nodes(nodes, per_node):
    worlds = [find_world(slurm(nodes, per_node, rank)) for rank in range(nodes * per_node)]
    assert [world.rank for world in worlds] == list(range(nodes * per_node))
    assert {world.size for world in worlds} == {nodes * per_node}
    assert {world.address for world in worlds} == {"gpu01"}
    assert len({world.port for world in worlds}) == 1
    assert [world.local_rank for world in worlds] == [
        rank % per_node for rank in range(nodes * per_node)
    ]


def test_torchrun_and_mpi():
    world = find_world(TORCHRUN)
    assert (world.rank, world.size, world.local_rank, world.local_size) == (5, 8, 1, 4)
    assert (world.address, world.port) == ("n1", 29501)
    for env in (OPENMPI, MPICH):
        world = find_world(env)
        assert (world.rank, world.size, world.local_rank, world.local_size) == (1, 2, 1, 2)


@pytest.mark.parametrize(
    "missing", ["RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT"]
)
def test_a_half_set_torchrun_environment_is_refused(missing):
    env = {key: value for key, value in TORCHRUN.items() if key != missing}
    with pytest.raises(ConfigError, match=f"half-set.*{missing}"):
        find_world(env)


@pytest.mark.parametrize("missing", ["OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_LOCAL_RANK"])
def test_a_half_set_mpi_environment_is_refused(missing):
    with pytest.raises(ConfigError, match=missing):
        find_world({key: value for key, value in OPENMPI.items() if key != missing})


def test_slurm_tasks_with_a_world_of_one_are_refused():
    env = {**slurm(2, 2, 1), "RANK": "0", "WORLD_SIZE": "1", "LOCAL_RANK": "0"}
    with pytest.raises(ConfigError, match="SLURM_NTASKS is 4 but the group has a world of 1"):
        find_world(env)


ONE_TORCHRUN = {
    **TORCHRUN,
    "RANK": "0",
    "WORLD_SIZE": "1",
    "LOCAL_RANK": "0",
    "LOCAL_WORLD_SIZE": "1",
}
ONE_MPI = {f"OMPI_COMM_WORLD_{name}": value for name, value in
           (("RANK", "0"), ("SIZE", "1"), ("LOCAL_RANK", "0"), ("LOCAL_SIZE", "1"))}  # fmt: skip


@pytest.mark.parametrize(
    "env", [ONE_TORCHRUN, ONE_MPI, slurm(1, 1, 0)], ids=["torchrun", "mpirun", "srun"]
)
def test_one_rank_under_a_launcher_keeps_the_port_that_it_was_given(env):
    given = find_world({**env, "MASTER_PORT": "29777", "MASTER_ADDR": "n1"})
    assert given.port_is_agreed
    assert (given.size, given.port, given.address) == (1, 29777, "n1")
    without = {name: value for name, value in env.items() if name != "MASTER_PORT"}
    assert not find_world(without).port_is_agreed, (
        "nobody else can know the port: any free one will do"
    )


def test_a_lone_process_takes_any_free_port_and_several_ranks_the_agreed_one():
    assert not find_world({"MASTER_PORT": "29777"}).port_is_agreed
    for env in (TORCHRUN, OPENMPI, MPICH, slurm(2, 2, 1)):
        assert find_world(env).port_is_agreed


def test_a_given_port_is_not_changed_when_the_group_starts(monkeypatch):
    from hpc_stres.parallel import process_groups

    seen = {}
    monkeypatch.setattr(
        process_groups.dist, "init_process_group", lambda *a, **k: seen.update(os.environ)
    )
    with kept_environment():
        process_groups.start(find_world(ONE_TORCHRUN), process_groups.torch.device("cpu"))
    assert (seen["MASTER_ADDR"], seen["MASTER_PORT"]) == ("n1", "29501")
    with kept_environment():
        process_groups.start(
            find_world({"MASTER_PORT": "29501"}), process_groups.torch.device("cpu")
        )
    assert seen["MASTER_PORT"] != "29501"


def test_the_environment_is_kept_however_a_block_ends(monkeypatch):
    monkeypatch.setenv("CHANGED", "before")
    monkeypatch.setenv("REMOVED", "before")
    before = dict(os.environ)
    with contextlib.suppress(KeyError), kept_environment():
        os.environ.update(CHANGED="after", RANK="0")
        del os.environ["REMOVED"]
        raise KeyError
    assert dict(os.environ) == before


def test_a_batch_script_is_a_single_process():
    env = {"SLURM_JOB_ID": "7", "SLURM_PROCID": "0", "SLURM_NTASKS": "4", "SLURM_LOCALID": "0"}
    assert find_world(env).size == 1


def test_ports_lie_below_the_ephemeral_range_and_differ_by_job():
    ports = {find_world({**slurm(1, 1, 0), "SLURM_JOB_ID": str(job)}).port for job in range(50)}
    assert len(ports) > 45
    assert all(FIRST_PORT <= port < FIRST_PORT + PORT_COUNT <= 32768 for port in ports)
    restarted = {**slurm(1, 1, 0), "SLURM_RESTART_COUNT": "1"}
    assert find_world(restarted).port != find_world(slurm(1, 1, 0)).port


@pytest.mark.parametrize(
    ("text", "nodes"),
    [
        ("n1", ["n1"]),
        ("a[01-03,7],b", ["a01", "a02", "a03", "a7", "b"]),
        ("r[1-2]n[3-4]", ["r1n3", "r1n4", "r2n3", "r2n4"]),
        ("c[1-2]-ib,d", ["c1-ib", "c2-ib", "d"]),
    ],
)
def test_node_lists(text, nodes):
    assert expand_nodes(text) == nodes
