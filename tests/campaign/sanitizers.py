"""The CPU kernels under the compiler's sanitizers: `python -m tests.campaign.sanitizers`.

  --times 10       so many times the calls that tests/unit/test_sanitizers.py makes
  --only PART      memory, threads, or python

`memory` (addresses and undefined behaviour) and `threads` run the fuzzers of tests/native: random
calls of random sizes from 1x1 on, in allocations of their exact sizes, against plain loops, and
calls that must be refused. `python` loads kernels that were built with the sanitizer of addresses
into Python and calls them as the package does (tests/native/calls.py): views with gaps, backwards,
transposed; and the GPU's flow kernel as plain C++.
"""

import argparse
import os
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

from hpc_stres import native

ROOT = Path(__file__).resolve().parent.parent.parent
PROGRAMS = ROOT / "tests" / "native"
ADDRESSES = ("-fsanitize=address,undefined,float-cast-overflow", "-fno-sanitize-recover=all")
SANITIZERS = {"memory": ADDRESSES, "threads": ("-fsanitize=thread",)}
LAYOUT_TROUBLE = "unexpected memory mapping"
FAULT = """
#include <thread>
int main() {
  int* many = new int[4]();
  std::thread other([&] { many[3] = 1; });
  many[3] = 2;
  other.join();
  return many[4 + many[2]];
}
"""


@dataclass(frozen=True)
class Fuzz:
    """A kernel, a sanitizer, how many calls, and how many of them at the same time."""

    kernel: str
    kind: str
    calls: int
    threads: int


RUNS = (
    Fuzz("resize", "memory", 10_000, 1), Fuzz("resize", "threads", 400, 4),
    Fuzz("tvl1", "memory", 250, 1), Fuzz("tvl1", "threads", 60, 2),
    Fuzz("exact", "memory", 3_000, 1), Fuzz("exact", "threads", 300, 2),
    Fuzz("norm", "memory", 1_500, 1), Fuzz("norm", "threads", 150, 2),
    Fuzz("pool", "memory", 3_000, 1), Fuzz("pool", "threads", 200, 2),
)  # fmt: skip
MOST_THREADS = 16
PYTHON_CALLS = 300


def build(source: Path, program: Path, kind: str) -> "subprocess.CompletedProcess[str]":
    """Compile a program with a sanitizer."""
    compiler = native.compiler()
    assert compiler is not None, "the caller has asked for a compiler"
    flags = ["-std=c++17", "-O1", "-g", "-pthread", *native.ARITHMETIC_FLAGS, *SANITIZERS[kind]]
    flags += native.MODERN_FLAGS if native._is_modern() else ()
    command = [compiler, *flags, "-I", str(native.SOURCES), "-o", str(program), str(source)]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def run(program: Path, *arguments: int) -> "subprocess.CompletedProcess[str]":
    """A program without a random layout of its memory: the thread sanitizer of older compilers
    wants it."""
    fixed = ("setarch", "-R")
    allowed = subprocess.run([*fixed, "true"], capture_output=True, check=False).returncode == 0
    command = [*(fixed if allowed else ()), str(program), *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def missing(kind: str, folder: Path) -> str:
    """Why a sanitizer cannot be used here; nothing where it can. It is seen to notice a fault."""
    if native.compiler() is None:
        return "no g++ on this machine"
    fault = folder / "fault.cpp"
    fault.write_text(FAULT)
    if build(fault, folder / "fault", kind).returncode != 0:
        return f"g++ here has no sanitizer of {kind}"
    seen = run(folder / "fault")
    if LAYOUT_TROUBLE in seen.stderr:
        return f"the sanitizer of {kind} cannot run in this kernel's memory layout"
    if "Sanitizer" not in seen.stderr:
        raise AssertionError(f"the sanitizer of {kind} does not notice a fault")
    return ""


def fuzz(one: Fuzz, folder: Path) -> str:
    """Build and run a fuzzer; what is wrong, or nothing."""
    program = folder / f"{one.kernel}-{one.kind}"
    built = build(PROGRAMS / f"fuzz_{one.kernel}.cpp", program, one.kind)
    if built.returncode != 0:
        return built.stderr
    result = run(program, one.calls, one.threads)
    sound = result.returncode == 0 and result.stdout == f"{one.calls} calls\n"
    return "" if sound else result.stderr or f"exit status {result.returncode}"


def python_calls(folder: Path, calls: int) -> str:
    """Kernels built with the sanitizer of addresses, called from Python; what is wrong, or
    nothing."""
    compiler = native.compiler()
    wrapper = folder / "sanitizing-g++"
    wrapper.write_text(f'#!/bin/sh\nexec {compiler} "$@" -O1 -g {" ".join(ADDRESSES)}\n')
    wrapper.chmod(0o755)
    libraries = [_library_of(name) for name in ("libasan.so", "libubsan.so", "libstdc++.so")]
    environment = {
        **os.environ,
        "CXX": str(wrapper),
        "HPC_STRES_CACHE": str(folder / "cache"),
        "PYTHONPATH": str(ROOT),
        # Python and its libraries keep what they hold until the end.
        "ASAN_OPTIONS": "detect_leaks=0",
        "LD_PRELOAD": ":".join(libraries),
        "OMP_NUM_THREADS": "2",
    }
    command = [sys.executable, "-m", "tests.native.calls", str(calls)]
    result = subprocess.run(
        command, env=environment, cwd=ROOT, capture_output=True, text=True, check=False
    )
    sound = result.returncode == 0 and result.stdout == f"{calls} calls\n"
    return "" if sound else f"{result.stdout}{result.stderr}"[-4000:]


def _library_of(name: str) -> str:
    compiler = native.compiler()
    assert compiler is not None, "the caller has asked for a compiler"
    asked = subprocess.run([compiler, f"-print-file-name={name}"], capture_output=True, text=True)
    return asked.stdout.strip()


def main() -> int:
    """Run every part; a line for each, and the exit status."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--times", type=int, default=10)
    parser.add_argument("--only", choices=[*SANITIZERS, "python"])
    args = parser.parse_args()
    failed = False
    with tempfile.TemporaryDirectory(prefix="sanitizers-") as name:
        folder = Path(name)
        lacking = {kind: missing(kind, folder) for kind in SANITIZERS}
        for one in RUNS:
            if args.only in (None, one.kind):
                threads = MOST_THREADS if one.kind == "threads" else one.threads
                more = Fuzz(one.kernel, one.kind, one.calls * args.times, threads)
                failed |= _say(str(more), lacking[one.kind], lambda more=more: fuzz(more, folder))
        if args.only in (None, "python"):
            calls = PYTHON_CALLS * args.times
            what = f"{calls} calls from Python"
            failed |= _say(what, lacking["memory"], lambda: python_calls(folder, calls))
    return int(failed)


def _say(what: str, lacking: str, work) -> bool:  # type: ignore[no-untyped-def]
    """Do a part unless something for it is lacking, say what came of it; whether it failed."""
    began = time.monotonic()
    trouble = "" if lacking else work()
    outcome = f"not run: {lacking}" if lacking else "FAILED" if trouble else "sound"
    print(f"{time.monotonic() - began:6.1f} s  {what}: {outcome}", flush=True)
    if trouble:
        print(trouble, flush=True)
    return bool(trouble)


if __name__ == "__main__":
    sys.exit(main())
