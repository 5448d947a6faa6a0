"""Clusters with other limits, names and faults than the tests' own: `python -m tests.campaigns.limits [--only NAME]`.

A private Slurm whose nodes are called cn-07-1 to cn-07-4, whose arrays have two elements at most and which has no
GPUs. Each round is told in a few lines; what breaks a promise is told as WRONG and makes the exit status 1.
Rounds that only queue are quick; those that train are marked. Needs root and Slurm's programs.
"""

import contextlib
import json
import os
import re
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from pathlib import Path

from hpc_stres.prepare.run import prepare
from hpc_stres.run.attempts import read_attempts
from hpc_stres.run.bad_nodes import read_accusations
from tests.campaigns.rounds import Round, asked_for, restarted
from tests.conftest import ROOT, tiny_config
from tests.slurm.cluster import PrivateSlurm
from tests.slurm.conftest import person

PREFIX = "cn-07-"
ONE, TWO, THREE, FOUR = (f"{PREFIX}{number}" for number in range(1, 5))
LIMITS = "MaxArraySize=2\nMaxJobCount=500\nMessageTimeout=5\n"
HELD = {"cluster__sbatch__hold": "true", "cluster__scheduler_seconds": 60}
COUNTED = ("squeue", "sacct", "scontrol", "scancel", "sinfo", "sbatch", "srun")
# A path that shells and Slurm could read in other ways.
ODD = "it's 12:30, räume & $HOME"


def controller_away(one):
    """slurmctld is down for 20 seconds, before a submit, in its middle, and while status asks."""
    for at in ("0", "2", "4"):
        who = one.user(f"run{at}")
        script = f'[ $call != {at} ] || touch "{one.folder}/go{at}"; [ $call != {at} ] || sleep 1'
        who.wrap("sbatch", script)
        if at == "0":
            (one.folder / "go0").touch()

        def outage(at=at):
            one.slurm.wait((one.folder / f"go{at}").exists, "the submit's call", 120)
            one.slurm.stop_controller()
            time.sleep(20)
            one.slurm.start_controller()

        thread = threading.Thread(target=outage)
        thread.start()
        started = time.monotonic()
        if at == "0":
            time.sleep(1)
        settings = {"nodes": 1, "phase": "motion,appearance", "cluster__links": 2, **HELD}
        code, output = one.submit(who, **settings)
        print(
            f"   away at sbatch {at}: exit status {code} after {time.monotonic() - started:.0f} s"
        )
        print("   " + output.strip().splitlines()[-1])
        if code:
            said = "nothing was submitted" in output or "The same command" in output
            one.check(said, f"what is in the queue is not said: {output}")
        thread.join()
        one.slurm.wait(lambda: one.slurm.ok("squeue"), "the controller", 120)
        who.unwrap()
        code, output = one.submit(who, **settings)
        one.check(code == 0, output)
        run = json.loads((who.run_dir / "jobs.json").read_text())["run"]
        rows = one.slurm.run("squeue", "-h", "-o", "%k").stdout.splitlines()
        counted = Counter(tuple(row.split(":")[2:4]) for row in rows if f":{run}:" in row)
        chain = {(n, link) for n in ("motion", "appearance", "evaluate") for link in "01"}
        one.check(counted == Counter(chain), f"the chain is {counted}")
        who.cancel()


def job_count(one):
    """MaxJobCount: what does not fit is refused in a sentence that says why, and the rest is known."""
    who = one.user()
    # Jobs that ended a while ago count as well.
    known = len(one.slurm.run("squeue", "-h", "-r", "-t", "all").stdout.splitlines())
    settings = {"nodes": 1, "phase": "motion", "cluster__links": 4, **HELD}
    settings["cluster__scheduler_seconds"] = 20
    restarted(one.slurm, LIMITS.replace("MaxJobCount=500", f"MaxJobCount={known + 6}"))
    code, output = one.submit(who, **settings)
    print("   " + output.strip().replace("\n", "\n   "))
    one.check(code == 1, f"exit status {code}: {output}")
    one.check("unable to accept job" in output or "Resource temp" in output, "why is not said")
    stays = len(one.slurm.queue())
    said = "Nothing of this submission" in output if not stays else "Submitted so far" in output
    one.check(said, f"{stays} jobs stay: {output}")
    restarted(one.slurm, LIMITS)
    code, output = one.submit(who, **settings)
    one.check(code == 0, output)
    counted = Counter(row[3:] for row in one.queued())
    chain = {(n, str(link)) for n in ("motion", "evaluate") for link in range(4)}
    one.check(counted == Counter(chain), f"the chain is {counted}")
    who.cancel()


