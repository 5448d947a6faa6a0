"""Phases of kind `train`: a network is trained with SGD, from other phases' weights, a
file's or random ones."""

import dataclasses
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from hpc_stres.config.schedule import total_steps
from hpc_stres.errors import ConfigError, check_field
from hpc_stres.layout import plan
from hpc_stres.phases.sections import ClipsSection, OptimiseSection
from hpc_stres.registry import MODELS, PHASE_KINDS
from hpc_stres.registry.model import ModelFamily, ModelOptions, MotionOptions, TrunkSection
from hpc_stres.registry.phase import Phase, PhaseKind

INCEPTION_SIDE = 299
# The trunks of most published networks.
PUBLISHED_DEPTH, PUBLISHED_WIDTH = 50, 64
# What a stream's trunk takes from the run where it is not given.
RUN_WIDE = {"width": "width", "variant": "variant", "weights": "weights"}


@dataclass(frozen=True, kw_only=True)
class TrainPhase(Phase):
    """Trains a network."""

    weights: str | None = None
    """What to start from: a file, a published file by its name (`hpc-stres weights`), a
    finished run, a phase of one, or an exported model. The classifier is replaced where the
    classes are others."""
    model: ModelOptions
    """The network: its name and its own options."""
    clips: ClipsSection = field(default_factory=ClipsSection)
    """What a training clip is."""
    optimise: OptimiseSection = field(default_factory=OptimiseSection)
    """How the network is trained."""

    def __post_init__(self) -> None:
        least = self.family.least_chunks
        check_field(
            self.clips.times >= least,
            "clips.chunks" if self.clips.segments is None else "clips.segments",
            f"{self.model.name} pools {least} time steps; expected {least} or more",
        )
        has_segments = self.clips.segments is not None
        needs = f"{self.model.name} reads whole videos; expected a number of segments, as 7"
        check_field(has_segments or not self.family.segments, "clips.segments", needs)
        for stream in self.family.streams:
            trunk, known = getattr(self.model, stream, None), self.family.trunks
            is_known = trunk is None or trunk.family in known
            check_field(
                is_known, f"model.{stream}.family", f"{self.model.name} has {' or '.join(known)}"
            )
        check_field(
            self.optimise.trainable != "temporal" or "temporal_kernels" in self.family.probes,
            "optimise.trainable", f"{self.model.name} has no convolutions over time; expected all, last_stage or head",
        )  # fmt: skip
        self._refuse_untrained()
        self._refuse_without_effect()

    @property
    def family(self) -> ModelFamily:
        """What the registry knows of the network."""
        return MODELS.get(self.model.name)

    @property
    def uses_rgb(self) -> bool:
        """Whether the network reads RGB frames."""
        return "appearance" in self.family.streams

    @property
    def uses_flow(self) -> bool:
        """Whether the network reads optical flow."""
        return "motion" in self.family.streams

    @property
    def streams(self) -> tuple[bool, bool]:
        """Whether it reads RGB frames, and optical flow."""
        return self.uses_rgb, self.uses_flow

    def trunk(self, stream: str) -> TrunkSection:
        """The trunk of a stream; of one that the network does not have, that of the other."""
        other = {"appearance": "motion", "motion": "appearance"}[stream]
        trunk: TrunkSection = getattr(self.model, stream if hasattr(self.model, stream) else other)
        return trunk

    @property
    def conv1_inflation(self) -> tuple[Literal["mirror", "mean"], bool]:
        """How RGB filters become flow filters, and whether their response keeps its size."""
        how = self.model
        return (
            (how.conv1_inflation, how.conv1_rescale)
            if isinstance(how, MotionOptions)
            else ("mirror", False)
        )

    @property
    def side(self) -> int:
        """Side of the input in pixels."""
        side = self.trunk(self.family.streams[0]).side
        assert side is not None, "a phase of a config has it from data.crop"
        return side

    def weight_files(self) -> dict[str, list[str]]:
        """Values of `weights`, and the streams that start from each; none where other phases
        are started from."""
        files: dict[str, list[str]] = {}
        if self.starts_from:
            return files
        for stream in self.family.streams:
            source = self.weights if self.weights is not None else self.trunk(stream).weights
            if source is not None:
                files.setdefault(source, []).append(stream)
        return files

    @property
    def title(self) -> str:
        return self.family.title

    @property
    def rank(self) -> int:
        return self.family.rank

    @property
    def published(self) -> Mapping[str, float]:
        family = self.family
        is_as_published = self._joins_as_published() and all(
            trunk.family == "resnet" and trunk.stages is None and trunk.width == PUBLISHED_WIDTH
            and trunk.depth == family.published_depths.get(stream, PUBLISHED_DEPTH)
            for stream, trunk in ((stream, self.trunk(stream)) for stream in family.streams)
        )  # fmt: skip
        return family.published if is_as_published else {}

    def _joins_as_published(self) -> bool:
        """Whether the streams are joined in the family's own way: other ways are ablations."""
        keys = ("operation", "direction", "placement", "learned_scale")
        fields = {f.name: f.default for f in dataclasses.fields(self.model)}
        return all(getattr(self.model, key, None) == fields.get(key) for key in keys)

    def steps(self, config: Any) -> int:
        return total_steps(self.optimise.scaled_schedule, config.training.max_steps)

    def explain(self, config: Any, ranks: int) -> str:
        limit = config.training.max_micro_batch
        most = None if limit == "auto" else limit
        layout = plan(
            self.optimise.global_batch, self.optimise.norm_group, ranks, most, config.training.unit
        )
        return layout.explain() + (" (micro-batch: what fits in memory)" if limit == "auto" else "")

    # -- options that have no effect are refused ---------------------------------------------------

    def _refuse_untrained(self) -> None:
        weights = {
            stream: getattr(self.optimise, f"loss_weight_{stream}")
            for stream in self.family.streams
        }
        check_field(
            any(weight > 0 for weight in weights.values()),
            f"optimise.loss_weight_{self.family.streams[0]}", "expected a number above 0: nothing would be trained",
        )  # fmt: skip

    def _refuse_without_effect(self) -> None:
        """An option that says something and does nothing is refused; its default says nothing."""
        for key, (acts, reason) in ACTS_ON.items():
            section, default = _field(self, key)
            is_said = section is not None and getattr(section, key.split(".")[-1]) != default
            check_field(
                not is_said or acts(self),
                key,
                f"no effect in a phase of {self.model.name}: {reason}",
            )

    def acting(self) -> list[str]:
        names = ["kind", "starts_from", "weights"]
        for section in ("model", "clips", "optimise"):
            for f in dataclasses.fields(getattr(self, section)):
                value = getattr(getattr(self, section), f.name)
                inner = dataclasses.fields(value) if isinstance(value, TrunkSection) else ()
                names += [f"{section}.{f.name}.{i.name}" for i in inner] or [f"{section}.{f.name}"]
        return [name for name in names if name not in ACTS_ON or ACTS_ON[name][0](self)]

    # -- what a run gives every phase --------------------------------------------------------------

    def applied(self, config: Any) -> tuple["TrainPhase", dict[str, str]]:
        sources: dict[str, str] = {}
        trunks: dict[str, Any] = {}
        for stream in self.family.streams:
            if hasattr(self.model, stream):
                trunks[stream] = _applied_trunk(
                    getattr(self.model, stream), config, f"model.{stream}", sources
                )
        optimise = self._applied_optimise(config.training, sources)
        applied = replace(self, model=replace(self.model, **trunks), optimise=optimise)
        _refuse_sides(trunks)
        refuse_unfit_features(applied, config)
        return applied, sources

    def _applied_optimise(self, training: Any, sources: dict[str, str]) -> OptimiseSection:
        own = self.optimise
        batch = training.global_batch or own.global_batch
        # A smaller batch from outside must not leave a group larger than the batch.
        group = training.norm_group or min(own.norm_group, batch)
        if group > batch:
            raise ConfigError(
                f"training.norm_group: {group} is larger than the global batch of {batch}"
            )
        changes: dict[str, Any] = {"global_batch": batch, "norm_group": group}
        for key in ("global_batch", "norm_group"):
            if getattr(training, key) is not None:
                sources[f"optimise.{key}"] = f"training.{key}"
        if group != own.norm_group and "optimise.norm_group" not in sources:
            sources["optimise.norm_group"] = "training.global_batch"
        if training.schedule_scale is not None:
            changes["schedule_scale"] = training.schedule_scale
            sources["optimise.schedule_scale"] = "training.schedule_scale"
        if training.dropout is not None and "optimise.dropout" in self.acting():
            changes["dropout"], sources["optimise.dropout"] = training.dropout, "training.dropout"
        return replace(own, **changes)


