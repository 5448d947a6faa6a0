"""The commands. Each lives in hpc_stres.commands and imports what is heavy only when it runs."""

import argparse
import importlib
import io
import os
import sys
from collections.abc import Sequence

from hpc_stres import __version__
from hpc_stres.errors import UserError, explained

INTERRUPTED = 130
# Command: module of hpc_stres.commands, one line of help.
COMMANDS = {
    "demo": ("demo", "run the whole chain on data that it makes itself, in a few minutes"),
    "init": ("init", "look at a folder of videos and write a config for it"),
    "weights": ("weights", "say where pretrained weights come from; fetch, check and convert them"),
    "submit": ("submit", "submit the phases of a run as dependent jobs, or cancel a run"),
    "status": ("status", "show how far the phases of a run are"),
    "ablate": ("ablate", "train a phase with other options and several seeds, and print one table"),
    "prepare": ("prepare", "decode videos, compute optical flow and pack both into the clip store"),
    "verify": ("verify", "re-read the clip store and name every damaged member"),
    "plan": ("plan", "predict hours and node-hours of each phase, and what limits them"),
    "preflight": (
        "preflight",
        "check ranks, GPUs, versions and the network of a job before it trains",
    ),
    "train": ("train", "train one phase (what every launcher calls)"),
    "evaluate": ("evaluate", "test the finished phases of a run and print the table"),
    "reproduce": (
        "reproduce",
        "train a run's first steps again and say whether the weights are the same bits",
    ),
    "compare": ("compare", "say what changed from one run to another, and what came of it"),
    "study": (
        "study",
        "mean, deviation and interval over seeds and splits, and what seeds agree on",
    ),
    "table": ("table", "write a run's table, figures and methods paragraph for a paper"),
    "fuse": ("fuse", "combine score files of networks and hand-crafted features"),
    "predict": ("predict", "say what happens in videos of your own"),
    "features": ("features", "write what a network sees in videos of any length, window by window"),
    "export": ("export", "write a phase as torch.export program, ONNX and plain ResNet weights"),
    "report": ("report", "write a run's report.html, or one page of several runs"),
    "sync": ("sync", "replay metrics into a folder that MLflow or W&B reads"),
    "describe": ("describe", "print a network layer by layer, as in the paper's Table 1"),
    "config": ("config", "print the resolved config with the origin of every value"),
    "doctor": ("doctor", "say what is on this machine and what would go wrong"),
    "bench": ("bench", "measure speed as ratios within one run"),
    "completion": ("completion", "print what makes bash, zsh or fish complete these commands"),
    "flow-preview": ("flow_preview", "draw frames and colour-coded flow of a video into a PNG"),
}


def build_parser() -> argparse.ArgumentParser:
    """The parser with all commands."""
    # Imported here, inside `main`, so that a Ctrl-C meanwhile is met there.
    from hpc_stres.commands.parser import Parser

    parser = Parser(
        prog="hpc-stres",
        description="Train and evaluate spatiotemporal residual networks for video action recognition.",
        epilog="`hpc-stres demo` shows everything at work; `hpc-stres submit` starts a chain of phases.",
    )
    parser.add_argument("--version", action="version", version=f"hpc_stres {__version__}")
    subparsers = parser.add_subparsers(
        dest="command", required=True, metavar="COMMAND", parser_class=Parser
    )
    for name, (module, text) in COMMANDS.items():
        command = importlib.import_module(f"hpc_stres.commands.{module}")
        sub = subparsers.add_parser(name, help=text, description=command.__doc__)
        command.add_arguments(sub)
        sub.add_argument("--debug", action="store_true", help="show the traceback of an error")
        sub.set_defaults(run_command=command.run)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command; errors that a user can fix are a few lines on stderr and an exit code."""
    name = "hpc-stres"
    say_any_name()
    try:
        args = build_parser().parse_args(argv)
        name = f"hpc-stres {args.command}"
        return _run(args, name)
    except KeyboardInterrupt:
        print(f"{name}: interrupted; the same command resumes from here", file=sys.stderr)
        return INTERRUPTED


def say_any_name() -> None:
    """A letter that the terminal (or the file that is written to) does not have is written as its
    number: the name of a video is no reason for a command to fail."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


def _run(args: argparse.Namespace, name: str) -> int:
    try:
        return int(args.run_command(args))
    except UserError as error:
        if args.debug:
            raise
        print(f"{name}: {error}", file=sys.stderr)
        return error.code
    except BrokenPipeError:
        # The reader of our output has gone (`| head`): that is its right, and no error.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except Exception as error:
        if args.debug:
            raise
        print(f"{name}: {explained(error)}", file=sys.stderr)
        return 1


if __name__ == "__main__":
    sys.exit(main())
