"""The importer of Caffe's ResNets: files made by Google's own protobuf library, and broken ones."""

import random

import numpy as np
import pytest
import torch

from hpc_stres.errors import UserError
from hpc_stres.models import build_model
from hpc_stres.models.caffe import read_caffe
from hpc_stres.models.weights import load_into, read_state, to_streams

LETTERS = "abcdefghijklmnopqrstuvwxyz"


def net_parameter():
    """Caffe's NetParameter, as far as it is needed here, as a class of the protobuf library."""
    from google.protobuf import descriptor_pb2, descriptor_pool, message_factory

    field = descriptor_pb2.FieldDescriptorProto
    one, many = field.LABEL_OPTIONAL, field.LABEL_REPEATED
    file = descriptor_pb2.FileDescriptorProto(name="made_up.proto", package="made_up")

    def message(name, *fields):
        added = file.message_type.add(name=name)
        for title, number, label, kind, extra in fields:
            entry = added.field.add(name=title, number=number, label=label, type=kind)
            if isinstance(extra, str):
                entry.type_name = f".made_up.{extra}"
            elif extra is not None:
                entry.options.packed = extra

    message("BlobShape", ("dim", 1, many, field.TYPE_INT64, True))
    message(
        "BlobProto", ("num", 1, one, field.TYPE_INT32, None), ("channels", 2, one, field.TYPE_INT32, None),
        ("height", 3, one, field.TYPE_INT32, None), ("width", 4, one, field.TYPE_INT32, None),
        ("data", 5, many, field.TYPE_FLOAT, True), ("shape", 7, one, field.TYPE_MESSAGE, "BlobShape"),
        ("double_data", 8, many, field.TYPE_DOUBLE, True), ("loose", 15, many, field.TYPE_FLOAT, False),
    )  # fmt: skip
    message(
        "LayerParameter", ("name", 1, one, field.TYPE_STRING, None), ("type", 2, one, field.TYPE_STRING, None),
        ("bottom", 3, many, field.TYPE_STRING, None), ("loss_weight", 5, many, field.TYPE_FLOAT, True),
        ("blobs", 7, many, field.TYPE_MESSAGE, "BlobProto"),
    )  # fmt: skip
    message(
        "NetParameter", ("name", 1, one, field.TYPE_STRING, None),
        ("layers", 2, many, field.TYPE_MESSAGE, "LayerParameter"),
        ("layer", 100, many, field.TYPE_MESSAGE, "LayerParameter"),
    )  # fmt: skip
    pool = descriptor_pool.DescriptorPool()
    pool.Add(file)
    found = pool.FindMessageTypeByName("made_up.NetParameter")
    return message_factory.GetMessageClass(found)


def unit_names(stage, units, deep):
    numbered = deep and stage in (3, 4)
    return ["a", *(f"b{n}" if numbered else LETTERS[n] for n in range(1, units))]


def made_up(model, deep, bias=True):
    """Caffe's layers for a network's trunk: names and arrays, statistics as sums with a weight."""
    state = {k: v.numpy() for k, v in model.appearance.state_dict().items()}
    layers = {}

    def add(conv, bn, name, suffix):
        layers[name] = [state[f"{conv}.weight"]]
        mean, var = state[f"{bn}.running_mean"], state[f"{bn}.running_var"]
        factor = np.float32(0.25)
        layers[f"bn{suffix}"] = [mean * factor, var * factor, np.array([factor])]
        layers[f"scale{suffix}"] = [state[f"{bn}.weight"], state[f"{bn}.bias"]]

    add("conv1", "bn1", "conv1", "_conv1")
    layers["conv1"] = [layers["conv1"][0][:, ::-1], *([state["conv1.bias"]] if bias else [])]
    for stage, units in enumerate(model.appearance.options.stages, 2):
        for index, unit in enumerate(unit_names(stage, units, deep)):
            ours = f"layer{stage - 1}.{index}"
            if f"{ours}.downsample.0.weight" in state:
                name = f"{stage}{unit}_branch1"
                add(f"{ours}.downsample.0", f"{ours}.downsample.1", f"res{name}", name)
            for number, letter in enumerate("abc", 1):
                name = f"{stage}{unit}_branch2{letter}"
                add(f"{ours}.conv{number}", f"{ours}.bn{number}", f"res{name}", name)
    layers["fc1000"] = [state["fc.weight"], state["fc.bias"]]
    return layers


def write(path, layers, legacy=False):
    if path.suffix == ".npz":
        np.savez(
            path, **{f"{n}/{i}": b for n, blobs in layers.items() for i, b in enumerate(blobs)}
        )
        return path
    net = net_parameter()(name="made up")
    net.layer.add(name="data", type="Input")
    for name, blobs in layers.items():
        layer = net.layer.add(name=name, type="Convolution", bottom=["below"], loss_weight=[0.5])
        for blob in blobs:
            added = layer.blobs.add(data=np.ascontiguousarray(blob).reshape(-1).tolist())
            if legacy:
                sizes = [1] * (4 - blob.ndim) + list(blob.shape)
                added.num, added.channels, added.height, added.width = sizes
            else:
                added.shape.SetInParent()
                added.shape.dim.extend(np.shape(blob))
    path.write_bytes(net.SerializeToString())
    return path


