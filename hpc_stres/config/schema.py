"""What can be configured: frozen dataclasses, a docstring under each field, checks in `__post_init__`.

`hpc_stres.config.loading` loads YAML into these; `hpc-stres config` prints them with the origin of every value.
"""

import re
from dataclasses import dataclass, field
from typing import Any, Literal

from hpc_stres.config.cluster import ClusterConfig
from hpc_stres.errors import ConfigError, FieldError, check_field
from hpc_stres.registry import DATA_SETS
from hpc_stres.registry.model import check_stages
from hpc_stres.registry.phase import Phase

FLOW_STACK = 10


@dataclass(frozen=True, kw_only=True)
class BindingConfig:
    """The demonstration data set: two discs, and the class is which colour makes which motion."""

    train_videos: int = 256
    """Training videos, spread evenly over the 8 classes."""
    test_videos: int = 96
    """Test videos, spread evenly over the 8 classes."""
    frames: int = 32
    """Frames of one video."""
    side: int = 64
    """Width and height in pixels."""

    def __post_init__(self) -> None:
        check_field(self.train_videos >= 8, "train_videos", "expected 8 or more")
        check_field(self.test_videos >= 8, "test_videos", "expected 8 or more")
        check_field(self.frames >= 2, "frames", "expected 2 or more")
        check_field(
            self.side >= 48 and self.side % 2 == 0, "side", "expected an even number of 48 or more"
        )


@dataclass(frozen=True, kw_only=True)
class DataConfig:
    """Where videos come from and how they are stored."""

    kind: str = "ucf101"
    """Data set: binding (made by this package), ucf101, hmdb51, folder (one folder a class), csv (a table), lists (text
    lists of one's own), or an extension's."""
    root: str = "data"
    """Folder that holds data sets, stores and caches."""
    videos: str | None = None
    """Folder of the original videos; none: ROOT/KIND/videos."""
    lists: str | None = None
    """Folder of the official split files, or the CSV file; none: ROOT/KIND/splits."""
    frames: str | None = None
    """Import instead of decoding: folder of each video's RGB frames as JPEG files (layouts: prepare/imports.py)."""
    flow_frames: str | None = None
    """With `frames`: folder of extracted flow as JPEG files, x_/y_ or u/ and v/; none: flow is computed here."""
    labels: Literal["single", "multi"] = "single"
    """One class a video, or several: with multi a CSV's cell is `run|wave`, and the loss binary cross-entropy."""
    split: int = 1
    """Number of the split, from 1; the official lists have three."""
    test_fraction: float = 0.25
    """For a folder data set: share of each class's recordings, chosen by a hash of the name, kept for testing."""
    folds: int = 1
    """For a folder data set: splits, each recording testing in one of them; 1: a single split by `test_fraction`."""
    short_side: int = 256
    """Stored frames are resized so that their shorter side has this many pixels."""
    crop: int = 224
    """Side of the square that a training crop is resized to."""
    jpeg_quality: int = 95
    """JPEG quality of stored frames and flow."""
    flow_backend: Literal["native", "cuda", "dali", "opencv"] = "native"
    """Flow: our TV-L1 on the CPU or on a GPU, a GPU's optical-flow engine, or OpenCV's TV-L1, the reference."""
    flow_pyramid: Literal["paper", "opencv4"] = "paper"
    """TV-L1's scales: the authors' OpenCV 2.4 (halves, no median) or OpenCV 4 (0.8, median)."""
    shard_mib: int = 256
    """Size of one shard of the store in MiB."""
    workers: int = 0
    """Processes of `prepare` on one machine; 0: the cores this process may use."""
    stage: str | None = None
    """Node-local folder that a job copies the store to before it reads it; may name variables: $SLURM_TMPDIR."""
    max_rejected: float = 0.005
    """Share of videos that may fail to decode before `prepare` fails."""
    max_pixels: int = 8192 * 8192
    """Pixels of a frame above which a video is rejected before it is decoded."""
    video_memory_gib: float = 4.0
    """Memory in GiB that preparing one video may take, once for its decoder and once for what is made of it."""
    video_minutes: float = 10.0
    """Minutes without a new frame after which a video is rejected; all of it may take a hundred times as long."""
    binding: BindingConfig = field(default_factory=BindingConfig)
    """Sizes of the demonstration data set."""

    def __post_init__(self) -> None:
        check_field(self.kind in DATA_SETS, "kind", DATA_SETS.refusal(self.kind))
        check_field(1 <= self.split <= 99, "split", "expected 1 to 99")
        check_field(1 <= self.folds <= 99, "folds", "expected 1 to 99")
        check_field(
            self.labels == "single" or self.kind == "csv",
            "labels",
            "expected single, or data.kind csv",
        )
        check_field(
            self.flow_frames is None or self.frames is not None,
            "flow_frames",
            "expected `frames` beside it",
        )
        pyramid_counts = self.flow_backend != "dali" and self.flow_frames is None
        check_field(
            pyramid_counts or self.flow_pyramid == "paper",
            "flow_pyramid",
            "expected none: imported flow and dali's have no pyramid of ours",
        )
        check_field(
            0.0 < self.test_fraction < 1.0, "test_fraction", "expected a number between 0 and 1"
        )
        check_field(self.short_side >= 16, "short_side", "expected 16 or more pixels")
        check_field(
            16 <= self.crop <= self.short_side,
            "crop",
            f"expected 16 to short_side ({self.short_side})",
        )
        check_field(1 <= self.jpeg_quality <= 100, "jpeg_quality", "expected 1 to 100")
        check_field(self.shard_mib >= 1, "shard_mib", "expected 1 or more")
        check_field(self.workers >= 0, "workers", "expected 0 or more")
        check_field(0.0 <= self.max_rejected <= 1.0, "max_rejected", "expected a share from 0 to 1")
        check_field(1 <= self.max_pixels <= 2**31, "max_pixels", "expected 1 to 2147483648 pixels")
        check_field(
            0.01 <= self.video_memory_gib <= 4096, "video_memory_gib", "expected 0.01 to 4096 GiB"
        )
        check_field(
            0.0 < self.video_minutes <= 10_000,
            "video_minutes",
            "expected a number above 0, up to 10000",
        )


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """Size and family of every trunk that has none of its own."""

    depth: Literal[50, 101, 152] = 50
    """ResNet depth of both streams."""
    stages: tuple[int, ...] | None = None
    """Units in each stage in place of those of `depth`, for small runs."""
    width: int = 64
    """Channels after conv1; 64 is the published network."""
    variant: Literal["msra", "torchvision"] = "torchvision"
    """Where strides and pool padding are; must be the one that the weights were trained with."""
    weights: str | None = None
    """ImageNet weights for phases that start from no other: a file with torchvision's or timm's names (.pth or
    .safetensors), or a name that `hpc-stres weights` knows; null or none: from scratch."""

    def __post_init__(self) -> None:
        check_field(self.width >= 4, "width", "expected 4 or more")
        check_stages(self.stages)


