"""Where the network looks on the demonstration data, against the generator that knows where the discs are.

  python -m tests.campaigns.gradcam RUN            a finished run of configs/binding.yaml
  python -m tests.campaigns.gradcam --work DIR     trains one there first (some minutes)

Both discs act: the class is which colour makes which motion, so that either disc tells it, and
nothing else moves or has a colour. The discs cover an eighth of a frame, which is what a peak
anywhere would hit. Exit status 1 where a stream's peaks lie on a disc in fewer than 80 % of the
test videos.
"""

import argparse
import subprocess
import sys
from pathlib import Path

import numpy as np

from tests.conftest import ROOT

WANTED = 0.8
# Distance of a colour from grey, in levels, of which a disc has 44 or more.
LEAST_CHROMA = 22


def discs(config, video):
    """Of each frame of a test video, which pixels belong to a disc: drawn again by the generator, told by colour."""
    from hpc_stres.prepare import binding

    _, name, group = video.split("_")[:3]
    named, clip = dict(binding.classes()), int(group[1:]) - 1
    label = list(named).index(name)
    random = np.random.Generator(np.random.Philox(key=[config.seed, label * 100_000 + clip]))
    size = config.data.binding
    return np.stack(
        [
            _is_coloured(rgb)
            for rgb in binding.draw_video(named[name], size.frames, size.side, random)
        ]
    )


def _is_coloured(rgb):
    red, green, blue = np.moveaxis(rgb.astype(np.float64), -1, 0)
    cb = -0.168736 * red - 0.331264 * green + 0.5 * blue
    cr = 0.5 * red - 0.418688 * green - 0.081312 * blue
    return np.hypot(cb, cr) > LEAST_CHROMA


def shares_on_discs(config, run_dir, phase, videos=None):
    """Share of videos whose peak lies on a disc, by stream, and the share of all pixels that discs have."""
    import torch

    from hpc_stres.evaluation import gradcam, networks
    from hpc_stres.store.location import store_folder
    from hpc_stres.store.reader import Store

    store = Store(store_folder(config))
    network = networks.from_run(
        run_dir, phase, [f"data.root={config.data.root}"], torch.device("cpu")
    )
    reader = network.reader(store)
    hits, covered = {}, []
    for name in videos or sorted(store.ids(config.data.split, "test")):
        number = store.number[name]
        row = store.rows[number]
        clips = gradcam.clips_of(network, row, number)
        seen = gradcam.look(network, reader, clips)
        seen = gradcam.on_frame(seen, clips[0].box, row.height, row.width)
        truth = discs(config, name)
        covered.append(truth.mean())
        for stream, heat in seen.maps.items():
            assert heat.shape == (len(seen.frames), row.height, row.width)
            frame, y, x = seen.peak(stream)
            hits.setdefault(stream, []).append(truth[frame, y, x])
    return {stream: float(np.mean(found)) for stream, found in hits.items()}, float(
        np.mean(covered)
    )


def main():
    from hpc_stres.config.loading import load_run

    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("run", nargs="?", type=Path, help="finished run of the demonstration")
    parser.add_argument("--work", type=Path, help="train one in this folder")
    parser.add_argument("--seed", type=int, default=1)
    args = parser.parse_args()
    run_dir = args.run
    if run_dir is None:
        if args.work is None:
            parser.error("name a run, or --work DIR to train one")
        run_dir = args.work / "run"
        words = [
            "--config",
            ROOT / "configs/binding.yaml",
            "--cluster",
            "local",
            "--run-dir",
            run_dir,
        ]
        words += ["--set", f"data.root={args.work / 'data'}", "--set", f"seed={args.seed}"]
        subprocess.run([sys.executable, ROOT / "launch/submit.py", *words], check=True)
    config = load_run(run_dir)
    least = 1.0
    for phase in config.phases:
        shares, covered = shares_on_discs(config, run_dir, phase)
        words = ", ".join(f"{stream} {100 * share:.1f} %" for stream, share in shares.items())
        print(f"{phase:16} {words} (discs cover {100 * covered:.1f} %)", flush=True)
        least = min(least, *shares.values()) if len(shares) == 2 else least
    return 0 if least >= WANTED else 1


if __name__ == "__main__":
    sys.exit(main())
