"""Wall times, signals, preemption, failures and dead nodes on a real Slurm: nothing is lost, and status says why."""

import re

import pytest

from tests.slurm.conftest import person

LONG = "[[1000000, 1.0e-3]]"


@pytest.fixture(scope="module")
def long_run(slurm, data_root, tmp_path_factory):
    """Six links of one phase that has no end in sight, each of one minute; it runs beside the other tests."""
    with person(slurm, data_root, tmp_path_factory.mktemp("long") / "run") as user:
        long = {
            "phases__motion__optimise__schedule": LONG,
            "training__checkpoint_every_steps": 100000,
        }
        user.submit(
            "--split", "1", nodes=1, phase="motion", cluster__minutes=1, cluster__links=6, **long
        )
        yield user


def resumed_at(user, phase):
    return [int(step) for step in re.findall(r"resumes from step (\d+)", user.logs(phase))]


def test_a_failed_phase_cancels_its_successors_and_status_says_why(long_run, user):
    parents = {"phases__st_resnet__starts_from": "[motion, appearance]"}
    user.submit(nodes=1, phases__motion__optimise__schedule="[[5, 1.0e+30]]", **parents)
    jobs = {name: numbers[0] for name, numbers in user.jobs().items()}
    states = dict(zip(jobs, user.wait_states(*jobs.values()), strict=True))
    assert states == {
        "motion": "FAILED", "appearance": "COMPLETED", "st_resnet": "CANCELLED", "st_resnet_star": "CANCELLED",
        "evaluate": "CANCELLED",
    }  # fmt: skip
    status = user.status()
    assert "the loss is not finite" in status, status
    assert re.search(r"motion +\d+ +failed", status), status
    assert "cancelled: motion failed" in status, status
    assert not (user.run_dir / "phases" / "st_resnet").exists()


def test_preemption_requeues_and_the_phase_goes_on(long_run, user):
    user.submit(nodes=1, phase="motion", phases__motion__optimise__schedule=LONG)
    user.wait_step("motion", 10)
    (job,) = user.jobs()["motion"]
    node = user.slurm.run("squeue", "-h", "-j", job, "-o", "%N").stdout.strip()
    urgent = user.slurm.run(
        "sbatch",
        "--parsable",
        "-p",
        "urgent",
        "-w",
        node,
        "--exclusive",
        "-o",
        "/dev/null",
        "--wrap",
        "sleep 1",
    ).stdout.strip()
    assert user.wait_states(urgent) == ["COMPLETED"]
    user.slurm.wait(lambda: resumed_at(user, "motion"), "the requeued job")
    (step,) = resumed_at(user, "motion")
    assert step >= 10
    user.wait_step("motion", step + 5)
    shown = user.slurm.run("scontrol", "-o", "show", "job", job).stdout
    assert "Restarts=1" in shown


def test_a_node_that_dies_is_survived_with_the_others(long_run, user):
    user.submit(nodes=2, phase="motion", phases__motion__optimise__schedule=LONG, cluster__links=3)
    user.wait_step("motion", 10)
    first = user.jobs()["motion"][0]
    nodes = user.slurm.run("scontrol", "show", "hostnames", user.slurm.run(
        "squeue", "-h", "-j", first, "-o", "%N").stdout.strip()).stdout.split()  # fmt: skip
    dead = nodes[-1]
    user.slurm.kill_node(dead)
    try:
        user.slurm.wait(lambda: resumed_at(user, "motion"), "the next link")
        user.wait_step("motion", resumed_at(user, "motion")[-1] + 5)
        running = user.slurm.run("squeue", "-h", "-t", "R", "-o", "%i %N").stdout
        mine = [line for line in running.splitlines() if line.split()[0] in user.jobs()["motion"]]
        assert mine, user.slurm.run("squeue").stdout
    finally:
        user.slurm.start_node(dead)
        user.slurm.run("scontrol", "update", f"nodename={dead}", "state=resume", check=False)


