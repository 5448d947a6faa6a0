"""The config: strict, with origins, and the same after a round trip."""

import dataclasses

import pytest

from hpc_stres import configfile
from hpc_stres.commands.config import field_documents
from hpc_stres.config import Config
from hpc_stres.errors import ConfigError
from hpc_stres.recipe import Phase
from tests.conftest import ROOT, TINY

CONFIGS = sorted((ROOT / "configs").glob("*.yaml"))


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_every_shipped_config_loads_and_survives_a_round_trip(path, tmp_path):
    config = configfile.load_config(path)
    resolved = tmp_path / "config.yaml"
    resolved.write_text(configfile.dump(config))
    assert configfile.load_resolved(resolved) == config


@pytest.mark.parametrize(
    ("override", "key", "expected"),
    [
        ("training.max_step=3", "training.max_step", "max_steps"),
        ("trainin.max_steps=3", "trainin", "training"),
        ("training.engine=dpp", "training.engine", "ddp"),
        ("training.max_steps=0", "training.max_steps", "1 or more"),
        ("training.max_steps=x", "training.max_steps", "a whole number"),
        ("training.max_steps=true", "training.max_steps", "a whole number"),
        ("training.zero_stage=true", "training.zero_stage", "one of 0, 1"),
        ("training.max_micro_batch=some", "training.max_micro_batch", "auto"),
        ("phases.motion.schedule=[[1,2,3]]", "phases.motion.schedule", "[steps, rate]"),
        ("phases.motion.norm_group=1000", "phases.motion.norm_group", "at most the global batch"),
        ("phases.st_resnet_star.chunks=4", "phases.st_resnet_star.chunks", "5 or more"),
        ("data.crop=4096", "data.crop", "short_side"),
        ("seed=", "seed", "a whole number"),
    ],
)
def test_a_wrong_value_is_refused_by_key_with_what_was_expected(override, key, expected):
    with pytest.raises(ConfigError) as caught:
        configfile.load_config(TINY, [override])
    message = str(caught.value)
    assert key in message
    assert expected in message
    assert message.startswith("--set ")
    assert message.count("\n") < 3


def test_a_wrong_key_in_a_file_is_named_with_file_and_line(tmp_path):
    path = tmp_path / "mine.yaml"
    path.write_text("seed: 1\ndata:\n  kind: binding\n  short_sde: 64\n")
    with pytest.raises(ConfigError, match=r"mine\.yaml:4: data\.short_sde: unknown key; .* short_side"):
        configfile.load_config(path)


@pytest.mark.parametrize("text", ["seed: [1", "- 1", "seed: 1\nseed: 2\n", "recipe: nips2017\n", "profile: none\n"])
def test_broken_files_are_refused_by_name(tmp_path, text):
    path = tmp_path / "broken.yaml"
    path.write_text(text)
    with pytest.raises(ConfigError, match=r"broken\.yaml"):
        configfile.load_config(path)


def test_a_base_file_is_included_once_and_no_deeper(tmp_path):
    (tmp_path / "base.yaml").write_text("seed: 5\ndata: {kind: binding}\n")
    (tmp_path / "top.yaml").write_text("include: base.yaml\nseed: 6\n")
    config, origins = configfile.load_with_origins(tmp_path / "top.yaml", ["data.split=2"])
    assert (config.seed, config.data.kind, config.data.split) == (6, "binding", 2)
    assert origins["seed"].endswith("top.yaml:2")
    assert origins["data.kind"].endswith("base.yaml:2")
    assert origins["data.split"] == "--set data.split"
    (tmp_path / "third.yaml").write_text("include: top.yaml\n")
    with pytest.raises(ConfigError, match="may not include another"):
        configfile.load_config(tmp_path / "third.yaml")


def test_training_overrides_reach_every_phase():
    config = configfile.load_config(TINY, ["training.global_batch=6", "training.norm_group=3", "training.max_steps=2"])
    for name in config.phases:
        assert (config.phase(name).global_batch, config.phase(name).norm_group, config.steps(name)) == (6, 3, 2)


def test_a_group_larger_than_an_overridden_batch_is_refused():
    config = configfile.load_config(TINY, ["training.global_batch=2", "training.norm_group=4"])
    with pytest.raises(ConfigError, match="4 is larger than the global batch of 2"):
        config.phase("motion")


def test_every_field_is_frozen_keyword_only_and_documented():
    kinds = [Config, Phase, *(f.default_factory for f in dataclasses.fields(Config) if f.name not in ("phases",))]
    for kind in (k for k in kinds if dataclasses.is_dataclass(k)):
        documents = field_documents(kind)
        for field in dataclasses.fields(kind):
            assert field.kw_only, f"{kind.__name__}.{field.name}"
            assert len(documents[field.name]) > 10, f"{kind.__name__}.{field.name}"
        assert kind.__dataclass_params__.frozen