@dataclass(frozen=True, kw_only=True)
class TrainingConfig:
    """How phases are trained; a value that is set here overrides every phase of the recipe."""

    engine: Literal["deepspeed", "ddp"] = "deepspeed"
    """Who reduces gradients: DeepSpeed or torch DDP."""
    zero_stage: Literal[0, 1] = 0
    """DeepSpeed's ZeRO stage."""
    precision: Literal["float32", "bfloat16", "float64"] = "float32"
    """float32, bfloat16 autocast over float32 weights, or float64 for proofs."""
    global_batch: int | None = None
    """Videos in one SGD step; none: the recipe's."""
    norm_group: int | None = None
    """Videos that share normalisation moments; none: the recipe's."""
    schedule_scale: float | None = None
    """How many times as long every phase's schedule is, its plateaus kept; none: the recipe's."""
    max_steps: int | None = None
    """Cut every phase to this many steps; none: the recipe's schedule."""
    max_micro_batch: int | Literal["auto"] = "auto"
    """Videos that one rank takes through the network at once; auto: what fits in memory."""
    momentum: float = 0.9
    """SGD momentum."""
    dropout: float | None = None
    """Dropout of every phase whose network has any (single streams, STM); none: the recipe's."""
    weight_decay: float = 5e-4
    """Weight decay, on weights only."""
    checkpoint_every_steps: int = 500
    """Steps between checkpoints; 0: by the clock only."""
    checkpoint_every_minutes: float = 15.0
    """Minutes between checkpoints; 0: by steps only."""
    log_every_steps: int = 10
    """Steps between lines of metrics.jsonl."""
    channels_last: bool = True
    """Keep activations in channels-last order."""
    compile: bool = False
    """Compile the network with torch.compile."""
    activation_checkpointing: bool = False
    """Compute each residual unit's activations again in the backward pass instead of keeping them."""
    deterministic: bool = False
    """Ask torch for deterministic algorithms only."""
    reproducible: Literal["off", "bitwise"] = "off"
    """bitwise: weights, statistics and losses with the same bits on any number of ranks, in any micro-steps, with
    either engine (docs/bitwise.md); it computes unit by unit, which costs time where units are small."""
    unit: int = 1
    """With bitwise: videos that go through each kernel together; a divisor of every norm group's size. Part of the
    bits."""
    hash_every_steps: int = 0
    """Steps between hashes of the weights in metrics.jsonl, which `hpc-stres reproduce` compares; 0: none, with bitwise
    in each line."""
    tf32: bool = False
    """Allow TF32 products on GPUs that have them."""
    start_timeout_minutes: float = 10.0
    """Minutes that a rank waits for the others until the first step is done: compilation, cold file systems."""
    step_timeout_minutes: float = 3.0
    """Minutes that a rank waits for the others from then on; the error names those that did not arrive."""
    prefetch: int = 2
    """Micro-batches that the feed prepares ahead."""
    decode_on: Literal["device", "both"] = "device"
    """With GPUs: both lets CPU cores decode a share that follows measured rates; pixels then vary by a gray level."""
    deepspeed: dict[str, object] = field(default_factory=dict)
    """Extra keys passed through to DeepSpeed's config."""

    def __post_init__(self) -> None:
        for key in ("global_batch", "norm_group", "max_steps"):
            value = getattr(self, key)
            check_field(value is None or value >= 1, key, "expected a whole number of 1 or more")
        scale = self.schedule_scale
        check_field(
            scale is None or 0.0 < scale <= 1000.0,
            "schedule_scale",
            "expected a number above 0, up to 1000",
        )
        micro = self.max_micro_batch
        check_field(micro == "auto" or micro >= 1, "max_micro_batch", "expected auto, or 1 or more")
        check_field(0.0 <= self.momentum < 1.0, "momentum", "expected a number from 0 to below 1")
        drop = self.dropout
        check_field(
            drop is None or 0.0 <= drop < 1.0, "dropout", "expected a number from 0 to below 1"
        )
        check_field(self.weight_decay >= 0.0, "weight_decay", "expected 0 or more")
        check_field(
            self.checkpoint_every_steps >= 0, "checkpoint_every_steps", "expected 0 or more"
        )
        check_field(
            self.checkpoint_every_minutes >= 0, "checkpoint_every_minutes", "expected 0 or more"
        )
        check_field(self.log_every_steps >= 1, "log_every_steps", "expected 1 or more")
        check_field(self.prefetch >= 1, "prefetch", "expected 1 or more")
        check_field(self.hash_every_steps >= 0, "hash_every_steps", "expected 0 or more")
        self._check_bitwise()
        if self.engine != "deepspeed":
            check_field(
                self.zero_stage == 0, "zero_stage", f"no effect with the engine {self.engine}"
            )
            check_field(not self.deepspeed, "deepspeed", f"no effect with the engine {self.engine}")
        for key in ("start_timeout_minutes", "step_timeout_minutes"):
            check_field(getattr(self, key) > 0, key, "expected a number above 0")

    def _check_bitwise(self) -> None:
        check_field(self.unit >= 1, "unit", "expected 1 or more")
        if self.reproducible != "bitwise":
            check_field(self.unit == 1, "unit", "no effect without training.reproducible: bitwise")
            return
        only = {"zero_stage": 0, "compile": False, "channels_last": True, "decode_on": "device"}
        for key, value in only.items():
            said = f"expected {str(value).lower()} with reproducible: bitwise"
            check_field(getattr(self, key) == value, key, said)
        others = sorted(self.deepspeed.keys() - {"gradient_clipping"})
        refusal = f"only gradient_clipping with reproducible: bitwise, got {others}"
        check_field(not others, "deepspeed", refusal)


