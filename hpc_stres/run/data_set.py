"""A run belongs to one state of its data set, as it belongs to one experiment. Pure.

Labels are numbers: a class that comes or goes moves them, and a video that changes its split is
tested by weights that were trained on it. So the first phase of a run writes down what it was
trained on, and whoever trains, resumes or tests later must find the same.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from hpc_stres.errors import UserError
from hpc_stres.run.ownership import owned
from hpc_stres.run.paths import RunPaths, read_sealed, write_sealed

ALLOWED = "data"
_PATIENCE_SECONDS = 60.0
_REMEDY = "Use another --run-dir for the changed data set, or bring the old state back and run `hpc-stres prepare`."


def claim_data_set(run_dir: Path, facts: Mapping[str, Any], allowed: tuple[str, ...] = ()) -> None:
    """Bind a run folder to the state of a data set, or refuse another one than it is bound to.

    `facts` are classes, the number of training videos, and a digest of their ids,
    labels and contents.
    """
    path = RunPaths(run_dir).data_set
    with owned(run_dir / "config.lock", "this run folder is being claimed", _PATIENCE_SECONDS):
        if ALLOWED not in allowed:
            refuse_other_data_set(run_dir, facts)
        if not path.is_file() or ALLOWED in allowed:
            write_sealed(path, facts)


def refuse_other_data_set(run_dir: Path, facts: Mapping[str, Any]) -> None:
    """Refuse a data set that is not as it was when this run was begun; a run that never
    said is believed."""
    path = RunPaths(run_dir).data_set
    if not path.is_file():
        return
    then = read_sealed(
        path, "Remove it only if the data set is the one that the phases here were trained on."
    )
    now = json.loads(json.dumps(facts))
    if then != now:
        raise UserError(
            f"{run_dir}: the data set is not as it was when this run began: {_difference(then, now)}\n{_REMEDY}"
        )


def _difference(then: Mapping[str, Any], now: Mapping[str, Any]) -> str:
    lines = []
    for words, names in (("new", _without(now, then)), ("gone", _without(then, now))):
        if names:
            more = f" and {len(names) - 3} more" if len(names) > 3 else ""
            lines.append(f"classes {words}: {', '.join(names[:3])}{more}")
    if then.get("held_out") != now.get("held_out"):
        lines.append("other training videos are held out, by the list's columns")
    if then.get("train") != now.get("train"):
        lines.append(f"{then.get('train')} training videos then, {now.get('train')} now")
    return "; ".join(lines) or "labels, splits or contents of training videos differ"


def _without(these: Mapping[str, Any], others: Mapping[str, Any]) -> list[str]:
    return [name for name in these.get("classes", []) if name not in others.get("classes", [])]
