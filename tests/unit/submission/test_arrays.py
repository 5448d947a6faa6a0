"""Runs that are submitted together: one array a phase, each run an element, whatever has happened before."""

import dataclasses

import pytest

from hpc_stres.errors import ConfigError, UserError
from hpc_stres.launch import scheduler, slurm
from hpc_stres.launch.cancel import cancel_run
from hpc_stres.launch.chain import submit
from hpc_stres.launch.journal import Journal
from hpc_stres.launch.study import Study, submit_study
from hpc_stres.launch.submit import seeds_of
from hpc_stres.run.paths import RunPaths, runs_together
from tests.unit.submission.conftest import FAILED
from tests.unit.untrained import finish_without_weights


@pytest.fixture
def study(request_of, tmp_path, fake):
    """Makes studies of some seeds."""

    def make(*seeds, phases="motion,appearance", at_once=None, **more):
        folder = tmp_path / "study"
        requests = [
            request_of(phases, f"seed={seed}", run_dir=folder / f"seed{seed}", group=folder, **more)
            for seed in seeds
        ]
        return Study(folder, requests, at_once)

    return make


def shapes(fake, since=0):
    """Each sbatch: phase, indices, what it waits for."""
    found = {}
    for number, job in fake.jobs.items():
        array, _, index = number.partition("_")
        if int(array) >= since and job["state"] == "PENDING":
            key = (job["comment"].split(":")[2], job["after"])
            found.setdefault((array, *key), []).append(index)
    return [(phase, "".join(indices), after) for (_, phase, after), indices in found.items()]


def ids(run_dir, phase):
    return Journal.read(run_dir).jobs[phase].ids


def test_each_phase_is_one_array_and_each_run_knows_its_element(fake, study, capsys):
    made = study(3, 5, 9)
    submit_study(made)
    assert shapes(fake) == [
        ("motion", "012", ""), ("appearance", "012", ""), ("evaluate", "012", "aftercorr:100,aftercorr:103"),
    ]  # fmt: skip
    assert [ids(made.folder / f"seed{seed}", "motion") for seed in (3, 5, 9)] == [
        (f"100_{index}",) for index in range(3)
    ]
    submit_study(study(3, 5, 9))
    assert len(fake.jobs) == 9
    assert runs_together(made.folder) == [made.folder / f"seed{seed}" for seed in (3, 5, 9)]
    cancel_run(made.folder)
    assert not fake.alive()
    assert capsys.readouterr().out.count("cancelled") == 9
    # What was cancelled before it began is known to have ended, by squeue alone, and is submitted again.
    fake.answers["scontrol"] = lambda words: None if "config" in words else FAILED
    submit_study(study(3, 5, 9))
    assert fake.alive() == ["appearance"] * 3 + ["evaluate"] * 3 + ["motion"] * 3


def test_a_run_that_fails_is_submitted_again_alone_and_holds_nobody_up(fake, study):
    made = study(1, 2, 3)
    submit_study(made)
    fake.jobs["100_1"]["state"] = "FAILED"
    fake.jobs["106_1"].update(state="PENDING", reason="DependencyNeverSatisfied")
    submit_study(study(1, 2, 3))
    # Its appearance is in the queue still: the new evaluation waits for it, and for the new motion.
    assert shapes(fake, since=109) == [
        ("motion", "1", ""), ("evaluate", "1", "aftercorr:103,aftercorr:109"),
    ]  # fmt: skip
    assert fake.jobs["106_1"]["state"] == "CANCELLED"
    assert ids(made.folder / "seed2", "motion") == ("109_1",)


def test_runs_that_are_at_different_points_are_arrays_that_wait_for_the_same(fake, study):
    made = study(1, 2, 3)
    settings = "phases.st_resnet.starts_from=[motion]"
    made.requests = [
        dataclasses.replace(r, config=study_config(r, settings), phases="motion,st_resnet")
        for r in made.requests
    ]
    first = made.requests[0]
    finish_without_weights(first.config, RunPaths(first.run_dir), "motion")
    submit_study(made)
    assert shapes(fake) == [
        ("motion", "12", ""), ("st_resnet", "0", ""), ("st_resnet", "12", "aftercorr:100"),
        ("evaluate", "0", "aftercorr:102"), ("evaluate", "12", "aftercorr:103"),
    ]  # fmt: skip


