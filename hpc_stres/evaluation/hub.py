"""A folder to share, laid out as model hubs expect it: config.json, model.safetensors
and a model card.

`hpc_stres.load_model` reads it where there is no network: config.json holds all of
export.json, sealed.
"""

import json
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from hpc_stres import __version__
from hpc_stres.config.schema import Config
from hpc_stres.errors import UserError
from hpc_stres.evaluation.protocol import describe
from hpc_stres.evaluation.table import is_multi, read_results
from hpc_stres.run.paths import RunPaths, atomic_path, read_sealed, sealed, write_json, write_text
from hpc_stres.run.starts import HUB_CONFIG, HUB_KEY, HUB_WEIGHTS

CARD = "README.md"


def write_folder(
    config: Config, paths: RunPaths, exported: Mapping[str, Any], weights: Path, folder: Path
) -> None:
    """The three files; the weights are the export's own, by a second name where the
    file system can."""
    folder.mkdir(parents=True, exist_ok=True)
    with atomic_path(folder / HUB_WEIGHTS) as temporary:
        try:
            os.link(weights, temporary)
        except OSError:
            shutil.copyfile(weights, temporary)
    classes = exported["classes"]
    write_json(folder / HUB_CONFIG, {
        "model_type": "hpc_stres", "architectures": [exported["sizes"]["model"]["name"]],
        "num_labels": len(classes), "id2label": dict(enumerate(classes)),
        "label2id": {name: number for number, name in enumerate(classes)},
        "hpc_stres_version": __version__, HUB_KEY: sealed(exported),
    })  # fmt: skip
    write_text(folder / CARD, model_card(config, paths, exported))


def model_card(config: Config, paths: RunPaths, exported: Mapping[str, Any]) -> str:
    """What the weights are, what they were trained on and how well they did,
    under which protocol."""
    title = config.phases[exported["phase"]].title
    column, data = _column(config.data.split, paths, exported), _data_set(paths)
    header = {
        "library_name": "hpc_stres", "pipeline_tag": "video-classification",
        "tags": ["action-recognition", "optical-flow", "two-stream"],
    }  # fmt: skip
    lines = ["---", *(f"{key}: {json.dumps(value)}" for key, value in header.items())]
    if column is not None:
        name = json.dumps(config.data.kind)
        lines += [
            "model-index:", f"- name: {json.dumps(title)}", "  results:",
            "  - task: {type: video-classification}", f"    dataset: {{name: {name}, type: {name}}}",
            f"    metrics: [{{type: accuracy, value: {column['top1'] / 100:.4f}}}]",
        ]  # fmt: skip
    lines += ["---", "", f"# {title}", "", f"Trained with hpc_stres {__version__} on `{config.data.kind}`, "
              f"{len(exported['classes'])} classes, split {config.data.split}."]  # fmt: skip
    lines += [
        "",
        "## Accuracy",
        "",
        *_accuracy(column),
        f"Protocol: {describe(config.evaluation) if column is None else column['protocol']}.",
    ]
    lines += ["", "## Data", "", *(f"* {key}: `{value}`" for key, value in data.items())]
    lines += [f"* weights, SHA-256: `{exported['weights_sha256']}`"]
    lines += ["", "## Use", "", "```python", "import hpc_stres as hs", "", "model = hs.load_model(\"this folder\")",
              "print(hs.predict(\"clip.mp4\", model).top())", "```", "",
              "Preprocessing stands in config.json, under `hpc_stres`."]  # fmt: skip
    return "\n".join(lines) + "\n"


def _accuracy(column: Mapping[str, Any] | None) -> list[str]:
    if column is None:
        return ["Not tested yet: this run has no results for this phase.", ""]
    low, high = column["interval95"]
    also = (
        f"mean average precision {column['map']:.2f} %"
        if is_multi(column)
        else f"{column['top5']:.2f} % among the first five"
    )
    return [
        f"{column['top1']:.2f} % of {column['videos']} test videos (95 % interval {low:.1f} to {high:.1f} %), {also}.",
        "",
    ]


def _column(split: int, paths: RunPaths, exported: Mapping[str, Any]) -> dict[str, Any] | None:
    """This phase's figures in results.json, if there are any of these weights."""
    try:
        results = read_results(paths.results)
    except UserError:
        return None  # not evaluated yet: the card says so
    column = results["splits"].get(str(split), {}).get(exported["phase"])
    # Results of version 0.2 do not say of which weights they are.
    is_of_these = column and column.get("weights") in (None, exported["weights_sha256"])
    return dict(column) if is_of_these else None


def _data_set(paths: RunPaths) -> dict[str, Any]:
    """The state of the data set that the run is bound to."""
    if not paths.data_set.is_file():
        return {"data set": "this run did not write down its state"}
    facts = read_sealed(paths.data_set, "The run's own record of its data set is damaged.")
    return {key: value for key, value in facts.items() if key != "classes"}
