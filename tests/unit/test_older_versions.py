"""Run folders that older versions wrote: read as today's, or refused with a sentence."""

import pytest
import yaml

from hpc_stres.config.loading import from_plain, load_config, load_run, plain
from hpc_stres.errors import UserError
from hpc_stres.run.experiment import claim_run_folder
from tests.conftest import ROOT, TINY

# What version 0.3 wrote, whose phases had no sections, and today's words for the same.
OF_0_3 = ROOT / "tests" / "unit" / "golden" / "config_0.3.yaml"
AS_NOW = [
    "data.root=data", "phases.st_resnet_star.model.temporal_pool=before_average",
    "phases.motion.optimise.dropout=0.5", "phases.motion.model.conv1_inflation=mean",
    "phases.st_resnet.clips.window=released",
]  # fmt: skip


def test_a_run_folder_of_0_3_is_read_as_if_it_were_written_today(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "config.yaml").write_text(OF_0_3.read_text())
    wanted = load_config(TINY, AS_NOW)
    read = load_run(tmp_path)
    assert plain(read)["phases"] == plain(wanted)["phases"]
    assert read.phases == wanted.phases
    # Its finished phases and checkpoints hold the same flat config, as plain values.
    assert (
        plain(from_plain(yaml.safe_load(OF_0_3.read_text()), "done.json"))["phases"]
        == plain(wanted)["phases"]
    )
    claim_run_folder(wanted, tmp_path)
    with pytest.raises(UserError, match=r"phases\.motion\.optimise\.dropout: 0\.5 there, 0\.4 now"):
        claim_run_folder(
            load_config(TINY, [*AS_NOW, "phases.motion.optimise.dropout=0.4"]), tmp_path
        )
