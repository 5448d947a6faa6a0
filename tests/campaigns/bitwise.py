"""The same weights, bit for bit, whatever the ranks, the engine, the micro-steps and the resumes.

  python -m tests.campaigns.bitwise                     50 steps of each case on 1, 2, 3 and 4 ranks
  python -m tests.campaigns.bitwise --steps 6 --only dropout --worlds 1,3
  python -m tests.campaigns.bitwise --folder D          kept in D; the same command resumes after a kill

Prints one line a case: the SHA-256 of all weights and on how many layouts it was met; exit status 1
where two layouts of a case differ, or where the control in ordinary float32 does not.
"""

import argparse
import contextlib
import hashlib
import importlib
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import traceback
from pathlib import Path
from typing import Any

import yaml

from hpc_stres.run.pinning import LEVEL
from tests.conftest import ROOT, TINY, tiny_config
from tests.distributed.launching import clean_environment, free_port

BITWISE = "training.reproducible=bitwise"
LOW, DEEPSPEED = "training.precision=bfloat16", "training.engine=deepspeed"
TRUNK = {"stages": [2, 2]}
# Case: phase, options, and what is laid over the tiny config.
Case = tuple[str, list[str], dict[str, Any]]


def joint(recipe, name, **sections):
    """A phase of another network, as a tree over the tiny config."""
    phase = {"starts_from": [], "optimise": {"schedule": [[100, 1.0e-3]]}, **sections}
    return {"recipe": recipe, "phases": {name: phase}}


def cases() -> dict[str, Case]:
    """What must be equal on every layout."""
    schedule = "phases.st_resnet.optimise.schedule=[[100, 1.0e-3]]"
    groups = {
        "4 in 32": ["training.global_batch=32", "training.norm_group=4", "training.unit=4"],
        "5 in 14": ["training.global_batch=14", "training.norm_group=5"],
        "8 in one": ["training.global_batch=8", "training.norm_group=8", "training.unit=2"],
    }
    dropout = [
        "training.dropout=0.5", "training.norm_group=5", LOW,
        "phases.motion.optimise.schedule=[[100, 1.0e-3]]",
    ]  # fmt: skip
    segments = {"segments": 3, "crop": "centre", "frame_grid": 2}
    inception = {"family": "inception_v3", "width": 4, "side": 75}
    return {
        **{
            f"{name}, {precision}": ("st_resnet", [*options, schedule, *low], {})
            for name, options in groups.items()
            for precision, low in (("float32", []), ("bfloat16", [LOW]))
        },
        "dropout 0.5, bfloat16": ("motion", dropout, {}),
        "STM-ResNet": (
            "stm_resnet", [],
            joint("stm_paper", "stm_resnet", clips={"chunks": 5, "stride": [1, 3]},
                  model={"appearance": TRUNK, "motion": TRUNK, "learned_scale": True}),
        ),
        "STFN, trunks trained": (
            "stfn", [],
            joint("stfn_resnet101", "stfn", clips=segments,
                  model={"appearance": TRUNK, "motion": TRUNK}),
        ),
        "STFN, trunks frozen": (
            "stfn", [],
            joint("stfn_resnet101", "stfn", clips=segments,
                  model={"appearance": TRUNK, "motion": TRUNK, "trunks": "frozen"}),
        ),
        "STFN of Inception-v3": (
            "stfn", ["training.global_batch=4", "training.norm_group=4"],
            joint("stfn_inception_v3", "stfn", clips=segments,
                  model={"appearance": inception, "motion": inception}),
        ),
    }  # fmt: skip


def layouts(case, world):
    """Overrides of a case's layouts on so many ranks, by name."""
    named = {"ddp": [], "deepspeed": [DEEPSPEED]}
    if world == 1 and case.startswith(("4 in 32", "5 in 14", "dropout", "STM")):
        # One group, and so one micro-step, after another.
        named["accumulated"] = ["training.max_micro_batch=5"]
    if world == 1 and case == "4 in 32, float32":
        named["recomputed"] = ["training.activation_checkpointing=true"]
    if case.startswith("STFN of") and world > 1:
        del named["deepspeed"]
    return named


def train_all(works):
    """Train one after another; a work has phase, run_dir, overrides, data_root, world, and a config where
    it is not the tiny one. With `copy_of` it evaluates a copy of that run folder in place of training.
    What is heavy is imported once: each rank is a fork of one process."""
    works = [
        {"config": str(TINY), **work, "port": free_port(), "run_dir": str(work["run_dir"])}
        for work in works
    ]
    process = subprocess.Popen(
        [sys.executable, "-m", "tests.campaigns.bitwise", "--forks"],
        env=clean_environment(**LEVEL, MASTER_ADDR="127.0.0.1"), cwd=ROOT, stdin=subprocess.PIPE,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True,
    )  # fmt: skip
    try:
        output, _ = process.communicate(json.dumps(works), timeout=7200)
        if process.returncode:
            raise AssertionError(output[-3000:])
    finally:
        # Its ranks are of its session.
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
    return output


# What a training imports when it needs it.
HEAVY = (
    "hpc_stres.training.phase", "hpc_stres.evaluation.evaluate", "torch.utils.tensorboard",
    "nvidia.dali.fn", "safetensors.torch", "torch._dynamo",
)  # fmt: skip


