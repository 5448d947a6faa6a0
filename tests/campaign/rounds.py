"""One round: the fault is put in, the user's own command goes on, and the end is compared with the undisturbed one."""

import os
import random
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import psutil

from tests.campaign import children, on_slurm, programs, queue, surroundings
from tests.campaign.children import End
from tests.campaign.damage import harm
from tests.campaign.experiments import Workshop
from tests.campaign.judge import (
    CRASHED,
    SILENT,
    STOPPED,
    SURVIVED,
    Failure,
    Outcome,
    check_end,
)
from tests.campaign.plan import ERRORS, Experiment, Round
from tests.campaign.power import after
from tests.campaign.shim import Orders

MOST_LINKS = 4
PAUSE_SECONDS = 1.0
# How long a rank that is never continued may hold the others up: twice the time-outs of the settings, and more.
FOREVER_SECONDS = 150.0


class Place:
    """Where one round works."""

    def __init__(self, shop: Workshop, plan: Round) -> None:
        self.shop, self.plan, self.experiment = shop, plan, plan.experiment
        shop.reference(plan.experiment)
        self.folder = shop.base / "round"
        self.root, self.run_dir = shop.prepare_place(plan.experiment, self.folder)
        self.watched = shop.watched(plan.experiment, self.root, self.run_dir)
        self.calls = shop.counts[plan.experiment]

    @property
    def call(self) -> int:
        """The call of the undisturbed run at which the fault comes."""
        return 1 + int(self.plan.moment * self.calls)

    @property
    def names(self) -> tuple[str, ...]:
        """What a sentence about a file must hold: any path of this round."""
        return (str(self.folder),)

    def orders(self, **fault: int) -> Orders:
        return Orders(root=str(self.watched), at=self.call, **fault)

    def rename(self, name: str) -> None:
        """Do the same in a folder of another name."""
        home = self.folder / name
        home.mkdir()
        for path in (self.root, self.run_dir):
            if path.exists():
                path.rename(home / path.name)
        self.root, self.run_dir = home / self.root.name, home / self.run_dir.name
        self.watched = self.shop.watched(self.experiment, self.root, self.run_dir)

    def run(self, **more: object) -> End:
        return self.shop.run(self.experiment, self.root, self.run_dir, **more)

    def go_on(self, may_refuse: bool = False, compares: bool = True) -> str:
        """The user's own command again, until it is done; compares the end. Returns the sentence of a refusal."""
        for _ in range(MOST_LINKS):
            end = self.shop.run(self.plan.resumed, self.root, self.run_dir)
            sentence = check_end(end, "the same command again", names=self.names)
            if sentence and may_refuse:
                return sentence
            if sentence:
                raise Failure(CRASHED, f"the same command again was refused: {sentence}")
            if end.ok:
                if compares:
                    self.compare(self.plan.resumed)
                return ""
        raise Failure(CRASHED, f"the same command did not finish in {MOST_LINKS} runs")

    def compare(self, resumed: Experiment) -> None:
        """The end is the undisturbed one, or the round has failed without a word."""
        try:
            wrong = self.shop.difference(self.experiment, resumed, self.root, self.run_dir)
        except (OSError, ValueError, KeyError) as error:
            wrong = f"the end cannot be read: {type(error).__name__}: {error}"
        if wrong:
            raise Failure(SILENT, wrong)

    def conclude(
        self, end: End, sent: tuple[int, ...] = (), names: tuple[str, ...] = ()
    ) -> Outcome:
        """What the faulted command said, then the same command again and its end."""
        sentence = check_end(end, "the faulted command", sent, names)
        if end.ok:
            self.compare(self.experiment)
        self.go_on()
        return Outcome(STOPPED, sentence) if sentence else Outcome(SURVIVED, "")


def kill(place: Place, torn: int = 0) -> Outcome:
    """SIGKILL at a call; a worker's or a program's of its own where the command has some."""
    plan, orders = place.plan, place.orders(signal=signal.SIGKILL, torn=torn)
    if place.experiment.command == "prepare" and plan.number % 2:
        end = place.run(inherited_orders=orders)
    else:
        end = place.run(orders={plan.fault["rank"]: orders})
    return place.conclude(end, (signal.SIGKILL,))


def torn(place: Place) -> Outcome:
    """SIGKILL in the middle of a write."""
    return kill(place, torn=1)


def signals(place: Place) -> Outcome:
    """What a queue sends before the wall time, and Ctrl-C, at a call."""
    fault = place.plan.fault
    orders = place.orders(signal=fault["signal"])
    ranks = range(place.experiment.ranks) if fault["all"] else [fault["rank"]]
    # Before it listens, a command may be ended by its signal; the same command begins again.
    return place.conclude(place.run(orders=dict.fromkeys(ranks, orders)), (fault["signal"],))


