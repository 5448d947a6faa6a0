"""Files of rows that many processes append to: nodes.jsonl and attempts.jsonl.

A row is one line of JSON with its own checksum, appended in one write, so that ranks of
several nodes may write at once. What a kill or a full disk tore is left out when the file is
read, and named.
"""

import json
import os
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from hpc_stres.errors import UserError
from hpc_stres.run.paths import sealed, unsealed

Row = dict[str, Any]


def append_row(path: Path, row: Mapping[str, Any]) -> bool:
    """Append a row; where the file cannot be written that is said on stderr, and the answer is
    False: whoever writes a ledger has something more important to say or to do."""
    line = json.dumps(sealed(row), ensure_ascii=False, allow_nan=False) + "\n"
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(path, os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o666)
        try:
            # A writer that was killed may have left half a line: ours must not be glued to it.
            size = os.fstat(descriptor).st_size
            is_torn = size > 0 and os.pread(descriptor, 1, size - 1) != b"\n"
            data = (("\n" if is_torn else "") + line).encode()
            if os.write(descriptor, data) != len(data):
                raise OSError(28, "the file system took half a row")
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
    except OSError as error:
        print(f"{path}: cannot be written: {error.strerror or error}", file=sys.stderr, flush=True)
        return False
    return True


def read_rows(path: Path) -> tuple[list[Row], list[str]]:
    """The good rows of a ledger, and what is wrong with each of the others; a torn last
    line is no fault."""
    try:
        lines = path.read_bytes().split(b"\n")
    except FileNotFoundError:
        return [], []
    except OSError as error:
        return [], [f"{path}: cannot be read: {error.strerror or error}"]
    rows, faults = [], []
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            rows.append(unsealed(json.loads(line.decode("utf-8")), f"{path}:{number}", ""))
        except (ValueError, RecursionError, UserError):
            if number < len(lines):
                faults.append(f"{path}:{number}: damaged; this row is left out")
    return rows, faults
