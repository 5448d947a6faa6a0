"""What a run folder and its report give away, and what hostile names do to the page: nothing."""

import base64
import hashlib
import json
import random
import re
import subprocess
import sys
from dataclasses import replace
from html.parser import HTMLParser

import pytest

from hpc_stres.config.loading import load_config, load_run
from hpc_stres.errors import UserError
from hpc_stres.evaluation import junctions
from hpc_stres.evaluation.report.page import write_report
from hpc_stres.run import provenance
from hpc_stres.run.paths import RunPaths, sealed, write_text
from hpc_stres.store.reader import Store
from tests.conftest import TINY, tiny_config
from tests.unit.untrained import evaluate_here, make_run

HOSTILE = "<script>alert('x')</script>\"><img src=x onerror=alert(1)>&amp;"
SECRETS = {
    "SLURM_JWT": "eyJhbGciOi-1", "AWS_SECRET_ACCESS_KEY": "wJalrXUtn-2", "HF_TOKEN": "hf_secret-3",
    "NCCL_AUTH_TOKEN": "nccl-4", "HPC_STRES_TOKEN": "ours-5", "TORCH_HUB_TOKEN": "hub-6", "OMPI_MCA_key": "mca-7",
    "CUDA_LICENSE": "lic-8", "MASTER_PASSWORD": "pw-9", "WANDB_API_KEY": "wandb-10", "https_proxy": "http://u:pw11@p",
}  # fmt: skip


@pytest.fixture(scope="module")
def evaluated(data_root, store, tmp_path_factory):
    run_dir = tmp_path_factory.mktemp("report") / "run"
    make_run(tiny_config(data_root), run_dir, store.classes, ("motion", "appearance", "st_resnet"))
    evaluate_here(run_dir)
    return run_dir


class Page(HTMLParser):
    """The tags, attributes and visible text of a page."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.attributes, self.text = set(), set(), ""
        self.scripts, self.policy, self.in_script = [], "", False
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.add(tag)
        self.attributes |= {name for name, _ in attrs}
        given = dict(attrs)
        if tag == "script":
            self.scripts.append((given.get("type"), ""))
        self.in_script = tag == "script"
        if given.get("http-equiv") == "Content-Security-Policy":
            self.policy = given["content"]

    def handle_endtag(self, tag):
        self.in_script = False

    def handle_data(self, data):
        if self.in_script:
            kind, text = self.scripts[-1]
            self.scripts[-1] = (kind, text + data)
        else:
            self.text += data


def test_hostile_names_are_text_and_nothing_else_in_the_report(evaluated, monkeypatch):
    """Class names, video ids, curves and the protocol, as hostile as a data set or a file can make them."""
    import hpc_stres.evaluation.report.facts as module

    config = load_run(evaluated)
    found = module.columns(config, evaluated)
    ids = {old: f"{HOSTILE}{old}" for old in found["motion"].ids}
    found = {
        f"{HOSTILE}{name}": replace(
            column,
            ids=[ids[i] for i in column.ids],
            classes=[f"{HOSTILE}{c}" for c in column.classes],
        )
        for name, column in found.items()
    }
    monkeypatch.setattr(module, "columns", lambda *_: found)
    results = module.read_results(RunPaths(evaluated).results)
    results["protocol"] = HOSTILE
    table = {f"{HOSTILE}{k}": {**v, "title": HOSTILE} for k, v in results["splits"]["1"].items()}
    results["splits"] = {HOSTILE: table}
    monkeypatch.setattr(module, "read_results", lambda _: results)
    plain_store = Store.__init__

    def hostile_store(self, root):
        plain_store(self, root)
        self.number = {ids.get(name, name): number for name, number in self.number.items()}

    monkeypatch.setattr(Store, "__init__", hostile_store)
    monkeypatch.setattr("hpc_stres.evaluation.report.inside.junctions", lambda *_: "")
    paths = RunPaths(evaluated)
    rows = [{"step": n, f"loss_{HOSTILE}": 1.0 / n, "videos_per_s": 1.0} for n in range(1, 9)]
    write_text(paths.phase("motion").metrics, "".join(json.dumps(row) + "\n" for row in rows))
    write_text(
        paths.provenance,
        json.dumps({"command": [HOSTILE], "commit": HOSTILE, "packages": {HOSTILE: HOSTILE}}),
    )
    page = Page(write_report(config, evaluated).read_text(encoding="utf-8"))
    paths.phase("motion").metrics.unlink()
    assert_only_own_script_runs(page)
    assert not any(name.startswith("on") for name in page.attributes)
    assert page.text.count("<script>alert('x')</script>") > 20
    assert "img" in page.tags, "the frames of examples are there"


def assert_only_own_script_runs(page):
    """Data blocks do not run; what runs is one script, and the page's policy names its digest."""
    running = [text for kind, text in page.scripts if kind != "application/json"]
    assert len(running) == 1
    assert "alert" not in running[0]
    digest = base64.b64encode(hashlib.sha256(running[0].encode()).digest()).decode()
    assert f"script-src 'sha256-{digest}'" in page.policy
    assert "default-src 'none'" in page.policy
    for kind, text in page.scripts:
        assert kind != "application/json" or json.loads(text)["names"]


