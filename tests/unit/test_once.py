"""Exactly-once submission against a made-up Slurm with many faults; tests/slurm has the same against a real one."""

import itertools
import json
import os
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import pytest

from hpc_stres.configfile import dump, load_config
from hpc_stres.errors import ConfigError, UserError
from hpc_stres.runpaths import RunPaths, write_json, write_text
from launch import scheduler, slurm, survey
from launch.cancel import cancel_run
from launch.chain import Request, submit
from launch.jobs import Job, JobCall, last_message
from launch.journal import Journal, folder_tag
from launch.scheduler import Answer, NoAnswer, Row, Token, parse_queue
from tests.conftest import ROOT, TINY, run_python

DENIED = Answer(1, "", "slurm_load_jobs error: Invalid job id specified")
FAILED = Answer(1, "", "Unable to contact slurm controller (connect failure)")


class MadeUpSlurm:
    """Jobs in memory, answered for as the real commands do; `answers` replaces a command's answer."""

    def __init__(self):
        self.jobs, self.accounts, self.answers, self.calls = {}, {}, {}, []
        self.hidden, self.on_sbatch, self.cluster = set(), lambda number: None, "here"

    def call(self, words, seconds, keep_open=()):
        self.calls.append(words)
        answer = self.answers.get(words[0])
        if callable(answer):
            answer = answer(words)
        if isinstance(answer, Exception):
            raise answer
        return answer or getattr(self, words[0])(words)

    def squeue(self, words):
        asked = words[words.index("-j") + 1].split(",") if "-j" in words else list(self.jobs)
        shown = [number for number in asked if number in self.jobs and number not in self.hidden]
        return Answer(0, "".join(self.row(number) for number in shown), "")

    def row(self, number):
        job = self.jobs[number]
        return f"hpc_stres_row|{number}|{job['state']}|{job['reason']}|me|{job['name']}|{job['comment']}|row_ends\n"

    def sacct(self, words):
        asked = words[-1].split(",")
        return Answer(0, "".join(f"{n}|{s}|0:0\n" for n, s in self.accounts.items() if n in asked), "")

    def scontrol(self, words):
        if "config" in words:
            return Answer(0, f"ClusterName             = {self.cluster}\n", "")
        if len(words) > 4:
            known = self.jobs.get(words[4])
            return Answer(0, f"JobId={words[4]} JobState={known['state']} x\n", "") if known else DENIED
        return Answer(0, "".join(f"JobId={n} JobName={j['name']} UserId\n" for n, j in self.jobs.items()), "")

    def sbatch(self, words):
        number = str(100 + len(self.jobs))
        options = dict(word[2:].split("=", 1) for word in words[2:4])
        script = Path(words[4]).read_text(encoding="utf-8")
        after = [line.split("=", 1)[1] for line in script.splitlines() if line.startswith("#SBATCH --dependency")]
        self.jobs[number] = {
            "state": "PENDING", "reason": "Priority", "name": options["job-name"], "comment": options["comment"],
            "after": "".join(after),
        }  # fmt: skip
        self.on_sbatch(number)
        return Answer(0, f"{number}\n", "")

    def scancel(self, words):
        for number in words[1:]:
            if number in self.jobs and (words[1] != "--state=PENDING" or self.jobs[number]["state"] == "PENDING"):
                self.jobs[number]["state"] = "CANCELLED"
        return Answer(0, "", "")

    def alive(self):
        """Tokens of jobs that wait or run."""
        over = scheduler.ENDED_STATES
        return sorted(job["comment"].split(":")[2] for job in self.jobs.values() if job["state"] not in over)


@pytest.fixture
def fake(monkeypatch):
    made_up = MadeUpSlurm()
    monkeypatch.setattr(scheduler, "call", made_up.call)
    monkeypatch.setattr("shutil.which", lambda name: f"/made/up/{name}")
    monkeypatch.setattr(survey, "SETTLE_SECONDS", 0.02)
    monkeypatch.setattr(survey, "SETTLE_POLL_SECONDS", 0.01)
    monkeypatch.setattr("launch.once.RETRY_SECONDS", (0, 0))
    return made_up


@pytest.fixture
def request_of(tmp_path, monkeypatch):
    """Makes requests for the tiny config, whose store counts as prepared."""
    monkeypatch.setattr("launch.chain.store_ready", lambda config: True)

    def make(phases="motion", *overrides, run_dir=tmp_path / "run", **more):
        config = load_config(TINY, [f"data.root={tmp_path}", *overrides], "slurm")
        return Request(config, run_dir, phases, **more)

    return make


