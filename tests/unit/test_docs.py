"""README, CONTRIBUTING, docs/: generated pages are current, links lead somewhere, commands run."""

import dataclasses
import functools
import importlib.util
import itertools
import re
import shlex
import shutil
import subprocess
import sys

import pytest

from hpc_stres.__main__ import build_parser
from hpc_stres.config.loading import load_config, plain
from hpc_stres.config.schema import Config
from hpc_stres.errors import ConfigError
from hpc_stres.launch import status, submit
from tests.conftest import ROOT
from tests.unit.test_rooms import MAY_SEE

PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
BINDING = ROOT / "configs" / "binding.yaml"
SECTIONS = {field.name for field in dataclasses.fields(Config)}
MOST_README_LINES = 130
# Commands that run in seconds, without data, a GPU or Slurm.
QUICK = {"config", "describe", "doctor"}
# Options of programs that are not ours.
FOREIGN_OPTIONS = {
    "--folder",
    "--local",
    "--start",
    "--container-image",
    "--finetune",
    "--gpus-per-task",
    "--gres",
    "--mpi",
    "--nb_classes",
    "--rounds",
    "--seed",
    "--test-only",
    "--without",
    "--logdir",
    "--nproc_per_node",
    "--gpus-per-node",
    "--nodes",
    "--ntasks-per-node",
}


def load_generator():
    spec = importlib.util.spec_from_file_location("docs_generate", ROOT / "docs" / "generate.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


generate = load_generator()


def page_name(path):
    return str(path.relative_to(ROOT))


def fenced(text, language):
    """The blocks of one language."""
    return re.findall(rf"^```{language}\n(.*?)^```", text, re.MULTILINE | re.DOTALL)


def without_blocks(text):
    return re.sub(r"^```.*?^```", "", text, flags=re.MULTILINE | re.DOTALL)


def shell_lines(text):
    return [line for block in fenced(text, "sh") for line in block.splitlines() if line.strip()]


# ---- generated pages


def test_generated_pages_are_current():
    command = [sys.executable, ROOT / "docs" / "generate.py", "--check"]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stdout + result.stderr


def test_a_stale_page_is_noticed_and_written_anew(tmp_path, monkeypatch, capsys):
    for name in generate.PAGES:
        shutil.copy(ROOT / "docs" / name, tmp_path)
    shutil.copy(ROOT / "docs" / "benchmarks.in.md", tmp_path)
    monkeypatch.setattr(generate, "DOCS", tmp_path)
    page = tmp_path / "configuration.md"
    page.write_text(page.read_text().replace("`data.crop`", "`data.corp`"))
    (tmp_path / "tour.md").unlink()
    assert generate.main(["--check"]) == 1
    assert "configuration.md: out of date" in capsys.readouterr().out
    assert not (tmp_path / "tour.md").exists(), "--check writes nothing"
    assert generate.main([]) == 0
    assert generate.main(["--check"]) == 0


def test_every_key_of_a_config_is_in_the_reference():
    def leaves(value, path):
        if isinstance(value, dict) and value:
            for key, item in value.items():
                yield from leaves(item, [*path, key])
        else:
            yield path

    keys = {option.key for option in generate.config_options()}
    for path in leaves(plain(load_config(BINDING)), []):
        shown = ["phases", "NAME", *path[2:]] if path[0] == "phases" else path
        assert ".".join(shown) in keys
    assert all(option.meaning for option in generate.config_options())


def test_limits_come_from_the_checks_and_defaults_from_the_fields():
    options = {option.key: option for option in generate.config_options()}
    assert options["data.jpeg_quality"][1:3] == ("whole number; 1 to 100", "`95`")
    assert options["training.start_timeout_minutes"].values == "number above 0"
    assert options["cluster.scheduler"].values == "`slurm`, `local`"


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"options": ["no_such_key"]}, "option no_such_key: no such key"),
        ({"options": ["norm_group"]}, "option norm_group: is one of"),
        ({"code": ["no_such_function"]}, "code no_such_function: no file defines it"),
        (
            {"code": ["tvl1"], "tests": ["test_that_nobody_wrote"]},
            "test test_that_nobody_wrote: no file defines it",
        ),
        ({"recipes": ["nips1916"]}, "no recipe nips1916"),
        ({}, "names no option, code or recipe"),
    ],
)
def test_the_fidelity_table_names_only_what_exists(row, message, tmp_path, monkeypatch, capsys):
    content = {
        "title": "t",
        "text": "t",
        "sections": [{"title": "s", "rows": [{"fact": "f", **row}]}],
    }
    made_up = tmp_path / "fidelity.yaml"
    made_up.write_text(generate.yaml.safe_dump(content))
    monkeypatch.setattr(generate, "FIDELITY", made_up)
    assert generate.main(["--check"]) == 1
    assert message in capsys.readouterr().err