def arrays_of_two(one):
    """Five runs where an array has two elements: queued, known by status, cancelled, submitted again."""
    who = one.user(ODD)
    words = ("--seeds", "11,12,13,14,15", "--at-once", "2")
    settings = {"nodes": 1, "phase": "motion,appearance", "cluster__links": 2, **HELD}
    code, output = one.submit(who, *words, **settings)
    print("   " + output.strip().replace("\n", "\n   "))
    one.check(code == 0, output)
    rows = one.queued()
    counted = Counter(row[3:] for row in rows)
    one.check(set(counted.values()) == {5}, f"not five of each: {counted}")
    one.check(max(int(row[0].partition("_")[2]) for row in rows) == 1, "an index beyond the limit")
    status = one.slurm.run(
        sys.executable, "launch/status.py", who.run_dir, "--whole", cwd=ROOT
    ).stdout
    known = {row[0] for row in rows} & set(re.findall(r"\d+_\d", status))
    one.check(len(known) == len(rows), f"status knows {len(known)} of {len(rows)}")
    one.submit(who, *words, **settings)
    one.check(one.queued() == rows, "a second submit changed the queue")
    cancelled = who.cancel().count("cancelled")
    one.check(cancelled == len(rows) and not one.queued(), f"{cancelled} of {len(rows)} cancelled")
    status = one.slurm.run(
        sys.executable,
        "launch/status.py",
        who.run_dir,
        "--watch",
        cwd=ROOT,
        check=False,
        timeout=120,
    )
    one.check(status.returncode == 1, "status --watch does not end by itself after a cancel")


def counted_questions(one):
    """What each command asks of the scheduler, counted by wrappers."""
    who = one.user()
    tally = one.folder / "tally"
    for name in COUNTED:
        who.wrap(name, f'echo {name} "$1" >> "{tally}"')

    def count(what):
        lines = tally.read_text().splitlines() if tally.exists() else []
        tests = sum(line == "sbatch --test-only" for line in lines)
        names = Counter(line.split()[0] for line in lines)
        names["sbatch"] -= tests
        shown = ", ".join(f"{n} {names[n]}" for n in COUNTED if names[n])
        print(f"   {what}: {shown or 'none'}{f', sbatch --test-only {tests}' if tests else ''}")
        tally.unlink(missing_ok=True)
        return names

    path = {**one.slurm.environment, "PATH": f"{who.wrappers}:{os.environ['PATH']}"}

    def run(*words, seconds=600):
        with_python = [sys.executable, *words]
        return one.slurm.run(*with_python, cwd=ROOT, env=path, check=False, timeout=seconds)

    settings = {"nodes": 1, "phase": "motion,appearance", **HELD}
    one.submit(who, **settings)
    first = count("submit of one run")
    one.check(first["squeue"] <= 2 and first["scontrol"] <= 2 and first["sacct"] <= 1, f"{first}")
    one.submit(who, **settings)
    again = count("the same again")
    one.check(again["squeue"] <= 2 and again["scontrol"] <= 2 and not again["sbatch"], f"{again}")
    run("launch/status.py", who.run_dir)
    once = count("status")
    one.check(once["squeue"] <= 2, f"{once}")
    with contextlib.suppress(subprocess.TimeoutExpired):
        run("launch/status.py", who.run_dir, "--watch", seconds=130)
    watched = count("status --watch, 130 s")
    one.check(watched["squeue"] <= 6, f"{watched}")
    run("launch/submit.py", "--cancel", who.run_dir)
    count("--cancel")
    for seeds in ("1,2", "1,2,3,4,5"):
        study = one.user(f"study{len(seeds)}")
        study.wrappers = who.wrappers
        code, output = one.submit(study, "--seeds", seeds, **settings)
        one.check(code == 0, output)
        count(f"submit of a study of {seeds.count(',') + 1}")
        run("launch/status.py", study.run_dir)
        count("its status")
        run("launch/submit.py", "--cancel", study.run_dir)
        count("its --cancel")


def drained(one):
    """Two nodes drained and one down: a job of three nodes waits, and status says for what."""
    who = one.user()
    for node, state in ((TWO, "drain"), (FOUR, "drain"), (THREE, "down")):
        one.slurm.run(
            "scontrol", "update", f"nodename={node}", f"state={state}", "reason=a lamp is red"
        )
    try:
        code, output = one.submit(who, nodes=3, phase="motion")
        print("   " + output.strip().splitlines()[-1])
        if code == 0:
            one.slurm.wait(lambda: "None" not in who.status(), "a reason", 60)
            print("   " + who.status().strip().replace("\n", "\n   "))
            one.check(re.search(r"pending \(\w*(Node|Resources)", who.status()), who.status())
            who.cancel()
        one.check(code == 0, output)
    finally:
        for node in (TWO, THREE, FOUR):
            one.slurm.run("scontrol", "update", f"nodename={node}", "state=resume", check=False)