MOTION = ["evaluate", "motion"]


def test_a_token_is_read_from_the_comment_and_else_from_the_name():
    token = Token("0123abcd-4567ef", "st_resnet", 2, 17)
    assert Token.find(f"other|{token.comment}") == token
    assert Token.find(f"{token.name}|(null)") == token
    assert Token.find("stres-motion|hpc_stres is nice") is None


def test_an_answer_of_squeue_is_whole_or_none():
    token = Token("0123abcd-4567ef", "motion", 0, 1)
    mine = f"hpc_stres_row|7|PENDING|Priority|me|{token.name}|{token.comment}|row_ends\n"
    odd = "hpc_stres_row|8_[1-4]|RUNNING|None|her|a|b|two\nlines|x|row_ends\n"
    assert parse_queue("") == []
    assert parse_queue(f"CLUSTER: one\n{mine}{odd}") == [
        Row("7", "PENDING", "Priority", "me", token), Row("8_[1-4]", "RUNNING", "None", "her", None)
    ]  # fmt: skip
    for length in range(1, len(mine)):
        with pytest.raises(NoAnswer, match="makes no sense"):
            parse_queue(odd + mine[:length])
    for text in ("welcome\n", f"{mine}welcome\n", f"error\n{mine}", "hpc_stres_row|7|PENDING|row_ends\n"):
        with pytest.raises(NoAnswer, match="makes no sense"):
            parse_queue(text)


@pytest.mark.parametrize(
    ("state", "expected"),
    [("PENDING", "alive"), ("RUNNING", "alive"), ("SIGNALING", "alive"), ("INVENTED_LATER", "alive"),
     ("COMPLETING", "ending"), ("FAILED", ""), ("COMPLETED", ""), ("NODE_FAIL", ""), ("TIMEOUT", "")],
)  # fmt: skip
def test_a_state_that_is_not_known_to_be_an_end_is_alive(state, expected):
    row = Row("1", state, "None", "me", None)
    assert (row.is_alive, row.is_ending) == (expected == "alive", expected == "ending")


SACCT = {"says FAILED": "FAILED", "says RUNNING": "RUNNING", "knows nothing": "", "fails": FAILED,
         "is silent": NoAnswer("silent")}  # fmt: skip
SCONTROL = {"shows it": None, "denies it": DENIED, "fails": FAILED, "says nothing": Answer(0, "", "")}


@pytest.mark.parametrize(("accounting", "control"), list(itertools.product(SACCT, SCONTROL)))
def test_a_job_that_squeue_hides_is_gone_only_when_somebody_says_so(fake, request_of, accounting, control):
    submit(request_of())
    assert fake.alive() == MOTION
    fake.hidden = set(fake.jobs)
    if isinstance(SACCT[accounting], str):
        fake.accounts = {number: SACCT[accounting] for number in fake.jobs if SACCT[accounting]}
    else:
        fake.answers["sacct"] = SACCT[accounting]
    whole = fake.scontrol
    fake.scontrol = lambda words: whole(words) if "config" in words else (SCONTROL[control] or whole(words))
    if accounting == "says FAILED" or control == "denies it":
        fake.hidden.clear()
        for job in fake.jobs.values():
            job["state"] = "FAILED"
        fake.hidden = set(fake.jobs)
        submit(request_of())
        assert len(fake.jobs) == 4
    elif control == "shows it":
        submit(request_of())
        assert len(fake.jobs) == 2
    else:
        with pytest.raises(UserError, match=r"nobody says that it is gone; nothing was submitted"):
            submit(request_of())
        assert len(fake.jobs) == 2
        for number in fake.jobs:
            fake.jobs[number]["state"] = "FAILED"
        submit(request_of(forget="all"))
        assert len(fake.jobs) == 4


def test_the_intention_is_on_disk_before_sbatch_and_each_id_before_the_next(fake, request_of):
    seen = []
    path = RunPaths(request_of().run_dir).jobs

    def look(number):
        state = json.loads(path.read_text())
        seen.append((state["asked"]["phase"], [i for job in state["jobs"].values() for i in job["ids"]], number))

    fake.on_sbatch = look
    submit(request_of("motion,appearance"))
    assert [(phase, known) for phase, known, _ in seen] == [
        ("motion", []), ("appearance", ["100"]), ("evaluate", ["100", "101"]),
    ]  # fmt: skip
    assert json.loads(path.read_text())["asked"] is None


