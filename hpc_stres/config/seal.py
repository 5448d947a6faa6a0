"""The checksum in a run folder's config.yaml: jobs that are queued read that file and
believe it. Pure.

It is a comment in the last line, so that the file stays YAML for everybody. A file without it is of
an older version, or of somebody who took the line away to change the file by hand.
"""

import hashlib
from pathlib import Path

from hpc_stres.errors import ConfigError

_MARK = b"# checksum: sha256 "


def sealed_text(text: str) -> str:
    """A config's text with its checksum as the last line."""
    return f"{text}{_MARK.decode()}{_digest(text.encode())}\n"


def refuse_changed(path: Path, data: bytes) -> None:
    """Refuse a config whose text is not the one that its checksum is of; one without a
    checksum is believed."""
    text, mark, digest = data.rpartition(_MARK)
    if mark and digest != f"{_digest(text)}\n".encode():
        raise ConfigError(
            f"{path}: not as it was written: the checksum in its last line is of another text\n"
            "If you changed it yourself, remove that line. Otherwise remove the file: the command that began the run "
            "writes it again."
        )


def _digest(text: bytes) -> str:
    return hashlib.sha256(text).hexdigest()
