"""Look at videos of your own and write a config for them: kind, splits, strides, schedules,
weights, and the cost.

  hpc-stres init mydata --videos DIR                        writes mydata.yaml in this folder
  hpc-stres init mydata --videos DIR --lists videos.csv     a table (path, label, split), or a folder of text lists
  hpc-stres init mydata --videos DIR --folds 5              five splits, each recording tested in one of them
  hpc-stres init mydata --videos DIR --from runs/ucf101     fine-tune a run, an export or a published file
  hpc-stres init mydata --videos DIR --from runs/ucf101 --trainable head

DIR holds one folder a class, or folders train/CLASS and test/CLASS, or a table or lists beside the
videos. The config has absolute paths and works from any folder. Where there is neither Slurm nor a
GPU it is made for a small network that trains in minutes (`--size full` for the published one).
"""

import argparse
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from hpc_stres.config.schema import Config
    from hpc_stres.prepare.look import Look
    from hpc_stres.tools.new_config import Choice

DEFAULT_WEIGHTS = "resnet50"
# Values of `model` that weights of another run want as they are.
SIZES = ("depth", "stages", "width", "variant")
# Short side of the frames that a small network is made for.
SMALL_SIDE = 64


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("name", metavar="NAME", help="name of the config, and of its runs")
    parser.add_argument("--videos", metavar="DIR", required=True, help="folder of the videos")
    parser.add_argument(
        "--lists",
        metavar="FILE",
        help="table of videos, or folder of lists (default: found in DIR)",
    )
    parser.add_argument(
        "--folds",
        type=int,
        default=1,
        metavar="K",
        help="splits of a folder of classes (default: 1)",
    )
    parser.add_argument(
        "--root", metavar="DIR", default="data", help="where stores are kept (default: %(default)s)"
    )
    parser.add_argument("--out", metavar="FILE", help="config to write (default: NAME.yaml)")
    parser.add_argument("--force", action="store_true", help="replace a config that is there")
    parser.add_argument(
        "--size", default="auto", choices=["auto", "full", "small"], help="of the networks"
    )
    parser.add_argument(
        "--from",
        "--init-from",
        dest="source",
        metavar="RUN|FILE",
        help="run, phase, export, file or name to fine-tune",
    )
    parser.add_argument(
        "--trainable",
        default="all",
        choices=["all", "temporal", "last_stage", "head"],
        help="what fine-tuning moves",
    )
    parser.add_argument(
        "--from-scratch", action="store_true", help="random first weights in place of ImageNet's"
    )


def run(args: argparse.Namespace) -> int:
    from hpc_stres.config.loading import load_config
    from hpc_stres.errors import UserError
    from hpc_stres.run.paths import write_text
    from hpc_stres.tools.new_config import takes, text_of

    target = _target(args)
    choice, look = _choose(args)
    text = text_of(choice, look)
    config = _checked(text, target)
    for line in look.lines():
        print(line)
    try:
        write_text(target, text)
    except OSError as error:
        raise UserError(
            f"{target}: cannot be written: {error.strerror}\nName another place with --out."
        ) from None
    config = load_config(target)
    print(f"\nwritten: {target}")
    for line in [*_said(choice, config), *takes(config, look, choice.is_small)]:
        print(f"  {line}")
    print("\nnext:")
    for line in _next_steps(choice, target):
        print(f"  {line}")
    return 0


def _target(args: argparse.Namespace) -> Path:
    from hpc_stres.errors import ConfigError

    name = Path(args.name).name.removesuffix(".yaml")
    if (
        not name
        or not all(letter.isalnum() or letter in "._-" for letter in name)
        or name.startswith((".", "-"))
    ):
        raise ConfigError(f"NAME {args.name!r:.60}: expected letters, digits, - and _")
    target = Path(args.out or Path(args.name).with_name(f"{name}.yaml")).absolute()
    if target.exists() and not args.force:
        raise ConfigError(
            f"{target} is there already\nGive another name or --out, or replace it with --force."
        )
    return target


