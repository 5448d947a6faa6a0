"""Examples, failures first: frames, flow in colour, where both streams look, the
answers over time."""

import html
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hpc_stres.data.flow import decode_flow
from hpc_stres.errors import UserError
from hpc_stres.evaluation import pictures, predict
from hpc_stres.evaluation.gradcam import Look, clips_of, look, on_frame
from hpc_stres.evaluation.report.charts import Axis, Line, axis, plot, table
from hpc_stres.evaluation.report.facts import Facts, confidence, is_right, truth
from hpc_stres.evaluation.scores import Scores
from hpc_stres.prepare.video import encode_jpeg
from hpc_stres.run.paths import RunPaths
from hpc_stres.store.reader import Store

EACH, STRIP = 2, 6
# Pictures are shown about so large; larger ones would only make the file so.
MOST_ROWS, QUALITY = 160, 85
HEAT_SHARE = 0.6
Picture = NDArray[np.uint8]


@dataclass(frozen=True)
class Chosen:
    """One video of the run's column, and why it is shown."""

    index: int
    why: str
    kind: str


@dataclass(frozen=True)
class Shots:
    """Pictures of one video at some times: frames, flow, and each stream's
    Grad-CAM on the frames."""

    frames: list[int]
    rgb: list[Picture]
    flow: list[Picture]
    largest_flow: float
    heat: dict[str, list[Picture]]


def choose(facts: Facts, head: str) -> list[Chosen]:
    """All columns wrong, most confident wrong, broken and repaired against the baseline, least
    sure right ones."""
    columns, baseline = facts.columns, facts.baseline
    scores = columns[head]
    right, sure = is_right(scores), confidence(scores)
    alike = [column for column in columns.values() if column.ids == scores.ids]
    every = np.all([~is_right(column) for column in alike], axis=0)
    before = columns.get(baseline or "")
    was = is_right(before) if before is not None and before.ids == scores.ids else right
    steps = [
        (every, -sure, "every column is wrong", "bad"),
        (~right, -sure, "wrong, and most confident of it", "bad"),
        (was & ~right, -sure, f"broken: {facts.title(baseline)} has it right", "bad"),
        (~was & right, -sure, f"repaired: {facts.title(baseline)} has it wrong", "good"),
        (right, sure, "right, and least sure of it", "good"),
    ]
    chosen: dict[int, Chosen] = {}
    for mask, rank, why, kind in steps:
        places = [
            int(n) for n in np.argsort(rank, kind="stable") if mask[n] and int(n) not in chosen
        ]
        chosen |= {n: Chosen(n, why, kind) for n in places[:EACH]}
    return list(chosen.values())


def section(facts: Facts, shots: dict[str, Shots]) -> str:
    """All examples; without a store their answers alone."""
    if facts.head is None:
        return "<p>No phase of this run has been tested yet.</p>"
    note = "" if facts.store else f"<p class='soft'>No pictures: {html.escape(facts.no_store)}</p>"
    chosen = choose(facts, facts.head)
    failures = int((~is_right(facts.columns[facts.head])).sum())
    words = f"<p>{facts.shown(facts.head)} is wrong on {failures} of {len(facts.columns[facts.head].ids)} videos.</p>"
    legend = _legend(shots) if shots else ""
    return words + note + legend + "".join(_example(facts, one, shots) for one in chosen)


def _legend(shots: dict[str, Shots]) -> str:
    wheel = pictures.picture(
        png(pictures.flow_wheel(72)), "the colours of flow by direction", "png"
    )
    return (
        f'<div class="wheel">{wheel}<p class="soft">Flow: the hue is the direction in which a pixel moves (right: '
        "red), the saturation how far; full colour is the largest 1 % of each example, said beside it. Looks: "
        "Grad-CAM of the answer that was given, one scale over all times of a stream; the ring is its peak.</p></div>"
    )


