"""Submit the phases of a run as dependent jobs, on Slurm or on this machine.

  python launch/submit.py --config configs/binding.yaml --phase all --cluster local
  python launch/submit.py --config configs/ucf101.yaml --nodes 4 --gpus-per-node 4 --phase all
  python launch/submit.py --config configs/ucf101.yaml --nodes 4 --split all --seeds 1,2,3 --at-once 4
  python launch/submit.py --cancel runs/ucf101

Phases that are done or in the queue are not submitted again; the same command
resumes after a failure, a time-out or a kill, and looks first for what the
scheduler has. --dry-run prints the jobs, the cut of each global batch and the
sbatch scripts, and submits nothing. --split all and --seeds submit several
runs as one job array a phase. --cancel ends all jobs of a run, or of the
folder of several.

Exit status: 0 submitted (or nothing to do), 1 failed (a scheduler that does
not answer, a failed job), 2 wrong command line or config, 130 interrupted.
"""

import argparse
import os
import shutil
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from hpc_stres import SOURCES
from hpc_stres.config.cluster import ClusterConfig
from hpc_stres.config.loading import CONFIGS, load_config
from hpc_stres.config.schema import Config
from hpc_stres.errors import ConfigError, UserError, explained

if TYPE_CHECKING:
    from hpc_stres.launch.study import Study

INTERRUPTED = 130
MOST_SPLITS = 99


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The command line, of `hpc-stres submit` and of launch/submit.py."""
    parser.add_argument(
        "--config",
        metavar="F",
        default=str(CONFIGS / "binding.yaml"),
        help="config (default: the demo)",
    )
    parser.add_argument("--nodes", type=int, metavar="N", help="nodes of a training job")
    parser.add_argument(
        "--gpus-per-node", type=int, metavar="G", help="GPUs of a node, one rank each"
    )
    parser.add_argument("--phase", default="all", help="all, or names with commas between")
    parser.add_argument(
        "--cluster", default="auto", help="auto, slurm, local, or a profile of configs/clusters"
    )
    parser.add_argument(
        "--set",
        metavar="K=V",
        action="append",
        default=[],
        dest="overrides",
        help="override a value",
    )
    parser.add_argument("--run-dir", metavar="D", help="run folder (default: runs/NAME_OF_CONFIG)")
    parser.add_argument(
        "--split", metavar="N", help="number of a split, or all: a run folder for each"
    )
    parser.add_argument(
        "--seeds", metavar="1,2,3", help="a run folder for each of these seeds, and for each split"
    )
    parser.add_argument(
        "--at-once", type=int, metavar="N", help="of several runs, the most jobs that run at once"
    )
    parser.add_argument(
        "--allow-cpu", action="store_true", help="train on CPUs what would take them weeks"
    )
    parser.add_argument(
        "--adopt-code", action="store_true", help="resume with newer code than the run began with"
    )
    parser.add_argument(
        "--remove-old-code", metavar="RUNS",
        help="remove copies of code under this folder of runs that none of them names, and submit nothing",
    )  # fmt: skip
    parser.add_argument("--dry-run", action="store_true", help="print what would be submitted")
    parser.add_argument(
        "--watch", action="store_true", help="on Slurm: watch the jobs after submitting them"
    )
    parser.add_argument(
        "--cancel", metavar="RUN", help="end all jobs of this run folder, and submit nothing"
    )
    parser.add_argument(
        "--forget", metavar="ID,ID", default="",
        help="jobs that you are certain have ended, where no scheduler can say so any more (or all)",
    )  # fmt: skip


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    """The command line of launch/submit.py."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add_arguments(parser)
    parser.add_argument("--debug", action="store_true", help="show the traceback of an error")
    return parser.parse_args(argv)


def resolve(args: argparse.Namespace, split: int | None, seed: int | None = None) -> Config:
    """The config with the command line laid over it."""
    overrides = list(args.overrides)
    for key, value in (("nodes", args.nodes), ("gpus_per_node", args.gpus_per_node)):
        overrides += [f"cluster.{key}={value}"] if value is not None else []
    overrides += [f"data.split={split}"] if split is not None else []
    overrides += [f"seed={seed}"] if seed is not None else []
    return load_config(args.config, overrides, profile_of(args.cluster))


def profile_of(cluster: str) -> str:
    """The profile that --cluster names; `auto` is Slurm where there is one."""
    if cluster != "auto":
        return cluster
    return "slurm" if shutil.which("sbatch") else "local"


def run(args: argparse.Namespace) -> int:
    """Cancel a run, or submit one chain of phases, or one for each split; the exit status."""
    try:
        with submitting(args.cancel or args.run_dir or "the run folder", args.debug):
            _run(args)
    except KeyboardInterrupt:
        print(
            "submit: interrupted; what was submitted stays in the queue\n"
            "The same command resumes; --cancel RUN ends what is there.", file=sys.stderr,
        )  # fmt: skip
        return INTERRUPTED
    return 0


