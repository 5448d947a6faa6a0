"""What can be known is refused at submit time, all of it at once, and a dry run says the same."""

import dataclasses
import shutil
from pathlib import Path

import pytest

from hpc_stres.config.loading import load_config
from hpc_stres.errors import ConfigError, UserError
from hpc_stres.launch import checks, scheduler
from hpc_stres.launch import submit as submitting
from hpc_stres.launch.chain import Request, preview, submit
from hpc_stres.launch.jobs import make_jobs
from hpc_stres.launch.scheduler import Answer, NoAnswer
from hpc_stres.run.bad_nodes import accuse
from tests.conftest import ROOT, TINY
from tests.unit.untrained import finish_without_weights

UCF = ROOT / "configs" / "ucf101.yaml"


@pytest.fixture
def own(tmp_path):
    """A folder of videos that is complete, and what a config of it is made with."""
    for label in ("run", "sit"):
        for number in range(4):
            path = tmp_path / "videos" / label / f"{number}.mp4"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(b"video")

    def make(*overrides, profile="local", file=TINY):
        places = [
            f"data.root={tmp_path}/data",
            "data.kind=folder",
            f"data.videos={tmp_path}/videos",
        ]
        return load_config(file, [*places, *overrides], profile)

    return make


def jobs_of(config, tmp_path, ready=False):
    return make_jobs(config, tmp_path / "run", list(config.phases), ready)


def faults(config, tmp_path, ready=False, **more):
    return checks.faults(config, tmp_path / "run", jobs_of(config, tmp_path, ready), **more)


def test_a_run_that_has_all_it_needs_has_no_faults(own, tmp_path):
    assert faults(own(), tmp_path) == []
    assert faults(load_config(TINY, [f"data.root={tmp_path}/nothing"], "local"), tmp_path) == [], (
        "made by itself"
    )


def test_videos_and_lists_that_are_not_here(own, tmp_path):
    shutil.rmtree(tmp_path / "videos" / "sit")
    (found,) = faults(own("data.kind=ucf101"), tmp_path)
    assert found.startswith(
        f"data: the videos are expected in {tmp_path}/videos and its lists at {tmp_path}/data/ucf101/"
    )
    shutil.rmtree(tmp_path / "videos")
    (found,) = faults(own(), tmp_path)
    assert found == f"data: the videos are expected in {tmp_path}/videos: not here"
    # What is prepared needs no originals.
    assert faults(own(), tmp_path, ready=True) == []


def test_videos_of_a_list_that_are_not_here_and_splits_that_it_does_not_have(own, tmp_path):
    rows = "".join(
        f"{label}/{n}.mp4,{label},{'test' if n else 'train'}\n"
        for label in ("run", "sit")
        for n in range(4)
    )
    (tmp_path / "own.csv").write_text("path,label,split\n" + rows)
    lists = [f"data.lists={tmp_path}/own.csv", "data.kind=csv"]
    assert faults(own(*lists), tmp_path) == []
    (tmp_path / "videos" / "run" / "2.mp4").unlink()
    (found,) = faults(own(*lists), tmp_path)
    gone = f"1 of 8 videos are not here, the first: {tmp_path}/videos/run/2.mp4"
    assert found.startswith(f"{gone}: bring them, or take them out of the lists")
    # What `prepare` would stop at: data.max_rejected is of videos that are here.
    (found,) = faults(own(*lists, "data.max_rejected=0.2"), tmp_path)
    assert found.startswith(gone)
    split, found = faults(own(*lists, "data.split=2"), tmp_path)
    assert (split, found.startswith(gone)) == ("data.split: 2: the data set has split 1", True)
    (tmp_path / "own.csv").write_text("path,label\n")
    (found,) = faults(own(*lists), tmp_path)
    assert "own.csv" in found
    assert "\n" not in found


def test_weights_that_are_not_here_or_not_whole(own, tmp_path):
    (found,) = faults(own(f"model.weights={tmp_path}/no.pth"), tmp_path)
    assert found.startswith(f"{tmp_path}/no.pth: no such weights file, run or export")
    (found,) = faults(own("model.weights=resnet50"), tmp_path)
    assert "hpc-stres weights resnet50 --to" in found
    config = own(f"phases.motion.weights={tmp_path}/other/phases/motion")
    (found,) = faults(config, tmp_path)
    assert f"{tmp_path}/other/phases/motion: no such weights file, run or export" in found
    from hpc_stres.run.paths import RunPaths

    finish_without_weights(config, RunPaths(tmp_path / "other"), "motion")
    assert faults(config, tmp_path) == []
    RunPaths(tmp_path / "other").phase("motion").weights.write_bytes(b"changed")
    (found,) = faults(config, tmp_path)
    assert "these are not the weights that phase motion finished with" in found
    # A phase that resumes has begun already.
    RunPaths(tmp_path / "run").phase("motion").latest.parent.mkdir(parents=True)
    RunPaths(tmp_path / "run").phase("motion").latest.write_text("step")
    assert faults(config, tmp_path) == []


