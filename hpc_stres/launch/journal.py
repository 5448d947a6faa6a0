"""The journal of a run's submissions, jobs.json: what sbatch was asked for, and what came of it.

The intention is written before sbatch is called, the id as soon as it is known. So at most one job
of a run has an unknown fate at any time, whatever ended the submission, and its token is known: the
next submit looks for that first.
"""

import hashlib
import os
import secrets
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hpc_stres.errors import UserError
from hpc_stres.launch.scheduler import Token, base
from hpc_stres.run.paths import RunPaths, read_sealed, write_sealed


@dataclass(frozen=True)
class Submitted:
    """One phase's jobs as they were submitted last."""

    ids: tuple[str, ...]
    links: int
    after: tuple[str, ...]
    user: str
    earlier: tuple[str, ...]

    @property
    def all_ids(self) -> tuple[str, ...]:
        """Its ids, and those of an earlier submission of the phase that had not ended then."""
        return (*self.earlier, *self.ids)


def folder_tag(run_dir: Path) -> str:
    """First half of a run's id: which folder it is, so that its jobs are found without its
    journal."""
    return hashlib.sha256(str(run_dir.resolve()).encode()).hexdigest()[:8]


def this_user() -> str:
    """Name of the user who submits."""
    import pwd

    try:
        return pwd.getpwuid(os.getuid()).pw_name
    except KeyError:
        return str(os.getuid())


