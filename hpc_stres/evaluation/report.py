"""One self-contained report.html of a run; it opens from disk without a network."""

import html
import itertools
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hpc_stres.config.loading import dump
from hpc_stres.config.recipe import ordered_phases
from hpc_stres.config.schema import Config
from hpc_stres.data.flow import decode_flow
from hpc_stres.errors import UserError
from hpc_stres.evaluation import pictures
from hpc_stres.evaluation.junctions import VIDEOS, strengths
from hpc_stres.evaluation.predict import softmax
from hpc_stres.evaluation.results import columns, titles
from hpc_stres.evaluation.scores import Scores, right
from hpc_stres.evaluation.table import protocol_lines, read_results, table_cells
from hpc_stres.models.weights import read_state
from hpc_stres.phases.train import TrainPhase
from hpc_stres.prepare.video import encode_jpeg
from hpc_stres.run.paths import SEAL, RunPaths, read_json_lines, unsealed, write_text
from hpc_stres.run.provenance import without_secrets
from hpc_stres.store.location import store_folder
from hpc_stres.store.reader import Store

EXAMPLES, STRIP = 4, 6
STYLE = """
:root{--a:#1565c0;--b:#c62828;--c:#2e7d32;--bg:#fff;--fg:#1a1a1a;--line:#ccc;color-scheme:light dark}
@media(prefers-color-scheme:dark){:root{--a:#64b5f6;--b:#ef9a9a;--c:#a5d6a7;--bg:#15181c;--fg:#e6e6e6;--line:#444}}
body{font:16px/1.5 system-ui,sans-serif;margin:0 auto;max-width:60rem;padding:1rem;background:var(--bg);color:var(--fg)}
table{border-collapse:collapse}th,td{padding:.25rem .8rem;border-bottom:1px solid var(--line);text-align:left}
.wide{overflow-x:auto}
.grid{display:grid;grid-template-columns:repeat(auto-fit,minmax(16rem,1fr));gap:1rem}
svg{width:100%;height:auto}svg text{font-size:11px;fill:var(--fg)}svg .t{font-weight:600}.g{stroke:var(--line)}
.chart{max-width:30rem}
.strip{display:flex;gap:4px;overflow-x:auto}.strip img{height:96px;image-rendering:auto}
pre{overflow-x:auto;font-size:.85rem}
summary{cursor:pointer}a,summary{color:var(--a)}:focus-visible{outline:2px solid var(--a)}
"""


def write_report(config: Config, run_dir: Path) -> Path:
    """Write report.html from what is in the run folder; returns its path."""
    paths = RunPaths(run_dir)
    results = read_results(paths.results)
    store, found = Store(store_folder(config)), columns(config, run_dir)
    heads = titles(config)
    sections = [
        ("Accuracy", _table(results)),
        ("Learning curves", _curves(config, paths, heads)),
        ("Classes", _classes(found, heads)),
        ("What each phase repaired and broke", _changes(found, heads)),
        ("Examples", _examples(store, found, heads)),
        ("Temporal kernels", _kernels(config, paths, heads)),
        ("Motion in the appearance stream", _junctions(config, run_dir, store, heads)),
        ("Provenance", _provenance(config, paths)),
    ]
    links = " · ".join(f'<a href="#s{n}">{title}</a>' for n, (title, _) in enumerate(sections))
    body = "".join(f'<section id="s{n}"><h2>{title}</h2>{text}</section>' for n, (title, text) in enumerate(sections))
    name = html.escape(run_dir.resolve().name)
    write_text(
        paths.report,
        f'<!doctype html><html lang="en"><head><meta charset="utf-8"><title>hpc_stres: {name}</title>'
        f'<meta name="viewport" content="width=device-width,initial-scale=1"><link rel="icon" href="data:,">'
        f"<style>{STYLE}</style></head><body><h1>{name}</h1><nav>{links}</nav>{body}</body></html>\n",
    )
    return paths.report


def _rows(header: list[str], rows: list[list[str]]) -> str:
    head = "".join(f'<th scope="col">{html.escape(cell)}</th>' for cell in header)
    body = "".join("<tr>" + "".join(f"<td>{html.escape(cell)}</td>" for cell in row) + "</tr>" for row in rows)
    return f'<div class="wide"><table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>'


def _table(results: dict[str, Any]) -> str:
    words = "".join(f"<p>{html.escape(line)}</p>" for line in protocol_lines(results))
    return _rows(*table_cells(results)) + words


