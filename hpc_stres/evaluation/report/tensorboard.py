"""Test figures and pictures as TensorBoard events, beside those of training:
`tensorboard --logdir RUN`.

They are written anew each time: the folder is the report's own, so that nothing stands there twice.
"""

import shutil
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from hpc_stres.evaluation.report import matrix
from hpc_stres.evaluation.report.examples import Shots
from hpc_stres.evaluation.report.facts import Facts

SIDE = 480
BLUE, RED = (10, 85, 184), (166, 61, 0)


def write_events(facts: Facts, shots: dict[str, Shots]) -> Path:
    """Events under `events/test` of the run folder; returns that folder."""
    from torch.utils.tensorboard import SummaryWriter

    folder = facts.paths.root / "events" / "test"
    shutil.rmtree(folder, ignore_errors=True)
    writer = SummaryWriter(str(folder))
    for name, column in facts.table.items():
        step = facts.config.steps(name) if name in facts.config.phases else 0
        for figure in ("top1", "top5", "mean_class", "map"):
            if isinstance(column.get(figure), float | int):
                writer.add_scalar(f"test_{figure}/{name}", column[figure], step)
        low, high = column.get("interval95", (None, None))
        if low is not None:
            writer.add_scalar(f"test_interval_low/{name}", low, step)
            writer.add_scalar(f"test_interval_high/{name}", high, step)
    for name, scores in facts.columns.items():
        if scores.labels.ndim == 1:
            writer.add_image(
                f"confusion/{name}", confusion_picture(matrix.counts(scores)), 0, dataformats="HWC"
            )
    for name, shot in shots.items():
        writer.add_image(f"examples/{name}", strip(shot), 0, dataformats="HWC")
    writer.close()
    return folder


def confusion_picture(counts: NDArray[np.int64]) -> NDArray[np.uint8]:
    """The matrix in the order of the classes, on white."""
    size = len(counts)
    strong = matrix.shades(counts)[..., None]
    colours = np.where(np.eye(size, dtype=bool)[..., None], np.array(BLUE), np.array(RED))
    picture = np.rint(255 * (1 - strong) + colours * strong).astype(np.uint8)
    factor = max(1, SIDE // size)
    return np.asarray(picture.repeat(factor, axis=0).repeat(factor, axis=1))


def strip(shots: Shots) -> NDArray[np.uint8]:
    """Frames, flow and looks under each other."""
    rows = [shots.rgb, shots.flow, *shots.heat.values()]
    return np.concatenate([np.concatenate(row, axis=1) for row in rows], axis=0)
