"""What became of a run's time: made-up attempts and rows, each second in one place; and what status tells of it."""

import dataclasses
import os
import random
import time

import pytest

from hpc_stres.config.loading import dump
from hpc_stres.evaluation.report import costs as box
from hpc_stres.evaluation.report.facts import Facts
from hpc_stres.launch import status, status_notes
from hpc_stres.launch.scheduler import Answer
from hpc_stres.run.accounting import account, by_kind
from hpc_stres.run.bad_nodes import accuse
from hpc_stres.run.ledger import append_row
from hpc_stres.run.paths import RunPaths, write_json, write_sealed, write_text
from hpc_stres.run.product import metrics_line
from tests.conftest import TINY, run_python, tiny_config

START = 1_700_000_000.0


class Story:
    """Writes what jobs would have written, on a clock of its own."""

    def __init__(self, root, *overrides):
        self.config, self.paths, self.rows = (
            tiny_config(root / "data", *overrides),
            RunPaths(root / "run"),
            [],
        )
        write_text(self.paths.config, dump(self.config))

    def begin(self, at, job="1", phase="motion", nodes=("n1", "n2"), submitted=None, restart=0):
        append_row(self.paths.attempts, {
            "event": "begin", "phase": phase, "job": job, "restart": restart, "link": 0, "submission": 1,
            "time": START + at, "submitted": None if submitted is None else START + submitted,
            "nodes": list(nodes), "ranks": len(nodes), "gpus": 0, "mark": 0,
        })  # fmt: skip

    def end(self, at, code=0, job="1", restart=0):
        row = {"event": "end", "job": job, "restart": restart, "code": code, "time": START + at}
        append_row(self.paths.attempts, row)

    def row(self, step, at, seconds, checkpoint_s=0.0):
        self.rows.append(
            {"step": step, "time": START + at, "seconds": seconds, "checkpoint_s": checkpoint_s}
        )
        write_text(self.paths.phase("motion").metrics, "".join(map(metrics_line, self.rows)))

    def account(self, now=10_000.0):
        return account(self.config.phases, self.paths.root, START + now)


def test_each_kind_of_time_is_found(tmp_path):
    story = Story(tmp_path)
    story.begin(100, submitted=40)  # 60 s in the queue
    story.row(5, 140, 10, checkpoint_s=0.4)  # 30 s of start-up; 5 steps, 2 s of saving
    story.row(10, 150, 10)
    story.end(170, code=1)  # killed 20 s after its last kept step
    story.begin(200, job="2", submitted=40)  # 30 s after what it waited for
    story.row(15, 225, 5)
    story.end(230, job="2")  # 5 s for the last checkpoint
    story.begin(290, job="3", phase="evaluate", submitted=40, nodes=["n1"])
    story.end(300, job="3")
    found = story.account()
    motion = found.jobs["motion"]
    assert dict(by_kind(motion)) == pytest.approx(
        {"queue": 90, "start-up": 50, "training": 23, "checkpoints": 7, "done again": 20}
    )
    assert dict(by_kind(found.jobs["evaluate"])) == pytest.approx({"queue": 60, "evaluation": 10})
    assert motion.node_hours == pytest.approx(2 * (70 + 30) / 3600)
    assert found.nodes["n1"].node_hours == pytest.approx(110 / 3600)
    assert found.nodes["n2"].lost_node_hours == pytest.approx(77 / 3600)
    assert found.planned_node_hours is None
    write_sealed(
        story.paths.plan, {"phases": [{"hours": 2.0, "nodes": 4}, {"hours": 0.5, "nodes": 4}]}
    )
    assert story.account().planned_node_hours == 10.0
    story.paths.plan.write_text("{")
    assert story.account().planned_node_hours is None


@pytest.mark.parametrize("seed", range(20))
def test_every_second_of_an_attempt_is_in_one_place(tmp_path, seed):
    draw, story, now, step = random.Random(seed), Story(tmp_path), 0.0, 0
    spent = 0.0
    for number in range(draw.randint(1, 5)):
        begin = now + draw.uniform(0, 50)
        story.begin(begin, job=str(number), submitted=draw.choice([None, 0, begin - 5]))
        now = begin
        for _ in range(draw.randint(0, 4)):
            seconds, step = draw.uniform(0.1, 20), step + draw.randint(1, 9)
            now += seconds + draw.choice([0, draw.uniform(0, 5)])
            story.row(step, now, seconds, draw.uniform(0, 0.2))
        now += draw.uniform(0, 30)
        story.end(now, draw.choice([0, 1, 75, 137]), job=str(number))
        spent += now - begin
    assert story.account().total.busy == pytest.approx(spent)


