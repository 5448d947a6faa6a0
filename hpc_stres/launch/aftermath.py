"""After a job that failed or stopped early: who was to blame, and what its successors are told.
Called by the job's own script.

  sinfo -h -N -o %N | python -m hpc_stres.launch.aftermath RUN PHASE JOB RESTART STATUS NODELIST SECONDS RANKS_PER_NODE

It prints orders, a line each, which the script carries out with scontrol and scancel (inside an
image there are none): `exclude JOB NODES` for each job of the run that waits, and `cancel JOB` for
the later links of a chain that has given up. It runs without torch and ends with 0 whatever it
meets: the job's own exit status is what counts.
"""

import os
import re
import shlex
import sys
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from hpc_stres.errors import UserError
from hpc_stres.launch.attempt import call_file, settings_and_mark, why_given_up
from hpc_stres.launch.bad_nodes import avoided
from hpc_stres.launch.jobs import MESSAGE, Job
from hpc_stres.launch.scheduler import Token
from hpc_stres.run import attempts
from hpc_stres.run.bad_nodes import Kind, accuse, affordable, withdraw
from hpc_stres.run.paths import RunPaths, read_json, study_folder
from hpc_stres.run.signals import EXIT_CONTINUE
from hpc_stres.tools.node_health import names_of

TAIL_BYTES = 256 * 1024
# srun's word on the first tasks that ended; those after them are ended because of the first. It
# puts tasks that ended in the same way into one line: `n[2-3]: tasks 1,4-5: Killed`.
FIRST_DEATH = re.compile(
    r"srun: error: (?P<nodes>[A-Za-z0-9._,\[\]-]+): tasks? (?P<tasks>[\d,-]+): (?P<how>Exited with exit code \d+|"
    r"Killed|Segmentation fault|Bus error|Aborted|Illegal instruction|Floating point exception)"
)
LAUNCH_FAILED = re.compile(
    r"srun: error: Task launch for \S+ failed on node (?P<node>[A-Za-z0-9._-]+): (?P<how>.*)"
)
# What machines say of themselves; a rank whose log has one of these was let down by its node.
MACHINE_WORDS: tuple[tuple[Kind, re.Pattern[str]], ...] = (
    ("gpu", re.compile(r"NVRM: Xid|\bXid \d+|\bXid \(PCI", re.IGNORECASE)),
    ("gpu", re.compile(r"uncorrectable ECC|ECC error|double.bit error", re.IGNORECASE)),
    (
        "gpu",
        re.compile(
            r"GPU has fallen off the bus|GPU is lost|CUDA_ERROR_NO_DEVICE|no CUDA-capable device",
            re.IGNORECASE,
        ),
    ),
    ("disk", re.compile(r"\[Errno 5\]|Input/output error|Stale file handle|Bus error")),
)
# Endings that are nobody's fault, or the job's own. (When one task fails, the rest of its STEP is
# cancelled as well.)
OWN_FAULT = re.compile(
    r"oom.?kill|out of memory|\*\*\* JOB \S+ .*CANCELLED|DUE TO TIME LIMIT|DUE TO PREEMPTION",
    re.IGNORECASE,
)


@dataclass(frozen=True)
class Ended:
    """A job that failed."""

    run_dir: Path
    phase: str
    job: str
    restart: int
    status: int
    nodes: tuple[str, ...]
    ranks_per_node: int
    script_log: Path | None = None
    """Where srun wrote to, where that is not the first rank's log: the log of an array."""

    @property
    def folder(self) -> Path:
        """Where the job's ranks write."""
        return RunPaths(self.run_dir).logs / self.phase

    def log(self, rank: int) -> str:
        """The end of a rank's log; the first one's holds the words of srun too."""
        return _tail(self.folder / f"{self.job}_{rank}_log.out")

    def accuse(self, node: str, kind: Kind, reason: str) -> None:
        """Write a node down, as of this job."""
        if node in self.nodes:
            accuse(
                self.run_dir, kind, f"{node}: {reason}", node, job=self.job, restart=self.restart,
                job_nodes=len(self.nodes),
            )  # fmt: skip


def _tail(path: Path | None) -> str:
    """The last part of a log; empty where there is none."""
    try:
        with open(path or os.devnull, "rb") as stream:
            size = os.fstat(stream.fileno()).st_size
            stream.seek(max(0, size - TAIL_BYTES))
            return stream.read().decode("utf-8", "replace")
    except OSError:
        return ""


