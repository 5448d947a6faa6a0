"""The same weights, bit for bit: trainings drawn from a seed, each on layouts drawn as well.

  python -m tests.campaigns.bitwise_drawn --rounds 40 --seed 3
  python -m tests.campaigns.bitwise_drawn --rounds 1 --first 17 --seed 3       round 17 of these alone

A round draws a network, its batch, norm groups, unit, precision, dropout, what is trained, clipping and
the seed; then layouts: ranks, engine, micro-batches, threads, and a resume on other ranks. It prints a
line a round; exit status 1 where two layouts of one differ in a weight, a hash or a loss on the way.
"""

import argparse
import json
import math
import random
import sys
import tempfile
import time
from pathlib import Path

import yaml

from hpc_stres.errors import ConfigError
from hpc_stres.layout import group_sizes, plan
from tests.campaigns.bitwise import (
    BITWISE,
    DEEPSPEED,
    TRUNK,
    digest,
    joint,
    laid_over,
    train_all,
)
from tests.conftest import tiny_config

LAYOUTS = 3
# Of videos as well as of trainings: each has a store of its own.
SEEDS = (7, 8)
TOLD = ("step", "weights_sha256", "tensors", "loss", "accuracy_motion", "accuracy_appearance")
SEGMENTS = {"segments": 3, "crop": "centre", "frame_grid": 2}
TRUNKS = {"appearance": TRUNK, "motion": TRUNK}
# Phase, and what is laid over the tiny config.
NETWORKS = {
    "motion": {},
    "appearance": {},
    "st_resnet": {},
    "st_resnet_star": {},
    "stm_resnet": joint(
        "stm_paper", "stm_resnet", clips={"chunks": 5, "stride": [1, 3]},
        model={**TRUNKS, "learned_scale": True},
    ),
    "stfn": joint("stfn_resnet101", "stfn", clips=SEGMENTS, model=TRUNKS),
}  # fmt: skip


def draw_training(draw):
    """What decides the bits: (phase, overrides, what is laid over the tiny config, batch, group, unit)."""
    phase = draw.choice([*NETWORKS, "st_resnet"])
    batch = draw.randint(2, 21)
    group = draw.randint(1, batch)
    common = math.gcd(*group_sizes(batch, group))
    unit = draw.choice([n for n in range(1, common + 1) if common % n == 0])
    options = [
        f"training.global_batch={batch}", f"training.norm_group={group}", f"training.unit={unit}",
        f"training.precision={draw.choice(['float32', 'float32', 'bfloat16', 'float64'])}",
        f"training.weight_decay={draw.choice([0.0, 5e-4, 0.1])}",
        f"training.momentum={draw.choice([0.0, 0.9])}", f"seed={draw.choice(SEEDS)}",
    ]  # fmt: skip
    optimise = {
        "schedule": [[100, draw.choice([1e-3, 1e-2])]],
        "classifier_only_steps": draw.choice([0, 2]),
    }
    if phase in ("motion", "appearance") and draw.random() < 0.5:
        optimise["dropout"] = 0.5
    if draw.random() < 0.3:
        optimise["trainable"] = draw.choice(["head", "last_stage"])
    if phase == "st_resnet" and draw.random() < 0.3:
        optimise |= draw.choice([{"softmax": "joint"}, {"agreement_loss": 0.3}])
    tree = NETWORKS[phase]
    phases = {
        phase: {**tree.get("phases", {}).get(phase, {"starts_from": []}), "optimise": optimise}
    }
    return phase, options, {**tree, "phases": phases}, (batch, group, unit)