def test_metrics_of_the_report_are_whole_or_named(evaluated):
    path = RunPaths(evaluated).phase("motion").metrics
    path.parent.mkdir(parents=True, exist_ok=True)
    good = [sealed({"step": n, "loss_motion": 1.0 / n}) for n in range(1, 6)]
    lines = [json.dumps(row) for row in good]
    for bad in (lines[2].replace("0.33", "0.34"), "{", json.dumps([1]), json.dumps({"loss": 1})):
        path.write_text("\n".join([*lines[:2], bad, *lines[3:]]) + "\n")
        with pytest.raises(UserError, match=r"metrics\.jsonl"):
            write_report(load_run(evaluated), evaluated)
    path.write_text("\n".join(lines) + "\n")
    assert (
        "Loss of each stream: motion ends at 0.2"
        in write_report(load_run(evaluated), evaluated).read_text()
    )
    path.unlink()


def test_damaged_junctions_are_named_and_measured_again(evaluated, store, capsys, monkeypatch):
    config = load_run(evaluated)
    right = junctions.strengths(config.data, evaluated, "st_resnet", store)
    monkeypatch.setattr(junctions, "_measure", lambda *_: right)
    path = RunPaths(evaluated).junctions("st_resnet")
    whole, draw = path.read_bytes(), random.Random(5)
    for _ in range(100):
        torn = bytearray(whole)
        torn[draw.randrange(len(torn))] ^= 1 << draw.randrange(8)
        path.write_bytes(torn)
        assert junctions.strengths(config.data, evaluated, "st_resnet", store) == right
    assert capsys.readouterr().err.count("junctions_st_resnet.json: ") > 80


def test_no_secret_of_the_environment_or_of_a_command_is_in_the_run_folder(evaluated, monkeypatch):
    for name, value in SECRETS.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("SLURM_JOB_ID", "4711")
    command = ["submit.py", "--set", "cluster.environment.WANDB_API_KEY=cmd-12", "--set", "seed=3",
               "--set", "cluster.environment={HF_TOKEN: cmd-13}", "https://me:cmd-14@example.org/x",
               "r\udce4n"]  # fmt: skip
    monkeypatch.setattr(sys, "argv", command)
    config = load_run(evaluated, ["cluster.environment={GITHUB_TOKEN: cfg-15, NCCL_DEBUG: INFO}"])
    paths = RunPaths(evaluated)
    paths.provenance.unlink(missing_ok=True)
    provenance.write_provenance(evaluated, config)
    report = write_report(config, evaluated).read_text(encoding="utf-8")
    files = [path for path in evaluated.rglob("*") if path.is_file()]
    assert paths.provenance in files
    for path in files:
        text = path.read_bytes()
        for secret in [*SECRETS.values(), *(f"cmd-{n}" for n in (12, 13, 14)), "cfg-15"]:
            assert secret.encode() not in text, (path, secret)
    kept = json.loads(paths.provenance.read_text(encoding="utf-8"))
    assert kept["environment"]["SLURM_JOB_ID"] == "4711"
    assert kept["command"][2] == "cluster.environment.WANDB_API_KEY=***"
    assert kept["command"][4] == "seed=3"
    assert "GITHUB_TOKEN: &#x27;***&#x27;" in report
    assert "NCCL_DEBUG: INFO" in report


def test_the_list_of_variables_holds_nothing_that_looks_like_a_secret():
    assert not [name for name in provenance.ENVIRONMENT if provenance.SECRET.search(name)]
    assert not [
        name for name in provenance.ENVIRONMENT if not re.fullmatch(r"[A-Z][A-Z0-9_]+", name)
    ]


def test_changes_are_those_of_this_repository_alone_and_bounded(tmp_path, monkeypatch):
    """An installed package may lie in a repository of somebody else."""
    git = ["git", "-C", str(tmp_path), "-c", "user.name=a", "-c", "user.email=a@b"]
    subprocess.run([*git, "init", "-q"], check=True)
    home = tmp_path / "venv" / "site"
    home.mkdir(parents=True)
    (tmp_path / "private.txt").write_text("one\n")
    subprocess.run([*git, "add", "."], check=True)
    subprocess.run([*git, "commit", "-qm", "x"], check=True)
    (tmp_path / "private.txt").write_bytes(b"\xff\xfe mine\n" * 200_000)
    monkeypatch.setattr(provenance, "SOURCES", home)
    assert provenance.code_diff() == ""
    assert provenance.provenance(load_config(TINY))["commit"] == "unknown"
    monkeypatch.setattr(provenance, "SOURCES", tmp_path)
    text = provenance.code_diff()
    assert len(text) < provenance.MOST_DIFF_BYTES + 200
    assert "# cut off here: the whole difference has" in text