@contextmanager
def submitting(place: str, debug: bool) -> Iterator[None]:
    """Jobs find this package, and what the disk refuses is a sentence: for every
    command that submits."""
    # Jobs import this package as well, from wherever they run.
    os.environ["PYTHONPATH"] = os.pathsep.join(
        [str(SOURCES), *filter(None, [os.environ.get("PYTHONPATH")])]
    )
    try:
        yield
    except OSError as error:
        if debug:
            raise
        where = error.filename or place
        raise UserError(f"{where}: {error.strerror or error}\nThe same command resumes.") from None


def refuse_without_scheduler(cluster: ClusterConfig, is_dry_run: bool) -> None:
    """Where jobs go to Slurm, its commands must be there; a dry run needs none."""
    if cluster.scheduler == "slurm" and not is_dry_run:
        from hpc_stres.launch.slurm import require_slurm

        require_slurm()


def _run(args: argparse.Namespace) -> None:
    from hpc_stres.launch.chain import Request, preview, share_a_store, submit
    from hpc_stres.launch.study import Study

    if args.cancel is not None:
        from hpc_stres.launch.cancel import cancel_run

        cancel_run(Path(args.cancel).absolute())
        return
    if args.remove_old_code is not None:
        from hpc_stres.launch.code import remove_old_code

        remove_old_code(Path(args.remove_old_code).resolve())
        return
    root = Path(args.run_dir or Path("runs") / Path(args.config).stem).resolve()
    if root.exists() and not root.is_dir():
        raise ConfigError(f"--run-dir {root}: this is a file; name a folder")
    made = {root / name: resolve(args, split, seed) for name, (split, seed) in _runs(args).items()}
    configs = list(made.values())
    refuse_without_scheduler(configs[0].cluster, args.dry_run)
    together = list(made) != [root]
    group = root if together and share_a_store(configs) else None
    requests = [
        Request(config, folder, args.phase, group, args.forget, args.allow_cpu, args.adopt_code)
        for folder, config in made.items()
    ]
    if together:
        submit_together(Study(root, requests, args.at_once), args.dry_run)
    elif args.dry_run:
        preview(requests)
    else:
        submit(requests[0])
    if args.watch and not args.dry_run and configs[0].cluster.scheduler == "slurm":
        from hpc_stres.launch.status import watch

        watch([request.run_dir for request in requests])


def submit_together(study: "Study", is_dry_run: bool) -> None:
    """Submit several runs, or print what would be submitted."""
    from hpc_stres.launch.chain import preview
    from hpc_stres.launch.study import preview_study, submit_study

    if study.at_once is not None and study.at_once < 1:
        raise ConfigError(f"--at-once {study.at_once}: expected 1 or more")
    if not is_dry_run:
        submit_study(study)
    elif study.requests[0].config.cluster.scheduler == "slurm":
        preview_study(study)
    else:
        preview(study.requests)


def _runs(args: argparse.Namespace) -> dict[str, tuple[int | None, int | None]]:
    """Split and seed of each run, by the name of its folder under that of the submission."""
    seeds = [None] if args.seeds is None else list(seeds_of(args.seeds))
    splits = _splits(args)
    every = args.split == "all"
    return {
        "/".join(
            [*([f"seed{seed}"] if seed is not None else []), *([f"split{split}"] if every else [])]
        ): (split, seed)
        for seed in seeds
        for split in splits
    }


def seeds_of(text: str) -> tuple[int, ...]:
    """The numbers of --seeds."""
    words = [word.strip() for word in text.split(",") if word.strip()]
    is_numbers = all(word.isascii() and word.isdigit() for word in words)
    if not words or not is_numbers or len({int(word) for word in words}) < len(words):
        raise ConfigError(f"--seeds {text}: expected different whole numbers with commas between")
    return tuple(map(int, words))


def _splits(args: argparse.Namespace) -> list[int | None]:
    """The splits of the command line; for `all` those that the data set has."""
    from hpc_stres.store.listing import splits_of

    if args.split is None:
        return [None]
    if args.split == "all":
        return list(splits_of(resolve(args, None)))
    if not args.split.isdecimal() or not 1 <= int(args.split) <= MOST_SPLITS:
        raise ConfigError(f"--split {args.split}: expected the number of a split, or all")
    return [int(args.split)]


def main(argv: Sequence[str] | None = None) -> int:
    """What launch/submit.py calls; errors are a few lines on stderr and an exit code."""
    args = parse(argv)
    try:
        return run(args)
    except UserError as error:
        if args.debug:
            raise
        print(f"submit.py: {error}", file=sys.stderr)
        return error.code
    except Exception as error:
        if args.debug:
            raise
        print(f"submit.py: {explained(error)}", file=sys.stderr)
        return 1
