"""Pretrained weights: where each file comes from, fetched, checked and converted to
what a config reads.

  hpc-stres weights                          the files that are known, their licences and checksums
  hpc-stres weights resnet50                 fetch (on a login node), check, write data/weights/resnet50.safetensors
  hpc-stres weights resnet50 --to W          the same from and into the folder W; a copy in W needs no network
  hpc-stres weights some_file.pth            what is in a file of weights, and whether it is a published one

In a config `model.weights: resnet50` then means ROOT/weights/resnet50.safetensors. Nothing in a
file is executed. Without weights (`model.weights: null`) the streams start from random numbers.
"""

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from hpc_stres.models.published_weights import PublishedWeights


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "what",
        nargs="*",
        metavar="NAME|FILE",
        help="published files by name, or files to look into",
    )
    parser.add_argument(
        "--to",
        metavar="DIR",
        default="data/weights",
        help="folder of weights (default: %(default)s)",
    )
    parser.add_argument("--again", action="store_true", help="convert again what is there already")


def run(args: argparse.Namespace) -> int:
    folder = Path(args.to)
    if not args.what:
        for line in _catalogue(folder):
            print(line)
    for word in args.what:
        path = Path(word)
        print(
            _look_into(path) if path.is_file() else _provide(word, folder, args.again), flush=True
        )
    return 0


def _catalogue(folder: Path) -> list[str]:
    """Every published file that is known, a few lines each."""
    from hpc_stres.models.published_weights import NAMED_DIGITS, PUBLISHED

    lines = []
    for entry in PUBLISHED:
        path = folder / f"{entry.name}.safetensors"
        whole = len(entry.digits) > NAMED_DIGITS
        lines += [
            f"{entry.name:<14} {entry.about}" + (f"; here: {path}" if path.is_file() else ""),
            f"  {entry.url}",
            f"  {entry.licence}",
            f"  SHA-256 {entry.digits}"
            + ("" if whole else "... (its first digits, as in the file's name)"),
        ]
    return [*lines, f"fetch one: hpc-stres weights {PUBLISHED[0].name}"]


def _provide(name: str, folder: Path, again: bool) -> str:
    """Have a published file in the folder as .safetensors; returns what to write into a config."""
    from hpc_stres.models.published_weights import by_name

    entry = by_name(name)
    target = folder / f"{entry.name}.safetensors"
    if target.is_file() and not again:
        from hpc_stres.models.weights import read_state

        read_state(target)  # its checksum is compared
        return (
            f"{target}: there already, its checksum is right; in a config: model.weights: {target}"
        )
    return f"{_convert(entry, folder, target)}\nin a config: model.weights: {target}"


def _convert(entry: "PublishedWeights", folder: Path, target: Path) -> str:
    """Check the published file, fetched where it is not there, and write its tensors with a
    checksum of ours."""
    from hpc_stres.models.published_weights import check, fetch, refuse_other_trunk
    from hpc_stres.models.weights import read_state, save_state

    own = folder / entry.file
    was_there = own.is_file()
    if not was_there:
        fetch(entry, folder)
    digest = check(entry, own)
    state = read_state(own)
    trunk = refuse_other_trunk(entry, state, own)
    save_state(
        state, target, {"source": entry.url, "source_sha256": digest, "licence": entry.licence}
    )
    if not was_there:
        own.unlink()
    return f"{target}: {trunk}; from {entry.file}, SHA-256 {digest}"


def _look_into(path: Path) -> str:
    """What is in a file of weights."""
    from hpc_stres.models.published_weights import recognise, trunk_of
    from hpc_stres.models.weights import read_state
    from hpc_stres.run.paths import sha256

    state = read_state(path)
    numbers = sum(tensor.numel() for tensor in state.values())
    entry, trunk = recognise(path), trunk_of(state)
    known = (
        f"this is {entry.file}: hpc-stres weights {entry.name}"
        if entry
        else "no published file that is known here"
    )
    streams = sorted(
        {name.split(".", 1)[0] for name in state if name.count(".") > 1} & {"appearance", "motion"}
    )
    other = f"a network of this package: {' and '.join(streams)}" if streams else "unknown names"
    kind = str(trunk) if trunk else other
    return f"{path}: {kind}; {len(state)} tensors, {numbers} numbers\n  SHA-256 {sha256(path)}\n  {known}"
