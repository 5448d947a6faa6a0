"""What the tests share: where things are, a tiny prepared store, and a count of what was skipped."""

import dataclasses
import hashlib
import os
import sys
from collections import Counter
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
TINY = ROOT / "tests" / "tiny.yaml"
CLIPS = ROOT.parent / "shared" / "clips"
if str(ROOT) not in sys.path:
    sys.path.insert(0, str(ROOT))
# Many processes share few cores in these tests.
os.environ.setdefault("HPC_STRES_THREADS", "1")

from tests.forks import ENVIRONMENT, Command, keep_freed_memory  # noqa: E402
from tests.waiting import PATIENCE_SECONDS  # noqa: E402

keep_freed_memory()


def set_environment(wanted):
    """Make the variables of this process those of a mapping; pytest changes its own itself."""
    for name in {*os.environ, *wanted}:
        if name.startswith("PYTEST_") or os.environ.get(name) == wanted.get(name):
            continue
        if name in wanted:
            os.environ[name] = wanted[name]
        else:
            del os.environ[name]


# What a command sets when it is called in this process, or a library while it is imported, is no business of the next
# test; and commands with other variables cannot be forked from the warm process, which makes them slow.


@pytest.fixture(autouse=True, scope="module")
def environment_of_the_session():
    """Each module begins and ends with the variables that the session began with."""
    set_environment(ENVIRONMENT)
    yield
    set_environment(ENVIRONMENT)


@pytest.fixture(autouse=True)
def environment_of_the_module(environment_of_the_session):
    """Each test ends with the variables that it began with."""
    before = dict(os.environ)
    yield
    set_environment(before)


def tiny_config(data_root, *overrides):
    """The tiny config with its data under `data_root`."""
    from hpc_stres.config.loading import load_config

    return load_config(TINY, [f"data.root={data_root}", *overrides])


def run_python(*arguments, env=None, cwd=ROOT, timeout=PATIENCE_SECONDS, fresh=False):
    """A Python command of this environment; returns the finished process with its output as text.

    One of ours is a fork of a process that has imported what is heavy, unless `fresh` is asked for.
    """
    environment = {**os.environ, **(env or {})}
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT"):
        if name not in (env or {}):
            environment.pop(name, None)
    return Command(arguments, environment, cwd, fresh=fresh).finished(timeout)


def digests(folder):
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*")) if path.is_file()
    }  # fmt: skip


@pytest.fixture(scope="session")
def data_root(tmp_path_factory):
    """A data folder with the tiny store prepared in it."""
    from hpc_stres.prepare.run import prepare

    root = tmp_path_factory.mktemp("data with space")
    prepare(tiny_config(root), quiet=True)
    return root


@pytest.fixture(scope="session")
def store(data_root):
    from hpc_stres.store.location import store_folder
    from hpc_stres.store.reader import Store

    return Store(store_folder(tiny_config(data_root)))


@pytest.fixture(scope="session")
def clips():
    """The folder of real clips, where there is one."""
    if not CLIPS.is_dir():
        pytest.skip("no ../shared/clips: real UCF101 and HMDB51 clips are not here")
    return CLIPS


def pytest_collection_modifyitems(items):
    """Skip by name what this machine cannot run."""
    import torch

    for item in items:
        if item.get_closest_marker("gpu") and not torch.cuda.is_available():
            item.add_marker(pytest.mark.skip(reason="no CUDA GPU on this machine"))


def pytest_terminal_summary(terminalreporter):
    """The last lines count what was skipped, by reason."""
    reasons = Counter(
        str(report.longrepr[2]) for report in terminalreporter.stats.get("skipped", [])
    )
    for reason, count in sorted(reasons.items()):
        terminalreporter.write_line(f"not run here: {count} x {reason}")


def altered(phase, **options):
    """A phase with other values of some options, given by their names without the section."""
    sections = {}
    for key, value in options.items():
        for section in ("model", "clips", "optimise"):
            if hasattr(getattr(phase, section), key):
                sections.setdefault(section, {})[key] = value
                break
        else:
            sections[key] = value
    changes = {
        section: dataclasses.replace(getattr(phase, section), **values)
        if isinstance(values, dict)
        else values
        for section, values in sections.items()
    }
    return dataclasses.replace(phase, **changes)
