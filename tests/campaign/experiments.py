"""What the rounds run: tiny data sets prepared once, commands, their undisturbed ends, and how ends are compared."""

import hashlib
import json
import os
import pickle
import shutil
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from tests.campaign import children, power
from tests.campaign.children import Child, End, Start
from tests.campaign.judge import CRASHED, Failure, last_words
from tests.campaign.plan import Experiment
from tests.campaign.shim import Orders

CONFIG = Path(__file__).resolve().parent.parent / "tiny.yaml"
STEPS = 6
SMALL = (
    "data.binding.train_videos=8", "data.binding.test_videos=8", "data.binding.frames=12", "data.workers=1",
    "training.global_batch=5", "training.norm_group=2", f"training.max_steps={STEPS}",
    "training.checkpoint_every_steps=2", "training.log_every_steps=1", "model.width=4",
    "training.start_timeout_minutes=0.5", "training.step_timeout_minutes=0.25",
)  # fmt: skip
EVALUATED = ("motion", "appearance")
TOLERANCE = 1e-9
# Figures of a row of metrics that are computed, not measured.
COMPUTED = ("step", "rate", "loss", "clips_per_statistic", "requests")

Ends = dict[str, Any]


class Workshop:
    """A folder with the data sets, the undisturbed ends, and the place where a round works."""

    def __init__(self, base: Path, without: str = "") -> None:
        self.base, self.without = base, without
        self.known: dict[Experiment, Ends] = {}
        self.counts: dict[Experiment, int] = {}
        self.outputs = 0

    def with_undisturbed(self, experiment: Experiment, without: str) -> "Workshop":
        """Itself, with an undisturbed end made by the whole product; what follows is without a guard."""
        self.without = ""
        if experiment.command != "submit":
            self.reference(experiment)
        self.without = without
        return self

    # -- what there is -------------------------------------------------------------------------------------------------

    def data_root(self, data: str) -> Path:
        """The root of a data set that was prepared undisturbed."""
        root = self.base / "data" / data
        if not (root / "ready").is_file():
            self.make_videos(root, data)
            end = self.run(Experiment("prepare", data), root, self.base)
            if not end.ok:
                raise Failure(CRASHED, f"undisturbed prepare {data}: {last_words(end.text)}")
            (root / "ready").touch()
        return root

    def make_videos(self, root: Path, data: str) -> None:
        """The videos of `folder`; `binding` makes its own."""
        if data != "folder":
            return
        from hpc_stres.prepare.video import write_video

        dice = np.random.default_rng(1)
        for label, step in (("jump", 1), ("walk", -2), ("wave", 3)):
            (root / "videos" / label).mkdir(parents=True, exist_ok=True)
            for number in range(4):
                picture = dice.integers(0, 256, (48, 64, 3), np.uint8)
                frames = [np.roll(picture, step * n, 1) for n in range(10 + number)]
                write_video(root / "videos" / label / f"clip{number}.avi", frames, 25)

    def settings(self, experiment: Experiment, root: Path) -> list[str]:
        """The `--set` options of an experiment."""
        values = [f"data.root={root}", *SMALL]
        values += [
            f"training.engine={experiment.engine}", f"training.precision={experiment.precision}",
            f"training.max_micro_batch={experiment.micro_batch}",
        ]  # fmt: skip
        if experiment.data == "folder":
            values += ["data.kind=folder", f"data.videos={root}/videos", "data.test_fraction=0.25"]
        if experiment.command == "stage":
            values.append(f"data.stage={root.parent}/staged")
        return [word for value in values for word in ("--set", value)]

    def argv(self, experiment: Experiment, root: Path, run_dir: Path) -> list[str]:
        """The command line of an experiment."""
        config = ["--config", str(CONFIG)]
        if experiment.command == "prepare":
            return ["prepare", "--quiet", *config, *self.settings(experiment, root)]
        if experiment.command == "evaluate":
            return ["evaluate", "--run-dir", str(run_dir)]
        words = ["train", *config, "--phase", experiment.phase, "--run-dir", str(run_dir)]
        return [*words, *self.settings(experiment, root)]

    # -- running -------------------------------------------------------------------------------------------------------

    def start(
        self, experiment: Experiment, root: Path, run_dir: Path, orders: Mapping[int, Orders] | None = None,
        port: int | None = None, **more: Any,
    ) -> list[Child]:  # fmt: skip
        """Start all ranks of an experiment; `orders` are the shims' by rank."""
        argv, started = self.argv(experiment, root, run_dir), []
        for rank, names in enumerate(children.rank_environments(experiment.ranks, port)):
            self.outputs += 1
            output = self.base / "outputs" / f"{self.outputs:05d}.txt"
            output.parent.mkdir(exist_ok=True)
            start = Start(
                argv, names, (orders or {}).get(rank, Orders()), without=self.without, **more
            )
            started.append(children.fork(start, output))
        return started

    def run(self, experiment: Experiment, root: Path, run_dir: Path, **more: Any) -> End:
        """Run an experiment to its end."""
        return children.wait(self.start(experiment, root, run_dir, **more))

    # -- undisturbed ends ----------------------------------------------------------------------------------------------

    def reference(self, experiment: Experiment) -> Ends:
        """What an experiment ends with when nothing happens; run once."""
        folder = self.folder_of(experiment)
        if experiment not in self.known and (folder / "ends.pkl").is_file():
            # Of an earlier campaign in the same folder, which is ours alone.
            kept = pickle.loads((folder / "ends.pkl").read_bytes())
            self.known[experiment], self.counts[experiment] = kept
        if experiment not in self.known:
            root, run_dir = self.record(experiment, folder)
            self.known[experiment] = self.ends(experiment, root, run_dir)
            self.counts[experiment] = (folder / "count").stat().st_size
            kept = (self.known[experiment], self.counts[experiment])
            (folder / "ends.pkl").write_bytes(pickle.dumps(kept))
        return self.known[experiment]

    def record(self, experiment: Experiment, folder: Path) -> tuple[Path, Path]:
        """Run an experiment undisturbed and write its calls down; returns its data root and its run folder."""
        root, run_dir = self.prepare_place(experiment, folder)
        watched = self.watched(experiment, root, run_dir)
        power.snapshot(watched, folder / "before")
        orders = Orders(root=str(watched), log=str(folder / "log"), count=str(folder / "count"))
        end = self.run(experiment, root, run_dir, orders={0: orders}, inherited_orders=orders)
        if not end.ok:
            raise Failure(CRASHED, f"undisturbed {experiment}: {last_words(end.text)}")
        return root, run_dir

    def folder_of(self, experiment: Experiment) -> Path:
        """Where an undisturbed run lies."""
        return self.base / "undisturbed" / str(experiment).replace(" ", "-")

    def prepare_place(self, experiment: Experiment, folder: Path) -> tuple[Path, Path]:
        """A fresh data root and run folder for an experiment, as they are before it."""
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        root, run_dir = folder / "data", folder / "run"
        ready = self.data_root(experiment.data)
        if experiment.command == "prepare":
            name = "videos" if experiment.data == "folder" else "binding"
            shutil.copytree(ready / name, root / name)
        else:
            (folder / "staged").mkdir(mode=0o700)
            # A folder of its own with the same shards: hard links, which nothing here writes through.
            shutil.copytree(ready, root, copy_function=os.link)
        if experiment.command == "evaluate":
            for phase in EVALUATED:
                trained = Experiment("train", experiment.data, phase)
                self.reference(trained)
                source = self.folder_of(trained) / "run"
                shutil.copytree(source, run_dir, dirs_exist_ok=True)
        return root, run_dir

    @staticmethod
    def watched(experiment: Experiment, root: Path, run_dir: Path) -> Path:
        """The folder that a command writes into."""
        if experiment.command == "prepare":
            return root
        return root.parent / "staged" if experiment.command == "stage" else run_dir

    # -- comparing -----------------------------------------------------------------------------------------------------

    def ends(self, experiment: Experiment, root: Path, run_dir: Path) -> Ends:
        """What a command leaves behind, without what is measured or merely named after the time."""
        if experiment.command == "prepare":
            return _store_ends(root)
        if experiment.command == "evaluate":
            return _score_ends(run_dir)
        return _phase_ends(run_dir / "phases" / experiment.phase)

    def difference(
        self, experiment: Experiment, resumed: Experiment, root: Path, run_dir: Path
    ) -> str:
        """In what an end differs from the undisturbed one; empty where it does not."""
        expected = self.reference(experiment)
        made = self.ends(experiment, root, run_dir)
        is_same_layout = replace(experiment, engine="") == replace(resumed, engine="")
        tolerance = 0.0 if is_same_layout and experiment.engine == resumed.engine else TOLERANCE
        for name in {**expected, **made}:
            if name not in made:
                return f"{name} is missing"
            if name not in expected:
                return f"{name} should not be there"
            if not _is_equal(expected[name], made[name], tolerance):
                return f"{name} differs: {_short(expected[name])} undisturbed, {_short(made[name])} now"
        return ""


