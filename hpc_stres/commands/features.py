"""Write what a trained network sees in videos of any length, window by window: the classifier's
input of each stream.

  hpc-stres features runs/binding clip.avi --out features
  hpc-stres features exported videos/ --out features --stride 8 --layout actionformer
  torchrun --nproc_per_node 4 -m hpc_stres features runs/ucf101 videos/ --out features

RUN is a run folder (its last finished phase, or --phase) or what `hpc-stres export` wrote. For each
video there is one .npy a stream, (time, channels), and a .json with window, stride and frame rate.
Memory does not grow with a video's length. Killed, the same command resumes; on any number of ranks
(torchrun, mpirun, srun) it writes the same bytes.

Layouts: `streams`; `actionformer`: one .npy a video, (time, channels), the streams side by side;
`mstcn`: one .npy a video, (channels, frames), for each frame the features of the nearest window.
"""

import argparse
import sys
from pathlib import Path

from hpc_stres.commands import add_override_argument


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("model", metavar="RUN", help="run folder, or what `hpc-stres export` wrote")
    parser.add_argument(
        "videos", nargs="+", metavar="VIDEOS", help="video files, or folders of them"
    )
    parser.add_argument("--out", required=True, metavar="DIR", help="folder to write")
    parser.add_argument("--phase", help="phase of the run (default: the last one that is done)")
    parser.add_argument(
        "--stride", type=int, metavar="N", help="frames between two windows (default: the spacing)"
    )
    parser.add_argument(
        "--chunks", type=int, metavar="N", help="chunks of a window (default: as trained)"
    )
    parser.add_argument(
        "--spacing",
        type=int,
        metavar="N",
        help="frames between two chunks (default: the middle of what was trained)",
    )
    parser.add_argument(
        "--layout",
        default="streams",
        choices=["streams", "actionformer", "mstcn"],
        help="what files and axes to write",
    )
    add_override_argument(parser)


def run(args: argparse.Namespace) -> int:
    from hpc_stres.errors import UserError
    from hpc_stres.evaluation import features, networks
    from hpc_stres.evaluation.sources import find_videos
    from hpc_stres.evaluation.windows import Windows
    from hpc_stres.parallel import process_groups
    from hpc_stres.parallel.world import find_world

    world = find_world()
    sources = find_videos([Path(name) for name in args.videos])
    device = process_groups.choose_device(world)
    network = networks.load(Path(args.model), args.phase, args.overrides, device)

    def chosen(given: int | None, default: int) -> int:
        return default if given is None else given

    spacing = chosen(args.spacing, network.spacing)
    windows = Windows(chosen(args.chunks, network.chunks), spacing, chosen(args.stride, spacing))
    task = features.make_task(network, windows, args.layout, Path(args.out), world)
    if world.is_first:
        print(
            f"{network.name}: windows of {windows.length} frames every {windows.stride} frames, "
            f"{len(sources)} video{'s' * (len(sources) > 1)} -> {args.out}"
        )
    try:
        failed = features.extract(task, sources, device)
    except OSError as error:
        where = error.filename or args.out
        raise UserError(f"{where}: {error.strerror or error}\nThe same command resumes.") from None
    for line in failed:
        print(f"hpc-stres features: {line}", file=sys.stderr)
    return 1 if failed else 0
