"""A methods paragraph from a run's config: what was done, with every number that a reader
needs to repeat it.

What has words of its own is said in them; every other option that decides weights or scores follows
as a list. So no option is forgotten, a new one neither.
"""

from collections.abc import Iterable, Mapping
from typing import Any

from hpc_stres.config.loading import flat, plain
from hpc_stres.config.recipe import ordered_phases
from hpc_stres.config.schedule import Curve
from hpc_stres.config.schema import Config, DataConfig, EvaluationConfig, ModelConfig
from hpc_stres.evaluation import protocol
from hpc_stres.evaluation.results import titles
from hpc_stres.phases.train import TrainPhase
from hpc_stres.run.experiment import FREE_KEYS

DATA_SETS = {"ucf101": "UCF101", "hmdb51": "HMDB51", "binding": "the demonstration data set"}
# Options of a phase and of training that the sentences say; after them the rest is listed.
SAID_OF_PHASES = ("kind", "model.name", "starts_from", "weights", "optimise.global_batch", "optimise.norm_group",
                  "optimise.schedule", "clips.chunks", "clips.stride")  # fmt: skip
SAID = (
    "data.kind", "data.split", "data.labels", "data.short_side", "data.crop", "data.jpeg_quality",
    "data.flow_backend", "data.flow_pyramid", "data.flow_frames", "data.videos", "data.lists",
    "data.frames", "model.depth", "model.stages", "model.width", "model.variant", "model.weights",
    "training.momentum", "training.weight_decay", "training.precision", "training.global_batch",
    "training.norm_group", "training.dropout", "seed", "recipe", "evaluation.protocol",
    "evaluation.chunks", "evaluation.flips", "evaluation.validation_share",
    "evaluation.validation_column", "evaluation.groups",
)  # fmt: skip
# What changes neither weights nor scores.
SILENT = (
    *(key for key in FREE_KEYS if not key.startswith("evaluation") and key != "training.max_steps"),
    "phases", "evaluation.allow_missing", "evaluation.validation_every_steps", "data.binding", "data.max_pixels",
    "data.video_memory_gib", "data.video_minutes", "training.max_steps", "extensions",
)  # fmt: skip


def paragraph(config: Config, results: Mapping[str, Any]) -> str:
    """The paragraph, as plain text."""
    phases = ordered_phases(config.phases)
    sentences = [
        _data(config.data, results), _network(config.model), *(_phase(config, name) for name in phases),
        _training(config), _testing(config.evaluation, results), _rest(config),
    ]  # fmt: skip
    return " ".join(sentence for sentence in sentences if sentence)


def _data(data: DataConfig, results: Mapping[str, Any]) -> str:
    name = DATA_SETS.get(
        data.kind, f"our own data set (`{data.lists or data.videos or data.kind}`)"
    )
    several = ", in which a video may have several classes" if data.labels == "multi" else ""
    splits = list(results.get("splits", {})) or [str(data.split)]
    split = f"split{'s' if len(splits) > 1 else ''} {', '.join(splits)}"
    videos = {
        str(column["of"])
        for table in results.get("splits", {}).values()
        for column in table.values()
    }
    tested = f" ({' / '.join(sorted(videos))} test videos)" if videos else ""
    made = f"{data.flow_backend} TV-L1 with the pyramid of `{data.flow_pyramid}`"
    flow = "imported flow" if data.flow_frames else made
    frames = "imported frames" if data.frames else "frames"
    given = {
        "videos": data.videos,
        "lists": data.lists,
        "frames": data.frames,
        "flow": data.flow_frames,
    }
    places = [f"{word} `{value}`" for word, value in given.items() if value]
    binding = ""
    if data.kind == "binding":
        b = data.binding
        binding = f" of {b.train_videos} training and {b.test_videos} test videos"
        binding += f" ({b.frames} frames of {b.side} pixels)"
    return (
        f"We used {name}{binding}, {split}{several}{tested}. Videos were stored as {frames} whose "
        f"shorter side has {data.short_side} pixels, with {flow}, both as JPEG of quality {data.jpeg_quality}; "
        f"training crops were resized to {data.crop} x {data.crop} pixels."
        + (f" Sources: {', '.join(places)}." if places else "")
    )


def _network(model: ModelConfig) -> str:
    stages = f" with {_list(model.stages)} units" if model.stages else ""
    start = f"the weights `{model.weights}`" if model.weights else "random weights"
    return (
        f"A stream whose phase names no other trunk is a ResNet-{model.depth}{stages} of width {model.width} in the "
        f"`{model.variant}` variant; phases that start from no other and name no weights begin with {start}."
    )


