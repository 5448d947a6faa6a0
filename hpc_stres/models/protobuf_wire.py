"""Protocol buffers' wire format, as far as reading needs it: fields of a message, bounds checked.

A message is a run of fields, each a key (number and type) and a value: a varint, four or eight
bytes, or a length and so many bytes. Nothing is copied: values of the last kind are views. Every
length is compared with what is left of the message it stands in, so that no file reaches outside.
"""

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

VARINT, EIGHT_BYTES, BYTES, FOUR_BYTES = 0, 1, 2, 5
MOST_VARINT_BYTES = 10


class WireError(ValueError):
    """The bytes are not a message."""


class Field(NamedTuple):
    """One field: its number, its type on the wire, a number or the bytes."""

    number: int
    wire: int
    value: int
    view: memoryview


NOTHING = memoryview(b"")


def fields(message: memoryview) -> Iterator[Field]:
    """The fields of a message in order."""
    at = 0
    while at < len(message):
        start = at
        key, at = _varint(message, at)
        number, wire = key >> 3, key & 7
        if number == 0:
            raise WireError(f"field number 0 at byte {start}")
        if wire == VARINT:
            value, at = _varint(message, at)
            yield Field(number, wire, value, NOTHING)
            continue
        if wire == BYTES:
            length, at = _varint(message, at)
        elif wire in (EIGHT_BYTES, FOUR_BYTES):
            length = 8 if wire == EIGHT_BYTES else 4
        else:
            raise WireError(f"a field of type {wire} at byte {start}")
        if length > len(message) - at:
            left = len(message) - at
            raise WireError(f"{length} bytes announced at byte {start} where {left} are left")
        yield Field(number, wire, 0, message[at : at + length])
        at += length


def _varint(message: memoryview, at: int) -> tuple[int, int]:
    """A number of seven bits a byte, and where the next one begins."""
    value = 0
    for place in range(MOST_VARINT_BYTES):
        if at + place >= len(message):
            raise WireError(f"a number is cut off at byte {at}")
        byte = message[at + place]
        value |= (byte & 0x7F) << (7 * place)
        if byte < 0x80:
            return value, at + place + 1
    raise WireError(f"a number without an end at byte {at}")


def packed_varints(field: Field) -> list[int]:
    """The numbers of a repeated field: one alone, or several in one run of bytes."""
    if field.wire == VARINT:
        return [field.value]
    if field.wire != BYTES:
        raise WireError(f"field {field.number} is not of whole numbers")
    numbers, at = [], 0
    while at < len(field.view):
        value, at = _varint(field.view, at)
        numbers.append(value)
    return numbers


def packed_floats(
    field: Field, type_of: type[np.float32] | type[np.float64]
) -> NDArray[np.floating]:
    """The numbers of a repeated float or double field, as a view."""
    size = np.dtype(type_of).itemsize
    if field.wire == VARINT or len(field.view) % size:
        raise WireError(f"field {field.number} is not of numbers of {size} bytes")
    return np.frombuffer(field.view, np.dtype(type_of).newbyteorder("<"))