def test_each_job_has_a_name_and_a_comment_of_its_own(fake, request_of):
    submit(request_of("all", "cluster.links=3"))
    assert len(fake.jobs) == 15
    assert len({job["name"] for job in fake.jobs.values()}) == len({j["comment"] for j in fake.jobs.values()}) == 15
    tag = folder_tag(request_of().run_dir)
    assert all(Token.find(job["name"]) == Token.find(job["comment"]) for job in fake.jobs.values())
    assert all(Token.find(job["name"]).run.startswith(f"{tag}-") for job in fake.jobs.values())


def test_a_chain_that_was_cut_short_gets_its_missing_links_only(fake, request_of):
    class Killed(BaseException):
        pass

    def die(number):
        if number == "101":
            raise Killed

    fake.on_sbatch = die
    with pytest.raises(Killed):
        submit(request_of("motion", "cluster.links=3"))
    fake.on_sbatch = lambda number: None
    submit(request_of("motion", "cluster.links=3"))
    assert fake.alive() == ["evaluate"] * 3 + ["motion"] * 3
    assert [fake.jobs[str(n)]["after"] for n in range(100, 106)] == [
        "", "afterany:100", "afterany:101", "afterok:102", "afterany:103", "afterany:104",
    ]  # fmt: skip


@pytest.mark.parametrize(
    "answer", [NoAnswer("silent"), Answer(1, "", "Socket timed out on send/recv operation"), Answer(0, "Thanks\n", ""),
               Answer(0, "7\n8\n", ""), Answer(1, "", "Batch job submission failed: Invalid qos specification")],
)  # fmt: skip
def test_a_job_that_was_accepted_without_a_word_is_not_submitted_again(fake, request_of, answer):
    def accept_but(words):
        fake.sbatch(words)
        return answer

    fake.answers["sbatch"] = accept_but
    submit(request_of("motion,appearance", "cluster.links=2"))
    assert fake.alive() == ["appearance"] * 2 + ["evaluate"] * 2 + ["motion"] * 2
    assert len(fake.jobs) == 6
    journal = Journal.read(request_of().run_dir)
    assert sorted(number for job in journal.jobs.values() for number in job.ids) == sorted(fake.jobs)


@pytest.mark.parametrize("name", ["ask", "accept"])
def test_a_full_disk_loses_no_job(fake, request_of, monkeypatch, name):
    kept = getattr(Journal, name)

    def fail(self, *arguments):
        if len(fake.jobs) == 1:
            raise OSError(28, "No space left on device")
        return kept(self, *arguments)

    monkeypatch.setattr(Journal, name, fail)
    with pytest.raises(OSError, match="No space left"):
        submit(request_of("motion,appearance"))
    monkeypatch.setattr(Journal, name, kept)
    submit(request_of("motion,appearance"))
    assert fake.alive() == ["appearance", *MOTION]
    assert len(fake.jobs) == 3


def test_ctrl_c_tells_what_was_submitted(fake, request_of):
    def interrupt(number):
        if number == "101":
            raise KeyboardInterrupt

    fake.on_sbatch = interrupt
    with pytest.raises(UserError, match=r"interrupted at evaluate\nSubmitted so far: 100\.") as caught:
        submit(request_of())
    assert caught.value.code == 130
    fake.on_sbatch = lambda number: None
    submit(request_of())
    assert fake.alive() == MOTION
    assert len(fake.jobs) == 2


def test_the_same_folder_under_another_name_is_the_same_run(fake, request_of, tmp_path, monkeypatch):
    submit(request_of())
    (tmp_path / "mount").symlink_to(tmp_path / "run")
    # A link stands for a second mount here, whose name no resolving turns into the first one.
    monkeypatch.setattr("pathlib.Path.resolve", lambda path: path.absolute())
    submit(request_of(run_dir=tmp_path / "mount"))
    assert len(fake.jobs) == 2


def test_a_refusal_takes_back_what_was_submitted_with_it(fake, request_of):
    def refuse_third(words):
        return Answer(1, "", "sbatch: error: Invalid partition") if len(fake.jobs) == 2 else fake.sbatch(words)

    fake.answers["sbatch"] = refuse_third
    with pytest.raises(UserError, match=r"refused evaluate: .*Invalid partition\nNothing of this submission was left"):
        submit(request_of("motion,appearance"))
    assert fake.alive() == []


