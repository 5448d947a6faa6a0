"""Run the whole chain on data that it makes itself: videos, flow, four networks, table and report,
in a few minutes.

  hpc-stres demo                          in ./data and ./runs/binding
  hpc-stres demo --set data.root=/scratch/me --run-dir /scratch/me/run

Killed or stopped, the same command resumes. The class of a video is which colour makes which
motion: only a network that registers what with where it moves can know it.
"""

import argparse
import shlex
from pathlib import Path

from hpc_stres.commands import add_override_argument


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--run-dir", metavar="D", help="run folder (default: runs/binding)")
    parser.add_argument(
        "--adopt-code", action="store_true", help="resume with newer code than the run began with"
    )
    add_override_argument(parser)


def run(args: argparse.Namespace) -> int:
    from hpc_stres.launch.submit import add_arguments as submit_arguments
    from hpc_stres.launch.submit import run as submit

    parser = argparse.ArgumentParser()
    submit_arguments(parser)
    words = ["--cluster", "local", *(["--run-dir", args.run_dir] if args.run_dir else [])]
    chosen = parser.parse_args(
        [*words, *(word for text in args.overrides for word in ("--set", text))]
    )
    chosen.debug, chosen.adopt_code = args.debug, args.adopt_code
    code = submit(chosen)
    if code == 0:
        _say_what_next(Path(args.run_dir or "runs/binding"))
    return code


def _say_what_next(run_dir: Path) -> None:
    from hpc_stres.config.loading import load_run
    from hpc_stres.store.location import data_of

    folder = Path(data_of(load_run(run_dir)).videos or "")
    video = min(folder.rglob("*.avi"), default=folder)
    run, video_text = shlex.quote(str(run_dir)), shlex.quote(str(video))
    print("next:")
    for words, meaning in (
        (f"hpc-stres predict --run-dir {run} --over-time {video_text}", "what happens in a video"),
        (f"hpc-stres features {run} {video_text} --out features", "what the network sees in it"),
        (f"hpc-stres export --run-dir {run} --out exported", "for use elsewhere"),
    ):
        print(f"  {words}\n      {meaning}")
    print('  your own videos: docs/tutorial.md, "Your own data"')
