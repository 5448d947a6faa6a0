"""hpc_stres: spatiotemporal residual networks for video action recognition, trained and tested
on Slurm clusters.

    import hpc_stres as hs

    model = hs.load_model("runs/binding")                 # a run folder, or what `hpc-stres export` wrote
    hs.predict("clip.avi", model).top()                   # [("class", probability), ...]
    hs.ClipDataset("data/stores/NAME", 1, "st_resnet")    # a data set for torch's DataLoader
    hs.build_model("st_resnet", num_classes=101)          # a network with random weights

Importing the package imports nothing else; these names are looked up when they are used.
"""

import importlib
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from hpc_stres.data.dataset import ClipDataset
    from hpc_stres.evaluation.api import load_model, predict
    from hpc_stres.models import build_model

__all__ = ["ClipDataset", "build_model", "load_model", "predict"]

__version__ = "0.5.0"
# The folder that holds this package: a checkout, or an environment's site-packages.
SOURCES = Path(__file__).resolve().parent.parent

_HOMES = {
    "ClipDataset": "hpc_stres.data.dataset",
    "build_model": "hpc_stres.models",
    "load_model": "hpc_stres.evaluation.api",
    "predict": "hpc_stres.evaluation.api",
}


def __getattr__(name: str) -> Any:
    """The names above, and rooms of the package (`hpc_stres.models`), when they are first used."""
    if name in _HOMES:
        return getattr(importlib.import_module(_HOMES[name]), name)
    if not name.startswith("_") and (SOURCES / "hpc_stres" / name / "__init__.py").is_file():
        return importlib.import_module(f"hpc_stres.{name}")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
