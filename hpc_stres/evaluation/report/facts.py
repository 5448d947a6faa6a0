"""What the page is made from: one run's config, results, scores, store and metrics, read once."""

import html
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hpc_stres.config.recipe import ordered_phases
from hpc_stres.config.schema import Config
from hpc_stres.errors import UserError
from hpc_stres.evaluation.predict import softmax
from hpc_stres.evaluation.report.laps import PhaseLog, read_log
from hpc_stres.evaluation.results import TWO_STREAM, columns, titles
from hpc_stres.evaluation.scores import Scores
from hpc_stres.evaluation.table import read_results
from hpc_stres.run.paths import RunPaths
from hpc_stres.store.location import store_folder
from hpc_stres.store.reader import Store


@dataclass(frozen=True)
class Facts:
    """One run. Without its store there are no pictures, and `no_store` says why."""

    config: Config
    paths: RunPaths
    results: dict[str, Any]
    columns: dict[str, Scores]
    logs: dict[str, PhaseLog]
    store: Store | None = None
    no_store: str = ""

    @property
    def name(self) -> str:
        """The run folder's name."""
        return self.paths.root.resolve().name

    @property
    def split(self) -> str:
        return str(self.config.data.split)

    def title(self, name: str | None) -> str:
        """A column or phase as the table names it."""
        return titles(self.config.phases).get(name or "", name or "")

    def shown(self, name: str | None) -> str:
        """`title` as HTML."""
        return html.escape(self.title(name))

    @property
    def table(self) -> dict[str, dict[str, Any]]:
        """The columns of this split as results.json has them."""
        tables: Mapping[str, Any] = self.results["splits"]
        return dict(tables.get(self.split) or next(iter(tables.values()), {}))

    @property
    def head(self) -> str | None:
        """The column that the run was made for: the last one of its recipe."""
        names = list(self.columns)
        order = [name for name in ordered_phases(self.config.phases) if name in names]
        return order[-1] if order else (names[-1] if names else None)

    @property
    def baseline(self) -> str | None:
        """What it is compared with: late fusion of both streams, or the column before it."""
        others = [name for name in self.columns if name != self.head]
        return TWO_STREAM if TWO_STREAM in others else (others[-1] if others else None)


def gather(config: Config, run_dir: Path) -> Facts:
    """Everything that is in the run folder, and the store where it is."""
    paths = RunPaths(run_dir)
    results = read_results(paths.results)
    store, missing = None, ""
    try:
        store = Store(store_folder(config))
    except UserError as error:
        missing = str(error).splitlines()[0]
    logs = {
        name: read_log(config.phases[name], paths, name) for name in ordered_phases(config.phases)
    }
    return Facts(config, paths, results, columns(config, run_dir), logs, store, missing)


def is_right(scores: Scores) -> NDArray[np.bool_]:
    """Whether each video's answer is its class, or one of its classes."""
    answers = scores.logits.argmax(axis=1)
    if scores.labels.ndim == 2:
        return np.asarray(scores.labels[np.arange(len(answers)), answers] > 0)
    return np.asarray(answers == scores.labels)


def confidence(scores: Scores) -> NDArray[np.float64]:
    """Probability that each video's answer is given; of several labels each has its own."""
    if scores.labels.ndim == 2:
        return np.asarray(1 / (1 + np.exp(-scores.logits.max(axis=1))))
    return np.asarray(softmax(scores.logits).max(axis=1))


def truth(scores: Scores, index: int) -> list[str]:
    """Names of the classes of a video."""
    if scores.labels.ndim == 2:
        return [scores.classes[int(n)] for n in np.nonzero(scores.labels[index])[0]]
    return [scores.classes[int(scores.labels[index])]]
