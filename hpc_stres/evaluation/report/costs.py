"""What the run cost: node-hours planned and used, and what became of the time of each job
and on each node."""

import html

from hpc_stres.evaluation.report.charts import table
from hpc_stres.evaluation.report.curves import seconds
from hpc_stres.evaluation.report.facts import Facts
from hpc_stres.run.accounting import Account, Costs, account, by_kind, worst_nodes

# One colour for each kind of time, whatever kinds a run has.
COLOURS = {
    "queue": "var(--line)", "start-up": "var(--s1)", "training": "var(--s0)", "checkpoints": "var(--s3)",
    "done again": "var(--s5)", "evaluation": "var(--s2)", "other work": "var(--s4)",
}  # fmt: skip
MOST_NODES = 12


def box(facts: Facts) -> str:
    """The section; empty where no job of the run has written down when it began."""
    spent = account(facts.config.phases, facts.paths.root)
    if not spent.jobs:
        return ""
    total, planned = spent.total, spent.planned_node_hours
    of_plan = f" of {planned:.2f} planned" if planned else ""
    lost = (
        f", {total.lost_node_hours:.2f} of them lost to start-up, checkpoints and work done again"
    )
    lead = (
        f"<p>{total.node_hours:.2f} node-hours used{of_plan}{lost if total.node_hours else ''}.</p>"
    )
    note = (
        "<p class='soft'>Queue: from the moment at which a job waits for nothing but the scheduler. Done again: what "
        "an attempt did after its last kept step. Each second of a job is in one column.</p>"
    )
    return lead + _bar(total) + _jobs(facts, spent) + _nodes(spent) + note


def _bar(total: Costs) -> str:
    """All jobs' time as one bar, with its legend."""
    kinds = by_kind(total)
    whole = sum(value for _, value in kinds) or 1.0
    label = ", ".join(f"{name} {100 * value / whole:.1f} %" for name, value in kinds)
    x, shapes = 0.0, []
    for name, value in kinds:
        width = 100 * value / whole
        shapes.append(
            f'<rect x="{x:.3f}" y="0" width="{width:.3f}" height="10" style="fill:{COLOURS[name]}">'
            f"<title>{name}: {seconds(value)}</title></rect>"
        )
        x += width
    keys = " ".join(
        f'<span class="one"><svg viewBox="0 0 10 10" style="width:.7rem;height:.7rem" aria-hidden="true">'
        f'<rect width="10" height="10" style="fill:{COLOURS[name]}"/></svg> {name} {100 * value / whole:.1f} %</span>'
        for name, value in kinds
    )
    bar = (
        '<svg viewBox="0 0 100 10" preserveAspectRatio="none" style="width:100%;height:1.4rem" '
        f'role="img" aria-label="{label}">{"".join(shapes)}</svg>'
    )
    return f"<figure>{bar}<figcaption>{keys}</figcaption></figure>"


def _jobs(facts: Facts, spent: Account) -> str:
    rows = [
        [facts.shown(name) if name in facts.config.phases else html.escape(name), *_cells(costs)]
        for name, costs in spent.jobs.items()
    ]
    if len(rows) > 1:
        rows.append(["all", *_cells(spent.total)])
    header = [
        "job",
        "attempts",
        "queue",
        "start-up",
        "training",
        "checkpoints",
        "done again",
        "other",
        "node-hours",
    ]
    return table(header, rows, numbers=1)


def _cells(costs: Costs) -> list[str]:
    times = (
        costs.queue, costs.startup, costs.training, costs.checkpoints, costs.repeated,
        costs.evaluation + costs.other,
    )  # fmt: skip
    return [str(costs.attempts), *map(seconds, times), f"{costs.node_hours:.2f}"]


def _nodes(spent: Account) -> str:
    """Nodes by what was lost on them; of one node there is nothing to compare."""
    if len(spent.nodes) < 2:
        return ""
    rows = [
        [html.escape(name), str(c.attempts), f"{c.node_hours:.2f}", f"{c.lost_node_hours:.2f}"]
        for name, c in worst_nodes(spent)[:MOST_NODES]
    ]
    more = len(spent.nodes) - len(rows)
    rest = f"<p class='soft'>and {more} more nodes</p>" if more > 0 else ""
    return table(["node", "attempts", "node-hours", "of these lost"], rows, numbers=1) + rest
