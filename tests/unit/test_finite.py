"""What is not finite does not leave: not into a checkpoint, not into the product, and not in from a
file."""

import json

import pytest
import torch
from safetensors.torch import load_file, save_file

from hpc_stres.errors import UserError
from hpc_stres.models import SubBatchNorm2d, build_model
from hpc_stres.models.state import not_finite
from hpc_stres.models.weights import load_into, read_state, save_state
from hpc_stres.run.paths import RunPaths
from hpc_stres.training import checkpoint
from hpc_stres.training.trainer import Trainer
from tests.unit.trained import train

SMALL = {"stages": (2, 2), "width": 4}
NAN, INF = float("nan"), float("inf")


@pytest.mark.parametrize("bad", [NAN, INF, -INF])
@pytest.mark.parametrize("place", [0, 3, 6])
@pytest.mark.parametrize("kind", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_one_bad_number_is_found_wherever_it_is(bad, place, kind):
    largest = torch.finfo(kind).max
    state = {
        "a": torch.full((7,), largest, dtype=kind),
        "b": torch.full((2, 2), -largest, dtype=torch.float64),
    }
    state |= {"none": torch.zeros(0), "count": torch.tensor(3)}
    assert not_finite(state) == [], "finite numbers whose squares or sums overflow are finite"
    state["a"][place] = bad
    assert not_finite(state) == ["a"]


def folders(run_dir):
    return sorted(path.name for path in RunPaths(run_dir).phase("motion").checkpoints.glob("step*"))


def test_an_overflow_in_the_last_step_is_no_product(data_root, tmp_path):
    options = [
        "phases.motion.optimise.schedule=[[4, 1.0e-6], [1, 1.0e+38]]",
        "training.weight_decay=1000",
    ]
    options.append("training.checkpoint_every_steps=2")
    with pytest.raises(
        UserError, match=r"NaN or infinite values in motion\..* after step 5; they were not saved"
    ) as e:
        train(data_root, tmp_path, "motion", *options)
    assert "The last checkpoint is untouched. Lower the learning rate" in str(e.value)
    paths = RunPaths(tmp_path).phase("motion")
    assert folders(tmp_path) == ["step00000002", "step00000004"]
    assert not paths.done.exists()
    assert not paths.weights.exists()


def poison_motion(trainer):
    trainer.engine.momentum()["motion.fc.bias"][0] = INF


def poison_statistics(trainer):
    trainer.model.motion.bn1.running_mean[1] = NAN


@pytest.mark.parametrize(
    ("poison", "name"),
    [
        (poison_motion, "the momentum of motion.fc.bias"),
        (poison_statistics, "motion.bn1.running_mean"),
    ],
)
def test_momentum_and_statistics_are_checked_before_each_checkpoint(
    data_root, tmp_path, monkeypatch, poison, name
):
    save = Trainer.save

    def poisoned(self, wait):
        if self.step == 4:
            poison(self)
        save(self, wait)

    monkeypatch.setattr(Trainer, "save", poisoned)
    with pytest.raises(UserError, match=f"NaN or infinite values in {name} after step 4"):
        train(data_root, tmp_path, "motion", "training.checkpoint_every_steps=2")
    assert folders(tmp_path) == ["step00000002"]


def test_a_product_from_a_last_checkpoint_is_checked_too(data_root, tmp_path, monkeypatch):
    """Resumed at its last step, a phase only writes its product."""
    train(data_root, tmp_path, "motion", "training.max_steps=2")
    paths = RunPaths(tmp_path).phase("motion")
    paths.done.unlink()
    paths.weights.unlink()
    loop = Trainer.train

    def poisoned(self):
        poison_statistics(self)
        return loop(self)

    monkeypatch.setattr(Trainer, "train", poisoned)
    with pytest.raises(
        UserError, match=r"NaN or infinite values in motion\.bn1\.running_mean after step 2"
    ):
        train(data_root, tmp_path, "motion", "training.max_steps=2")
    assert not paths.done.exists()
    assert not paths.weights.exists()


def spoil(folder, name, tensor):
    """Put a NaN into a checkpoint as a version without this check would have written it: its
    checksums are right."""
    meta = json.loads((folder / "meta.json").read_text())
    state = load_file(folder / name)
    state[tensor].view(-1)[0] = NAN
    save_file(state, folder / name)
    meta.pop("checksum")
    meta["sha256"][name] = checkpoint.sha256(folder / name)
    checksum = checkpoint.meta_checksum(meta)
    (folder / "meta.json").write_text(json.dumps(meta | {"checksum": checksum}))


@pytest.mark.parametrize("name", ["weights.safetensors", "momentum.safetensors"])
def test_a_resume_falls_back_to_the_last_good_checkpoint_and_says_so(
    data_root, tmp_path, capsys, name
):
    options = ["training.checkpoint_every_steps=1", "training.precision=float64"]
    straight = train(data_root, tmp_path / "straight", "motion", *options, "training.max_steps=5")
    train(data_root, tmp_path / "run", "motion", *options, "training.max_steps=4")
    paths = RunPaths(tmp_path / "run").phase("motion")
    spoil(paths.checkpoint(4), name, "motion.conv1.weight")
    capsys.readouterr()
    again = train(data_root, tmp_path / "run", "motion", *options, "training.max_steps=5")
    output = capsys.readouterr()
    what = name.split(".")[0]
    assert (
        f"step00000004: NaN or infinite {what} in motion.conv1.weight; taking the checkpoint before"
        in output.err
    )
    assert "motion: resumes from step 3" in output.out
    assert all(torch.equal(value, again[key]) for key, value in straight.items())


def test_bad_checkpoints_of_later_steps_never_push_out_good_ones(tmp_path, capsys):
    paths = RunPaths(tmp_path).phase("motion")

    def save(step, value=1.0):
        tensor = torch.full((4,), value)
        checkpoint.save(
            paths, step, {"a": tensor}, {"a": tensor}, {"phase": "motion", "loss": 1 / step}
        )

    for step in (10, 20, 30):
        save(step, NAN)
    assert checkpoint.newest(paths) is None
    assert "there is none before it: starting from the beginning" in capsys.readouterr().err
    save(5)
    assert checkpoint.newest(paths).step == 5
    assert folders(tmp_path) == ["step00000005"], "the bad ones are gone once there is a good one"


def state(**changes):
    whole = dict(build_model("appearance", 5, **SMALL).state_dict())
    return whole | {
        f"appearance.{name.replace('__', '.')}": value for name, value in changes.items()
    }


BAD_TENSORS = [
    (
        {"conv1__weight": torch.full((4, 3, 7, 7), NAN)},
        r"NaN or infinite values in appearance\.conv1\.weight",
    ),
    (
        {"fc__bias": torch.tensor([0, 0, 0, 0, INF])},
        r"NaN or infinite values in appearance\.fc\.bias",
    ),
    (
        {"bn1__running_var": torch.tensor([1.0, 1.0, -1e-3, 1.0])},
        r"negative variances in appearance\.bn1\.running_var",
    ),
    (
        {"bn1__running_var": torch.tensor([1.0, 1.0, NAN, 1.0])},
        r"NaN or infinite values in appearance\.bn1",
    ),
    (
        {"bn1__weight": torch.ones(4, dtype=torch.int64)},
        r"appearance\.bn1\.weight is a tensor of int64",
    ),
    (
        {"bn1__weight": torch.ones(4, dtype=torch.bool)},
        r"appearance\.bn1\.weight is a tensor of bool",
    ),
    (
        {"bn1__bias": torch.ones(4, dtype=torch.complex64)},
        r"appearance\.bn1\.bias is a tensor of complex64",
    ),
    (
        {"bn1__bias": torch.ones(4).to_sparse()},
        r"appearance\.bn1\.bias is a tensor of float32 sparse_coo",
    ),
    (
        {"bn1__bias": torch.ones(4).to(torch.float8_e5m2)},
        r"appearance\.bn1\.bias is a tensor of float8_e5m2",
    ),
]


@pytest.mark.parametrize(("changes", "words"), BAD_TENSORS, ids=[words for _, words in BAD_TENSORS])
@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_weight_files_with_bad_numbers_are_refused_by_file_and_tensor(
    tmp_path, changes, words, suffix
):
    path = tmp_path / f"weights{suffix}"
    whole = state(**changes)
    if suffix == ".pth":
        torch.save(whole, path)
    elif any(value.layout != torch.strided for value in changes.values()):
        pytest.skip(".safetensors cannot hold this layout")
    else:
        save_file(whole, path)
    with pytest.raises(UserError, match=words) as caught:
        read_state(path)
    assert str(path) in str(caught.value)
    assert len(str(caught.value).splitlines()) == 2


def test_good_weight_files_of_every_type_pass(tmp_path):
    for kind in (torch.float16, torch.bfloat16, torch.float32, torch.float64):
        whole = {key: v.to(kind) if v.is_floating_point() else v for key, v in state().items()}
        whole["appearance.bn1.running_var"][0] = 0.0
        torch.save(whole, tmp_path / "weights.pth")
        report = load_into(
            build_model("appearance", 5, **SMALL), read_state(tmp_path / "weights.pth"), "file"
        )
        assert len(report.loaded) == len(whole)


def test_a_number_that_overflows_in_the_networks_type_is_refused():
    large = state(fc__weight=torch.full((5, 32), 1e300, dtype=torch.float64))
    with pytest.raises(UserError, match=r"file: NaN or infinite values in appearance\.fc\.weight"):
        load_into(build_model("appearance", 5, **SMALL), large, "file")


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ({1: torch.ones(1)}, "whose keys are names"),
        ({"a": torch.ones(1), "module.a": torch.ones(1)}, "there twice"),
        ({"a": "text"}, "expected a state dict of tensors"),
        ([torch.ones(1)], "expected a state dict of tensors"),
    ],
)
def test_files_that_are_no_state_dict_are_refused(tmp_path, content, words):
    torch.save(content, tmp_path / "weights.pth")
    with pytest.raises(UserError, match=words):
        read_state(tmp_path / "weights.pth")