def _curves(config: Config, paths: RunPaths, heads: Mapping[str, str]) -> str:
    charts = []
    for name in ordered_phases(config.phases):
        rows = _metric_rows(paths.phase(name).metrics)
        for kind in ("loss", "accuracy"):
            keys = sorted({key for row in rows for key in row if key.startswith(f"{kind}_")})
            series = {
                key.removeprefix(f"{kind}_"): [(row["step"], row[key]) for row in rows if key in row] for key in keys
            }
            charts.append(pictures.line_chart(f"{heads.get(name, name)}: {kind}", series, "steps"))
    return f'<div class="grid">{"".join(charts)}</div>'


def _metric_rows(path: Path) -> list[dict[str, float]]:
    """Numbers of metrics.jsonl; a row that carries a checksum must match it, and a line that is no row is named."""
    remedy = "Remove that line; it is for the curves only."
    try:
        rows = read_json_lines(path)
    except ValueError as error:
        raise UserError(f"{path}: damaged: {error}\n{remedy}") from None
    for number, row in enumerate(rows, 1):
        if not isinstance(row, dict) or not isinstance(row.get("step"), int):
            raise UserError(f"{path}, row {number}: damaged: it has no step\n{remedy}")
        if SEAL in row:
            unsealed(row, f"{path}, row {number}", remedy)
    return [{key: value for key, value in row.items() if _is_number(value)} for row in rows]


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _classes(found: dict[str, Scores], heads: Mapping[str, str]) -> str:
    parts = []
    for name, scores in found.items():
        count = len(scores.classes)
        matrix = np.zeros((count, count), np.int64)
        np.add.at(matrix, (scores.labels, scores.logits.argmax(axis=1)), 1)
        share = matrix.diagonal() / np.maximum(matrix.sum(axis=1), 1)
        order = np.argsort(share, kind="stable")
        text = ", ".join(f"{scores.classes[i]} {100 * share[i]:.0f} %" for i in order[:3])
        best = ", ".join(f"{scores.classes[i]} {100 * share[i]:.0f} %" for i in order[::-1][:3])
        note = f"<p>best: {html.escape(best)}<br>worst: {html.escape(text)}</p>"
        title = html.escape(heads.get(name, name))
        parts.append(f"<div><h3>{title}</h3>{pictures.confusion(matrix, scores.classes)}{note}</div>")
    return f'<div class="grid">{"".join(parts)}</div>'


def _changes(found: dict[str, Scores], heads: Mapping[str, str]) -> str:
    """From each column to the next: videos that became right and that became wrong, by name."""
    parts = []
    names = list(found)
    for before, after in itertools.pairwise(names):
        one, two = found[before], found[after]
        if one.ids != two.ids:
            continue
        was, now = right(one), right(two)
        repaired = [one.ids[i] for i in np.nonzero(~was & now)[0]]
        broken = [one.ids[i] for i in np.nonzero(was & ~now)[0]]
        title = html.escape(f"{heads.get(before, before)} to {heads.get(after, after)}")
        parts.append(
            f"<details><summary>{title}: {len(repaired)} repaired, {len(broken)} broken</summary>"
            f"<p>repaired: {html.escape(', '.join(repaired) or '-')}</p>"
            f"<p>broken: {html.escape(', '.join(broken) or '-')}</p></details>"
        )
    return "".join(parts)


