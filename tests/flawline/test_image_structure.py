"""What an image costs is known before a library sees it, and what costs too much is refused; ordinary images pass."""

from __future__ import annotations

import io
import struct
import tracemalloc
from typing import Any

import numpy as np
import pytest
from PIL import Image, PngImagePlugin

from flawline import imaging
from flawline.image_structure import CHUNK_LIMIT, SCAN_LIMIT, SEGMENT_LIMIT, ImageError
from flawline.messages import Codec
from flawline.settings.tree import FrameSettings
from tests.support.hostile_images import WORST, black_png, chunk, jpeg_of_many_scans, noise, png_header

PIXELS = noise(40, 56)
IMAGE = Image.fromarray(PIXELS)
LIMIT_BYTES = FrameSettings().decoded_limit_bytes


def saved(image: Image.Image, kind: str, **options: Any) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


PNG = saved(IMAGE, "PNG")
JPEG = saved(IMAGE, "JPEG")
PROGRESSIVE = saved(IMAGE, "JPEG", progressive=True)


@pytest.mark.parametrize("name", WORST)
def test_an_image_that_would_hold_a_worker_is_refused_without_memory(name: str) -> None:
    data = WORST[name]()
    codec = Codec.JPEG if data[:2] == b"\xff\xd8" else Codec.PNG
    tracemalloc.start()
    with pytest.raises(ImageError):
        imaging.plan(data, codec, memory_limit_bytes=LIMIT_BYTES)
    assert tracemalloc.get_traced_memory()[1] < 1 << 20
    tracemalloc.stop()


# Ordinary images


def information() -> PngImagePlugin.PngInfo:
    result = PngImagePlugin.PngInfo()
    result.add_text("comment", "x" * 100_000, zip=True)
    result.add_itxt("title", "Teil", zip=True)
    return result


@pytest.mark.parametrize(
    "options",
    [
        {"pnginfo": information()},
        {"icc_profile": b"profile" * 1000},
        {"dpi": (300, 300)},
        {"exif": b"Exif\x00\x00MM\x00*\x00\x00\x00\x08\x00\x00\x00\x00\x00\x00"},
        {"save_all": True, "append_images": [Image.fromarray(noise(40, 56)[::-1])]},
    ],
    ids=["texts", "profile", "resolution", "exif", "animation"],
)
def test_what_a_png_has_beside_its_pixels_does_not_reach_the_library_and_changes_no_pixel(
    options: dict[str, Any],
) -> None:
    data = saved(IMAGE, "PNG", **options)
    planned = imaging.plan(data, Codec.PNG)
    assert len(planned.data) < len(data)
    np.testing.assert_array_equal(imaging.pixels(planned), PIXELS)


def test_gamma_and_colours_of_a_png_change_no_pixel() -> None:
    gamma = chunk(b"gAMA", struct.pack(">I", 100_000)) + chunk(b"sRGB", b"\0") + chunk(b"cHRM", bytes(32))
    np.testing.assert_array_equal(imaging.decode(PNG[:33] + gamma + PNG[33:], Codec.PNG), PIXELS)


def test_a_png_that_has_its_pixels_only_is_not_copied() -> None:
    assert imaging.plan(PNG, Codec.PNG).data is PNG


def test_what_follows_the_end_of_a_png_is_left_out() -> None:
    assert imaging.plan(PNG + b"trailer", Codec.PNG).data == PNG


@pytest.mark.parametrize(("depth", "colour"), [(1, 0), (8, 0), (16, 0), (8, 2), (16, 2), (8, 4), (8, 6), (16, 6)])
@pytest.mark.parametrize("interlace", [0, 1])
def test_png_of_every_depth_and_order_is_read_within_its_memory(depth: int, colour: int, interlace: int) -> None:
    height, width = 67, 45
    data = black_png(height, width, depth=depth, colour=colour, interlace=interlace)
    planned = imaging.plan(data, Codec.PNG)
    assert 4 * height * width <= planned.memory_bytes <= 16 * height * width
    assert not imaging.pixels(planned, blends=True).any()


@pytest.mark.parametrize(
    "options",
    [
        {"subsampling": 0},
        {"subsampling": 1},
        {"subsampling": 2},
        {"progressive": True},
        {"progressive": True, "subsampling": 0},
        {"restart_marker_blocks": 1},
        {"progressive": True, "restart_marker_rows": 1},
        {"icc_profile": bytes(200_000)},
        {"comment": b"x" * 60_000},
        {"exif": b"Exif\x00\x00MM\x00*\x00\x00\x00\x08\x00\x00\x00\x00\x00\x00"},
    ],
    ids=str,
)
@pytest.mark.parametrize("mode", ["RGB", "L", "CMYK"])
def test_jpeg_of_every_order_is_read(mode: str, options: dict[str, Any]) -> None:
    image = IMAGE.convert(mode)
    planned = imaging.plan(saved(image, "JPEG", **options), Codec.JPEG)
    assert planned.header.channels == {"L": 1, "RGB": 3, "CMYK": 4}[mode]
    decoded, expected = imaging.pixels(planned).astype(int), np.asarray(image.convert("RGB")).astype(int)
    assert decoded.shape == expected.shape
    assert np.abs(decoded.mean((0, 1)) - expected.mean((0, 1))).max() < 12