def test_every_flipped_bit_of_our_weights_is_noticed_without_done_json(tmp_path):
    path = tmp_path / "weights.safetensors"
    whole = {
        "a.weight": torch.randn(3, 5),
        "a.running_var": torch.rand(3),
        "a.num_batches_tracked": torch.tensor(3),
    }
    save_state(whole, path)
    good = path.read_bytes()
    for bit in range(0, 8 * len(good), 3):
        data = bytearray(good)
        data[bit // 8] ^= 1 << bit % 8
        path.write_bytes(data)
        try:
            found = read_state(path)
        except UserError:
            continue
        assert found.keys() == whole.keys(), f"bit {bit} of byte {bit // 8}"
        assert all(torch.equal(value, whole[name]) for name, value in found.items()), (
            f"byte {bit // 8}"
        )


def test_rounding_leaves_no_negative_variance():
    """A channel that is always the same: sigma is the root of eps, and its square is not quite eps."""
    for eps in (1e-5, 2e-5, 3e-5, 1e-4, 1e-3, 2e-3):
        layer = SubBatchNorm2d(2, eps=eps, average="sigma").train()
        with torch.no_grad():
            layer.running_var.zero_()
        for _ in range(3):
            layer(torch.ones(4, 2, 3, 3))
        assert (layer.running_var >= 0).all(), eps


def test_the_report_of_a_bad_loss_before_the_first_log_is_no_infinity(tmp_path):
    """A checkpoint that is written before the first line of the log knows no loss; JSON has no
    infinity for it."""
    paths = RunPaths(tmp_path).phase("motion")
    for step, loss in ((1, None), (2, 3.0), (3, None), (4, 5.0), (5, None)):
        checkpoint.save(paths, step, {"a": torch.ones(2)}, {}, {"phase": "motion", "loss": loss})
    assert folders(tmp_path) == ["step00000002", "step00000004", "step00000005"]
    assert "Infinity" not in (paths.checkpoint(5) / "meta.json").read_text()
