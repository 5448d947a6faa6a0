"""One of every kind of file that the package reads back, and what reads it: for flips, lies and power losses.

A reader returns what the product makes of the files, in a form that can be compared. It is the product's own function,
never a copy of it.
"""

import hashlib
import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from tests.campaign import children
from tests.campaign.children import Start, fork
from tests.campaign.experiments import EVALUATED, Workshop
from tests.campaign.judge import CRASHED, Failure, last_words
from tests.campaign.plan import Experiment


@dataclass(frozen=True)
class Exhibit:
    """Files of one kind, and their reader. `siblings` are files of the same kind that say something else."""

    kind: str
    files: list[Path]
    read: Callable[[], Any]
    siblings: tuple[Path, ...] = ()


class Museum:
    """A finished run, its store and its export."""

    def __init__(self, shop: Workshop, with_export: bool = True) -> None:
        self.shop, self.home = shop, shop.base / "museum"
        evaluated = Experiment("evaluate")
        shop.reference(evaluated)
        source = shop.folder_of(evaluated)
        shutil.rmtree(self.home, ignore_errors=True)
        # Real copies: what is damaged here must not be a link to what is not.
        shutil.copytree(source / "run", self.home / "run")
        shutil.copytree(source / "data" / "stores", self.home / "data" / "stores")
        (self.store,) = (
            path for path in (self.home / "data" / "stores").iterdir() if path.is_dir()
        )
        self.run = self.home / "run"
        self.other = shop.folder_of(Experiment("train", "binding", "motion")) / "run"
        self._write_journal()
        self._write_plan()
        if with_export:
            self._export(shop.base / "export")

    def _write_journal(self) -> None:
        from hpc_stres.launch.journal import Journal

        journal = Journal.read(self.run)
        for phase in EVALUATED:
            journal.begin(phase, 1, (), ())
            journal.ask(phase, 0, "here")
            journal.accept("17" if phase == "motion" else "18")
        journal.ask("motion", 1, "here")
        journal.abandon()

    def _write_plan(self) -> None:
        from hpc_stres.run.paths import RunPaths, write_sealed

        write_sealed(RunPaths(self.run).plan, {"hours": {"motion": 1.5, "evaluate": 0.25}})

    def _export(self, kept: Path) -> None:
        self.exported = self.home / "export"
        if not (kept / "export.json").is_file():
            words = ["export", "--run-dir", str(self.run), "--phase", "motion", "--out", str(kept)]
            kept.parent.mkdir(parents=True, exist_ok=True)
            end = children.wait([fork(Start(words), self.shop.base / "export.txt")])
            if not end.ok:
                raise Failure(CRASHED, f"export: {last_words(end.text)}")
        shutil.copytree(kept, self.exported)

    # -- readers -------------------------------------------------------------------------------------------------------

    def exhibits(self) -> list[Exhibit]:
        """Every kind, and who reads it."""
        motion, other = self.run / "phases" / "motion", self.run / "phases" / "appearance"
        step = sorted(motion.glob("checkpoints/step*"))
        scores = self.run / "scores"
        index = sorted((self.store / "index").iterdir())
        found = [
            Exhibit("shard", sorted(self.store.glob("shards/*.tar")), self.read_shards),
            *(Exhibit(f"index: {path.name.split('-')[0]}", [path], self.read_store) for path in index),
            Exhibit("manifest.json", [self.store / "manifest.json"], self.read_store),
            Exhibit("seen.json", [self.store.with_name(f"{self.store.name}.seen.json")], self.read_seen),
            Exhibit("checkpoint weights", [step[-1] / "weights.safetensors"], self.read_checkpoint,
                    (step[0] / "weights.safetensors", step[-1] / "momentum.safetensors")),
            Exhibit("checkpoint momentum", [step[-1] / "momentum.safetensors"], self.read_checkpoint,
                    (step[0] / "momentum.safetensors",)),
            Exhibit("checkpoint meta.json", [step[-1] / "meta.json"], self.read_checkpoint,
                    (step[0] / "meta.json",)),
            Exhibit("checkpoint latest", [motion / "checkpoints" / "latest"], self.read_checkpoint),
            Exhibit("weights.safetensors", [motion / "weights.safetensors"], self.read_weights,
                    (other / "weights.safetensors", step[0] / "weights.safetensors")),
            Exhibit("done.json", [motion / "done.json"], self.read_done, (other / "done.json",)),
            Exhibit("metrics.jsonl", [motion / "metrics.jsonl"], self.read_metrics),
            Exhibit("scores", [scores / "split1_motion.npz"], self.read_scores,
                    (scores / "split1_appearance.npz",)),
            Exhibit("scores, fused", [scores / "split1_motion.npz"], self.fuse_scores),
            Exhibit("scores/parts", sorted(scores.glob("parts/*motion*.jsonl")), self.read_parts,
                    tuple(sorted(scores.glob("parts/*appearance*.jsonl")))),
            Exhibit("results.json", [self.run / "results.json"], self.read_results),
            Exhibit("config.yaml", [self.run / "config.yaml"], self.read_config),
            Exhibit("data_set.json", [self.run / "data_set.json"], self.read_data_set),
            Exhibit("jobs.json", [self.run / "jobs.json"], self.read_jobs),
            Exhibit("plan.json", [self.run / "plan.json"], self.read_plan),
        ]  # fmt: skip
        if hasattr(self, "exported"):
            files = [self.exported / "export.json", self.exported / "weights.safetensors"]
            found += [Exhibit(f"export: {path.name}", [path], self.read_export) for path in files]
            plain = [path for path in self.exported.glob("*.safetensors") if path not in files]
            found.append(Exhibit("export: plain weights", plain, self.read_plain_weights))
        return found

    def read_store(self) -> Any:
        """All that an open store says, and every offset."""
        from hpc_stres.store.listing import catalogue_of
        from hpc_stres.store.reader import Store

        store = Store(self.store)
        places = [
            tuple(place.tobytes() for place in store.places(n)) for n in range(len(store.rows))
        ]
        return [repr(catalogue_of(store)), [repr(row) for row in store.rows], places, store.remarks]

    def read_shards(self) -> Any:
        """What `hpc-stres verify` finds."""
        from hpc_stres.store.reader import Store, verify

        damaged = verify(Store(self.store))
        return Noticed(damaged[0]) if damaged else []

    def read_seen(self) -> Any:
        """Where it is damaged the sources are compared by their content: nothing is lost."""
        from hpc_stres.store.fingerprint import read_seen
        from hpc_stres.store.format import StorePaths

        found = read_seen(StorePaths(self.store))
        return repr(sorted(found.items())) if found else Noticed("the contents are compared again")

    def read_checkpoint(self) -> Any:
        """What a run resumes from; a fall back to the one before is said on stderr."""
        from hpc_stres.run.paths import RunPaths
        from hpc_stres.training import checkpoint

        found = checkpoint.newest(RunPaths(self.run).phase("motion"))
        if found is None:
            return None
        return [found.step, tensors(found.weights), tensors(found.momentum), found.meta]

    def read_weights(self) -> Any:
        from hpc_stres.models.weights import read_state
        from hpc_stres.run.paths import RunPaths
        from hpc_stres.run.product import checked_weights

        return tensors(read_state(checked_weights(RunPaths(self.run).phase("motion"))))

    def read_done(self) -> Any:
        """As a launcher, a later phase and an evaluation ask for it."""
        from hpc_stres.evaluation.finished import read_finished
        from hpc_stres.run.paths import RunPaths
        from hpc_stres.run.product import checked_weights, phase_is_done, read_done

        paths = RunPaths(self.run)
        checked_weights(paths.phase("motion"))
        if not phase_is_done(paths.phase("motion"), 6):
            return Noticed("trained again")
        return [read_done(paths.phase("motion")), repr(read_finished(paths, "motion"))]

    def read_metrics(self) -> Any:
        from hpc_stres.run.paths import RunPaths
        from hpc_stres.run.product import read_metrics

        return read_metrics(RunPaths(self.run).phase("motion"))

    def read_scores(self) -> Any:
        """The columns of the table, with their check against the weights."""
        from hpc_stres.config.loading import load_run
        from hpc_stres.evaluation.results import columns

        found = columns(load_run(self.run), self.run)
        return {
            name: [s.ids, s.labels.tolist(), s.logits.tobytes(), s.classes]
            for name, s in found.items()
        }

    def fuse_scores(self) -> Any:
        from hpc_stres.evaluation.fusion import read

        found = read(self.run / "scores" / "split1_motion.npz")
        return [found.ids, found.classes, found.scores.tobytes(), found.labels]

    def read_parts(self) -> Any:
        from hpc_stres.evaluation.parts import read_parts
        from hpc_stres.run.paths import RunPaths

        found = read_parts(RunPaths(self.run), 1, "motion", self.keys(), loud=True)
        if set(found) != set(self.keys()):
            return Noticed("the other videos are scored again")
        return {
            name: {s: v.tobytes() for s, v in streams.items()} for name, streams in found.items()
        }

    def keys(self) -> dict[str, str]:
        """The keys of the videos as they were written; read once, undamaged."""
        if not hasattr(self, "_keys"):
            (path,) = (self.run / "scores" / "parts").glob("*motion*.jsonl")
            rows = [json.loads(line) for line in path.read_text("utf-8").splitlines()]
            self._keys = {row["id"]: row["key"] for row in rows}
        return self._keys

    def read_results(self) -> Any:
        from hpc_stres.evaluation.table import read_results

        return read_results(self.run / "results.json")

    def read_config(self) -> Any:
        from hpc_stres.config.loading import load_run, plain

        return plain(load_run(self.run))

    def read_data_set(self) -> Any:
        """Compared with the state of the store, as training and testing do."""
        from hpc_stres.run.data_set import refuse_other_data_set
        from hpc_stres.store.listing import facts_of
        from hpc_stres.store.reader import Store

        refuse_other_data_set(self.run, facts_of(Store(self.store), 1))
        return "as it was"

    def read_jobs(self) -> Any:
        from hpc_stres.launch.journal import Journal

        found = Journal.read(self.run)
        return [repr(found.jobs), found.run, found.cluster, repr(found.asked), found.moved_from]

    def read_plan(self) -> Any:
        from hpc_stres.run.paths import RunPaths
        from hpc_stres.tools.planner import read_hours

        return read_hours(RunPaths(self.run).plan)

    def read_export(self) -> Any:
        import torch

        from hpc_stres.evaluation.networks import from_export

        found = from_export(self.exported, torch.device("cpu"))
        state = found.model.state_dict() if hasattr(found, "model") else {}
        bare = {k: repr(v) for k, v in vars(found).items() if not isinstance(v, torch.nn.Module)}
        return [tensors(state), bare]

    def read_plain_weights(self) -> Any:
        from hpc_stres.models.weights import read_state

        (path,) = (
            p for p in self.exported.glob("*.safetensors") if p.name != "weights.safetensors"
        )
        return tensors(read_state(path))


@dataclass(frozen=True)
class Noticed:
    """A reader's answer that is neither the value nor an error: it says that something is wrong."""

    words: str


def tensors(state: Any) -> str:
    """A digest of named tensors."""
    digest = hashlib.sha256()
    for name in sorted(state):
        digest.update(f"{name} {state[name].dtype} {tuple(state[name].shape)}".encode())
        digest.update(np.ascontiguousarray(state[name].detach().cpu().numpy()).tobytes())
    return digest.hexdigest()
