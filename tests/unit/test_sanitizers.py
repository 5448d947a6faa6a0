"""The CPU kernels under the compiler's sanitizers, on thousands of small random calls and on several threads."""

import functools
import os
import subprocess

import pytest

from hpc_stres import native
from tests.conftest import ROOT

SANITIZERS = {
    "memory": ("-fsanitize=address,undefined", "-fno-sanitize-recover=all"),
    "threads": ("-fsanitize=thread",),
}
# Calls, and how many of them at the same time.
RUNS = [("resize", "memory", 10_000, 1), ("resize", "threads", 400, 4)]
# Compiling every width of vectors under a sanitizer takes a minute of its own.
MORE = "HPC_STRES_ALL_SANITIZERS"
SLOW = pytest.mark.skipif(
    MORE not in os.environ, reason=f"{MORE}=1 runs the normalisation under sanitizers (a minute)"
)
RUNS += [
    pytest.param("norm", "memory", 1_500, 1, marks=SLOW),
    pytest.param("norm", "threads", 150, 2, marks=SLOW),
]
RUNS += [("tvl1", "memory", 250, 1), ("tvl1", "threads", 60, 2)]
RUNS += [("exact", "memory", 3_000, 1), ("exact", "threads", 300, 2)]


def build(source, program, sanitizer):
    command = [native.compiler(), "-std=c++17", "-O1", "-g", "-pthread", *native.ARITHMETIC_FLAGS]
    command += native.MODERN_FLAGS if native._is_modern() else ()
    command += [*SANITIZERS[sanitizer], "-I", str(native.SOURCES), "-o", str(program), str(source)]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def run(program, *arguments):
    """A program without a random layout of its memory: the thread sanitizer of older compilers wants it."""
    fixed = (
        ("setarch", "-R")
        if subprocess.run(["setarch", "-R", "true"], capture_output=True).returncode == 0
        else ()
    )
    return subprocess.run(
        [*fixed, program, *map(str, arguments)], capture_output=True, text=True, check=False
    )


@pytest.fixture(scope="module")
def need(tmp_path_factory):
    """Skips where the compiler lacks a sanitizer; one that it has is seen to notice a fault."""
    return functools.cache(lambda kind: check_sanitizer(kind, tmp_path_factory.mktemp(kind)))


def check_sanitizer(kind, folder):
    if native.compiler() is None:
        pytest.skip("no g++ on this machine")
    fault = folder / "fault.cpp"
    fault.write_text(
        "#include <thread>\nint main() {\n  int* many = new int[4]();\n"
        "  std::thread other([&] { many[3] = 1; });\n  many[3] = 2;\n  other.join();\n"
        "  return many[4 + many[2]];\n}\n"
    )
    if build(fault, folder / "fault", kind).returncode != 0:
        pytest.skip(f"g++ here has no sanitizer of {kind}")
    seen = run(folder / "fault")
    if "unexpected memory mapping" in seen.stderr:
        pytest.skip(f"the sanitizer of {kind} cannot run in this kernel's memory layout")
    assert "Sanitizer" in seen.stderr


@pytest.mark.parametrize(("kernel", "kind", "calls", "threads"), RUNS)
def test_kernels_pass_their_fuzz(need, tmp_path, kernel, kind, calls, threads):
    need(kind)
    source = ROOT / "tests" / "native" / f"fuzz_{kernel}.cpp"
    built = build(source, tmp_path / kernel, kind)
    assert built.returncode == 0, built.stderr
    result = run(tmp_path / kernel, calls, threads)
    assert result.returncode == 0, result.stderr
    assert result.stdout == f"{calls} calls\n"