def _applied_trunk(
    trunk: TrunkSection, config: Any, path: str, sources: dict[str, str]
) -> TrunkSection:
    """A trunk with the run's values where it has none of its own."""
    changes: dict[str, Any] = {}
    is_resnet = trunk.family == "resnet"
    for key, run_wide in RUN_WIDE.items():
        # A run's weights and form are a ResNet's.
        if getattr(trunk, key) is None and (is_resnet or key == "width"):
            changes[key], sources[f"{path}.{key}"] = (
                getattr(config.model, run_wide),
                f"model.{run_wide}",
            )
    if not is_resnet:
        return replace(trunk, side=trunk.side or INCEPTION_SIDE, **changes)
    if trunk.side is None:
        changes["side"], sources[f"{path}.side"] = config.data.crop, "data.crop"
    # A depth of its own means that depth's stages, not the run's.
    if trunk.stages is None and trunk.depth is None:
        changes["stages"], sources[f"{path}.stages"] = config.model.stages, "model.stages"
    if trunk.depth is None:
        changes["depth"], sources[f"{path}.depth"] = config.model.depth, "model.depth"
    return replace(trunk, **changes)


def refuse_unfit_features(phase: TrainPhase, config: Any) -> None:
    """A phase that reads cached features sees what the phase that made them saw."""
    parents = [name for name in phase.starts_from if name in config.phases]
    caches = [name for name in parents if config.phases[name].kind == "features"]
    if not caches:
        return
    (name, *others) = phase.starts_from
    cached: Any = config.phases[name]
    if others:
        raise ConfigError(
            f"starts_from: {caches[0]} makes features of both streams; expected it alone"
        )
    if getattr(phase.model, "trunks", None) != "frozen":
        raise ConfigError(f"model.trunks: {name} caches what trunks say; expected frozen trunks")
    if phase.clips.crop != "centre":
        raise ConfigError(
            f"clips.crop: {name} caches the middle square of each frame; expected centre"
        )
    for key in ("frame_grid", "short_video", "antialias"):
        own, other = getattr(phase.clips, key), getattr(cached, key)
        if own != other:
            raise ConfigError(
                f"clips.{key}: {own}, but {name} made features with {other}; expected the same"
            )
    streams = cached.streams(config.phases)
    for stream in phase.family.streams:
        if stream not in streams:
            raise ConfigError(f"starts_from: {name} has no features of the {stream} stream")
        source = config.phases[streams[stream]].trunk(stream)
        other = _applied_trunk(source, config, "", {})
        if replace(phase.trunk(stream), weights=None) != replace(other, weights=None):
            raise ConfigError(
                f"model.{stream}: another trunk than that of {streams[stream]}, whose features {name} has"
            )