def _example(facts: Facts, one: Chosen, shots: dict[str, Shots]) -> str:
    scores = facts.columns[facts.head or ""]
    name = scores.ids[one.index]
    answers = []
    for column, other in facts.columns.items():
        if name in other.ids:
            at = other.ids.index(name)
            kind, mark = (
                ("good", "\u2713 right") if is_right(other)[at] else ("bad", "\u2717 wrong")
            )
            answer = f'<span class="any">{html.escape(other.classes[int(other.logits[at].argmax())])}</span>'
            share = f'<span class="one">{100 * confidence(other)[at]:.0f} %</span>'
            answers.append(
                [facts.shown(column), f'<span class="{kind} one">{mark}</span>', share, answer]
            )
    known = html.escape(", ".join(truth(scores, one.index)))
    return (
        f'<div class="example"><h3>{html.escape(name)}</h3>'
        f'<p><span class="tag {one.kind}">{html.escape(one.why)}</span> True class: <b>{known}</b></p>'
        f"{_strips(shots[name]) if name in shots else ''}"
        f'<div class="grid">{table(["system", "", "sure", "answer"], answers)}{_over_time(facts, name)}</div></div>'
    )


def _strips(shots: Shots) -> str:
    rows = [("frame", shots.rgb), (f"flow, up to {shots.largest_flow:.1f} px", shots.flow)]
    rows += [(f"{stream} looks", heat) for stream, heat in shots.heat.items()]
    head = "<span></span>" + "".join(f'<span class="t">{number}</span>' for number in shots.frames)
    body = "".join(
        f"<span>{words}</span>"
        + "".join(
            pictures.picture(encode_jpeg(picture, QUALITY), f"{words}, frame {number}")
            for number, picture in zip(shots.frames, row, strict=True)
        )
        for words, row in rows
    )
    return f'<div class="strips" style="--n:{len(shots.frames)}">{head}{body}</div>'


def _over_time(facts: Facts, name: str) -> str:
    """Probability of the true class and of the strongest other one, in the last column that
    has several times."""
    for column, scores in reversed(facts.columns.items()):
        if name not in scores.ids or not scores.streams or scores.labels.ndim != 1:
            continue
        index = scores.ids.index(name)
        logits = np.mean([stream[index] for stream in scores.streams.values()], axis=0)
        if len(logits) > 1:
            return _chart(
                scores, predict.softmax(logits), int(scores.labels[index]), facts.title(column)
            )
    return ""


def _chart(scores: Scores, shares: NDArray[np.float64], true: int, name: str) -> str:
    rival = int(np.argmax(np.where(np.arange(shares.shape[1]) == true, -1.0, shares.mean(axis=0))))
    lines = [
        Line(
            scores.classes[number],
            [(float(n), 100 * float(v)) for n, v in enumerate(shares[:, number], 1)],
            series,
        )
        for number, series in ((true, 2), (rival, 1))
    ]
    count = len(shares)
    x = Axis(1.0, float(count), [(1.0, "first"), (float(count), "last output over time")])
    return plot(f"{name}: probability over time, in %", lines, x, axis([], 0.0, 100.0), (), "8rem")


def photograph(facts: Facts) -> dict[str, Shots]:
    """Pictures of the chosen videos, with the looks of the run's last finished phase."""
    if facts.store is None or facts.head is None:
        return {}
    scores = facts.columns[facts.head]
    chosen = [one.index for one in choose(facts, facts.head)]
    answers = {
        scores.ids[n]: int(scores.logits[n].argmax())
        for n in chosen
        if scores.ids[n] in facts.store.number
    }
    looker = Looker(facts) if facts.head in facts.config.phases else None
    return {name: _shots(facts.store, name, looker, answer) for name, answer in answers.items()}


class Looker:
    """The network of the run's column and a reader for it; nothing where its weights are gone."""

    def __init__(self, facts: Facts) -> None:
        from hpc_stres.evaluation import networks

        self.network: Any = None
        paths, store = RunPaths(facts.paths.root).phase(facts.head or ""), facts.store
        if store is not None and paths.done.is_file() and paths.weights.is_file():
            overrides = [f"data.root={facts.config.data.root}"]
            self.network = networks.from_run(
                facts.paths.root, facts.head, overrides, predict.device()
            )
            self.reader = self.network.reader(store)

    def at(self, store: Store, number: int, answer: int) -> Look | None:
        """The looks of one video for an answer; none where this network has no
        trunk to look into."""
        if self.network is None:
            return None
        row = store.rows[number]
        clips = clips_of(self.network, row, number)
        seen = look(self.network, self.reader, clips, answer)
        return on_frame(seen, clips[0].box, row.height, row.width)