class Journal:
    """What is written in one folder's jobs.json."""

    def __init__(self, run_dir: Path, state: dict[str, Any]) -> None:
        self.run_dir, self.path, self._state = run_dir, RunPaths(run_dir).jobs, state
        self.accepted: dict[int, str] = {}
        """Ids of this process's submissions, by attempt."""

    @classmethod
    def read(cls, run_dir: Path) -> "Journal":
        """The folder's journal, or an empty one; a copy of another run's folder starts with an
        empty one."""
        path = RunPaths(run_dir).jobs
        fresh = {
            "run": f"{folder_tag(run_dir)}-{secrets.token_hex(3)}", "folder": str(run_dir.resolve()), "cluster": "",
            "attempts": 0, "asked": None, "abandoned": [], "jobs": {}, "arrays": [],
        }  # fmt: skip
        if not path.exists():
            return cls(run_dir, fresh)
        # Before version 0.5 there were no arrays.
        state = {"arrays": [], **read_sealed(path, damage_remedy(run_dir))}
        if missing := set(fresh) - set(state):
            raise UserError(
                f"{path}: it has no {', '.join(sorted(missing))}\n{damage_remedy(run_dir)}"
            )
        if state["run"].startswith(folder_tag(run_dir)) or _is_same_folder(
            Path(state["folder"]), run_dir
        ):
            return cls(run_dir, state)
        if _is_copy(Path(state["folder"]), state["run"]):
            return cls(run_dir, fresh)
        return cls(run_dir, {**state, "moved_from": state["folder"]})

    @property
    def run(self) -> str:
        """The run's id."""
        return str(self._state["run"])

    @property
    def moved_from(self) -> str:
        """Where the folder was when its jobs were submitted, if it has been moved since."""
        return str(self._state.get("moved_from", ""))

    @property
    def cluster(self) -> str:
        """Cluster that the jobs were submitted to; empty where it is not known."""
        return str(self._state["cluster"])

    @property
    def asked(self) -> Token | None:
        """The job that sbatch was asked for, where it is not known what came of that."""
        asked = self._state["asked"]
        return (
            None
            if asked is None
            else Token(self.run, asked["phase"], asked["link"], asked["attempt"])
        )

    @property
    def asked_seconds_ago(self) -> float:
        """Age of that request."""
        return max(0.0, time.time() - float(self._state["asked"]["time"]))

    @property
    def jobs(self) -> dict[str, Submitted]:
        """Jobs by phase, as they were submitted last."""
        return {
            name: Submitted(
                tuple(j["ids"]), j["links"], tuple(j["after"]), j["user"], tuple(j["earlier"])
            )
            for name, j in self._state["jobs"].items()
        }

    def is_abandoned(self, token: Token) -> bool:
        """Whether the run has given a job up: it was not there when it was looked for."""
        return token.comment in self._state["abandoned"]

    def knows(self, number: str) -> bool:
        """Whether a job, or the array that it is of, is in the journal."""
        arrays = {array["id"] for array in self._state["arrays"]}
        return base(number) in arrays or any(number in job.all_ids for job in self.jobs.values())

    def begin(
        self, phase: str, links: int, after: tuple[str, ...], earlier: tuple[str, ...]
    ) -> None:
        """A phase is about to be submitted anew; `earlier` jobs of it have not ended yet."""
        self._state["jobs"][phase] = {
            "ids": [], "links": links, "after": list(after), "user": this_user(), "earlier": list(earlier)
        }  # fmt: skip

    def ask(
        self, phase: str, link: int, cluster: str, array: Mapping[str, Any] | None = None
    ) -> Token:
        """Write down that sbatch is about to be called for a link of a phase, or for that of an
        array of runs; returns the job's token."""
        self._state.pop("moved_from", None)
        self._state["attempts"] += 1
        attempt = self._state["attempts"]
        self._state["asked"] = {
            "phase": phase,
            "link": link,
            "attempt": attempt,
            "time": time.time(),
            "array": dict(array) if array is not None else None,
        }
        self._state["cluster"] = cluster
        self.write()
        return Token(self.run, phase, link, attempt)

    def accept(self, number: str) -> None:
        """Write down the id of the job that was asked for."""
        asked = self._state["asked"]
        array = asked.get("array")
        if array is None:
            self._state["jobs"][asked["phase"]]["ids"].append(number)
        else:
            place = {"id": number, "phase": asked["phase"], "link": asked["link"], "is_told": False}
            self._state["arrays"].append(array | place)
        self.accepted[asked["attempt"]] = number
        self._state["asked"] = None
        self.write()

    def abandon(self) -> None:
        """Write down that the job that was asked for is not there; should it come all the same, it
        does nothing."""
        token = self.asked
        assert token is not None
        self._state["abandoned"].append(token.comment)
        self._state["asked"] = None
        self.write()

    @property
    def untold(self) -> list[dict[str, Any]]:
        """Arrays that are in the queue, and not yet in the journals of all their runs."""
        return [array for array in self._state["arrays"] if not array["is_told"]]

    def told(self, number: str) -> None:
        """Write down that each run's journal has its element of an array."""
        for array in self._state["arrays"]:
            array["is_told"] |= array["id"] == number
        self.write()

    def hear(self, array: Mapping[str, Any], index: int) -> None:
        """An element of an array is a job of this run, as if it had been submitted alone."""
        phase, own = array["phase"], array["runs"][str(index)]
        number = f"{array['id']}_{own.get('element', index)}"
        if self.knows(number):
            return
        if array["link"] == 0 or phase not in self._state["jobs"]:
            self.begin(phase, array["links"], tuple(own["after"]), tuple(own["earlier"]))
        self._state["jobs"][phase]["ids"].append(number)
        self.write()

    def drop(self, numbers: set[str]) -> None:
        """Leave jobs out that have ended, or that somebody is certain of."""
        self._state["arrays"] = [a for a in self._state["arrays"] if a["id"] not in numbers]
        for job in self._state["jobs"].values():
            job["ids"] = [number for number in job["ids"] if number not in numbers]
            job["earlier"] = [number for number in job["earlier"] if number not in numbers]
        self.write()

    def write(self) -> None:
        """Write it, sealed and at once."""
        write_sealed(self.path, self._state)


def damage_remedy(run_dir: Path) -> str:
    """What to do about a journal that cannot be read."""
    return (
        f"End what the queue still has of this run: python launch/submit.py --cancel '{run_dir}'\n"
        "Then move that file away; phases that are done stay done."
    )


def _is_same_folder(original: Path, run_dir: Path) -> bool:
    """Whether two names, of two mounts perhaps, are one folder."""
    try:
        return original.samefile(run_dir)
    except OSError:
        return False


def _is_copy(original: Path, run: str) -> bool:
    """Whether the folder that a journal was made in is still there, with that journal."""
    path = RunPaths(original).jobs
    try:
        return bool(read_sealed(path, "")["run"] == run)
    except UserError:
        return False