def _short(value: Any) -> str:
    return (f"norm {np.linalg.norm(value):.12g}" if isinstance(value, np.ndarray) else repr(value))[
        :200
    ]


def _is_equal(one: Any, two: Any, tolerance: float) -> bool:
    if isinstance(one, np.ndarray):
        if one.shape != two.shape or one.dtype != two.dtype:
            return False
        if not tolerance:
            return one.tobytes() == two.tobytes()
        scale = float(np.abs(one).max(initial=0)) or 1.0
        return float(np.abs(one - two).max(initial=0)) <= tolerance * scale
    if isinstance(one, list):
        return len(one) == len(two) and all(map(_is_equal, one, two, [tolerance] * len(one)))
    if isinstance(one, float) and tolerance:
        return abs(one - two) <= tolerance * max(1.0, abs(one))
    return bool(one == two)


def _phase_ends(phase: Path) -> Ends:
    """Weights, what was read, and the computed figures of each step; read without the package."""
    from safetensors.numpy import load_file

    done = json.loads((phase / "done.json").read_text("utf-8"))
    ends: Ends = {
        f"weights {name}": value for name, value in load_file(phase / "weights.safetensors").items()
    }
    ends["step"], ends["requests"], ends["classes"] = (
        done["step"],
        done["requests"],
        done["classes"],
    )
    rows = [json.loads(line) for line in (phase / "metrics.jsonl").read_text("utf-8").splitlines()]
    for number, row in enumerate(rows):
        for key, value in row.items():
            if key in COMPUTED or key.startswith(("loss_", "accuracy_")):
                ends[f"metrics row {number} {key}"] = value
    return ends


def _score_ends(run_dir: Path) -> Ends:
    results = json.loads((run_dir / "results.json").read_text("utf-8"))
    ends: Ends = {f"results {name}": value for name, value in results.items()}
    for path in sorted((run_dir / "scores").glob("*.npz")):
        with np.load(path) as data:
            ends |= {f"{path.name} {name}": data[name] for name in data.files}
    return ends


def _store_ends(root: Path) -> Ends:
    ends: Ends = {}
    for path in sorted((root / "stores").rglob("*")):
        kept = path.is_file() and not path.name.endswith((".lock", ".seen.json"))
        if kept and "parts" not in path.parts:
            name = str(path.relative_to(root))
            ends[name] = hashlib.sha256(path.read_bytes()).hexdigest()
    return ends
