"""What is held against nodes, who is left out for it, and what a job's script makes of logs and missing ranks."""

import dataclasses
import io
import json
import multiprocessing
import os
import subprocess
import sys

import pytest

from hpc_stres.config.loading import dump
from hpc_stres.launch import aftermath, node_failures, slurm
from hpc_stres.launch.aftermath import Ended, blame, orders, script_lines
from hpc_stres.launch.bad_nodes import excluded, reasons
from hpc_stres.launch.jobs import Job
from hpc_stres.launch.scheduler import Answer
from hpc_stres.run.attempts import Attempt, read_attempts, without_progress, write_begin, write_end
from hpc_stres.run.bad_nodes import accuse, affordable, excluded_nodes, read_accusations, withdraw
from hpc_stres.run.ledger import append_row, read_rows
from hpc_stres.run.paths import RunPaths, write_json, write_sealed, write_text
from hpc_stres.tools import node_health
from tests.conftest import ROOT, tiny_config

HOUR = 3600.0


def test_many_writers_at_once_lose_no_row(tmp_path):
    with multiprocessing.get_context("fork").Pool(4) as pool:
        pool.map(_append, [(tmp_path / "rows.jsonl", n) for n in range(100)])
    rows, faults = read_rows(tmp_path / "rows.jsonl")
    assert sorted(row["n"] for row in rows) == list(range(100))
    assert faults == []


def _append(work):
    path, number = work
    append_row(path, {"n": number, "text": "x" * 3000})


def test_a_torn_row_takes_no_other_with_it_and_a_damaged_one_is_named(tmp_path):
    path = tmp_path / "rows.jsonl"
    append_row(path, {"n": 1})
    with path.open("a") as stream:
        stream.write('{"n": 2, "che')  # killed while it wrote
    assert read_rows(path) == ([{"n": 1}], [])
    append_row(path, {"n": 3})
    rows, faults = read_rows(path)
    assert [row["n"] for row in rows] == [1, 3]
    assert len(faults) == 1
    path.write_bytes(path.read_bytes().replace(b'"n": 3', b'"n": 4'))
    assert [row["n"] for row in read_rows(path)[0]] == [1]


def test_a_ledger_that_cannot_be_written_is_said_and_ends_nothing(tmp_path, capsys):
    (tmp_path / "file").touch()
    assert not append_row(tmp_path / "file" / "rows.jsonl", {"n": 1})
    assert "cannot be written" in capsys.readouterr().err


def test_nodes_are_left_out_for_a_time_the_newest_first_each_once(tmp_path):
    accuse(tmp_path, "disk", "n2: full", "n2", job="1", restart=0, job_nodes=2)
    accuse(tmp_path, "disk", "n2: full", "n2", job="1", restart=0, job_nodes=2)
    accuse(tmp_path, "crash", "n3: gone", "n3", job="2", restart=0, job_nodes=4)
    assert len(read_accusations(tmp_path)) == 2
    now = read_accusations(tmp_path)[-1].time
    assert list(excluded_nodes(tmp_path, 24, now)) == ["n3", "n2"]
    assert list(excluded_nodes(tmp_path, 24, now + 23.9 * HOUR)) == ["n3", "n2"]
    assert excluded_nodes(tmp_path, 24, now + 24.1 * HOUR) == {}
    assert excluded_nodes(tmp_path, 0, now) == {}


@pytest.mark.parametrize(
    ("kind", "nodes", "left_out"),
    [
        ("name", ["n1", "n2"], []),  # a name service that is down is no node's fault
        ("name", ["n1"], ["n1"]),
        ("crash", ["n1", "n2"], []),
        ("disk", ["n1", "n2"], ["n1", "n2"]),  # but each disk is its node's own
    ],
)
def test_what_all_nodes_of_a_job_are_accused_of_is_not_theirs(tmp_path, kind, nodes, left_out):
    for node in nodes:
        accuse(tmp_path, kind, "x", node, job="1", restart=0, job_nodes=2)
    assert sorted(excluded_nodes(tmp_path, 24)) == left_out


