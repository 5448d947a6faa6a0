"""A run folder whose phases are finished without having been trained: random weights, ready to be evaluated."""

import os

from hpc_stres.config.loading import dump, load_run, plain
from hpc_stres.evaluation.evaluate import evaluate
from hpc_stres.models.building import build_phase_model
from hpc_stres.models.weights import save_state
from hpc_stres.parallel.world import find_world
from hpc_stres.run.paths import RunPaths, sha256, write_bytes, write_text
from hpc_stres.run.product import write_done


def make_run(config, run_dir, classes, phases):
    """config.yaml, and weights and done.json of each of these phases."""
    paths = RunPaths(run_dir)
    write_text(paths.config, dump(config))
    for name in phases:
        finish(
            config, paths, name, build_phase_model(config, name, len(classes)).state_dict(), classes
        )
    return paths


def finish(config, paths, name, state, classes):
    """Make these the weights that a phase finished with."""
    phase = paths.phase(name)
    save_state(state, phase.weights)
    step = config.steps(name)
    done = {
        "phase": name,
        "step": step,
        "sha256": sha256(phase.weights),
        "classes": classes,
        "config": plain(config),
    }
    write_done(phase, done)


def finish_without_weights(config, paths, name, step=None):
    """Word that a phase is done, for those who ask no more than that."""
    step = config.steps(name) if step is None else step
    write_bytes(paths.phase(name).weights, name.encode())
    digest = sha256(paths.phase(name).weights)
    done = {"phase": name, "step": step, "sha256": digest, "classes": [], "config": plain(config)}
    write_done(paths.phase(name), done)


def evaluate_here(run_dir, *overrides, phases=None):
    """Evaluate in this process, which keeps its environment and its threads."""
    import torch

    kept, threads = dict(os.environ), torch.get_num_threads()
    try:
        return evaluate(load_run(run_dir, overrides), run_dir, find_world({}), phases)
    finally:
        if torch.distributed.is_initialized():
            torch.distributed.destroy_process_group()
        torch.set_num_threads(threads)
        os.environ.clear()
        os.environ.update(kept)
