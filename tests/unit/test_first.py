"""Of several writers at once one is the first: the claim of a folder for a data set that is made here."""

import json
import threading
from concurrent.futures import ThreadPoolExecutor

from hpc_stres.run.paths import write_first
from hpc_stres.store.location import claim_home, data_of
from tests.conftest import tiny_config


def test_of_many_writers_at_once_one_is_first_and_whole(tmp_path):
    path = tmp_path / "new" / "made_of.json"
    values = [{"seed": seed, "long": "x" * 20_000} for seed in range(16)]
    start = threading.Barrier(len(values))

    def write(value):
        start.wait()
        write_first(path, value)
        return json.loads(path.read_text())

    with ThreadPoolExecutor(len(values)) as pool:
        seen = list(pool.map(write, values))
    assert seen[0] in values
    assert all(one == seen[0] for one in seen)
    assert [file.name for file in path.parent.iterdir()] == ["made_of.json"]


def test_two_demonstrations_that_are_made_at_once_under_one_root_get_a_folder_each(tmp_path):
    configs = [tiny_config(tmp_path, f"seed={seed}") for seed in (1, 2, 3)]
    with ThreadPoolExecutor(len(configs)) as pool:
        list(pool.map(claim_home, configs))
    homes = {data_of(config).videos for config in configs}
    assert len(homes) == 3
    assert str(tmp_path / "binding" / "videos") in homes