def blame(ended: Ended) -> None:
    """Write down the nodes that the job's logs and its missing ranks accuse."""
    text = _of_this_restart(ended.log(0) + _tail(ended.script_log))
    arrived = _arrived(ended)
    for rank in range(len(ended.nodes) * ended.ranks_per_node):
        kind, line = machine_word(_of_this_restart(ended.log(rank)))
        if kind is not None:
            node = arrived.get(rank) or ended.nodes[rank // ended.ranks_per_node]
            ended.accuse(node, kind, f"rank {rank}: {line}")
    launch = LAUNCH_FAILED.search(text)
    if launch:
        ended.accuse(
            launch["node"], "arrival", f"its rank could not be started: {launch['how'].strip()}"
        )
    if OWN_FAULT.search(text) or launch:
        return
    first = FIRST_DEATH.search(text)
    if first is not None:
        _blame_the_first(ended, first, arrived)
        return
    per_node = Counter(arrived.values())
    for node in ended.nodes if arrived else ():
        if per_node[node] < ended.ranks_per_node:
            lacking = ended.ranks_per_node - per_node[node]
            ended.accuse(
                node, "arrival", f"{lacking} of its {ended.ranks_per_node} ranks never started"
            )


def _blame_the_first(ended: Ended, first: re.Match[str], arrived: Mapping[int, str]) -> None:
    """The nodes of the ranks that ended first, where none of them said why."""
    names, ranks = names_of(first["nodes"]), list(_numbers(first["tasks"]))
    if any(_spoke(_of_this_restart(ended.log(rank))) for rank in ranks):
        return
    how = first["how"][0].lower() + first["how"][1:]
    for rank in ranks:
        node = names[0]
        if len(names) > 1:
            place = min(rank // ended.ranks_per_node, len(ended.nodes) - 1)
            node = arrived.get(rank) or ended.nodes[place]
        when = "after it had started" if rank in arrived else "before it had started"
        if node in names:
            ended.accuse(node, "crash", f"rank {rank} ended {when}, without a message: {how}")


def _numbers(text: str) -> Iterator[int]:
    """1, 4 and 5 of `1,4-5`."""
    for first, last in re.findall(r"(\d+)(?:-(\d+))?", text):
        yield from range(int(first), int(last or first) + 1)


def machine_word(text: str) -> tuple[Kind | None, str]:
    """The first line in which a machine speaks of itself, and what it is about."""
    for line in text.splitlines():
        for kind, words in MACHINE_WORDS:
            # srun tells of the ends of all tasks in the first rank's log: that is not
            # that rank's word.
            if words.search(line) and not line.startswith("srun: "):
                return kind, line.strip()[:200]
    return None, ""


def _of_this_restart(text: str) -> str:
    """What a log holds of the newest run of its job: a job that is queued again appends to it."""
    return (
        text.rsplit("submitit INFO", 1)[-1]
        if text.count("Starting with JobEnvironment") > 1
        else text
    )


def _spoke(text: str) -> bool:
    """Whether a rank gave a reason of its own."""
    return any(MESSAGE.match(line) for line in text.splitlines())


def _arrived(ended: Ended) -> dict[int, str]:
    """The node of each rank that has started in this job."""
    nodes = {}
    for path in (ended.folder / "arrived").glob("rank*.json"):
        word = read_json(path)
        if (word.get("job"), word.get("restart")) == (ended.job, ended.restart):
            nodes[int(word["rank"])] = str(word["node"])
    return nodes


def orders(ended: Ended, available: Sequence[str]) -> list[str]:
    """What the scheduler is to be told."""
    waiting = _later_jobs(ended)
    if why := given_up(ended):
        # Status finds it in the log, as what the command has said.
        print(f"hpc-stres submit: {why}", file=sys.stderr, flush=True)
        return [f"cancel {number}" for number in waiting.get(ended.phase, [])]
    kept = affordable(list(avoided(ended.run_dir)), available, len(ended.nodes))
    return [
        f"exclude {number} {','.join(sorted(kept))}"
        for ids in waiting.values()
        for number in ids
        if kept
    ]


def given_up(ended: Ended) -> str:
    """Why no further attempt is made; empty where one is."""
    made_attempts = attempts.read_attempts(ended.run_dir)
    mine = next(
        (a for a in made_attempts if (a.job, a.restart) == (ended.job, ended.restart)), None
    )
    if mine is None or ended.status == 0:
        return ""
    cluster, mark = settings_and_mark(ended.run_dir, ended.phase)
    vain = attempts.without_progress(
        made_attempts, ended.phase, "", -1, mark, mine.link + 1, mine.submission
    )
    if len(vain) < cluster.restarts_without_checkpoint:
        return ""
    withdraw(ended.run_dir, [attempt.job for attempt in vain])
    return why_given_up(ended.run_dir, ended.phase, vain, cluster)


def _later_jobs(ended: Ended) -> Mapping[str, list[str]]:
    """Jobs of the run that come after this one, by phase; whether they still wait the
    scheduler knows."""
    jobs = read_json(RunPaths(ended.run_dir).jobs).get("jobs", {})
    later = {}
    for phase, job in jobs.items():
        ids = [
            str(number) for number in job.get("ids", []) if re.fullmatch(r"\d+(_\d+)?", str(number))
        ]
        if ended.job in ids:
            ids = ids[ids.index(ended.job) + 1 :]
        later[phase] = ids
    return later


def main(words: Sequence[str]) -> int:
    """See the top of this file."""
    run_dir, phase, job, restart, status, nodelist, seconds, per_node = words
    ended = Ended(
        Path(run_dir), phase, job, int(restart or 0), int(status), names_of(nodelist), max(1, int(per_node)),
        _log_of_array(Path(run_dir), phase, job),
    )  # fmt: skip
    _write_down(ended, float(seconds))
    if ended.status != EXIT_CONTINUE:
        blame(ended)
    print("\n".join(orders(ended, sys.stdin.read().split())))
    return 0


def _log_of_array(run_dir: Path, phase: str, job: str) -> Path | None:
    """Where the script of an array's element writes to, and srun with it: the folder of the runs."""
    above = study_folder(run_dir) if "_" in job else None
    return RunPaths(above).logs / phase / f"{job}_0_log.out" if above is not None else None


def _write_down(ended: Ended, seconds: float) -> None:
    """The attempt's end, and its begin where no rank came so far as to write it."""
    known = {(a.job, a.restart) for a in attempts.read_attempts(ended.run_dir)}
    token = Token.find(os.environ.get("SLURM_JOB_NAME", ""))
    if (ended.job, ended.restart) not in known and token is not None:
        _, mark = settings_and_mark(ended.run_dir, ended.phase)
        row = attempts.begin_row(
            ended.phase, link=token.link, submission=token.attempt, nodes=ended.nodes,
            ranks=len(ended.nodes) * ended.ranks_per_node, gpus=0, mark=mark,
            call=call_file(ended.run_dir, ended.phase, token), begun=time.time() - seconds,
        )  # fmt: skip
        attempts.write_begin(ended.run_dir, row | {"job": ended.job, "restart": ended.restart})
    attempts.write_end(ended.run_dir, ended.job, ended.restart, ended.status)


def script_lines(python: str, run_dir: Path, job: Job) -> list[str]:
    """Lines of a job script, after its ranks have ended with `$status` or left word in
    `$marker` for more."""
    arguments = f"{shlex.quote(str(run_dir))} {shlex.quote(job.name)}"
    variables = '"$me" "${SLURM_RESTART_COUNT:-0}" "$ended" "$SLURM_JOB_NODELIST" "$SECONDS"'
    return [
        'if [ "$status" != 0 ] || [ -e "$marker" ]; then',
        f'  ended="$status"; [ -e "$marker" ] && ended={EXIT_CONTINUE}',
        '  me="${SLURM_ARRAY_TASK_ID:+${SLURM_ARRAY_JOB_ID}_$SLURM_ARRAY_TASK_ID}"; me="${me:-$SLURM_JOB_ID}"',
        '  sinfo -h -N -o %N -p "$SLURM_JOB_PARTITION" -t idle,alloc,mix,comp,resv,plnd 2>/dev/null | sort -u |',
        f"  {python} -m hpc_stres.launch.aftermath {arguments} {variables} {job.ranks_per_node} |",
        "  while read -r order number nodes; do",
        '    case "$order" in',
        '      exclude) scontrol update JobId="$number" ExcNodeList="$nodes" 2>/dev/null ;;',
        '      cancel) scancel --state=PENDING "$number" ;;',
        "    esac",
        "  done",
        "fi",
    ]


if __name__ == "__main__":
    try:
        code = main(sys.argv[1:])
    except (UserError, OSError, ValueError) as error:
        print(f"aftermath: {error}", file=sys.stderr)
        code = 0
    sys.exit(code)