def test_all_mistakes_of_the_fidelity_table_are_named_at_once(tmp_path, monkeypatch, capsys):
    rows = [{"fact": "f", "options": ["no_key"], "tests": ["test_no"]}]
    rows += [{"fact": "g", "code": ["no_f"]}]
    content = {"title": "t", "text": "t", "sections": [{"title": "s", "rows": rows}]}
    (tmp_path / "fidelity.yaml").write_text(generate.yaml.safe_dump(content))
    monkeypatch.setattr(generate, "FIDELITY", tmp_path / "fidelity.yaml")
    assert generate.main([]) == 1
    told = capsys.readouterr().err
    assert all(name in told for name in ("no_key", "test_no", "no_f"))


# ---- links


def anchors(path):
    """The anchors of a page's headings, as GitHub makes them."""
    text = without_blocks(path.read_text(encoding="utf-8"))
    headings = re.findall(r"^#+ (.*)$", text, re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def broken_links(text, folder):
    broken = []
    for link in re.findall(r"\]\(([^)\s]+)\)", without_blocks(text)):
        if link.startswith(("http://", "https://")):
            continue
        name, _, anchor = link.partition("#")
        target = (folder / name).resolve()
        if not target.exists() or not name or (anchor and anchor not in anchors(target)):
            broken.append(link)
    return broken


@pytest.mark.parametrize("page", PAGES, ids=page_name)
def test_links_lead_somewhere(page):
    assert not broken_links(page.read_text(encoding="utf-8"), page.parent)


@pytest.mark.parametrize("link", ["docs/none.md", "docs/tutorial.md#no-such-heading", "../none.md"])
def test_a_link_that_leads_nowhere_is_noticed(link):
    assert broken_links(f"see [this]({link})", ROOT) == [link]


def test_the_readme_is_short():
    assert len((ROOT / "README.md").read_text(encoding="utf-8").splitlines()) <= MOST_README_LINES


def test_contributing_says_which_room_may_import_which():
    text = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| `(\w+)` \| [^|]* \| ([^|]*) \|$", text, re.MULTILINE)
    told: dict[str, set[str]] = {}
    for room, others in rows:
        told[room] = set(told) if others == "all above" else set(others.split(", ")) - {"-"}
    assert told == MAY_SEE


# ---- commands


@functools.cache
def our_parser():
    return build_parser()


def command_problem(line, copied=()):
    """What is wrong with a printed command, found without running it; empty: nothing."""
    words = shlex.split(line, comments=True)
    while re.fullmatch(r"[A-Z_]+=.*", words[0]):
        words = words[1:]
    if words[0] == "torchrun" or words[0] == "mpirun":
        words = words[words.index("-m") + 1 :] if "-m" in words else [*words, "no -m"]
        words = ["hpc-stres", *words[1:]] if words[0] == "hpc_stres" else words
    for option, value in itertools.pairwise(words):
        if option == "--config" and value not in copied and not (ROOT / value).is_file():
            return f"{value}: no such config"
    return _program_problem(words[0], words[1:])


def _program_problem(program, rest):
    if program == "make":
        targets = re.findall(r"^(\w[\w-]*):", (ROOT / "Makefile").read_text(), re.MULTILINE)
        return "" if rest and set(rest) <= set(targets) else f"make {rest}: no such target"
    if program == "hpc-stres":
        return _parses(our_parser().parse_args, rest)
    if program == "python" and rest[0] == "launch/submit.py":
        return _parses(submit.parse, rest[1:])
    if program == "python" and rest[0] == "launch/status.py":
        return _unknown_options(rest[1:], help_of(status.main))
    if program == "python" and rest[0] == "docs/generate.py":
        return _unknown_options(rest[1:], help_of(generate.main))
    if program == "python" and rest[:2] == ["-m", "pytest"]:
        return "" if (ROOT / rest[2]).exists() else f"{rest[2]}: no such tests"
    if program in ("sbatch", "cp"):
        file = next(word for word in rest if "/" in word)
        return "" if (ROOT / file).is_file() else f"{file}: no such file"
    known = [program, *rest] == ["source", ".venv/bin/activate"]
    return "" if known else f"{program}: what is this?"


def _parses(parse, words):
    try:
        parse(words)
    except SystemExit as stop:
        return "" if stop.code == 0 else f"refused: {shlex.join(words)}"
    return ""


def help_of(main):
    """The help text of a program that builds its parser inside `main`."""
    import contextlib
    import io

    with contextlib.redirect_stdout(io.StringIO()) as text, contextlib.suppress(SystemExit):
        main(["--help"])
    return text.getvalue()


def _unknown_options(words, text):
    unknown = [word for word in words if word.startswith("--") and word not in text]
    return f"no option {unknown[0]}" if unknown else ""


def page_problems(text):
    copied = {shlex.split(line)[2] for line in shell_lines(text) if line.startswith("cp ")}
    # The config that `init NAME` writes.
    copied |= {f"{name}.yaml" for name in re.findall(r"^hpc-stres init (\S+)", text, re.MULTILINE)}
    problems = {line: command_problem(line, copied) for line in shell_lines(text)}
    return {line: problem for line, problem in problems.items() if problem}


@pytest.mark.parametrize("page", PAGES, ids=page_name)
def test_printed_commands_and_their_options_exist(page):
    assert not page_problems(page.read_text(encoding="utf-8"))


@pytest.mark.parametrize(
    "line",
    [
        "make coffee",
        "hpc-stres trian --config configs/binding.yaml",
        "hpc-stres evaluate --run-dir runs/x --no-such-option",
        "hpc-stres config --config configs/none.yaml",
        "hpc-stres prepare --config mine.yaml",
        "python launch/submit.py --no-such-option",
        "python launch/status.py runs/x --no-such-option",
        "torchrun --nproc_per_node 2 -m hpc_stres train --config configs/binding.yaml",
        "sbatch slurm/none.sh",
        "python -m pytest tests/unit/test_none.py",
        "hpc_stres --help",
    ],
)
def test_a_command_that_does_not_exist_is_noticed(line):
    assert page_problems(f"```sh\n{line}\n```\n")


def inline_codes(text):
    return re.findall(r"`([^`\n]+)`", without_blocks(text))


def key_problems(text):
    """Config keys in running text that do not exist, and values that they do not take."""
    problems = []
    for code in inline_codes(text):
        key, _, value = code.partition(":")
        if key.endswith((".onnx", ".safetensors", ".yaml", ".json", ".py")):
            continue  # a file
        if not re.fullmatch(r"[a-z_]+(\.[A-Za-z_]+)+", key) or key.split(".")[0] not in SECTIONS:
            continue
        try:
            is_section = any(known.startswith(f"{key}.") for known in generate.all_keys())
            if not is_section:
                generate.find_option(key)
            if value.strip():
                load_config(BINDING, [f"{key}={value.strip()}"])
        except (generate.DocsError, ConfigError) as error:
            problems.append(str(error))
    return problems


@functools.cache
def known_options():
    helps = [
        our_parser().format_help(),
        help_of(status.main),
        help_of(submit.parse),
        help_of(generate.main),
    ]
    for group in our_parser()._subparsers._group_actions:
        helps += [parser.format_help() for parser in group.choices.values()]
    return FOREIGN_OPTIONS.union(*(re.findall(r"--[a-z][a-z-]*", text) for text in helps))


@pytest.mark.parametrize("page", PAGES, ids=page_name)
def test_keys_and_options_in_the_text_exist(page):
    text = page.read_text(encoding="utf-8")
    assert not key_problems(text)
    codes = " ".join(inline_codes(text))
    assert set(re.findall(r"(?<!\S)--[a-z][\w-]*", codes)) <= known_options()


def test_a_key_that_does_not_exist_is_noticed():
    wrong = ["data.flow_back_end", "cluster.continuation: never", "phases.NAME.chunk"]
    right = [
        "data.flow_backend",
        "cluster.continuation: requeue",
        "phases.NAME.clips.chunks",
        "phases",
    ]
    assert [len(key_problems(f"`{code}`")) for code in wrong] == [1, 1, 1]
    assert not key_problems(" ".join(f"`{code}`" for code in right))


@pytest.mark.parametrize("page", PAGES, ids=page_name)
def test_printed_pieces_of_config_load(page, tmp_path):
    for block in fenced(page.read_text(encoding="utf-8"), "yaml"):
        (tmp_path / "piece.yaml").write_text(block)
        load_config(tmp_path / "piece.yaml")


def test_a_copy_of_the_config_for_own_data_works_from_anywhere(tmp_path):
    copy = shutil.copy(ROOT / "configs" / "own_data.yaml", tmp_path / "mine.yaml")
    assert load_config(copy) == load_config(ROOT / "configs" / "own_data.yaml")
