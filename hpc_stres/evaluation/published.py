"""Published figures, and beside which numbers they may be printed: those of the same data set,
protocol and splits."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from hpc_stres.listings.official import official_name

if TYPE_CHECKING:
    from hpc_stres.store.reader import Store

# Late fusion of the two single streams (NIPS 2016, Table 3); each phase says its own figures.
TWO_STREAM_PUBLISHED = {"ucf101": 89.47, "hmdb51": 60.59}
PUBLISHED_SPLITS = {"1", "2", "3"}
# How a column must have been tested, in the first words of its protocol; hand-crafted
# features draw no clips.
PUBLISHED_PROTOCOL = "paper: 25 evenly spaced chunks and their flips"
HANDCRAFTED_PROTOCOL = "hand-crafted features of all trajectories of each video"
COMPARABLE = (PUBLISHED_PROTOCOL, HANDCRAFTED_PROTOCOL)


def official_data_set(kind: str, store: "Store", split: int) -> str | None:
    """Name of the published data set whose official lists the store holds; none for
    any other data set."""
    if store.label_sets is not None:
        return None
    labels = {store.id_of(row): int(label) for row, label in enumerate(store.labels)}
    name = official_name(
        store.classes, store.ids(split, "train"), store.ids(split, "test"), split, labels
    )
    return name if name == kind else None


def published_for(results: Mapping[str, Any]) -> dict[str, float] | None:
    """Published figures that results may be compared with: the means of all three splits, each by
    its own protocol."""
    columns = [column for table in results["splits"].values() for column in table.values()]
    official = results.get("official")
    is_comparable = (
        official is not None
        and set(results["splits"]) == PUBLISHED_SPLITS
        and all(column["videos"] == column["of"] for column in columns)
    )
    if not is_comparable:
        return None
    figures: dict[str, float] = {}
    for table in results["splits"].values():
        for name, column in table.items():
            # Where columns differ in their protocols each says its own.
            words = (str(results["protocol"]), str(column["protocol"]))
            if official in column.get("published", {}) and any(
                word.startswith(COMPARABLE) for word in words
            ):
                figures[name] = column["published"][official]
    return figures or None