def test_a_progressive_jpeg_counts_the_coefficients_that_the_library_keeps() -> None:
    plain, progressive = imaging.plan(JPEG, Codec.JPEG), imaging.plan(PROGRESSIVE, Codec.JPEG)
    assert plain.memory_bytes == 3 * 40 * 56
    assert progressive.memory_bytes == 3 * 40 * 56 + 2 * 3 * 64 * 64


def test_sixteen_bits_and_alpha_are_converted_in_strips_as_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    deep = np.random.default_rng(0).integers(0, 1 << 16, (31, 17, 4), np.uint16)
    at_once = imaging.to_rgb(deep, blends=True)
    eight_at_once = imaging.eight_bits(at_once)
    monkeypatch.setattr(imaging, "STRIP_PX", 17 * 4)
    np.testing.assert_array_equal(imaging.to_rgb(deep, blends=True), at_once)
    np.testing.assert_array_equal(imaging.eight_bits(at_once), eight_at_once)
    np.testing.assert_array_equal(eight_at_once, at_once >> 8)
    np.testing.assert_allclose(at_once, deep[..., :3] * (deep[..., 3:] / 65_535), atol=1)


# What breaks the format or a limit

END = chunk(b"IEND")
DATA = chunk(b"IDAT", b"x\x9cc\x00\x00\x00\x01\x00\x01")
HEAD = png_header(1, 1)


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (HEAD + DATA, "ends before its last chunk"),
        (HEAD + END, "IEND at byte 33, where the format allows none"),
        (HEAD + chunk(b"IDAT") + END, "IEND"),
        (HEAD + HEAD[8:] + DATA + END, "IHDR at byte 33"),
        (HEAD + DATA + chunk(b"PLTE", bytes(3)) + END, "PLTE"),
        (HEAD + DATA + chunk(b"tEXt") + DATA + END, "IDAT"),
        (HEAD + chunk(b"CgBI") + DATA + END, "CgBI"),
        (HEAD + chunk(b"a\n!x") + DATA + END, "does not know"),
        (HEAD + chunk(b"tEXt") * CHUNK_LIMIT + DATA + END, f"more than {CHUNK_LIMIT} chunks"),
        (png_header(1, 1, depth=3) + DATA + END, "colour type 2 of 3 bits"),
        (png_header(1, 1, colour=5) + DATA + END, "colour type 5"),
        (png_header(1, 1, interlace=2) + DATA + END, "interlacing 2"),
        (png_header(5_000, 5_000) + DATA + END, "cannot hold"),
        (HEAD[:8] + chunk(b"tEXt") + HEAD[8:] + DATA + END, "does not begin with its header"),
    ],
)
def test_png_out_of_order_is_refused_with_the_place(data: bytes, words: str) -> None:
    with pytest.raises(ImageError, match=words) as caught:
        imaging.plan(data, Codec.PNG)
    assert "\n" not in str(caught.value)


def changed(data: bytes, marker: bytes, offset: int, value: bytes) -> bytes:
    place = data.index(marker) + offset
    return data[:place] + value + data[place + len(value) :]


FRAME = b"\xff\xc2\x00\x11\x08\x00\x28\x00\x38\x03" + b"\x01\x11\x00" * 3
COMMENT = b"\xff\xfe\x00\x02"


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (JPEG[:2] + COMMENT * SEGMENT_LIMIT + JPEG[2:], f"more than {SEGMENT_LIMIT} segments"),
        (jpeg_of_many_scans(SCAN_LIMIT, 64, 64), f"more than {SCAN_LIMIT} scans"),
        (PROGRESSIVE[:-2], "ends within a scan"),
        (JPEG[:2] + b"\xff\xfe\xff\xff" + JPEG[2:400], "announces a segment of 65535 bytes"),
        (JPEG[:2] + b"\xff\xfe\x00\x01" + JPEG[2:], "announces a segment of 1 bytes"),
        (JPEG[:2] + b"\xff\x05\x00\x02" + JPEG[2:], "no segment begins at byte 2"),
        (JPEG[:2] + b"\xff\xd9", "no frame"),
        (changed(JPEG, b"\xff\xc0", 1, b"\xc9"), "SOF9"),
        (changed(JPEG, b"\xff\xc0", 1, b"\xc3"), "SOF3"),
        (changed(JPEG, b"\xff\xc0", 4, b"\x0c"), "of 12 bits"),
        (changed(JPEG, b"\xff\xc0", 5, b"\x00\x00"), "0x56 px"),
        (changed(JPEG, b"\xff\xc0", 11, b"\xf1"), "sampled"),
        (PROGRESSIVE.replace(b"\xff\xda", FRAME + b"\xff\xda"), "second frame"),
    ],
)
def test_jpeg_out_of_order_is_refused_with_the_place(data: bytes, words: str) -> None:
    with pytest.raises(ImageError, match=words) as caught:
        imaging.plan(data, Codec.JPEG)
    assert "\n" not in str(caught.value)


def test_as_many_scans_as_the_limit_are_allowed() -> None:
    assert imaging.plan(jpeg_of_many_scans(SCAN_LIMIT - 9, 64, 64), Codec.JPEG).header.height == 64