def test_attempts_that_failed_on_one_node_after_another_are_not_held_against_them(tmp_path):
    for job, node, kind in (("1", "n1", "crash"), ("2", "n2", "crash"), ("3", "n3", "disk")):
        accuse(tmp_path, kind, "x", node, job=job, restart=0, job_nodes=4)
    withdraw(tmp_path, ["1"])  # all of one node: it may be that node
    assert sorted(excluded_nodes(tmp_path, 24)) == ["n1", "n2", "n3"]
    withdraw(tmp_path, ["1", "2", "3"])
    assert sorted(excluded_nodes(tmp_path, 24)) == ["n3"]
    accuse(tmp_path, "crash", "x", "n1", job="9", restart=0, job_nodes=4)
    assert sorted(excluded_nodes(tmp_path, 24)) == ["n1", "n3"]


def test_a_name_that_is_none_never_reaches_the_scheduler(tmp_path):
    for name in ("n1;rm -rf /", "$(x)", "", "-n1", "n1,n2", "n" * 300):
        accuse(tmp_path, "disk", "x", name or "n9 n8", job="1", restart=0, job_nodes=1)
    assert excluded(tmp_path) == []


def test_the_runs_own_settings_say_for_how_long_and_the_reason_is_told(tmp_path):
    accuse(tmp_path, "disk", "n2: full", "n2", job="1", restart=0, job_nodes=2)
    assert excluded(tmp_path) == ["n2"]
    config = tiny_config(tmp_path, "cluster.avoid_bad_nodes_hours=0")
    write_text(RunPaths(tmp_path).config, dump(config))
    assert excluded(tmp_path) == []
    (line,) = reasons(tmp_path, tiny_config(tmp_path).cluster)
    assert line.startswith("node n2 is left out for 24 h since ")
    assert "n2: full" in line


def test_no_more_are_left_out_than_can_be_spared():
    nodes = ["n1", "n2", "n3", "n4"]
    assert affordable(["n4", "n1"], nodes, 2) == ["n4", "n1"]
    assert affordable(["n4", "n1"], nodes, 3) == ["n4"]
    assert affordable(["n4", "n1"], nodes, 4) == []
    assert affordable(["n9"], nodes, 1) == []
    assert affordable(["n1"], [], 1) == []


# -- what a job's script makes of it --------------------------------------------------

GREETING = "submitit INFO (x) - Starting with JobEnvironment(job_id=7)\n"
CRASH = "srun: error: n2: task 1: Exited with exit code 9\n"
CRASH += "slurmstepd-n1: error: *** STEP 7.0 ON n1 CANCELLED AT x ***\n"
CRASH += "srun: error: n1: task 0: Terminated\n"
TOGETHER = (
    "srun: error: n[2,7]: tasks 1-3: Exited with exit code 9\nsrun: error: n1: task 0: Killed\n"
)


def ended(tmp_path, first="", second="", arrived=(0, 1), per_node=1):
    run = tmp_path / "run"
    folder = RunPaths(run).logs / "motion"
    write_text(folder / "7_0_log.out", first)
    write_text(folder / "7_1_log.out", second)
    for rank in arrived:
        word = {"rank": rank, "node": f"n{1 + rank // per_node}", "job": "7", "restart": 0}
        write_json(folder / "arrived" / f"rank{rank:05d}.json", word)
    return Ended(run, "motion", "7", 0, 1, ("n1", "n2"), per_node)


@pytest.mark.parametrize(
    ("logs", "arrived", "accused"),
    [
        ((GREETING + CRASH, ""), (0,), [("n2", "crash")]),
        ((GREETING + CRASH, GREETING), (0, 1), [("n2", "crash")]),
        # It gave a reason of its own: a script that crashes is not the node's fault.
        ((GREETING + CRASH, "hpc-stres train: the loss is not finite\n"), (0, 1), []),
        ((GREETING + CRASH + "slurmstepd: error: Detected 1 oom-kill event(s)\n", ""), (0, 1), []),
        (("slurmstepd: error: *** JOB 7 ON n1 CANCELLED AT x DUE TO TIME LIMIT ***\n" + CRASH, ""), (0, 1), []),
        ((GREETING, "NVRM: Xid (PCI:0000:3b:00): 79, GPU has fallen off the bus\n"), (0, 1), [("n2", "gpu")]),
        ((GREETING, "RuntimeError: CUDA error: uncorrectable ECC error encountered\n"), (0, 1), [("n2", "gpu")]),
        (("srun: error: Task launch for StepId=7.0 failed on node n2: Communication failure\n", ""), (0,),
         [("n2", "arrival")]),
        ((GREETING, ""), (0,), [("n2", "arrival")]),
        # Tasks that ended in the same way share a line.
        ((GREETING + "srun: error: n[1-2]: tasks 0-1: Exited with exit code 9\n", ""), (),
         [("n1", "crash"), ("n2", "crash")]),
        ((GREETING + TOGETHER, ""), (0,), [("n2", "crash")]),
        ((GREETING + TOGETHER, "hpc-stres train: the loss is not finite\n"), (0,), []),
        # Nobody came: the environment is broken, not a node.
        (("python: command not found\n", ""), (), []),
    ],
)  # fmt: skip
def test_who_is_blamed_for_a_job_that_failed(tmp_path, logs, arrived, accused):
    one = ended(tmp_path, *logs, arrived=arrived)
    blame(one)
    assert [(row.node, row.kind) for row in read_accusations(one.run_dir)] == accused


