"""The campaign's mutants, fuzz cases and long run: they change what they say, and can fail."""

import contextlib
import json
import time

import pytest

from tests.campaign import fuzzing, longrun, mutants, mutations, trials
from tests.campaign.covering import COVERING, files_about
from tests.campaign.judge import CRASHED, STOPPED, SURVIVED
from tests.campaign.parsers import Parser
from tests.conftest import ROOT

SOURCE = '''"""A module."""
import functools


@functools.lru_cache(maxsize=3)
def least(a: "int", b: int = 2) -> bool:
    """Of two."""
    print(a)
    if a < b and not a == 7:
        raise ValueError(f"{a + 1} " + str(3))
    return min(a,
               b) > 1.5
'''


def test_a_mutant_is_the_file_with_one_change_that_compiles():
    made = mutations.mutants_of("least.py", SOURCE)
    changes = {(mutant.before, mutant.after) for mutant in made}
    assert changes == {
        ("2", "(3)"),
        ("print(a)", "None"),
        ("a < b", "(a <= b)"),
        ("a == 7", "(a != 7)"),
        ("7", "(8)"),
        ("not a == 7", "(a == 7)"),
        ("a < b and not a == 7", "(a < b or not a == 7)"),
        ('raise ValueError(f"{a + 1} " + str(3))', "pass"),
        ("min(a,\n               b) > 1.5", "(min(a, b) >= 1.5)"),
        ("min(a,\n               b)", "(max(a, b))"),
        ("1.5", "(2.5)"),
    }
    for mutant in made:
        compile(mutant.text, mutant.file, "exec")
        places = [n for n in range(len(SOURCE)) if SOURCE.startswith(mutant.before, n)]
        texts = [SOURCE[:n] + mutant.after + SOURCE[n + len(mutant.before) :] for n in places]
        assert mutant.text in texts
        assert mutant.source == SOURCE.splitlines()[mutant.line - 1].strip()


def test_mutants_are_a_function_of_the_seed_and_every_covered_file_and_test_is_there():
    drawn, again, others = (
        [str(mutant) for mutant in mutants.draw(seed, 40, "run/ownership.py")] for seed in (1, 1, 2)
    )
    assert len(drawn) == 40
    assert drawn == again != others
    for file in COVERING:
        assert (ROOT / "hpc_stres" / file).is_file()
        for name in files_about(file):
            assert (ROOT / name).is_file(), name
    assert len(mutants.old_survivors()) == len(mutants.OLD)


def test_each_argument_is_about_a_change_that_is_still_made():
    for file, line, before, after in mutants.arguments_for_survivors():
        made = mutations.mutants_of(file, mutants.source_of(file))
        places = {(mutant.source, mutant.before, mutant.after) for mutant in made}
        assert (line, before, after) in places, (file, line, before, after)


class Told:
    """A tree whose tests say what they are told to."""

    def __init__(self, trial, *failing, later=None):
        self.trials = iter([trial, later])
        self.failing, self.asked = set(failing), []

    def changed(self, name, text):
        return contextlib.nullcontext()

    def run(self, files, limit_seconds=None):
        return next(self.trials)

    def failing_unchanged(self, names):
        self.asked += names
        return self.failing


def test_a_mutant_is_noticed_only_by_a_test_that_passes_without_it(capsys):
    one, test = mutants.old_survivors()[0], "tests/unit/test_requests.py::test_x"
    passed = trials.Trial(True, False, (), 1.0)
    failed = trials.Trial(False, False, (test,), 1.0)
    hung = trials.Trial(False, True, (), 300.0)

    def outcome(trial, *failing, later=None):
        tree = Told(trial, *failing, later=later)
        ((_, verdict),) = mutants.checked([(one, mutants.judge(one, tree))], tree)
        return verdict.outcome, tree.asked

    assert outcome(failed) == (mutants.NOTICED, [test])
    assert outcome(failed, test) == (mutants.UNSOUND, [test])
    assert outcome(failed, test + "_too")[0] == mutants.NOTICED
    assert outcome(passed) == (mutants.SURVIVED, [])
    quick, slow = (trials.Trial(True, False, (), seconds) for seconds in (60.0, 290.0))
    assert outcome(hung, later=quick) == (mutants.HUNG, sorted(files_about(one.file)))
    assert outcome(hung, test, later=quick)[0] == mutants.UNSOUND
    assert outcome(hung, later=slow)[0] == outcome(hung, later=hung)[0] == mutants.UNSOUND
    verdicts = [(one, mutants.Verdict(name)) for name in (mutants.HUNG, mutants.SURVIVED)]
    assert mutants.conclude(verdicts[:1]) == 0
    assert mutants.conclude(verdicts) == 1
    assert "2 mutants: 1 SURVIVED, 1 hung; 50.0 % noticed or argued" in capsys.readouterr().out


