"""Every recipe on small sets of odd videos: nothing but an answer or a sentence may come out.

  python -m tests.campaigns.odd_sets                               all sets, all recipes
  python -m tests.campaigns.odd_sets --sets mixed --recipes stm_paper,handcrafted

Every phase of a recipe is trained for one step, as small as it gets, tested, and reported on. A line a set and recipe;
the command fails where anything but a UserError is raised, or a score is not a finite number.
"""

import argparse
import contextlib
import io
import sys
import tempfile
import traceback
from pathlib import Path

import numpy as np
import torch

from hpc_stres.config.loading import CONFIGS, load_config, load_run
from hpc_stres.config.recipe import ordered_phases
from hpc_stres.config.tree import bare, read_file
from hpc_stres.errors import UserError
from hpc_stres.evaluation.evaluate import evaluate
from hpc_stres.evaluation.report.page import write_report
from hpc_stres.parallel.world import find_world
from hpc_stres.prepare.run import prepare
from hpc_stres.prepare.video import write_video
from hpc_stres.registry import PHASE_KINDS
from hpc_stres.registry.phase import entry_point
from tests.conftest import TINY
from tests.unit.scenes import texture

CLASSES = ("high jump", "Ölwechsel (laut)", "c'est la #1")
SMALL_IDT = {"scales": 2, "step": 8, "gaussians": 2, "vocabulary_samples": 400}
# Frames, height, width, pixels a frame, and whether it has colour.
PLAIN = (24, 48, 64, 2, True)
SETS = {
    # Of each class: ordinary, long and wide, upright, gray, without motion, shorter than a trajectory, of few frames.
    "mixed": [
        PLAIN, (40, 50, 160, 3, True), (20, 130, 48, 1, True), (24, 64, 64, 2, False), (24, 48, 48, 0, True),
        (11, 48, 48, 2, True), (4, 48, 64, 2, True), (2, 48, 48, 1, True), (1, 48, 48, 0, True), PLAIN,
    ],
    "gray": [(20, 48, 48, 2, False)] * 6,
    "no motion": [(20, 48, 48, 0, True)] * 6,
    "shorter than a trajectory": [(9, 48, 48, 2, True)] * 6,
    "two frames": [(2, 48, 48, 1, True)] * 6,
    "one frame": [(1, 48, 48, 0, True)] * 6,
    "very small": [(18, 10, 12, 1, True)] * 6,
    "one colour": [(18, 48, 48, None, True)] * 6,
}  # fmt: skip
RECIPES = (
    "nips2016", "released", "stm_paper", "stm_released", "stm_released_r152", "stfn_resnet101",
    "stfn_frozen", "stfn_inception_v3", "handcrafted",
)  # fmt: skip