def study_config(request, *settings):
    from hpc_stres.config.loading import load_config
    from tests.conftest import TINY

    root = f"data.root={request.config.data.root}"
    return load_config(TINY, [root, f"seed={request.config.seed}", *settings], "slurm")


def test_an_index_never_changes_its_run(fake, study):
    submit_study(study(5, 6))
    submit_study(study(1, 6, 5))
    assert shapes(fake, since=106)[0] == ("motion", "2", "")
    assert ids(study(1).folder / "seed1", "motion") == ("106_2",)
    assert ids(study(1).folder / "seed6", "motion") == ("100_1",)


def test_at_once_limits_one_array_and_lets_one_run_at_a_time(fake, study):
    made = study(1, 2, 3, at_once=2)
    submit_study(made)
    text = next((made.folder / "logs" / "motion").glob("*.sh")).read_text()
    assert "#SBATCH --array=0-2%2\n" in text
    assert [after for _, _, after in shapes(fake)] == [
        "", "afterany:100", "aftercorr:100,aftercorr:103,afterany:103",
    ]  # fmt: skip


def test_links_of_an_array_wait_for_the_whole_one_before(fake, study):
    made = study(1, 2)
    made.requests = [
        dataclasses.replace(r, config=study_config(r, "cluster.links=2"), phases="motion")
        for r in made.requests
    ]
    submit_study(made)
    assert [after for _, _, after in shapes(fake)] == [
        "", "afterany:100", "aftercorr:102", "aftercorr:102,afterany:104",
    ]  # fmt: skip
    assert ids(made.folder / "seed1", "motion") == ("100_0", "102_0")


@pytest.mark.parametrize(
    "limit",
    ["MaxArraySize = 2\n", "MaxArraySize=9\nSchedulerParameters = a,max_array_tasks=2,b=3\n"],
)
def test_more_runs_than_an_array_may_have_are_several_arrays(fake, study, limit):
    """Each run is the element of its place in its array, and waits for its own."""
    fake.answers["scontrol"] = lambda words: (
        scheduler.Answer(0, f"ClusterName = here\n{limit}", "") if "config" in words else None
    )
    made = study(1, 2, 3, 4, 5, phases="motion")
    submit_study(made)
    assert shapes(fake) == [
        ("motion", "01", ""), ("motion", "01", ""), ("motion", "0", ""),
        ("evaluate", "01", "aftercorr:100"), ("evaluate", "01", "aftercorr:102"), ("evaluate", "0", "aftercorr:104"),
    ]  # fmt: skip
    assert ids(made.folder / "seed4", "motion") == ("102_1",)
    assert ids(made.folder / "seed5", "motion") == ("104_0",)
    submit_study(study(1, 2, 3, 4, 5, phases="motion"))
    assert len(fake.jobs) == 10
    # Another limit tomorrow: what is in the queue keeps its place.
    limit = "MaxArraySize = 1001\n"
    submit_study(study(1, 2, 3, 4, 5, phases="motion"))
    assert len(fake.jobs) == 10
    fake.jobs["104_0"]["state"] = "FAILED"
    fake.jobs["109_0"].update(state="CANCELLED")
    submit_study(study(1, 2, 3, 4, 5, phases="motion"))
    assert shapes(fake, since=110) == [("motion", "4", ""), ("evaluate", "4", "aftercorr:110")]
    cancel_run(made.folder)
    assert not fake.alive()


