"""Write a finished phase as a torch.export program, as ONNX, and as plain ResNet weights with
torchvision's names.

  hpc-stres export --run-dir runs/ucf101 --phase st_resnet_star --out exported

Both programs take any batch, number of chunks and frame size. They are compared with the network on
clips of several; the differences stand in export.json, and one above one in ten thousand is
refused. What has to be done to a video before stands there and in the ONNX file's metadata.
`hpc-stres predict --model exported` reads the folder; exported/hub is one to share.
"""

import argparse
from pathlib import Path


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--run-dir", required=True, metavar="D", help="run folder")
    parser.add_argument("--phase", help="phase of the run (default: the last one that is done)")
    parser.add_argument("--out", required=True, metavar="DIR", help="folder to write")


def run(args: argparse.Namespace) -> int:
    from hpc_stres.config.loading import load_run
    from hpc_stres.evaluation.export import export

    run_dir, folder = Path(args.run_dir), Path(args.out)
    folder.mkdir(parents=True, exist_ok=True)
    exported = export(load_run(run_dir), run_dir, args.phase, folder)
    print(
        f"{exported['phase']}: {', '.join(exported['streams'])} to {', '.join(exported['outputs'])} -> {folder}"
    )
    for what, value in exported["difference"].items():
        print(f"  {what} differs from the network by {value:.2g} of the largest logit")
    return 0
