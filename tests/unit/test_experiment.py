"""A run folder belongs to one experiment and a phase to one trainer, for every command; done.json
is sealed."""

import errno
import json
import subprocess
import sys
import threading
import time
from types import SimpleNamespace

import pytest

from hpc_stres.config.loading import load_resolved, plain
from hpc_stres.errors import UserError
from hpc_stres.run.experiment import claim_run_folder
from hpc_stres.run.ownership import owned
from hpc_stres.run.paths import RunPaths, write_json
from hpc_stres.run.product import (
    checked_weights,
    metrics_line,
    phase_is_done,
    read_done,
    read_metrics,
    write_done,
)
from hpc_stres.training.metrics import MetricsLog
from hpc_stres.training.phase import lost_ranks
from tests.conftest import ROOT, tiny_config
from tests.unit.trained import train
from tests.waiting import PATIENCE_SECONDS


def config(*overrides):
    return tiny_config("x", *overrides)


CHANGES = [
    "training.momentum=0.5", "training.weight_decay=0.1", "phases.motion.optimise.schedule=[[9, 0.1]]", "data.crop=24",
    "recipe=released", "seed=8", "training.precision=float64", "phases.motion.optimise.dropout=0.5",
    "training.dropout=0.5",
    "training.global_batch=8", "model.width=8", "data.split=2",
]  # fmt: skip


@pytest.mark.parametrize("change", CHANGES)
def test_another_experiment_is_refused_with_the_difference(tmp_path, change):
    claim_run_folder(config(), tmp_path)
    before = RunPaths(tmp_path).config.read_text()
    key = change.split("=")[0]
    with pytest.raises(UserError, match="this run folder is of another experiment: ") as caught:
        claim_run_folder(config(change), tmp_path)
    assert key in str(caught.value)
    assert "Use another --run-dir" in str(caught.value)
    assert RunPaths(tmp_path).config.read_text() == before
    claim_run_folder(config(), tmp_path)


def test_what_does_not_change_learning_is_free_and_stays_as_jobs_read_it(tmp_path):
    free = [
        "training.engine=deepspeed",
        "cluster.nodes=4",
        "evaluation.protocol=quick",
        "training.max_steps=3",
    ]
    claim_run_folder(config(), tmp_path)
    claim_run_folder(config(*free), tmp_path)
    assert load_resolved(RunPaths(tmp_path).config) == config()
    claim_run_folder(config(*free), tmp_path, update=True)
    assert load_resolved(RunPaths(tmp_path).config) == config(*free)


def test_an_allowed_change_becomes_the_folders(tmp_path):
    claim_run_folder(config(), tmp_path)
    changed = config("training.momentum=0.5", "cluster.nodes=2")
    claim_run_folder(changed, tmp_path, ("training.momentum",))
    assert load_resolved(RunPaths(tmp_path).config) == config("training.momentum=0.5")
    claim_run_folder(changed, tmp_path)
    with pytest.raises(UserError, match=r"training\.momentum: 0\.5 there, 0\.9 now"):
        claim_run_folder(config(), tmp_path)


def finish(run_dir, phase, made_with, step=10):
    done = {
        "phase": phase,
        "step": step,
        "sha256": "0" * 64,
        "classes": ["a"],
        "config": plain(made_with),
    }
    write_done(RunPaths(run_dir).phase(phase), done)


def test_without_config_yaml_the_phases_say_whose_a_folder_is(tmp_path):
    finish(tmp_path, "motion", config("training.momentum=0.5"))
    with pytest.raises(
        UserError,
        match=r"motion/done\.json: this phase is of another experiment: training\.momentum",
    ):
        claim_run_folder(config(), tmp_path)
    assert not RunPaths(tmp_path).config.exists()
    claim_run_folder(config("training.momentum=0.5"), tmp_path)


def test_a_phase_of_another_run_that_was_put_into_the_folder_is_refused(tmp_path):
    claim_run_folder(config(), tmp_path)
    finish(tmp_path, "motion", config("training.momentum=0.5"))
    with pytest.raises(
        UserError,
        match=r"motion/done\.json: this phase is of another experiment: training\.momentum",
    ):
        claim_run_folder(config(), tmp_path)


def test_phases_from_before_an_allowed_change_stay(tmp_path):
    claim_run_folder(config(), tmp_path)
    finish(tmp_path, "motion", config())
    changed = config("training.momentum=0.5")
    claim_run_folder(changed, tmp_path, ("training.momentum",))
    claim_run_folder(changed, tmp_path)
    claim_run_folder(config("training.momentum=0.6"), tmp_path, ("training.momentum",))
    with pytest.raises(UserError, match=r"training\.momentum: 0\.6 there"):
        claim_run_folder(changed, tmp_path)
    path = tmp_path / "allowed_changes.json"
    path.write_text(path.read_text().replace("momentum", "momentun"))
    with pytest.raises(UserError, match=r"allowed_changes\.json: damaged: its checksum is wrong"):
        claim_run_folder(config("training.momentum=0.6"), tmp_path)


