"""A run belongs to one state of its data set: what changed since it began is refused by every later command."""

import pytest

from hpc_stres.errors import UserError
from hpc_stres.parallel.world import find_world
from hpc_stres.prepare.run import prepare
from hpc_stres.run.data_set import claim_data_set, refuse_other_data_set
from hpc_stres.store.listing import facts_of
from hpc_stres.store.location import store_folder
from hpc_stres.store.reader import Store
from tests.conftest import run_python
from tests.unit.listed import own_config, rows_of, write_csv


def change(root, rows, how):
    """One kind of change of the data set; the line that names it."""
    if how == "class":
        rows[2][1] = rows[3][1] = "aaa"
        return "classes new: aaa"
    if how == "label":
        rows[3][1] = "jump"
    elif how == "split":
        rows[6][2] = "train"
        return "5 training videos then, 6 now"
    elif how == "added":
        rows.append(rows_of(root, 12)[11])
        return "5 training videos then, 6 now"
    elif how == "content":
        path = root / "binding" / "videos" / rows[1][0]
        data = bytearray(path.read_bytes())
        data[-5] ^= 1
        path.write_bytes(data)
    return "labels, splits or contents of training videos differ"


@pytest.mark.parametrize("how", ["class", "label", "split", "added", "content"])
def test_a_run_refuses_a_data_set_that_changed_since_it_began(root, tmp_path, how):
    from hpc_stres.training.phase import train

    rows = rows_of(root)
    write_csv(root, rows)
    config = own_config(root, "training.max_steps=1")
    prepare(config, quiet=True)
    run_dir = tmp_path / "run"
    assert train(config, "motion", run_dir, find_world({}))
    words = change(root, rows, how)
    write_csv(root, rows)
    prepare(config, quiet=True)
    with pytest.raises(
        UserError, match=f"not as it was when this run began: .*{words}(.|\\n)*another --run-dir"
    ):
        train(config, "appearance", run_dir, find_world({}))
    tested = run_python("-m", "hpc_stres", "evaluate", "--run-dir", run_dir)
    assert tested.returncode == 1
    assert words in tested.stderr
    assert train(config, "appearance", run_dir, find_world({}), ("data",))


def test_the_same_data_set_elsewhere_is_the_same(root, tmp_path):
    write_csv(root, rows_of(root))
    config = own_config(root)
    facts = facts_of(Store(prepare(config, quiet=True)), 1)
    claim_data_set(tmp_path, facts)
    again = facts_of(Store(store_folder(config)), 1)
    claim_data_set(tmp_path, again)
    refuse_other_data_set(tmp_path, again)


def test_a_damaged_note_is_named_and_a_run_without_one_is_believed(tmp_path):
    refuse_other_data_set(tmp_path, {"classes": ["a"]})
    claim_data_set(tmp_path, {"classes": ["a"]})
    path = tmp_path / "data_set.json"
    path.write_text(path.read_text().replace("a", "b", 1))
    with pytest.raises(UserError, match=r"data_set\.json"):
        refuse_other_data_set(tmp_path, {"classes": ["a"]})


def test_other_test_videos_are_tested_as_they_are(root, tmp_path):
    rows = rows_of(root)
    write_csv(root, rows)
    config = own_config(root)
    claim_data_set(tmp_path, facts_of(Store(prepare(config, quiet=True)), 1))
    write_csv(root, [row for row in rows if row is not rows[8]])
    refuse_other_data_set(tmp_path, facts_of(Store(prepare(config, quiet=True)), 1))
