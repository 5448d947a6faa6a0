"""Videos as strangers have them, through every command: each ends in success or in a sentence with a remedy.

  python -m tests.campaigns.strangers                      all layouts; minutes
  python -m tests.campaigns.strangers --layouts classes,table --keep

Made here: a video in every container and codec that this PyAV writes, with variable frame rates, rotations, sound,
ten bits, grey, odd sizes, one frame, letters of any kind in names, and beside them what finders, archivers and broken
downloads leave. A line a command; the command fails where an exit status or a text is none of the allowed.
"""

import argparse
import csv
import os
import shutil
import sys
import tempfile
from pathlib import Path

from tests.campaigns.strangers_files import CLASSES, KINDS, breakage, litter, make_classes
from tests.conftest import ROOT, run_python

MOST_LINES, MOST_LETTERS = 4, 1500
# What no user should meet.
FORBIDDEN = ("Traceback", "unexpected ", "Segmentation", "core dumped")
QUICK = [
    "--set", "training.max_steps=2", "--set", "training.global_batch=4", "--set", "training.norm_group=2",
    "--set", "training.engine=ddp",
]  # fmt: skip


class Report:
    """What each command came to."""

    def __init__(self):
        self.wrong = 0

    def run(self, what, cwd, *words, allowed=(0,), says=""):
        """One command of ours; its output is looked at by the rule."""
        done = run_python(
            "-m", "hpc_stres", *words, cwd=cwd, env={"COLUMNS": "100", "PYTHONPATH": str(ROOT)}
        )
        said = done.stderr.strip()
        faults = [word for word in FORBIDDEN if word in done.stdout + said]
        if done.returncode not in allowed:
            faults.append(f"exit {done.returncode}")
        if says not in done.stdout + said:
            faults.append(f"does not say {says!r}")
        if done.returncode in (1, 2):
            own = [line for line in said.splitlines() if not line.startswith("hpc_stres: ")]
            if not own or len(own) > MOST_LINES + 4 or len(said) > MOST_LETTERS:
                faults.append(f"{len(own)} lines of errors")
        self.wrong += bool(faults)
        short = " / ".join(said.splitlines()[-3:])[-300:] if done.returncode else ""
        print(
            f"{'WRONG ' + ', '.join(faults) if faults else 'ok'}: {what}: exit {done.returncode} {short}",
            flush=True,
        )
        if faults:
            print("    " + "\n    ".join((done.stdout + said).splitlines()[-12:]), flush=True)
        return done


def through(report, base, name, videos, *more, allowed=(0,), says=""):
    """init, config, prepare and a dry run for a folder of videos."""
    home = base / "work"
    home.mkdir(exist_ok=True)
    root = base / f"store of {name}"
    done = report.run(
        f"{name}: init", home, "init", name, "--videos", videos, "--root", root, "--size", "small", *more,
        allowed=allowed, says=says,
    )  # fmt: skip
    if done.returncode:
        return None
    config = home / f"{name}.yaml"
    report.run(f"{name}: config", home, "config", "--config", config)
    report.run(
        f"{name}: dry run", home, "submit", "--config", config, "--dry-run", "--cluster", "local"
    )
    return config


def trained(report, base, name, config, videos):
    """The chain and what comes after it."""
    home, run = base / "work", base / "runs of mine" / name
    report.run(
        f"{name}: prepare", home, "prepare", "--config", config, "--set", "data.max_rejected=0.5"
    )
    report.run(f"{name}: verify", home, "verify", "--config", config)
    more = ["--set", "data.max_rejected=0.5", "--set", "evaluation.allow_missing=true", *QUICK]
    done = report.run(
        f"{name}: submit",
        home,
        "submit",
        "--config",
        config,
        "--cluster",
        "local",
        "--run-dir",
        run,
        *more,
    )
    if done.returncode:
        return
    report.run(f"{name}: evaluate", home, "evaluate", "--run-dir", run, allowed=(0, 1))
    report.run(f"{name}: report", home, "report", "--run-dir", run)
    files = sorted(
        p for p in videos.rglob("*") if p.suffix and not p.is_dir() and not p.name.startswith(".")
    )
    report.run(
        f"{name}: predict", home, "predict", "--run-dir", run, "--quick", "--", *files, allowed=(1,)
    )
    for path in files:
        report.run(f"{name}: predict {path.name}", home, "predict", "--run-dir", run, "--json", "--over-time",
                   "--save", base / "saved", "--", path, allowed=(0, 1))  # fmt: skip
    for layout in ("streams", "actionformer", "mstcn"):
        report.run(f"{name}: features {layout}", home, "features", run, videos, "--out", base / f"features {layout}",
                   "--layout", layout, allowed=(0, 1))  # fmt: skip
    report.run(f"{name}: export", home, "export", "--run-dir", run, "--out", base / "ex port")
    report.run(
        f"{name}: predict by export",
        home,
        "predict",
        "--model",
        base / "ex port",
        files[0],
        allowed=(0, 1),
    )
    report.run(f"{name}: doctor", home, "doctor")


