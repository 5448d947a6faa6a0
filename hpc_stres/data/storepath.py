"""Where a config's store lies: one folder for one way of preparing, so that stores never mix. Pure."""

import hashlib
import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from hpc_stres.config import Config, DataConfig

IMPORTED = "imported"
# The flow's pyramid where the word means nothing; and that of stores that do not say it.
NO_PYRAMID, OLD_PYRAMID = "none", "opencv4"


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
    def stored(cls, found: dict[str, Any]) -> "Settings":
        """From a manifest or an export; what older versions did not write down is what they did."""
        old = OLD_PYRAMID if has_pyramid(found["flow_backend"]) else NO_PYRAMID
        return cls(**{"flow_pyramid": old, **found})

    def as_json(self) -> dict[str, Any]:
        return asdict(self)


def has_pyramid(flow_backend: str) -> bool:
    """Whether flow of this origin is TV-L1 of ours or OpenCV's, which comes with two pyramids."""
    return flow_backend not in (IMPORTED, "dali")


def flow_name(settings: dict[str, Any]) -> str:
    """What flow a store's settings mean: `native paper`, `cuda opencv4`, `dali`, `imported`."""
    made = Settings.stored(settings)
    return " ".join(part for part in (made.flow_backend, made.flow_pyramid) if part != NO_PYRAMID)


def store_folder(config: Config) -> Path:
    """Folder of the store: another one for other settings, so that stores never mix."""
    made_by: dict[str, Any] = Settings.of(config.data).as_json()
    if config.data.kind == "binding":
        binding = config.data.binding
        made_by |= {"binding": [binding.train_videos, binding.test_videos, binding.frames, binding.side, config.seed]}
    if config.data.frames is not None:
        made_by |= {"frames": config.data.frames, "flow_frames": config.data.flow_frames}
    tag = hashlib.sha256(json.dumps(made_by, sort_keys=True).encode()).hexdigest()[:8]
    return Path(config.data.root) / "stores" / f"{config.data.kind}-{config.data.short_side}-{tag}"