def frames_of(seed, count, height, width, speed, is_colour):
    """A square that moves to the right over a still ground, both smooth; one colour alone where there is no speed."""
    side = min(height, width) // 2
    ground, square = (
        np.stack([texture(seed + plane * is_colour + more, *shape) for plane in range(3)], axis=-1)
        for more, shape in ((0, (height, width)), (9, (side, side)))
    )
    pictures = []
    for number in range(count):
        picture = ground.copy()
        left = number * (speed or 0) % (width - side + 1)
        picture[side // 2 : side // 2 + side, left : left + side] = square
        pictures.append(picture if speed is not None else np.full_like(picture, 128))
    return pictures


def make_videos(folder, wanted):
    """One folder a class; sides are even, as the codec has them."""
    for label, name in enumerate(CLASSES):
        for number, (count, height, width, speed, is_colour) in enumerate(wanted):
            path = folder / name / f"{name[:3]} no {number}.avi"
            path.parent.mkdir(parents=True, exist_ok=True)
            pictures = frames_of(100 * label + number, count, height, width, speed, is_colour)
            write_video(path, pictures, 25)


def settings_of(recipe):
    """Overrides that make a shipped recipe as small as it gets: one step a phase."""
    path = CONFIGS / "recipes" / f"{'stfn_resnet101' if recipe == 'stfn_frozen' else recipe}.yaml"
    made = []
    for name, phase in bare(read_file(path))["phases"].items():
        if phase.get("kind") == "handcrafted":
            made += [f"phases.{name}.{key}={value}" for key, value in SMALL_IDT.items()]
        if phase.get("kind", "train") != "train":
            continue
        optimise = f"phases.{name}.optimise"
        made += [f"{optimise}.schedule=[[1, 1.0e-3]]"]
        for stream in {"appearance", "motion"} & set(phase["model"]):
            options = small(phase["model"][stream].get("family", "resnet"), recipe)
            own = f"phases.{name}.model.{stream}"
            made += [f"{own}.{key}={value}" for key, value in options.items()]
        if phase["model"]["name"] == "stfn":
            made.append(f"phases.{name}.clips.segments=3")
    return [f"recipe={path.stem}", *made, *(FROZEN if recipe == "stfn_frozen" else [])]


def small(family, recipe):
    """Options of a small trunk; one that was deeper than the other stream's still is."""
    stages = [2, 3] if recipe == "stm_released_r152" else [2, 2]
    return {"width": 4, "side": 80} if family == "inception_v3" else {"stages": stages}


FROZEN = [
    "phases.features={kind: features, starts_from: [motion, appearance]}",
    "phases.stfn.starts_from=[features]", "phases.stfn.model.trunks=frozen", "phases.stfn.clips.crop=centre",
]  # fmt: skip


def config_of(recipe, root, run_dir):
    """The tiny config with the videos under `root`, without its own schedules of phases."""
    tiny = run_dir.parent / "tiny.yaml"
    text = TINY.read_text(encoding="utf-8")
    tiny.write_text(text[: text.index("phases:")] + text[text.index("evaluation:") :])
    data = [
        "data.kind=folder", f"data.videos={root}/videos", f"data.root={root}/data", "data.max_rejected=1.0",
        "evaluation.allow_missing=true", "data.workers=1", "training.checkpoint_every_steps=0",
        "training.global_batch=4", "training.norm_group=2",
    ]  # fmt: skip
    return load_config(tiny, [*data, *settings_of(recipe)])


def run(config, run_dir):
    """Every phase, the test and the report; the columns' accuracies."""
    for name in ordered_phases(config.phases):
        kind = PHASE_KINDS.get(config.phases[name].kind)
        assert entry_point(kind.run)(config, name, run_dir, find_world({}), ())
    results = evaluate(load_run(run_dir), run_dir, find_world({}))
    write_report(load_run(run_dir), run_dir)
    for path in (run_dir / "scores").glob("*.npz"):
        with np.load(path) as arrays:
            assert np.isfinite(arrays["logits"]).all(), path
    (table,) = results["splits"].values()
    return {name: round(column["top1"]) for name, column in table.items()}


def attempt(recipe, root, folder):
    """What came out in words, and whether that is allowed."""
    said = io.StringIO()
    try:
        with contextlib.redirect_stdout(said), contextlib.redirect_stderr(said):
            config = config_of(recipe, root, folder / "run")
            prepare(config, quiet=True)
            columns = run(config, folder / "run")
    except UserError as error:
        return f"refused: {' / '.join(str(error).splitlines())[-230:]}", True
    except Exception:  # what this command looks for
        return traceback.format_exc(), False
    finally:
        if torch.distributed.is_initialized():
            torch.distributed.destroy_process_group()
    return " ".join(f"{name} {value}" for name, value in columns.items()), True


def main():
    """A line a set and recipe."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--sets", default=",".join(SETS))
    parser.add_argument("--recipes", default=",".join(RECIPES))
    args = parser.parse_args()
    failed = 0
    with tempfile.TemporaryDirectory() as above:
        for name in args.sets.split(","):
            root = Path(above) / name
            make_videos(root / "videos", SETS[name])
            for recipe in args.recipes.split(","):
                folder = root / f"with {recipe}"
                folder.mkdir()
                words, is_fine = attempt(recipe, root, folder)
                failed += not is_fine
                print(f"{name:<26} {recipe:<18} {'' if is_fine else 'FAILED '}{words}", flush=True)
    print(f"{failed} failed")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
