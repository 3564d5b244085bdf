"""Damage to messages and images, as a bad cable or a bad person does it; the same for the same generator."""

from __future__ import annotations

import random
import struct
import zlib
from collections.abc import Callable
from functools import cache
from io import BytesIO
from typing import Any

import msgpack
from PIL import Image

from flawline import imaging
from flawline.image_structure import PNG_SIGNATURE
from flawline.messages import Codec
from tests.support.hostile_images import black_png, chunk, noise

EDGES = (0, 1, 0x7F, 0x80, 0xFE, 0xFF)
NUMBERS = (-1, 0, 1, 255, 65_536, 2**31, 2**32, 2**53, 2**63 - 1, 2**63, 2**64 - 1, -(2**63), 1.5, float("nan"))

Mutation = Callable[[random.Random, bytes], bytes]


# Any bytes


def flip(rng: random.Random, data: bytes) -> bytes:
    """Change one to eight bytes."""
    changed = bytearray(data)
    for _ in range(rng.randint(1, 8) if data else 0):
        place = rng.randrange(len(changed))
        changed[place] = rng.choice((rng.randrange(256), rng.choice(EDGES), changed[place] ^ (1 << rng.randrange(8))))
    return bytes(changed)


def cut(rng: random.Random, data: bytes) -> bytes:
    """Leave the end, or a stretch, out."""
    first = rng.randrange(len(data) + 1)
    return data[:first] + (data[rng.randrange(first, len(data) + 1) :] if rng.random() < 0.5 else b"")


def repeat(rng: random.Random, data: bytes) -> bytes:
    """Repeat a stretch up to nine times."""
    first = rng.randrange(len(data) + 1)
    last = min(len(data), first + rng.randrange(1, 2_000))
    return data[:last] + data[first:last] * rng.randint(1, 9) + data[last:]


def insert(rng: random.Random, data: bytes) -> bytes:
    """Put up to 64 random bytes anywhere."""
    place = rng.randrange(len(data) + 1)
    return data[:place] + rng.randbytes(rng.randint(1, 64)) + data[place:]


ANY_BYTES: tuple[Mutation, ...] = (flip, flip, cut, repeat, insert)


# Messages


def change_field(rng: random.Random, data: bytes) -> bytes:
    """Give one field of a message, at any depth, another value, take it away, or add one."""
    content = msgpack.unpackb(data)
    part, key = rng.choice(list(_places(content)))
    action = rng.random()
    if action < 0.1 and isinstance(part, dict):
        del part[key]
    elif action < 0.2 and isinstance(part, dict):
        part[rng.choice(("colour", "", "t", "v", "camera"))] = _value(rng)
    else:
        part[key] = _value(rng)
    return msgpack.packb(content, unicode_errors="surrogatepass")


def _places(content: Any) -> Any:
    for key, value in content.items() if isinstance(content, dict) else enumerate(content):
        yield content, key
        if isinstance(value, dict | list):
            yield from _places(value)


def _value(rng: random.Random) -> Any:
    simple = (
        lambda: rng.choice(NUMBERS),
        lambda: rng.choice(("", "..", "../x", "a\x00b", "\ud800", "x" * 10_000, "line\nline", "é" * 200)),
        lambda: rng.randbytes(rng.choice((0, 1, 16, 5_000))),
        lambda: rng.choice((None, True, False)),
    )
    kind = rng.randrange(6)
    if kind < 4:
        return simple[kind]()
    items = [simple[rng.randrange(4)]() for _ in range(rng.randint(0, 5))]
    return items if kind == 4 else {str(number): item for number, item in enumerate(items)}


def nest(rng: random.Random, data: bytes) -> bytes:
    """Replace a message by lists or maps in each other."""
    return rng.choice((b"\x91", b"\x81\xa1a", b"\xdd\xff\xff\xff\xff", b"\xdf\xff\xff\xff\xff")) * rng.randint(1, 4_000)


OF_MESSAGES: tuple[Mutation, ...] = (*ANY_BYTES, change_field, change_field, change_field, nest)


# Images


@cache
def images() -> tuple[bytes, ...]:
    """Return small images of every kind that is read, one of which is half of what may be decoded."""
    image = Image.fromarray(noise(96, 72))
    jpegs: tuple[tuple[str, dict[str, Any]], ...] = (
        ("RGB", {}),
        ("RGB", {"subsampling": 0, "restart_marker_blocks": 3}),
        ("RGB", {"progressive": True}),
        ("RGB", {"progressive": True, "restart_marker_rows": 1}),
        ("L", {}),
        ("L", {"progressive": True}),
        ("CMYK", {}),
    )
    pngs: tuple[tuple[str, dict[str, Any]], ...] = (
        ("RGB", {}),
        ("RGB", {"icc_profile": bytes(500)}),
        ("P", {}),
        ("LA", {}),
        ("1", {}),
    )
    return (
        *(_saved(image.convert(mode), "JPEG", options) for mode, options in jpegs),
        *(_saved(image.convert(mode), "PNG", options) for mode, options in pngs),
        imaging.encode(noise(96, 96), Codec.PNG),
        black_png(120, 90, depth=16, colour=6, interlace=1),
        black_png(3_000, 3_000, depth=16, colour=6),
    )


