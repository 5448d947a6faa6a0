"""One self-contained report.html of a run; it opens from disk without a network, and is readable
without its script."""

import html
from collections.abc import Sequence
from pathlib import Path

from hpc_stres.config.schema import Config
from hpc_stres.evaluation.report import answer, classes, costs, curves, examples, inside, repeat
from hpc_stres.evaluation.report.facts import Facts, gather
from hpc_stres.evaluation.report.script import SCRIPT, policy
from hpc_stres.evaluation.report.style import SHEET
from hpc_stres.evaluation.report.tensorboard import write_events
from hpc_stres.run.paths import write_text

Section = tuple[str, str, str]


def write_report(config: Config, run_dir: Path) -> Path:
    """Write report.html from what is in the run folder, and its figures as TensorBoard events;
    returns its path."""
    facts = gather(config, run_dir)
    shots = examples.photograph(facts)
    write_text(facts.paths.report, run_page(facts, shots))
    write_events(facts, shots)
    return facts.paths.report


def run_page(facts: Facts, shots: dict[str, examples.Shots]) -> str:
    """The page of one run: the answer first, then why, then where from."""
    sections: list[Section] = [
        ("accuracy", "Accuracy", answer.accuracy(facts)),
        ("examples", "Examples, failures first", examples.section(facts, shots)),
        ("classes", "Classes", classes.bars(facts) + classes.calibration(facts)),
        ("confusions", "Confusions", classes.confusions(facts)),
        ("changes", "What each phase repaired and broke", classes.changes(facts)),
        ("curves", "Learning curves", curves.curves(facts)),
        ("time", "Time", curves.times(facts) + curves.speed(facts)),
        ("costs", "What it cost", costs.box(facts)),
        ("kernels", "Temporal kernels", inside.kernels(facts)),
        ("junctions", "Motion in the appearance stream", inside.junctions(facts)),
        ("repeat", "Provenance", repeat.box(facts)),
    ]
    data, config = facts.results.get("data", ""), facts.config
    what = f"{data}, split {facts.split}, recipe {config.recipe}, seed {config.seed}"
    top = (
        f"<h1>{html.escape(facts.name)} <small>{html.escape(what)}</small></h1>{answer.lead(facts)}"
    )
    return page(f"{facts.name}: {answer.plain_lead(facts)}", top, sections)


def page(name: str, top: str, sections: Sequence[Section]) -> str:
    """The frame that every page has: its policy, its style, its places, its script."""
    kept = [section for section in sections if section[2]]
    first, *rest = kept
    links = "".join(f'<a href="#{place}">{title}</a>' for place, title, _ in kept)
    head = (
        f'<!doctype html>\n<html lang="en"><head><meta charset="utf-8"><title>hpc_stres: {html.escape(name)}</title>'
        f'<meta http-equiv="Content-Security-Policy" content="{policy()}">'
        '<meta name="viewport" content="width=device-width,initial-scale=1"><link rel="icon" href="data:,">'
        f"<style>{SHEET}</style></head>"
    )
    body = "".join(_section(*section) for section in rest)
    opened = f'<section id="{first[0]}" aria-label="{first[1]}">{first[2]}</section>'
    return (
        f'{head}<body><div class="page"><header>{top}</header>{opened}<nav aria-label="parts">{links}</nav>'
        f"<main>{body}</main></div><script>{SCRIPT}</script></body></html>\n"
    )


def _section(place: str, title: str, text: str) -> str:
    return f'<section id="{place}"><h2>{title}</h2>{text}</section>\n'