def test_arrivals_of_an_earlier_job_count_for_nothing(tmp_path):
    one = ended(tmp_path, GREETING, "", arrived=(0, 1))
    word = {"rank": 1, "node": "n2", "job": "6", "restart": 0}
    write_json(one.folder / "arrived" / "rank00001.json", word)
    blame(one)
    assert [(row.node, row.kind) for row in read_accusations(one.run_dir)] == [("n2", "arrival")]


def journal(run_dir, **ids):
    write_json(
        RunPaths(run_dir).jobs,
        {"jobs": {name: {"ids": list(found)} for name, found in ids.items()}},
    )


def test_later_links_and_phases_are_told_whom_to_avoid(tmp_path):
    one = ended(tmp_path, GREETING + CRASH, "", arrived=(0,))
    journal(one.run_dir, motion=["6", "7", "8"], evaluate=["9"], odd=["1; rm"])
    blame(one)
    assert orders(one, ["n1", "n2", "n3"]) == ["exclude 8 n2", "exclude 9 n2"]
    assert orders(one, ["n1", "n2"]) == []  # two are needed: there is none to spare
    assert orders(one, []) == []


def test_a_chain_that_gets_nowhere_is_cancelled_with_its_reason(tmp_path, capsys):
    one = ended(tmp_path, "hpc-stres train: unexpected ValueError: the script is wrong\n")
    journal(one.run_dir, motion=["5", "6", "7", "8", "9"], evaluate=["10"])
    for link, job in enumerate(("5", "6", "7")):
        assert orders(one, ["n1", "n2", "n3"]) == []
        row = {
            "event": "begin", "phase": "motion", "job": job, "restart": 0, "link": link, "submission": link + 1,
            "time": 5.0 + link, "submitted": None, "nodes": ["n1"], "ranks": 1, "gpus": 0, "mark": 0,
        }  # fmt: skip
        write_begin(one.run_dir, row)
    assert orders(one, ["n1", "n2", "n3"]) == ["cancel 8", "cancel 9"]
    said = capsys.readouterr().err
    assert (
        "motion: 3 attempts in a row ended without a new checkpoint (jobs 5, 6, 7); the last: "
        in said
    )
    assert "the script is wrong" in said
    assert said.startswith("hpc-stres submit: "), "status finds what commands of ours say"
    write_text(
        RunPaths(one.run_dir).config,
        dump(tiny_config(tmp_path, "cluster.restarts_without_checkpoint=4")),
    )
    assert orders(one, ["n1", "n2", "n3"]) == []
    assert orders(dataclasses.replace(one, status=0), []) == []


def test_an_attempt_of_which_no_rank_began_is_written_down_all_the_same(tmp_path, monkeypatch):
    one = ended(tmp_path, "python: command not found\n", arrived=())
    monkeypatch.setenv("SLURM_JOB_NAME", "stres-motion-0123abcd-012345-4-1")
    aftermath._write_down(one, 30.0)
    aftermath._write_down(one, 31.0)
    (found,) = read_attempts(one.run_dir)
    assert (found.job, found.link, found.submission, found.code) == ("7", 1, 4, 1)
    assert found.end - found.begin == pytest.approx(30, abs=5)


