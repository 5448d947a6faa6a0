#!/usr/bin/env python3
"""Submit the phases of a run as dependent jobs, on Slurm or on this machine.

  python launch/submit.py --config configs/binding.yaml --phase all --cluster local
  python launch/submit.py --config configs/ucf101.yaml --nodes 4 --gpus-per-node 4 --phase all

Phases that are done are not submitted again; the same command goes on after a failure. --dry-run prints the jobs, the
cut of each global batch and the sbatch scripts, and submits nothing.
"""

import argparse
import fcntl
import json
import os
import shlex
import shutil
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
if str(ROOT) not in sys.path:
    sys.path.insert(0, str(ROOT))
# Jobs import this package as well, from wherever they run.
os.environ["PYTHONPATH"] = os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])

from hpc_stres.config import Config  # noqa: E402
from hpc_stres.configfile import CONFIGS, dump, load_config, load_resolved, plain  # noqa: E402
from hpc_stres.data.storepath import store_folder  # noqa: E402
from hpc_stres.errors import UserError  # noqa: E402
from hpc_stres.provenance import write_provenance  # noqa: E402
from hpc_stres.recipe import select_phases  # noqa: E402
from hpc_stres.runpaths import RunPaths, write_json, write_text  # noqa: E402
from launch import jobs as job_list  # noqa: E402

# How long a second submit waits for the first to have submitted; then it sees what is queued.
SUBMIT_PATIENCE_SECONDS = 60.0


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--config", metavar="F", default=str(CONFIGS / "binding.yaml"), help="config (default: the demo)"
    )
    parser.add_argument("--nodes", type=int, metavar="N", help="nodes of a training job")
    parser.add_argument("--gpus-per-node", type=int, metavar="G", help="GPUs of a node, one rank each")
    parser.add_argument("--phase", default="all", help="all, or names with commas between")
    parser.add_argument("--cluster", default="auto", help="auto, slurm, local, or a profile of configs/clusters")
    parser.add_argument("--set", metavar="K=V", action="append", default=[], dest="overrides", help="override a value")
    parser.add_argument("--run-dir", metavar="D", help="run folder (default: runs/NAME_OF_CONFIG)")
    parser.add_argument("--split", default=None, choices=["1", "2", "3", "all"], help="split, or all three")
    parser.add_argument("--dry-run", action="store_true", help="print what would be submitted")
    parser.add_argument("--watch", action="store_true", help="on Slurm: watch the jobs after submitting them")
    parser.add_argument("--debug", action="store_true", help="show the traceback of an error")
    return parser.parse_args(argv)


def resolve(args: argparse.Namespace, split: int | None) -> Config:
    """The config with the command line laid over it."""
    profile = args.cluster
    if profile == "auto":
        profile = "slurm" if shutil.which("sbatch") else "local"
    overrides = list(args.overrides)
    for key, value in (("nodes", args.nodes), ("gpus_per_node", args.gpus_per_node)):
        overrides += [f"cluster.{key}={value}"] if value is not None else []
    overrides += [f"data.split={split}"] if split is not None else []
    return load_config(args.config, overrides, profile)


def write_config(config: Config, run_dir: Path) -> None:
    """Write the run's config; refuse a folder that belongs to another experiment."""
    paths = RunPaths(run_dir)
    if paths.config.is_file():
        from hpc_stres.training.checkpoint_rules import FREE_KEYS, refuse_other_config

        refuse_other_config(plain(load_resolved(paths.config)), plain(config), FREE_KEYS)
    write_text(paths.config, dump(config))


@contextmanager
def locked(run_dir: Path, patience_seconds: float = 0.0) -> Iterator[None]:
    """One submit at a time in a run folder; the lock ends with the process, whatever ends that."""
    path = RunPaths(run_dir).lock
    path.parent.mkdir(parents=True, exist_ok=True)
    deadline = time.monotonic() + patience_seconds
    with path.open("a+") as stream:
        while True:
            try:
                fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() < deadline:
                    time.sleep(0.2)
                    continue
                stream.seek(0)
                raise UserError(
                    f"{run_dir}: another submit is at work here: {stream.read().strip()}\n"
                    "Wait for it, or use another --run-dir."
                ) from None
        stream.truncate(0)
        stream.write(f"process {os.getpid()} on {os.uname().nodename}\n")
        stream.flush()
        yield