def _phase(config: Config, name: str) -> str:
    """One phase; options that act in it and have no words here follow in parentheses."""
    phase = config.phase(name)
    acting = set(phase.acting()) - set(SAID_OF_PHASES)
    values = {key: value for key, value in flat(plain(phase)).items() if _is_under(key, acting)}
    start = f" from {' and '.join(phase.starts_from)}" if phase.starts_from else ""
    called = f"Phase `{name}` ({titles(config.phases)[name]})"
    if not isinstance(phase, TrainPhase):
        return f"{called} is of kind {phase.kind}{' and starts' + start if start else ''} ({_options(values)})."
    if phase.weights and not start:
        start = f" from the weights `{phase.weights}`"
    low, high = phase.clips.stride
    chunks = phase.clips.chunks
    clips = (
        f"clips of {chunks} chunks at strides from {low} to {high}"
        if chunks > 1
        else "single chunks"
    )
    return (
        f"{called} trains the network `{phase.model.name}`{start} for {config.steps(name)} steps "
        f"({_schedule(phase, config.steps(name))}) on batches of {phase.optimise.global_batch} videos, normalised in "
        f"groups of {phase.optimise.norm_group}, {clips} ({_options(_own_trunk(config, values))})."
    )


def _is_under(key: str, names: set[str]) -> bool:
    return any(key == name or key.startswith(f"{name}.") for name in names)


def _own_trunk(config: Config, values: Mapping[str, Any]) -> dict[str, Any]:
    """Values without what a stream's trunk has from the run, which stands in the
    sentence on streams."""
    shared = {**plain(config.model), "side": config.data.crop}
    kept = {}
    for key, value in values.items():
        parts = key.split(".")
        is_shared = (
            len(parts) == 3
            and parts[0] == "model"
            and parts[2] in shared
            and shared[parts[2]] == value
        )
        if not is_shared:
            kept[key] = value
    return kept


def _schedule(phase: TrainPhase, steps: int) -> str:
    """The rates and how long each holds, as far as the phase is long."""
    schedule = phase.optimise.schedule
    if isinstance(schedule, Curve):
        return f"schedule {_options(flat(plain(schedule)))}"
    parts = []
    for plateau in schedule:
        if steps > 0:
            parts.append(f"{min(steps, plateau.steps)} at a rate of {plateau.rate:g}")
        steps -= plateau.steps
    return ", ".join(parts)


def _training(config: Config) -> str:
    training = config.training
    share, column = config.evaluation.validation_share, config.evaluation.validation_column
    held = f" {100 * share:g} % of each class's training recordings were held out." if share else ""
    if column is not None:
        held = f" The training videos that the list's column `{column}` names were held out."
    return (
        f"We used SGD with momentum {training.momentum:g} and weight decay {training.weight_decay:g} in "
        f"{training.precision}, recipe `{config.recipe}`, seed {config.seed}.{held}"
    )


def _testing(evaluation: EvaluationConfig, results: Mapping[str, Any]) -> str:
    words = str(results.get("protocol") or protocol.describe(evaluation))
    columns = [column for table in results.get("splits", {}).values() for column in table.values()]
    methods = {column["groups"]["method"] for column in columns if "groups" in column}
    counts = sorted({column["groups"]["words"] for column in columns if "groups" in column})
    sentence = f"Testing: {words}."
    if "cluster" in methods:
        sentence += (
            f" Intervals (95 %) take recordings as the unit that is drawn, stratified by class ({'; '.join(counts)}); "
            "differences were tested by turning whole recordings around (exact, two-sided), corrected by Holm's "
            "procedure."
        )
    elif methods:
        sentence += (
            f" Intervals (95 %) are Wilson's ({'; '.join(counts)}); differences were tested by McNemar's exact test, "
            "corrected by Holm's procedure."
        )
    fitted = any((column.get("calibration") or {}).get("temperature") for column in columns)
    if evaluation.holds_out and fitted:
        sentence += " Temperatures were fitted on the held-out training videos."
    return sentence


def _rest(config: Config) -> str:
    """Every option that decides weights or scores and has no words above."""
    silent = (*SILENT, *SAID)
    values = {
        key: value for key, value in flat(plain(config)).items()
        if not any(key == name or key.startswith(f"{name}.") for name in silent)
    }  # fmt: skip
    return f"Other options: {_options(values)}." if values else ""


def _options(values: Mapping[str, Any]) -> str:
    return (
        ", ".join(f"{key.replace('_', ' ')}: {_value(value)}" for key, value in values.items())
        or "no options"
    )


def _value(value: Any) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, list):
        return _list(value)
    return (
        "none"
        if value is None or value == {}
        else f"{value:g}"
        if isinstance(value, float)
        else str(value)
    )


def _list(values: Iterable[Any]) -> str:
    return ", ".join(map(str, values))