def network(stages=(2, 4, 3, 2), name="appearance"):
    torch.manual_seed(5)
    model = build_model(name, 9, stages=stages, width=4, variant="msra")
    for key, tensor in model.state_dict().items():
        if key.endswith(("running_var", "bn1.weight", "bn2.weight", "bn3.weight")):
            tensor.copy_(torch.rand_like(tensor) + 0.5)
        elif not key.endswith(
            ("num_batches_tracked", "conv1.weight", "conv2.weight", "conv3.weight")
        ):
            tensor.copy_(torch.rand_like(tensor) - 0.5)
    return model


@pytest.mark.parametrize("suffix", [".caffemodel", ".npz"])
@pytest.mark.parametrize(("deep", "legacy"), [(False, False), (True, False), (False, True)])
def test_a_caffe_file_gives_the_network_it_was_made_from(tmp_path, suffix, deep, legacy):
    model = network()
    path = write(tmp_path / f"net{suffix}", made_up(model, deep), legacy)
    state = read_state(path)
    other = build_model("appearance", 9, stages=(2, 4, 3, 2), width=4, variant="msra")
    report = load_into(other, to_streams(state, ["appearance"], "mirror", False), "net")
    assert not report.replaced
    assert all(name.endswith("num_batches_tracked") for name in report.missing)
    x = torch.rand(1, 1, 3, 40, 48)
    one, two = (m.eval()(x, None).appearance for m in (model, other))
    assert bool(torch.isfinite(one).all())
    assert float(one.detach().std()) > 0.1
    torch.testing.assert_close(one, two, rtol=1e-5, atol=1e-5)


def test_the_names_of_the_three_depths_fall_on_the_right_units():
    for depth, deep in ((50, False), (101, True), (152, True)):
        real = build_model("appearance", 1000, depth, width=4, variant="msra")
        names = set(real.appearance.state_dict())
        layers = made_up(real, deep, bias=depth == 50)
        from hpc_stres.models.caffe import to_state

        given = set(to_state(layers, "made up"))
        left = {n for n in names - given if not n.endswith("num_batches_tracked")}
        assert not given - names
        assert left == (set() if depth == 50 else {"conv1.bias"})


def test_the_file_starts_a_motion_stream_by_model_weights(tmp_path):
    path = write(tmp_path / "net.caffemodel", made_up(network((2, 2)), False))
    motion = build_model("motion", 3, stages=(2, 2), width=4, variant="msra")
    report = load_into(motion, to_streams(read_state(path), ["motion"], "mean", False), "net")
    assert report.replaced == ["motion.fc.weight", "motion.fc.bias"]
    rgb = read_state(path)["conv1.weight"].mean(1)
    torch.testing.assert_close(motion.motion.conv1.weight[:, 7], rgb)


def test_a_length_beyond_the_end_is_noticed():
    from hpc_stres.models import protobuf_wire as wire

    for message, said in (([0x0A, 5, 1], "5 bytes announced at byte 0 where 1 are left"), ([0x0D, 1, 2], "4 bytes"),
                          ([0x09, 1], "8 bytes"), ([0x08], "cut off"), ([0x08] + [0x80] * 11, "without an end"),
                          ([0x0B], "type 3"), ([0x00], "field number 0")):  # fmt: skip
        with pytest.raises(wire.WireError, match=said):
            list(wire.fields(memoryview(bytes(message))))