@pytest.mark.parametrize("change", ["cluster.nodes=2", "training.max_steps=7", "seed=9", "training.engine=deepspeed"])
def test_settings_that_would_not_take_effect_are_refused(fake, request_of, change):
    submit(request_of("motion"))
    for phases in ("motion", "motion,appearance"):
        with pytest.raises(UserError, match=rf"in the queue with other settings: {change.split('=')[0]}: .* there, "):
            submit(request_of(phases, change))
    submit(request_of("motion"))
    assert fake.alive() == MOTION
    for job in fake.jobs.values():
        job["state"] = "FAILED"
    if change.startswith("cluster"):
        submit(request_of("motion", change))
        assert fake.alive() == MOTION


def test_three_splits_wait_for_one_job_that_prepares(fake, request_of, tmp_path, monkeypatch):
    monkeypatch.setattr("launch.chain.store_ready", lambda config: False)
    root = tmp_path / "three"
    for split in (1, 2, 3, 1, 2, 3):
        submit(request_of("motion", f"data.split={split}", run_dir=root / f"split{split}", group=root))
    assert fake.alive() == ["evaluate"] * 3 + ["motion"] * 3 + ["prepare"]
    assert [job["after"] for job in fake.jobs.values() if ":motion:" in job["comment"]] == ["afterok:100"] * 3
    # A split that is submitted by itself later waits for it as well.
    submit(request_of("appearance", "data.split=2", run_dir=root / "split2"))
    assert fake.alive().count("prepare") == 1
    cancel_run(root)
    assert fake.alive() == []


def test_a_job_that_was_given_up_is_ended_and_does_nothing_should_it_come_late(fake, request_of, tmp_path, capsys):
    fake.answers["sbatch"] = Answer(1, "", "Socket timed out on send/recv operation")
    with pytest.raises(NoAnswer, match="the queue does not have it"):
        submit(request_of())
    assert not fake.jobs
    del fake.answers["sbatch"]
    journal = Journal.read(request_of().run_dir)
    late = Token(journal.run, "motion", 0, 1)
    assert journal.is_abandoned(late)
    submit(request_of())
    assert fake.alive() == MOTION
    fake.jobs["99"] = {"state": "PENDING", "reason": "", "name": late.name, "comment": late.comment}
    submit(request_of())
    assert fake.jobs["99"]["state"] == "CANCELLED"
    assert fake.alive() == MOTION
    job = Job("motion", (("train", "--never"),), (), 1, 1, 0, 10)
    run_dir = request_of().run_dir
    environment = os.environ.copy()
    try:
        assert JobCall(job, {}, tmp_path / "progress", run_dir, late)() == "replaced"
    finally:
        os.environ.clear()
        os.environ.update(environment)
    assert "a later submit has replaced this job" in capsys.readouterr().out


def test_jobs_that_can_never_start_are_ended_before_others_take_their_place(fake, request_of):
    submit(request_of())
    for job in fake.jobs.values():
        job["reason"] = "DependencyNeverSatisfied"
    submit(request_of())
    assert fake.alive() == MOTION
    assert len(fake.jobs) == 4


def test_new_jobs_wait_for_completing_ones(fake, request_of):
    submit(request_of())
    for job in fake.jobs.values():
        job["state"] = "COMPLETING"
    submit(request_of())
    assert [job["after"] for job in fake.jobs.values()][2:] == ["afterany:100", "afterok:102,afterany:101"]


def test_a_run_of_another_cluster_or_another_user_is_not_taken_for_ended(fake, request_of, monkeypatch):
    submit(request_of())
    fake.cluster = "elsewhere"
    with pytest.raises(UserError, match="were submitted on the cluster here, this is elsewhere"):
        submit(request_of())
    fake.cluster = "here"
    fake.hidden = set(fake.jobs)
    whole = fake.scontrol
    fake.scontrol = lambda words: whole(words) if "config" in words else DENIED
    monkeypatch.setattr(survey, "this_user", lambda: "her")
    with pytest.raises(NoAnswer, match=r"which .* submitted: squeue does not list it"):
        submit(request_of())
    assert len(fake.jobs) == 2