def test_weeks_on_cpus_are_questioned_and_minutes_are_not(own, tmp_path, monkeypatch):
    monkeypatch.setattr("shutil.which", lambda name: None)
    sizes = ["model.stages=null", "model.width=64", "data.short_side=256", "data.crop=224"]
    big = own(
        *sizes, "training.global_batch=256", "phases.st_resnet.optimise.schedule=[[80000, 0.001]]"
    )
    (found,) = faults(big, tmp_path)
    assert "days or more on" in found
    assert "--gpus-per-node" in found
    assert faults(big, tmp_path, allow_cpu=True) == []
    on_gpus = dataclasses.replace(
        big, cluster=dataclasses.replace(big.cluster, gpus_per_node=4, scheduler="slurm")
    )
    assert faults(on_gpus, tmp_path) == []
    (found,) = faults(own("cluster.gpus_per_node=2"), tmp_path)
    assert found.startswith("cluster.gpus_per_node=2: this machine has no NVIDIA GPU")
    monkeypatch.setattr(
        "shutil.which", lambda name: "/usr/bin/nvidia-smi" if name == "nvidia-smi" else None
    )
    assert faults(big, tmp_path) == [], "a local run takes the GPU that is there"


@pytest.mark.parametrize(
    ("name", "more", "refused"),
    [
        ("100%", ["cluster.scheduler=slurm"], "'%'"), ("a\\b", ["cluster.scheduler=slurm"], "backslash"),
        ("100%", [], ""), ("12:30, räume", ["cluster.scheduler=slurm"], ""), ("two\nlines", [], "n'"),
        ("12:30,a", ["cluster.scheduler=slurm", "cluster.image=/i.sif"], "',', ':'"),
    ],
)  # fmt: skip
def test_a_path_that_logs_or_mounts_would_read_in_their_own_way(own, tmp_path, name, more, refused):
    config = own(*more)
    place = tmp_path / name
    found = checks.faults(config, place, make_jobs(config, place, ["motion"], True))
    wanted = repr("\\") if refused == "backslash" else refused
    assert [wanted in line for line in found] == ([True] if refused else []), found
    assert not any("\n" in line for line in found)


def test_a_disk_without_room_for_checkpoints(own, tmp_path, monkeypatch):
    real = checks.os.statvfs

    def full(path):
        status = real(path)
        return type("Status", (), {"f_bavail": 10, "f_frsize": status.f_frsize})()

    monkeypatch.setattr(checks.os, "statvfs", full)
    (found,) = faults(own("model.width=16"), tmp_path)
    assert "its checkpoints need about" in found


def test_a_submit_says_all_faults_at_once_and_makes_nothing(own, tmp_path):
    shutil.rmtree(tmp_path / "videos")
    request = Request(own(f"model.weights={tmp_path}/no.pth"), tmp_path / "run", "all")
    with pytest.raises(UserError) as refusal:
        submit(request)
    first, *rest = str(refusal.value).splitlines()
    assert first == "nothing was submitted:"
    assert [line.split(":")[0] for line in rest] == ["data", f"{tmp_path}/no.pth"]
    assert not (tmp_path / "run").exists()


def test_a_dry_run_says_what_a_submit_would_refuse(own, tmp_path, capsys):
    shutil.rmtree(tmp_path / "videos")
    preview([Request(own(f"model.weights={tmp_path}/no.pth"), tmp_path / "run", "all")])
    said = [line for line in capsys.readouterr().out.splitlines() if "not yet:" in line]
    assert len(said) == 2
    assert not (tmp_path / "run").exists()


