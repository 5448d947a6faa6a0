"""A round is a pure function of (seed, number): an experiment, a fault, and a moment."""

import random
from dataclasses import dataclass, field
from typing import Any

# How often each kind of fault is drawn. `launcher`, `place` and `slurm` start whole programs and take longest.
WEIGHTS = {
    "kill": 6, "torn": 3, "signal": 3, "pause": 3, "error": 8, "read": 4, "power": 8, "damage": 14, "together": 7,
    "clock": 2, "slow": 1, "port": 1, "disk": 2, "place": 1, "launcher": 1, "scheduler": 3, "limits": 4, "folders": 3,
    "readonly": 3, "slurm": 1,
}  # fmt: skip
# Kinds that start whole programs: the short form leaves them out.
LONG_KINDS = ("launcher", "place", "slurm")
ERRORS = {"ENOSPC": 28, "EIO": 5, "EDQUOT": 122, "EROFS": 30, "EACCES": 13}
LIES = ("busy", "taken_but_error", "taken_but_garbage", "hangs", "no_queue", "half_row", "empty_queue", "killed",
        "refused")  # fmt: skip
# A limit of a process or a disk beside it, and how narrow it is.
LIMITS = {"open_files": (24, 32, 64, 128), "file_bytes": (1 << 10, 1 << 14, 200 << 10),
          "memory_mib": (8, 64, 256, 1024), "tmp": (0,), "shm": (0,)}  # fmt: skip
ON_SLURM = ("kill_rank", "kill_step", "stop_rank", "kill_slurmd", "kill_node", "kill_slurmctld", "scancel", "requeue",
            "signal")  # fmt: skip
# Names in `surroundings.READERS`.
READERS = ("status", "report", "evaluate", "compare", "table", "study", "export", "export_inside", "train", "new_phase",
           "verify", "prepare")  # fmt: skip
# Which commands write or read what a fault is put into.
WRITERS = ("train", "train", "train", "train", "evaluate", "evaluate", "prepare", "stage")


@dataclass(frozen=True)
class Experiment:
    """What is run."""

    command: str = "train"
    data: str = "binding"
    phase: str = "motion"
    ranks: int = 1
    engine: str = "ddp"
    precision: str = "float32"
    micro_batch: int = 5

    @property
    def is_elastic(self) -> bool:
        """Whether it may be resumed by another layout: only where rounding is far below what is compared."""
        return self.command == "train" and self.precision == "float64"

    def __str__(self) -> str:
        if self.command not in ("train", "stage"):
            return f"{self.command} {self.data}"
        layout = f"{self.ranks}x{self.micro_batch} {self.engine} {self.precision}"
        return f"{self.command} {self.data} {self.phase} {layout}"


@dataclass(frozen=True)
class Round:
    """One experiment with one fault at one moment; `moment` is a share of the undisturbed run's calls."""

    number: int
    kind: str
    experiment: Experiment
    moment: float
    fault: dict[str, Any] = field(default_factory=dict)
    resumed: Experiment = field(default_factory=Experiment)

    def __str__(self) -> str:
        fault = " ".join(f"{name}={value}" for name, value in self.fault.items())
        other = f" then {self.resumed}" if self.resumed != self.experiment else ""
        return f"{self.kind} {fault} at {self.moment:.3f} of {self.experiment}{other}"


def draw(seed: int, number: int, kinds: tuple[str, ...] = ()) -> Round:
    """The round of this number; `kinds` restricts the faults."""
    dice = random.Random(f"{seed}:{number}")
    names = list(kinds or WEIGHTS)
    kind = dice.choices(names, [WEIGHTS[name] for name in names])[0]
    experiment = _experiment(dice, _command(dice, kind), kind)
    fault = _fault(dice, kind, experiment)
    resumed = experiment
    if experiment.is_elastic and kind in ("kill", "torn", "signal", "error", "damage"):
        ranks, micro = dice.choice(((1, 5), (2, 5), (1, 2), (3, 2)))
        resumed = Experiment(
            "train", experiment.data, experiment.phase, ranks, "ddp", "float64", micro
        )
    return Round(number, kind, experiment, dice.random(), fault, resumed)


