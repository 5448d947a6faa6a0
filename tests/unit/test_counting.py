"""Networks counted without torch: every row as it is measured on the network itself."""

import dataclasses
import subprocess
import sys

import pytest
import torch

from hpc_stres.config.loading import CONFIGS, load_config
from hpc_stres.models import build_model, counting
from hpc_stres.models import describe as measured
from hpc_stres.models.counting import Sizes
from hpc_stres.tools import needs
from tests.conftest import ROOT

CASES = [
    Sizes(model="st_resnet", chunks=5),
    Sizes(
        model="st_resnet_star", chunks=11, stages=counting.DEPTHS[152], variant="msra", classes=51
    ),
    Sizes(model="motion", stages=counting.DEPTHS[101], side=299),
    Sizes(model="appearance", variant="msra", side=225, width=32),
    Sizes(model="st_resnet_star", stages=(2, 2), width=4, side=33, chunks=5, classes=3),
    Sizes(
        model="st_resnet", stages=(2, 3, 2), width=6, side=48, chunks=2, variant="msra", classes=2
    ),
    Sizes(model="motion", stages=(3,), width=4, side=16, classes=2),
    Sizes(model="appearance", stages=(2, 2, 2, 2), width=4, side=20, classes=2, variant="msra"),
]


@pytest.mark.parametrize(
    "sizes", CASES, ids=lambda sizes: f"{sizes.model}-{sizes.variant}-{sizes.side}"
)
def test_every_row_is_as_measured_on_the_network(sizes):
    with torch.device("meta"):
        options = {"stages": sizes.stages, "variant": sizes.variant}
        model = build_model(sizes.model, sizes.classes, 50, sizes.width, **options)
    numbers = sum(parameter.numel() for parameter in model.parameters())
    assert counting.parameters(sizes) == numbers
    expected = measured.describe(model, sizes.side, sizes.chunks)
    counted = counting.streams(sizes)
    assert list(counted) == list(expected)
    for name, rows in expected.items():
        assert [dataclasses.astuple(row) for row in counted[name]] == [
            dataclasses.astuple(row) for row in rows
        ]
    assert counting.table(sizes) == measured.table(model, sizes.side, sizes.chunks)


def test_describe_of_a_published_network_imports_no_torch():
    """What takes the seconds is torch: without it, an answer is there in a fraction of one."""
    code = "import sys; from hpc_stres.__main__ import main; main(sys.argv[1:]); assert 'torch' not in sys.modules"
    command = [
        sys.executable,
        "-c",
        code,
        "describe",
        "st_resnet_star",
        "--depth",
        "101",
        "--variant",
        "msra",
    ]
    result = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, check=False)
    assert result.returncode == 0, result.stderr
    assert "conv5_x" in result.stdout


@pytest.mark.parametrize(
    "recipe", sorted(path.name for path in (CONFIGS / "recipes").glob("*.yaml"))
)
def test_what_any_recipe_needs_is_known_or_left_open_before_it_is_submitted(recipe, tmp_path):
    name, _, rest = recipe.removesuffix(".yaml").partition(".")
    (tmp_path / "config.yaml").write_text(f"recipe: {name}\ndata: {{kind: {rest or 'ucf101'}}}\n")
    config = load_config(tmp_path / "config.yaml")
    counted = [n for n in config.phases if needs.sizes_of(config.phases, n, 101) is not None]
    assert (
        (needs.run_bytes(config, 101) > 0)
        == (needs.flop(config, counted, 101) > 0)
        == bool(counted)
    )