def test_an_attempt_that_was_killed_ends_where_it_was_heard_last(tmp_path):
    story = Story(tmp_path)
    story.begin(0)
    story.row(5, 60, 10)
    assert story.account(now=90).total.busy == pytest.approx(90)  # it may still run
    assert story.account().total.busy == pytest.approx(60)
    story.begin(500, restart=1)
    story.end(510, restart=1)
    assert story.account().total.busy == pytest.approx(70)


def test_nothing_written_is_nothing_told_and_damage_is_left_out(tmp_path):
    story = Story(tmp_path)
    assert story.account().jobs == {}
    assert status_notes.costs(story.config.phases, story.paths.root) == []
    story.begin(0)
    story.end(3600)
    with story.paths.attempts.open("a") as stream:
        stream.write('{"event": "begin"}\n[]\nnonsense\n')
    line, *_ = status_notes.costs(story.config.phases, story.paths.root)
    assert line.startswith("node-hours: 2.00 used; 1 attempts: start-up 1:00:00")


def test_the_report_draws_it(tmp_path):
    story = Story(tmp_path)
    facts = Facts(story.config, story.paths, {}, {}, {})
    assert box.box(facts) == ""
    story.begin(0, nodes=["n1", "<b>"], submitted=-60)
    story.row(5, 1800, 900)
    story.end(3600)
    page = box.box(facts)
    assert "2.00 node-hours used" in page
    assert "&lt;b&gt;" in page
    assert "<b>" not in page
    widths = [float(part.split('"')[0]) for part in page.split('y="0" width="')[1:]]
    assert sum(widths) == pytest.approx(100, abs=0.1)
    assert widths[0] == pytest.approx(100 * 60 / 3660, abs=0.01)


# -- status --------------------------------------------------


def test_status_names_nodes_late_ranks_and_costs(tmp_path):
    story = Story(tmp_path)
    accuse(story.paths.root, "disk", "n2: /tmp is full", "n2", job="7", restart=0, job_nodes=2)
    story.begin(0)
    story.end(3600)
    result = run_python("launch/status.py", story.paths.root)
    assert result.returncode == 0, result.stderr
    assert "node n2 is left out for 24 h since" in result.stdout
    assert "n2: /tmp is full" in result.stdout
    assert "node-hours: 2.00 used" in result.stdout


def test_of_many_runs_each_is_a_row(tmp_path):
    for number in range(4):
        story = Story(tmp_path / f"run{number}")
        log = story.paths.logs / "motion" / "1_0_log.out"
        write_text(
            log,
            "[Gloo] Rank 0 is connected\nhpc-stres train: the disk is full\n"
            if number == 2
            else "x\n",
        )
    (tmp_path / "not_a_run").mkdir()
    places = [tmp_path / f"run{number}" / "run" for number in range(4)]
    result = run_python("launch/status.py", *places, tmp_path / "not_a_run")
    assert result.returncode == 0, result.stderr
    lines = result.stdout.splitlines()
    assert [line.split()[0] for line in lines[2:6]] == [str(place) for place in places]
    assert "the disk is full" in lines[4]
    assert "Gloo" not in result.stdout
    whole = run_python("launch/status.py", "--whole", *places).stdout
    assert whole.count("st_resnet_star") == 4
    assert run_python("launch/status.py", tmp_path / "not_a_run", tmp_path / "none").returncode == 2
    watched = run_python("launch/status.py", "--watch", *places, timeout=60)
    assert watched.returncode == 1
    assert "no job of this run waits or runs" in watched.stderr


def test_why_a_job_waits_and_when_it_is_expected(monkeypatch):
    calls = []

    def call(words, seconds):
        calls.append(words)
        if "--start" in words:
            return Answer(0, "noise\nstart|12|2030-01-05T14:30:00\nstart|13|N/A\n", "")
        row = "hpc_stres_row|{}|PENDING|Priority|me|x|y|row_ends\n"
        return Answer(0, row.format(12) + row.format(13), "")

    monkeypatch.setattr(status.scheduler, "call", call)
    monkeypatch.setattr("shutil.which", lambda name: f"/made/up/{name}")
    asked = status.Scheduler(["12", "13"], 1.0)
    states = asked.states()
    asked.states()
    assert len(calls) == 2, "a scheduler is asked once a minute"
    assert (
        status.job_state(["12"], states, asked.starts)
        == "pending (Priority, starts about Sat 14:30)"
    )
    assert status.job_state(["13"], states, asked.starts) == "pending (Priority)"


