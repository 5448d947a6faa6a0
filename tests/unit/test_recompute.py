"""The figures of results.json and of the table are those that others work out of the score files."""

import pytest

from hpc_stres.evaluation import measures, statistics
from tests.campaigns import recompute


@pytest.mark.parametrize("seed", range(len(recompute.CASES)), ids=recompute.CASES)
def test_every_figure_is_what_the_scores_say(tmp_path, seed):
    assert recompute.make(tmp_path / "run", seed) == recompute.CASES[seed]
    wrong, figures = recompute.check_run(tmp_path / "run")
    assert not wrong
    assert figures > 100


@pytest.mark.parametrize("what", ["recordings that are not known", "another place", "another p"])
def test_a_figure_that_is_off_is_named(tmp_path, monkeypatch, what):
    if what == "another place":
        right = measures.right
        monkeypatch.setattr(measures, "right", lambda a, b, top=1: right(a, b, min(top, 2)))
    elif what == "another p":
        turned = statistics.sign_flip_p
        monkeypatch.setattr(statistics, "sign_flip_p", lambda *a: min(1.0, 1.001 * turned(*a)))
    else:
        design = statistics.design
        monkeypatch.setattr(statistics, "design", lambda labels, groups=None: design(labels))
    recompute.make(tmp_path / "run", 7)
    wrong, _ = recompute.check_run(tmp_path / "run")
    named = {
        "recordings that are not known": "intervals.top1",
        "another place": "top5",
        "another p": ".p:",
    }[what]
    assert any(named in line for line in wrong)