def _choose(args: argparse.Namespace) -> "tuple[Choice, Look]":
    """Look at the videos and at this machine, and decide."""
    from hpc_stres.config.schema import DataConfig
    from hpc_stres.errors import ConfigError
    from hpc_stres.prepare.look import find_kind, look, read
    from hpc_stres.store.location import Settings
    from hpc_stres.tools.new_config import Choice

    videos, root = (
        Path(args.videos).expanduser().absolute(),
        Path(args.root).expanduser().absolute(),
    )
    kind, lists = find_kind(
        videos, Path(args.lists).expanduser().absolute() if args.lists else None
    )
    if args.folds < 1 or (args.folds > 1 and kind != "folder"):
        raise ConfigError(
            f"--folds {args.folds}: expected 1 or more, and folders of classes; lists give their splits"
        )
    data = DataConfig(
        kind=kind,
        root=str(root),
        videos=str(videos),
        lists=None if lists is None else str(lists),
        folds=args.folds,
    )
    listing = read(data)
    model, starts, weights = _first_weights(args, root)
    has_cluster = bool(shutil.which("sbatch") or shutil.which("nvidia-smi"))
    frames = _frames_of(args.source)
    # What learned on small frames is fine-tuned on such frames, with schedules made for them.
    is_small = args.size == "small" or (
        args.size == "auto"
        and (frames[0] <= SMALL_SIDE if frames else not has_cluster and args.source is None)
    )
    choice = Choice(
        name=Path(args.name).name, kind=kind, root=root, videos=videos, lists=lists, folds=args.folds,
        is_small=is_small, precision="bfloat16" if has_cluster and not is_small else "float32",
        weights=None if is_small else weights, starts=starts, trainable=args.trainable, model=model,
        frames=frames,
    )  # fmt: skip
    short_side = SMALL_SIDE if is_small else DataConfig().short_side
    settings = Settings(
        frames[0] if frames else short_side, data.jpeg_quality, data.flow_backend, data.flow_pyramid
    )
    return choice, look(listing, settings, data.max_pixels)


def _first_weights(
    args: argparse.Namespace, root: Path
) -> tuple[dict[str, Any], dict[str, str], str | None]:
    """Values of `model`, weights of single phases, and `model.weights`."""
    from hpc_stres.config.places import is_published_name
    from hpc_stres.errors import ConfigError
    from hpc_stres.models.published_weights import by_name
    from hpc_stres.run.starts import find_start, published_path

    if args.trainable != "all" and args.source is None:
        raise ConfigError(
            f"--trainable {args.trainable}: expected --from as well: only trained weights are kept"
        )
    if args.source is None:
        weights = None if args.from_scratch else str(published_path(DEFAULT_WEIGHTS, str(root)))
        return {}, {}, weights
    if is_published_name(args.source):
        by_name(args.source)  # refuses a word that is none, with the nearest
        start = find_start(args.source, "motion", "motion", str(root))
        phases = ("motion", "appearance")
        return _sizes_of(start.path), dict.fromkeys(phases, str(start.path)), None
    source = Path(args.source).expanduser().absolute()
    starts = _starts_of(source, str(root))
    name, path = next(iter(starts.items()))
    model = _model_of(source) or _sizes_of(find_start(str(path), name, name, str(root)).path)
    return (
        model,
        {name: str(path) for name, path in starts.items()},
        None,
    )


def _starts_of(source: Path, root: str) -> dict[str, Path]:
    """The weights of the two streams: of a run's phases, or of one file for both."""
    from hpc_stres.errors import UserError
    from hpc_stres.run.starts import find_start

    if (source / "phases").is_dir():
        starts = {}
        for phase in ("motion", "appearance"):
            if (source / "phases" / phase / "done.json").is_file():
                find_start(str(source / "phases" / phase), phase, phase, root)
                starts[phase] = source / "phases" / phase
        if not starts:
            raise UserError(
                f"--from {source}: neither its motion nor its appearance phase is finished"
            )
        return starts
    start = find_start(str(source), "motion", "motion", root)
    streams = _streams_of(start.path)
    return dict.fromkeys([name for name in ("motion", "appearance") if name in streams], source)


def _streams_of(path: Path) -> set[str]:
    """The streams that a file of weights has; a plain trunk starts both."""
    from hpc_stres.errors import UserError
    from hpc_stres.models.weights import is_trunk, read_state

    state = read_state(path)
    streams = (
        {"motion", "appearance"} if is_trunk(state) else {name.split(".", 1)[0] for name in state}
    )
    if any(name.endswith(".temporal.weight") for name in state):
        raise UserError(
            f"--from {path}: its layers over time have no place in a network of one stream\n"
            "Name the run that it is of, or export its phases motion and appearance."
        )
    if not streams & {"motion", "appearance"}:
        raise UserError(
            f"--from {path}: no network of this package and no ResNet\nSay what it is: hpc-stres weights FILE"
        )
    return streams