@pytest.mark.parametrize("command", ["squeue", "scontrol", "sbatch"])
def test_a_silent_command_is_an_error_and_changes_nothing(fake, request_of, command):
    fake.answers[command] = NoAnswer("the scheduler does not answer: silent")
    with pytest.raises(NoAnswer) as caught:
        submit(request_of())
    assert caught.value.code == 1
    assert not fake.jobs
    del fake.answers[command]
    submit(request_of())
    assert fake.alive() == MOTION


def test_damage_to_the_journal_is_named_and_never_forgotten(fake, request_of):
    submit(request_of())
    path = RunPaths(request_of().run_dir).jobs
    whole = path.read_bytes()
    for position in range(0, len(whole), 31):
        path.write_bytes(whole[:position] + bytes([whole[position] ^ 1]) + whole[position + 1 :])
        with suppress(UserError):  # a changed blank is no damage
            submit(request_of())
        assert len(fake.jobs) == 2, position
    for text in (b"", b"{}", b"[]", b'{"motion": {"ids": ["1"], "after": []}}', b"\xff\xfe"):
        path.write_bytes(text)
        with pytest.raises(UserError, match=r"jobs\.json: "):
            submit(request_of())
        assert len(fake.jobs) == 2


def test_missing_parents_are_refused_by_name(fake, request_of):
    chain = "phases.st_resnet.starts_from=[motion, appearance]"
    with pytest.raises(ConfigError, match="starts from motion and appearance, which are neither done nor") as caught:
        submit(request_of("st_resnet", chain))
    assert "--phase motion,appearance,st_resnet (or" in str(caught.value)
    with pytest.raises(ConfigError, match="--phase motion,appearance,st_resnet,st_resnet_star "):
        submit(request_of("st_resnet_star", chain))
    assert not request_of().run_dir.exists()
    submit(request_of("motion", chain))
    with pytest.raises(ConfigError, match="starts from appearance, which is neither") as caught:
        submit(request_of("st_resnet", chain))
    submit(request_of("appearance,st_resnet", chain))
    assert fake.alive() == ["appearance", "evaluate", "evaluate", "motion", "st_resnet"]


def test_settings_of_the_users_own_do_not_hide_jobs(monkeypatch):
    monkeypatch.setenv("SQUEUE_STATES", "RUNNING")
    monkeypatch.setenv("SQUEUE_USERS", "nobody")
    monkeypatch.setenv("SBATCH_WAIT", "1")
    monkeypatch.setenv("SBATCH_ACCOUNT", "mine")
    out = scheduler.call(["env"], 10).out
    assert "SQUEUE_" not in out
    assert "SBATCH_WAIT" not in out
    assert "SBATCH_ACCOUNT=mine" in out


def test_a_command_that_takes_too_long_is_ended_with_all_that_it_started(tmp_path):
    script = f"sleep 60 & echo $! > '{tmp_path}/pid'; wait"
    with pytest.raises(NoAnswer, match="bash took more than"):
        scheduler.call(["bash", "-c", script], 0.5)
    pid = (tmp_path / "pid").read_text().strip()
    deadline = time.monotonic() + 5
    while is_running(pid) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not is_running(pid)


def is_running(pid):
    try:
        return open(f"/proc/{pid}/stat").read().split()[2] != "Z"
    except FileNotFoundError:
        return False


def test_an_orphaned_sbatch_keeps_the_next_submit_waiting(tmp_path):
    path = tmp_path / "sbatch.lock"
    with survey.inherited_lock(path, 0.0) as descriptor:
        orphan = subprocess.Popen(["sleep", "60"], pass_fds=(descriptor,))
    try:
        with pytest.raises(UserError, match="an sbatch of an earlier submit"), survey.inherited_lock(path, 0.3):
            pass
    finally:
        orphan.kill()
        orphan.wait()
    with survey.inherited_lock(path, 0.0):
        pass


def test_a_profile_passes_its_own_options_on(tmp_path):
    overrides = ["cluster.sbatch={mail-type: END, requeue: false, kill_me: 3}", "cluster.srun_args=[--mpi=pmi2]"]
    job = Job("motion", (), (), 1, 1, 0, 10)

    def text(*more):
        config = load_config(TINY, more, "slurm")
        return slurm.sbatch_text(config, tmp_path, job, "", Token("0123abcd-4567ef", "motion", 0, 1))

    assert "--wckey" not in text()
    assert "#SBATCH --requeue" in text()
    own = text(*overrides)
    assert "#SBATCH --mail-type=END\n" in own
    assert "#SBATCH --kill-me=3\n" in own
    assert "--requeue" not in own
    assert "--mpi=pmi2 " in own
    assert "#SBATCH --wckey=lab\n" in text("cluster.sbatch.wckey=lab")
    for key in ("comment", "job_name", "dependency", "array"):
        with pytest.raises(ConfigError, match=r"submit\.py sets that itself"):
            text(f"cluster.sbatch.{key}=x")


