"""The config: strict, with origins, and the same after a round trip."""

import dataclasses
import random
import time
import typing

import pytest
import yaml

from hpc_stres.commands.config import field_documents
from hpc_stres.config import limits, loading
from hpc_stres.config.schema import Config
from hpc_stres.errors import ConfigError
from hpc_stres.phases.sections import ClipsSection, OptimiseSection
from hpc_stres.registry.model import TrunkSection
from hpc_stres.registry.phase import Phase
from tests.conftest import ROOT, TINY, run_python

CONFIGS = sorted((ROOT / "configs").glob("*.yaml"))


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_every_shipped_config_loads_and_survives_a_round_trip(path, tmp_path):
    config = loading.load_config(path)
    resolved = tmp_path / "config.yaml"
    resolved.write_text(loading.dump(config))
    assert loading.load_resolved(resolved) == config


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
        (
            "phases.motion.optimise.schedule=[[1,2,3]]",
            "phases.motion.optimise.schedule",
            "[steps, rate]",
        ),
        (
            "phases.motion.optimise.norm_group=1000",
            "phases.motion.optimise.norm_group",
            "at most the global batch",
        ),
        ("phases.st_resnet_star.clips.chunks=4", "phases.st_resnet_star.clips.chunks", "5 or more"),
        ("data.crop=4096", "data.crop", "short_side"),
        ("seed=", "seed", "a whole number"),
    ],
)
def test_a_wrong_value_is_refused_by_key_with_what_was_expected(override, key, expected):
    with pytest.raises(ConfigError) as caught:
        loading.load_config(TINY, [override])
    message = str(caught.value)
    assert key in message
    assert expected in message
    assert message.startswith("--set ")
    assert message.count("\n") < 3


def test_a_wrong_key_in_a_file_is_named_with_file_and_line(tmp_path):
    path = tmp_path / "mine.yaml"
    path.write_text("seed: 1\ndata:\n  kind: binding\n  short_sde: 64\n")
    with pytest.raises(
        ConfigError, match=r"mine\.yaml:4: data\.short_sde: unknown key; .* short_side"
    ):
        loading.load_config(path)


@pytest.mark.parametrize(
    "text", ["seed: [1", "- 1", "seed: 1\nseed: 2\n", "recipe: nips2017\n", "profile: none\n"]
)
def test_broken_files_are_refused_by_name(tmp_path, text):
    path = tmp_path / "broken.yaml"
    path.write_text(text)
    with pytest.raises(ConfigError, match=r"broken\.yaml"):
        loading.load_config(path)


def test_a_base_file_is_included_once_and_no_deeper(tmp_path):
    (tmp_path / "base.yaml").write_text("seed: 5\ndata: {kind: binding}\n")
    (tmp_path / "top.yaml").write_text("include: base.yaml\nseed: 6\n")
    config, origins = loading.load_with_origins(tmp_path / "top.yaml", ["data.split=2"])
    assert (config.seed, config.data.kind, config.data.split) == (6, "binding", 2)
    assert origins["seed"].endswith("top.yaml:2")
    assert origins["data.kind"].endswith("base.yaml:2")
    assert origins["data.split"] == "--set data.split"
    (tmp_path / "third.yaml").write_text("include: top.yaml\n")
    with pytest.raises(ConfigError, match="may not include another"):
        loading.load_config(tmp_path / "third.yaml")


def test_training_overrides_reach_every_phase():
    config = loading.load_config(
        TINY, ["training.global_batch=6", "training.norm_group=3", "training.max_steps=2"]
    )
    for name in config.phases:
        assert (
            config.phase(name).optimise.global_batch,
            config.phase(name).optimise.norm_group,
            config.steps(name),
        ) == (6, 3, 2)


def test_a_group_larger_than_an_overridden_batch_is_refused():
    with pytest.raises(ConfigError, match="4 is larger than the global batch of 2"):
        loading.load_config(TINY, ["training.global_batch=2", "training.norm_group=4"])


def test_every_field_is_frozen_keyword_only_and_documented():
    kinds = [
        Config,
        Phase,
        *(f.default_factory for f in dataclasses.fields(Config) if f.name not in ("phases",)),
    ]
    for kind in (k for k in kinds if dataclasses.is_dataclass(k)):
        documents = field_documents(kind)
        for field in dataclasses.fields(kind):
            assert field.kw_only, f"{kind.__name__}.{field.name}"
            assert len(documents[field.name]) > 10, f"{kind.__name__}.{field.name}"
        assert kind.__dataclass_params__.frozen