def test_a_wall_time_that_is_too_short_is_continued_by_the_next_link(long_run):
    user = long_run
    links = user.jobs()["motion"]
    user.slurm.wait(
        lambda: list((user.run_dir / "logs" / "motion").glob(f"{links[1]}_0_log.out")),
        "link two",
    )
    first = next((user.run_dir / "logs" / "motion").glob(f"{links[0]}_0_log.out")).read_text()
    # Slurm's warning and the clock ask for the same; with so short a wall time the warning comes first.
    # The link is requeued when its node dies, so that its log may hold more than one run: the last one counts.
    stopped = re.findall(
        r"stopped at step (\d+): (?:SIGUSR2 received|the wall time is nearly used up)", first
    )
    assert stopped, first[-2000:]
    # Another test may have taken the first link's node away: only what the second link says counts.
    second = next((user.run_dir / "logs" / "motion").glob(f"{links[1]}_0_log.out"))
    user.slurm.wait(lambda: "resumes from step" in second.read_text(), "the second link's start")
    assert re.search(r"resumes from step (\d+)", second.read_text()).group(1) == stopped[-1]
    assert user.slurm.state(links[0]) == "FAILED"
    assert "75:0" in user.slurm.run("scontrol", "-o", "show", "job", links[0]).stdout


def test_scancel_signal_saves_and_a_later_submit_finishes(long_run):
    user = long_run
    running = user.slurm.run("squeue", "-h", "-t", "R", "-o", "%i").stdout.split()
    (job,) = set(running) & set(user.jobs()["motion"])
    user.wait_step("motion", resumed_at(user, "motion")[-1] + 5)
    user.slurm.run("scancel", "--signal=USR2", job)
    assert user.wait_states(job) == ["FAILED"]
    stopped = re.findall(r"stopped at step (\d+): SIGUSR2 received", user.logs("motion"))
    assert stopped
    user.slurm.run("scancel", *user.jobs()["motion"], *user.jobs()["evaluate"], check=False)
    user.slurm.wait(
        lambda: not {n for links in user.jobs().values() for n in links} & set(user.slurm.queue()),
        "the end of all links",
    )
    steps = max([int(step) for step in stopped] + resumed_at(user, "motion")) + 10
    user.submit(
        nodes=1, phase="motion", training__max_steps=steps, phases__motion__optimise__schedule=LONG
    )
    jobs = user.jobs()
    assert user.wait_states(jobs["motion"][0], jobs["evaluate"][0]) == ["COMPLETED"] * 2
    assert (user.run_dir / "results.json").is_file()


def test_links_that_find_nothing_to_do_end_at_once(user):
    user.submit(nodes=1, phase="motion", cluster__links=3)
    links = user.jobs()["motion"]
    assert user.wait_states(*links) == ["COMPLETED"] * 3
    assert user.logs("motion").count("motion: done already; nothing left for this job") == 2


def test_where_the_profile_says_so_the_same_job_is_queued_again(user):
    user.submit(
        nodes=1,
        phase="motion",
        phases__motion__optimise__schedule=LONG,
        cluster__continuation="requeue",
    )
    (job,) = user.jobs()["motion"]
    user.wait_step("motion", 10)
    user.slurm.run("scancel", "--signal=USR2", job)
    user.slurm.wait(lambda: resumed_at(user, "motion"), "the requeued job")
    stopped = int(
        re.search(r"stopped at step (\d+): SIGUSR2 received", user.logs("motion")).group(1)
    )
    assert resumed_at(user, "motion") == [stopped]
    assert "Restarts=1" in user.slurm.run("scontrol", "-o", "show", "job", job).stdout
    assert not list((user.run_dir / "logs" / "motion").glob("*.continue.*"))


def test_preparing_that_runs_into_its_wall_time_goes_on_in_the_next_link(user, tmp_path):
    """The warning before the wall time, sent by hand: the job leaves, and its next link finishes the store."""
    root = tmp_path / "own data"
    user.submit(nodes=1, phase="motion", data__root=root, cluster__links=2, data__binding__train_videos=160,
                data__binding__frames=64)  # fmt: skip
    first, second = user.jobs()["prepare"]
    user.slurm.wait(lambda: list(root.glob("stores/*/parts/*.tar")), "the first prepared videos")
    user.slurm.run("scancel", "--signal=USR2", first)
    assert user.wait_states(first, second) == ["FAILED", "COMPLETED"], user.logs("prepare")[-2000:]
    assert "75:0" in user.slurm.run("scontrol", "-o", "show", "job", first).stdout
    (manifest,) = root.glob("stores/*/manifest.json")
    assert manifest.is_file()
