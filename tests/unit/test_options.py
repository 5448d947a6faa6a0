"""Every option of a phase: which act on which model, and those that do not are refused."""

import pytest

from hpc_stres.config import loading, values
from hpc_stres.errors import ConfigError
from hpc_stres.registry import MODELS
from hpc_stres.registry.phase import Phase
from tests.conftest import TINY

# Every option of a `train` phase with a value that is not its default.
OTHERWISE = {
    "weights": "x.pth", "starts_from": ("motion",),
    "model.norm_average": "sigma", "model.conv1_inflation": "mean", "model.conv1_rescale": True,
    "model.temporal_padding": "replicate", "model.operation": ..., "model.direction": "both",
    "model.placement": "direct", "model.temporal_pool": ..., "model.appearance.depth": 152,
    "model.appearance.stages": [2, 3], "model.appearance.width": 12, "model.appearance.variant": "msra",
    "model.appearance.side": 40, "model.appearance.mean": [1.0, 2.0, 3.0],
    "model.appearance.deviation": [1.0, 2.0, 3.0], "model.appearance.weights": "x.pth",
    "model.motion.depth": 152, "model.motion.stages": [2, 3], "model.motion.width": 12,
    "model.motion.variant": "msra", "model.motion.side": 40, "model.motion.mean": [1.0, 2.0, 3.0],
    "model.motion.deviation": [1.0, 2.0, 3.0], "model.motion.weights": "x.pth",
    "model.learned_scale": True, "model.temporal_init": "average", "model.temporal_units": "as_released",
    "clips.segments": 5, "clips.frame_grid": 2,
    "optimise.softmax": "joint", "optimise.agreement_loss": 0.5,
    "clips.chunks": 7, "clips.stride": [2, 4], "clips.stride_shared_by": "group", "clips.window": "released",
    "clips.short_video": "repeat", "clips.crop": "corners", "clips.border_corners": "two",
    "clips.crop_shared_by": "group", "clips.antialias": False,
    "optimise.global_batch": 40, "optimise.norm_group": 5, "optimise.schedule": [[3, 0.1]],
    "optimise.schedule_scale": 0.5, "optimise.trainable": "head",
    "optimise.dropout": 0.5, "optimise.classifier_only_steps": 3, "optimise.loss_over_time": "mean",
    "optimise.loss_weight_appearance": 0.5, "optimise.loss_weight_motion": 0.5,
}  # fmt: skip
# Which a model has or obeys, said here once more by hand.
EVERYWHERE = {
    "weights", "starts_from", "model.norm_average", "clips.crop", "clips.crop_shared_by", "clips.antialias",
    "clips.border_corners", "optimise.global_batch", "optimise.norm_group", "optimise.schedule",
    "optimise.classifier_only_steps", "optimise.schedule_scale", "optimise.trainable",
}  # fmt: skip
RGB = {key for key in OTHERWISE if key.startswith("model.appearance.")} | {
    "optimise.loss_weight_appearance"
}
FLOW = {key for key in OTHERWISE if key.startswith("model.motion.")} | {
    "model.conv1_inflation", "model.conv1_rescale", "clips.chunks", "clips.short_video", "optimise.loss_weight_motion",
    "clips.segments", "clips.frame_grid",
}  # fmt: skip
STM = {"model.temporal_init", "model.temporal_units"}
ACTING = {
    "appearance": EVERYWHERE | RGB | {"optimise.dropout"},
    "motion": EVERYWHERE | FLOW | {"optimise.dropout"},
    "st_resnet": set(OTHERWISE) - STM - {"optimise.dropout", "model.temporal_pool"},
    "st_resnet_star": set(OTHERWISE) - STM - {"optimise.dropout"},
    "stm_resnet": set(OTHERWISE),
}  # fmt: skip
# Values that differ from the default of one model and are the default of another.
BY_MODEL = {
    "stm_resnet": {"model.operation": "add", "model.temporal_pool": "after_pool5"},
    "st_resnet_star": {"model.operation": "multiply", "model.temporal_pool": "before_average"},
}


def phase_with(model, key=None, value=None):
    """A phase of a model, several chunks long where it can be, with one more option."""
    tree = {"model": {"name": model}}
    if model not in ("appearance", "motion"):
        tree["clips"] = {"chunks": 5}
    if key in ("clips.segments", "clips.frame_grid") and key in ACTING[model]:
        tree["clips"] = {"segments": 6}
    if key is not None:
        home = tree
        for part in key.split(".")[:-1]:
            home = home.setdefault(part, {})
        home[key.split(".")[-1]] = list(value) if isinstance(value, tuple) else value
    return values.build(Phase, loading.node_of(tree, "here"), "phases.x")


def test_the_table_of_options_knows_every_option():
    known = set()
    for family in MODELS.entries():
        if family.name in ACTING:
            known |= set(leaves(phase_with(family.name)))
    assert set(OTHERWISE) == known - {
        "kind",
        "model.name",
        "model.appearance.family",
        "model.motion.family",
    }


def leaves(phase):
    """Dotted names of every option that a phase has, whether it acts or not."""
    return loading.flat(loading.plain(phase))


@pytest.mark.parametrize("model", list(ACTING))
def test_options_that_do_not_act_on_a_model_are_refused_and_all_others_taken(model):
    for key, value in OTHERWISE.items():
        given = BY_MODEL.get(model, BY_MODEL["st_resnet_star"])[key] if value is ... else value
        if key in ACTING[model]:
            assert key in phase_with(model, key, given).acting()
            assert leaves(phase_with(model, key, given)) != leaves(phase_with(model))
        else:
            with pytest.raises(
                ConfigError,
                match=f"{key}: (no effect in a phase of {model}|unknown key)|unknown key",
            ):
                phase_with(model, key, given)
            assert key not in phase_with(model).acting()


def test_an_interaction_that_is_off_has_no_operation_and_no_placement():
    for option in ("operation: multiply", "placement: direct"):
        with pytest.raises(
            ConfigError, match="no effect in a phase of st_resnet: `direction` is off"
        ):
            loading.load_config(TINY, [f"phases.st_resnet.model={{direction: off, {option}}}"])


def test_what_starts_from_phases_takes_no_other_weights():
    for key, value in (("weights", "x.pth"), ("model.conv1_inflation", "mean")):
        with pytest.raises(ConfigError, match=f"{key}: no effect"):
            loading.load_config(
                TINY, ["phases.st_resnet.starts_from=[motion]", f"phases.st_resnet.{key}={value}"]
            )