@pytest.mark.parametrize("value", [".inf", "-.inf", ".nan", "inf", "nan", "1e400"])
@pytest.mark.parametrize(
    "key",
    ["training.momentum", "training.weight_decay", "training.checkpoint_every_minutes",
     "phases.motion.optimise.dropout",
     "phases.st_resnet.optimise.loss_weight_motion", "cluster.min_all_reduce_gb_per_s",
     "training.step_timeout_minutes"],
)  # fmt: skip
def test_no_number_may_be_infinite_or_not_a_number(key, value):
    with pytest.raises(ConfigError, match=f"{key}: expected a finite number"):
        loading.load_config(TINY, [f"{key}={value}"])


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("phases.motion.optimise.schedule=[[10, .inf]]", "expected a finite number"),
        ("phases.motion.optimise.schedule=[[10, -5]]", "expected rates above 0"),
        ("phases.motion.optimise.schedule=[[10, 0]]", "expected rates above 0"),
        ("phases.motion.optimise.schedule=[]", "at least one"),
        (
            "training={engine: deepspeed, deepspeed: {zero: {x: [.nan]}}}",
            "expected a finite number",
        ),
        ("training.deepspeed={zero: 1}", "no effect with the engine ddp"),
        ("training.zero_stage=1", "no effect with the engine ddp"),
        ("phases.st_resnet.optimise.loss_weight_motion=-5", "expected 0 or more"),
        (
            "phases.st_resnet.optimise={loss_weight_motion: 0, loss_weight_appearance: 0}",
            "nothing would be trained",
        ),
        ("phases.motion.optimise.loss_weight_motion=0", "nothing would be trained"),
        ("model.width=1000000000", "model.width: expected at most 2048"),
        ("model.stages=[3, 1000000000]", "model.stages: expected at most 500"),
        (
            "phases.st_resnet.clips.chunks=1000000000",
            "phases.st_resnet.clips.chunks: expected at most 1000",
        ),
        ("evaluation.chunks=1000000000", "expected at most 10000"),
        ("cluster.nodes=99999999999999999999999", "expected at most 100000"),
        ("training.max_micro_batch=99999999999999", "expected at most 1e+06"),
        ("seed=9223372036854775808", "seed"),
        ("seed=" + "9" * 5000, "seed"),
        ("seed=0x" + "f" * 5000, "seed"),
        ("seed=2024-02-30", "not a valid value"),
        ("data.root=''", "expected text that is not empty"),
        ("data.root='  '", "expected text that is not empty"),
        ("data.root=" + "x" * 5000, "at most 4096 letters"),
        ('cluster.account="a\\n#SBATCH --wrap=evil"', "text without control characters"),
        ("recipe=../recipes/nips2016", "no ../recipes/nips2016.yaml in configs/recipes"),
        ("recipe=[nips2016]", "in configs/recipes"),
        ("training.learning_rate=0.1", "the keys here are engine, zero_stage"),
        ("max_steps=5", "there is training.max_steps"),
        ("seed=" + "[" * 60, "nested more than 50 deep"),
        ("seed=!!python/object/apply:os.system [x]", "a whole number"),
        ("seed=!!python/name:os.system x", "not valid YAML"),
    ],
)
def test_numbers_texts_and_keys_out_of_range_are_refused_in_a_sentence(override, words):
    with pytest.raises(ConfigError) as caught:
        loading.load_config(TINY, [override])
    message = str(caught.value)
    assert words in message
    assert "--set" in message
    assert len(message) < 700
    assert message.count("\n") < 3


def test_shell_lines_and_variables_may_be_long_or_empty():
    config = loading.load_config(
        TINY, ['cluster.setup=["a\\n\\tb"]', "cluster.environment={A: '', B: 3}"]
    )
    assert config.cluster.environment == {"A": "", "B": 3}


@pytest.mark.parametrize(
    "name",
    [
        "../x",
        "<img src=x>",
        "Motion",
        "prepare",
        "evaluate",
        "all",
        "two_stream",
        "a" * 41,
        "1a",
        "a-b",
    ],
)
def test_names_of_phases_are_plain_words(name, tmp_path):
    path = tmp_path / "mine.yaml"
    path.write_text(yaml.safe_dump({"phases": {name: {"model": "motion"}}}))
    with pytest.raises(ConfigError, match=r"mine\.yaml:\d+: phases: expected .*name"):
        loading.load_config(path)


def test_an_overlay_for_a_phase_that_the_recipe_lacks_is_refused_unless_it_is_a_whole_phase():
    with pytest.raises(
        ConfigError, match=r"phases\.st_resnt: the recipe has no such phase.*did you mean st_resnet"
    ):
        loading.load_config(TINY, ["phases.st_resnt.clips.chunks=5"])
    with pytest.raises(ConfigError, match=r"phases\.other.*a phase of your own needs a `model`"):
        loading.load_config(TINY, ["phases.other.optimise.global_batch=5"])
    own = loading.load_config(
        TINY, ["phases.motion_again={model: {name: motion}, starts_from: [motion]}"]
    )
    assert own.phases["motion_again"].starts_from == ("motion",)


def printed(*overrides):
    words = [word for override in overrides for word in ("--set", override)]
    result = run_python("-m", "hpc_stres", "config", "--config", TINY, *words)
    assert result.returncode == 0, result.stderr
    return dict(line.split(" = ", 1) for line in result.stdout.splitlines())