def _config_of(source: Path) -> "Config | None":
    """The config of the run whose weights are taken."""
    from hpc_stres.config.loading import load_resolved

    # RUN, RUN/phases/NAME or RUN/phases/NAME/FILE: another config.yaml further up is none of ours.
    above = [folder.parent for folder in source.parents[:2] if folder.name == "phases"]
    for folder in (source, *above):
        if (folder / "phases").is_dir() and (folder / "config.yaml").is_file():
            return load_resolved(folder / "config.yaml")
    return None


def _model_of(source: Path) -> dict[str, Any]:
    """Values of `model` as that run has them."""
    config = _config_of(source)
    if config is None:
        return {}
    values = {key: getattr(config.model, key) for key in SIZES}
    return {**values, "stages": list(config.model.stages) if config.model.stages else None}


def _frames_of(source: str | None) -> tuple[int, int] | None:
    """Short side of stored frames and crop of the run or export whose weights are taken; none where
    there is no such."""
    from hpc_stres.run.starts import frames_of_export

    if source is None:
        return None
    path = Path(source).expanduser().absolute()
    config = _config_of(path)
    return frames_of_export(path) if config is None else (config.data.short_side, config.data.crop)


def _sizes_of(source: Path) -> dict[str, Any]:
    """Values of `model` as a file's tensors tell them."""
    from hpc_stres.models.published_weights import trunk_of
    from hpc_stres.models.weights import read_state

    state = read_state(source)
    first = {
        name.split(".", 1)[1]: value
        for name, value in state.items()
        if name.split(".", 1)[0] in _STREAMS
    }
    trunk = trunk_of(first or state)
    if trunk is None or trunk.family != "resnet":
        return {}
    depth = {"depth": trunk.depth} if trunk.depth else {"stages": list(trunk.stages)}
    return {**depth, **({"width": trunk.width} if trunk.width != 64 else {})}


_STREAMS = ("motion", "appearance")


def _checked(text: str, target: Path) -> "Config":
    """The config that a text gives, before it takes a file's place."""
    import tempfile

    from hpc_stres.config.loading import load_config

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / target.name
        path.write_text(text, encoding="utf-8")
        return load_config(path)


def _said(choice: "Choice", config: "Config") -> list[str]:
    """What was chosen, and why."""
    from hpc_stres.run.starts import published_path

    sizes = f"{config.data.short_side} pixels, width {config.model.width}"
    lines = [
        f"small networks ({sizes}), made to train in minutes here; {choice.name} at full size: --size full"
        if choice.is_small
        else f"the published networks: {_network(config)}"
    ]
    lines.append(
        f"schedules times {config.training.schedule_scale:g}, plateaus kept: {_steps(config)}"
    )
    sections = {name: config.phase(name).clips for name in config.phases}
    clips = [
        f"{name} {clip.chunks} chunks, stride {clip.stride[0]} to {clip.stride[1]}"
        for name, clip in sections.items()
        if clip.chunks > 1
    ]
    lines.append(f"clips: {'; '.join(clips)}")
    if choice.starts:
        lines += [f"{name} starts from {source}" for name, source in choice.starts.items()]
        lines += [f"trained of it: {choice.trainable}"] if choice.trainable != "all" else []
    elif choice.weights is None:
        lines.append("from scratch: no pretrained weights")
    elif choice.weights == str(published_path(DEFAULT_WEIGHTS, str(choice.root))):
        is_there = Path(choice.weights).is_file()
        lines.append(
            f"ImageNet weights: {choice.weights}" + ("" if is_there else " (not there yet)")
        )
    return lines


def _network(config: "Config") -> str:
    model = config.model
    name = f"stages {list(model.stages)}" if model.stages else f"ResNet-{model.depth}"
    return f"{name}, {config.data.crop} pixels"


def _steps(config: "Config") -> str:
    return ", ".join(f"{name} {config.steps(name)}" for name in config.phases) + " steps"


def _next_steps(choice: "Choice", target: Path) -> list[str]:
    import shlex

    file = shlex.quote(str(target))
    lines = []
    if choice.weights is not None and not Path(choice.weights).is_file():
        folder = shlex.quote(str(Path(choice.weights).parent))
        lines.append(
            f"hpc-stres weights {DEFAULT_WEIGHTS} --to {folder}   # where there is a network; or --from-scratch"
        )
    lines.append(f"hpc-stres prepare --config {file}")
    split = " --split all" if choice.folds > 1 else ""
    return [*lines, f"hpc-stres submit --config {file} --phase all{split}"]
