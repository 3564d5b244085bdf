"""The structure of PNG and JPEG files, read before a library sees them: what decoding will cost, and whether it may.

A library believes what a file says: it takes memory for a chunk of 4 GB that is not there, and walks over the whole
picture once for each of a thousand scans. So the chunks of a PNG and the segments of a JPEG are followed first, and
what breaks a limit is refused. Then memory and time are bounded by the size that the header announces: see `Plan`.

Sources: PNG (Third Edition), W3C 2025; ITU-T T.81 (JPEG), annex B.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Iterator
from dataclasses import dataclass, field

from flawline.errors import FlawlineError
from flawline.messages import MAX_SIDE_PX, Codec

PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"
JPEG_SIGNATURE = b"\xff\xd8"

CHUNK_LIMIT = 65_536
"""Most chunks of a PNG: encoders write one for 4 to 64 KiB of data."""

SEGMENT_LIMIT = 1_024
"""Most segments of a JPEG: a colour profile may take 255, and a scan takes up to 5."""

SCAN_LIMIT = 64
"""Most scans of a JPEG, each of which walks over the picture. Usual encoders write 1 to 17."""

DEFLATE_RATIO = 1_032
"""What deflate makes of one byte at most (zlib, Technical Details)."""


class ImageError(FlawlineError):
    """The bytes are no image, or one outside the limits."""


@dataclass(frozen=True)
class Probe:
    """The header of an encoded image: height and width as it is shown, turned by its EXIF `orientation` (1 to 8).

    `sample_bits` are those of the format, 1 to 16, and 8 for a palette; the data of a 16-bit image may use fewer.
    """

    codec: Codec
    height: int
    width: int
    channels: int
    sample_bits: int = 8
    orientation: int = 1


@dataclass(frozen=True)
class Plan:
    """What is to be decoded, and the most memory that this takes, with the pixels (H, W, 3) that come out.

    `data` has the image without what a decoder need not see.
    """

    header: Probe
    memory_bytes: int
    data: bytes = field(repr=False)


# EXIF

UPRIGHT = 1
_ORIENTATION_TAG = 0x0112
_UINT16 = 3


def exif_orientation(block: bytes) -> int:
    """Return the orientation (1 to 8) that a block of EXIF data names; 1, upright, where it is damaged or names none.

    Source: Exif 2.32 (CIPA DC-008), 4.6.4; TIFF 6.0, section 2. At most 65,535 entries of 12 bytes are looked at.
    """
    order = {b"II": "<", b"MM": ">"}.get(block[:2])
    if order is None or len(block) < 8:
        return UPRIGHT
    magic, first = struct.unpack_from(f"{order}HI", block, 2)
    if magic != 42 or first + 2 > len(block):
        return UPRIGHT
    (entries,) = struct.unpack_from(f"{order}H", block, first)
    for place in range(first + 2, min(first + 2 + 12 * entries, len(block) - 11), 12):
        tag, kind, _, value = struct.unpack_from(f"{order}HHIH", block, place)
        if tag == _ORIENTATION_TAG:
            return value if kind == _UINT16 and 1 <= value <= 8 else UPRIGHT
    return UPRIGHT


# PNG

PNG_DEPTHS = {0: (1, 2, 4, 8, 16), 2: (8, 16), 3: (1, 2, 4, 8), 4: (8, 16), 6: (8, 16)}
"""The bits of a sample by colour type: grey, RGB, palette, grey with alpha, RGB with alpha."""

PNG_SAMPLES = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}
PNG_CHANNELS = {0: 1, 2: 3, 3: 3, 4: 4, 6: 4}

_IHDR = struct.Struct(">IIBBBBB")
_CHUNK = struct.Struct(">I4s")
_FRAMING_BYTES = 12
_FIRST_CHUNK = len(PNG_SIGNATURE)
_HEADER_END = _FIRST_CHUNK + _FRAMING_BYTES + _IHDR.size
_WANTED = frozenset({b"IHDR", b"PLTE", b"tRNS", b"IDAT", b"IEND"})
_ADAM7 = ((0, 0, 8, 8), (4, 0, 8, 8), (0, 4, 4, 8), (2, 0, 4, 4), (0, 2, 2, 4), (1, 0, 2, 2), (0, 1, 1, 2))
"""First column, first row, step of columns, step of rows of each pass of an interlaced PNG."""


def png_probe(data: bytes) -> Probe:
    """Read the header of a PNG. Raises ImageError."""
    if len(data) < _HEADER_END or _CHUNK.unpack_from(data, _FIRST_CHUNK) != (_IHDR.size, b"IHDR"):
        raise ImageError(f"PNG of {len(data)} bytes does not begin with its header")
    width, height, depth, colour, compression, filtering, interlace = _IHDR.unpack_from(data, _FIRST_CHUNK + 8)
    if not (1 <= width <= MAX_SIDE_PX and 1 <= height <= MAX_SIDE_PX):
        raise ImageError(f"PNG header announces {height}x{width} px: sides of 1 to {MAX_SIDE_PX} are read")
    if depth not in PNG_DEPTHS.get(colour, ()) or compression or filtering or interlace > 1:
        raise ImageError(
            f"PNG header announces colour type {colour} of {depth} bits, compression {compression}, filter "
            f"{filtering} and interlacing {interlace}, which the format does not know"
        )
    return Probe(Codec.PNG, height, width, PNG_CHANNELS[colour], 8 if colour == 3 else depth)


def png_plan(data: bytes) -> Plan:
    """Follow the chunks of a PNG and return what decoding needs. Raises ImageError.

    What is not needed for the pixels is left out: texts and profiles, which may be compressed, and animations.
    """
    header = png_probe(data)
    pieces, data_bytes = _png_pieces(data)
    _, _, depth, colour, *_, interlace = _IHDR.unpack_from(data, _FIRST_CHUNK + 8)
    needed_bytes = png_scanline_bytes(header.height, header.width, depth * PNG_SAMPLES[colour], interlace)
    if needed_bytes > (data_bytes + 1) * DEFLATE_RATIO:
        raise ImageError(
            f"PNG of {header.height}x{header.width} px has {data_bytes} bytes of data, which cannot hold its "
            f"{needed_bytes} bytes of pixels"
        )
    # OpenCV 5.0 holds its array of all channels twice while it decodes, as measured; then ours stands beside it once,
    # and beside ours of 16 bits one of 8 bits.
    sample_bytes = 2 if depth == 16 else 1
    library_bytes = (4 if colour == 3 else header.channels) * sample_bytes  # a palette may have alpha
    result_bytes = 3 * sample_bytes
    pixel_bytes = max(2 * library_bytes, library_bytes + result_bytes, result_bytes + 3 * (sample_bytes - 1))
    memory_bytes = header.height * header.width * pixel_bytes
    whole = len(pieces) == 1 and len(pieces[0]) == len(data)
    return Plan(header, memory_bytes, data if whole else b"".join(pieces))


def _png_pieces(data: bytes) -> tuple[list[memoryview], int]:
    """Return the stretches of a PNG that hold what is needed for the pixels, and the bytes of compressed data."""
    view, size_bytes, place = memoryview(data), len(data), _FIRST_CHUNK
    pieces, start, data_bytes, last = [], 0, 0, b""
    for _ in range(CHUNK_LIMIT):
        if place + _FRAMING_BYTES > size_bytes:
            raise ImageError(f"PNG of {size_bytes} bytes ends before its last chunk")
        length, kind = _CHUNK.unpack_from(data, place)
        end = place + _FRAMING_BYTES + length
        if end > size_bytes:
            raise ImageError(f"PNG of {size_bytes} bytes announces a chunk of {length} bytes at byte {place}")
        if kind in _WANTED:
            if not _may_follow(kind, last, data_bytes):
                raise ImageError(f"PNG has a chunk {kind.decode()} at byte {place}, where the format allows none")
            data_bytes += length if kind == b"IDAT" else 0
            last = kind
        elif not kind.isalpha() or kind[:1].isupper():
            raise ImageError(f"PNG has a chunk {kind!r} at byte {place}, which the format does not know")
        else:
            if kind == b"eXIf" and (orientation := exif_orientation(data[place + 8 : end - 4])) != UPRIGHT:
                raise ImageError(f"PNG is to be turned by its EXIF data (orientation {orientation}): save it upright")
            pieces.append(view[start:place])
            start = end
            last = b"IDAT ended" if last == b"IDAT" else last
        place = end
        if kind == b"IEND":
            return [*(piece for piece in pieces if piece), view[start:place]], data_bytes
    raise ImageError(f"PNG of {size_bytes} bytes has more than {CHUNK_LIMIT} chunks")


def _may_follow(kind: bytes, last: bytes, data_bytes: int) -> bool:
    """Return whether a chunk may come after the needed chunk `last`: IHDR [PLTE] [tRNS] IDAT... IEND."""
    allowed = {
        b"": (b"IHDR",),
        b"IHDR": (b"PLTE", b"tRNS", b"IDAT"),
        b"PLTE": (b"tRNS", b"IDAT"),
        b"tRNS": (b"IDAT",),
        b"IDAT": (b"IDAT", b"IEND"),
        b"IDAT ended": (b"IEND",),
    }
    return kind in allowed[last] and (kind != b"IEND" or data_bytes > 0)


def png_scanline_bytes(height: int, width: int, pixel_bits: int, interlace: int) -> int:
    """Return the bytes of a PNG's scanlines, each with its filter type, before compression."""
    passes = _ADAM7 if interlace else ((0, 0, 1, 1),)
    total = 0
    for left, top, step_x, step_y in passes:
        columns, rows = -(-max(0, width - left) // step_x), -(-max(0, height - top) // step_y)
        total += rows * (1 + (columns * pixel_bits + 7) // 8) if columns else 0
    return total


# JPEG

_SOF_READ = {0xC0, 0xC1, 0xC2}
"""Frames of baseline, extended and progressive DCT with Huffman codes."""

_SOF_UNREAD = {0xC3, 0xC5, 0xC6, 0xC7, 0xC9, 0xCA, 0xCB, 0xCD, 0xCE, 0xCF}
"""Lossless, hierarchical and arithmetic-coded frames, which no camera sends and the libraries decode slowly or not."""

_SKIPPED = {0xC4, 0xDB, 0xDD, 0xFE, *range(0xE0, 0xF0)}
"""Tables, the restart interval, comments and application data."""

_SOS, _EOI, _APP1 = 0xDA, 0xD9, 0xE1
_EXIF = b"Exif\0\0"
_KNOWN = frozenset(_SOF_READ | _SOF_UNREAD | _SKIPPED | {_SOS})
_LENGTH = struct.Struct(">BBH")
_MARKER_IN_SCAN = re.compile(rb"\xff[^\x00\xd0-\xd7\xff]")
"""What ends a scan: neither a stuffed byte nor a restart, nor the fill before a marker."""


def jpeg_probe(data: bytes) -> Probe:
    """Read the header of a JPEG. Raises ImageError."""
    orientation = None
    for marker, start, end in _jpeg_segments(data):
        if orientation is None and marker == _APP1:
            orientation = _jpeg_orientation(data, start, end)
        if marker in _SOF_READ or marker in _SOF_UNREAD:
            return _jpeg_frame(data, marker, start, end, orientation or UPRIGHT)
        if marker == _SOS:
            break
    raise ImageError(f"JPEG of {len(data)} bytes has a damaged header: it has no frame")


def jpeg_plan(data: bytes) -> Plan:
    """Follow the segments of a JPEG and return what decoding needs. Raises ImageError."""
    header, scans, is_progressive, orientation = None, 0, False, None
    for marker, start, end in _jpeg_segments(data):
        if marker in _SKIPPED:
            if orientation is None and marker == _APP1 and header is None:
                orientation = _jpeg_orientation(data, start, end)
            continue
        if marker in _SOF_READ or marker in _SOF_UNREAD:
            if header is not None:
                raise ImageError(f"JPEG of {len(data)} bytes has a second frame at byte {start}")
            header = _jpeg_frame(data, marker, start, end, orientation or UPRIGHT)
            is_progressive = marker == 0xC2
        elif header is None:
            raise ImageError(f"JPEG of {len(data)} bytes has a damaged header: it has no frame")
        elif marker == _SOS:
            scans += 1
            if scans > SCAN_LIMIT:
                raise ImageError(f"JPEG of {len(data)} bytes has more than {SCAN_LIMIT} scans")
            if scans == 1 and not is_progressive and start < end and data[start] == header.channels:
                # All channels in one scan: the library reads this one, row by row, and nothing after it.
                return Plan(header, _jpeg_memory(header, has_coefficients=False), data)
        elif scans:  # the end
            return Plan(header, _jpeg_memory(header, has_coefficients=True), data)
    raise ImageError(f"JPEG of {len(data)} bytes has no picture")


def _jpeg_memory(header: Probe, *, has_coefficients: bool) -> int:
    """Return the bytes that decoding takes: our array, the library's for four channels, coefficients of 16 bits.

    What is turned stands beside what is not.
    """
    padded_px = -(-header.height // 32) * -(-header.width // 32) * 32 * 32  # blocks of 8 px, sampled up to fourfold
    pixel_bytes = 6 if header.channels == 4 or header.orientation != UPRIGHT else 3
    return header.height * header.width * pixel_bytes + (2 * header.channels * padded_px if has_coefficients else 0)


def _jpeg_segments(data: bytes) -> Iterator[tuple[int, int, int]]:
    """Yield marker, first byte and end of the segments of a JPEG, until its end marker. Raises ImageError."""
    size_bytes, place = len(data), len(JPEG_SIGNATURE)
    for _ in range(SEGMENT_LIMIT):
        while data[place : place + 2] == b"\xff\xff":  # fill
            place += 1
        if data[place : place + 2] == b"\xff\xd9":
            yield _EOI, place + 2, place + 2
            return
        if place + 4 > size_bytes:
            raise ImageError(f"JPEG of {size_bytes} bytes has a damaged header, or no end: nothing at byte {place}")
        first, marker, length = _LENGTH.unpack_from(data, place)
        start, end = place + 4, place + 2 + length
        if first != 0xFF or marker not in _KNOWN:
            raise ImageError(f"JPEG of {size_bytes} bytes has a damaged header: no segment begins at byte {place}")
        if length < 2 or end > size_bytes:
            raise ImageError(f"JPEG of {size_bytes} bytes announces a segment of {length} bytes at byte {place}")
        yield marker, start, end
        place = end
        if marker == _SOS:
            following = _MARKER_IN_SCAN.search(data, end)
            if following is None:
                raise ImageError(f"JPEG of {size_bytes} bytes ends within a scan")
            place = following.start()
    raise ImageError(f"JPEG of {size_bytes} bytes has more than {SEGMENT_LIMIT} segments")


def _jpeg_orientation(data: bytes, start: int, end: int) -> int | None:
    """Return the orientation in a segment APP1, None for one that holds no EXIF data."""
    return exif_orientation(data[start + len(_EXIF) : end]) if data.startswith(_EXIF, start, end) else None


def _jpeg_frame(data: bytes, marker: int, start: int, end: int, orientation: int) -> Probe:
    if marker in _SOF_UNREAD:
        raise ImageError(f"JPEG is coded as SOF{marker - 0xC0}: baseline and progressive Huffman codes are read")
    if end - start < 6:
        raise ImageError(f"JPEG of {len(data)} bytes has a damaged header: a frame of {end - start} bytes")
    depth, height, width, channels = struct.unpack_from(">BHHB", data, start)
    if depth != 8 or channels not in (1, 3, 4) or end - start != 6 + 3 * channels:
        raise ImageError(f"JPEG has {channels} channels of {depth} bits: 1, 3 or 4 of 8 bits are read")
    factors = [divmod(data[place], 16) for place in range(start + 7, end, 3)]
    if not (height and width) or any(not (1 <= high <= 4 and 1 <= wide <= 4) for wide, high in factors):
        raise ImageError(f"JPEG header announces {height}x{width} px, sampled by {factors}")
    if orientation > 4:  # turned by a quarter
        height, width = width, height
    return Probe(Codec.JPEG, height, width, channels, orientation=orientation)