def layout_classes(report, base):
    videos = base / "vidéos 'of' mine" / "a"
    missing = make_classes(videos)
    print(*(f"  cannot be encoded here: {line}" for line in missing), sep="\n")
    litter(videos)
    config = through(report, base, "classes", videos)
    trained(report, base, "classes", config, videos)


def layout_broken(report, base):
    videos = base / "broken" / "a"
    make_classes(videos, KINDS[:6])
    breakage(videos)
    config = through(report, base, "broken", videos)
    if config:
        for name in ("nowhere.mp4", "second name.mp4"):
            report.run(
                f"broken, {name}: submit refuses", base, "submit", "--config", config,
                "--cluster", "local", allowed=(1,), says=name,
            )  # fmt: skip
            report.run(
                f"broken, {name}: prepare refuses", base, "prepare", "--config", config,
                allowed=(1,), says=name,
            )  # fmt: skip
            (videos / CLASSES[1] / name).unlink()
        report.run("broken: prepare refuses", base, "prepare", "--config", config, allowed=(1,))
        trained(report, base, "broken", config, videos)


def layout_split(report, base):
    for names in (("train", "test"), ("Train", "Val"), ("training", "validation", "testing")):
        videos = base / "split" / "-".join(names)
        for name in names:
            make_classes(videos / name, KINDS[:3], 1)
        config = through(report, base, f"split_{names[1]}_{len(names)}", videos)
        if config:
            report.run(f"split {names}: prepare", base, "prepare", "--config", config)
    report.run(
        "split: folds of a split",
        base,
        "init",
        "f",
        "--videos",
        videos,
        "--folds",
        "3",
        allowed=(1, 2),
    )


def layout_table(report, base):
    videos = base / "table" / "videos"
    make_classes(videos, KINDS[:3], 3)
    rows = [[str(p.relative_to(videos)), p.parent.name, ("train", "test")[n % 3 == 0]]
            for n, p in enumerate(sorted(videos.rglob("*.*")))]  # fmt: skip
    for name, head, delimiter, encoding, ends in (
        ("comma", ["path", "label", "split"], ",", "utf-8", "\n"),
        ("semicolon_bom", ["Path", "Label", "Split"], ";", "utf-8-sig", "\r\n"),
        ("tab_utf16", ["path", "label", "split"], "\t", "utf-16", "\r\n"),
        ("spaced", [" path", " label ", " split"], ",", "utf-8", "\r"),
    ):
        table = base / "table" / f"{name}.csv"
        with table.open("w", encoding=encoding, newline="") as stream:
            csv.writer(stream, delimiter=delimiter, lineterminator=ends).writerows([head, *rows])
        config = through(report, base, f"table_{name}", videos, "--lists", table)
        if config:
            report.run(f"table {name}: prepare", base, "prepare", "--config", config)
    bad = base / "table" / "bad.csv"
    for what, text in (
        ("no header", "\n".join(f'"{path}",{label},{split}' for path, label, split in rows)),
        ("empty", ""),
        ("header only", "path,label,split\n"),
        ("other columns", "video,class\na,b\n"),
        ("missing", "path,label,split\nnone.mp4,a,train\nno.mp4,a,test\n"),
        ("latin-1", "path,label,split\n\xdcbung.mp4,a,train\n"),
        ("words", "path,label,split\na.mp4,a,maybe\n"),
        ("nul", "path,label,split\na\0.mp4,a,train\n"),
        ("no split", "path,label\na.mp4,a\n"),
    ):
        bad.write_bytes(text.encode("latin-1" if what == "latin-1" else "utf-8"))
        done = report.run(f"table, {what}", base, "init", "bad", "--videos", videos, "--lists", bad, "--force",
                          allowed=(0, 1, 2))  # fmt: skip
        if done.returncode == 0:
            report.run(f"table, {what}: dry run", base, "submit", "--config", base / "bad.yaml", "--dry-run",
                       "--cluster", "local", allowed=(0, 1))  # fmt: skip
            report.run(
                f"table, {what}: prepare",
                base,
                "prepare",
                "--config",
                base / "bad.yaml",
                allowed=(1,),
            )


