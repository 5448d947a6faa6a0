"""Where a config's store is: one folder for one data set and one way of preparing it. Pure but for
`store_is_ready`."""

import hashlib
import json
import os
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from hpc_stres.config.schema import Config, DataConfig
from hpc_stres.errors import UserError
from hpc_stres.run.paths import read_json, write_first

IMPORTED = "imported"
# The flow's pyramid where the word means nothing; and that of stores that do not say it.
NO_PYRAMID, OLD_PYRAMID = "none", "opencv4"
# Part of the folder's name, so that a store of another format is never in the way.
STORE_FORMAT = 2
BINDING_MADE_OF = "made_of.json"


@dataclass(frozen=True)
class Settings:
    """What decides the bytes of a prepared video."""

    short_side: int
    jpeg_quality: int
    flow_backend: str
    flow_pyramid: str = OLD_PYRAMID

    @classmethod
    def of(cls, data: DataConfig) -> "Settings":
        backend = IMPORTED if data.flow_frames else data.flow_backend
        pyramid = data.flow_pyramid if has_pyramid(backend) else NO_PYRAMID
        return cls(data.short_side, data.jpeg_quality, backend, pyramid)

    @classmethod
    def stored(cls, settings: dict[str, Any]) -> "Settings":
        """From a manifest or an export; what older versions did not write down is what they did."""
        old = OLD_PYRAMID if has_pyramid(settings["flow_backend"]) else NO_PYRAMID
        return cls(**{"flow_pyramid": old, **settings})

    def as_json(self) -> dict[str, Any]:
        return asdict(self)


def has_pyramid(flow_backend: str) -> bool:
    """Whether flow of this origin is TV-L1 of ours or OpenCV's, which comes with two pyramids."""
    return flow_backend not in (IMPORTED, "dali")


def flow_name(settings: dict[str, Any]) -> str:
    """What flow a store's settings mean: `native paper`, `cuda opencv4`, `dali`, `imported`."""
    made = Settings.stored(settings)
    return " ".join(part for part in (made.flow_backend, made.flow_pyramid) if part != NO_PYRAMID)


def relative_to(path: Path | str, home: Path | str) -> str:
    """A path as seen from a folder that it is inside, absolute elsewhere; whatever
    the working folder."""
    own, base = os.path.abspath(path), os.path.abspath(home)
    inside = own == base or own.startswith(base.rstrip("/") + "/")
    return os.path.relpath(own, base) if inside else own


def home_of(data: DataConfig) -> Path:
    """The folder that paths of sources are relative to."""
    if data.frames is not None:
        return Path(data.frames)
    return Path(data.videos) if data.videos else Path(data.root) / data.kind / "videos"


def identity(config: Config) -> dict[str, Any]:
    """What makes one store another: the data set's places and kind, and the
    settings of preparing."""
    data = config.data
    traits: dict[str, Any] = {
        "format": STORE_FORMAT,
        "kind": data.kind,
        **Settings.of(data).as_json(),
    }
    for key in ("videos", "lists", "frames", "flow_frames"):
        value = getattr(data, key)
        traits[key] = None if value is None else relative_to(value, data.root)
    # A default that is written out is the same place.
    defaults = {"videos": f"{data.kind}/videos", "lists": _default_lists(data)}
    traits |= {key: None for key, value in defaults.items() if traits[key] == value}
    if data.kind == "folder":
        traits["test_fraction"] = data.test_fraction
        if data.folds > 1:
            traits["folds"] = data.folds
    if data.kind == "binding":
        traits["binding"] = binding_made_of(config)
    return traits


def _default_lists(data: DataConfig) -> str:
    return f"{data.kind}/" + ("videos.csv" if data.kind == "csv" else "splits")


def store_folder(config: Config) -> Path:
    """Folder of the store: another one for another data set or other settings, so that
    stores never mix."""
    tag = hashlib.sha256(json.dumps(identity(config), sort_keys=True).encode()).hexdigest()[:8]
    return Path(config.data.root) / "stores" / f"{config.data.kind}-{config.data.short_side}-{tag}"


def binding_made_of(config: Config) -> dict[str, int]:
    """What decides the videos of the demonstration data set."""
    return {**asdict(config.data.binding), "seed": config.seed}


def data_of(config: Config) -> DataConfig:
    """The data section with the folders of the demonstration data set filled in.

    It is made in ROOT/binding. Where that holds one of other sizes or another seed, it gets a
    folder of its own.
    """
    data = config.data
    if data.kind != "binding":
        return data
    home, made_of = Path(data.root) / "binding", binding_made_of(config)
    there = read_json(home / "splits" / BINDING_MADE_OF)
    if there and there != made_of:
        tag = hashlib.sha256(json.dumps(made_of, sort_keys=True).encode()).hexdigest()[:8]
        home = home.with_name(f"binding-{tag}")
    return replace(
        data, videos=data.videos or str(home / "videos"), lists=data.lists or str(home / "splits")
    )


def claim_home(config: Config) -> None:
    """Take ROOT/binding for the demonstration data set of a config if nobody has it yet.

    Of two sets that are made at once under one root, one gets it, and the other then sees that.
    """
    data = config.data
    if data.kind == "binding" and not (data.videos or data.lists):
        home = Path(data.root) / "binding"
        write_first(home / "splits" / BINDING_MADE_OF, binding_made_of(config))


def store_is_ready(config: Config) -> bool:
    """Whether the store is whole as far as can be seen quickly, and is that of the lists and videos
    as they are now."""
    from hpc_stres.store.listing import find_difference
    from hpc_stres.store.reader import Store

    try:
        return not find_difference(Store(store_folder(config)), config)
    except UserError:
        return False
