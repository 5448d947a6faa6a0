"""The loop: one rank's part of one phase, from its first weights or its last checkpoint to its
product."""

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from hpc_stres.config.loading import plain
from hpc_stres.config.schedule import learning_rate
from hpc_stres.config.schema import Config
from hpc_stres.data.augment import Levels
from hpc_stres.data.features import FeatureReader
from hpc_stres.data.feed import Ahead, ClipReader, Clips
from hpc_stres.data.requests import requests_at, sampler
from hpc_stres.errors import UserError
from hpc_stres.layout import Layout, Share, plan
from hpc_stres.models import assign_groups, defer_statistics
from hpc_stres.models.building import DTYPES, build_phase_model
from hpc_stres.models.dropout import Masks, draw_masks
from hpc_stres.models.norm import NormGroups, statistics_dtype
from hpc_stres.models.weights import save_state
from hpc_stres.parallel import process_groups
from hpc_stres.parallel.world import World
from hpc_stres.phases.train import train_phase
from hpc_stres.run.experiment import FREE_KEYS, as_now, refuse_other_config
from hpc_stres.run.paths import RunPaths, sha256, write_json
from hpc_stres.run.product import write_done
from hpc_stres.run.progress import Progress
from hpc_stres.run.signals import StopFlag
from hpc_stres.store.labels import label_table
from hpc_stres.store.staging import open_store
from hpc_stres.training import checkpoint
from hpc_stres.training.cached import open_features
from hpc_stres.training.engine import Engine, make_engine
from hpc_stres.training.exact import exact_training, fold_statistics
from hpc_stres.training.first_weights import load_first_weights
from hpc_stres.training.hashes import hashes_of_line, line_is_due, start_fingerprint
from hpc_stres.training.instruments import Instruments
from hpc_stres.training.loss import StreamSums, add_up, phase_loss
from hpc_stres.training.metrics import Heartbeat, MetricsLog, memory_gib
from hpc_stres.training.micro_batch import agreed_micro_batch
from hpc_stres.training.profile import StepProfile
from hpc_stres.training.refusals import refuse_bad_loss, refuse_bad_state
from hpc_stres.training.trail import Trail
from hpc_stres.training.trainable import freeze, set_training_mode
from hpc_stres.training.validation import HeldOut

# What the feed hands over for one micro-step: clips and their dropout masks, or nothing where a
# rank has no share.
Batch = tuple[Clips, Masks] | None