def has_part(pattern: str) -> bool:
    """Whether a text is a regular expression with a part in parentheses."""
    try:
        return re.compile(pattern).groups >= 1
    except (re.error, RecursionError, OverflowError):
        return False


@dataclass(frozen=True, kw_only=True)
class EvaluationConfig:
    """How phases are tested."""

    protocol: Literal["paper", "quick"] = "paper"
    """paper: evenly spaced chunks and their flips, full frame; quick: one centre clip."""
    chunks: int = 25
    """Chunks of the paper's protocol."""
    flips: bool = True
    """Test each clip mirrored as well."""
    allow_missing: bool = False
    """Report `k of n` when test videos are missing from the store, instead of refusing."""
    groups: str = "auto"
    """Recordings that clips were cut from, for intervals and tests: auto (the CSV's column, else official names),
    column, names, none, or a regular expression over ids whose part in parentheses is the recording."""
    validation_share: float = 0.0
    """Share of each class's training recordings that is held out: not trained on, scored beside the test videos, and
    what the temperature of probabilities is fitted on. Recordings are those of `groups`."""
    validation_column: str | None = None
    """Column of the CSV that names the held-out training videos (`val`, `yes`, `1`), in place of a share."""
    validation_every_steps: int | None = None
    """Steps between two looks at the held-out videos while a phase trains (quick protocol; into metrics.jsonl).
    None: a tenth of the phase; 0: no looks."""

    def __post_init__(self) -> None:
        check_field(self.chunks >= 5, "chunks", "expected 5 or more (ST-ResNet* pools over 5)")
        check_field(
            0.0 <= self.validation_share <= 0.5,
            "validation_share",
            "expected a share from 0 to 0.5",
        )
        check_field(
            not (self.validation_share and self.validation_column),
            "validation_column",
            "no effect beside validation_share; give one of the two",
        )
        every = self.validation_every_steps
        check_field(every is None or every >= 0, "validation_every_steps", "expected 0 or more")
        check_field(
            every is None or self.holds_out,
            "validation_every_steps",
            "no effect without held-out videos: set validation_share or validation_column",
        )
        is_word = self.groups in ("auto", "column", "names", "none")
        check_field(
            is_word or has_part(self.groups),
            "groups",
            "expected auto, column, names, none, or a pattern with ()",
        )

    @property
    def holds_out(self) -> bool:
        """Whether training videos are held out."""
        return self.validation_share > 0 or self.validation_column is not None