def test_config_prints_the_values_that_apply_and_no_others():
    found = printed("training.norm_group=3", "training.max_steps=4")
    assert found["phases.motion.optimise.norm_group"] == "3  # --set training.norm_group"
    assert found["phases.motion.optimise.global_batch"].startswith("10  # ")
    assert "tiny.yaml" in found["phases.motion.optimise.global_batch"]
    assert found["phases.st_resnet.optimise.schedule"].endswith(
        "(cut to 4 steps by training.max_steps)"
    )
    assert "phases.appearance.clips.stride" not in found
    assert "model.depth" not in found
    assert "data.test_fraction" not in found
    assert "data.binding.frames" in found
    assert "phases.st_resnet.optimise.dropout" not in found
    assert found["phases.st_resnet.clips.chunks"].startswith("5  #")


BOMB = "a0: &a0 [x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 9)}]\n" for n in range(1, 10)
)


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (BOMB.encode(), r"hostile\.yaml:\d+: more than 20000 values; do aliases"),
        (b"a: &a [*a]\n", r"hostile\.yaml:1: more than"),
        (b"seed: " + b"[" * 5000, r"hostile\.yaml:1: nested more than 50 deep"),
        (b"seed: 1\nrecipe: \xe4\n", r"hostile\.yaml:2: not UTF-8 text \(byte 0xe4\)"),
        (b"seed: 1\n\nrecipe: a\x00b\n", r"hostile\.yaml:3: a character that YAML does not allow"),
        (b"seed: 1\ndata:\n\tsplit: 1\n", r"hostile\.yaml:3: not valid YAML: .*'\\t'"),
        (b"? [a, b]\n: 1\n", r"hostile\.yaml:1: expected a plain word as key"),
        (b"seed: 1\n---\nseed: 2\n", r"hostile\.yaml:2: not valid YAML"),
        (b"x" * 300_000, r"hostile\.yaml: more than 256 KiB"),
        (b"\x7fELF" + bytes(range(256)), r"hostile\.yaml:\d+: not UTF-8"),
        (b"data: {split: 1, split: 2}\n", r"hostile\.yaml:1: split is given twice"),
        (b"data: &d {split: 1}\nmodel: {<<: *d}\n", r"hostile\.yaml:2: model\..*unknown key"),
    ],
)
def test_hostile_files_are_refused_in_moments_with_file_and_line(tmp_path, data, words):
    path = tmp_path / "hostile.yaml"
    path.write_bytes(data)
    started = time.process_time()
    with pytest.raises(ConfigError, match=words):
        loading.load_config(path)
    assert time.process_time() - started < 3


def mutated(text, draw):
    """A config with one to three random edits: characters, lines, values of other places, and what people fear."""
    fears = ["&a", "*a", "[", "{", "}", "!!python/object:os", "\t", "\x00", "1e999", "-1", ".nan", "null", "''",
             "true", "../..", "\u2028", "%", "---", ": ", "<<: 1", "9" * 20, "[]", "{}", "1e-3", "0x10"]  # fmt: skip
    for _ in range(draw.randint(1, 3)):
        place = draw.randrange(len(text))
        lines = text.splitlines(keepends=True)
        kind = draw.randrange(5)
        if kind == 0:
            text = text[:place] + text[place + draw.randint(1, 9) :]
        elif kind == 1:
            text = text[:place] + draw.choice(fears) + text[place:]
        elif kind == 2:
            line = draw.randrange(len(lines))
            key, colon, _ = lines[line].partition(": ")
            lines[line] = f"{key}{colon}{draw.choice(fears)}\n"
            text = "".join(lines)
        elif kind == 3:
            draw.shuffle(lines)
            text = "".join(lines)
        else:
            text = text[:place] + chr(draw.randrange(0x3000)) + text[place + 1 :]
        text = text or "seed: 1\n"
    return text


def test_five_hundred_mutated_configs_load_or_are_refused_in_a_sentence(tmp_path):
    draw, refused = random.Random(11), 0
    text = TINY.read_text()
    path = tmp_path / "mutated.yaml"
    for _ in range(500):
        path.write_text(mutated(text, draw), encoding="utf-8")
        try:
            config = loading.load_config(path)
        except ConfigError as error:
            refused += 1
            message = str(error)
            assert message.count("\n") < 3, message
            assert len(message) < 1000, message
        else:
            resolved = tmp_path / "resolved.yaml"
            resolved.write_text(loading.dump(config))
            assert loading.load_resolved(resolved) == config
    assert 100 < refused < 500


def test_every_number_of_a_config_has_a_limit_by_name():
    """A new option without a limit is held to the general one; a limit without an option is a slip."""
    known = {key for key, _ in numbers(Config, "")}
    assert set(limits.MOST) <= known


def numbers(kind, path):
    for name, hint in typing.get_type_hints(kind).items():
        key = f"{path}.{name}" if path else name
        if dataclasses.is_dataclass(hint):
            yield from numbers(hint, key)
        elif name == "phases":
            yield from numbers(ClipsSection, "phases.*.clips")
            yield from numbers(OptimiseSection, "phases.*.optimise")
            for stream in ("appearance", "motion"):
                yield from numbers(TrunkSection, f"phases.*.model.{stream}")
        elif any(word in str(hint) for word in ("int", "float", "Plateau")):
            yield key, hint
