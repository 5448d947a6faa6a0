"""The GPU's kernel that makes clips: run by Triton's interpreter beside the CPU's kernel, compiled for absent GPUs."""

import importlib.util

import pytest

from tests.conftest import run_python
from tests.unit.test_norm_triton import machine_code

pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("triton") is None, reason="no triton in this environment"
)

# Stacks of several sizes go together; each must be what the CPU's kernel makes of it alone.
COMPARE = """
import sys
import numpy as np
import torch
from hpc_stres.data.augment import finish_on_cpu
from hpc_stres.data.resize_triton import Stack, finish
planes, dtype = int(sys.argv[1]), getattr(torch, sys.argv[2])
random = np.random.default_rng(planes)
boxes = [((48, 40), False), ((31, 57), True), ((7, 9), False), ((1, 1), True)]
compared = 0
for (high, wide), antialias in [((8, 35), False), ((11, 1), True)]:
    scales = [(random.normal(0, 1, planes).astype(np.float32), random.normal(0, 9, planes).astype(np.float32))
              for _ in range(2)]
    packed = planes == 3
    shapes = [((*box, 3) if packed else box) for box, _ in [*boxes, ((high, wide), True)]]
    flips = [*(flip for _, flip in boxes), True]
    pictures = [[random.integers(0, 256, shape, dtype=np.uint8) for _ in range(1 if packed else planes)]
                for shape in shapes]
    out = torch.full((len(shapes), high, wide, planes), float("nan"), dtype=dtype)
    stacks = [Stack([torch.from_numpy(p) for p in some], flip) for some, flip in zip(pictures, flips)]
    finish(stacks, antialias, tuple(scales), out)
    for some, flip, result in zip(pictures, flips, out):
        expected = np.empty((high, wide, planes), np.float32)
        finish_on_cpu(some, (high, wide), antialias, scales[flip], flip, expected)
        difference = np.abs(result.float().numpy() - expected)
        bound = 1e-3 * np.abs(scales[flip][0])
        if dtype == torch.bfloat16:
            # A GPU rounds to the nearest; the interpreter cuts the lower bits off.
            bound = bound + np.abs(expected) / 128
        assert (difference <= bound).all(), (difference.max(), some[0].shape, high, wide)
        compared += 1
print(compared)
"""


@pytest.mark.parametrize(
    ("planes", "dtype"), [(20, "float32"), (3, "bfloat16"), (1, "float32"), (2, "bfloat16")]
)
def test_the_interpreter_makes_what_the_cpus_kernel_makes(planes, dtype):
    result = run_python("-c", COMPARE, planes, dtype, env={"TRITON_INTERPRET": "1"})
    assert result.returncode == 0, result.stderr
    assert result.stdout == "10\n"


TYPES = {
    **dict.fromkeys(("planes", "lines"), "*i64"), **dict.fromkeys(("scale", "shift"), "*fp32"),
    **dict.fromkeys(("high", "wide", "channels"), "i32"),
}  # fmt: skip


def compiled(planes, step, dtype, capability, folder):
    """The kernel for a number of planes (a power of two) and their distance in bytes."""
    from hpc_stres.data import resize_triton

    fixed = {"STEP": step, "PLANES": planes, "COLUMNS": 32, "LINE": resize_triton.LINE}
    kernel, types = resize_triton.finish_kernel, {**TYPES, "out": f"*{dtype}"}
    return machine_code(kernel, types, fixed, capability, resize_triton.WARPS, folder)


@pytest.mark.parametrize("capability", [80, 90, 100])
def test_it_compiles_for_gpus_without_spilling(capability, tmp_path, monkeypatch):
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    for planes, step, dtype in ((32, 1, "bf16"), (4, 3, "fp32")):
        assert compiled(planes, step, dtype, capability, tmp_path).spill_bytes == 0
