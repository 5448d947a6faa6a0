"""Options of sbatch and srun that a profile passes on: which are the launcher's own, and which
say a thing twice.

The rule: an option is passed on under its whole long name, after the launcher's own, unless
the launcher chains and recognises its jobs by it, or a field of the `cluster` section asks
for the same thing.
"""

import re
from collections.abc import Mapping, Sequence

# What jobs are told apart, chained and counted by, and what makes sbatch do something else
# than submit one job.
OWN_SBATCH = frozenset((
    "job-name", "comment", "dependency", "kill-on-invalid-dep", "output", "error", "open-mode", "signal", "array",
    "wait", "test-only", "parsable", "nodes", "ntasks", "ntasks-per-node", "tasks-per-node", "clusters",
    "cluster-constraint", "wrap", "help", "usage", "version", "uid", "gid", "batch",
))  # fmt: skip
# Field of the `cluster` section -> options that ask for the same. Where both are given, which of
# them wins would be a guess.
SAME_AS = {
    "partition": ("partition",), "account": ("account",), "qos": ("qos",), "constraint": ("constraint",),
    "wckey": ("wckey",), "exclusive": ("exclusive",), "minutes": ("time",),
    "memory_gib_per_node": ("mem", "mem-per-cpu", "mem-per-gpu"),
    "cpus_per_rank": ("cpus-per-task", "cpus-per-gpu"),
}  # fmt: skip
GPU_REQUESTS = ("gpus", "gpus-per-node", "gpus-per-task", "gpus-per-socket", "ntasks-per-gpu")
# What sbatch of Slurm 22.05 to 25.05 knows; a later option is passed on unless its name is the
# beginning of another.
KNOWN_SBATCH = frozenset((
    *OWN_SBATCH, *GPU_REQUESTS, *(option for options in SAME_AS.values() for option in options),
    "acctg-freq", "begin", "chdir", "container", "contiguous", "core-spec", "cpu-freq", "deadline", "delay-boot",
    "distribution", "exclude", "export", "export-file", "extra", "extra-node-info", "get-user-env", "gpu-bind",
    "gpu-freq", "gres", "gres-flags", "hint", "hold", "ignore-pbs", "input", "licenses", "mail-type", "mail-user",
    "mem-bind", "mincpus", "network", "nice", "no-kill", "no-requeue", "nodefile", "nodelist", "ntasks-per-core",
    "ntasks-per-socket", "overcommit", "oversubscribe", "power", "prefer", "priority", "profile", "propagate",
    "quiet", "reboot", "requeue", "reservation", "segment", "spread-job", "switches", "thread-spec",
    "threads-per-core", "time-min", "tmp", "use-min-nodes", "verbose", "wait-all-nodes",
))  # fmt: skip
OWN_SRUN = frozenset((
    "output", "error", "unbuffered", "kill-on-bad-exit", "ntasks", "ntasks-per-node", "nodes", "job-name", "open-mode",
    "multi-prog", "pty", "jobid", "dependency", "label", "input", "chdir", "test-only", "het-group", "help", "usage",
    "version", "cpus-per-task",
))  # fmt: skip
OWN_PYXIS = frozenset(("container-image", "container-mounts", "container-workdir"))
LONG_NAME = re.compile(r"[a-z][a-z0-9]*(-[a-z0-9]+)*")
SRUN_ARGUMENT = re.compile(r"--(?P<name>[a-z][a-z0-9]*(-[a-z0-9]+)*)(=.*)?", re.DOTALL)


def long_name(key: str) -> str:
    """An option as sbatch spells it: `mail_type` is mail-type."""
    return key.replace("_", "-")


def names_a_gpu(gres: object) -> bool:
    """Whether a value of --gres asks for GPUs."""
    return any(part.split(":")[0] == "gpu" for part in str(gres).split(","))


def wrong_sbatch(options: Mapping[str, object], given: Mapping[str, object]) -> str | None:
    """What was expected in place of these sbatch options; `given` holds the cluster's own fields.
    None: all is well."""
    names = [long_name(key) for key in options]
    for name, value in zip(names, options.values(), strict=True):
        if not LONG_NAME.fullmatch(name) or len(name) < 2:
            return (
                f"expected sbatch's long names, without dashes before them; {name[:40]!r} is none"
            )
        if names.count(name) > 1:
            return f"expected {name} once: it is there with - and with _"
        wrong = _taken(name, OWN_SBATCH, KNOWN_SBATCH, "submit.py sets that itself")
        if wrong is None and (name in GPU_REQUESTS or (name == "gres" and names_a_gpu(value))):
            wrong = (
                f"expected no {name} with GPUs: gpus_per_node, gpu_type and gpus_by ask for them"
            )
        for field, same in SAME_AS.items():
            # A field that is not set asks for nothing; a wall time is always asked for.
            if name in same and given.get(field) not in (None, False):
                wrong = wrong or f"expected no {name}: cluster.{field} asks for that"
        if wrong is not None:
            return wrong
    return None


def wrong_srun(arguments: Sequence[str], in_pyxis: bool) -> str | None:
    """What was expected in place of these arguments of srun; none: all is well."""
    own = OWN_SRUN | (OWN_PYXIS if in_pyxis else frozenset())
    for argument in arguments:
        match = SRUN_ARGUMENT.fullmatch(argument)
        if match is None:
            return f"expected --option or --option=value in one piece; {argument[:40]!r} is none"
        if wrong := _taken(match["name"], own, own, "each job's srun has that already"):
            return wrong
    return None


def _taken(name: str, own: frozenset[str], known: frozenset[str], why: str) -> str | None:
    if name in own:
        return f"expected no {name}: {why}"
    # Both programs take any beginning of a long option for the option.
    whole = sorted(option for option in known if option.startswith(name) and option != name)
    if name not in known and whole:
        return f"expected whole names: {name} is short for {', '.join(whole[:3])}"
    return None
