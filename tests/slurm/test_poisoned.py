"""A chain on a cluster with one poisoned node. All the ways in which a node may fail: `tests.campaigns.poisoned`."""

from tests.campaigns.poisoned import BAD, Round, judge


def test_a_chain_survives_a_node_on_which_ranks_die_and_names_it(slurm, data_root, tmp_path):
    slurm.wait(slurm.all_idle, "idle nodes, so that the poisoned one is taken first", 120)
    outcome = Round(slurm, data_root, tmp_path / "dies", "dies").run(cluster__links=2)
    assert judge(outcome, BAD) == [], (outcome.status, outcome.logs[-3000:])
    assert [BAD in attempt.nodes for attempt in outcome.attempts] == [True, False]
    # Of the lost attempt as well: its script has written down when it began and how it ended.
    assert outcome.attempts[0].code not in (0, None)
    assert outcome.attempts[0].end is not None
