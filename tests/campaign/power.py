"""Power loss: the recorded calls of a command are replayed up to a moment, and what was not synced by then is lost.

Four file systems are played, for each loses something else:

  names    files and their data reach the disk late, and a name only when its folder is synced (POSIX, no more)
  data     names are on the disk at once, data only when synced: a renamed file that was not synced is empty
  ordered  any sync brings all names before it to the disk (a journal); unsynced data is lost
  half     as `data`, but half of what was not synced is there

That a folder was made is never lost: journals of real file systems keep it with the first file synced in it.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

LOSSES = ("names", "data", "ordered", "half")


@dataclass
class Node:
    """A file or a folder, as programs see it and as the disk has it."""

    is_folder: bool = False
    entries: dict[str, "Node"] = field(default_factory=dict)
    kept_entries: dict[str, "Node"] = field(default_factory=dict)
    data: bytearray = field(default_factory=bytearray)
    kept_data: bytes = b""


def snapshot(folder: Path, to: Path) -> None:
    """Remember a folder as it is before the recording."""
    import shutil

    shutil.rmtree(to, ignore_errors=True)
    if folder.is_dir():
        shutil.copytree(folder, to)
    else:
        to.mkdir(parents=True)


@dataclass(frozen=True)
class Call:
    """One recorded call: a letter, its numbers, and names or data."""

    letter: str
    numbers: tuple[int, ...]
    payload: bytes


def read_log(path: Path) -> Iterator[Call]:
    """The calls in a log of the shim."""
    text, at = path.read_bytes(), 0
    while at < len(text):
        end = text.index(b"\n", at)
        letter, *numbers = text[at:end].decode().split()
        values, at = tuple(map(int, numbers)), end + 1
        size = values[-1] if letter in "OWRUDM" else 0
        yield Call(letter, values, text[at : at + size])
        at += size


class Disk:
    """A folder under the calls of a log."""

    def __init__(self, root: str, before: Path) -> None:
        self.root, self.tree = root, _read(before)
        self.open: dict[int, Node] = {}

    def play(self, call: Call, lost: str = "data") -> None:
        """One more call."""
        getattr(self, f"_{call.letter}")(call)
        if call.letter == "S" and lost == "ordered":
            _commit_names(self.tree)

    def _find(self, path: str) -> tuple[Node, str]:
        """The folder of a path and the last name in it; folders that nobody saw made are made."""
        parts = [part for part in path.removeprefix(self.root).split("/") if part and part != "."]
        node = self.tree
        for part in parts[:-1]:
            if part not in node.entries:
                node.entries[part] = node.kept_entries[part] = Node(True)
            node = node.entries[part]
        return node, parts[-1] if parts else ""

    def _O(self, call: Call) -> None:
        number, is_new, is_cut, _ = call.numbers
        folder, name = self._find(call.payload.decode())
        node = folder.entries.get(name) if name else folder
        if node is None:
            node = folder.entries[name] = Node(is_folder=False)
            if not is_new:  # the recording began after it was made: a folder, or a file of before
                folder.kept_entries[name] = node
        if is_cut:
            node.data = bytearray()
        self.open[number] = node

    def _W(self, call: Call) -> None:
        number, at, size = call.numbers
        node = self.open[number]
        if len(node.data) < at:
            node.data.extend(bytes(at - len(node.data)))
        node.data[at : at + size] = call.payload

    def _T(self, call: Call) -> None:
        node, length = self.open[call.numbers[0]], call.numbers[1]
        node.data = node.data[:length] + bytes(max(0, length - len(node.data)))

    def _S(self, call: Call) -> None:
        node = self.open[call.numbers[0]]
        node.kept_data, node.kept_entries = bytes(node.data), dict(node.entries)

    def _R(self, call: Call) -> None:
        old, new = call.payload.decode().split("\n")
        source, name = self._find(old)
        target, other = self._find(new)
        target.entries[other] = source.entries.pop(name)

    def _U(self, call: Call) -> None:
        folder, name = self._find(call.payload.decode())
        folder.entries.pop(name, None)

    _D = _U

    def _M(self, call: Call) -> None:
        folder, name = self._find(call.payload.decode())
        if name:
            folder.entries[name] = folder.kept_entries[name] = Node(True)

    def write(self, to: Path, lost: str | None) -> None:
        """The folder as it is after the loss of power; as programs saw it if nothing is lost (None)."""
        _write(self.tree, to, lost)


def _read(folder: Path) -> Node:
    node = Node(True)
    for path in sorted(folder.iterdir()):
        child = _read(path) if path.is_dir() else _read_file(path)
        node.entries[path.name] = node.kept_entries[path.name] = child
    return node


def _read_file(path: Path) -> Node:
    data = path.read_bytes()
    return Node(data=bytearray(data), kept_data=data)


def _commit_names(node: Node) -> None:
    node.kept_entries = dict(node.entries)
    for child in node.entries.values():
        if child.is_folder:
            _commit_names(child)


def _write(node: Node, to: Path, lost: str | None) -> None:
    to.mkdir(parents=True, exist_ok=True)
    entries = node.kept_entries if lost in ("names", "ordered") else node.entries
    for name, child in entries.items():
        if child.is_folder:
            _write(child, to / name, lost)
        else:
            (to / name).write_bytes(_surviving(child, lost))


def _surviving(node: Node, lost: str | None) -> bytes:
    data, kept = bytes(node.data), node.kept_data
    if lost is None:
        return data
    if lost == "half" and data.startswith(kept):
        return data[: len(kept) + (len(data) - len(kept)) // 2]
    return kept


def after(log: Path, root: str, before: Path, calls: int, lost: str | None, to: Path) -> int:
    """Write the folder as it is when power is lost after so many calls; returns how many calls there were in all."""
    disk = Disk(root, before)
    total = 0
    for call in read_log(log):
        total += 1
        if total <= calls:
            disk.play(call, lost or "data")
    disk.write(to, lost)
    return total
