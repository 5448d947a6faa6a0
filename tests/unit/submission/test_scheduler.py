"""Asking Slurm: answers that are whole or none, commands that hang, what is passed on, and what
status says."""

import json
import os
import subprocess
import sys

import pytest

from hpc_stres.config.loading import dump, load_config
from hpc_stres.errors import ConfigError, UserError
from hpc_stres.launch import scheduler, slurm, survey
from hpc_stres.launch.chain import submit
from hpc_stres.launch.jobs import Job, last_message
from hpc_stres.launch.scheduler import NoAnswer, Row, Token, parse_queue
from hpc_stres.run.paths import RunPaths, write_json, write_sealed, write_text
from tests.conftest import ROOT, TINY, run_python
from tests.waiting import wait_until


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
    for text in (
        "welcome\n",
        f"{mine}welcome\n",
        f"error\n{mine}",
        "hpc_stres_row|7|PENDING|row_ends\n",
    ):
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
    script = f"sleep 3600 & echo $! > '{tmp_path}/pid'; wait"
    # On a slow machine it may be ended before it has started anything.
    for seconds in (0.5, 5, 50):
        with pytest.raises(NoAnswer, match="bash took more than"):
            scheduler.call(["bash", "-c", script], seconds)
        if (tmp_path / "pid").is_file():
            break
    pid = (tmp_path / "pid").read_text().strip()
    wait_until(lambda: not is_running(pid), "the end of what it started")


def test_what_a_command_said_before_it_took_too_long_is_told():
    """sbatch waits where a cluster takes no more jobs, and says so."""
    script = "echo first >&2; echo 'sbatch: error: Slurm temporarily unable to accept job' >&2; exec sleep 60"
    for seconds in (1, 10, 60):  # a slow machine may have said nothing yet
        with pytest.raises(NoAnswer, match=f"bash took more than {seconds} s") as silence:
            scheduler.call(["bash", "-c", script], seconds)
        if "it said" in str(silence.value):
            break
    first, *rest = str(silence.value).splitlines()
    assert first.endswith("it said: sbatch: error: Slurm temporarily unable to accept job")
    assert len(rest) == 1


def is_running(pid):
    try:
        return open(f"/proc/{pid}/stat").read().split()[2] != "Z"
    except FileNotFoundError:
        return False


def test_an_orphaned_sbatch_keeps_the_next_submit_waiting(tmp_path):
    path = tmp_path / "sbatch.lock"
    with survey.inherited_lock(path, 0.0) as descriptor:
        orphan = subprocess.Popen(["sleep", "3600"], pass_fds=(descriptor,))
    try:
        with (
            pytest.raises(UserError, match="an sbatch of an earlier submit"),
            survey.inherited_lock(path, 0.3),
        ):
            pass
    finally:
        orphan.kill()
        orphan.wait()
    with survey.inherited_lock(path, 0.0):
        pass


def test_a_profile_passes_its_own_options_on(tmp_path):
    overrides = [
        "cluster.sbatch={mail-type: END, requeue: false, kill_me: 3}",
        "cluster.srun_args=[--mpi=pmi2]",
    ]
    job = Job("motion", (), (), 1, 1, 0, 10)

    def text(*more):
        config = load_config(TINY, more, "slurm")
        return slurm.sbatch_text(
            config, tmp_path, job, "", Token("0123abcd-4567ef", "motion", 0, 1)
        )

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
    log.write_text(
        "hpc-stres train: [Gloo] Rank 0 is connected to 1 peer ranks\nhpc-stres is a package\n"
    )
    assert last_message(log) == ""
    log.write_text(
        "hpc-stres train: the loss is not finite[Gloo] Rank 1 is connected\n[Gloo] Rank 0 is connected\n"
    )
    assert last_message(log) == "hpc-stres train: the loss is not finite"
    assert last_message(tmp_path / "none") == ""


def dead_commands(folder, script):
    for name in ("sbatch", "squeue", "sacct", "scontrol", "scancel", "sinfo", "srun"):
        path = folder / name
        path.write_text(f"#!/bin/bash\n{script}\n")
        path.chmod(0o755)
    return {"PATH": f"{folder}:{os.environ['PATH']}"}


@pytest.mark.parametrize(
    "script", ["echo Unable to contact slurm controller >&2; exit 1", "sleep 30", "echo hello"]
)
def test_a_controller_that_is_down_is_exit_1_and_one_sentence(tmp_path, script):
    environment = dead_commands(tmp_path, script)
    words = [
        "--config",
        TINY,
        "--cluster",
        "slurm",
        "--run-dir",
        tmp_path / "run",
        "--phase",
        "motion",
    ]
    words += ["--set", f"data.root={tmp_path}", "--set", "cluster.scheduler_seconds=1"]
    result = run_python("launch/submit.py", *words, env=environment)
    assert result.returncode == 1, result.stderr
    assert "nothing was submitted" in result.stderr
    assert 1 <= len(result.stderr.splitlines()) <= 3
    write_json(RunPaths(tmp_path / "run").jobs, {})
    config = load_config(TINY, ["cluster.scheduler_seconds=1"], "slurm")
    write_text(RunPaths(tmp_path / "run").config, dump(config))
    result = run_python("launch/submit.py", "--cancel", tmp_path / "run", env=environment)
    assert result.returncode == 1, result.stderr
    assert "Traceback" not in result.stderr


def test_watching_a_copied_run_ends_by_itself(fake, request_of, tmp_path):
    submit(request_of())
    run_dir = request_of().run_dir
    subprocess.run(["cp", "-r", run_dir, tmp_path / "copy"], check=True)
    os.environ["PATH"], path = f"{os.path.dirname(sys.executable)}:/bin", os.environ["PATH"]
    try:
        result = run_python("launch/status.py", tmp_path / "copy", "--watch")
    finally:
        os.environ["PATH"] = path
    assert result.returncode == 1
    assert "no job of this run waits or runs" in result.stderr


def test_a_damaged_plan_is_a_sentence(request_of, tmp_path):
    request = request_of()
    for text in ("{", "[]", '{"hours": []}', '{"hours": {"motion": "soon"}}'):
        RunPaths(request.run_dir).plan.parent.mkdir(exist_ok=True)
        RunPaths(request.run_dir).plan.write_text(text)
        if text.startswith('{"'):
            write_sealed(RunPaths(request.run_dir).plan, json.loads(text))
        with pytest.raises(
            UserError, match=r"plan\.json: (damaged|it has no checksum|it holds no hours)"
        ):
            request.jobs({})


def test_the_commands_work_from_another_folder(tmp_path):
    words = [ROOT / "launch" / "submit.py", "--config", TINY, "--cluster", "slurm", "--dry-run"]
    result = run_python(
        *words, "--run-dir", "a run", "--set", f"data.root={tmp_path}", cwd=tmp_path
    )
    assert result.returncode == 0, result.stderr
    assert f"{tmp_path}/a run/logs/motion" in result.stdout
