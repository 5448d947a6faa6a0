"""The command line's parser: misspelt words get the nearest right one, help fits the terminal,
errors are two lines."""

import argparse
import difflib
import re
import textwrap
from collections.abc import Sequence
from typing import Any, NoReturn

WIDEST, NARROWEST = 110, 40
# Nearest word that is worth a hint.
NEAR = 0.6
INVALID_CHOICE = re.compile(
    r"invalid choice: '?(?P<word>.*?)'? \(choose from (?P<choices>.*)\)$", re.DOTALL
)


class Formatter(argparse.HelpFormatter):
    """Paragraphs are filled to the terminal's width; indented lines are examples and
    keep their shape."""

    def __init__(self, prog: str, **options: Any) -> None:
        super().__init__(prog, **options)
        self._width = min(max(self._width, NARROWEST), WIDEST)
        self._max_help_position = min(self._max_help_position, self._width // 3)

    def _fill_text(self, text: str, width: int, indent: str) -> str:
        width = min(width, self._width)
        blocks: list[list[str]] = [[]]
        for line in text.strip("\n").splitlines():
            is_example = line.startswith(" ")
            if not line.strip() or is_example or (blocks[-1] and blocks[-1][-1].startswith(" ")):
                blocks.append([])
            if line.strip():
                blocks[-1].append(line)
            else:
                blocks.append([])
        return "\n".join(_joined(blocks, width))


def _joined(blocks: Sequence[Sequence[str]], width: int) -> list[str]:
    """Paragraphs filled, examples as they are where they fit, an empty line where there was one."""
    lines: list[str] = []
    for block in blocks:
        if not block:
            if lines and lines[-1]:
                lines.append("")
        elif block[0].startswith(" "):
            lines += _example(block[0], width)
        else:
            lines += textwrap.wrap(
                " ".join(block), width, break_long_words=False, break_on_hyphens=False
            )
    return lines


def _example(line: str, width: int) -> list[str]:
    """A command that is too wide: what explains it goes below, and it is broken as
    a shell reads it."""
    if len(line) <= width:
        return [line]
    command, _, words = line.strip().partition("   ")
    broken = textwrap.wrap(command, width - 4, break_long_words=False, break_on_hyphens=False)
    shell = [f"  {part}" if number == 0 else f"    {part}" for number, part in enumerate(broken)]
    shell = [f"{part} \\" for part in shell[:-1]] + shell[-1:]
    return [*shell, *(f"      {part}" for part in textwrap.wrap(words.strip(), width - 6))]


class Parser(argparse.ArgumentParser):
    """An argparse parser that says what was probably meant."""

    def __init__(self, *arguments: Any, **options: Any) -> None:
        options.setdefault("formatter_class", Formatter)
        super().__init__(*arguments, **options)

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> tuple[Any, list[str]]:
        parsed, extra = super().parse_known_args(args, namespace)
        # A command's own parser knows its options; the one above would only name what is left over.
        if extra:
            self.error(f"unrecognized arguments: {' '.join(extra)}")
        return parsed, extra

    def error(self, message: str) -> NoReturn:
        """Two lines on stderr, and exit status 2."""
        self.exit(2, f"{self.prog}: {self._explained(message)}\nAll it takes: {self.prog} --help\n")

    def _explained(self, message: str) -> str:
        match = INVALID_CHOICE.search(message)
        if match:
            choices = [word.strip(" '") for word in match["choices"].split(",")]
            nearest = difflib.get_close_matches(match["word"], choices, 1, NEAR)
            if message.startswith("argument COMMAND"):
                return f"no command {match['word']!r:.60}" + (
                    f"; did you mean {nearest[0]}?" if nearest else ""
                )
            return message + (f"; did you mean {nearest[0]}?" if nearest else "")
        unknown = re.match(r"unrecognized arguments: (--?[^\s=]+)", message)
        if unknown:
            known = [
                text
                for action in self._actions
                for text in action.option_strings
                if text.startswith("--")
            ]
            nearest = difflib.get_close_matches(unknown[1], known, 1, NEAR)
            return f"no option {unknown[1]:.60}" + (
                f"; did you mean {nearest[0]}?" if nearest else ""
            )
        return message
