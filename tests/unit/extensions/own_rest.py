"""A data set, a schedule and a kind of phase of one's own."""

from dataclasses import dataclass
from pathlib import Path

from hpc_stres.listings.listing import Listing, Video
from hpc_stres.registry import DATA_SETS, PHASE_KINDS, SCHEDULES
from hpc_stres.registry.dataset import DataSet
from hpc_stres.registry.phase import Phase, PhaseKind
from hpc_stres.registry.schedule import Schedule


def read(data):
    """Files NAME_train.avi and NAME_test.avi in folders of classes."""
    root = Path(data.videos)
    listing = Listing(sorted(path.name for path in root.iterdir()), train={1: []}, test={1: []})
    for label, name in enumerate(listing.classes):
        for path in sorted((root / name).glob("*.avi")):
            listing.add(Video(path.stem, path, label))
            (listing.test if path.stem.endswith("_test") else listing.train)[1].append(path.stem)
    return listing


def triangle(step, steps, *, top):
    """Up to the middle and down again."""
    return top * (1 - abs(2 * (step + 1) / (steps + 1) - 1))


@dataclass(frozen=True, kw_only=True)
class Prior(Phase):
    """Scores every video by how frequent each class is in training, and a preference."""

    prefers: int = 0
    """Class that is preferred."""

    @property
    def title(self):
        return "Prior"


def run(config, name, run_dir, world, allowed):
    """Write the scores of all test videos."""
    import json

    from hpc_stres.run.experiment import claim_run_folder
    from hpc_stres.run.paths import RunPaths, write_text
    from hpc_stres.run.product import write_product
    from hpc_stres.store.location import store_folder
    from hpc_stres.store.reader import Store

    claim_run_folder(config, run_dir, allowed)
    store = Store(store_folder(config))
    counts = [0.0] * len(store.classes)
    for row in store.present(config.data.split, "train"):
        counts[int(store.labels[row])] += 1.0
    counts[config.phases[name].prefers] += 1e6
    write_text(RunPaths(run_dir).phase(name).root / "prior.json", json.dumps(counts))
    write_product(run_dir, name, ["prior.json"], {"classes": store.classes})
    return True


def scores(config, name, run_dir, store):
    """The same scores for every test video."""
    import json

    import numpy as np

    from hpc_stres.evaluation.scores import from_videos
    from hpc_stres.run.paths import RunPaths

    counts = json.loads((RunPaths(run_dir).phase(name).root / "prior.json").read_text())
    rows = store.present(config.data.split, "test")
    videos = {store.rows[row].id: {"appearance": np.array([counts])} for row in rows}
    return from_videos(videos, {row.id: row.label for row in store.rows}, store.classes)


DATA_SETS.register(DataSet(name="suffixes", read=read, is_folder=True))
SCHEDULES.register(Schedule(name="triangle", rate=triangle))
PHASE_KINDS.register(
    PhaseKind(
        name="prior", options=Prior, run=f"{__name__}:run", ranks="one", products=("prior.json",),
        scores=f"{__name__}:scores", reads=("*",),
    )
)  # fmt: skip