def _saved(image: Image.Image, kind: str, options: dict[str, Any]) -> bytes:
    file = BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def change_image(rng: random.Random, data: bytes) -> bytes:
    """Change a PNG by its chunks, with right checksums, or a JPEG by its segments."""
    return (change_png if data.startswith(PNG_SIGNATURE) else change_jpeg)(rng, data)


def change_png(rng: random.Random, data: bytes) -> bytes:
    """Change, repeat, remove, move or add chunks of a PNG, or damage its scanlines; checksums stay right."""
    chunks = list(_chunks(data))
    if not chunks:
        return flip(rng, data)
    action, place = rng.randrange(6), rng.randrange(len(chunks))
    kind, body = chunks[place]
    if action == 0:
        chunks[place] = kind, flip(rng, body)
    elif action == 1:
        chunks[place:place] = [chunks[place]] * rng.choice((1, 3, 2_000))
    elif action == 2:
        del chunks[place]
    elif action == 3:
        chunks.insert(rng.randrange(len(chunks)), chunks.pop(place))
    elif action == 4:
        added = rng.choice((b"tRNS", b"PLTE", b"acTL", b"fdAT", b"zTXt", b"iCCP", b"CgBI", b"IHDR", b"IEND"))
        chunks.insert(place, (added, rng.randbytes(rng.choice((0, 3, 6, 256, 768, 3_000)))))
    else:
        scanlines = b"".join(body for kind, body in chunks if kind == b"IDAT")
        try:
            raw = zlib.decompressobj().decompress(scanlines, 1 << 20)
        except zlib.error:
            raw = b""
        changed = zlib.compress(ANY_BYTES[rng.randrange(len(ANY_BYTES))](rng, raw))
        chunks = [item for item in chunks if item[0] != b"IDAT"]
        chunks.insert(max(0, len(chunks) - 1), (b"IDAT", changed))
    return PNG_SIGNATURE + b"".join(chunk(kind, body) for kind, body in chunks)


def _chunks(data: bytes) -> Any:
    place = len(PNG_SIGNATURE)
    while place + 12 <= len(data):
        length, kind = struct.unpack_from(">I4s", data, place)
        yield kind, data[place + 8 : place + 8 + length]
        place += 12 + length


def change_jpeg(rng: random.Random, data: bytes) -> bytes:
    """Change, repeat, remove or move a stretch between two markers of a JPEG, or its announced size."""
    places = [place for place in range(len(data) - 1) if data[place] == 0xFF and data[place + 1] not in (0, 0xFF)]
    pieces = [data[first:last] for first, last in zip(places, [*places[1:], len(data)], strict=True)]
    if not pieces:
        return flip(rng, data)
    action, place = rng.randrange(6), rng.randrange(len(pieces))
    if action == 0:
        pieces[place] = flip(rng, pieces[place])
    elif action == 1:
        pieces[place:place] = [pieces[place]] * rng.choice((1, 5, 60, 1_500))
    elif action == 2:
        del pieces[place]
    elif action == 3:
        pieces.insert(rng.randrange(len(pieces)), pieces.pop(place))
    elif action == 4:
        pieces[place] = pieces[place][:1] + bytes([rng.choice((0x01, *range(0xC0, 0xFF)))]) + pieces[place][2:]
    else:
        return _resized(rng, data)
    return b"".join(pieces)


def _resized(rng: random.Random, data: bytes) -> bytes:
    for marker in (b"\xff\xc0", b"\xff\xc2"):
        if (place := data.find(marker)) >= 0 and place + 9 <= len(data):
            sides = struct.pack(">HH", rng.choice((0, 1, 97, 3_000, 65_535)), rng.choice((0, 1, 73, 4_000, 65_535)))
            return data[: place + 5] + sides + data[place + 9 :]
    return flip(rng, data)


OF_IMAGES: tuple[Mutation, ...] = (flip, cut, repeat, insert, change_image, change_image, change_image)


def mutated(rng: random.Random, data: bytes, mutations: tuple[Mutation, ...]) -> bytes:
    """Return `data` after one to three mutations; what a message is no more is changed by its bytes."""
    for _ in range(rng.choice((1, 1, 2, 3))):
        mutation = rng.choice(mutations)
        try:
            data = mutation(rng, data)
        except (ValueError, TypeError, IndexError, msgpack.UnpackException, OverflowError):
            data = flip(rng, data)
    return data