def test_what_is_on_record_is_asked_again_when_its_tests_have_changed(tmp_path, monkeypatch):
    first, second = mutants.old_survivors()[:2]
    record = mutants.Record(tmp_path / "record")
    record.add(first, mutants.Verdict(mutants.SURVIVED))
    record.add(second, mutants.Verdict(mutants.NOTICED, "test_x"))
    again = mutants.Record(tmp_path / "record")
    assert again.known(first).outcome == mutants.SURVIVED
    assert again.known(second).test == "test_x"
    assert again.known(mutants.old_survivors()[2]) is None
    monkeypatch.setattr(mutants, "_digest_of_tests", lambda file: "others")
    assert again.known(first) is None
    assert again.known(second).outcome == mutants.NOTICED


def parser_that(does):
    return Parser("made up", [b"abc"], does)


def refuse(data):
    from hpc_stres.errors import UserError

    raise UserError("list.csv: no\nWrite yes.")


def swallow(data):
    try:
        time.sleep(30)
    except (OSError, Exception):  # a parser that takes every error for one of a file
        return


def test_a_case_is_a_value_a_sentence_or_a_failure(monkeypatch, tmp_path):
    monkeypatch.setattr(fuzzing, "last_case", lambda: tmp_path / "case")
    assert fuzzing.attempt(parser_that(len), b"ab").verdict == SURVIVED
    assert fuzzing.attempt(parser_that(refuse), b"ab").verdict == STOPPED
    assert fuzzing.attempt(parser_that(lambda data: data[9]), b"ab").verdict == CRASHED
    assert (tmp_path / "case").read_bytes() == b"ab"
    monkeypatch.setattr(fuzzing, "CASE_SECONDS", 1)
    monkeypatch.setattr(fuzzing, "limit", lambda: fuzzing.signal.signal(14, fuzzing._too_slow))
    outcomes = fuzzing.run(parser_that(swallow), 1, 1)
    assert [outcome.verdict for outcome in outcomes] == [CRASHED]
    assert "TooSlow" in outcomes[0].why


def test_stored_cases_are_tried_first_and_a_signal_is_a_failure(monkeypatch, tmp_path):
    monkeypatch.setattr(fuzzing, "STORED", tmp_path / "stored")
    (tmp_path / "stored").write_text(json.dumps({"made up": ["eA=="]}))
    tried = tmp_path / "tried"

    def write_down(data):
        with tried.open("ab") as stream:
            stream.write(data + b"\n")
        if data == b"ab":
            fuzzing.os.kill(fuzzing.os.getpid(), 9)

    one = Parser("made up", [b"abc"], write_down, cut=True)
    outcomes = fuzzing.run(one, 1, 10)
    assert tried.read_bytes() == b"x\n\na\nab\n"
    assert [outcome.verdict for outcome in outcomes] == [SURVIVED] * 3 + [CRASHED]
    assert "ended with -9" in outcomes[-1].why
    assert len(list(fuzzing.cuts([b"a" * 50, b"b" * 50], 10))) == 10


@pytest.mark.parametrize("grown", [None, "files", "threads", "memory", "disk", "faults", "growing"])
def test_a_long_run_that_grows_is_a_failure(grown):
    flat = {"files": 9, "threads": 3, "memory": 10**9, "disk": 10**6, "growing": 100, "rows": 1}
    samples = []
    for number in range(40):
        values = {**flat, "growing": 100 * (number + 1), "rows": number + 1, "faults": 0}
        if grown == "faults":
            values["faults"] = int(number == 7)
        elif grown is not None and number > 30:
            values[grown] = int(values[grown] * 1.1) + 1
        samples.append(longrun.Sample(**values))
    verdicts = {outcome.verdict for outcome in longrun.judge(samples, 40, 10)}
    assert verdicts == ({SURVIVED} if grown is None else {SURVIVED, CRASHED})