def test_without_config_yaml_checkpoints_say_whose_a_folder_is(data_root, tmp_path):
    train(data_root, tmp_path, "motion", "training.max_steps=2")
    paths = RunPaths(tmp_path)
    paths.config.unlink()
    paths.phase("motion").done.unlink()
    with pytest.raises(
        UserError, match=r"step00000002: this checkpoint is of another experiment: seed: 7 there, 8"
    ):
        train(data_root, tmp_path, "appearance", "training.max_steps=2", "seed=8")


def test_two_experiments_at_once_in_a_new_folder_are_one_that_wins_and_one_that_is_refused(
    tmp_path,
):
    for attempt in range(10):
        run_dir, outcomes = tmp_path / str(attempt), []
        start = threading.Barrier(2)

        def claim(momentum, run_dir=run_dir, outcomes=outcomes, start=start):
            mine = config(f"training.momentum={momentum}")
            start.wait()
            try:
                claim_run_folder(mine, run_dir)
                outcomes.append(momentum)
            except UserError:
                outcomes.append(None)

        threads = [threading.Thread(target=claim, args=(momentum,)) for momentum in (0.1, 0.2)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        (winner,) = [outcome for outcome in outcomes if outcome is not None]
        assert load_resolved(RunPaths(run_dir).config).training.momentum == winner


def test_training_by_hand_refuses_what_submit_refuses(data_root, tmp_path):
    train(data_root, tmp_path, "motion", "training.max_steps=1")
    provenance = RunPaths(tmp_path).provenance.read_bytes()
    other = ["training.max_steps=1", "training.momentum=0.5"]
    for phase in ("appearance", "motion"):
        with pytest.raises(UserError, match=r"training\.momentum: 0\.9 there, 0\.5 now"):
            train(data_root, tmp_path, phase, *other)
    assert not RunPaths(tmp_path).phase("appearance").root.exists(), (
        "what is refused leaves nothing behind"
    )
    assert RunPaths(tmp_path).provenance.read_bytes() == provenance
    train(data_root, tmp_path, "appearance", *other, allowed=("training.momentum",))


def test_a_phase_that_is_being_trained_is_refused_with_its_owners_name(data_root, tmp_path):
    lock = RunPaths(tmp_path).phase("motion").lock
    with (
        owned(lock, "this phase is being trained"),
        pytest.raises(UserError, match="motion: this phase is being trained by process"),
    ):
        train(data_root, tmp_path, "motion", "training.max_steps=1")
    train(data_root, tmp_path, "motion", "training.max_steps=1")


def test_the_next_link_of_a_chain_waits_for_the_one_before_to_end(data_root, tmp_path, monkeypatch):
    monkeypatch.setenv("SLURM_JOB_ID", "12")
    lock = RunPaths(tmp_path).phase("motion").lock
    has_it, wanted = threading.Event(), threading.Event()

    def ask(*arguments):
        wanted.set()
        return owned(*arguments)

    monkeypatch.setattr("hpc_stres.training.phase.owned", ask)

    def end_soon():
        with owned(lock, "this phase is being trained"):
            has_it.set()
            assert wanted.wait(PATIENCE_SECONDS)
            time.sleep(0.5)

    thread = threading.Thread(target=end_soon)
    thread.start()
    has_it.wait()
    train(data_root, tmp_path, "motion", "training.max_steps=1")
    thread.join()


def test_a_folder_that_cannot_be_written_is_one_sentence(data_root, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot be written: Not a directory"):
        train(data_root, tmp_path / "file" / "run", "motion", "training.max_steps=1")


@pytest.mark.parametrize(
    "where", ["hpc_stres.training.trainer.save_state", "hpc_stres.training.metrics.write_text"]
)
def test_a_disk_that_is_full_while_it_trains_is_one_sentence(
    data_root, tmp_path, monkeypatch, where
):
    def full(*arguments):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(where, full)
    with pytest.raises(
        UserError, match="motion: cannot be read or written: No space left on device"
    ) as caught:
        train(data_root, tmp_path, "motion", "training.max_steps=1")
    assert "resumes from the last checkpoint" in str(caught.value)
    monkeypatch.undo()
    train(data_root, tmp_path, "motion", "training.max_steps=1")


def test_losing_the_other_ranks_is_a_sentence_and_a_fault_of_the_code_is_not():
    trainer = SimpleNamespace(world=SimpleNamespace(size=2, rank=1), name="motion", step=7)
    gloo = RuntimeError(
        "[/gloo/transport/tcp/pair.cc:547] Connection closed by peer [127.0.0.1]:59211\nmore"
    )
    text = str(lost_ranks(trainer, gloo))
    assert "motion: rank 1 lost the other ranks at step 7: " in text
    assert "Connection closed by peer" in text
    assert len(text.splitlines()) == 2
    assert lost_ranks(trainer, RuntimeError("mat1 and mat2 shapes cannot be multiplied")) is None
    alone = SimpleNamespace(world=SimpleNamespace(size=1, rank=0), name="motion", step=7)
    assert lost_ranks(alone, gloo) is None


def test_every_flipped_bit_of_done_json_is_noticed_or_harmless(tmp_path):
    paths = RunPaths(tmp_path).phase("motion")
    done = {
        "phase": "motion",
        "step": 5,
        "sha256": "0" * 64,
        "classes": ["a", "ü"],
        "config": {"b": 1},
    }
    write_done(paths, done)
    assert read_done(paths) == done
    good = paths.done.read_bytes()
    noticed, messages = 0, set()
    for bit in range(0, 8 * len(good), 3):
        data = bytearray(good)
        data[bit // 8] ^= 1 << bit % 8
        paths.done.write_bytes(data)
        try:
            assert read_done(paths) == done, f"byte {bit // 8}"
        except UserError as error:
            noticed += 1
            messages.add(
                str(error).startswith(str(paths.done))
                and "hpc-stres train --phase motion" in str(error)
            )
    assert messages == {True}
    assert noticed > 2 * len(good)


@pytest.mark.parametrize("wrong", ["phase", "step", "sha256", "classes", "config"])
def test_a_done_json_that_lacks_something_is_refused(tmp_path, wrong):
    paths = RunPaths(tmp_path).phase("motion")
    finish(tmp_path, "motion", config())
    whole = read_done(paths)
    write_done(paths, whole | {wrong: 1.5})
    with pytest.raises(UserError, match=f"{wrong} is missing or of the wrong type"):
        read_done(paths)
    if wrong in ("step", "sha256"):
        write_done(paths, {key: value for key, value in whole.items() if key != wrong})
        with pytest.raises(UserError, match=f"{wrong} is missing or of the wrong type"):
            read_done(paths)


def test_a_done_json_of_an_older_version_is_refused_with_the_way_on(data_root, tmp_path):
    paths = RunPaths(tmp_path).phase("motion")
    assert read_done(paths) is None
    assert not phase_is_done(paths, 1)
    straight = train(data_root, tmp_path, "motion", "training.max_steps=2")
    assert phase_is_done(paths, 2)
    assert not phase_is_done(paths, 3)
    bare = json.loads(paths.done.read_text())
    del bare["checksum"]
    write_json(paths.done, bare)
    with pytest.raises(
        UserError, match=r"it has no checksum .*version 0\.2\)\nRemove it and run `hpc-stres train"
    ):
        train(data_root, tmp_path, "motion", "training.max_steps=2")
    paths.done.unlink()
    again = train(data_root, tmp_path, "motion", "training.max_steps=2")
    assert all((again[name] == value).all() for name, value in straight.items())


def test_a_phase_vouches_for_its_weights_whether_its_folder_or_the_file_is_named(
    data_root, tmp_path
):
    first, one_step = tmp_path / "first", "training.max_steps=1"
    train(data_root, first, "motion", one_step)
    phase = RunPaths(first).phase("motion")
    for source in (phase.root, phase.weights):
        train(
            data_root,
            tmp_path / source.name,
            "motion",
            one_step,
            f"phases.motion.weights='{source}'",
        )
    data = bytearray(phase.weights.read_bytes())
    data[-1] ^= 1
    phase.weights.write_bytes(data)
    with pytest.raises(
        UserError, match="these are not the weights that phase motion finished with"
    ):
        checked_weights(phase)
    for source in (phase.root, phase.weights):
        with pytest.raises(
            UserError, match="these are not the weights that phase motion finished with"
        ):
            train(
                data_root,
                tmp_path / "bad" / source.name,
                "motion",
                one_step,
                f"phases.motion.weights='{source}'",
            )
    phase.done.unlink()
    with pytest.raises(UserError, match="damaged: the checksum of its tensors is wrong"):
        train(
            data_root,
            tmp_path / "bad",
            "motion",
            one_step,
            f"phases.motion.weights='{phase.weights}'",
        )


def test_a_damaged_row_of_metrics_is_left_out_and_named(tmp_path, capsys):
    paths = RunPaths(tmp_path).phase("motion")
    paths.root.mkdir(parents=True)
    rows = [{"step": step, "loss": 1.5} for step in (1, 2, 3)]
    lines = [metrics_line(row) for row in rows]
    paths.metrics.write_text("".join(lines) + '{"step": 4, "lo')
    assert read_metrics(paths) == rows
    assert capsys.readouterr().err == ""
    paths.metrics.write_text(lines[0] + lines[1].replace("1.5", "1.4") + lines[2])
    assert read_metrics(paths) == [rows[0], rows[2]]
    assert "metrics.jsonl:2: damaged" in capsys.readouterr().err
    paths.metrics.write_text('{"step": 1, "loss": 2.5}\n' + lines[1])
    log = MetricsLog(paths, 2)
    log.close()
    assert read_metrics(paths) == [rows[1]]
    assert "metrics.jsonl:1: it has no checksum" in capsys.readouterr().err
    assert '"loss": 2.5' in (paths.root / "metrics.left_out.jsonl").read_text(), "nothing is lost"
    with pytest.raises(ValueError, match="not JSON compliant"):
        metrics_line({"step": 1, "loss": float("nan")})


def test_readers_of_products_need_no_torch():
    code = "import sys\nimport hpc_stres.run.product, hpc_stres.run.experiment\nassert 'torch' not in sys.modules"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=False).returncode == 0
