"""Say what happens in videos: the five most probable classes of each, over the whole
video or over time.

  hpc-stres predict --run-dir runs/binding clip.avi
  hpc-stres predict --model exported --over-time --json --save out clip1.mp4 clip2.avi

--run-dir takes a finished phase of a run (its last one, or --phase), --model what
`hpc-stres export` wrote, of which the weights are read and no program is run. A video that does not
decode gets one line on stderr; the others are still answered, and the exit status is 1.
"""

import argparse
import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from hpc_stres.commands import add_override_argument

if TYPE_CHECKING:
    from hpc_stres.evaluation.predict import Prediction


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("videos", nargs="+", metavar="VIDEO", help="video files")
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("--run-dir", metavar="D", help="run folder")
    source.add_argument("--model", metavar="DIR", help="folder that `hpc-stres export` wrote")
    parser.add_argument("--phase", help="phase of the run (default: the last one that is done)")
    parser.add_argument(
        "--quick", action="store_true", help="one centre clip instead of the run's whole protocol"
    )
    parser.add_argument(
        "--over-time", action="store_true", help="show the answer over time as well"
    )
    parser.add_argument("--json", action="store_true", help="print JSON, one object a line")
    parser.add_argument(
        "--save",
        metavar="DIR",
        help="write an annotated video and a flow strip of each video there",
    )
    add_override_argument(parser)


def run(args: argparse.Namespace) -> int:
    from hpc_stres.errors import UserError
    from hpc_stres.evaluation import annotate, networks, predict
    from hpc_stres.prepare.video import UndecodableError

    network = networks.load(
        Path(args.run_dir or args.model), args.phase, args.overrides, predict.device()
    )
    failed = 0
    for number, name in enumerate(args.videos, 1):
        if sys.stderr.isatty() and len(args.videos) > 1:
            print(f"{number} of {len(args.videos)}: {name}", file=sys.stderr)
        try:
            if not Path(name).is_file():
                raise UserError("no such file")
            prediction = predict.predict(network, Path(name), args.quick)
        except (UndecodableError, UserError) as error:
            failed += 1
            print(f"hpc-stres predict: {name}: {str(error).splitlines()[0]}", file=sys.stderr)
            continue
        print(
            json.dumps(prediction.as_json(args.over_time))
            if args.json
            else _text(prediction, args.over_time),
            flush=True,
        )
        if args.save:
            for path in annotate.save(prediction, Path(args.save)):
                print(f"written: {path}", file=sys.stderr if args.json else sys.stdout)
    return 1 if failed else 0


def _text(prediction: "Prediction", over_time: bool) -> str:
    lines = [f"{prediction.path} ({len(prediction.clip.video.rgb)} frames)"]
    lines += [f"  {100 * value:5.1f} %  {name}" for name, value in prediction.top()]
    if over_time:
        for frame, row in zip(prediction.frames, prediction.over_time, strict=True):
            name, value = prediction.top(row, 1)[0]
            lines.append(f"  frame {frame:>6}  {100 * value:5.1f} %  {name}")
    return "\n".join(lines)