def _examples(store: Store, found: dict[str, Scores], heads: Mapping[str, str]) -> str:
    """Frame and flow strips of videos whose answer the last column changed, or the first ones."""
    names = list(found)
    if not names:
        return ""
    first, last = found[names[0]], found[names[-1]]
    pairs = zip(last.ids, right(first), right(last), strict=True) if first.ids == last.ids else ()
    changed = [name for name, a, b in pairs if a != b] or last.ids
    changed = [name for name in changed if name in store.number]
    step = max(1, len(changed) // EXAMPLES)
    return "".join(_example(store, found, name, heads) for name in changed[::step][:EXAMPLES])


def _example(store: Store, found: dict[str, Scores], name: str, heads: Mapping[str, str]) -> str:
    import cv2

    video = store.number[name]
    row = store.rows[video]
    frames = [round(value) for value in np.linspace(0, row.flow_pairs - 1, min(STRIP, row.flow_pairs))]
    shots = "".join(pictures.picture(store.rgb(video, n).tobytes(), f"frame {n}") for n in frames)
    flows = []
    for n in frames:
        planes = [cv2.imdecode(np.array(store.flow(video, n, axis)), cv2.IMREAD_GRAYSCALE) for axis in (0, 1)]
        coloured = pictures.colour_flow(decode_flow(np.stack([np.asarray(plane, np.uint8) for plane in planes])))
        flows.append(pictures.picture(encode_jpeg(coloured, 90), f"flow {n}"))
    answers = []
    for column, scores in found.items():
        if name in scores.ids:
            index = scores.ids.index(name)
            answers.append([heads.get(column, column), scores.classes[int(scores.logits[index].argmax())]])
    truth = html.escape(store.classes[row.label])
    chart = _over_time(found, name, heads)
    strips = f'<div class="strip">{shots}</div><div class="strip">{"".join(flows)}</div>'
    return f"<h3>{html.escape(name)} <small>({truth})</small></h3>{strips}{_rows(['column', 'answer'], answers)}{chart}"


def _over_time(found: dict[str, Scores], name: str, heads: Mapping[str, str]) -> str:
    """Probability of the true class and of the strongest other one, in the last column that has several times."""
    for column, scores in reversed(found.items()):
        if name not in scores.ids or not scores.streams:
            continue
        index = scores.ids.index(name)
        logits = np.mean([stream[index] for stream in scores.streams.values()], axis=0)
        if len(logits) > 1:
            return _time_chart(scores, logits, int(scores.labels[index]), heads.get(column, column))
    return ""


def _time_chart(scores: Scores, logits: NDArray[np.float64], truth: int, title: str) -> str:
    shares = softmax(logits)
    rival = int(np.argmax(np.where(np.arange(shares.shape[1]) == truth, -1.0, shares.mean(axis=0))))
    series = {
        scores.classes[number]: [(float(time), float(value)) for time, value in enumerate(shares[:, number], 1)]
        for number in (truth, rival)
    }
    chart = pictures.line_chart(f"{title}: probability over time", series, "time outputs")
    return f'<div class="chart">{chart}</div>'


def shows(config: Config, name: str, probe: str) -> bool:
    """Whether a phase trains a network that has this to show."""
    phase = config.phases[name]
    return isinstance(phase, TrainPhase) and probe in phase.family.probes


def _junctions(config: Config, run_dir: Path, store: Store, heads: Mapping[str, str]) -> str:
    """How large the motion signal is where it enters the appearance stream."""
    rows = []
    for name in ordered_phases(config.phases):
        if not shows(config, name, "junctions") or not RunPaths(run_dir).phase(name).done.is_file():
            continue
        for junction in strengths(config, run_dir, name, store):
            numbers = [f"{junction.motion:.3g}", f"{junction.appearance:.3g}", f"{junction.share:.2f}"]
            rows.append([heads.get(name, name), f"conv{junction.stage + 1}_x", *numbers])
    note = (
        f"<p>Root mean square of both signals at each junction, on one clip of each of {VIDEOS} test videos. A share "
        "of 1 means that what comes from motion is as large as what it is joined to.</p>"
    )
    return note + _rows(["phase", "junction", "motion", "appearance", "share"], rows)


def _kernels(config: Config, paths: RunPaths, heads: Mapping[str, str]) -> str:
    """How far each temporal kernel moved from its start, and how many of its filters became differences."""
    rows = []
    for name in ordered_phases(config.phases):
        if not shows(config, name, "temporal_kernels") or not paths.phase(name).weights.is_file():
            continue
        for key, weight in read_state(paths.phase(name).weights).items():
            if weight.ndim != 4 or tuple(weight.shape[2:]) != (3, 1):
                continue
            taps = weight[..., 0].double().numpy()
            mean = taps.mean(axis=2, keepdims=True)
            moved = np.abs(taps - mean).sum() / np.abs(taps).sum()
            differences = (np.sign(taps).min(axis=2) < 0) & (np.sign(taps).max(axis=2) > 0)
            rows.append([heads.get(name, name), key, f"{100 * moved:.1f} %", f"{100 * differences.mean():.1f} %"])
    note = (
        "<p>Every temporal filter starts as an average, a third at each tap. <em>Moved</em>: share of the weight that "
        "is no longer equal over the taps. <em>Differences</em>: filters whose taps have come to differ in sign.</p>"
    )
    return note + _rows(["phase", "kernel", "moved", "differences"], rows)


def _provenance(config: Config, paths: RunPaths) -> str:
    """What the run was made with; a report is passed on, so that nothing that looks like a secret is in it."""
    texts = {paths.config.name: dump(without_secrets(config))}
    if paths.provenance.is_file():
        texts[paths.provenance.name] = paths.provenance.read_text(encoding="utf-8", errors="replace")
    return "".join(
        f"<details><summary>{name}</summary><pre>{html.escape(text)}</pre></details>"
        for name, text in sorted(texts.items(), reverse=True)
    )