def _refuse_sides(trunks: Mapping[str, TrunkSection]) -> None:
    sides = {stream: trunk.side for stream, trunk in trunks.items()}
    if len(set(sides.values())) > 1:
        words = " and ".join(f"{stream} {side}" for stream, side in sides.items())
        raise ConfigError(
            f"model.*.side: {words}: both streams see the same crop, so their sides are the same"
        )


def _field(phase: TrainPhase, key: str) -> tuple[Any, Any]:
    """The section that holds an option, and the option's default; nothing where the section
    has no such option."""
    section: Any = phase
    for part in key.split(".")[:-1]:
        section = getattr(section, part)
    known = {f.name: f for f in dataclasses.fields(section)}
    name = key.split(".")[-1]
    return (section, known[name].default) if name in known else (None, None)


def _has_clips(phase: TrainPhase) -> bool:
    return phase.family.clips and phase.clips.chunks > 1 and phase.clips.segments is None


def _has_times(phase: TrainPhase) -> bool:
    return phase.family.clips and phase.clips.times > 1 and not phase.family.segments


def _is_two_headed(phase: TrainPhase) -> bool:
    return len(phase.family.streams) == 2


def _inflates(phase: TrainPhase) -> bool:
    return phase.uses_flow and not phase.starts_from


def _is_joined(phase: TrainPhase) -> bool:
    return getattr(phase.model, "direction", "off") != "off"


