"""A small Slurm that may lie: sbatch, squeue, scontrol, sacct, scancel as programs over one file of jobs.

Started under the name of each; CAMPAIGN_SLURM is the folder with jobs.json and, while it lies, lie.json. No imports of
the package: what it knows of Slurm's answers is written down here a second time.
"""

import fcntl
import json
import os
import signal
import sys
import time

HOME = os.environ["CAMPAIGN_SLURM"]
REFUSAL = "sbatch: error: Batch job submission failed: Invalid account or account/partition combination specified"
BUSY = "sbatch: error: Batch job submission failed: Unable to contact slurm controller (connect failure)"
LOST = "sbatch: error: Batch job submission failed: Socket timed out on send/recv operation"


def load(name, default):
    try:
        with open(f"{HOME}/{name}") as stream:
            return json.load(stream)
    except FileNotFoundError:
        return default


def save(name, value):
    with open(f"{HOME}/{name}.new", "w") as stream:
        json.dump(value, stream)
    os.replace(f"{HOME}/{name}.new", f"{HOME}/{name}")


def lie_for(command):
    """The lie that is due: at the n-th call of the command that it is about, once."""
    lie = load("lie.json", None)
    if not lie or lie["command"] != command:
        return ""
    lie["call"] -= 1
    save("lie.json", lie)
    return lie["lie"] if lie["call"] == -1 else ""


def sbatch(words):
    if "--test-only" in words:
        print(
            "sbatch: Job 7 to start at 2030-01-01T00:00:00 using 1 processors on nodes n1",
            file=sys.stderr,
        )
        return 0
    lie = lie_for("sbatch")
    if lie in ("busy", "refused"):
        print(BUSY if lie == "busy" else REFUSAL, file=sys.stderr)
        return 1
    options = dict(
        word[2:].split("=", 1) for word in words if word.startswith("--") and "=" in word
    )
    jobs = load("jobs.json", {})
    number = str(100 + len(jobs))
    jobs[number] = {"state": "PENDING", "name": options["job-name"], "comment": options["comment"]}
    save("jobs.json", jobs)
    if lie == "taken_but_error":
        print(LOST, file=sys.stderr)
        return 1
    if lie == "killed":
        os.kill(os.getppid(), signal.SIGKILL)
        return 1
    if lie == "hangs":
        unlock()
        time.sleep(600)
    print("welcome to the cluster" if lie == "taken_but_garbage" else number)
    return 0


def squeue(words):
    jobs = load("jobs.json", {})
    asked = words[words.index("-j") + 1].split(",") if "-j" in words else list(jobs)
    lie = lie_for("squeue")
    if lie == "no_queue":
        print(
            "slurm_load_jobs error: Unable to contact slurm controller (connect failure)",
            file=sys.stderr,
        )
        return 1
    if lie == "empty_queue":
        return 0
    rows = []
    for number in asked:
        if number in jobs and jobs[number]["state"] != "CANCELLED":
            job = jobs[number]
            whole = [number, job["state"], "Priority", "me", job["name"], job["comment"]]
            rows.append(f"hpc_stres_row|{'|'.join(whole)}|row_ends\n")
    text = "".join(rows)
    sys.stdout.write(text[: len(text) // 2 + 3] if lie == "half_row" else text)
    return 0


def scontrol(words):
    jobs = load("jobs.json", {})
    if "config" in words:
        print("ClusterName             = campaign")
    elif "job" in words and words[-1].isdigit():
        number = words[-1]
        if number not in jobs:
            print("slurm_load_jobs error: Invalid job id specified", file=sys.stderr)
            return 1
        print(f"JobId={number} JobState={jobs[number]['state']} x")
    else:
        for number, job in jobs.items():
            print(
                f"JobId={number} JobName={job['name']} JobState={job['state']} UserId=me(0) Comment={job['comment']}"
            )
    return 0


def sacct(words):
    return 0


def sinfo(words):
    return 0


def scancel(words):
    jobs = load("jobs.json", {})
    for number in words:
        if number in jobs:
            jobs[number]["state"] = "CANCELLED"
    save("jobs.json", jobs)
    return 0


guard = open(f"{HOME}/lock", "w")  # noqa: SIM115


def unlock():
    fcntl.flock(guard, fcntl.LOCK_UN)


if __name__ == "__main__":
    fcntl.flock(guard, fcntl.LOCK_EX)
    sys.exit(globals()[os.path.basename(sys.argv[0])](sys.argv[1:]))
