"""env/hpc_stres.def without apptainer: its very %post and %test in a root file system that debootstrap made.

This takes minutes and some GiB, so it runs where HPC_STRES_IMAGE_TEST=1 is set (`make image-test`).
"""

import contextlib
import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from tests.conftest import ROOT

DEFINITION = ROOT / "env" / "hpc_stres.def"
SECTIONS = ("labels", "help", "files", "post", "environment", "runscript", "test")
MOUNTS = ("/proc", "/sys", "/dev")


def sections():
    """The definition's sections by name, and its header."""
    found, name = {"header": []}, "header"
    for line in DEFINITION.read_text().splitlines():
        match = re.match(r"%(\w+)\s*$", line)
        name = match.group(1) if match else name
        if match:
            found[name] = []
        else:
            found[name].append(line.strip())
    return {name: "\n".join(lines) for name, lines in found.items()}


def test_the_definition_has_all_parts():
    found = sections()
    assert set(SECTIONS) <= set(found)
    assert re.search(r"^Bootstrap: docker\nFrom: debian:12$", found["header"], re.MULTILINE)
    for words in ("rdma-core", "libibverbs1", "libpmix2", "openmpi-bin"):
        assert words in found["post"]
    assert "hpc-stres doctor" in found["test"]
    assert "hpc-stres train" in found["test"]
    assert "video" in found["environment"]
    for name in ("post", "test"):
        checked = subprocess.run(
            ["bash", "-n"], input=found[name], text=True, capture_output=True, check=False
        )
        assert checked.returncode == 0, checked.stderr


def test_building_without_apptainer_says_what_to_do(tmp_path):
    for name in ("bash", "dirname", "git", "env"):
        (tmp_path / name).symlink_to(shutil.which(name))
    result = subprocess.run(
        ["bash", "env/build_image.sh"],
        cwd=ROOT,
        env={"PATH": str(tmp_path)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 1
    assert "neither apptainer nor singularity is installed here" in result.stderr


@pytest.mark.skipif(
    os.environ.get("HPC_STRES_IMAGE_TEST") != "1",
    reason="the image recipe runs by `make image-test`",
)
@pytest.mark.skipif(
    shutil.which("debootstrap") is None or os.getuid() != 0, reason="needs root and debootstrap"
)
def test_post_and_test_run_in_a_clean_root_file_system(tmp_path):
    root = tmp_path / "root"
    mirror = re.search(
        r"^(?:URIs:|deb) *(http\S+/debian/?)(?:\s|$)", apt_sources(), re.MULTILINE
    ).group(1)
    run("debootstrap", "--variant=minbase", "--include=ca-certificates", "bookworm", root, mirror)
    copy_repository(root / "opt" / "hpc_stres")
    wheels = root / "wheels"
    wheels.mkdir()
    lock = ["-r", ROOT / "env/requirements.lock", "-r", ROOT / "env/dali-cuda12.lock"]
    run(
        ROOT / ".venv/bin/python",
        "-m",
        "pip",
        "download",
        "--quiet",
        "--no-deps",
        "-d",
        wheels,
        *lock,
    )
    use_this_machines_network(root)
    with mounted(root):
        in_root(root, sections()["post"], PIP_NO_INDEX="1", PIP_FIND_LINKS="/wheels")
        output = in_root(root, sections()["test"])
    assert "image: the doctor, the store, a training step and MPI are well" in output


def apt_sources():
    files = [*Path("/etc/apt").glob("sources.list"), *Path("/etc/apt/sources.list.d").glob("*")]
    return "\n".join(path.read_text() for path in files)


def copy_repository(target):
    """What git knows, as env/build_image.sh takes it; the working tree's state of it."""
    for name in run("git", "-C", ROOT, "ls-files", "-co", "--exclude-standard").splitlines():
        if (ROOT / name).is_file():
            (target / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, target / name)


def use_this_machines_network(root):
    """Name servers, package sources and certificates of this machine, whatever they are."""
    for name in ("/etc/resolv.conf", "/etc/hosts"):
        shutil.copy(name, root / name[1:])
    shutil.rmtree(root / "etc/apt")
    shutil.copytree("/etc/apt", root / "etc/apt")
    shutil.copy("/etc/ssl/certs/ca-certificates.crt", root / "etc/ssl/certs/ca-certificates.crt")
    for folder in ("/usr/share/keyrings", "/usr/local/share/ca-certificates"):
        if Path(folder).is_dir():
            shutil.copytree(folder, root / folder[1:], dirs_exist_ok=True)


@contextlib.contextmanager
def mounted(root):
    """The kernel's file systems inside the root, and out again."""
    done = []
    try:
        for folder in MOUNTS:
            run("mount", "--bind", folder, f"{root}{folder}")
            done.append(folder)
        run("mount", "-t", "tmpfs", "tmpfs", f"{root}/dev/shm")
        done.append("/dev/shm")
        yield
    finally:
        for folder in reversed(done):
            run("umount", "--lazy", f"{root}{folder}")


def in_root(root, script, **environment):
    """A script as root inside the root file system; its output, which is shown when it fails."""
    keep = {key: value for key, value in os.environ.items() if key.lower().endswith("_proxy")}
    settings = {
        "PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
        "HOME": "/root",
        **keep,
    }
    return run(
        "chroot", root, "/bin/bash", "-c", script, env={**settings, **environment}, timeout=1500
    )


def run(*command, **more):
    result = subprocess.run(
        [str(part) for part in command],
        capture_output=True,
        text=True,
        check=False,
        **{"timeout": 900, **more},
    )
    assert result.returncode == 0, result.stdout[-4000:] + result.stderr[-4000:]
    return result.stdout
