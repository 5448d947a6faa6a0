"""Whether a split is really an official one of UCF101 or HMDB51. Pure.

A kind in the config says how lists are read, not what is in them: any videos may be listed as
UCF101 lists its own. So the contents are compared, by digests of the lists that the data sets'
authors publish.
"""

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import PurePosixPath

# By data set and split: SHA-256 of `canonical_lists`, then of `canonical_labels`, of the published
# lists (UCF101TrainTestSplits-RecognitionTask.zip and test_train_splits.rar).
DIGESTS: dict[str, dict[int, tuple[str, str]]] = {
    "ucf101": {
        1: (
            "81cb3e3a43bdb2f41be7c8ca22774fe9bc494ce59e03314d73137c0f0e8898b5",
            "ae6e6552abc12cd3696ca413c48d88378cd98ea11f1a09f09430f1cbddbd6d50",
        ),
        2: (
            "c67b563efc51c0c988758d3eb3b1cbefd7fc52ac920dcddc83d458bd76e36a83",
            "ae6e6552abc12cd3696ca413c48d88378cd98ea11f1a09f09430f1cbddbd6d50",
        ),
        3: (
            "35e28fb50d0ce3287cfdf954eae1a635b21087de7acc52a159bd3db91cee52a3",
            "ae6e6552abc12cd3696ca413c48d88378cd98ea11f1a09f09430f1cbddbd6d50",
        ),
    },
    "hmdb51": {
        1: (
            "85292d72c1f1f1dd44b5c7d5fdd3485cf58d33b89bdcc6f884e871839200e332",
            "65a6756baad5b2e92ecb07c3b157bbe30c382fdd315d2fc99ac1e75efdb1f8d4",
        ),
        2: (
            "b568f74a94e6c1d4c1561ab05e32daaa7281cac3e64e26458e9aff6f83609e51",
            "37dd446a0929cfcfd2fcfeb395310e72e5bfc2fc4821c7008ba7989fbd50bc31",
        ),
        3: (
            "8292ff9a0489f7ae4aed6a9404a6f55ca7c19d7ca2b6ced18eb8be148dfe39f8",
            "5509ee60a442035a94e372d537e95a75dfc2fb22959dbd9477218a4b4c16feaa",
        ),
    },
}


def official_name(
    classes: Sequence[str],
    train: Iterable[str],
    test: Iterable[str],
    split: int,
    labels: Mapping[str, int] | None = None,
) -> str | None:
    """`ucf101` or `hmdb51` where this is split number `split` of it, video for video; None for any
    other data.

    Ids may have folders in front. With `labels` (a class number by id) each video must have its
    official class too.
    """
    train, test = list(train), list(test)
    lists = _digest(canonical_lists(classes, train, test))
    for name, splits in DIGESTS.items():
        expected = splits.get(split)
        if expected is None or expected[0] != lists:
            continue
        if (
            labels is None
            or _digest(canonical_labels(classes, [*train, *test], labels)) == expected[1]
        ):
            return name
    return None


def canonical_lists(classes: Sequence[str], train: Iterable[str], test: Iterable[str]) -> object:
    """Class names, training videos and test videos, each sorted, so that the order of lines does
    not matter.
    """
    return [sorted(classes), sorted(map(_name, train)), sorted(map(_name, test))]


def canonical_labels(
    classes: Sequence[str], ids: Iterable[str], labels: Mapping[str, int]
) -> object:
    """Every video with the name of its class, sorted."""
    return sorted([_name(video_id), classes[labels[video_id]]] for video_id in ids)


def _name(video_id: str) -> str:
    return PurePosixPath(video_id).name


def _digest(value: object) -> str:
    return hashlib.sha256(json.dumps(value).encode()).hexdigest()