def test_what_the_scheduler_would_not_take_is_refused_before_any_job_is_made(fake, request_of):
    fake.tested = Answer(1, "", "allocation failure: Invalid partition name specified")
    with pytest.raises(
        UserError, match="motion: sbatch --test-only: allocation failure: Invalid partition"
    ):
        submit(request_of("motion"))
    assert fake.jobs == {}
    fake.tested = Answer(1, "", "sbatch: error: Unable to contact slurm controller")
    submit(request_of("motion"))
    assert len(fake.jobs) == 2, "a controller that is busy is asked in earnest"


UNAVAILABLE = "allocation failure: Requested node configuration is not available"


@pytest.mark.parametrize(
    ("away", "is_refused"), [("", True), ("n7\nn3\nn3\n", False), (NoAnswer("mute"), True)]
)
def test_a_job_may_wait_for_nodes_that_are_drained_today(
    fake, request_of, away, is_refused, capsys
):
    """--test-only counts without them. Where all nodes are there, nothing can come."""
    fake.tested = Answer(1, "", UNAVAILABLE)
    fake.answers["sinfo"] = away if isinstance(away, NoAnswer) else Answer(0, away, "")
    request = request_of("motion", "cluster.partition=gpu")
    if is_refused:
        with pytest.raises(UserError, match="node configuration is not available"):
            submit(request)
        assert fake.jobs == {}
        return
    submit(request)
    assert len(fake.jobs) == 2
    assert "; n3, n7 down or drained: it may wait for them" in capsys.readouterr().out
    (asked,) = [words for words in fake.calls if words[0] == "sinfo"]
    assert asked[-2:] == ["-p", "gpu"]


def test_nodes_that_the_run_avoids_are_named_where_too_few_are_left(fake, request_of):
    fake.tested = Answer(1, "", UNAVAILABLE)
    fake.answers["sinfo"] = Answer(0, "", "")
    request = request_of("motion")
    accuse(request.run_dir, "disk", "n2: full", "n2", job="1", restart=0, job_nodes=2)
    with pytest.raises(UserError, match=r"without n2; cluster\.avoid_bad_nodes_hours=0 takes"):
        submit(request)


@pytest.mark.parametrize(
    "answer", [NoAnswer("sbatch took more than 60 s"), Answer(0, "", "sbatch: Job 3 to start")]
)
def test_test_only_asks_once_for_each_kind_of_job_and_its_silence_is_no_refusal(
    fake, request_of, answer
):
    fake.tested = answer
    request = request_of("all")
    refused, notes = checks.ask_scheduler(request.config, request.run_dir, request.jobs({}))
    assert refused == []
    assert len(notes) == isinstance(answer, NoAnswer)
    asked = [words for words in fake.calls if "--test-only" in words]
    assert len(asked) == 1, "all these jobs ask for the same"
    assert fake.jobs == {}


def test_test_only_asks_without_dependencies(fake, request_of, monkeypatch):
    texts = []

    def keep(words, seconds, keep_open=()):
        texts.append(Path(words[-1]).read_text())
        return Answer(0, "", "")

    monkeypatch.setattr(scheduler, "call", keep)
    request = request_of("all", "cluster.partition=gpu")
    checks.ask_scheduler(request.config, request.run_dir, request.jobs({}))
    assert "--partition=gpu" in texts[0]
    assert not any("--dependency" in text for text in texts)


def arguments(*words):
    import argparse

    parser = argparse.ArgumentParser()
    submitting.add_arguments(parser)
    return parser.parse_args(["--cluster", "local", *words])


@pytest.mark.parametrize(
    ("split", "expected"), [("2", [2]), ("17", [17]), (None, [None]), ("all", [1, 2, 3])]
)
def test_splits_of_the_command_line(tmp_path, split, expected):
    words = ["--config", str(TINY), "--set", f"data.root={tmp_path}"]
    assert submitting._splits(arguments(*words, *(["--split", split] if split else []))) == expected


def test_all_splits_are_those_of_the_data_set(own, tmp_path):
    places = [
        f"data.root={tmp_path}/data",
        "data.kind=folder",
        f"data.videos={tmp_path}/videos",
        "data.folds=4",
    ]
    words = [
        "--config",
        str(TINY),
        "--split",
        "all",
        *(word for text in places for word in ("--set", text)),
    ]
    assert submitting._splits(arguments(*words)) == [1, 2, 3, 4]


@pytest.mark.parametrize("split", ["0", "100", "one", "-1", "1.5", ""])
def test_a_split_that_nobody_can_mean_is_refused(split):
    with pytest.raises(ConfigError, match="expected the number of a split, or all"):
        submitting._splits(arguments(f"--split={split}"))
