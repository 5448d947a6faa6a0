"""The campaign itself: its rounds are a function of the seed, its faults come from the real calls, and it can fail."""

import errno
import os
import shutil
import subprocess
import sys

import pytest

from tests.campaign import judge, namespaces, plan, power, shim, surroundings
from tests.campaign.children import End, survivors
from tests.campaign.record import Record
from tests.conftest import ROOT

needs_gcc = pytest.mark.skipif(
    shutil.which("gcc") is None, reason="no gcc: the shim cannot be built"
)
# Writes a file twice as the package does, or as nobody should, and says which errors it met.
WRITER = """
import sys
from pathlib import Path
from hpc_stres.run import paths
path, how = Path(sys.argv[1]) / "deep" / "x.bin", sys.argv[2]
if how == "unsynced":
    paths._sync = lambda path: None
if how == "in place":
    paths.write_bytes = lambda path, data: (path.parent.mkdir(exist_ok=True), path.write_bytes(data))
for data in (b"1" * 5000, b"2" * 7000):
    try:
        paths.write_bytes(path, data)
        print("written")
    except OSError as error:
        print(error.errno, error.filename or "")
"""
OLD, NEW = b"1" * 5000, b"2" * 7000


@pytest.fixture(scope="module")
def library(tmp_path_factory):
    return shim.build(tmp_path_factory.mktemp("shim"))


def write(library, folder, how="as it is", **orders):
    """Run the writer with the shim; returns its lines."""
    folder.mkdir(exist_ok=True)
    told = shim.Orders(root=str(folder), **orders)
    environment = {
        **os.environ,
        "LD_PRELOAD": str(library),
        "CAMPAIGN_SHIM": str(told),
        "PYTHONPATH": str(ROOT),
    }
    command = [sys.executable, "-c", WRITER, str(folder), how]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    return done.returncode, done.stdout.splitlines()


def contents(folder):
    return {path.name: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_rounds_are_a_function_of_the_seed_and_every_kind_is_drawn():
    drawn = [plan.draw(1, number) for number in range(300)]
    assert drawn == [plan.draw(1, number) for number in range(300)]
    assert drawn != [plan.draw(2, number) for number in range(300)]
    assert {one.kind for one in drawn} == set(plan.WEIGHTS)
    assert set(plan.READERS) == set(surroundings.READERS)
    assert plan.draw(1, 7, ("power",)).kind == "power"
    assert all(0 <= one.moment < 1 for one in drawn)
    other_layout = [one for one in drawn if one.resumed != one.experiment]
    assert other_layout
    assert all(one.experiment.precision == "float64" for one in other_layout)


@needs_gcc
@pytest.mark.parametrize("how", ["as it is", "unsynced", "in place"])
def test_after_a_power_loss_at_any_call_a_file_is_the_old_or_the_new_one(library, tmp_path, how):
    folder, log, before = tmp_path / "work", tmp_path / "log", tmp_path / "before"
    before.mkdir()
    assert write(library, folder, how, log=str(log)) == (0, ["written", "written"])
    calls = len(list(power.read_log(log)))
    power.after(log, str(folder), before, calls, None, tmp_path / "whole")
    assert contents(tmp_path / "whole") == contents(folder) == {"x.bin": NEW}, (
        "the recording is complete"
    )
    torn = set()
    for lost in power.LOSSES:
        for call in range(calls + 1):
            power.after(log, str(folder), before, call, lost, tmp_path / f"{lost}{call}")
            found = contents(tmp_path / f"{lost}{call}").get("x.bin")
            if found not in (None, OLD, NEW):
                torn.add(lost)
        assert how != "as it is" or found == NEW, f"what was written is there: {lost}"
    expected = {"as it is": set(), "unsynced": {"data", "half"}, "in place": {"data", "half"}}
    assert torn == expected[how]


@needs_gcc
@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EIO])
def test_an_error_at_any_call_leaves_the_old_file_or_the_new_one(library, tmp_path, code):
    write(library, tmp_path / "counted", count=str(tmp_path / "count"))
    calls = (tmp_path / "count").stat().st_size
    assert calls > 10
    for at in range(1, calls + 1, 4):
        status, lines = write(library, tmp_path / f"at{at}", at=at, errno=code, sticky=at % 2)
        assert status == 0
        assert any(line.startswith(str(code)) for line in lines) or lines == ["written"] * 2, lines
        whole = contents(tmp_path / f"at{at}")
        assert whole.get("x.bin") in (None, OLD, NEW)
        if code == errno.ENOSPC:
            assert set(whole) <= {"x.bin"}, "a full disk is not filled with remains"


@needs_gcc
def test_a_kill_at_a_call_and_in_the_middle_of_a_write(library, tmp_path):
    status, lines = write(library, tmp_path / "killed", at=3, signal=9, torn=1)
    assert (status, lines) == (-9, [])
    (data,) = contents(tmp_path / "killed").values()
    assert len(data) == 2500
    assert set(contents(tmp_path / "killed")) != {"x.bin"}


