"""Each job is submitted exactly once, whatever the scheduler says, hides or does not say."""

import itertools
import json
import os
from contextlib import suppress

import pytest

from hpc_stres.errors import ConfigError, UserError
from hpc_stres.launch import survey
from hpc_stres.launch.cancel import cancel_run
from hpc_stres.launch.chain import submit
from hpc_stres.launch.jobs import Job, JobCall
from hpc_stres.launch.journal import Journal, folder_tag
from hpc_stres.launch.scheduler import Answer, NoAnswer, Token
from hpc_stres.run.paths import RunPaths
from tests.unit.submission.conftest import DENIED, FAILED

MOTION = ["evaluate", "motion"]


SACCT = {"says FAILED": "FAILED", "says RUNNING": "RUNNING", "knows nothing": "", "fails": FAILED,
         "is silent": NoAnswer("silent")}  # fmt: skip
SCONTROL = {
    "shows it": None,
    "denies it": DENIED,
    "fails": FAILED,
    "says nothing": Answer(0, "", ""),
}


@pytest.mark.parametrize(("accounting", "control"), list(itertools.product(SACCT, SCONTROL)))
def test_a_job_that_squeue_hides_is_gone_only_when_somebody_says_so(
    fake, request_of, accounting, control
):
    submit(request_of())
    assert fake.alive() == MOTION
    fake.hidden = set(fake.jobs)
    if isinstance(SACCT[accounting], str):
        fake.accounts = {number: SACCT[accounting] for number in fake.jobs if SACCT[accounting]}
    else:
        fake.answers["sacct"] = SACCT[accounting]
    whole = fake.scontrol
    fake.scontrol = lambda words: (
        whole(words) if "config" in words else (SCONTROL[control] or whole(words))
    )
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
        seen.append(
            (
                state["asked"]["phase"],
                [i for job in state["jobs"].values() for i in job["ids"]],
                number,
            )
        )

    fake.on_sbatch = look
    submit(request_of("motion,appearance"))
    assert [(phase, known) for phase, known, _ in seen] == [
        ("motion", []), ("appearance", ["100"]), ("evaluate", ["100", "101"]),
    ]  # fmt: skip
    assert json.loads(path.read_text())["asked"] is None


def test_each_job_has_a_name_and_a_comment_of_its_own(fake, request_of):
    submit(request_of("all", "cluster.links=3"))
    assert len(fake.jobs) == 15
    assert (
        len({job["name"] for job in fake.jobs.values()})
        == len({j["comment"] for j in fake.jobs.values()})
        == 15
    )
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
        "", "afterany:100", "afterany:101", "afterok:102", "afterok:102,afterany:103",
        "afterok:102,afterany:104",
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
    assert sorted(number for job in journal.jobs.values() for number in job.ids) == sorted(
        fake.jobs
    )


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
    with pytest.raises(
        UserError, match=r"interrupted at evaluate\nSubmitted so far: 100\."
    ) as caught:
        submit(request_of())
    assert caught.value.code == 130
    fake.on_sbatch = lambda number: None
    submit(request_of())
    assert fake.alive() == MOTION
    assert len(fake.jobs) == 2


def test_the_same_folder_under_another_name_is_the_same_run(
    fake, request_of, tmp_path, monkeypatch
):
    submit(request_of())
    (tmp_path / "mount").symlink_to(tmp_path / "run")
    # A link stands for a second mount here, whose name no resolving turns into the first one.
    monkeypatch.setattr("pathlib.Path.resolve", lambda path: path.absolute())
    submit(request_of(run_dir=tmp_path / "mount"))
    assert len(fake.jobs) == 2


def test_a_refusal_takes_back_what_was_submitted_with_it(fake, request_of):
    def refuse_third(words):
        return (
            Answer(1, "", "sbatch: error: Invalid partition")
            if len(fake.jobs) == 2
            else fake.sbatch(words)
        )

    fake.answers["sbatch"] = refuse_third
    with pytest.raises(
        UserError,
        match=r"refused evaluate: .*Invalid partition\nNothing of this submission was left",
    ):
        submit(request_of("motion,appearance"))
    assert fake.alive() == []


@pytest.mark.parametrize(
    "change", ["cluster.nodes=2", "training.max_steps=7", "seed=9", "training.engine=deepspeed"]
)
def test_settings_that_would_not_take_effect_are_refused(fake, request_of, change):
    submit(request_of("motion"))
    for phases in ("motion", "motion,appearance"):
        with pytest.raises(
            UserError,
            match=rf"in the queue with other settings: {change.split('=')[0]}: .* there, ",
        ):
            submit(request_of(phases, change))
    submit(request_of("motion"))
    assert fake.alive() == MOTION
    for job in fake.jobs.values():
        job["state"] = "FAILED"
    if change.startswith("cluster"):
        submit(request_of("motion", change))
        assert fake.alive() == MOTION


def test_three_splits_wait_for_one_job_that_prepares(fake, request_of, tmp_path, monkeypatch):
    monkeypatch.setattr("hpc_stres.launch.chain.store_ready", lambda config: False)
    root = tmp_path / "three"
    for split in (1, 2, 3, 1, 2, 3):
        submit(
            request_of("motion", f"data.split={split}", run_dir=root / f"split{split}", group=root)
        )
    assert fake.alive() == ["evaluate"] * 3 + ["motion"] * 3 + ["prepare"]
    assert [job["after"] for job in fake.jobs.values() if ":motion:" in job["comment"]] == [
        "afterok:100"
    ] * 3
    # A split that is submitted by itself later waits for it as well.
    submit(request_of("appearance", "data.split=2", run_dir=root / "split2"))
    assert fake.alive().count("prepare") == 1
    cancel_run(root)
    assert fake.alive() == []


def test_a_job_that_was_given_up_is_ended_and_does_nothing_should_it_come_late(
    fake, request_of, tmp_path, capsys
):
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


def test_a_controller_that_is_away_for_a_while_is_waited_for(fake, request_of, monkeypatch):
    """sbatch and the first looks after it fail; then the queue does not have the job, and it is
    submitted."""
    away, pauses = [], []
    monkeypatch.setattr("hpc_stres.launch.once.RETRY_SECONDS", (2, 5, 15))
    monkeypatch.setattr("hpc_stres.launch.once.time.sleep", pauses.append)

    def down(words):
        away.append(words[0])
        if words[0] == "sbatch" and len(away) == 1:
            return FAILED
        return FAILED if 1 < len(away) <= 4 and words[0] == "squeue" else None

    fake.answers["sbatch"] = down
    fake.answers["squeue"] = lambda words: down(words) if away else None
    submit(request_of("motion", "cluster.scheduler_seconds=6"))
    assert fake.alive() == ["evaluate", "motion"]
    assert [pause for pause in pauses if pause >= 2] == [2, 5, 6, 2]


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
    assert [job["after"] for job in fake.jobs.values()][2:] == [
        "afterany:100",
        "afterok:102,afterany:101",
    ]


def test_a_run_of_another_cluster_or_another_user_is_not_taken_for_ended(
    fake, request_of, monkeypatch
):
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
    with pytest.raises(
        ConfigError, match="starts from motion and appearance, which are neither done nor"
    ) as caught:
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