class Trainer:
    """One phase on one rank."""

    def __init__(
        self,
        config: Config,
        name: str,
        run_dir: Path,
        world: World,
        device: torch.device,
        control: Any,
    ) -> None:
        self.config, self.name, self.world, self.device = config, name, world, device
        self.phase, self.steps = train_phase(config, name), config.steps(name)
        self.run, self.paths = RunPaths(run_dir), RunPaths(run_dir).phase(name)
        self.dtype = DTYPES[config.training.precision]
        # What the first layer computes in: under autocast it would round float32 clips to
        # bfloat16 itself.
        self.input_dtype = torch.bfloat16 if config.training.precision == "bfloat16" else self.dtype
        self.store = open_store(config)
        self.sampler = sampler(config, name, self.store)
        table = label_table(self.store, config.data)
        self.label_table = None if table is None else torch.from_numpy(table).to(device)
        self.stop = StopFlag()
        self.heartbeat = Heartbeat(self.paths.heartbeat(world.rank))
        self.control = control
        self.step, self.trail = 0, ""
        self.bad_step = torch.full((), -1, dtype=torch.long, device=device)
        self.sums: dict[str, StreamSums] = {}
        self.last_loss: float | None = None
        self.writer = checkpoint.Writer(self.paths)
        self.profile: StepProfile | None = None
        self.log: MetricsLog | None = None

    # -- setting up --------------------------------------------------------------------------------

    def set_up(self, allowed: tuple[str, ...]) -> None:
        """Network, first weights or checkpoint, layout, engine."""
        self.heartbeat.beat(0, "set-up", force=True)
        model = build_phase_model(self.config, self.name, len(self.store.classes)).to(self.device)
        saved = checkpoint.newest(self.paths, warn=self.world.is_first)
        if saved is None:
            self.say(
                load_first_weights(model, self.config, self.name, self.run, self.store.classes)
            )
        else:
            self.resume(model, saved, allowed)
        said = freeze(model, self.phase.optimise.trainable)
        if said:
            self.say(said)
        process_groups.refuse_different_starts(start_fingerprint(self, model), self.control)
        self.layout = self.make_layout(model, saved)
        self.say(self.layout.explain())
        self.say(process_groups.describe_numerics(self.device, self.config.training.precision))
        defer_statistics(model)
        self.team = process_groups.make_teams(self.layout, self.world)
        self.model = model
        self.exact = exact_training(self, model)
        self.engine: Engine = make_engine(
            model, self.config.training, self.device, self.layout.micro_steps,
            self.exact.session if self.exact else None,
        )  # fmt: skip
        if saved is not None:
            self.engine.load_momentum(saved.momentum)
        if self.config.training.compile:
            model.compile()
        self.groups = [self.norm_groups(share) for share in self.layout.shares[self.world.rank]]
        self.dropout_shapes = model.dropout_shapes(self.phase.clips.times)
        set_training_mode(model)

    def resume(
        self, model: torch.nn.Module, saved: checkpoint.Checkpoint, allowed: tuple[str, ...]
    ) -> None:
        """Take up a checkpoint of this phase and this experiment."""
        refuse_other_config(
            as_now(saved.meta["config"], str(self.paths.root)),
            plain(self.config),
            FREE_KEYS + allowed,
        )
        if saved.meta["phase"] != self.name:
            raise UserError(
                f"{self.paths.root}: a checkpoint of phase {saved.meta['phase']}, not of {self.name}"
            )
        try:
            model.load_state_dict(saved.weights)
        except RuntimeError as error:
            path, reason = (
                self.paths.checkpoint(saved.step),
                str(error).strip().splitlines()[-1].strip(),
            )
            raise UserError(
                f"{path}: does not fit this network: {reason}\nUse another --run-dir."
            ) from None
        self.step, self.trail = saved.step, saved.meta["trail"]
        self.say(f"resumes from step {self.step}")

    def make_layout(self, model: torch.nn.Module, saved: checkpoint.Checkpoint | None) -> Layout:
        """The cut of the global batch; `auto` keeps what an earlier link of the same
        world size found."""
        optimise, world = self.phase.optimise, self.world
        wanted = self.config.training.max_micro_batch
        if isinstance(wanted, int):
            self.micro_batch = wanted
        elif saved is not None and saved.meta["world_size"] == world.size:
            self.micro_batch = saved.meta["micro_batch"]
        else:
            self.micro_batch = agreed_micro_batch(self, model)
        unit = self.config.training.unit
        return plan(optimise.global_batch, optimise.norm_group, world.size, self.micro_batch, unit)

    def norm_groups(self, share: Share) -> NormGroups:
        """The norm groups of one micro-step's videos."""
        owners = torch.tensor(share.local_groups, dtype=torch.long, device=self.device)
        count = max(share.local_groups, default=0) + 1
        return assign_groups(
            owners, count, self.phase.clips.times, statistics_dtype(self.dtype), self.team
        )

    def say(self, text: str) -> None:
        """One line from the first rank, into the log that stdout goes to."""
        if self.world.is_first:
            print(f"{self.name}: {text}", flush=True)

    # -- the loop ----------------------------------------------------------------------------------

    def train(self) -> bool:
        """Run to the end of the phase; False when stopped before it."""
        training = self.config.training
        reader = self.make_reader()
        self.marks = Trail(self.step, self.trail)
        self.log = log = MetricsLog(self.paths, self.step) if self.world.is_first else None
        title = Progress(self.name, self.steps, "steps", self.world.is_first, self.step)
        saved_at, first_step = time.monotonic(), self.step + 1
        held_out = HeldOut(self)
        held_out.catch_up(log)
        ahead = Ahead(self.micro_batches(reader), training.prefetch)
        with ahead as feed, title as progress, Instruments(self) as clock:
            self.clock = clock
            if self.profile is not None:
                self.profile.begin(self.step, self.steps)
            while self.step < self.steps:
                for micro in range(self.layout.micro_steps):
                    self.micro_step(micro, clock.waiting(feed))
                clock.began()
                alone = self.phase.optimise.scaled_classifier_only_steps
                if self.step == alone > 0:
                    self.engine.forget_trunk_momentum()
                self.engine.step(
                    learning_rate(self.phase.optimise.scaled_schedule, self.step),
                    classifier_only=self.step < alone,
                )
                fold_statistics(self)
                self.step += 1
                if self.profile is not None:
                    self.profile.step_done(self.step)
                self.heartbeat.beat(self.step, "step")
                self.stop.step_took(clock.step())
                if self.step == first_step:
                    process_groups.shorten_timeouts(
                        [self.team, self.control], training.step_timeout_minutes
                    )
                    clock.first_step_done()
                if held_out.is_due(self.step) or line_is_due(self):
                    self.report(log, progress, clock)
                held_out.look_when_due(log, clock)
                stop, due = self.agree_on_stop(self.save_due(saved_at))
                if due or stop or self.step == self.steps:
                    self.save(wait=stop or self.step == self.steps)
                    saved_at = time.monotonic()
                if stop and self.step < self.steps:
                    self.say(f"stopped at step {self.step}: {self.stop.reason()}")
                    break
        if self.profile is not None:
            self.profile.end(self.step)
        if log is not None:
            log.close()
        return self.step == self.steps

    def make_reader(self) -> ClipReader | FeatureReader:
        """What requests are read by: clips from the store, or features where a phase
        has cached them."""
        for parent in self.phase.starts_from:
            if self.config.phases[parent].kind == "features":
                cached = open_features(self.config, parent, self.run.root)
                return FeatureReader(cached, self.store, self.device)
        threads = self.exact.threads if self.exact else max(1, torch.get_num_threads())
        return ClipReader(
            self.store, self.phase.side, Levels.of_phase(self.phase), self.phase.clips.antialias,
            self.phase.streams, threads, self.device.index, dtype=self.input_dtype,
            decode_on=self.config.training.decode_on,
        )  # fmt: skip

    def micro_batches(self, reader: ClipReader | FeatureReader) -> Iterator[Batch]:
        """This rank's micro-batches from the current step on; runs in the feed's thread."""
        for step in range(self.step, self.steps):
            for share in self.layout.shares[self.world.rank]:
                batch = requests_at(self.sampler, step, share.positions)
                self.marks.add(step, batch)
                if not share.positions:
                    yield None
                    continue
                seed, positions = self.config.seed, share.positions
                masks = draw_masks(
                    seed, self.name, step, positions, self.dropout_shapes, self.device
                )
                yield reader.read(batch), masks

    def micro_step(self, number: int, work: Batch) -> None:
        """Forward and backward of one micro-batch; nothing here waits for the device."""
        last = number == self.layout.micro_steps - 1
        if work is None:
            self.engine.backward(None, last)
            return
        clips, masks = work
        self.clock.began()
        if self.exact is not None:
            self.exact.micro_step(number, clips, masks)
            return
        with self.cast():
            rgb, flow = self.as_input(clips.rgb), self.as_input(clips.flow)
            logits = self.engine.forward(last, rgb, flow, self.groups[number], masks)
        loss, sums = phase_loss(logits, self.labels_of(clips), self.phase)
        self.clock.forward_done()
        self.engine.backward(loss / self.phase.optimise.global_batch, last)
        self.clock.backward_done(last)
        self.count_loss(loss.detach(), sums)

    def count_loss(self, loss: Tensor, sums: dict[str, StreamSums]) -> None:
        """Add a micro-batch's sums to the lap's, and note the step of a loss that is not finite."""
        bad = ~torch.isfinite(loss) & (self.bad_step < 0)
        self.bad_step = torch.where(bad, self.step, self.bad_step)
        for stream, value in sums.items():
            old = self.sums.get(stream)
            self.sums[stream] = (
                StreamSums(old.loss + value.loss, old.right + value.right) if old else value
            )

    def cast(self) -> torch.autocast:
        """What the network's forward pass runs in."""
        is_low = self.config.training.precision == "bfloat16"
        return torch.autocast(self.device.type, torch.bfloat16, enabled=is_low)

    def labels_of(self, clips: Clips) -> Tensor:
        """Numbers of classes, or rows of 0 and 1 over the classes."""
        return clips.labels if self.label_table is None else self.label_table[clips.labels]

    def as_input(self, clips: Tensor | None) -> Tensor | None:
        """Clips in the network's order. The feed's are channels-last, and convolutions keep the
        order of their input; their type is the network's already."""
        if clips is None or self.config.training.channels_last:
            return clips
        return clips.to(memory_format=torch.contiguous_format)

    # -- between steps -----------------------------------------------------------------------------

    def save_due(self, saved_at: float) -> bool:
        """Whether this rank's clock or the step count asks for a checkpoint."""
        steps, minutes = (
            self.config.training.checkpoint_every_steps,
            self.config.training.checkpoint_every_minutes,
        )
        by_clock = bool(minutes) and time.monotonic() - saved_at > 60 * minutes
        return by_clock or bool(steps and self.step % steps == 0)

    def agree_on_stop(self, due: bool) -> tuple[bool, bool]:
        """All ranks stop and save after the same step."""
        wishes = process_groups.agree([float(self.stop.wanted()), float(due)], self.control)
        return wishes[0] > 0, wishes[1] > 0

    def report(self, log: MetricsLog | None, progress: Progress, clock: Instruments) -> None:
        """The only place where numbers leave the device between checkpoints."""
        refuse_bad_loss(self)
        names = sorted(self.sums)
        values = add_up(self.sums, self.dtype, self.control)
        steps, seconds, waited = clock.lap()
        videos = steps * self.phase.optimise.global_batch
        rate = learning_rate(self.phase.optimise.scaled_schedule, self.step - 1)
        row: dict[str, Any] = {"step": self.step, "rate": rate}
        for name, (loss, right) in zip(names, values, strict=True):
            row[f"loss_{name}"] = loss / videos
            row[f"accuracy_{name}"] = right / videos
        self.last_loss = sum(loss for loss, _ in values) / videos
        self.trail = self.marks.after(self.step, self.control)
        row |= {
            "loss": self.last_loss, "videos_per_s": videos / seconds, "data_wait": waited / seconds,
            "seconds": seconds, "memory_gib": memory_gib(self.device),
            "clips_per_statistic": self.phase.optimise.norm_group, "requests": self.trail,
            "world_size": self.world.size, **clock.times(steps), **hashes_of_line(self),
        }  # fmt: skip
        self.sums = {}
        if log is not None:
            log.write(row)
            write_json(
                self.paths.progress,
                {"step": self.step, "steps": self.steps, "time": time.time(), **row},
            )
        progress.update(self.step, f"loss {self.last_loss:.3f}")

    def save(self, wait: bool) -> None:
        """A checkpoint; every rank takes part, the first writes it while training continues,
        unless told to wait."""
        refuse_bad_loss(self)
        started = time.monotonic()
        momentum = self.engine.momentum()
        refuse_bad_state(self, momentum)
        self.trail = self.marks.after(self.step, self.control)
        failed = ""
        if self.world.is_first:
            meta = {
                "phase": self.name, "config": plain(self.config), "trail": self.trail,
                "world_size": self.world.size, "micro_batch": self.micro_batch, "loss": self.last_loss,
            }  # fmt: skip
            if self.log is not None:
                self.log.sync()
            try:
                self.writer.save(self.step, self.model.state_dict(), momentum, meta)
                if wait:
                    self.writer.wait()
            except UserError as error:
                failed = str(error)
        self.stop.save_s = max(self.stop.save_s, time.monotonic() - started)
        # The others wait here, so that no rank runs on after a failed save.
        (any_failed,) = process_groups.agree([float(bool(failed))], self.control)
        self.clock.saved(time.monotonic() - started)
        if any_failed:
            raise UserError(failed or "the first rank could not write the checkpoint")

    def finish(self) -> None:
        """The phase's product: weights under ordinary names, and done.json with their checksum."""
        refuse_bad_state(self)
        if not self.world.is_first:
            return
        # Of a shorter training before this one; its weights are about to go.
        self.paths.done.unlink(missing_ok=True)
        save_state(self.model.state_dict(), self.paths.weights)
        done = {
            "phase": self.name, "step": self.step, "sha256": sha256(self.paths.weights),
            "classes": self.store.classes, "config": plain(self.config),
            "requests": self.trail,
        }  # fmt: skip
        write_done(self.paths, done)
