"""The checksum in a run folder's config.yaml: jobs that are queued read that file and
believe it. Pure.

It is a comment in the last line, so that the file stays YAML for everybody; the first line says that it
is there, so that a file that was cut short is noticed as well. A file without both is of an older
version, or of somebody who took the lines away to change the file by hand.
"""

import hashlib
from pathlib import Path

from hpc_stres.errors import ConfigError

_HEAD = b"# checksum in the last line; to change this file by hand, remove both lines\n"
_MARK = b"# checksum: sha256 "
_REMEDY = (
    "If you changed it yourself, remove its first and its last line. Otherwise remove the file: the command "
    "that began the run writes it again."
)


def sealed_text(text: str) -> str:
    """A config's text with its checksum as the last line, and a first line that says so."""
    whole = f"{_HEAD.decode()}{text}"
    return f"{whole}{_MARK.decode()}{_digest(whole.encode())}\n"


def refuse_changed(path: Path, data: bytes) -> None:
    """Refuse a config whose text is not the one that its checksum is of, or that ends before it; one
    without a checksum is believed."""
    text, mark, digest = data.rpartition(_MARK)
    if mark and digest != f"{_digest(text)}\n".encode():
        raise ConfigError(
            f"{path}: not as it was written: the checksum in its last line is of another text\n{_REMEDY}"
        )
    if not mark and data.startswith(_HEAD):
        raise ConfigError(f"{path}: cut short: the checksum in its last line is missing\n{_REMEDY}")


def refuse_empty(path: Path, is_empty: bool) -> None:
    """Refuse a run folder's config that says nothing: no version has written one."""
    if is_empty:
        raise ConfigError(
            f"{path}: damaged: it is empty\nRemove it: the command that began the run writes it again."
        )


def _digest(text: bytes) -> str:
    return hashlib.sha256(text).hexdigest()