def test_the_words_of_srun_are_found_in_the_log_of_an_array_too(tmp_path, monkeypatch):
    """That is in the folder of the runs: also where the script's Python has srun for its stderr."""
    run = tmp_path / "study" / "seed1"
    write_sealed(RunPaths(tmp_path / "study").runs, {"runs": ["seed1"], "shared_store": True})
    write_text(tmp_path / "study" / "logs" / "motion" / "7_3_0_log.out", CRASH)
    write_text(run / "logs" / "motion" / "7_3_0_log.out", GREETING)
    word = {"rank": 0, "node": "n1", "job": "7_3", "restart": 0}
    write_json(run / "logs" / "motion" / "arrived" / "rank00000.json", word)
    monkeypatch.setattr("sys.stdin", io.StringIO("n1\nn2\nn3\n"))
    assert aftermath.main([str(run), "motion", "7_3", "0", "1", "n[1-2]", "9", "1"]) == 0
    assert [(row.node, row.kind) for row in read_accusations(run)] == [("n2", "crash")]


PYXIS = ["cluster.image=/images/our own.sqsh", "cluster.image_with=pyxis"]


@pytest.mark.parametrize(
    ("status", "marker", "told", "image"),
    [
        (1, False, "8 n2\n", []), (0, False, "", []), (0, True, "8 n2\n", []),
        # The node's own Python is not asked: it need not be there.
        (1, False, "8 n2\n", PYXIS),
    ],
)  # fmt: skip
def test_the_lines_of_a_job_script_carry_the_orders_out(tmp_path, status, marker, told, image):
    """The real lines in a real shell; sinfo and scontrol are stand-ins, and srun where it runs
    images."""
    one = ended(tmp_path, GREETING + CRASH, "", arrived=(0,))
    journal(one.run_dir, motion=["7", "8"])
    blame(one)
    tools = tmp_path / "bin"
    tools.mkdir()
    srun = f'while [ "$1" != python3 ]; do echo "$1" >> "{tmp_path}/srun"; shift; done; shift\n'
    for name, text in {
        "sinfo": 'printf "n1\\nn2\\nn3\\nn1\\n"', "scontrol": f'echo "${{2#*=}} ${{3#*=}}" >> "{tmp_path}/told"',
        "srun": f'{srun}exec "{sys.executable}" "$@"', "python3": "exit 99",
    }.items():  # fmt: skip
        (tools / name).write_text(f"#!/bin/sh\n{text}\n")
        (tools / name).chmod(0o755)
    if marker:
        (tmp_path / "marker").touch()
    job = Job("motion", (("train",),), (), 2, 1, 0, 5)
    python = slurm._python_of_script(tiny_config(tmp_path, *image).cluster, one.run_dir, job, ROOT)
    lines = [f"status={status}", f"marker='{tmp_path}/marker'"]
    lines += script_lines(python, one.run_dir, job)
    environment = {
        **os.environ, "PATH": f"{tools}:{os.environ['PATH']}", "SLURM_JOB_ID": "7", "SLURM_JOB_NODELIST": "n[1-2]",
        "SLURM_JOB_PARTITION": "main",
    }  # fmt: skip
    subprocess.run(["bash", "-c", "\n".join(lines)], check=True, env=environment)
    assert ((tmp_path / "told").read_text() if (tmp_path / "told").is_file() else "") == told
    assert [a.get("code") for a in read_rows(RunPaths(one.run_dir).attempts)[0]] == (
        [75 if marker else status] if told else []
    )
    if image:
        words = (tmp_path / "srun").read_text().splitlines()
        assert {"--overlap", "--ntasks=1", "--container-image=/images/our own.sqsh"} <= set(words)
        (mounts,) = [word for word in words if word.startswith("--container-mounts=")]
        assert f"{one.run_dir}:{one.run_dir}" in mounts


def test_a_word_of_the_machine_is_not_found_in_srunss_list_of_deaths():
    assert aftermath.machine_word("srun: error: n2: task 1: Bus error\n") == (None, "")
    assert aftermath.machine_word("x\nOSError: [Errno 5] Input/output error: 'a'\n")[0] == "disk"


# -- attempts --------------------------------------------------


def attempt(job, link, submission, mark, restart=0, phase="motion"):
    return Attempt(job, restart, phase, link, submission, float(job), None, ("n1",), 1, 0, mark)