def draw_layout(draw, sizes, clips_gradients):
    """One way to compute it: (ranks, overrides, threads); None where it cannot be cut so."""
    batch, group, unit = sizes
    world, more = draw.randint(1, 4), []
    micro = draw.choice([None, group, 2 * group])
    try:
        plan(batch, group, world, micro, unit)
    except ConfigError:
        return None
    if micro is not None:
        more.append(f"training.max_micro_batch={micro}")
    if clips_gradients or draw.random() < 0.5:
        more.append(DEEPSPEED)
    if clips_gradients:
        more.append("training.deepspeed={gradient_clipping: 0.05}")
    if draw.random() < 0.2:
        more.append("training.activation_checkpointing=true")
    return world, more, draw.choice([1, 1, 2, 3])


def one_round(draw, folder, data_root, steps):
    """Train one drawn case on its layouts; (its name, what differs)."""
    phase, options, tree, sizes = draw_training(draw)
    clips = draw.random() < 0.25
    layouts = [draw_layout(draw, sizes, clips) for _ in range(40)]
    layouts = [layout for layout in layouts if layout is not None][:LAYOUTS]
    if len({world for world, *_ in layouts}) == 1:
        layouts[0] = (1, [more for more in layouts[0][1] if "micro" not in more], 2)
    file = folder / "config.yaml"
    file.write_text(yaml.safe_dump(laid_over_kept(tree)))
    base = {"data_root": str(data_root), "phase": phase, "config": str(file)}
    common = [*options, BITWISE, "training.log_every_steps=2"]
    works, runs = [], []
    for number, (world, more, threads) in enumerate(layouts):
        run = folder / str(number)
        work = {
            **base,
            "run_dir": run,
            "world": world,
            "environment": {"HPC_STRES_THREADS": str(threads)},
        }
        if number == 0:
            # Begun on another layout, up to the end of a lap.
            begins, first, _ = layouts[-1]
            half = [*common, *first, f"training.max_steps={draw.choice([2, 4])}"]
            works.append({**work, "world": begins, "overrides": half})
        works.append({**work, "overrides": [*common, *more, f"training.max_steps={steps}"]})
        runs.append(run)
    train_all(works)
    told = [lines_of(run, phase) for run in runs]
    names = ", ".join(option.removeprefix("training.") for option in options)
    what = f"{phase} {names} {json.dumps(tree['phases'][phase]['optimise'])}"
    shown = "; ".join(
        f"{world} ranks {threads} threads {' '.join(more)}" for world, more, threads in layouts
    )
    different = len({digest(run, phase) for run in runs}) > 1 or told[1:] != told[:-1]
    return f"{what} on {shown}{', clipped' if clips else ''}", different


def laid_over_kept(tree):
    """The tiny config with a phase changed, its others kept where the recipe is."""
    whole = laid_over({})
    if "recipe" in tree:
        return {**whole, **tree}
    phases = {
        name: {**whole["phases"][name], **tree["phases"].get(name, {})} for name in whole["phases"]
    }
    return {**whole, "phases": phases}


def lines_of(run_dir, phase):
    """What the lines of metrics.jsonl say that must not depend on the layout."""
    path = run_dir / "phases" / phase / "metrics.jsonl"
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    return [{key: row.get(key) for key in TOLD} for row in rows]


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--first", type=int, default=0)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--steps", type=int, default=6)
    args = parser.parse_args()
    started, wrong = time.monotonic(), 0
    with tempfile.TemporaryDirectory() as name:
        from hpc_stres.prepare.run import prepare

        for seed in SEEDS:
            prepare(tiny_config(Path(name) / "data", f"seed={seed}"), quiet=True)
        for number in range(args.first, args.first + args.rounds):
            folder = Path(name) / str(number)
            folder.mkdir()
            draw = random.Random(f"{args.seed} {number}")
            what, different = one_round(draw, folder, Path(name) / "data", args.steps)
            wrong += different
            print(f"{'NO ' if different else 'ok '} {number}: {what}", flush=True)
    print(f"{wrong} of {args.rounds} wrong, {(time.monotonic() - started) / 60:.1f} minutes")
    return int(wrong > 0)


if __name__ == "__main__":
    sys.exit(main())