def pause(place: Place) -> Outcome:
    """A rank stands still for a second, or for ever."""
    fault = place.plan.fault
    orders = place.orders(signal=signal.SIGSTOP)
    if fault["rank"]:  # other ranks write little: their heartbeats at the start and at the end
        orders = Orders(
            root=str(place.watched), at=1 + int(place.plan.moment * 6), signal=signal.SIGSTOP
        )
    started = place.shop.start(
        place.experiment, place.root, place.run_dir, orders={fault["rank"]: orders}
    )
    stopped, since = started[fault["rank"]], [0.0]
    others = [child for child in started if child is not stopped]

    def watch() -> None:
        if stopped.status is None and psutil.Process(stopped.pid).status() == psutil.STATUS_STOPPED:
            since[0] = since[0] or time.monotonic()
            if not fault["forever"] and time.monotonic() - since[0] > PAUSE_SECONDS:
                os.kill(stopped.pid, signal.SIGCONT)

    if not fault["forever"]:
        return place.conclude(children.wait(started, watch=watch))
    end = children.wait(others, FOREVER_SECONDS, watch)
    was_stopped = stopped.poll() is None and since[0] > 0
    if was_stopped:
        stopped.kill()
    else:
        end = children.wait(started)
    return place.conclude(end)


def error(place: Place, reads: int = 0) -> Outcome:
    """A call fails, once or from then on."""
    fault = place.plan.fault
    code = ERRORS[fault["errno"]]
    watched = place.folder if reads else place.watched
    at = 1 + int(place.plan.moment * (60 if reads else place.calls))
    orders = Orders(root=str(watched), at=at, errno=code, sticky=fault["sticky"], reads=reads)
    if place.experiment.command == "prepare" and place.plan.number % 2:
        end = place.run(inherited_orders=orders)
    else:
        end = place.run(orders={0: orders})
    names = (str(place.folder),) if place.experiment.ranks == 1 else ()
    return place.conclude(end, names=names)


def read(place: Place) -> Outcome:
    """A file cannot be read."""
    return error(place, reads=1)


def power(place: Place) -> Outcome:
    """The power fails: what was not synced is lost."""
    shop, undisturbed = place.shop, place.shop.folder_of(place.experiment)
    if shop.without:  # what is not done without the guard shows in calls of its own
        undisturbed = shop.base / "recorded"
        shop.record(place.experiment, undisturbed)
    watched = shop.watched(place.experiment, undisturbed / "data", undisturbed / "run")
    shutil.rmtree(place.watched, ignore_errors=True)
    log, before = undisturbed / "log", undisturbed / "before"
    after(log, str(watched), before, place.call, place.plan.fault["lost"], place.watched)
    place.go_on()
    return Outcome(SURVIVED, "")


def damage(place: Place) -> Outcome:
    """A file of a run that was killed at some moment is not what it was."""
    undisturbed, fault = place.shop.folder_of(place.experiment), place.plan.fault
    watched = place.shop.watched(place.experiment, undisturbed / "data", undisturbed / "run")
    shutil.rmtree(place.watched, ignore_errors=True)
    log, before = undisturbed / "log", undisturbed / "before"
    after(log, str(watched), before, place.call, None, place.watched)
    files = sorted(
        path for path in place.watched.rglob("*") if path.is_file() and path.stat().st_size
    )
    # Videos are input, of which nothing is known but what they are now.
    files = [path for path in files if path.suffix != ".avi" and "splits" not in path.parts]
    if not files:
        place.go_on()
        return Outcome(SURVIVED, "nothing was there yet")
    path = believed_file(files, fault["file"])
    harm(path, fault["how"], fault["place"])
    where = path.relative_to(place.watched)
    try:
        refusal = place.go_on(may_refuse=True)
    except Failure as failure:
        raise Failure(failure.outcome.verdict, f"{where}: {failure}") from None
    if not refusal:
        return Outcome(SURVIVED, str(where))
    folder = str(where.parent)
    if where.name not in refusal and (folder == "." or folder not in refusal):
        raise Failure(CRASHED, f"{where} was damaged, and the sentence does not name it: {refusal}")
    path.unlink(
        missing_ok=True
    )  # the remedy of most; what runs through then must end as undisturbed
    try:
        still = place.go_on(may_refuse=True)
    except Failure as failure:
        raise Failure(failure.outcome.verdict, f"{where} removed as told: {failure}") from None
    return Outcome(STOPPED, f"{where}: {refusal}{' (removed: refused as well)' if still else ''}")


# What nobody computes from: it is damaged as well, but seldom.
SHOWN_ONLY = (
    "events",
    "heartbeat",
    "progress.json",
    "code.diff",
    "provenance.json",
    "latest",
    "owner.lock",
    "config.lock",
)


