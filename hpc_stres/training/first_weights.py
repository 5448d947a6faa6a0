"""What a phase starts from: its parents' weights, a file's, or random ones."""

from pathlib import Path

from torch import Tensor

from hpc_stres.config.schema import Config
from hpc_stres.models import TwoStream
from hpc_stres.models.weights import STREAMS, drop_other_streams, is_trunk, load_into, read_state, to_streams
from hpc_stres.run.paths import PhasePaths, RunPaths
from hpc_stres.run.product import checked_weights, finished_weights


def load_first_weights(model: TwoStream, config: Config, name: str, paths: RunPaths) -> str:
    """Load what the phase starts from; returns one line that says what that was."""
    phase = config.phase(name)
    if phase.starts_from:
        state: dict[str, Tensor] = {}
        for parent in phase.starts_from:
            state |= read_state(finished_weights(paths, parent))
        report = load_into(model, drop_other_streams(state, model), " + ".join(phase.starts_from))
        return f"starts from {' + '.join(phase.starts_from)}: {report}"
    source = phase.weights or config.model.weights
    if source is None:
        return "starts from random weights"
    path = Path(source)
    # A finished phase vouches for its weights, whether its folder or the file in it is named.
    phase_paths = PhasePaths(path if path.is_dir() else path.parent)
    if path.is_dir() or (path == phase_paths.weights and phase_paths.done.exists()):
        path = checked_weights(phase_paths)
    state = read_state(path)
    if is_trunk(state):
        present = [stream for stream in STREAMS if getattr(model, stream) is not None]
        state = to_streams(state, present, phase.conv1_inflation, phase.conv1_rescale)
    return f"starts from {path}: {load_into(model, drop_other_streams(state, model), str(path))}"