def test_stores_of_several_arrays_are_prepared_by_several_arrays(fake, study, monkeypatch):
    """Runs with different stores; seeds of one store hear of the one element that prepares it."""
    monkeypatch.setattr("hpc_stres.launch.chain.store_ready", lambda config: False)
    fake.answers["scontrol"] = lambda words: (
        scheduler.Answer(0, "ClusterName = here\nMaxArraySize = 2\n", "")
        if "config" in words
        else None
    )
    made = study(1, 2, 3, 4, 5, phases="motion")
    store = {1: "a", 2: "a", 3: "b", 4: "c", 5: "b"}
    monkeypatch.setattr("hpc_stres.launch.elements.store_folder", lambda config: store[config.seed])
    made.requests = [dataclasses.replace(request, group=None) for request in made.requests]
    submit_study(made)
    found = shapes(fake)
    # Store a belongs to run 0, b to run 2 (place 0 of the second array), c to run 3.
    assert found[:2] == [("prepare", "0", ""), ("prepare", "01", "")]
    assert {seed: ids(made.folder / f"seed{seed}", "prepare") for seed in store} == {
        1: ("100_0",), 2: ("100_0",), 3: ("101_0",), 4: ("101_1",), 5: ("101_0",),
    }  # fmt: skip
    motions = [after for phase, _, after in found if phase == "motion"]
    assert motions == ["afterok:100", "afterok:101", "afterok:101"]


def test_a_cluster_that_takes_no_arrays_is_refused_with_the_way_out(fake, study):
    fake.answers["scontrol"] = scheduler.Answer(0, "ClusterName = here\nMaxArraySize = 0\n", "")
    with pytest.raises(UserError, match=r"takes no job arrays(.|\n)*one by one"):
        submit_study(study(1, 2))
    assert not fake.jobs


class Killed(BaseException):
    pass


@pytest.mark.parametrize("at", ["asked", "accepted", "told half"])
def test_a_submit_that_is_killed_is_finished_by_the_next(fake, study, at, monkeypatch):
    """By the study again, or by one of its runs alone."""
    points = {
        "asked": (Journal, "accept"),
        "accepted": (Journal, "hear"),
        "told half": (Journal, "told"),
    }
    owner, name = points[at]
    with monkeypatch.context() as broken:
        broken.setattr(owner, name, lambda *words: (_ for _ in ()).throw(Killed))
        with pytest.raises(Killed):
            submit_study(study(1, 2))
    assert len(fake.jobs) == 2
    lone = study(1, 2).requests[1]
    submit(lone)
    assert ids(lone.run_dir, "motion") == ("100_1",)
    submit_study(study(1, 2))
    elements = sorted((job["comment"].split(":")[2]) for job in fake.jobs.values())
    # The evaluation that the run's own submit asked for is an element of no array.
    assert elements == ["appearance"] * 2 + ["evaluate"] * 2 + ["motion"] * 2


def test_what_sbatch_refuses_leaves_nothing(fake, study):
    made = study(1, 2)
    refusal = scheduler.Answer(1, "", "sbatch: error: QOSMaxSubmitJobPerUserLimit")
    calls = []

    def limited(words):
        calls.append(words)
        return refusal if len(calls) == 3 else None

    fake.answers["sbatch"] = limited
    with pytest.raises(
        UserError, match=r"QOSMaxSubmitJob(.|\n)*Nothing of this submission was left"
    ):
        submit_study(made)
    assert not fake.alive()
    assert ids(made.folder / "seed1", "motion") == ()
    del fake.answers["sbatch"]
    submit_study(study(1, 2))
    assert fake.alive() == ["appearance"] * 2 + ["evaluate"] * 2 + ["motion"] * 2


def test_the_scheduler_is_asked_as_often_for_many_runs_as_for_two(fake, study):
    """What a submit costs the controller: three questions to the queue and one to the accounting, and one sbatch an
    array with one --test-only before."""
    counts = []
    for seeds in ((1, 2), tuple(range(11, 31))):
        before = len(fake.calls)
        submit_study(study(*seeds))
        names = [words[0] for words in fake.calls[before:] if words[0] != "sbatch"]
        counts.append((names.count("squeue"), names.count("sacct"), names.count("scontrol")))
    assert counts[0] == counts[1]
    assert counts[0][0] <= 3


def test_the_spec_of_an_array_names_each_index_once():
    spec = slurm.Members({index: (None, None) for index in (7, 0, 1, 2, 4, 5)}, 3).spec
    assert spec == "0-2,4-5,7%3"


@pytest.mark.parametrize("text", ["", "1,1", "a", "1,-2", "1,01", "²"])
def test_wrong_seeds_are_refused(text):
    with pytest.raises(ConfigError, match="different whole numbers"):
        seeds_of(text)