def show(config: Config, run_dir: Path, jobs: list[job_list.Job], queued: Mapping[str, list[str]]) -> None:
    """What is submitted and what waits for what, with the cut of each global batch."""
    print(f"run folder: {run_dir}")
    for name, numbers in queued.items():
        print(f"  {name:<16} in the queue already: job {', '.join(numbers)}")
    for job in jobs:
        where = (
            f"{job.nodes} x {job.gpus_per_node} GPU"
            if job.gpus_per_node
            else f"{job.nodes} x {job.ranks_per_node} CPU rank"
        )
        links = f", {job.links} links" if job.links > 1 else ""
        print(f"  {job.name:<16} {where:<12} {job.minutes:>5} min{links}  after {', '.join(job.after) or '-'}")
        layout = job_list.layout_line(config, job)
        if layout:
            print(f"  {'':<16} {layout}")
    if RunPaths(run_dir).plan.is_file():
        print(f"  wall times: from {RunPaths(run_dir).plan}")


def submit(args: argparse.Namespace, config: Config, run_dir: Path) -> None:
    """Submit one chain of phases, or say that it is finished."""
    on_slurm = config.cluster.scheduler == "slurm"
    if args.dry_run:
        jobs = _jobs(args, config, run_dir, {})
        show(config, run_dir, jobs, {})
        _show_scripts(config, run_dir, jobs)
        return
    _jobs(args, config, run_dir, {})  # what cannot work is refused before the folder is made
    with locked(run_dir, SUBMIT_PATIENCE_SECONDS if on_slurm else 0.0):
        queued = _queued(run_dir) if on_slurm else {}
        jobs = _jobs(args, config, run_dir, queued)
        show(config, run_dir, jobs, queued)
        if jobs:
            write_config(config, run_dir)
            write_provenance(run_dir, config)
        if jobs and on_slurm:
            _submit_slurm(config, run_dir, jobs, queued)
        elif jobs:
            from launch.local import LocalRun

            LocalRun(config, run_dir, jobs).run()
    if not jobs:
        print("  every phase is done; nothing to submit" if not queued else "  nothing more to submit")
    if (jobs and on_slurm) or queued:
        print(f"watch: python launch/status.py {shlex.quote(str(run_dir))} --watch")
        if args.watch:
            from launch.status import watch

            watch(run_dir)
    else:
        _show_results(run_dir)


def _jobs(
    args: argparse.Namespace, config: Config, run_dir: Path, queued: Mapping[str, list[str]]
) -> list[job_list.Job]:
    phases = select_phases(config.phases, args.phase)
    store_ready = (store_folder(config) / "manifest.json").is_file()
    jobs = job_list.make_jobs(config, run_dir, phases, store_ready, queued)
    for job in jobs:
        job_list.layout_line(config, job)
    return jobs


def _queued(run_dir: Path) -> dict[str, list[str]]:
    """Jobs of an earlier submit that still wait or run."""
    from launch.slurm import still_queued

    path = RunPaths(run_dir).jobs
    return still_queued(json.loads(path.read_text(encoding="utf-8"))) if path.is_file() else {}


def _show_scripts(config: Config, run_dir: Path, jobs: list[job_list.Job]) -> None:
    if config.cluster.scheduler != "slurm":
        return
    from launch.slurm import dependency_of, sbatch_text

    names = {job.name: [f"<{job.name}>"] for job in jobs}
    for job in jobs:
        print(f"\n# ---- {job.name}\n{sbatch_text(config, run_dir, job, dependency_of(job, names, 0)).rstrip()}")


def _submit_slurm(config: Config, run_dir: Path, jobs: list[job_list.Job], queued: Mapping[str, list[str]]) -> None:
    from launch import slurm

    path = RunPaths(run_dir).jobs
    known = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    ids = slurm.submit(config, run_dir, jobs, queued)
    write_json(path, known | {job.name: {"ids": ids[job.name], "after": list(job.after)} for job in jobs})
    for name, numbers in ids.items():
        print(f"  {name:<16} job {', '.join(numbers)}")


def _show_results(run_dir: Path) -> None:
    from hpc_stres.evaluation.table import results_table

    paths = RunPaths(run_dir)
    if paths.results.is_file():
        print("\n" + results_table(json.loads(paths.results.read_text(encoding="utf-8"))))
    if paths.report.is_file():
        print(f"report: {paths.report}")


def main(argv: Sequence[str] | None = None) -> int:
    """Submit; errors are a few lines on stderr and an exit code."""
    args = parse(argv)
    try:
        for split in (1, 2, 3) if args.split == "all" else (None if args.split is None else int(args.split),):
            config = resolve(args, split)
            if config.cluster.scheduler == "slurm" and not args.dry_run:
                from launch.slurm import require_slurm

                require_slurm()
            run_dir = Path(args.run_dir or Path("runs") / Path(args.config).stem).resolve()
            submit(args, config, run_dir / f"split{split}" if args.split == "all" else run_dir)
    except UserError as error:
        if args.debug:
            raise
        print(f"submit.py: {error}", file=sys.stderr)
        return error.code
    return 0


if __name__ == "__main__":
    sys.exit(main())
