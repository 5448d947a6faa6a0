"""What a JPEG or PNG file says of its size, read before memory is asked for its pixels."""

import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from hpc_stres.prepare.video import UndecodableError

PNG_MAGIC = b"\x89PNG\r\n\x1a\n"
JPEG_MAGIC, JPEG_END = b"\xff\xd8", b"\xff\xd9"
# Start-of-frame markers: C0 to CF but for tables of Huffman codes, arithmetic conditioning and an
# extension.
START_OF_FRAME = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}
START_OF_SCAN, EXIF = 0xDA, 0xE1
# Markers without a length.
ALONE = frozenset({0x01, *range(0xD0, 0xD8)})
ORIENTATION, UPRIGHT = 0x0112, 1


@dataclass(frozen=True)
class PictureHeader:
    """Format, size and kind of a picture file."""

    format: Literal["jpeg", "png"]
    height: int
    width: int
    channels: int
    bits: int
    orientation: int = UPRIGHT

    @property
    def is_plain_jpeg(self) -> bool:
        """Whether every JPEG decoder makes the same upright 8-bit picture of it."""
        return self.format == "jpeg" and self.bits == 8 and self.orientation == UPRIGHT


def read_header(data: bytes, path: Path) -> PictureHeader:
    """The header of a file's bytes; UndecodableError for other formats, broken headers and files
    that break off.
    """
    try:
        if data.startswith(JPEG_MAGIC):
            header = _jpeg(data)
        elif data.startswith(PNG_MAGIC):
            header = _png(data)
        else:
            raise UndecodableError(f"{path}: neither a JPEG nor a PNG file")
    except (struct.error, IndexError, ValueError) as error:
        raise UndecodableError(f"{path}: its header is damaged: {error}") from None
    if not header.height or not header.width:
        raise UndecodableError(f"{path}: its header says {header.width} x {header.height} pixels")
    return header


def _png(data: bytes) -> PictureHeader:
    width, height, bits, colour = struct.unpack_from(">IIBB", data, 16)
    if data[12:16] != b"IHDR":
        raise ValueError("no IHDR")
    if b"IEND" not in data[-64:]:
        raise ValueError("the file breaks off")
    # 0 and 4 are gray; 2, 3 (palette) and 6 are colours.
    return PictureHeader("png", height, width, 1 if colour in (0, 4) else 3, bits)


def _jpeg(data: bytes) -> PictureHeader:
    """Walk over the segments up to the first scan."""
    place = 2
    orientation = UPRIGHT
    frame: tuple[int, int, int, int] | None = None
    while True:
        if data[place] != 0xFF:
            raise ValueError(f"no marker at byte {place}")
        while data[place] == 0xFF:
            place += 1
        marker = data[place]
        place += 1
        if marker in ALONE:
            continue
        (length,) = struct.unpack_from(">H", data, place)
        if length < 2 or place + length > len(data):
            raise ValueError("the file breaks off")
        if marker in START_OF_FRAME and frame is None:
            frame = struct.unpack_from(">BHHB", data, place + 2)
        elif marker == EXIF:
            orientation = _orientation(data[place + 2 : place + length])
        place += length
        if marker == START_OF_SCAN:
            break
    if frame is None:
        raise ValueError("no start of frame")
    if data.find(JPEG_END, place) < 0:
        raise ValueError("the file breaks off (no end of image)")
    bits, height, width, channels = frame
    return PictureHeader("jpeg", height, width, channels, bits, orientation)


def _orientation(segment: bytes) -> int:
    """EXIF's orientation; upright where there is none, or none that can be read."""
    if not segment.startswith(b"Exif\0\0"):
        return UPRIGHT
    tiff = segment[6:]
    order = {b"II": "<", b"MM": ">"}.get(tiff[:2])
    if order is None:
        return UPRIGHT
    try:
        (first,) = struct.unpack_from(f"{order}I", tiff, 4)
        (entries,) = struct.unpack_from(f"{order}H", tiff, first)
        for number in range(entries):
            tag, _, _, value = struct.unpack_from(f"{order}HHIH", tiff, first + 2 + 12 * number)
            if tag == ORIENTATION:
                return int(value)
    except struct.error:
        pass  # a broken EXIF block: decoders take the picture as it is
    return UPRIGHT
