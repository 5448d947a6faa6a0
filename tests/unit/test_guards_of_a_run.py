"""What the fault campaign found once: rows lost with the power, a config that was changed, a clock that was turned."""

import json
import os
from pathlib import Path

import pytest

from hpc_stres.config.loading import dump, load_config, load_run
from hpc_stres.config.seal import sealed_text
from hpc_stres.errors import ConfigError
from hpc_stres.training import metrics
from hpc_stres.training.metrics import Heartbeat
from tests.conftest import TINY
from tests.unit.trained import train


def test_the_rows_up_to_a_checkpoint_are_on_the_disk_before_it(data_root, tmp_path, monkeypatch):
    """A run that resumes from the checkpoint makes them no more."""
    synced, checked, fsync = [0], [], os.fsync

    def watch(descriptor):
        path = Path(os.readlink(f"/proc/self/fd/{descriptor}"))
        if path.name == "metrics.jsonl":
            lines = path.read_text().splitlines()
            synced[0] = json.loads(lines[-1])["step"] if lines else 0
        if "latest" in path.name:
            step = int(path.read_text().strip().removeprefix("step"))
            checked.append((step, synced[0]))
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", watch)
    options = (
        "training.max_steps=4",
        "training.checkpoint_every_steps=2",
        "training.log_every_steps=1",
    )
    train(data_root, tmp_path, "motion", *options)
    assert [step for step, _ in checked] == [2, 4]
    assert all(rows >= step for step, rows in checked), checked


def test_every_flipped_bit_of_a_config_is_noticed_or_harmless(tmp_path):
    path = tmp_path / "config.yaml"
    text = sealed_text(dump(load_config(TINY)))
    path.write_text(text)
    right, whole = load_run(tmp_path), path.read_bytes()
    # The end with its checksum bit by bit, and of the rest one bit of many.
    bits = [*range(8 * len(whole) - 8 * 110, 8 * len(whole), 5), *range(3, 8 * len(whole), 997)]
    noticed = 0
    for bit in bits:
        torn = bytearray(whole)
        torn[bit // 8] ^= 1 << bit % 8
        path.write_bytes(torn)
        try:
            seen, said = load_run(tmp_path), str(path)
        except ConfigError as error:
            seen, said = right, str(error)
            noticed += 1
        assert seen == right, f"bit {bit}"
        assert str(path) in said
    assert noticed > len(bits) // 2


def test_a_config_that_was_cut_short_is_refused_wherever_the_cut_is(tmp_path):
    """What is missing would be filled in with defaults: another experiment."""
    path = tmp_path / "config.yaml"
    whole = sealed_text(dump(load_config(TINY))).encode()
    lines = [n + 1 for n, byte in enumerate(whole) if byte == 10][:-1]
    for end in [
        0,
        1,
        7,
        80,
        *lines[:: len(lines) // 12],
        lines[-1],
        len(whole) - 70,
        len(whole) - 1,
    ]:
        path.write_bytes(whole[:end])
        with pytest.raises(
            ConfigError, match=r"(?s)config.yaml.*the command that began the run writes it"
        ):
            load_run(tmp_path)


def test_a_config_that_was_changed_by_hand_is_refused_until_its_checksum_is_taken_away(tmp_path):
    path = tmp_path / "config.yaml"
    text = sealed_text(dump(load_config(TINY, ["seed=7"]))).replace("seed: 7", "seed: 8")
    path.write_text(text)
    with pytest.raises(ConfigError, match="If you changed it yourself, remove its first and"):
        load_run(tmp_path)
    path.write_text("".join(line for line in text.splitlines(True) if "# checksum" not in line))
    assert load_run(tmp_path).seed == 8


def test_a_heartbeat_does_not_stop_when_the_clock_is_turned_back(tmp_path, monkeypatch):
    beat, now = Heartbeat(tmp_path / "rank0.json"), [1e9, 100.0]
    monkeypatch.setattr(metrics.time, "time", lambda: now[0])
    monkeypatch.setattr(metrics.time, "monotonic", lambda: now[1])
    beat.beat(1, "step")
    now[:] = [1e9 - 86400, 100.0 + metrics.HEARTBEAT_INTERVAL_SECONDS]
    beat.beat(2, "step")
    assert json.loads(beat.path.read_text())["step"] == 2
    beat.beat(3, "step")
    assert json.loads(beat.path.read_text())["step"] == 2, "no more than one every few seconds"
