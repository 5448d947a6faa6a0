"""Print what makes a shell complete this command: its commands, options, choices and files.

  source <(hpc-stres completion bash)                                   in ~/.bashrc
  source <(hpc-stres completion zsh)                                    in ~/.zshrc, after compinit
  hpc-stres completion fish > ~/.config/fish/completions/hpc-stres.fish

It is made from the commands as they are: print it again after an update.
"""

import argparse
import re
from collections.abc import Iterator
from dataclasses import dataclass

SHELLS = ("bash", "zsh", "fish")
PROGRAM = "hpc-stres"
# What a value is, by the name that the help gives it.
FILES = ("F", "FILE", "VIDEO", "SCORES", "NAME|FILE", "RUN|FILE")
FOLDERS = ("D", "DIR", "RUN")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("shell", metavar="SHELL", choices=SHELLS, help=", ".join(SHELLS))


def run(args: argparse.Namespace) -> int:
    from hpc_stres.__main__ import build_parser

    words = list(commands_of(build_parser()))
    print({"bash": bash, "zsh": zsh, "fish": fish}[args.shell](words), end="")
    return 0


@dataclass(frozen=True)
class Value:
    """What may follow an option, or be given without one."""

    name: str
    choices: tuple[str, ...] = ()

    @property
    def is_file(self) -> bool:
        """Whether it names a file."""
        return self.name in FILES

    @property
    def is_folder(self) -> bool:
        """Whether it names a folder."""
        return self.name in FOLDERS


@dataclass(frozen=True)
class Option:
    """An option with its one line of help; `value` is none for a switch."""

    names: tuple[str, ...]
    help: str
    value: Value | None


@dataclass(frozen=True)
class Command:
    """One command, its options and what it is given besides."""

    name: str
    help: str
    options: tuple[Option, ...]
    values: tuple[Value, ...]


def commands_of(parser: argparse.ArgumentParser) -> Iterator[Command]:
    """The commands of the parser, as data."""
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            texts = {choice.dest: choice.help or "" for choice in action._choices_actions}
            for name, sub in action.choices.items():
                own = [a for a in sub._actions if a.help is not argparse.SUPPRESS]
                options = tuple(_option(a) for a in own if a.option_strings)
                values = tuple(_value(a) for a in own if not a.option_strings)
                yield Command(name, texts.get(name, ""), options, values)


def _option(action: argparse.Action) -> Option:
    text = " ".join((action.help or "").split())
    text = re.sub(r"%\(default\)s", str(action.default), text).replace("%%", "%")
    return Option(tuple(action.option_strings), text, None if action.nargs == 0 else _value(action))


def _value(action: argparse.Action) -> Value:
    name = action.metavar if isinstance(action.metavar, str) else action.dest.upper()
    return Value(name, tuple(map(str, action.choices or ())))


def _quoted(text: str) -> str:
    """Text between single quotes, in every shell."""
    return "'" + text.replace("'", "'\\''") + "'"


def bash(commands: list[Command]) -> str:
    """A function for bash's `complete`; no other package is needed."""
    lines = [
        "_hpc_stres() {",
        '  local word="${COMP_WORDS[COMP_CWORD]}" before="${COMP_WORDS[COMP_CWORD-1]}" command="" part',
        '  for part in "${COMP_WORDS[@]:1:COMP_CWORD-1}"; do',
        "    [[ $part != -* ]] && { command=$part; break; }",
        "  done",
        "  COMPREPLY=()",
        "  if [[ -z $command ]]; then",
        f'    COMPREPLY=($(compgen -W "{" ".join(c.name for c in commands)} --help --version" -- "$word")); return',
        "  fi",
        '  case "$command $before" in',
    ]
    for command in commands:
        for option in command.options:
            if option.value is not None:
                pattern = "|".join(f'"{command.name} {name}"' for name in option.names)
                lines.append(f"    {pattern}) {_bash_value(option.value)} return;;")
    lines += ["  esac", '  case "$command" in']
    for command in commands:
        options = " ".join(name for option in command.options for name in option.names)
        lines += [
            f"    {command.name})",
            f"      [[ $word == -* ]] && {{ {_bash_words(options)} return; }}",
        ]
        lines += [f"      {_bash_value(value)}" for value in command.values[:1]]
        lines.append("      ;;")
    return "\n".join([*lines, "  esac", "}", f"complete -F _hpc_stres {PROGRAM}", ""])


