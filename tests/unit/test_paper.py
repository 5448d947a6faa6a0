"""What goes into a paper: tables, figures, the methods paragraph."""

import copy
import csv
import io
import re
import zlib
from dataclasses import fields, is_dataclass, replace
from xml.etree import ElementTree

import numpy as np
import pytest

from hpc_stres.__main__ import main
from hpc_stres.config.loading import load_config
from hpc_stres.evaluation import figures, methods, scores, table
from hpc_stres.evaluation.drawing import Drawing, text_width
from hpc_stres.run.experiment import FREE_KEYS
from tests.conftest import TINY
from tests.unit.answered import CLASSES, make_run, make_scores, write_results

PHASES = ("motion", "appearance", "st_resnet")


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A run's config, folder and results; its classes have letters that LaTeX and Markdown give a meaning to."""
    config, paths = make_run(tmp_path_factory.mktemp("paper") / "run", 1, phases=PHASES)
    return config, paths.root, write_results(config, paths)


def test_every_figure_of_the_csv_is_that_of_the_score_files(made):
    _, root, results = made
    rows = list(csv.DictReader(io.StringIO(table.formatted(results, "csv"))))
    loaded = scores.Scores.load(root / "scores" / "split1_motion.npz")
    right = loaded.logits.argmax(1) == loaded.labels
    value = {(row["column"], row["class"], row["measure"]): row["value"] for row in rows}
    assert float(value["motion", "", "top1"]) == pytest.approx(100 * right.mean())
    for number, name in enumerate(CLASSES):
        recall = 100 * right[loaded.labels == number].mean()
        assert float(value["motion", name, "recall"]) == pytest.approx(recall)
    assert float(value["motion", "", "recordings"]) == 24
    taken = (loaded.labels == 0) & (loaded.logits.argmax(1) == 3)
    assert int(value["motion", CLASSES[0], f"answered {CLASSES[3]}"]) == taken.sum() > 0
    pairs = {(one["first"], one["second"]): one for one in results["comparisons"]["1"]}
    assert float(value["motion -> st_resnet", "", "p"]) == pairs["motion", "st_resnet"]["p"]
    shares = np.exp(loaded.logits) / np.exp(loaded.logits).sum(1, keepdims=True)
    nll = -np.log(shares[np.arange(len(right)), loaded.labels]).mean()
    assert float(value["motion", "", "nll"]) == pytest.approx(nll)


def test_latex_escapes_every_letter_that_it_gives_a_meaning_to(made):
    text = table.formatted(made[2], "latex")
    assert text.count(r"\\") == 1 + len(made[2]["splits"]["1"])
    assert r"top-1 \%" in text
    assert text.count("&") == 4 * (1 + len(made[2]["splits"]["1"]))
    hard = table.latex(["a"], [["x_1 & 50% {of} $5 #3 ~ ^ \\"]])
    assert (
        r"x\_1 \& 50\% \{of\} \$5 \#3 \textasciitilde{} \textasciicircum{} \textbackslash{} \\"
        in hard
    )


def test_markdown_has_as_many_cells_in_every_row(made):
    lines = table.formatted(made[2], "markdown").splitlines()
    cells = {len(re.findall(r"(?<!\\)\|", line)) for line in lines}
    assert cells == {6}
    assert r"a \| b" in table.markdown(["x"], [["a | b"]])


# ---- figures


def pdf_text(data):
    """The words of a PDF, after a check that its table of places leads to every object."""
    start = int(re.search(rb"startxref\n(\d+)\n%%EOF\n$", data).group(1))
    assert data[start:].startswith(b"xref\n")
    places = [int(found) for found in re.findall(rb"(\d{10}) 00000 n", data[start:])]
    assert len(places) == 6
    for number, place in enumerate(places, 1):
        assert data[place:].startswith(b"%d 0 obj\n" % number)
    length = int(re.search(rb"/Length (\d+)", data).group(1))
    stream = data.index(b"stream\n") + len(b"stream\n")
    assert data[stream + length :].startswith(b"\nendstream")
    return zlib.decompress(data[stream : stream + length]).decode("cp1252")


@pytest.mark.parametrize("kind", ["accuracy", "classes", "confusion", "reliability"])
def test_svg_and_pdf_say_the_same_and_nothing_leaves_the_page(made, kind):
    results = made[2]["splits"]["1"]
    column = results["motion"]
    one = column["confusion"]
    drawing = {
        "accuracy": lambda: figures.accuracy(results), "classes": lambda: figures.classes(column, "Motion"),
        "confusion": lambda: figures.confusion(one["matrix"], one["classes"], "Motion"),
        "reliability": lambda: figures.reliability(column["calibration"], "Motion"),
    }[kind]()  # fmt: skip
    tree = ElementTree.fromstring(drawing.svg())
    words = [element.text for element in tree.iter() if element.tag.endswith("}text")]
    inside = pdf_text(drawing.pdf())
    for word in words:
        literal = word.replace("\\", r"\\").replace("(", r"\(").replace(")", r"\)")
        assert f"({literal}) Tj" in inside
    for element in tree.iter():
        if element.tag.endswith("}text"):
            check_inside(drawing, element)
        for pair in element.get("points", "").split():
            x, y = map(float, pair.split(","))
            assert -0.5 <= x <= drawing.width + 0.5
            assert -0.5 <= y <= drawing.height + 0.5


def check_inside(drawing, element):
    """Words begin and end on the page."""
    x, size = float(element.get("x")), float(element.get("font-size"))
    length = text_width(element.text, size)
    shift = {"start": 0.0, "middle": 0.5, "end": 1.0}[element.get("text-anchor")] * length
    if element.get("transform"):
        y = float(element.get("y"))
        assert y + shift <= drawing.height + 1
        assert y + shift - length >= -1
    else:
        assert x - shift >= -1, element.text
        assert x - shift + length <= drawing.width + 1, element.text


