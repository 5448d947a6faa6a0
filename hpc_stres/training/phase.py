"""Training a phase from outside: the process group, who owns the phase, and what is left to do of
it."""

import contextlib
import os
import sys
import time
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import torch

from hpc_stres.config.schema import Config
from hpc_stres.errors import UserError
from hpc_stres.parallel import process_groups
from hpc_stres.parallel.world import World, kept_environment
from hpc_stres.run.data_set import claim_data_set
from hpc_stres.run.experiment import claim_run_folder
from hpc_stres.run.ownership import owned
from hpc_stres.run.paths import RunPaths
from hpc_stres.run.product import phase_is_done
from hpc_stres.run.provenance import write_provenance
from hpc_stres.store.held_out import trained_facts
from hpc_stres.store.listing import check_matches
from hpc_stres.store.location import store_folder
from hpc_stres.store.reader import Store
from hpc_stres.training import stall
from hpc_stres.training.metrics import WAITING, late_ranks
from hpc_stres.training.profile import profile_of
from hpc_stres.training.trainer import Trainer

# What the slowest of the ranks that did arrive needs to say so after a time-out.
HEARTBEAT_GRACE_SECONDS = 3.0
# Under Slurm the next link of a chain may start while the one before it still writes its last
# checkpoint.
LINK_PATIENCE_SECONDS = 60.0


def train(
    config: Config,
    name: str,
    run_dir: Path,
    world: World,
    allowed: tuple[str, ...] = (),
    profile: bool = False,
) -> bool:
    """Train one phase to its end, or until asked to stop (False); `profile` records some steps."""
    device = process_groups.choose_device(world)
    torch.backends.cuda.matmul.allow_tf32 = config.training.tf32
    torch.backends.cudnn.allow_tf32 = config.training.tf32
    is_bitwise = config.training.reproducible == "bitwise"
    is_deterministic = config.training.deterministic or is_bitwise
    torch.backends.cudnn.benchmark = not is_deterministic
    torch.use_deterministic_algorithms(is_deterministic)
    # Nobody reads memory before it is written, and to fill it costs a pass over each tensor.
    torch.utils.deterministic.fill_uninitialized_memory = not is_bitwise  # type: ignore[attr-defined]
    if is_bitwise:
        # One thread a kernel; a rank's threads take a unit each (exact/session.py).
        torch.set_num_threads(1)
    with kept_environment():
        stall.record_flights(RunPaths(run_dir).phase(name))
        process_groups.start(world, device, config.training.start_timeout_minutes)
        try:
            finished = _train_in_group(config, name, run_dir, world, device, allowed, profile)
        except BaseException:
            # A rank that failed leaves at once; leaving the group may wait for the others.
            if world.size == 1:
                process_groups.stop()
            raise
        process_groups.stop()
    return finished


def _train_in_group(
    config: Config,
    name: str,
    run_dir: Path,
    world: World,
    device: torch.device,
    allowed: tuple[str, ...],
    profile: bool,
) -> bool:
    control = process_groups.make_control_group()
    with ExitStack() as ownership:
        if not is_left_to_do(config, name, run_dir, world, allowed, control, ownership):
            if world.is_first:
                print(f"{name}: done already (step {config.steps(name)})")
            return True
        return _train_owned(
            Trainer(config, name, run_dir, world, device, control), allowed, profile
        )


def is_left_to_do(
    config: Config, name: str, run_dir: Path, world: World, allowed: tuple[str, ...], control: Any,
    ownership: ExitStack,
) -> bool:  # fmt: skip
    """Claim the run folder and own the phase, on the first rank for all; False where the phase is
    finished."""
    paths = RunPaths(run_dir).phase(name)
    refusal, done = None, False
    if world.is_first:
        patience = LINK_PATIENCE_SECONDS if "SLURM_JOB_ID" in os.environ else 0.0
        try:
            claim_run_folder(config, run_dir, allowed)
            done = phase_is_done(paths, config.steps(name))
            if not done:
                _claim_data(config, run_dir, allowed)
                ownership.enter_context(owned(paths.lock, "this phase is being trained", patience))
                # It may have been finished while this rank waited for its owner.
                done = phase_is_done(paths, config.steps(name))
                write_provenance(run_dir, config)
        except UserError as error:
            refusal = error
        except OSError as error:
            refusal = UserError(
                f"{error.filename or run_dir}: cannot be written: {error.strerror or error}\n"
                "Give a --run-dir that this user may write to, on a file system with free space."
            )
    process_groups.refuse_together(refusal, control, f"to train {name} in {run_dir}")
    return process_groups.agree([float(done)], control) == [0.0]


def _claim_data(config: Config, run_dir: Path, allowed: tuple[str, ...]) -> None:
    """The store holds the config's data set, and that is what this run was begun on."""
    store = Store(store_folder(config))
    check_matches(store, config)
    claim_data_set(run_dir, trained_facts(store, config), allowed)


def _train_owned(trainer: Trainer, allowed: tuple[str, ...], profile: bool) -> bool:
    trainer.stop.install()
    try:
        trainer.set_up(allowed)
        if profile and trainer.world.is_first:
            trainer.profile = profile_of(trainer)
        finished = trainer.train()
        if finished:
            trainer.finish()
        torch.distributed.barrier(group=trainer.control)
    except RuntimeError as error:
        _name_late_ranks(trainer, error)
        lost = lost_ranks(trainer, error)
        if lost is None:
            raise
        raise lost from error
    except OSError as error:
        raise UserError(
            f"{error.filename or trainer.paths.root}: cannot be read or written: "
            f"{error.strerror or error}\nPut that right and run the same command again: "
            "it resumes from the last checkpoint."
        ) from error
    finally:
        # On a full disk this fails as well, and what failed first is what must be said.
        with contextlib.suppress(OSError):
            trainer.heartbeat.beat(trainer.step, "left", force=True)
    trainer.engine.close()
    if trainer.exact is not None:
        trainer.exact.close()
    return finished


# What torch and its backends say of a peer that has left or does not answer.
_PEER_WORDS = ("gloo", "nccl", "connection", "timed out", "timeout", "broken pipe", "peer")


def lost_ranks(trainer: Any, error: RuntimeError) -> UserError | None:
    """An error of the process group as a sentence; None for an error of another kind."""
    text = str(error)
    is_of_peers = any(word in text.lower() for word in _PEER_WORDS)
    if trainer.world.size == 1 or not is_of_peers:
        return None
    reason = text.strip().splitlines()[0][:200]
    return UserError(
        f"{trainer.name}: rank {trainer.world.rank} lost the other ranks at step {trainer.step}: {reason}\n"
        "Their own messages say why. The same command resumes from the last checkpoint."
    )


def _name_late_ranks(trainer: Trainer, error: RuntimeError) -> None:
    """Ranks that wait say so in their heartbeats; those that do not are the ones that are waited
    for. After a time-out their stacks are told as well."""
    if trainer.world.size == 1:
        return
    trainer.heartbeat.beat(trainer.step, WAITING, force=True)
    time.sleep(HEARTBEAT_GRACE_SECONDS)
    if any(word in str(error).lower() for word in ("timed out", "timeout")):
        minutes = trainer.config.training.step_timeout_minutes
        for line in stall.report(trainer, error, WAITING, minutes):
            print(line, file=sys.stderr, flush=True)
        return
    late = late_ranks(trainer.paths, trainer.world.size)
    if late:
        text = f"rank {trainer.world.rank} at step {trainer.step}: ranks {late} did not arrive"
        print(f"{text} ({str(error).splitlines()[0][:120]})", file=sys.stderr, flush=True)
