"""Published figures, and beside which numbers they may stand: those of the same data set, protocol and splits."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from hpc_stres.listings.official import official_name

if TYPE_CHECKING:
    from hpc_stres.store.reader import Store

# NIPS 2016, Table 3: ResNet-50, mean of the three splits; STM-ResNet: CVPR 2017.
PUBLISHED = {
    "ucf101": {
        "appearance": 82.29, "motion": 79.05, "two_stream": 89.47, "st_resnet": 92.76, "st_resnet_star": 93.46,
        "stm_resnet": 94.2,
    },
    "hmdb51": {
        "appearance": 43.42, "motion": 55.47, "two_stream": 60.59, "st_resnet": 65.57, "st_resnet_star": 66.41,
        "stm_resnet": 68.9,
    },
}  # fmt: skip
PUBLISHED_SPLITS = {"1", "2", "3"}
PUBLISHED_PROTOCOL = "paper: 25 evenly spaced chunks and their flips"


def official_data_set(kind: str, store: "Store", split: int) -> str | None:
    """Name of the published data set whose official lists the store holds; none for any other data set."""
    if kind not in PUBLISHED:
        return None
    labels = {store.id_of(row): int(label) for row, label in enumerate(store.labels)}
    name = official_name(store.classes, store.ids(split, "train"), store.ids(split, "test"), split, labels)
    return name if name == kind else None


def published_for(results: Mapping[str, Any]) -> dict[str, float] | None:
    """Published figures that results may be compared with: the means of all three splits by the paper's protocol."""
    figures = PUBLISHED.get(str(results.get("official")))
    is_comparable = (
        figures is not None
        and set(results["splits"]) == PUBLISHED_SPLITS
        and str(results["protocol"]).startswith(PUBLISHED_PROTOCOL)
        and all(column["videos"] == column["of"] for table in results["splits"].values() for column in table.values())
    )
    return figures if is_comparable else None
