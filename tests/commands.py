"""Run every command that README.md and docs/ print, literally, as a new user would: `make test-commands`.

  python -m tests.commands [README.md docs/tutorial.md ...]     --list says what would run, --keep keeps the folder

The commands run in a copy of the checkout whose path has a space and an umlaut, as another user where this one is root,
with a home of its own and no compiler if --no-compiler. Only the configs of the copy are made small; the commands
stay as they are printed. What this machine cannot run (a queue, an hour of tests) is in EXCEPTIONS, each with what is
done in its place and why.
"""

import argparse
import dataclasses
import hashlib
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import yaml

ROOT = Path(__file__).resolve().parent.parent
NOBODY = 65534
LIMIT_SECONDS = 900
# Sizes that are laid over the configs of the copy.
SMALL = {
    "data": {"short_side": 48, "crop": 32, "workers": 2},
    "model": {"stages": [2, 2], "width": 4, "weights": None},
    "training": {
        "engine": "ddp",
        "global_batch": 10,
        "norm_group": 4,
        "max_steps": 4,
        "precision": "float32",
    },
    "evaluation": {"chunks": 5},
}
SMALL_BINDING = {"binding": {"train_videos": 24, "test_videos": 8, "frames": 24, "side": 48}}
QUEUE = {"sbatch", "squeue", "sinfo", "scancel", "srun", "scontrol", "sacct", "sacctmgr"}
COMPILERS = {"g++", "gcc", "c++", "cc", "clang", "clang++"}
ACTIVATE = "source .venv/bin/activate"
DRY = "submits to a queue; tests/slurm runs the chain on one"
# A pattern of a command; what runs in its place (None: nothing); why.
EXCEPTIONS: list[tuple[str, str | None, str]] = [
    (r"make (test|lint|unit|image|image-test|bench|test-commands)\b", None, "a test of its own, longer than this one"),
    (r"python -m pytest|python -m tests\.", None, "a test of its own"),
    (r"python docs/generate\.py", r"\g<0> --check", "writes into the repository"),
    (r"python launch/submit\.py .*ucf101(?!.*--dry-run).*|hpc-stres submit .*ucf101(?!.*--dry-run).*",
     r"\g<0> --dry-run --cluster slurm", DRY),
    (r"(?:[A-Z_]+=\S+ )*sbatch (?:--\S+ \d+ )+(\S+).*", r"bash -n \1", DRY),
    (r"(python launch/status\.py|hpc-stres status) \S*ucf101.*", r"\1 --help", "watches a run in a queue"),
    (r"hpc-stres (bench|reproduce|ablate|study)\b.*", r"hpc-stres \1 --help", "takes minutes to hours"),
    (r"hpc-stres weights fetch.*", "hpc-stres weights --help", "wants a network"),
    (r"hpc-stres submit --config mydata\.yaml.*", r"\g<0> --set training.max_steps=4", "four steps a phase"),
    (r"hpc-stres init mydata .*", r"\g<0> --force", "another page has written it"),
    (r"git clone .*", None, "this is the clone"),
]  # fmt: skip


@dataclasses.dataclass
class Command:
    """A printed line, and what is run for it."""

    page: str
    line: str
    run: str | None
    why: str = ""


def shell_blocks(text: str) -> list[str]:
    """What stands in blocks of shell commands."""
    return re.findall(r"^```(?:sh|bash|console)\n(.*?)^```", text, re.MULTILINE | re.DOTALL)


def printed_lines(text: str) -> list[str]:
    """Each printed command; a line that ends in a backslash is continued by the next."""
    joined = "\n".join(shell_blocks(text)).replace("\\\n", " ")
    return [
        line for line in joined.splitlines() if line.strip() and not line.lstrip().startswith("#")
    ]


def plan(page: str, text: str) -> list[Command]:
    """What is run for each line of a page."""
    commands = []
    for line in printed_lines(text):
        bare = re.sub(r"\s+#\s.*$", "", line).strip()
        for pattern, instead, why in EXCEPTIONS:
            match = re.match(pattern, bare)
            if match:
                commands.append(
                    Command(page, bare, match.expand(instead) if instead else None, why)
                )
                break
        else:
            commands.append(Command(page, bare, bare))
    return commands