def _bash_words(words: str) -> str:
    return f'COMPREPLY=($(compgen -W "{words}" -- "$word"));'


def _bash_value(value: Value) -> str:
    if value.choices:
        return _bash_words(" ".join(value.choices))
    if value.is_file or value.is_folder:
        # One name a line, so that names with spaces are one word.
        kind = "-d" if value.is_folder else "-f"
        return f'compopt -o filenames; mapfile -t COMPREPLY < <(compgen {kind} -- "$word");'
    return ":;"


def zsh(commands: list[Command]) -> str:
    """A function for zsh's compsys."""
    lines = [f"#compdef {PROGRAM}", "_hpc_stres() {", "  local -a commands; commands=("]
    lines += [f"    {_quoted(command.name + ':' + _plain(command.help))}" for command in commands]
    lines += [
        "  )",
        "  if (( CURRENT == 2 )); then _describe command commands; return; fi",
        "  case ${words[2]} in",
    ]
    for command in commands:
        lines.append(f"    {command.name}) shift words; (( CURRENT-- )); _arguments \\")
        parts = [_zsh_option(option, name) for option in command.options for name in option.names]
        parts += [f"*:{_plain(value.name)}:{_zsh_value(value)}" for value in command.values[:1]]
        lines += [f"      {_quoted(part)} \\" for part in parts]
        lines += ["      ;;"] if not parts else []
        lines[-1] = lines[-1].removesuffix(" \\") + (" ;;" if parts else "")
    return "\n".join([*lines, "  esac", "}", f"compdef _hpc_stres {PROGRAM}", ""])


def _plain(text: str) -> str:
    """Help without what zsh's own little language would read."""
    return re.sub(r"[\[\]:\\]", " ", text)


def _zsh_option(option: Option, name: str) -> str:
    text = f"*{name}[{_plain(option.help)}]"
    return (
        text
        if option.value is None
        else f"{text}:{_plain(option.value.name)}:{_zsh_value(option.value)}"
    )


def _zsh_value(value: Value) -> str:
    if value.choices:
        return f"({' '.join(value.choices)})"
    return "_files -/" if value.is_folder else "_files" if value.is_file else " "


def fish(commands: list[Command]) -> str:
    """Lines of fish's `complete`."""
    lines = [f"complete -c {PROGRAM} -f"]
    for command in commands:
        name, text = command.name, _quoted(command.help)
        lines.append(f"complete -c {PROGRAM} -n __fish_use_subcommand -a {name} -d {text}")
        seen = f"-n '__fish_seen_subcommand_from {name}'"
        for option in command.options:
            long = [word[2:] for word in option.names if word.startswith("--")]
            short = [word[1:] for word in option.names if not word.startswith("--")]
            words = " ".join([*(f"-l {word}" for word in long), *(f"-s {word}" for word in short)])
            value = "" if option.value is None else f" -r{_fish_value(option.value)}"
            lines.append(f"complete -c {PROGRAM} {seen} {words}{value} -d {_quoted(option.help)}")
        for given in command.values[:1]:
            if _fish_value(given):
                lines.append(f"complete -c {PROGRAM} {seen}{_fish_value(given)}")
    return "\n".join([*lines, ""])


def _fish_value(value: Value) -> str:
    if value.choices:
        return f" -f -a {_quoted(' '.join(value.choices))}"
    if value.is_folder:
        return " -f -a '(__fish_complete_directories)'"
    return " -F" if value.is_file else ""