def _shots(store: Store, name: str, looker: Looker | None, answer: int) -> Shots:
    number = store.number[name]
    row = store.rows[number]
    seen = looker.at(store, number, answer) if looker else None
    times = seen.frames if seen else tuple(range(row.frames))
    places = _places(times, [seen.peak(stream)[0] for stream in seen.maps] if seen else [])
    frames = [min(times[place], row.flow_pairs - 1) for place in places]
    rgb = [decoded(store.rgb(number, times[place]), True) for place in places]
    planes = [
        np.stack([decoded(store.flow(number, frame, axis), False) for axis in (0, 1)])
        for frame in frames
    ]
    flows = [decode_flow(plane) for plane in planes]
    largest = max(float(np.percentile(np.hypot(*np.stack(flows, axis=1)), 99)), 0.1)
    coloured = [pictures.colour_flow(flow, largest) for flow in flows]
    heat = {}
    for stream in seen.maps if seen else ():
        assert seen is not None
        peak = seen.peak(stream)
        heat[stream] = [
            _marked(shot, seen.maps[stream][place], peak, times[place])
            for place, shot in zip(places, rgb, strict=True)
        ]
    shrunk = {stream: [small(shot) for shot in row_of] for stream, row_of in heat.items()}
    return Shots(
        [times[p] for p in places],
        [small(s) for s in rgb],
        [small(s) for s in coloured],
        largest,
        shrunk,
    )


def _places(times: Sequence[int], peaks: Sequence[int]) -> list[int]:
    """Which of the scored times are shown: those of the peaks, and others evenly
    between the ends."""
    must = {times.index(frame) for frame in peaks}
    spare = max(2, STRIP - len(must))
    even = {round(value) for value in np.linspace(0, len(times) - 1, min(spare, len(times)))}
    return sorted(must | even)


def _marked(
    shot: Picture, heat: NDArray[np.float32], peak: tuple[int, int, int], frame: int
) -> Picture:
    """A frame under its heat; a ring where the clip's peak is, in the frame that has it."""
    import cv2

    levels = np.clip(255 * np.sqrt(heat), 0, 255).astype(np.uint8)
    colours = cv2.applyColorMap(levels, cv2.COLORMAP_INFERNO)[..., ::-1]
    # Shown by its square root: what is seen of small values is then more than nothing.
    share = (HEAT_SHARE * np.sqrt(heat))[..., None]
    mixed = np.ascontiguousarray(
        np.clip(shot * (1 - share) + colours * share, 0, 255).astype(np.uint8)
    )
    if frame == peak[0]:
        radius = max(3, min(shot.shape[:2]) // 16)
        cv2.circle(
            mixed, (peak[2], peak[1]), radius, (255, 255, 255), max(1, radius // 3), cv2.LINE_AA
        )
    return mixed


def decoded(jpeg: NDArray[np.uint8], colour: bool) -> Picture:
    """A picture of the store."""
    import cv2

    picture = cv2.imdecode(np.array(jpeg), cv2.IMREAD_COLOR if colour else cv2.IMREAD_GRAYSCALE)
    if picture is None:
        raise UserError(
            "a picture of the store does not decode\nRun `hpc-stres verify`: it names damaged members."
        )
    return np.asarray(picture[..., ::-1] if colour else picture, np.uint8)


def small(picture: Picture) -> Picture:
    """No more rows than are shown."""
    import cv2

    height, width = picture.shape[:2]
    if height <= MOST_ROWS:
        return picture
    size = (round(width * MOST_ROWS / height), MOST_ROWS)
    return np.asarray(
        cv2.resize(np.ascontiguousarray(picture), size, interpolation=cv2.INTER_AREA), np.uint8
    )


def png(picture: Picture) -> bytes:
    """A PNG of RGB or RGBA."""
    import cv2

    code = cv2.COLOR_RGBA2BGRA if picture.shape[2] == 4 else cv2.COLOR_RGB2BGR
    done, data = cv2.imencode(".png", cv2.cvtColor(picture, code))
    assert done
    return data.tobytes()