def pages(names: list[str]) -> list[Path]:
    """The pages that were named, or all."""
    every = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
    return (
        [ROOT / name for name in names]
        if names
        else [page for page in every if not page.name.endswith(".in.md")]
    )


def copy_checkout(to: Path) -> None:
    """The files that git knows, with small configs."""
    command = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    listed = subprocess.run(command, cwd=ROOT, capture_output=True, check=True)
    for name in filter(None, listed.stdout.decode().split("\0")):
        if (ROOT / name).is_file():
            (to / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / name, to / name)
    for path in sorted((to / "configs").glob("*.yaml")):
        config = yaml.safe_load(path.read_text(encoding="utf-8"))
        path.write_text(yaml.safe_dump(small(config), sort_keys=False), encoding="utf-8")


def small(config: dict) -> dict:
    """A config with small sizes in place of its own."""
    made = {**config}
    is_trained = config["data"]["kind"] in ("binding", "folder")
    for section, values in SMALL.items() if is_trained else [("model", SMALL["model"])]:
        made[section] = {**(config.get(section) or {}), **values}
    if made["data"].get("kind") == "binding":
        made["data"] |= SMALL_BINDING
    for phase in (made.get("phases") or {}).values():
        (phase.get("optimise") or {}).pop("schedule", None)
    return made


def interpreter(user: int | None) -> str:
    """A Python of this version that the user may run."""
    names = [
        sys._base_executable,
        shutil.which(f"python3.{sys.version_info.minor}", path="/usr/bin:/usr/local/bin"),
    ]
    for name in filter(None, names):
        try:
            subprocess.run(
                [name, "-c", "import venv"], user=user, capture_output=True, check=True, cwd="/"
            )
        except (OSError, subprocess.CalledProcessError):
            continue  # in a folder that is closed to this user
        return str(name)
    return ""


def make_environment(python: str, venv: Path, checkout: Path) -> None:
    """An environment in which env/setup.sh finds everything installed: it borrows this one's packages."""
    subprocess.run([python, "-m", "venv", "--without-pip", str(venv)], check=True)
    borrowed = [path for path in sys.path if path.endswith("site-packages")]
    (library,) = venv.glob("lib/python*/site-packages")
    (library / "borrowed.pth").write_text(
        "\n".join([str(checkout), *borrowed]) + "\n", encoding="utf-8"
    )
    for name, module in (("hpc-stres", "hpc_stres"), ("torchrun", "torch.distributed.run")):
        script = venv / "bin" / name
        script.write_text(
            f'#!/bin/sh\nexec {shlex.quote(str(venv / "bin" / "python"))} -m {module} "$@"\n',
            "utf-8",
        )
        script.chmod(0o755)
    locks = [
        checkout / "env" / "requirements.lock",
        *sorted((checkout / "env").glob("dali-cuda*.lock")),
    ]
    content = b"".join(path.read_bytes() for path in [*locks, checkout / "pyproject.toml"])
    stamp = f"{hashlib.sha256(content).hexdigest()} {checkout}"
    (venv / ".hpc_stres-stamp").write_text(stamp, encoding="utf-8")


def run_page(
    commands: list[Command], checkout: Path, user: int | None, home: Path, tools: str,
    limit: float = LIMIT_SECONDS,
) -> list[str]:  # fmt: skip
    """Run a page's commands one after another in one shell's environment; a line for each that failed."""
    failed, before = [], ":"
    if not any(command.run == ACTIVATE for command in commands):
        # A page that does not say so is read by somebody who has done it, by the README.
        before = ACTIVATE
    environment = {
        "PATH": tools, "HOME": str(home), "LANG": "C.UTF-8", "OMP_NUM_THREADS": "1", "TMPDIR": str(home),
        "OMPI_MCA_rmaps_base_oversubscribe": "1", "PRTE_MCA_rmaps_default_mapping_policy": ":oversubscribe",
    }  # fmt: skip
    for command in commands:
        if command.run is None:
            print(f"  left out   {command.line}   ({command.why})", flush=True)
            continue
        if command.run.startswith(("source ", "export ", "cd ")):
            before += f"\n{command.run}"
        begun = time.monotonic()
        words = ["bash", "-ec", f"{before}\n{command.run}"]
        code, output = run_limited(words, limit, cwd=checkout, env=environment, user=user)
        took = time.monotonic() - begun
        state = "ok    " if code == 0 else "FAILED"
        instead = f"   (as: {command.run}: {command.why})" if command.run != command.line else ""
        print(f"  {state} {took:5.0f} s  {command.line}{instead}", flush=True)
        if code != 0:
            tail = "\n".join(output.strip().splitlines()[-8:])
            failed.append(f"{command.page}: {command.run}\n{tail}")
    return failed


