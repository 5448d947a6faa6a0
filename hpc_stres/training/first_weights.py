"""What a phase starts from: its parents' weights, a file's, or random ones."""

from pathlib import Path

from torch import Tensor

from hpc_stres.config.schema import Config
from hpc_stres.models import TwoStream
from hpc_stres.models.weights import drop_other_streams, is_trunk, load_into, read_state, to_streams
from hpc_stres.phases.train import TrainPhase, train_phase
from hpc_stres.registry.model import MotionOptions
from hpc_stres.run.paths import PhasePaths, RunPaths
from hpc_stres.run.product import checked_weights, finished_weights


def load_first_weights(model: TwoStream, config: Config, name: str, paths: RunPaths) -> str:
    """Load what the phase starts from; returns one line that says what that was."""
    phase = train_phase(config, name)
    if phase.starts_from:
        state: dict[str, Tensor] = {}
        for parent in phase.starts_from:
            state |= read_state(finished_weights(paths, parent))
        report = load_into(model, drop_other_streams(state, model), " + ".join(phase.starts_from))
        return f"starts from {' + '.join(phase.starts_from)}: {report}"
    files = _files_of(phase)
    if not files:
        return "starts from random weights"
    state = {}
    for source, streams in files.items():
        state |= _read_file(phase, Path(source), streams)
    named = " + ".join(files)
    return f"starts from {named}: {load_into(model, drop_other_streams(state, model), named)}"


def _files_of(phase: TrainPhase) -> dict[str, list[str]]:
    """Files of weights, and the streams that start from each."""
    if phase.weights is not None:
        return {phase.weights: [*phase.family.streams]}
    files: dict[str, list[str]] = {}
    for stream in phase.family.streams:
        source = phase.trunk(stream).weights
        if source is not None:
            files.setdefault(source, []).append(stream)
    return files


def _read_file(phase: TrainPhase, path: Path, streams: list[str]) -> dict[str, Tensor]:
    """The weights of some streams from a file, of one trunk or of a whole network."""
    # A finished phase knows the checksum of its weights, whether its folder or the file in it is named.
    phase_paths = PhasePaths(path if path.is_dir() else path.parent)
    if path.is_dir() or (path == phase_paths.weights and phase_paths.done.exists()):
        path = checked_weights(phase_paths)
    state = read_state(path)
    if is_trunk(state):
        how = phase.model
        inflation = (how.conv1_inflation, how.conv1_rescale) if isinstance(how, MotionOptions) else ("mirror", False)
        return to_streams(state, streams, *inflation)
    return {key: value for key, value in state.items() if key.split(".")[0] in streams}
