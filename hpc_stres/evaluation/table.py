"""The paper's Table 3 with ours beside it, as text."""

from collections.abc import Mapping
from typing import Any

from hpc_stres.texttable import text_table

TITLES = {
    "appearance": "Appearance",
    "motion": "Motion",
    "two_stream": "Two-Stream",
    "st_resnet": "ST-ResNet",
    "st_resnet_star": "ST-ResNet*",
    "stm_resnet": "STM-ResNet",
}
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


def count_text(column: Mapping[str, Any]) -> str:
    """`96`, or `95 of 96` where videos are missing."""
    return str(column["of"]) if column["videos"] == column["of"] else f"{column['videos']} of {column['of']}"


def score_rows(columns: Mapping[str, Mapping[str, Any]]) -> list[list[str]]:
    """Name, top-1, interval, top-5 and count of each column."""
    return [
        [
            TITLES.get(name, name), f"{c['top1']:.2f}", f"{c['interval95'][0]:.1f} - {c['interval95'][1]:.1f}",
            f"{c['top5']:.2f}", count_text(c),
        ]
        for name, c in columns.items()
    ]  # fmt: skip


def results_table(results: Mapping[str, Any]) -> str:
    """Accuracy of each column and split, its interval, and the published figure where there is one."""
    published = PUBLISHED.get(results["data"], {})
    several = len(results["splits"]) > 1
    header = ["", *(["split"] if several else []), "top-1 %", "95 % interval", "top-5 %", "videos"]
    header += ["published"] if published else []
    rows = []
    for split, table in results["splits"].items():
        for name, (title, *cells) in zip(table, score_rows(table), strict=True):
            row = [title, *([split] if several else []), *cells]
            rows.append(row + ([f"{published[name]:.2f}" if name in published else "-"] if published else []))
    for name, value in results.get("mean", {}).items():
        row = [TITLES.get(name, name), "mean", f"{value:.2f}", "", "", ""]
        rows.append(row + ([f"{published[name]:.2f}" if name in published else "-"] if published else []))
    return text_table(header, rows) + f"\n{results['protocol']}"