@dataclass(frozen=True, kw_only=True)
class Config:
    """Everything a run is made of."""

    recipe: str = "nips2016"
    """Recipe under configs/recipes: nips2016 (the paper), released (the authors' code)."""
    profile: str | None = None
    """Cluster profile under configs/clusters."""
    extensions: tuple[str, ...] = ()
    """Python files of one's own that register models, data sets, schedules or kinds of phases."""
    seed: int = 1
    """Seed of every random number of the run."""
    phases: dict[str, Phase] = field(default_factory=dict)
    """The recipe's phases; what is written here is laid over them key by key."""
    data: DataConfig = field(default_factory=DataConfig)
    """Videos and their store."""
    model: ModelConfig = field(default_factory=ModelConfig)
    """Trunk of the networks."""
    training: TrainingConfig = field(default_factory=TrainingConfig)
    """Optimisation, precision, checkpoints."""
    evaluation: EvaluationConfig = field(default_factory=EvaluationConfig)
    """Test protocol."""
    cluster: ClusterConfig = field(default_factory=ClusterConfig)
    """Scheduler and resources."""

    def __post_init__(self) -> None:
        check_field(0 <= self.seed < 2**63, "seed", "expected a whole number from 0 to 2^63 - 1")
        self._apply_run_wide()

    def _apply_run_wide(self) -> None:
        """From here on `phases` holds what applies; what was written is kept to be written again."""
        applied = {}
        sources = {}
        for name, phase in self.phases.items():
            try:
                applied[name], sources[name] = phase.applied(self)
            except FieldError as error:
                raise ConfigError(f"phases.{name}.{error.key}: {error.message}") from None
            except ConfigError as error:
                raise ConfigError(f"phases.{name}: {error}") from None
        object.__setattr__(self, "_written", dict(self.phases))
        object.__setattr__(self, "_sources", sources)
        object.__setattr__(self, "phases", applied)

    def written_phases(self) -> dict[str, Phase]:
        """The phases without what the run gives them: what config.yaml holds, so that later overrides act."""
        written: dict[str, Phase] = self.__dict__["_written"]
        return written

    def source_of(self, name: str, option: str) -> str | None:
        """The run-wide key that gave an option of a phase its value, where one did."""
        sources: dict[str, dict[str, str]] = self.__dict__["_sources"]
        return sources[name].get(option)

    def phase(self, name: str) -> Any:
        """A phase as it applies; of an unknown name a ConfigError."""
        if name not in self.phases:
            raise ConfigError(
                f"no phase '{name}'; the recipe {self.recipe} has {', '.join(self.phases)}"
            )
        return self.phases[name]

    def steps(self, name: str) -> int:
        """SGD steps of a phase that trains; 1 for others."""
        return self.phases[name].steps(self)
