"""Print the paper's Table 1 for a network as built: per metalayer the blocks, output size, receptive field in pixels
and chunks, parameters and multiply-adds of one clip.

  hpc-stres describe st_resnet_star
  hpc-stres describe st_resnet --depth 101 --variant msra
"""

import argparse

NAMES = ("appearance", "motion", "st_resnet", "st_resnet_star", "stm_resnet")
CHUNKS = {"appearance": 1, "motion": 1, "st_resnet_star": 11}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("model", metavar="MODEL", choices=NAMES, help=", ".join(NAMES))
    parser.add_argument("--depth", type=int, default=50, choices=[50, 101, 152])
    parser.add_argument("--width", type=int, default=64)
    parser.add_argument("--variant", default="torchvision", choices=["torchvision", "msra"])
    parser.add_argument("--classes", type=int, default=101)
    parser.add_argument("--chunks", type=int, help="time steps (default: the published training clip)")
    parser.add_argument("--side", type=int, default=224, help="pixels (default: %(default)s)")


def run(args: argparse.Namespace) -> int:
    from hpc_stres.errors import UserError
    from hpc_stres.models import build_model
    from hpc_stres.models.describe import table

    chunks = args.chunks or CHUNKS.get(args.model, 5)
    try:
        model = build_model(args.model, args.classes, args.depth, args.width, variant=args.variant)
        print(table(model, args.side, chunks))
    except ValueError as error:
        raise UserError(str(error)) from None
    return 0