def test_only_messages_of_ours_are_quoted(tmp_path):
    log = tmp_path / "log"
    log.write_text("hpc-stres train: [Gloo] Rank 0 is connected to 1 peer ranks\nhpc-stres is a package\n")
    assert last_message(log) == ""
    log.write_text("hpc-stres train: the loss is not finite[Gloo] Rank 1 is connected\n[Gloo] Rank 0 is connected\n")
    assert last_message(log) == "hpc-stres train: the loss is not finite"
    assert last_message(tmp_path / "none") == ""


def test_cancel_does_not_believe_an_empty_answer(fake, request_of, capsys):
    submit(request_of())
    fake.hidden = set(fake.jobs)
    cancel_run(request_of().run_dir)
    assert fake.alive() == []
    assert capsys.readouterr().out.count("cancelled") == 2
    fake.answers |= {"sacct": FAILED}
    fake.scontrol = lambda words: FAILED
    with pytest.raises(NoAnswer, match="nobody says that it is gone"):
        cancel_run(request_of().run_dir)


def dead_commands(folder, script):
    for name in ("sbatch", "squeue", "sacct", "scontrol", "scancel", "sinfo", "srun"):
        path = folder / name
        path.write_text(f"#!/bin/bash\n{script}\n")
        path.chmod(0o755)
    return {"PATH": f"{folder}:{os.environ['PATH']}"}


@pytest.mark.parametrize("script", ["echo Unable to contact slurm controller >&2; exit 1", "sleep 30", "echo hello"])
def test_a_controller_that_is_down_is_exit_1_and_one_sentence(tmp_path, script):
    environment = dead_commands(tmp_path, script)
    words = ["--config", TINY, "--cluster", "slurm", "--run-dir", tmp_path / "run", "--phase", "motion"]
    words += ["--set", f"data.root={tmp_path}", "--set", "cluster.scheduler_seconds=1"]
    result = run_python("launch/submit.py", *words, env=environment, timeout=60)
    assert result.returncode == 1, result.stderr
    assert "nothing was submitted" in result.stderr
    assert 1 <= len(result.stderr.splitlines()) <= 3
    write_json(RunPaths(tmp_path / "run").jobs, {})
    config = load_config(TINY, ["cluster.scheduler_seconds=1"], "slurm")
    write_text(RunPaths(tmp_path / "run").config, dump(config))
    result = run_python("launch/submit.py", "--cancel", tmp_path / "run", env=environment, timeout=150)
    assert result.returncode == 1, result.stderr
    assert "Traceback" not in result.stderr


def test_watching_a_copied_run_ends_by_itself(fake, request_of, tmp_path):
    submit(request_of())
    run_dir = request_of().run_dir
    subprocess.run(["cp", "-r", run_dir, tmp_path / "copy"], check=True)
    os.environ["PATH"], path = f"{os.path.dirname(sys.executable)}:/bin", os.environ["PATH"]
    try:
        result = run_python("launch/status.py", tmp_path / "copy", "--watch", timeout=60)
    finally:
        os.environ["PATH"] = path
    assert result.returncode == 1
    assert "no job of this run waits or runs" in result.stderr


def test_a_damaged_plan_is_a_sentence(request_of, tmp_path):
    request = request_of()
    for text in ("{", "[]", '{"hours": []}', '{"hours": {"motion": "soon"}}'):
        RunPaths(request.run_dir).plan.parent.mkdir(exist_ok=True)
        RunPaths(request.run_dir).plan.write_text(text)
        with pytest.raises(UserError, match=r"plan\.json: damaged"):
            request.jobs({})


def test_the_commands_work_from_another_folder(tmp_path):
    words = [ROOT / "launch" / "submit.py", "--config", TINY, "--cluster", "slurm", "--dry-run"]
    result = run_python(*words, "--run-dir", "a run", "--set", f"data.root={tmp_path}", cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    assert f"{tmp_path}/a run/logs/motion" in result.stdout
