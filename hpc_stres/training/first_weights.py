"""What a phase starts from: its parents' weights, a file's, or random ones."""

from collections.abc import Sequence

from torch import Tensor

from hpc_stres.config.schema import Config
from hpc_stres.models import TwoStream
from hpc_stres.models.weights import drop_other_streams, is_trunk, load_into, read_state, to_streams
from hpc_stres.phases.train import train_phase
from hpc_stres.registry.model import MotionOptions
from hpc_stres.run.paths import RunPaths
from hpc_stres.run.product import finished_weights
from hpc_stres.run.starts import find_start, keeps_classifier


def load_first_weights(
    model: TwoStream, config: Config, name: str, paths: RunPaths, classes: Sequence[str] | None = None
) -> str:
    """Load what the phase starts from; returns one line that says what that was.

    `classes` are the data set's: another run's classifier is kept where it is of the same ones.
    """
    phase = train_phase(config, name)
    if phase.starts_from:
        state: dict[str, Tensor] = {}
        for parent in phase.starts_from:
            state |= read_state(finished_weights(paths, parent))
        report = load_into(model, drop_other_streams(state, model), " + ".join(phase.starts_from))
        return f"starts from {' + '.join(phase.starts_from)}: {report}"
    if phase.weights is not None:
        return _load_source(model, config, name, (phase.weights, [*phase.family.streams]), classes)
    # Each stream may start from a file of its own.
    files: dict[str, list[str]] = {}
    for stream in phase.family.streams:
        source = phase.trunk(stream).weights
        if source is not None:
            files.setdefault(source, []).append(stream)
    said = [_load_source(model, config, name, item, classes) for item in files.items()]
    return "; ".join(said) or "starts from random weights"


def _load_source(
    model: TwoStream, config: Config, name: str, source: tuple[str, list[str]], classes: Sequence[str] | None
) -> str:
    """Load what a value of `weights` names into some streams; a classifier of other classes is not loaded."""
    phase, (text, streams) = train_phase(config, name), source
    start = find_start(text, name, phase.model.name, config.data.root)
    state = read_state(start.path)
    is_plain = is_trunk(state)
    if is_plain:
        how = phase.model
        inflation = (how.conv1_inflation, how.conv1_rescale) if isinstance(how, MotionOptions) else ("mirror", False)
        state = to_streams(state, streams, *inflation)
    state = {key: value for key, value in state.items() if key.split(".")[0] in streams}
    # A plain trunk's classifier is ImageNet's, or of classes that nobody can tell.
    dropped: list[str] = []
    if is_plain or (classes is not None and not keeps_classifier(start, classes)):
        dropped = [key for key in model.state_dict() if ".fc." in key and key in state]
    kept = {key: value for key, value in state.items() if key not in dropped}
    report = load_into(model, drop_other_streams(kept, model), str(start.path))
    report.missing = [key for key in report.missing if key not in dropped]
    report.replaced += dropped
    return f"starts from {start.path}: {report}"
