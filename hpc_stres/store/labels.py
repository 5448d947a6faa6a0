"""Videos of several classes: a label is then the number of a set of classes, and the store
names the sets. Pure."""

from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from hpc_stres.config.schema import DataConfig
from hpc_stres.errors import UserError
from hpc_stres.store.format import PREPARE

if TYPE_CHECKING:
    from hpc_stres.store.reader import Store


def label_table(store: "Store", data: DataConfig) -> NDArray[np.int64] | None:
    """A row of 0 and 1 over the classes for each label; none where a label is a class.

    Refuses a store that was prepared with the other kind of labels than the config names.
    """
    sets = store.label_sets
    if (sets is not None) != (data.labels == "multi"):
        made = "single" if sets is None else "multi"
        raise UserError(
            f"{store.place}: prepared with data.labels={made}, but the config says {data.labels}\n{PREPARE}"
        )
    return None if sets is None else multi_hot(sets, len(store.classes))


def multi_hot(label_sets: list[list[int]], classes: int) -> NDArray[np.int64]:
    """A row of 0 and 1 over the classes for each set of them."""
    table = np.zeros((len(label_sets), classes), np.int64)
    for number, members in enumerate(label_sets):
        table[number, members] = 1
    return table


def class_counts(store: "Store", labels: NDArray[np.int32]) -> NDArray[np.int64]:
    """How many of these labels each class is in."""
    if store.label_sets is None:
        return np.asarray(np.bincount(labels, minlength=len(store.classes)), np.int64)
    return np.asarray(multi_hot(store.label_sets, len(store.classes))[labels].sum(axis=0), np.int64)
