"""Images that cost a reader more than they are worth: made by hand, as nobody's encoder makes them."""

from __future__ import annotations

import io
import struct
import zlib

import numpy as np
from PIL import Image

from flawline import imaging
from flawline.image_structure import PNG_SIGNATURE, png_scanline_bytes
from flawline.messages import Codec

ZEROS_BYTES = 1 << 24


def chunk(kind: bytes, body: bytes = b"") -> bytes:
    """Return a chunk of a PNG with its checksum."""
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))


def png_header(height: int, width: int, *, depth: int = 8, colour: int = 2, interlace: int = 0) -> bytes:
    """Return signature and header of a PNG."""
    return PNG_SIGNATURE + chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, interlace))


def deflated_zeros(size_bytes: int) -> bytes:
    """Return a zlib stream of zeros, made from a repeated piece, so that gigabytes take no time."""
    deflate = zlib.compressobj(9)
    start = deflate.compress(bytes(ZEROS_BYTES)) + deflate.flush(zlib.Z_FULL_FLUSH)
    piece = deflate.compress(bytes(ZEROS_BYTES)) + deflate.flush(zlib.Z_FULL_FLUSH)
    repeats, rest = divmod(size_bytes, ZEROS_BYTES)
    ending = zlib.compressobj(9, wbits=-15)
    end = ending.compress(bytes(rest)) + ending.flush()
    body = b"" if repeats == 0 else start + piece * (repeats - 1)
    head = start[:2] if repeats == 0 else b""
    adler = ((size_bytes % 65_521) << 16) | 1
    return head + body + end + struct.pack(">I", adler)


def black_png(height: int, width: int, *, depth: int = 8, colour: int = 2, interlace: int = 0) -> bytes:
    """Return a valid black PNG of any size; at 16 bits with alpha it makes 1,032 bytes of each of its own."""
    samples = {0: 1, 2: 3, 4: 2, 6: 4}[colour]
    scanlines = png_scanline_bytes(height, width, depth * samples, interlace)
    data = b"".join(chunk(b"IDAT", part) for part in _cut(deflated_zeros(scanlines), 1 << 16))
    return png_header(height, width, depth=depth, colour=colour, interlace=interlace) + data + chunk(b"IEND")


def _cut(data: bytes, size_bytes: int) -> list[bytes]:
    return [data[start : start + size_bytes] for start in range(0, len(data), size_bytes)]


def png_just_under_the_pixel_limit() -> bytes:
    """Return a valid PNG of 1.5 MB and 200 million pixels of four channels of 16 bits."""
    return black_png(14_142, 14_142, depth=16, colour=6)


def png_with_a_lying_length() -> bytes:
    """Return a PNG of 75 bytes, one of whose chunks announces 4 GB."""
    data = png_header(24, 40) + struct.pack(">I", 0xFFFF_FF00) + b"IDAT"
    return data + bytes(75 - len(data))


def png_with_damaged_bytes() -> bytes:
    """Return a PNG of 96 x 96 pixels with one damaged byte, in the length of its data."""
    data = bytearray(imaging.encode(noise(96, 96), Codec.PNG))
    data[data.index(b"IDAT") - 4] = 0xFF
    return bytes(data)


def jpeg_of_many_scans(scans: int = 2_000, height: int = 14_000, width: int = 14_000) -> bytes:
    """Return a progressive JPEG whose last scan is repeated, so that each walks over the whole picture again."""
    file = io.BytesIO()
    Image.fromarray(noise(64, 64)).save(file, "JPEG", progressive=True, quality=80)
    data = bytearray(file.getvalue())
    frame = data.index(b"\xff\xc2") + 5
    data[frame : frame + 4] = struct.pack(">HH", height, width)
    last = data.rindex(b"\xff\xda")
    return bytes(data[:last]) + bytes(data[last:-2]) * scans + b"\xff\xd9"


def noise(height: int, width: int) -> np.ndarray:
    """Return the same random pixels each time, uint8 (H, W, 3)."""
    return np.random.default_rng(3).integers(0, 256, (height, width, 3), np.uint8)


WORST = {
    "a valid PNG just under the pixel limit": png_just_under_the_pixel_limit,
    "a PNG whose chunk announces 4 GB": png_with_a_lying_length,
    "a JPEG of two thousand scans": jpeg_of_many_scans,
    "a small PNG with a damaged length": png_with_damaged_bytes,
}