def two_bad_nodes(one):
    """(trains) Two of four nodes on which ranks die at their start, in another phase than the others' rounds."""
    who = one.user()
    poisoned = one.poisoned("dies", f"{ONE},{THREE}")
    one.submit(who, nodes=2, phase="appearance", cluster__links=4, **poisoned)
    _chain_that_survives(one, who, "appearance", {ONE, THREE}, lost=2)


def silent_child(one):
    """(trains) A phase that starts from another one meets a node whose rank never comes."""
    who = one.user()
    poisoned = one.poisoned("silent", FOUR, "st_resnet_star")
    one.slurm.run("scontrol", "update", f"nodename={TWO}", "state=drain", "reason=test")
    one.slurm.run("scontrol", "update", f"nodename={THREE}", "state=drain", "reason=test")
    try:
        one.submit(who, nodes=2, phase="st_resnet,st_resnet_star", cluster__links=3, **poisoned)
        one.slurm.wait(
            lambda: (who.run_dir / "phases/st_resnet/done.json").exists(), "the parent", 600
        )
        attempts = lambda: [a for a in read_attempts(who.run_dir) if a.phase == "st_resnet_star"]  # noqa: E731
        one.slurm.wait(
            lambda: any(a.end for a in attempts()), "the end of the child's first attempt", 900
        )
        first = attempts()[0]
        print(f"   the first attempt took {first.end - first.begin:.0f} s")
        one.check(first.end - first.begin < 120, "a rank that never came cost minutes")
    finally:
        for node in (TWO, THREE):
            one.slurm.run("scontrol", "update", f"nodename={node}", "state=resume", check=False)
    _chain_that_survives(one, who, "st_resnet_star", {FOUR}, lost=1)


def _chain_that_survives(one, who, phase, bad, lost):
    states = one.ended(who)
    status = who.status()
    print(f"   {states}")
    print("   " + status.strip().replace("\n", "\n   "))
    one.check(
        (who.run_dir / "phases" / phase / "done.json").exists(),
        f"not done: {who.logs(phase)[-2000:]}",
    )
    one.check(states["evaluate"][-1] == "COMPLETED", "no evaluation")
    attempts = [a for a in read_attempts(who.run_dir) if a.phase == phase]
    vain = [a for a in attempts if set(a.nodes) & bad]
    one.check(
        len(vain) <= lost, f"{len(vain)} attempts on bad nodes: {[a.nodes for a in attempts]}"
    )
    accused = {row.node for row in read_accusations(who.run_dir)}
    one.check(accused == bad, f"accused: {accused}")
    for node in bad:
        one.check(f"node {node} " in status, f"status does not name {node}")


def failed_parent(one):
    """(trains) A phase that crashes each time: it stops after the limit, and no link of its successors starts."""
    who = one.user()
    poisoned = one.poisoned("crashes", "", "motion")
    more = {"cluster__links": 4, "cluster__restarts_without_checkpoint": 2, **poisoned}
    parents = {"phases__st_resnet__starts_from": "[motion]"}
    one.submit(who, nodes=1, phase="motion,st_resnet", **more, **parents)
    states = one.ended(who)
    print(f"   {states}")
    one.check(states["motion"].count("FAILED") == 2, f"motion: {states['motion']}")
    for name in ("st_resnet", "evaluate"):
        one.check(set(states[name]) == {"CANCELLED"}, f"{name}: {states[name]}")
        logs = list((who.run_dir / "logs" / name).glob("*_log.out"))
        one.check(not logs, f"{name} began: {logs}")
    status = who.status()
    print("   " + status.strip().replace("\n", "\n   "))
    one.check("2 attempts in a row ended without a new checkpoint" in status, status)
    one.check("the script is wrong" in status, status)
    one.check(not read_accusations(who.run_dir), "a node is accused of the script's fault")


