"""Print the paper's Table 1 for a network as built: per metalayer the blocks, output size,
receptive field in pixels and chunks, parameters and multiply-adds of one clip.

  hpc-stres describe st_resnet_star
  hpc-stres describe st_resnet --depth 101 --variant msra
"""

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from hpc_stres.models.counting import Sizes


def add_arguments(parser: argparse.ArgumentParser) -> None:
    from hpc_stres.registry import MODELS

    parser.add_argument("model", metavar="MODEL", help=", ".join(MODELS.names()))
    parser.add_argument(
        "--extension",
        metavar="FILE",
        action="append",
        default=[],
        help="a file of one's own that registers the model",
    )
    parser.add_argument(
        "--option",
        metavar="A=B",
        action="append",
        default=[],
        help="an option of the model; repeatable",
    )
    parser.add_argument("--depth", type=int, default=50, choices=[50, 101, 152])
    parser.add_argument("--width", type=int, default=64)
    parser.add_argument("--variant", default="torchvision", choices=["torchvision", "msra"])
    parser.add_argument("--classes", type=int, default=101)
    parser.add_argument(
        "--chunks", type=int, help="time steps (default: the published training clip)"
    )
    parser.add_argument("--side", type=int, default=224, help="pixels (default: %(default)s)")


def run(args: argparse.Namespace) -> int:
    from hpc_stres.models import counting
    from hpc_stres.registry import MODELS, load_extension

    for file in args.extension:
        load_extension(Path(file).resolve())
    chunks = args.chunks or MODELS.get(args.model).usual_chunks
    # A network of plain options is counted without torch, which takes seconds to load.
    is_plain = MODELS.get(args.model).counted is not None and not args.option
    print(counting.table(_sizes(args, chunks)) if is_plain else _measured(args, chunks))
    return 0


def _sizes(args: argparse.Namespace, chunks: int) -> "Sizes":
    from hpc_stres.errors import UserError
    from hpc_stres.models.counting import Sizes
    from hpc_stres.models.layer_table import DEPTHS

    sizes = Sizes(
        model=args.model, stages=DEPTHS[args.depth], width=args.width, variant=args.variant, classes=args.classes,
        side=args.side, chunks=chunks,
    )  # fmt: skip
    if min(args.width, args.classes, args.side, chunks) < 1:
        raise UserError("--width, --classes, --side and --chunks: expected numbers of 1 or more")
    if chunks < sizes.time_window:
        raise UserError(
            f"{chunks} time steps are too few for the temporal pool over {sizes.time_window}"
        )
    return sizes


def _measured(args: argparse.Namespace, chunks: int) -> str:
    """A network that is not counted by arithmetic, measured on a dry pass."""
    from hpc_stres.errors import UserError
    from hpc_stres.models import build_model
    from hpc_stres.models.describe import table

    try:
        model = build_model(
            args.model,
            args.classes,
            args.depth,
            args.width,
            variant=args.variant,
            **_options(args.option),
        )
        return table(model, args.side, chunks)
    except ValueError as error:
        raise UserError(str(error)) from None


def _options(texts: list[str]) -> dict[str, Any]:
    """`name=value` texts; refuses others."""
    from hpc_stres.errors import ConfigError

    pairs = [text.partition("=") for text in texts]
    for text, (name, equals, _) in zip(texts, pairs, strict=True):
        if not name or not equals:
            raise ConfigError(f"--option {text}: expected name=value")
    return {name: value for name, _, value in pairs}
