"""Weights in and out: names, shapes, inflation; refusals that name what is wrong."""

import pickle

import pytest
import torch

from hpc_stres.errors import UserError
from hpc_stres.models import build_model
from hpc_stres.models.describe import describe
from hpc_stres.models.temporal import TemporalConv
from hpc_stres.models.weights import load_into, read_state, save_state, to_streams, to_torchvision

SMALL = {"stages": (2, 2), "width": 4}


def state_of(name, classes=5, **options):
    return build_model(name, classes, **SMALL, **options).state_dict()


def test_torchvision_names_and_back_bit_for_bit(tmp_path):
    state = state_of("appearance")
    plain = to_torchvision(state, "appearance")
    assert {
        "conv1.weight",
        "bn1.running_var",
        "layer1.0.downsample.0.weight",
        "layer2.1.conv3.weight",
        "fc.bias",
    } <= set(plain)
    save_state(plain, tmp_path / "plain.safetensors")
    back = to_streams(read_state(tmp_path / "plain.safetensors"), ["appearance"], "mirror", False)
    assert back.keys() == state.keys()
    assert all(torch.equal(back[name], state[name]) for name in state)


def test_resnet50_has_torchvisions_keys():
    with torch.device("meta"):
        names = to_torchvision(build_model("appearance", 1000).state_dict(), "appearance")
    assert len(names) == 320
    assert names["layer3.5.bn2.num_batches_tracked"].shape == ()
    assert names["layer4.0.downsample.1.running_mean"].shape == (2048,)


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_imagenet_weights_start_both_streams(tmp_path, suffix):
    plain = to_torchvision(state_of("appearance", 1000), "appearance")
    path = tmp_path / f"weights{suffix}"
    if suffix == ".pth":
        torch.save({"state_dict": plain}, path)
    else:
        save_state(plain, path)
    model = build_model("motion", 5, **SMALL)
    report = load_into(model, to_streams(read_state(path), ["motion"], "mirror", False), str(path))
    assert sorted(report.replaced) == ["motion.fc.bias", "motion.fc.weight"]
    assert torch.equal(model.motion.conv1.weight[:, 3], plain["conv1.weight"][:, 2])
    assert "2 replaced" in str(report)


def test_temporal_layers_are_inflated_to_a_third():
    state = state_of("appearance") | state_of("motion")
    model = build_model("st_resnet", 5, **SMALL)
    report = load_into(model, state, "streams")
    assert len(report.inflated) == 8
    weight = model.appearance.layer1[1].conv1.weight
    torch.testing.assert_close(
        weight.sum(2, keepdim=True), state["appearance.layer1.1.conv1.weight"]
    )
    assert torch.equal(weight[:, :, 0], weight[:, :, 2])


def test_temporal_layers_are_summed_where_a_network_has_none():
    """A stream that starts from a joint network does to one frame what that did to a clip at rest."""
    state = state_of("st_resnet")
    draw = torch.Generator().manual_seed(1)
    name = "motion.layer1.1.conv1.weight"
    state[name] = torch.randn(state[name].shape, generator=draw)
    model = build_model("motion", 5, **SMALL)
    own = {key: value for key, value in state.items() if key.startswith("motion.")}
    report = load_into(model, own, "a joint network")
    assert len(report.summed) == 4
    assert "4 summed over time" in str(report)
    over_time = TemporalConv(*reversed(state[name].shape[:2]), padding="replicate")
    over_time.weight.data = state[name]
    frame = torch.randn(1, state[name].shape[1], 3, 4, generator=draw)
    at_rest = over_time(frame.expand(6, -1, -1, -1).contiguous(), frames=6)
    torch.testing.assert_close(model.motion.layer1[1].conv1(frame), at_rest[2:3])


def test_stm_keeps_its_identity_layers_when_streams_are_loaded():
    report = load_into(
        build_model("stm_resnet", 5, **SMALL),
        state_of("appearance") | state_of("motion"),
        "streams",
    )
    assert len([name for name in report.missing if ".temporal." in name]) == 8


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (
            lambda s: s.pop("appearance.layer1.0.conv2.weight"),
            "lack appearance.layer1.0.conv2.weight",
        ),
        (
            lambda s: s.update({"appearance.layer9.weight": torch.zeros(1)}),
            "no place .* appearance.layer9.weight",
        ),
        (
            lambda s: s.update({"appearance.conv1.weight": torch.zeros(8, 3, 7, 7)}),
            r"conv1.weight is \(8, 3, 7, 7\)",
        ),
    ],
)
def test_weights_that_do_not_fit_are_refused_by_name(change, words):
    state = dict(state_of("appearance"))
    change(state)
    with pytest.raises(UserError, match=words):
        load_into(build_model("appearance", 5, **SMALL), state, "file")


def test_a_missing_file_says_where_to_get_it(tmp_path):
    with pytest.raises(UserError, match=r"no such weights file\nImageNet weights: torchvision's"):
        read_state(tmp_path / "none.pth")


class Evil:
    def __reduce__(self):
        return (open, ("/tmp/hpc_stres_was_here", "w"))


def test_nothing_is_unpickled_unsafely(tmp_path):
    path = tmp_path / "evil.pth"
    torch.save({"conv1.weight": Evil()}, path)
    with pytest.raises(UserError, match="cannot read the weights"):
        read_state(path)
    path.write_bytes(pickle.dumps(Evil()))
    with pytest.raises(UserError, match="cannot read the weights"):
        read_state(path)


def test_describe_prints_the_papers_table_1():
    """NIPS 2016, Table 1, with the MSRA network that it used; pool5 in chunks is 17 + 4 by arithmetic, not 47."""
    rows = {
        row.name: row
        for row in describe(build_model("st_resnet_star", 101, variant="msra"), 224, 11)[
            "appearance"
        ]
    }
    expected = {
        "conv1": (112, 7, 1), "pool1": (56, 11, 1), "conv2_x": (56, 35, 5), "conv3_x": (28, 99, 9),
        "conv4_x": (14, 291, 13), "conv5_x": (7, 483, 17), "pool5": (1, 675, 21),
    }  # fmt: skip
    assert {
        name: (r.side, r.field_pixels, r.field_chunks)
        for name, r in rows.items()
        if name in expected
    } == expected
    assert (rows["conv5_x"].chunks, rows["pool5"].chunks) == (11, 4)
    frame = describe(build_model("appearance", 1000, variant="msra"), 224, 1)["appearance"]
    assert 3.7e9 < sum(row.multiply_adds for row in frame) < 3.9e9
