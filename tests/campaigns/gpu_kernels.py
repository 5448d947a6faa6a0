"""Kernels for GPUs without a GPU: TV-L1 at full size against the CPU's, and all of them as machine code.

  python -m tests.campaigns.gpu_kernels                     everything that the programs here allow; some minutes
  python -m tests.campaigns.gpu_kernels --only tvl1 --pairs 4 --seed 7

`tvl1`: pairs of real sizes, 340x256 among them, and of drawn ones, by the emulated kernels against themselves with one
iteration a launch, and against the CPU's sweeps, bit for bit. `machine`: registers and spilled bytes of each kernel in
each of its ways, for sm_80, sm_90 and sm_100 (nvcc for CUDA, the compiler in Triton's wheel for Triton). Ends with 1
where anything differs, spills or does not compile.
"""

import argparse
import random
import re
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np

from hpc_stres import native
from hpc_stres.run.tables import text_table

ARCHITECTURES = (80, 90, 100)
FULL_SIZES = [(256, 340), (240, 320), (32, 64), (33, 65)]
SHIFT = 3.0


def main():
    """Run it; the exit status."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--only", choices=("tvl1", "machine"))
    parser.add_argument("--pairs", type=int, default=2, help="pairs of frames of each size")
    parser.add_argument("--drawn", type=int, default=6, help="sizes that are drawn")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    wrong = []
    with tempfile.TemporaryDirectory() as folder:
        if args.only != "machine":
            wrong += same_flow(Path(folder), args)
        if args.only != "tvl1":
            wrong += machine_code(Path(folder))
    for line in wrong:
        print(f"WRONG: {line}")
    return 1 if wrong else 0


def same_flow(folder, args):
    """Sizes at which a way of cutting the work changes a bit."""
    from tests.unit.test_flow_tiles import build_exact, solve, sweeps

    kernels, cpu = build_exact(folder)
    draw, wrong = random.Random(args.seed), []
    sizes = FULL_SIZES + [(draw.randint(1, 130), draw.randint(1, 200)) for _ in range(args.drawn)]
    for size in sizes:
        frames = scene(size, args.pairs + 1, draw.randrange(1 << 30))
        for pyramid in ("paper", "opencv4"):
            expected = sweeps(cpu, frames, pyramid)
            depths = (1, 0, draw.randint(2, 15))
            for depth in depths:
                options = {"depth": depth, "cache_bytes": draw.choice((0, 1, 1 << 20))}
                flow, work = solve(kernels, frames, pyramid, draw.random() < 0.5, **options)
                off = int((flow != expected).sum())
                each = work.updates / args.pairs / frames[0].size
                print(
                    f"{size[1]}x{size[0]} {pyramid} {options}: {off} numbers differ from the CPU's, "
                    f"{each:.0f} updates a pixel",
                    flush=True,
                )
                wrong += [f"{size} {pyramid} {options}: {off} numbers"] if off else []
    return wrong


def scene(size, count, seed):
    """Frames of blurred noise that move, with a little noise of each frame's own."""
    import cv2

    draw = np.random.default_rng(seed)
    rows, cols = size
    room = int(SHIFT * count) + 2
    noise = draw.integers(0, 256, (rows + room, cols + room)).astype(np.float32)
    smooth = cv2.GaussianBlur(noise, (0, 0), draw.uniform(0.8, 3))
    smooth = 128 + (smooth - smooth.mean()) * 40 / max(float(smooth.std()), 1e-3)
    at = (draw.uniform(0, SHIFT, (count, 2)).cumsum(axis=0)).astype(int)
    cuts = [smooth[y : y + rows, x : x + cols] + draw.normal(0, 1, size) for y, x in at]
    return np.clip(np.rint(np.stack(cuts)), 0, 255).astype(np.uint8)


def machine_code(folder):
    """Prints the table; kernels that spill, and compilers that are missing."""
    rows, wrong = [], []
    if native.cuda_compiler() is None:
        print("no nvcc: the CUDA kernels are not compiled", file=sys.stderr)
    else:
        rows += [row for number in ARCHITECTURES for row in of_cuda(number, folder)]
    try:
        import triton
    except ImportError:
        print("no triton: its kernels are not compiled", file=sys.stderr)
    else:
        print(f"triton {triton.__version__}")
        rows += [row for number in ARCHITECTURES for row in of_triton(number, folder)]
    print(text_table(["kernel", "for", "registers", "spilled bytes"], rows))
    wrong += [f"{row[0]} for {row[1]} spills {row[3]} bytes" for row in rows if row[3] != "0"]
    return wrong if rows else ["nothing was compiled"]


def of_cuda(number, folder):
    """Rows of tvl1.cu's kernels."""
    flags = ("-O3", "-std=c++17", "-Xptxas=-v", "-cubin", f"-arch=sm_{number}")
    command = [native.cuda_compiler(), *flags, "-o", str(folder / "tvl1.cubin")]
    run = subprocess.run(
        [*command, str(native.SOURCES / "tvl1.cu")], capture_output=True, text=True, check=True
    )
    said = subprocess.run(["c++filt"], input=run.stderr, capture_output=True, text=True).stdout
    pattern = r"entry function '(.*?)' for.*?(\d+) bytes spill stores, (\d+) bytes.*?Used (\d+) reg"
    for name, stores, loads, registers in re.findall(pattern, said, re.DOTALL):
        short = re.sub(r"\(anonymous namespace\)::|^void |tvl1::", "", name).split("(")[0]
        yield [f"tvl1 {short}", f"sm_{number}", registers, str(int(stores) + int(loads))]


def of_triton(number, folder):
    """Rows of the normalisation's kernels in all their ways and types, and of the feed's."""
    from hpc_stres.models import norm_triton
    from tests.unit import test_norm_triton, test_resize_triton

    for name in test_norm_triton.KERNELS:
        kernel = getattr(norm_triton, f"{name}_kernel")
        for fixed in test_norm_triton.ways(name, all_of_them=True):
            for dtype in ("bf16", "fp32"):
                types = {k: v.replace("T", dtype) for k, v in test_norm_triton.TYPES.items()}
                warps = norm_triton.WARPS
                made = test_norm_triton.machine_code(kernel, types, fixed, number, warps, folder)
                way = " ".join(f"{k.lower()}={v}" for k, v in fixed.items() if k in WAYS)
                own = f"norm {name} {dtype} {way if name in test_norm_triton.WAYS else ''}"
                yield [own, f"sm_{number}", str(made.registers), str(made.spill_bytes)]
    for planes, step in ((32, 1), (4, 3), (2, 1)):
        for dtype in ("bf16", "fp32"):
            made = test_resize_triton.compiled(planes, step, dtype, number, folder)
            own = f"clips {dtype} of {planes} planes, {step} bytes apart"
            yield [own, f"sm_{number}", str(made.registers), str(made.spill_bytes)]


WAYS = ("RESIDUAL", "RELU", "GATE")

if __name__ == "__main__":
    sys.exit(main())
