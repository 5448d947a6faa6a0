"""The Triton kernels of the fused normalisation: run by its interpreter, compiled for GPUs that are not here."""

import importlib.util
import re
import subprocess
from pathlib import Path
from typing import NamedTuple

import pytest

from tests.conftest import run_python

pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("triton") is None, reason="no triton in this environment"
)

COMPARE = """
import sys
import torch
from hpc_stres.models import norm_triton
from tests.unit.test_norm_fused import EPS, draw, torch_result
dtype = getattr(torch, sys.argv[1])
tolerance = 3e-5 if dtype == torch.float32 else 4e-2
compared = 0
for shape, groups in [((3, 3, 3, 5), 2), ((2, 66, 17, 17), 1)]:
    for with_residual, gate in [(False, "open"), (False, "computed"), (True, "read")]:
        x, residual, grad, weight, bias, owner = draw(shape, groups, dtype, seed=4)
        residual = residual if with_residual else None
        relu = gate != "open"
        y, *moments = norm_triton.forward(x, residual, weight, bias, owner, groups, EPS, relu)
        way = norm_triton.Backward(grad, x, y, weight, bias, owner, *moments, EPS, gate)
        way.step("backward")
        expected, gradients = torch_result(x, residual, grad, weight, bias, owner, relu)
        assert (y.double() - expected).abs().max() < tolerance, "values"
        off = (way.grad_x.double() - gradients[0]).abs() > 4 * tolerance
        assert off.double().mean() <= (0.02 if relu else 0), "gradient of x"
        if with_residual:
            assert ((way.passed.double() - gradients[1]).abs() > tolerance).double().mean() <= 0.02
        for group in range(groups):
            mine = x[owner == group].double()
            torch.testing.assert_close(moments[1][group], mine.mean((0, 2, 3)), rtol=1e-5, atol=1e-6)
            torch.testing.assert_close(moments[2][group], mine.var((0, 2, 3), correction=0), rtol=1e-5, atol=0)
        compared += 1
print(compared)
"""


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_the_interpreter_computes_what_torch_does(dtype):
    result = run_python("-c", COMPARE, dtype, env={"TRITON_INTERPRET": "1"})
    assert result.returncode == 0, result.stderr
    assert result.stdout == "6\n"


# By kernel: argument types, where T is the activations', and what is fixed at compile time.
FIXED = {
    "PIECE": 256,
    "ROWS": 32,
    "CHANNELS": 64,
    "MERGED": 32,
    "RESIDUAL": True,
    "RELU": True,
    "GATE": 2,
}
TYPES = {
    **dict.fromkeys(("x", "residual", "y", "grad", "out", "passed", "result"), "*T"),
    **dict.fromkeys(("parts", "weight", "bias"), "*fp32"),
    **dict.fromkeys(("count", "mean", "variance", "sums", "products"), "*fp64"),
    **dict.fromkeys(("frames", "pixels", "channels", "per_frame"), "i32"),
    "owner": "*i32",
    "eps": "fp32",
}
KERNELS = ("moments", "merge_moments", "values", "sums", "merge_sums", "gradient")


# What the fused ReLU and the residual sum make of a kernel: each way is machine code of its own.
WAYS = {
    "values": [
        {"RESIDUAL": residual, "RELU": relu} for residual in (False, True) for relu in (False, True)
    ],
    "sums": [{"GATE": gate} for gate in (0, 1, 2)],
    "gradient": [{"GATE": gate} for gate in (0, 1)],
}


def ways(name, all_of_them):
    """What is fixed in each way of a kernel; the fullest one alone where not all are wanted."""
    some = WAYS.get(name, [{}])
    return [{**FIXED, **way} for way in (some if all_of_them else some[-1:])]


@pytest.mark.parametrize("capability", [80, 90, 100])
def test_kernels_compile_for_gpus_without_spilling(capability, tmp_path, monkeypatch):
    """To machine code, by the compiler in Triton's wheel; registers that do not suffice are named. All ways of each
    kernel and both types: tests.campaigns.gpu_kernels."""
    from hpc_stres.models import norm_triton

    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    spilled = {}
    for name in KERNELS:
        kernel = getattr(norm_triton, f"{name}_kernel")
        types = {key: kind.replace("T", "bf16") for key, kind in TYPES.items()}
        (fixed,) = ways(name, all_of_them=False)
        made = machine_code(kernel, types, fixed, capability, norm_triton.WARPS, tmp_path)
        spilled[name] = made.spill_bytes
    assert spilled == dict.fromkeys(KERNELS, 0)


class MachineCode(NamedTuple):
    """What the assembler said of one kernel."""

    registers: int
    spill_bytes: int


def machine_code(kernel, types, fixed, capability, warps, folder):
    """A Triton kernel for a GPU that is not here; `types` and `fixed` may hold more than its arguments."""
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource, compile

    names = kernel.arg_names
    constants = {(names.index(key),): fixed[key] for key in names if key in fixed}
    signature = {key: "constexpr" if key in fixed else types[key] for key in names}
    source = ASTSource(kernel, signature, constants)
    target = GPUTarget("cuda", capability, 32)
    made = compile(source, target=target, options={"num_warps": warps})
    assert made.asm["cubin"][:4] == b"\x7fELF"
    return assembled(made.asm["ptx"], folder)


def assembled(ptx, folder):
    """Registers of a thread, and bytes of them that the assembler moved to memory."""
    import triton

    tools = Path(triton.__file__).parent / "backends" / "nvidia" / "bin"
    # The wheel's newer assembler knows every GPU, the older one not every version of PTX.
    ptxas = next(tool for tool in (tools / "ptxas-blackwell", tools / "ptxas") if tool.exists())
    (folder / "kernel.ptx").write_text(ptx)
    target = re.search(r"\.target (\w+)", ptx)[1]
    command = [
        ptxas,
        "-v",
        f"--gpu-name={target}",
        "-o",
        folder / "kernel.cubin",
        folder / "kernel.ptx",
    ]
    said = subprocess.run(command, capture_output=True, text=True, check=True).stderr
    counts, registers = (re.findall(p, said) for p in (r"(\d+) bytes spill", r"(\d+) registers"))
    assert counts, said
    assert registers, said
    return MachineCode(max(map(int, registers)), sum(map(int, counts)))