def run_limited(words: list[str], limit: float, user: int | None, **where) -> tuple[int, str]:
    """Exit status and output; a command that takes too long is ended with all that it started, and has failed."""
    process = subprocess.Popen(
        words, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors="replace", user=user,
        group=user, extra_groups=[] if user else None, start_new_session=True, **where,
    )  # fmt: skip
    try:
        output, _ = process.communicate(timeout=limit)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        output, _ = process.communicate()
        return 124, f"{output}\nended after {limit:.0f} seconds"
    return process.returncode, output


def own_videos(checkout: Path) -> None:
    """Small videos where configs/own_data.yaml expects the user's: two classes of six."""
    sys.path.insert(0, str(ROOT))
    import numpy as np

    from hpc_stres.prepare.video import write_video

    draw = np.random.default_rng(1)
    for label in ("jump", "walk"):
        folder = checkout / "data" / "mine" / "videos" / label
        folder.mkdir(parents=True)
        for number in range(6):
            picture = draw.integers(0, 256, (48, 64, 3), np.uint8)
            step = 1 if label == "jump" else -2
            write_video(
                folder / f"clip{number}.avi", [np.roll(picture, step * n, 1) for n in range(20)], 25
            )


def main() -> int:
    """Run the pages; exit status 1 if a command failed."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("pages", nargs="*", help="pages (default: README.md and docs/)")
    parser.add_argument("--list", action="store_true", help="print what would run")
    parser.add_argument("--keep", action="store_true", help="keep the folder")
    parser.add_argument("--no-compiler", action="store_true", help="as on a machine without g++")
    parser.add_argument(
        "--limit", type=float, default=LIMIT_SECONDS, metavar="SECONDS", help="most for one command"
    )
    args = parser.parse_args()
    planned = {
        page: plan(str(page.relative_to(ROOT)), page.read_text("utf-8"))
        for page in pages(args.pages)
    }
    if args.list:
        for command in (command for commands in planned.values() for command in commands):
            print(
                f"{command.page}: {command.run or '-'}"
                + (f"   ({command.why})" if command.why else "")
            )
        return 0
    user = NOBODY if os.geteuid() == 0 else None
    python = interpreter(user)
    if not python:
        print(f"no Python here that user {user} may run: as this user instead", flush=True)
        user, python = None, interpreter(None)
    base = Path(tempfile.mkdtemp(prefix="commands-"))
    failed: list[str] = []
    try:
        checkout, home = base / "für alle" / "hpc stres", base / "home"
        checkout.mkdir(parents=True)
        home.mkdir()
        copy_checkout(checkout)
        own_videos(checkout)
        make_environment(python, checkout / ".venv", checkout)
        tools = link_tools(base, args.no_compiler)
        base.chmod(0o755)
        if user is not None:
            subprocess.run(["chown", "-R", f"{user}:{user}", str(base)], check=True)
        for page, commands in planned.items():
            if commands:
                print(page.relative_to(ROOT), flush=True)
                failed += run_page(commands, checkout, user, home, tools, args.limit)
    finally:
        print(f"kept: {base}") if args.keep else shutil.rmtree(base, ignore_errors=True)
    for text in failed:
        print(f"\n{text}", file=sys.stderr)
    return 1 if failed else 0


def link_tools(base: Path, no_compiler: bool) -> str:
    """A folder of links to the programs of this machine: but for those of a queue, and perhaps of compilers."""
    folder = base / "bin"
    folder.mkdir()
    left_out = QUEUE | (COMPILERS if no_compiler else set())
    for place in ("/usr/local/bin", "/usr/bin", "/bin"):
        for path in Path(place).iterdir():
            bare = re.sub(r"-\d+$", "", path.name).rsplit("-", 1)[-1]
            link = folder / path.name
            if bare not in left_out and not link.is_symlink():
                link.symlink_to(path)
    return str(folder)


if __name__ == "__main__":
    sys.exit(main())
