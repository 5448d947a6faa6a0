"""Where the numbers come from, and how to get them again, in one box."""

import html
import shlex
from typing import Any

from hpc_stres.config.loading import dump
from hpc_stres.evaluation.methods import paragraph
from hpc_stres.evaluation.report.facts import Facts
from hpc_stres.run.paths import RunPaths, read_json
from hpc_stres.run.provenance import without_secrets

SHORT = 12


def box(facts: Facts) -> str:
    """A report is passed on, so that nothing that looks like a secret is in it."""
    known = read_json(facts.paths.provenance)
    lines = "".join(
        f"<dt>{name}</dt><dd>{text}</dd>" for name, text in _facts(facts, known) if text
    )
    return (
        f'<div class="box"><dl>{lines}</dl><h3>How to repeat this</h3>{_commands(facts, known)}'
        f"<h3>For a methods section</h3><p>{html.escape(paragraph(facts.config, facts.results))}</p>"
        f"{_folded('config.yaml', dump(without_secrets(facts.config)))}"
        f"{_folded('provenance.json', _text(facts.paths))}</div>"
    )


def _text(paths: RunPaths) -> str:
    return (
        paths.provenance.read_text(encoding="utf-8", errors="replace")
        if paths.provenance.is_file()
        else ""
    )


def _folded(name: str, text: str) -> str:
    inside = f"<pre>{html.escape(text)}</pre>"
    return f"<details><summary>{name}</summary>{inside}</details>" if text else ""


def _facts(facts: Facts, known: dict[str, Any]) -> list[tuple[str, str]]:
    results, config = facts.results, facts.config
    commit, changed = str(known.get("commit", "unknown")), known.get("changed_files") or []
    code = f"hpc_stres {known.get('hpc_stres', 'of an unknown version')}, commit {commit[:SHORT]}"
    if changed:
        code += f" with {len(changed)} changed files (code.diff in the run folder)"
    machine = known.get("machine") or {}
    packages = ", ".join(
        f"{name} {version}" for name, version in (known.get("packages") or {}).items()
    )
    values = [
        ("run", f"{facts.paths.root.resolve()}"),
        ("begun", str(known.get("time", ""))),
        ("code", code),
        ("recipe", f"{config.recipe}, seed {config.seed}"),
        ("data", f"{results.get('data', '')}, split {facts.split}, flow {results.get('flow', '')}"),
        ("store", f"manifest {str(results.get('store', ''))[:SHORT]}"),
        (
            "machine",
            f"{machine['host']}, {machine.get('cores')} cores, Python {known.get('python')}"
            if machine
            else "",
        ),
        ("packages", packages),
    ]
    return [(name, html.escape(text)) for name, text in values]


def _commands(facts: Facts, known: dict[str, Any]) -> str:
    commit, seed = str(known.get("commit", "unknown")), facts.config.seed
    lines = []
    if commit != "unknown":
        lines.append(f"git checkout {shlex.quote(commit)}")
        if known.get("changed_files"):
            lines.append(f"git apply {shlex.quote(str(facts.paths.code_diff.resolve()))}")
    config = shlex.quote(str(facts.paths.config.resolve()))
    lines.append(f"hpc-stres submit --config {config} --cluster local --run-dir again")
    said = [str(word) for word in known.get("command") or []]
    first = f"<p>It was begun as <code>{html.escape(shlex.join(said))}</code>.</p>" if said else ""
    text = html.escape("\n".join(lines))
    return (
        f"{first}<pre class='run'>{text}</pre><p class='soft'>The same config and seed ({seed}) train on the same "
        "clips in the same order on any number of ranks; sums differ in their last digits between machines.</p>"
    )
