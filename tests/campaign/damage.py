"""Damage to files: bits that flip, files that are cut, empty or gone; and lies, well-formed files that are wrong.

After each damage the product's own reader is asked. What it says is one of four: noticed (an error in words, or a word
on stderr and the good rest), harmless (it makes of the file what it made before), silent, or a crash.
"""

import contextlib
import io
import json
import random
import signal
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from tests.campaign import guards
from tests.campaign.judge import CRASHED, SILENT, STOPPED, SURVIVED, Outcome
from tests.campaign.museum import Exhibit, Noticed
from tests.campaign.outcomes import outcomes_of

LIMIT_SECONDS = 600


def harm(path: Path, how: str, where: float) -> None:
    """Damage a file at a place given as a share of its length."""
    data = bytearray(path.read_bytes())
    bit = min(int(where * 8 * len(data)), 8 * len(data) - 1)
    if how == "flip":
        data[bit // 8] ^= 1 << bit % 8
    elif how == "cut":
        del data[bit // 8 :]
    elif how == "empty":
        data.clear()
    path.unlink()
    if how != "gone":
        path.write_bytes(data)


def flips(path: Path, dice: random.Random, count: int) -> Iterator[tuple[str, bytes]]:
    """The file with one bit turned, at so many places."""
    data = path.read_bytes()
    for _ in range(count):
        bit = dice.randrange(8 * len(data))
        turned = bytearray(data)
        turned[bit // 8] ^= 1 << bit % 8
        yield f"bit {bit}", bytes(turned)


def lies(
    exhibit: Exhibit, path: Path, dice: random.Random, count: int
) -> Iterator[tuple[str, bytes]]:
    """The file with another value in a sound form, or one that says something else in its place."""
    for sibling in exhibit.siblings:
        yield f"{sibling.parent.name}/{sibling.name} in its place", sibling.read_bytes()
    data = path.read_bytes()
    for _ in range(count - len(exhibit.siblings)):
        if not data:
            yield _byte_lie(data, dice)
        elif path.suffix in (".json", ".jsonl"):
            yield _json_lie(data, dice)
        elif path.suffix == ".npz":
            yield _npz_lie(data, dice)
        elif path.suffix == ".safetensors":
            yield _tensor_lie(data, dice)
        elif path.suffix == ".npy":
            yield _npy_lie(data, dice)
        elif path.suffix == ".yaml":
            yield _text_lie(data, dice)
        else:
            yield _byte_lie(data, dice)


def _json_lie(data: bytes, dice: random.Random) -> tuple[str, bytes]:
    """One value of one object is another; everything else stays, the checksum included."""
    lines = data.splitlines() if data.count(b"\n{") else [data]
    number = dice.randrange(len(lines))
    value = json.loads(lines[number])
    where = _change(value, dice)
    lines[number] = json.dumps(value, ensure_ascii=False).encode()
    return f"line {number} {where}", b"\n".join(lines) + b"\n"


def _change(value: Any, dice: random.Random) -> str:
    """Change one leaf, checksums left out; returns where."""
    places = [place for place in _leaves(value, ()) if "checksum" not in place]
    place = dice.choice(places)
    inner = value
    for key in place[:-1]:
        inner = inner[key]
    inner[place[-1]] = _other(inner[place[-1]], dice)
    return ".".join(map(str, place))


def _leaves(value: Any, place: tuple[Any, ...]) -> Iterator[tuple[Any, ...]]:
    if isinstance(value, dict) and value:
        for key, item in value.items():
            yield from _leaves(item, (*place, key))
    elif isinstance(value, list) and value:
        for number, item in enumerate(value):
            yield from _leaves(item, (*place, number))
    elif place:
        yield place


def _other(value: Any, dice: random.Random) -> Any:
    if isinstance(value, bool):
        return not value
    if isinstance(value, (int, float)):
        return dice.choice([value + 1, -value - 1, 0 if value else 2, value * 1000 + 7])
    if isinstance(value, str):
        return dice.choice(
            [f"{value}x", value[:-1] if len(value) > 1 else "other", value.swapcase() + "0"]
        )
    return 7


def _npz_lie(data: bytes, dice: random.Random) -> tuple[str, bytes]:
    with np.load(io.BytesIO(data), allow_pickle=False) as stored:
        arrays = {name: np.array(stored[name]) for name in stored.files}
    name = dice.choice([name for name in arrays if name != "digest" and arrays[name].size])
    flat = arrays[name].reshape(-1)
    where = dice.randrange(flat.size)
    flat[where] = (
        flat[where] + 1
        if flat.dtype.kind in "fiu"
        else f"x{flat[where]}"[: flat.dtype.itemsize // 4]
    )
    arrays[name] = flat.reshape(arrays[name].shape)
    stream = io.BytesIO()
    np.savez_compressed(stream, **arrays)
    assert zipfile.is_zipfile(stream)
    return f"{name}[{where}]", stream.getvalue()


def _tensor_lie(data: bytes, dice: random.Random) -> tuple[str, bytes]:
    """One number of one tensor is another; the header with its checksum stays."""
    header = 8 + int.from_bytes(data[:8], "little")
    at = header + 4 * dice.randrange((len(data) - header) // 4)
    changed = bytearray(data)
    changed[at : at + 4] = np.float32(dice.uniform(-2, 2)).tobytes()
    return f"number at {at}", bytes(changed)


def _npy_lie(data: bytes, dice: random.Random) -> tuple[str, bytes]:
    array = np.array(np.load(io.BytesIO(data)))
    if not array.size:
        return "empty", data
    raw = bytearray(array.tobytes())
    at = dice.randrange(len(raw))
    raw[at] = (raw[at] + dice.randrange(1, 255)) % 256
    stream = io.BytesIO()
    np.save(stream, np.frombuffer(bytes(raw), array.dtype).reshape(array.shape))
    return f"byte {at} of its data", stream.getvalue()


def _text_lie(data: bytes, dice: random.Random) -> tuple[str, bytes]:
    """One digit is another."""
    digits = [n for n, byte in enumerate(data) if 48 <= byte <= 57]
    at = dice.choice(digits)
    changed = bytearray(data)
    changed[at] = dice.choice([byte for byte in range(48, 58) if byte != data[at]])
    return f"digit at {at}", bytes(changed)


def _byte_lie(data: bytes, dice: random.Random) -> tuple[str, bytes]:
    if not data:
        return "something in an empty file", b"{}\n"
    changed = bytearray(data)
    at = dice.randrange(len(data))
    changed[at] = (changed[at] + dice.randrange(1, 255)) % 256
    return f"byte {at}", bytes(changed)


def ask(exhibit: Exhibit, before: Any) -> Outcome:
    """What the reader makes of the file as it is now."""
    from hpc_stres.errors import UserError

    said = io.StringIO()
    try:
        with contextlib.redirect_stderr(said):
            value = exhibit.read()
    except UserError as error:
        lines = str(error).splitlines()
        is_clear = len(lines) <= 3 and "/" in lines[0]
        return Outcome(STOPPED if is_clear else CRASHED, str(error))
    except Exception as error:
        return Outcome(CRASHED, f"{type(error).__name__}: {error}")
    if isinstance(value, Noticed):
        return Outcome(STOPPED, value.words)
    if value == before:
        return Outcome(SURVIVED, "")
    if said.getvalue().strip():
        return Outcome(STOPPED, said.getvalue().strip())
    return Outcome(SILENT, f"{str(value)[:200]} in place of {str(before)[:200]}")


def sweep(
    exhibit: Exhibit, seed: int, count: int, with_lies: bool, without: str = ""
) -> list[Outcome]:
    """So many damages to the files of one kind, in a child, so that a signal is an outcome as well; `without` is
    the guard that the child takes away."""
    results: list[Outcome] = []
    share = -(-count // max(1, len(exhibit.files)))
    for path in exhibit.files:
        whole, found = path.read_bytes(), list[Outcome]()
        if not whole and not with_lies:
            continue  # no bit to turn
        while len(found) < share:
            place = f"{seed}:{path.name}"
            found += _in_child(exhibit, path, place, share, len(found), with_lies, without)
            path.write_bytes(whole)
            if len(found) < share:
                found.append(Outcome(CRASHED, f"{path.name}: the reader ended with a signal"))
        results += found
    return results


def _in_child(
    exhibit: Exhibit, path: Path, seed: str, count: int, done: int, with_lies: bool, without: str
) -> list[Outcome]:
    def work(tell: Callable[[Outcome], None]) -> None:
        signal.alarm(LIMIT_SECONDS)
        guards.remove(without)
        _report(exhibit, path, random.Random(seed), count, done, with_lies, tell)

    outcomes, status = outcomes_of(work)
    if status > 0:
        raise RuntimeError(f"the campaign itself failed at {path}: see above")
    return outcomes


def _report(
    exhibit: Exhibit, path: Path, dice: random.Random, count: int, done: int, with_lies: bool,
    tell: Callable[[Outcome], None],
) -> None:  # fmt: skip
    before = exhibit.read()
    made = lies(exhibit, path, dice, count) if with_lies else flips(path, dice, count)
    whole = path.read_bytes()
    for number, (where, data) in enumerate(made):
        if number < done:
            continue
        path.write_bytes(data)
        # A lie that happens to be the truth is harmless.
        outcome = Outcome(SURVIVED, "") if data == whole else ask(exhibit, before)
        tell(Outcome(outcome.verdict, f"{path.name}, {where}: {outcome.why}"))