def _command(dice: random.Random, kind: str) -> str:
    if kind in ("signal", "clock", "slow", "pause", "place", "port", "launcher", "slurm"):
        return "train"
    if kind == "readonly":
        return "evaluate"
    if kind == "scheduler":
        return "submit"
    if kind == "damage":
        return dice.choice(("train", "train", "train", "evaluate", "prepare"))
    if kind in ("power", "folders"):
        return dice.choice(("train", "train", "evaluate", "prepare"))
    if kind == "together":
        return dice.choice(("train", "train", "evaluate", "prepare", "stage", "submit"))
    return dice.choice(WRITERS)


def _experiment(dice: random.Random, command: str, kind: str) -> Experiment:
    data = dice.choice(("binding", "binding", "folder"))
    phase = dice.choice(("motion", "motion", "appearance", "st_resnet"))
    if command not in ("train", "stage"):
        return Experiment(command, data)
    if command == "stage" or kind in ("place", "launcher"):
        return Experiment(command, data, "motion")
    if kind == "slurm":
        return Experiment(command, "binding", "motion")
    if kind == "together":
        return Experiment(command, data, phase)
    needs_others = kind in ("slow", "pause", "port")
    engine = dice.choice(("ddp", "ddp", "ddp", "deepspeed"))
    ranks = dice.choice((2, 2, 3) if needs_others else (1, 1, 2, 3))
    ranks = min(ranks, 2) if engine == "deepspeed" else ranks
    precision = dice.choice(("float32", "float64")) if engine == "ddp" else "float32"
    return Experiment(
        command, data, phase, ranks, engine, precision, dice.choice((5, 2)) if ranks < 3 else 2
    )


def _fault(dice: random.Random, kind: str, experiment: Experiment) -> dict[str, Any]:
    rank = dice.randrange(experiment.ranks)
    names = ("EIO", "EACCES") if kind == "read" else tuple(ERRORS)
    several = (2, 3, 4) if experiment.command == "train" else (2, 2, 3, 4, 8)
    an_error = {"errno": dice.choice(names), "sticky": int(dice.random() < 0.6), "rank": 0}
    limit = dice.choice(("open_files", "file_bytes", "memory_mib", "memory_mib", "tmp", "shm"))
    a_kill = {"rank": rank if dice.random() < 0.3 else 0}
    faults: dict[str, dict[str, Any]] = {
        "kill": a_kill,
        "torn": a_kill,
        "signal": {"rank": rank, "signal": dice.choice((12, 15, 15, 2)), "all": dice.random() < 0.5},
        "pause": {"rank": rank, "forever": dice.random() < 0.4},
        "error": an_error,
        "read": an_error,
        "power": {"lost": dice.choice(("names", "data", "ordered", "half"))},
        "damage": {"how": dice.choice(("flip", "flip", "cut", "empty", "gone")), "file": dice.random(),
                   "place": dice.random()},
        "together": {"count": dice.choice(several)},
        "clock": {"seconds": dice.choice((-86400 * 400, -3600, 3600, 86400 * 400))},
        "slow": {"rank": rank, "microseconds": dice.choice((2000, 10000))},
        "disk": {"kib": dice.choice((16, 48, 96, 160, 256, 400, 700))},
        "place": {"umask": dice.choice((0o077, 0o002, 0o000)),
                  "locale": dice.choice(("C", "POSIX", "C.UTF-8", "tr_TR.UTF-8", "xx_XX")),
                  "home": dice.choice(("", "/nonexistent", "/proc")),
                  "folder": dice.choice(("/", "/tmp", "/proc", "removed"))},
        "launcher": {"sign": dice.choice(("config", "logs", "heartbeat", "latest", "done", "scores"))},
        "limits": {"what": limit, "value": dice.choice(LIMITS[limit])},
        "folders": {"what": dice.choice(_odd_folders(experiment.command)), "name": dice.randrange(100)},
        "readonly": {"reader": dice.choice(READERS)},
        "slurm": {"what": dice.choice(ON_SLURM), "sign": dice.choice(("heartbeat", "heartbeat", "latest", "config"))},
        "scheduler": {"lie": dice.choice(LIES), "call": dice.randrange(3)},
    }  # fmt: skip
    return faults.get(kind, {})


def _odd_folders(command: str) -> tuple[str, ...]:
    """What may be odd about the folders of a command."""
    links = {"train": ("run_is_link", "root_is_link", "loop"), "prepare": ("root_is_link", "loop")}
    return ("name", "name", "no_folder", *links.get(command, ("run_is_link",)))