def fork_ranks(works):
    """Every work on its ranks; ends at the first that fails."""
    from hpc_stres.training.engine import import_deepspeed

    for name in HEAVY:
        importlib.import_module(name)
    import_deepspeed()
    for work in works:
        mark = _mark_of(work)
        if mark.exists():
            continue
        if "copy_of" in work:
            shutil.copytree(work["copy_of"], work["run_dir"])
        children = [os.fork() or _train(work, rank) for rank in range(work["world"])]
        codes = [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children]
        if any(codes):
            sys.exit(f"{work['run_dir']}: ranks ended with {codes}")
        mark.touch()


def _mark_of(work):
    """A file in a run folder that says that this training of it has ended."""
    decided = {key: value for key, value in work.items() if key != "port"}
    name = hashlib.sha256(json.dumps(decided, sort_keys=True).encode()).hexdigest()[:16]
    return Path(work["run_dir"]) / f"trained-{name}"


def _train(work, rank):
    """One rank, in its own process, which ends here."""
    from hpc_stres.config.loading import load_config
    from hpc_stres.errors import UserError
    from hpc_stres.evaluation.evaluate import evaluate
    from hpc_stres.parallel.world import find_world
    from hpc_stres.training.phase import train

    world = str(work["world"])
    os.environ.update(RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE=world)
    os.environ.update(LOCAL_WORLD_SIZE=world, MASTER_PORT=str(work["port"]))
    os.environ.update(work.get("environment", {}))
    code = 1
    try:
        overrides = [f"data.root={work['data_root']}", *work["overrides"]]
        config = load_config(work["config"], overrides)
        place = Path(work["run_dir"])
        if "copy_of" in work:
            evaluate(config, place, find_world(), [work["phase"]])
            code = 0
        else:
            code = int(not train(config, work["phase"], place, find_world()))
    except UserError as error:
        print(f"{work['run_dir']}: {error}", flush=True)
    except Exception:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        os._exit(code)


def digest(run_dir, phase):
    """SHA-256 of the file of all weights and statistics of a finished phase."""
    file = Path(run_dir) / "phases" / phase / "weights.safetensors"
    return hashlib.sha256(file.read_bytes()).hexdigest()


def campaign(data_root, folder, chosen, worlds, steps):
    """Digests of all layouts by case. Half of the steps of `resumed` are another number of ranks'."""
    met: dict[str, dict[str, str]] = {name: {} for name in [*chosen, CONTROL]}
    most = [f"training.max_steps={steps}", f"training.log_every_steps={steps}"]
    half = [f"training.max_steps={steps // 2}"]
    everything = {**chosen, CONTROL: next(iter(chosen.values()))}
    for turn, world in enumerate([*worlds, worlds[0]]):
        works, asked = [], []
        for number, (case, (phase, options, tree)) in enumerate(everything.items()):
            file = folder / f"{number}.yaml"
            file.write_text(yaml.safe_dump(laid_over(tree)))
            on = [] if case == CONTROL else [BITWISE]
            options = options if on else [o for o in options if not o.startswith("training.unit")]
            base = {
                "data_root": str(data_root),
                "phase": phase,
                "config": str(file),
                "world": world,
            }
            named = {"ddp": []} if case == CONTROL else layouts(case, world)
            for name, more in named.items() if turn < len(worlds) else ():
                run = folder / f"{number}-{world}-{name}"
                works.append({**base, "run_dir": run, "overrides": [*options, *on, *most, *more]})
                asked.append((case, f"{world} {name}", run, phase))
            if not number and on:
                begun = folder / f"{number}-resumed-{turn - 1}"
                if turn:
                    works.append({**base, "run_dir": begun, "overrides": [*options, *on, *most]})
                    asked.append((case, f"resumed on {world}", begun, phase))
                if turn < len(worlds):
                    begins = {**base, "run_dir": folder / f"{number}-resumed-{turn}"}
                    works.append({**begins, "overrides": [*options, *on, *half]})
        train_all(works)
        for case, layout, run, phase in asked:
            met[case][layout] = digest(run, phase)
        print(f"{world} ranks: {len(works)} trainings", flush=True)
    return met


def laid_over(tree):
    """The tiny config with other phases."""
    whole = yaml.safe_load(TINY.read_text())
    return {**whole, **tree} if tree else whole


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=50)
    parser.add_argument("--worlds", default="1,2,3,4")
    parser.add_argument("--only", default="", help="cases whose names begin so, with | between")
    parser.add_argument("--folder", help="where trainings are kept (default: nowhere)")
    args = parser.parse_args()
    worlds = [int(world) for world in args.worlds.split(",")]
    chosen = {n: c for n, c in cases().items() if n.startswith(tuple(args.only.split("|")))}
    started = time.monotonic()
    with tempfile.TemporaryDirectory() as name:
        from hpc_stres.prepare.run import prepare

        folder = Path(args.folder or name).resolve()
        folder.mkdir(parents=True, exist_ok=True)
        prepare(tiny_config(folder / "data"), quiet=True)
        met = campaign(folder / "data", folder, chosen, worlds, args.steps)
    fine = True
    for case, digests in met.items():
        different = len(set(digests.values()))
        is_right = different > 1 if case == CONTROL else different == 1
        fine = fine and is_right
        first = next(iter(digests.values()))[:16]
        print(
            f"{'ok ' if is_right else 'NO '} {case}: {different} different on {len(digests)} layouts, {first}"
        )
        if not is_right:
            print(f"    {digests}")
    print(f"{args.steps} steps, {(time.monotonic() - started) / 60:.0f} minutes")
    return 0 if fine else 1


CONTROL = "control: ordinary float32"

if __name__ == "__main__":
    if sys.argv[1:] == ["--forks"]:
        fork_ranks(json.load(sys.stdin))
    else:
        sys.exit(main())
