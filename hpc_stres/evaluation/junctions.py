"""How large the motion signal is against the appearance signal where the streams meet, on
some test videos."""

import sys
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from hpc_stres.config.schema import DataConfig
from hpc_stres.errors import UserError
from hpc_stres.evaluation import networks, predict, protocol
from hpc_stres.run.paths import RunPaths, read_sealed, sha256, write_sealed
from hpc_stres.store.reader import Store

VIDEOS = 8


@dataclass(frozen=True)
class Junction:
    """Root mean squares at one junction: what comes from motion, and what it
    joins in appearance."""

    stage: int
    motion: float
    appearance: float

    @property
    def share(self) -> float:
        """Motion over appearance."""
        return self.motion / self.appearance if self.appearance else float("inf")


def strengths(data: DataConfig, run_dir: Path, phase: str, store: Store) -> list[Junction]:
    """One row a junction, measured on clips of the first test videos; kept in the run folder
    for these weights."""
    paths = RunPaths(run_dir)
    key, kept = sha256(paths.phase(phase).weights), paths.junctions(phase)
    stored = _kept(kept) if kept.is_file() else {}
    if stored.get("weights") == key:
        return [Junction(**row) for row in stored["junctions"]]
    rows = _measure(data, run_dir, phase, store)
    write_sealed(kept, {"weights": key, "videos": VIDEOS, "junctions": [vars(row) for row in rows]})
    return rows


def _kept(path: Path) -> dict[str, Any]:
    """What was measured before; where it is damaged, that is said and it is measured again."""
    try:
        return read_sealed(path, "It is measured again.")
    except UserError as error:
        print(error, file=sys.stderr)
        return {}


def _measure(data: DataConfig, run_dir: Path, phase: str, store: Store) -> list[Junction]:
    network = networks.from_run(run_dir, phase, [f"data.root={data.root}"], predict.device())
    squares: list[tuple[float, float]] = []

    def note(module: Any, into: tuple[Tensor, ...]) -> None:
        appearance, motion = into[0], into[3]
        squares.append(
            (float(motion.double().square().mean()), float(appearance.double().square().mean()))
        )

    handle = network.call.interaction.register_forward_pre_hook(note)  # type: ignore[attr-defined]
    reader = network.reader(store)
    videos = sorted(store.rows[number].id for number in store.present(data.split, "test"))[:VIDEOS]
    quick = replace(network.evaluation, protocol="quick")
    for name in videos:
        number = store.number[name]
        requests = protocol.test_requests(store.rows[number], number, quick, network.clips)
        protocol.score_video(network, reader, requests, network.dtype)
    handle.remove()
    stages = len(squares) // max(1, len(videos))
    by_stage = (
        torch.tensor(squares, dtype=torch.float64)
        .view(len(videos), stages, 2)
        .mean(dim=0)
        .sqrt()
        .tolist()
    )
    return [
        Junction(number, motion, appearance)
        for number, (motion, appearance) in enumerate(by_stage, 1)
    ]
