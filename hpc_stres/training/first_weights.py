"""What a phase starts from: its parents' weights, a file's, or random ones."""

from collections.abc import Sequence

from torch import Tensor

from hpc_stres.config.recipe import Phases
from hpc_stres.config.schema import Config
from hpc_stres.models import TwoStream
from hpc_stres.models.weights import drop_other_streams, is_trunk, load_into, read_state, to_streams
from hpc_stres.phases.features import FeaturesPhase
from hpc_stres.phases.train import TrainPhase, train_phase
from hpc_stres.run.paths import RunPaths
from hpc_stres.run.product import finished_weights
from hpc_stres.run.starts import Start, find_start, keeps_classifier


def load_first_weights(
    model: TwoStream,
    config: Config,
    name: str,
    paths: RunPaths,
    classes: Sequence[str] | None = None,
) -> str:
    """Load what the phase starts from; returns one line that says what that was.

    `classes` are the data set's: another run's classifier is kept where it is of the same ones.
    """
    phase = train_phase(config, name)
    if phase.starts_from:
        state: dict[str, Tensor] = {}
        for parent in _sources(config.phases, phase):
            state |= read_state(finished_weights(paths, parent))
        report = load_into(model, drop_other_streams(state, model), " + ".join(phase.starts_from))
        return f"starts from {' + '.join(phase.starts_from)}: {report}"
    files = phase.weight_files()
    if not files:
        return "starts from random weights"
    starts = {
        source: find_start(source, name, phase.model.name, config.data.root) for source in files
    }
    dropped: list[str] = []
    state = {}
    for source, streams in files.items():
        own, is_plain = _read_streams(phase, starts[source], streams)
        # A plain trunk's classifier is ImageNet's, or of classes that nobody can tell.
        if is_plain or (classes is not None and not keeps_classifier(starts[source], classes)):
            dropped += [key for key in model.state_dict() if ".fc." in key and key in own]
        state |= {key: value for key, value in own.items() if key not in dropped}
    named = " + ".join(str(start.path) for start in starts.values())
    report = load_into(model, drop_other_streams(state, model), named)
    report.missing = [key for key in report.missing if key not in dropped]
    report.replaced += dropped
    return f"starts from {named}: {report}"


def _sources(phases: Phases, phase: TrainPhase) -> list[str]:
    """Phases whose weights a phase starts from: in place of a cache, the streams behind it."""
    parents: list[str] = []
    for parent in phase.starts_from:
        kind = phases[parent]
        parents += kind.starts_from if isinstance(kind, FeaturesPhase) else [parent]
    return parents


def _read_streams(
    phase: TrainPhase, start: Start, streams: list[str]
) -> tuple[dict[str, Tensor], bool]:
    """The weights of some streams from a file, and whether it is a plain trunk rather than
    a whole network."""
    state = read_state(start.path)
    is_plain = is_trunk(state)
    if is_plain:
        state = to_streams(state, streams, *phase.conv1_inflation)
    elif len(streams) == len(phase.family.streams):
        return state, False  # what joins the streams comes with them
    return {key: value for key, value in state.items() if key.split(".")[0] in streams}, is_plain