@pytest.mark.parametrize(
    ("before", "now", "vain"),
    [
        ([("1", 0, 1, 0), ("2", 1, 2, 0)], ("3", 2, 3, 0), 2),
        ([("1", 0, 1, 0), ("2", 1, 2, 50)], ("3", 2, 3, 50), 1),  # the first made a checkpoint
        ([("1", 0, 1, 0), ("2", 1, 2, 0)], ("3", 2, 3, 10), 0),
        ([("1", 0, 1, 0), ("2", 1, 2, 0)], ("3", 0, 3, 0), 0),  # submitted again
        ([("1", 0, 1, 0), ("2", 0, 2, 0)], ("3", 1, 3, 0), 1),
        ([("1", 0, 1, 0, 0), ("1", 0, 1, 0, 1)], ("1", 0, 1, 0, 2), 2),  # queued again
        ([("1", 0, 1, 0, 0, "appearance")], ("3", 2, 3, 0), 0),
    ],
)
def test_attempts_without_a_new_checkpoint_are_counted_within_a_submission(before, now, vain):
    job, link, submission, mark, *restart = now
    rows = [attempt(*one) for one in before]
    restart = restart[0] if restart else 0
    assert len(without_progress(rows, "motion", job, restart, mark, link, submission)) == vain


def test_the_first_word_on_an_end_counts(tmp_path):
    row = {
        "event": "begin", "phase": "motion", "job": "7", "restart": 0, "link": 0, "submission": 1, "time": 5.0,
        "submitted": None, "nodes": ["n1"], "ranks": 1, "gpus": 0, "mark": 0,
    }  # fmt: skip
    write_begin(tmp_path, row)
    assert read_attempts(tmp_path)[0].code is None
    write_end(tmp_path, "7", 0, 75)
    write_end(tmp_path, "7", 0, 1)
    write_end(tmp_path, "8", 0, 1)
    (found,) = read_attempts(tmp_path)
    assert (found.code, found.nodes) == (75, ("n1",))


# -- what a node says against itself --------------------------------------------------


def test_a_folder_that_takes_no_file_is_named(tmp_path, monkeypatch):
    assert node_health.disk_fault(tmp_path) == ""
    assert list(tmp_path.iterdir()) == []
    assert "No such file" in node_health.disk_fault(tmp_path / "none")
    monkeypatch.setenv("TMPDIR", str(tmp_path / "none"))
    assert node_health.complaints(False)[0][0] == "disk"

    def full(descriptor):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    assert node_health.disk_fault(tmp_path) == f"{tmp_path} is full: No space left on device"


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("0, 0\n1, 0\n", 0), ("0, 0\n1, 3\n", 1), ("0, [N/A]\n", 0), ("", 0), ("Unable to determine\n", 0),
        ("0, 1\n1, 2\n", 2),
    ],
)  # fmt: skip
def test_memory_errors_of_gpus_are_read(text, found):
    assert len(node_health.parse_counts("ecc.errors.uncorrected.volatile.total", text)) == found


def test_a_node_that_died_under_a_job_is_written_down_when_somebody_looks(tmp_path, monkeypatch):
    row = {
        "event": "begin", "phase": "motion", "job": "7", "restart": 0, "link": 0, "submission": 1, "time": 5.0,
        "submitted": None, "nodes": ["n1", "n2"], "ranks": 2, "gpus": 0, "mark": 0,
    }  # fmt: skip
    write_begin(tmp_path, row)
    said = Answer(
        0, "hpc_stres_node|n1|idle|none\nnoise\nhpc_stres_node|n2|down*|Not responding\n", ""
    )
    monkeypatch.setattr(node_failures.scheduler, "call", lambda words, seconds: said)
    monkeypatch.setattr("shutil.which", lambda name: f"/made/up/{name}")
    node_failures.note(tmp_path, {"7": ("RUNNING", "")}, 1.0)
    assert read_accusations(tmp_path) == []
    node_failures.note(tmp_path, {"7": ("NODE_FAIL", "")}, 1.0)
    node_failures.note(tmp_path, {"7": ("NODE_FAIL", "")}, 1.0)
    (one,) = read_accusations(tmp_path)
    assert (one.node, one.kind, one.reason) == (
        "n2",
        "node_fail",
        "n2: down (Not responding) under job 7",
    )
    assert json.loads((tmp_path / "nodes.jsonl").read_text())["job_nodes"] == 2
