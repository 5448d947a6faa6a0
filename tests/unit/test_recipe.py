"""The recipes carry the paper's Table 2 and the released code's numbers; the graph of phases is a graph."""

import pytest

from hpc_stres.config.loading import CONFIGS, load_config
from hpc_stres.config.recipe import ordered_phases, select_phases
from hpc_stres.config.schedule import Plateau, learning_rate, total_steps
from hpc_stres.errors import ConfigError
from hpc_stres.phases.train import TrainPhase
from hpc_stres.registry import MODELS
from tests.conftest import TINY


@pytest.fixture
def bare(tmp_path):
    def load(recipe):
        path = tmp_path / "bare.yaml"
        path.write_text(f"recipe: {recipe}\n")
        return load_config(path).phases

    return load


def test_nips2016_is_table_2(bare):
    phases = bare("nips2016")
    table = {
        "motion": (256, 86, [(30000, 1e-2), (10000, 1e-3)], 1, (1, 1)),
        "appearance": (256, 8, [(10000, 1e-2), (10000, 1e-3)], 1, (1, 1)),
        "st_resnet": (128, 4, [(30000, 1e-3), (30000, 1e-4), (20000, 1e-5)], 5, (5, 15)),
        "st_resnet_star": (128, 4, [(2000, 1e-4), (2000, 1e-5)], 11, (1, 15)),
    }
    for name, (batch, group, schedule, chunks, stride) in table.items():
        phase = phases[name]
        assert (
            phase.optimise.global_batch,
            phase.optimise.norm_group,
            phase.clips.chunks,
            phase.clips.stride,
        ) == (
            batch,
            group,
            chunks,
            stride,
        )
        assert [tuple(plateau) for plateau in phase.optimise.schedule] == schedule
        assert phase.optimise.dropout == 0


def test_released_differs_where_the_code_differs(bare):
    phases = bare("released")
    assert (
        phases["motion"].optimise.global_batch,
        phases["motion"].optimise.norm_group,
        phases["motion"].optimise.dropout,
    ) == (128, 32, 0.8)
    assert phases["appearance"].optimise.norm_group == 32
    assert total_steps(phases["st_resnet"].optimise.schedule) == 2238 + 2238 + 1492
    assert phases["st_resnet_star"].model.temporal_pool == "before_average"
    assert {phase.model.norm_average for phase in phases.values()} == {"sigma"}


def test_phases_come_after_those_they_start_from():
    phases = load_config(TINY, ["phases.st_resnet.starts_from=[motion, appearance]"]).phases
    assert ordered_phases(phases) == ["motion", "appearance", "st_resnet", "st_resnet_star"]
    assert select_phases(phases, "st_resnet, motion") == ["motion", "st_resnet"]
    assert select_phases(phases, "all") == ordered_phases(phases)


@pytest.mark.parametrize("wanted", ["st_resnt", "", ","])
def test_an_unknown_phase_is_refused_with_the_known_ones(wanted):
    with pytest.raises(ConfigError, match="motion, appearance"):
        select_phases(load_config(TINY).phases, wanted)


def motion_from(*parents):
    return TrainPhase(model=MODELS.get("motion").options(name="motion"), starts_from=parents)


def test_circles_and_missing_parents_are_refused():
    with pytest.raises(ConfigError, match="in a circle"):
        ordered_phases({"a": motion_from("b"), "b": motion_from("a")})
    with pytest.raises(ConfigError, match=r"phases\.a\.starts_from: no phase 'c'"):
        ordered_phases({"a": motion_from("c")})


def test_learning_rate_is_a_pure_function_of_the_step():
    schedule = (Plateau(2, 0.1), Plateau(1, 0.01))
    assert [learning_rate(schedule, step) for step in range(5)] == [0.1, 0.1, 0.01, 0.01, 0.01]
    assert total_steps(schedule) == 3
    assert total_steps(schedule, 2) == 2
    with pytest.raises(ValueError, match="-1"):
        learning_rate(schedule, -1)


def test_a_dropout_for_every_phase_acts_where_a_network_has_any():
    from hpc_stres.config.loading import load_config
    from tests.conftest import TINY

    config = load_config(TINY, ["training.dropout=0.8"])
    assert {name: config.phase(name).optimise.dropout for name in config.phases} == {
        "motion": 0.8, "appearance": 0.8, "st_resnet": 0.0, "st_resnet_star": 0.0,
    }  # fmt: skip
    assert (
        load_config(TINY, ["phases.motion.optimise.dropout=0.5"]).phase("motion").optimise.dropout
        == 0.5
    )


def test_published_figures_belong_to_networks_as_published():
    figures = {
        recipe: load_config(CONFIGS / "recipes" / f"{recipe}.yaml").phases["stm_resnet"].published
        for recipe in ("stm_released", "stm_released_r152")
    }
    assert figures == {"stm_released": {}, "stm_released_r152": {"ucf101": 94.2, "hmdb51": 68.9}}
    nips = CONFIGS / "recipes" / "nips2016.yaml"
    assert load_config(nips).phases["st_resnet"].published == {"ucf101": 92.76, "hmdb51": 65.57}
    for other in ("model.depth=101", "model.width=32", "model.stages=[2, 2]",
                  "phases.st_resnet.model.motion.depth=152", "phases.st_resnet.model.direction=both",
                  "phases.st_resnet.model.operation=multiply", "phases.st_resnet.model.placement=direct"):  # fmt: skip
        assert load_config(nips, [other]).phases["st_resnet"].published == {}, other


def test_both_streams_of_a_network_have_one_side():
    with pytest.raises(
        ConfigError, match="appearance 40 and motion 32: both streams see the same crop"
    ):
        load_config(TINY, ["phases.st_resnet.model.appearance.side=40"])


def test_a_phase_reads_what_its_kind_can_read():
    with pytest.raises(
        ConfigError, match=r"phases\.st_resnet\.starts_from: idt is of kind handcrafted"
    ):
        load_config(TINY, ["phases.idt={kind: handcrafted}", "phases.st_resnet.starts_from=[idt]"])