@pytest.mark.parametrize(
    ("ages", "words"),
    [
        ([1, 2, 3], []),
        ([1, 100, 3], ["late: rank 1 on n1"]),
        ([200, 200, 300], ["no rank has finished a step for 3:20"]),
        ([], []),
    ],
)
def test_late_ranks_are_told_by_name(ages, words):
    now = time.time()
    beats = [{"time": now - age, "node": f"n{rank}"} for rank, age in enumerate(ages)]
    found = status_notes.late([*beats, {}], now)
    assert len(found) == len(words)
    assert all(word in line for word, line in zip(words, found, strict=True))


# -- shapes of jobs --------------------------------------------------


def plans(config, hours):
    from hpc_stres.tools.planner import PhasePlan

    blank = PhasePlan(
        name="", nodes=config.cluster.nodes, ranks=1, steps=3600, arithmetic_s=0.0, feed_s=0.0, all_reduce_s=0.0,
        read_bytes_per_s=0.0, on_cpu=True,
    )  # fmt: skip
    return [
        dataclasses.replace(blank, name=name, arithmetic_s=value) for name, value in hours.items()
    ]


def test_a_shape_costs_its_work_its_starts_and_its_waits(tmp_path):
    from hpc_stres.launch.shapes import cost

    config = tiny_config(
        tmp_path, "cluster.nodes=2", "cluster.minutes=120", "phases.st_resnet.starts_from=[motion]"
    )
    made = plans(config, {"motion": 1.0, "appearance": 1.0, "st_resnet": 4.0, "evaluate": 0.5})
    found = cost(config, made, 3600.0)
    # Wall times are planned with a quarter in reserve: one job each, three links for four hours.
    assert found.jobs == 6
    assert found.node_hours == pytest.approx(2 * (6.5 + 6 * 10 / 60))
    # The longest way: motion, st_resnet, evaluate; each of their five jobs starts and waits anew.
    assert found.days == pytest.approx((5.5 + 5 * (10 / 60) + 5 * 1.0) / 24)
    assert cost(config, made, None).days == pytest.approx((5.5 + 5 * (10 / 60)) / 24)


def test_shapes_that_are_none_are_refused_before_anything_is_measured(tmp_path):
    from hpc_stres.errors import ConfigError
    from hpc_stres.launch.shapes import parse_shapes

    config = tiny_config(tmp_path)
    for text in (
        "4x4",
        "0x1x10",
        "1x1x0",
        "axbxc",
        "1x1x10,",
        "-1x1x1",
        "1x1x9999999",
        "1x1x1 " * 60,
    ):
        with pytest.raises(ConfigError, match="--shapes"):
            parse_shapes(text, config.cluster)
    assert len(parse_shapes("auto", config.cluster)) == 4
    assert len(parse_shapes("1x1x10, 1x1x10,2x0x5", config.cluster)) == 2
    result = run_python("-m", "hpc_stres", "plan", "--config", TINY, "--shapes", "4x4")
    assert result.returncode == 2
    assert "expected NODESxGPUSxMINUTES" in result.stderr


def test_the_queues_own_estimate_is_taken_where_it_gives_one(tmp_path, monkeypatch):
    from hpc_stres.config.loading import load_config
    from hpc_stres.launch import shapes

    config = load_config(TINY, [f"data.root={tmp_path}", "cluster.nodes=2"], "slurm")
    monkeypatch.setattr("shutil.which", lambda name: f"/made/up/{name}")
    said = Answer(0, "", "sbatch: Job 7 to start at 2030-01-01T02:00:00 using 2 processors\n")
    asked = []
    monkeypatch.setattr(
        shapes.scheduler, "call", lambda words, seconds: asked.append(words) or said
    )
    now = time.mktime((2030, 1, 1, 0, 30, 0, 0, 0, -1))
    assert shapes.queue_seconds(config, "motion", now) == 5400.0
    assert asked[0][:2] == ["sbatch", "--test-only"]
    assert not os.path.exists(asked[0][2])
    said = Answer(1, "", "sbatch: error: invalid partition\n")
    assert shapes.queue_seconds(config, "motion", now) is None
    said = Answer(0, "", "")
    assert shapes.queue_seconds(config, "motion", now) is None


def test_progress_that_is_not_there_takes_no_line(tmp_path):
    story = Story(tmp_path)
    write_json(story.paths.phase("motion").heartbeat(0), {"time": time.time() - 500, "node": "n1"})
    assert status_notes.notes(story.config, story.paths.root, {"motion": False}) == []
    (line,) = status_notes.notes(story.config, story.paths.root, {"motion": True})
    assert line.startswith("motion: no rank has finished a step for 8:")