def test_numbers_in_double_precision_and_one_by_one_are_read(tmp_path):
    from hpc_stres.models import protobuf_wire as wire
    from hpc_stres.models.caffe import _read_blob

    kind = net_parameter()
    blob = kind().layer.add().blobs.add(double_data=[1.5, -2.0])
    blob.shape.dim.extend([2])
    assert _read_blob(memoryview(blob.SerializeToString())).tolist() == [1.5, -2.0]
    loose = kind().layer.add().blobs.add(loose=[3.0, 4.5])
    parts = [
        wire.packed_floats(f, np.float32)
        for f in wire.fields(memoryview(loose.SerializeToString()))
    ]
    assert [part.tolist() for part in parts] == [[3.0], [4.5]]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda layers: layers.update(inception_3a=[np.ones(3, np.float32)]), "for the layers inception_3a"),
        (lambda layers: layers.update(bn_conv1=layers["bn_conv1"][:2]), "layer bn_conv1: 2 arrays where 3"),
        (lambda layers: layers["bn_conv1"].__setitem__(2, np.zeros(1, np.float32)), "not a number above 0"),
        (lambda layers: layers["bn_conv1"].__setitem__(2, np.full(1, np.nan, np.float32)), "not a number above 0"),
        (lambda layers: layers.update(fc8=layers["fc1000"]), "layer fc8: another layer gives fc already"),
        (lambda layers: layers["fc1000"].__setitem__(0, np.float32(1)), "a classifier of shape"),
        (lambda layers: layers["res2a_branch2a"].append(np.ones(4, np.float32)), "a bias, which only the first"),
        (lambda layers: layers.update(conv1=[np.ones((2, 2), np.float32)]), r"filters of shape \[2, 2\]"),
        (lambda layers: layers["conv1"][0].__setitem__((0, 0, 0, 0), np.inf), "NaN or infinite values in conv1.weight"),
    ],
)  # fmt: skip
@pytest.mark.parametrize("suffix", [".caffemodel", ".npz"])
def test_other_networks_are_refused_by_the_name_of_the_layer(tmp_path, change, message, suffix):
    layers = {k: [np.array(b) for b in v] for k, v in made_up(network((2,)), False).items()}
    change(layers)
    with pytest.raises(UserError, match=message):
        read_state(write(tmp_path / f"net{suffix}", layers))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda layers: layers.pop("res3b_branch2b"), "the weights lack appearance.layer2.1.conv2.weight"),
        (lambda layers: layers.pop("bn2a_branch1"), "the weights lack appearance.layer1.0.downsample.1.running_mean"),
        (lambda layers: layers.pop("scale_conv1"), "the weights lack appearance.bn1.weight, appearance.bn1.bias"),
        (lambda layers: layers.update(res5c_branch2a=layers["res5b_branch2a"]), "no place in this network for"),
        (lambda layers: layers["res2b_branch2a"].__setitem__(0, np.ones((4, 8, 1, 1), np.float32)),
         r"appearance.layer1.1.conv1.weight is \(4, 8, 1, 1\), the network has \(4, 16, 1, 1\)"),
        (lambda layers: layers["scale2a_branch2b"].__setitem__(1, np.ones(5, np.float32)),
         r"appearance.layer1.0.bn2.bias is \(5,\), the network has \(4,\)"),
    ],
)  # fmt: skip
@pytest.mark.parametrize("suffix", [".caffemodel", ".npz"])
def test_missing_further_and_misshapen_arrays_are_refused_by_name(
    tmp_path, change, message, suffix
):
    model = network((2, 2, 2, 2))
    layers = {k: [np.array(b) for b in v] for k, v in made_up(model, False).items()}
    change(layers)
    state = to_streams(
        read_state(write(tmp_path / f"net{suffix}", layers)), ["appearance"], "mirror", False
    )
    with pytest.raises(UserError, match=message):
        load_into(model, state, "net")


def test_a_shape_that_lies_is_refused(tmp_path):
    for sizes in ([0, 2**62], [3], [-1], [2] * 9, [2**32, 2**32]):
        net = net_parameter()()
        blob = net.layer.add(name="conv1").blobs.add()
        blob.shape.dim.extend(sizes)
        path = tmp_path / "net.caffemodel"
        path.write_bytes(net.SerializeToString())
        with pytest.raises(UserError, match=r"a blob of .* has 0 numbers"):
            read_caffe(path)


def test_files_of_other_kinds_are_refused(tmp_path):
    empty, text, old = (tmp_path / f"{name}.caffemodel" for name in ("empty", "text", "old"))
    empty.write_bytes(b"")
    text.write_text("<html>not found</html>")
    net = net_parameter()()
    net.layers.add(name="conv1")
    old.write_bytes(net.SerializeToString())
    arrays = tmp_path / "names.npz"
    np.savez(arrays, weights=np.ones(2))
    gap = tmp_path / "gap.npz"
    np.savez(gap, **{"conv1/1": np.ones(2)})
    whole = tmp_path / "whole.npz"
    np.savez(whole, **{"conv1/0": np.array(["text"])})
    for path, message in ((empty, "the file is empty"), (text, "not a whole Caffe model"),
                          (old, "before 2015"), (arrays, "expected LAYER/NUMBER"),
                          (gap, "expected 0, 1"), (whole, "not of numbers")):  # fmt: skip
        with pytest.raises(UserError, match=message):
            read_caffe(path)


def test_no_damage_gives_a_traceback(tmp_path):
    """Cut at any place and with any bytes changed, a file is refused in a sentence or still read."""
    said = []
    for suffix in (".caffemodel", ".npz"):
        whole = write(tmp_path / f"net{suffix}", made_up(network((2,)), False)).read_bytes()
        numbers = random.Random(8)
        path = tmp_path / f"broken{suffix}"
        for attempt in range(90):
            data = bytearray(whole)
            if attempt % 3 == 0:
                del data[numbers.randrange(len(data)) :]
            for _ in range(numbers.randrange(1, 8) if attempt % 3 else 0):
                data[numbers.randrange(len(data))] = numbers.randrange(256)
            path.write_bytes(data)
            try:
                read_state(path)
            except UserError as error:
                said.append(str(error))
    assert len(said) > 60
    assert all(str(tmp_path / "broken") in text and len(text.splitlines()) <= 3 for text in said)