def layout_wrong(report, base):
    """Folders that are no data set."""
    one, home = base / "one", base / "wrong"
    make_classes(one, KINDS[:1], 1)
    home.mkdir()
    cases = {
        "nothing": home / "nothing",
        "file": home / "file",
        "empty": home / "empty",
        "flat": home / "flat",
    }
    cases["file"].write_text("x", encoding="utf-8")
    cases["empty"].mkdir()
    cases["flat"].mkdir()
    source = next(one.rglob("*.avi"))
    for number in range(3):
        shutil.copy(source, cases["flat"] / f"{number}.avi")
    for name, count in (("one video a class", 1), ("one class", 5)):
        cases[name] = home / name
        for label in ("a", "b")[: 2 if count == 1 else 1]:
            for number in range(count):
                (cases[name] / label).mkdir(parents=True, exist_ok=True)
                shutil.copy(source, cases[name] / label / f"{number}.avi")
    cases["lonely"] = home / "lonely"
    shutil.copytree(cases["one class"], cases["lonely"])
    (cases["lonely"] / "b").mkdir()
    shutil.copy(source, cases["lonely"] / "b" / "only.avi")
    cases["empty class"] = home / "empty class"
    shutil.copytree(cases["one class"], cases["empty class"])
    (cases["empty class"] / "b").mkdir()
    cases["pictures"] = home / "pictures" / "a"
    cases["pictures"].mkdir(parents=True)
    (cases["pictures"] / "x.jpg").write_bytes(b"\xff\xd8")
    cases["all broken"] = home / "all broken"
    for label in "ab":
        (cases["all broken"] / label).mkdir(parents=True)
        for number in range(3):
            (cases["all broken"] / label / f"{number}.mp4").write_bytes(b"no video")
    cases["not utf-8"] = home / "not utf-8"
    for label in "ab":
        (cases["not utf-8"] / label).mkdir(parents=True)
        for number in range(2):
            shutil.copy(
                source, os.fsencode(cases["not utf-8"] / label) + b"/caf\xe9%d.avi" % number
            )
    for number, (name, place) in enumerate(cases.items()):
        done = report.run(f"{name}: init", base, "init", f"wrong{number}", "--videos", place, "--root", base / "stores",
                          allowed=(0, 1, 2))  # fmt: skip
        if done.returncode == 0:
            config = base / f"wrong{number}.yaml"
            report.run(f"{name}: prepare", base, "prepare", "--config", config, allowed=(0, 1))
            report.run(f"{name}: train", base, "train", "--config", config, "--phase", "motion", "--run-dir",
                       base / f"run{number}", *QUICK, allowed=(0, 1))  # fmt: skip


def main():
    """All layouts that were asked for."""
    made = {
        name.removeprefix("layout_"): value
        for name, value in globals().items()
        if name.startswith("layout_")
    }
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--layouts", default=",".join(made))
    parser.add_argument("--keep", action="store_true", help="keep the folder")
    args = parser.parse_args()
    os.environ["SVT_LOG"] = "0"
    report, base = Report(), Path(tempfile.mkdtemp(prefix="strangers-"))
    try:
        for name in args.layouts.split(","):
            made[name](report, base)
    finally:
        print(f"kept: {base}") if args.keep else shutil.rmtree(base, ignore_errors=True)
    print(f"{report.wrong} wrong")
    return 1 if report.wrong else 0


if __name__ == "__main__":
    sys.exit(main())