def believed_file(files: list[Path], share: float) -> Path:
    """A file at a share of all, where those that most hangs on count more: the newest checkpoint most of all."""
    newest = max(
        (path.parent for path in files if path.parent.name.startswith("step")), default=None
    )
    weights = []
    for path in files:
        is_shown = path.name in SHOWN_ONLY or path.parent.name in SHOWN_ONLY
        is_older = path.parent.name.startswith("step") and path.parent != newest
        weights.append(0.2 if is_shown or is_older else 2.0 if path.parent == newest else 1.0)
    left = share * sum(weights)
    for path, weight in zip(files, weights, strict=True):
        left -= weight
        if left < 0:
            return path
    return files[-1]


def together(place: Place) -> Outcome:
    """Several start the same command at once."""
    started = []
    for _ in range(place.plan.fault["count"]):
        started += place.shop.start(place.experiment, place.root, place.run_dir)
    ends = [children.wait([child]) for child in started]
    said = [check_end(end, "one of several") for end in ends]
    if not any(end.ok for end in ends):
        raise Failure(CRASHED, f"none of {len(ends)} finished: {said[0]}")
    place.compare(place.experiment)
    place.go_on()
    refused = [sentence for sentence in said if sentence]
    return Outcome(STOPPED, refused[0]) if refused else Outcome(SURVIVED, "")


def clock(place: Place) -> Outcome:
    """The wall clock jumps."""
    questions = 1 + int(place.plan.moment * 200)
    orders = Orders(root=str(place.watched), clock=place.plan.fault["seconds"], clock_at=questions)
    return place.conclude(place.run(orders={0: orders}))


def slow(place: Place) -> Outcome:
    """One rank's disk is slow."""
    fault = place.plan.fault
    orders = Orders(root=str(place.folder), slow_us=fault["microseconds"])
    return place.conclude(place.run(orders={fault["rank"]: orders}))


def port(place: Place) -> Outcome:
    """The agreed port is taken by somebody else."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        number = taken.getsockname()[1]
        started = place.shop.start(place.experiment, place.root, place.run_dir, port=number)
        deadline = time.monotonic() + children.LIMIT_SECONDS
        while not any(child.poll() for child in started) and time.monotonic() < deadline:
            time.sleep(children.POLL_SECONDS)
        for child in started:  # one has said why; torchrun and srun end the others
            if child.poll() is None:
                child.kill()
    return place.conclude(children.wait(started), sent=(signal.SIGKILL,))


def disk(place: Place) -> Outcome:
    """A small file system that is really full; where none can be mounted, the shim's full disk."""
    place.watched.mkdir(parents=True, exist_ok=True)
    if place.experiment.command != "train" or not _mount(place.watched, place.plan.fault["kib"]):
        place.plan.fault.update(errno="ENOSPC", sticky=1)
        return error(place)
    try:
        end = place.run()
        sentence = check_end(end, "on a full disk", names=place.names)
        if end.ok:
            place.compare(place.experiment)
        subprocess.run(["mount", "-o", "remount,size=64m", str(place.watched)], check=True)
        place.go_on()
    finally:
        subprocess.run(["umount", "-l", str(place.watched)], check=False)
    return Outcome(STOPPED, sentence) if sentence else Outcome(SURVIVED, "")


def _mount(folder: Path, kib: int) -> bool:
    if os.geteuid() != 0:
        return False
    command = ["mount", "-t", "tmpfs", "-o", f"size={kib}k", "campaign", str(folder)]
    return subprocess.run(command, check=False, capture_output=True).returncode == 0


def launcher(place: Place) -> Outcome:
    """The launcher is killed while it waits for its jobs; they must end, and the same command goes on."""
    programs.kill_launcher(
        place.shop, place.experiment, place.root, place.run_dir, place.plan.fault["sign"]
    )
    place.go_on()
    return Outcome(SURVIVED, "")


KINDS: dict[str, Callable[[Place], Outcome]] = {
    "kill": kill, "torn": torn, "signal": signals, "pause": pause, "error": error, "read": read, "power": power,
    "damage": damage, "together": together, "clock": clock, "slow": slow, "port": port, "disk": disk,
    "launcher": launcher, **surroundings.KINDS,
}  # fmt: skip


def perform(shop: Workshop, plan: Round) -> Outcome:
    """Do a round; a failure is an outcome as well."""
    # What Python itself draws must not differ from round to round.
    random.seed(plan.number)
    try:
        if plan.experiment.command == "submit":
            return queue.perform(shop, plan)
        if plan.kind == "slurm":
            return on_slurm.perform(Place(shop, plan))
        return KINDS[plan.kind](Place(shop, plan))
    except Failure as failure:
        return failure.outcome
