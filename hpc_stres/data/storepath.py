"""Where a config's store lies: one folder for one way of preparing, so that stores never mix. Pure."""

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hpc_stres.config import Config, DataConfig

IMPORTED = "imported"


@dataclass(frozen=True)
class Settings:
    """What decides the bytes of a prepared video."""

    short_side: int
    jpeg_quality: int
    flow_backend: str

    @classmethod
    def of(cls, data: DataConfig) -> "Settings":
        return cls(data.short_side, data.jpeg_quality, IMPORTED if data.flow_frames else data.flow_backend)

    def as_json(self) -> dict[str, Any]:
        return {"short_side": self.short_side, "jpeg_quality": self.jpeg_quality, "flow_backend": self.flow_backend}


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