_STRIDES = "there are strides between two or more `chunks` only"
_INFLATED = "no RGB filters become flow filters here"
# Which options act in which phases, and why not in others. What is not here acts in all of them.
ACTS_ON: dict[str, tuple[Callable[[TrainPhase], bool], str]] = {
    "weights": (lambda p: not p.starts_from, "it starts from the phases in `starts_from`"),
    "model.conv1_inflation": (_inflates, _INFLATED),
    "model.conv1_rescale": (_inflates, _INFLATED),
    "model.operation": (_is_joined, "`direction` is off"),
    "model.placement": (_is_joined, "`direction` is off"),
    "model.learned_scale": (_is_joined, "`direction` is off"),
    "clips.segments": (lambda p: p.family.clips, "it is trained on single frames"),
    "clips.frame_grid": (lambda p: p.clips.segments is not None, "there are no `segments`"),
    "clips.chunks": (
        lambda p: p.family.clips and p.clips.segments is None,
        "it is trained on single frames, or on `segments`",
    ),
    "clips.stride": (_has_clips, _STRIDES),
    "clips.stride_shared_by": (_has_clips, _STRIDES),
    "clips.window": (_has_clips, "there is a window of two or more `chunks` only"),
    "clips.short_video": (lambda p: p.uses_flow, "it reads no flow"),
    "clips.border_corners": (lambda p: p.clips.crop == "borders", "`crop` is not borders"),
    "optimise.classifier_only_steps": (
        lambda p: p.optimise.trainable != "head",
        "the classifier is all that moves",
    ),
    "optimise.dropout": (lambda p: bool(p.family.drops), "this network drops nothing"),
    "optimise.softmax": (_is_two_headed, "it has one stream"),
    "optimise.agreement_loss": (_is_two_headed, "it has one stream"),
    "optimise.loss_over_time": (
        _has_times,
        "there is a loss over time with two or more `chunks` only",
    ),
    "optimise.loss_weight_appearance": (
        lambda p: p.uses_rgb and p.optimise.softmax == "each",
        "it has no appearance stream, or one joint softmax",
    ),
    "optimise.loss_weight_motion": (
        lambda p: p.uses_flow and p.optimise.softmax == "each",
        "it has no motion stream, or one joint softmax",
    ),
}


def train_phase(config: Any, name: str) -> TrainPhase:
    """A phase that trains a network; refuses those of other kinds."""
    phase = config.phase(name)
    if not isinstance(phase, TrainPhase):
        raise ConfigError(f"phase {name} is of kind {phase.kind}, which trains no network")
    return phase


PHASE_KINDS.register(
    PhaseKind(
        name="train",
        options=TrainPhase,
        run="hpc_stres.training.phase:train",
        reads=("train", "features"),
    )
)
