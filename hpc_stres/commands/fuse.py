"""Combine score files: L2-normalised per video, averaged with weights, classes and videos
matched by name.

  hpc-stres fuse runs/ucf101/scores/split1_st_resnet_star.npz idt_split1.csv --weights 1,1 --out fused.npz

Score files are the .npz of `hpc-stres evaluate`, an .npz with ids, classes and logits, or a .csv
with the header `id`, perhaps `label`, and the class names: of improved trajectories, MIFS, or
another network.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("files", nargs="+", metavar="FILE", help="score files, .npz or .csv")
    parser.add_argument(
        "--weights", metavar="A,B", help="one weight a file (default: all the same)"
    )
    parser.add_argument("--out", metavar="FILE.npz", help="write the fused scores")
    parser.add_argument(
        "--allow-missing", action="store_true", help="fuse the videos that all files have: k of n"
    )


def run(args: argparse.Namespace) -> int:
    from hpc_stres.errors import ConfigError
    from hpc_stres.evaluation import fusion
    from hpc_stres.evaluation.scores import summary
    from hpc_stres.evaluation.table import score_rows
    from hpc_stres.run.tables import text_table

    try:
        weights = (
            [float(word) for word in args.weights.split(",")]
            if args.weights
            else [1.0] * len(args.files)
        )
    except ValueError:
        raise ConfigError(
            f"--weights: expected numbers with commas between, got {args.weights}"
        ) from None
    if args.out and not args.out.endswith(".npz"):
        raise ConfigError(f"--out {args.out}: expected a name that ends in .npz")
    files = [fusion.read(Path(name)) for name in args.files]
    fused, total = fusion.fuse(files, weights, args.allow_missing)
    columns = {}
    for file in files:
        alone, _ = fusion.fuse([file, files[_labelled(files)]], [1.0, 0.0], True)
        is_alone = sum(other.path.name == file.path.name for other in files) == 1
        columns[file.path.name if is_alone else str(file.path)] = summary(alone, total, "")
    columns["fused"] = summary(fused, total, "")
    print(text_table(["", "top-1 %", "95 % interval", "top-5 %", "videos"], score_rows(columns)))
    shown = ", ".join(
        f"{weight:g} x {name}" for name, weight in zip(args.files, weights, strict=True)
    )
    print(f"L2-normalised per video, weighted mean: {shown}")
    if args.out:
        fused.save(Path(args.out))
        print(f"written: {args.out}")
    return 0


def _labelled(files: Sequence[Any]) -> int:
    return next((number for number, file in enumerate(files) if file.labels is not None), 0)