def test_letters_of_every_script_make_a_readable_file():
    drawing = Drawing(100, 50, "läuft (跑) \\ <&>")
    drawing.text(1, 20, "läuft (跑) \\ <&>\n")
    assert "läuft" in ElementTree.fromstring(drawing.svg()).find("{*}text").text
    assert r"(läuft \(?\) \\ <&>?) Tj" in pdf_text(drawing.pdf())


@pytest.mark.parametrize(
    ("low", "high"), [(0, 1), (0, 100), (37.2, 41.9), (0, 0.003), (0, 123456), (5, 5)]
)
def test_ticks_are_round_and_inside(low, high):
    found = figures.ticks(low, high)
    assert 1 <= len(found) <= 7
    assert all(low - 1e-9 <= value <= high + 1e-9 for value in found)
    assert len(found) > 1 or low == high


# ---- the methods paragraph


def words_of(overrides=()):
    return methods.paragraph(load_config(TINY, overrides), {})


def changed(value):
    """Another value of the same kind."""
    if isinstance(value, bool):
        return not value
    if isinstance(value, int):
        return value + 1
    return value / 2 + 0.001


def test_every_option_that_decides_weights_or_scores_is_in_the_paragraph():
    """Each number and switch of the config, changed by itself, changes the paragraph; so no option is forgotten."""
    config = load_config(TINY)
    before = methods.paragraph(config, {})
    silent = (*FREE_KEYS, "data.max_pixels", "data.video_memory_gib", "data.video_minutes")
    missed, tried = [], 0
    for section in ("data", "model", "training", "evaluation"):
        part = getattr(config, section)
        for field in fields(part):
            value, key = getattr(part, field.name), f"{section}.{field.name}"
            is_free = any(key == name for name in silent) and not key.startswith("evaluation.")
            if (
                is_free
                or not isinstance(value, bool | int | float)
                or key in ("evaluation.allow_missing", "data.split")
            ):
                continue
            tried += 1
            object.__setattr__(other := replace(part), field.name, changed(value))
            if methods.paragraph(replace(config, **{section: other}), {}) == before:
                missed.append(key)
    assert missed == []
    assert tried > 10


def leaves(value, path=()):
    """Every field of nested dataclasses: its path and value."""
    for field in fields(value):
        inner = getattr(value, field.name)
        if is_dataclass(inner):
            yield from leaves(inner, (*path, field.name))
        else:
            yield (*path, field.name), inner


def with_value(whole, path, new):
    """A copy of nested dataclasses with one value replaced, past the checks."""
    copied = copy.copy(whole)
    inner = new if len(path) == 1 else with_value(getattr(whole, path[0]), path[1:], new)
    object.__setattr__(copied, path[0], inner)
    return copied


def test_every_acting_option_of_a_phase_is_in_the_paragraph():
    config = load_config(TINY, ["training.global_batch=null", "training.norm_group=null"])
    before = methods.paragraph(config, {})
    tried = 0
    for name, phase in config.phases.items():
        acting = {tuple(key.split(".")) for key in phase.acting()}
        for path, value in leaves(phase):
            if not isinstance(value, bool | int | float) or path not in acting:
                continue
            tried += 1
            other = with_value(phase, path, changed(value))
            text = methods.paragraph(
                with_value(config, ("phases",), {**config.phases, name: other}), {}
            )
            assert text != before, (name, path)
    assert tried > 40


def test_the_paragraph_says_the_numbers_of_the_papers_recipe():
    text = methods.paragraph(load_config(TINY, ["recipe=nips2016", "seed=5"]), {})
    said = ("momentum 0.9", "weight decay 0.0005", "seed 5", "groups of 4", "strides from 1 to 3", "quality 95",
            "48 pixels", "10 at a rate of 0.001, 10 at a rate of 0.0001")  # fmt: skip
    assert [words for words in said if words not in text] == []


def test_the_command_writes_all_of_it(made, tmp_path, capsys):
    _, root, _ = made
    words = ["table", "--run-dir", str(root), "--format", "csv", "--out", str(tmp_path / "t.csv")]
    assert (
        main([*words, "--figures", str(tmp_path / "f"), "--methods", str(tmp_path / "m.txt")]) == 0
    )
    assert (tmp_path / "t.csv").read_text().startswith("split,column,class,measure,value,low,high")
    columns = len(made[2]["splits"]["1"])
    assert (
        len(list((tmp_path / "f").glob("*.pdf")))
        == len(list((tmp_path / "f").glob("*.svg")))
        == 1 + 3 * columns
    )
    assert "24 recordings" in (tmp_path / "m.txt").read_text()
    assert main(["table", "--run-dir", str(root), "--methods", "-"]) == 0
    assert "We used SGD" in capsys.readouterr().out
    assert main([*words[:-1], str(tmp_path / "t.csv" / "t.csv")]) == 1
    assert "cannot be written" in capsys.readouterr().err
    assert main(["table", "--run-dir", str(tmp_path)]) == 1
    assert "no results.json here" in capsys.readouterr().err


def test_held_out_videos_are_said_with_their_temperature():
    column = scores.summary(make_scores(1), 72, "p", make_scores(2))
    config = load_config(TINY, ["evaluation.validation_share=0.1"])
    text = methods.paragraph(config, {"protocol": "p", "splits": {"1": {"motion": column}}})
    assert "10 % of each class's training recordings were held out" in text
    assert "Temperatures were fitted on the held-out training videos." in text