def test_only_a_clear_sentence_is_a_stop():
    def verdict(text, *statuses, **more):
        try:
            return judge.check_end(End(list(statuses), text), "it", **more)
        except judge.Failure as failure:
            return failure.outcome.verdict

    good = "hpc-stres train: /run/x.json: damaged: its checksum is wrong\nRemove it.\n"
    assert verdict(good, 1) == "/run/x.json: damaged: its checksum is wrong"
    two = "hpc-stres train: another rank refused\n" + good
    assert "damaged" in verdict(two, 1, 1)
    assert verdict(good, 1, names=("/other",)) == judge.CRASHED
    assert verdict("read /other\n" + good, 1, names=("/other",)) == judge.CRASHED, "said elsewhere"
    left = End([0], "", left=("python -m worker",))
    with pytest.raises(judge.Failure, match="left processes behind: python -m worker"):
        judge.check_end(left, "it")
    assert verdict("", 0) == verdict("", 75, sent=(12,)) == verdict("", 130, sent=(2,)) == ""
    assert verdict("", 75) == verdict("", 130) == judge.CRASHED, "nobody asked it to stop"
    assert verdict("", 1) == judge.CRASHED, "no sentence"
    assert verdict("", -11) == judge.CRASHED
    assert verdict("", -9, sent=(9,)) == ""
    assert verdict(good.replace("damaged", "unexpected end of data"), 1)[0] == "/"
    assert verdict("hpc-stres train: unexpected KeyError: 3\nAdd --debug", 1) == judge.CRASHED
    assert verdict("Traceback (most recent call last):\n", 0) == judge.CRASHED
    assert verdict(good + "\n".join("abcdef"), 1) == judge.CRASHED, "a page is no sentence"
    rows = judge.table(
        {"kill": [judge.Outcome(judge.SURVIVED, "")], "flip": [judge.Outcome(judge.SILENT, "")]}
    )
    assert rows.splitlines()[-1] == "| all | 2 | 1 | 0 | 1 | 0 |"


OWNER = """
import sys
from pathlib import Path
from hpc_stres.errors import UserError
from hpc_stres.run.ownership import owned
try:
    with owned(Path(sys.argv[1]) / "owner.lock", "this is being tried"):
        print("owned", flush=True)
        raise UserError("what failed first")
except (UserError, OSError) as error:
    print(error, getattr(error, "filename", ""))
"""


@needs_gcc
def test_an_owner_says_what_failed_first_and_where(library, tmp_path, monkeypatch):
    monkeypatch.setattr(sys.modules[__name__], "WRITER", OWNER)
    said = []
    for at in range(1, 9):
        status, lines = write(library, tmp_path / f"at{at}", at=at, errno=errno.EIO, sticky=1)
        assert status == 0, lines
        is_owned = lines[0] == "owned"
        assert (
            lines[-1].startswith("what failed first") if is_owned else "owner.lock" in lines[-1]
        ), lines
        said.append(is_owned)
    assert set(said) == {False, True}


def test_what_outlives_its_command_is_noticed_and_ended():
    command = ["sh", "-c", "sleep 600 & exit 0"]
    done = subprocess.Popen(command, start_new_session=True)
    done.wait()
    assert survivors({done.pid}, 0.1) == ("sleep sleep 600",)
    assert survivors({done.pid}) == ()


def test_a_campaign_that_was_stopped_resumes_and_does_what_failed_again(tmp_path):
    record = Record(tmp_path, 3, "", "")
    record.add(0, "kill", judge.Outcome(judge.SURVIVED, ""), 1.0, "what")
    record.add(1, "power", judge.Outcome(judge.SILENT, "lost"), 1.0, "what")
    with record.path.open("a") as stream:
        stream.write('{"round": 2, "kind": "tor')
    again = Record(tmp_path, 3, "", "")
    assert [again.has(number) for number in range(3)] == [True, False, False]
    assert judge.table(again.outcomes(range(3))).endswith("| all | 2 | 1 | 0 | 1 | 0 |")
    again.add(1, "power", judge.Outcome(judge.SURVIVED, ""), 1.0, "what")
    assert again.has(1)
    assert again.fixed_since == 1
    others = [
        Record(tmp_path, 4, "", ""),
        Record(tmp_path, 3, "power", ""),
        Record(tmp_path, 3, "", "seal"),
    ]
    assert not any(other.has(0) for other in others)


DISKS = """
import errno, sys
from pathlib import Path
from tests.campaign import namespaces
whole, kept = Path(sys.argv[1]), Path(sys.argv[1]) / "kept"
namespaces.be_alone()
namespaces.full(whole, kept)
namespaces.read_only(kept / "locked")
for folder in (whole, kept, kept / "locked"):
    try:
        (folder / "new").write_bytes(bytes(9000))
        print("written")
    except OSError as error:
        print(errno.errorcode[error.errno])
"""


@pytest.mark.skipif(not namespaces.may_mount(), reason="no mounts of its own without root")
def test_a_child_has_full_and_read_only_disks_of_its_own(tmp_path):
    (tmp_path / "kept" / "locked").mkdir(parents=True)
    command = [sys.executable, "-c", DISKS, str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=ROOT)
    assert done.stdout.split() == ["ENOSPC", "written", "EROFS"], done.stderr
    assert contents(tmp_path) == {"new": bytes(9000)}, "here, only what was kept was written"