def changed_copy(one):
    """A byte of the copy of the code changes while a job waits: the job refuses, the next submit heals."""
    who = one.user()
    one.submit(who, nodes=1, phase="motion", **HELD)
    (copy,) = [path for path in (one.folder / ".code").iterdir() if path.is_dir()]
    file = copy / "hpc_stres" / "training" / "loss.py"
    before = file.read_bytes()
    file.chmod(0o644)
    file.write_bytes(before.replace(b"s", b"z", 1))
    (job,) = who.jobs()["motion"]
    one.slurm.run("scontrol", "release", job)
    one.check(who.wait_states(job) == ["FAILED"], "the job ran in changed code")
    status = who.status()
    one.check(
        "somebody has changed this copy of the code: hpc_stres/training/loss.py" in status, status
    )
    print("   " + "\n   ".join(line[:200] for line in status.strip().splitlines()))
    one.submit(who, nodes=1, phase="motion", **HELD)
    one.check(file.read_bytes() == before, "the next submit did not make the copy anew")
    who.cancel()


def arrays_and_bad_nodes(one):
    """(trains) Three runs in arrays of two, under an odd path, one bad node; cancelled when one run is done, then
    submitted again and finished."""
    who = one.user(ODD)
    words = ("--seeds", "21,22,23", "--at-once", "1")
    settings = {
        "nodes": 1, "phase": "motion", "cluster__links": 2, "evaluation__protocol": "quick",
        **one.poisoned("dies", ONE),
    }  # fmt: skip
    code, output = one.submit(who, *words, **settings)
    one.check(code == 0, output)
    done = lambda: sorted(path.parts[-4] for path in who.run_dir.glob("*/phases/motion/done.json"))  # noqa: E731
    one.slurm.wait(done, "the first run", 900)
    print(f"   done when it is cancelled: {done()}")
    cancelled = who.cancel()
    kept = done()
    one.check(not one.queued(), f"still queued: {one.queued()}")
    one.check("cancelled" in cancelled and kept, cancelled)
    code, output = one.submit(who, *words, **settings)
    one.check(code == 0, output)
    mine = [row for row in one.queued() if row[3] == "motion"]
    one.check(len(mine) == 2 * (3 - len(kept)), f"submitted again: {mine}")
    one.slurm.wait(lambda: not one.slurm.queue(), "the end of all", 1800)
    tables = sorted(path.parts[-2] for path in who.run_dir.glob("*/results.json"))
    one.check(tables == ["seed21", "seed22", "seed23"], f"tables: {tables}")
    for run in sorted(who.run_dir.glob("seed*")):
        attempts = [(a.phase, a.nodes, a.code) for a in read_attempts(run)]
        print(f"   {run.name}: {attempts}")
        lost = [nodes for _, nodes, _ in attempts if ONE in nodes]
        one.check(len(lost) <= 2, f"{run.name}: {len(lost)} attempts on {ONE}")
        one.check({r.node for r in read_accusations(run)} <= {ONE}, f"{run.name} accuses others")
    status = one.slurm.run(sys.executable, "launch/status.py", who.run_dir, cwd=ROOT).stdout
    print("   " + status.strip().replace("\n", "\n   "))
    one.check(ONE in status, "status does not name the node")


ROUNDS = {
    each.__name__.replace("_", "-"): each
    for each in (
        counted_questions, arrays_of_two, job_count, drained, controller_away, changed_copy, failed_parent,
        two_bad_nodes, silent_child, arrays_and_bad_nodes,
    )
}  # fmt: skip


def main():
    """All rounds; the exit status."""
    args = asked_for(__doc__, ROUNDS)
    broken, chosen = [], args.only or list(ROUNDS)
    with tempfile.TemporaryDirectory(prefix="limits-") as text:
        folder = Path(text)
        data = Path(args.data) if args.data else folder / "data"
        prepare(tiny_config(data), quiet=True)
        slurm = PrivateSlurm(folder / "slurm", prefix=PREFIX, more=LIMITS)
        try:
            slurm.start()
            for name in chosen:
                print(f"== {name}", flush=True)
                started = time.monotonic()
                one = Round(slurm, data, folder / name)
                with person(slurm, data, folder / name / "run"):
                    ROUNDS[name](one)
                slurm.run("scancel", "--user", "root", check=False)
                slurm.wait(lambda: not slurm.queue(), "an empty queue", 120)
                told = "WRONG" if one.wrong else "as promised"
                print(f"   {told}, {time.monotonic() - started:.0f} s", flush=True)
                broken += [name] if one.wrong else []
        finally:
            left = slurm.stop()
    print(f"{len(chosen) - len(broken)} of {len(chosen)} rounds as promised")
    for line in left:
        print(f"left running: {line}")
    sys.exit(bool(broken or left))


if __name__ == "__main__":
    main()
