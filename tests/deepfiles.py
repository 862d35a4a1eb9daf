"""PNG, TIFF and JPEG 2000 files of 16 bits a channel, which Pillow reads and does not write: byte by byte."""

import io
import struct
import zlib

import numpy as np
from PIL import Image

_PNG_COLOURS = {2: 4, 3: 2, 4: 6}  # channels → the colour type of grey with alpha, RGB and RGBA


def png16(levels: np.ndarray, *, clear: tuple[int, int, int] | None = None, orientation: int | None = None) -> bytes:
    """(h, w, 2 | 3 | 4) as PNG; its rows are filtered by nothing, Sub and Up in turn."""
    height, width, channels = levels.shape
    rows = levels.astype(">u2").reshape(height, -1).view(np.uint8).astype(np.int64)
    step = 2 * channels  # bytes a pixel: what Sub takes the difference over
    lines = bytearray()
    for y, row in enumerate(rows):
        kind = y % 3
        before = np.concatenate([np.zeros(step, np.int64), row[:-step]]) if width > 1 else np.zeros_like(row)
        above = rows[y - 1] if y else np.zeros_like(row)
        line = row - {0: 0, 1: before, 2: above}[kind]
        lines += bytes([kind]) + (line % 256).astype(np.uint8).tobytes()
    parts = [_chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 16, _PNG_COLOURS[channels], 0, 0, 0))]
    if orientation is not None:
        entry = struct.pack(">HHIHH", 0x0112, 3, 1, orientation, 0)
        parts.append(_chunk(b"eXIf", b"MM\x00*\x00\x00\x00\x08\x00\x01" + entry + bytes(4)))
    if clear is not None:
        parts.append(_chunk(b"tRNS", struct.pack(">HHH", *clear)))
    parts += [_chunk(b"IDAT", zlib.compress(bytes(lines))), _chunk(b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


def _chunk(kind: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))


def tiff16(
    levels: np.ndarray,
    *,
    order: str = "<",
    packed: bool = False,
    photometric: int = 2,
    extra: int | None = None,
    planar: int = 1,
) -> bytes:
    """(h, w, 3 | 4) as TIFF of one strip, in the order of bytes (< or >), deflated if `packed`."""
    height, width, channels = levels.shape
    laid = levels if planar == 1 else levels.transpose(2, 0, 1)
    content = np.ascontiguousarray(laid).astype(f"{order}u2").tobytes()
    content = zlib.compress(content) if packed else content
    bits = struct.pack(f"{order}{channels}H", *[16] * channels)
    at = 8 + len(bits)
    entries = [
        (256, 4, 1, width),
        (257, 4, 1, height),
        (258, 3, channels, 8),
        (259, 3, 1, 8 if packed else 1),
        (262, 3, 1, photometric),
        (273, 4, 1, at),
        (277, 3, 1, channels),
        (278, 4, 1, height),
        (279, 4, 1, len(content)),
        (284, 3, 1, planar),
    ]
    entries += [] if extra is None else [(338, 3, 1, extra)]
    directory = struct.pack(f"{order}H", len(entries))
    for tag, kind, count, value in entries:
        short = kind == 3 and count == 1
        directory += struct.pack(
            f"{order}HHI" + ("HH" if short else "I"), tag, kind, count, *((value, 0) if short else (value,))
        )
    place = at + len(content)
    head = (b"II*\x00" if order == "<" else b"MM\x00*") + struct.pack(f"{order}I", place)
    return head + bits + content + directory + bytes(4)


def jpeg2000_16(levels: np.ndarray) -> bytes:
    """(h, w, 3) as a codestream of JPEG 2000 without loss.

    Each channel is written as a grey image. Of one resolution it is a single packet, and those of three channels one
    after the other are the packets of a tile in colour.
    """
    packets = []
    for channel in np.moveaxis(levels.astype(np.uint16), 2, 0):
        found = io.BytesIO()
        Image.fromarray(channel).save(found, "JPEG2000", no_jp2=True, irreversible=False, num_resolutions=1, mct=0)
        header, rest = found.getvalue().split(b"\xff\x90", 1)  # the start of the tile
        packets.append(rest.split(b"\xff\x93", 1)[1].removesuffix(b"\xff\xd9"))  # from the data to the end
    at = header.index(b"\xff\x51") + 2  # the length of the marker that says size and channels
    size = header[at + 2 : at + 36] + struct.pack(">H", 3) + 3 * header[at + 38 : at + 41]
    header = header[:at] + struct.pack(">H", len(size) + 2) + size + header[at + 41 :]
    data = b"".join(packets)
    tile = struct.pack(">HHIBB", 10, 0, 12 + 2 + len(data), 0, 1)
    return header + b"\xff\x90" + tile + b"\xff\x93" + data + b"\xff\xd9"
