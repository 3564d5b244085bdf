"""Bytes become pixels in one way only, and wrong bytes become an error of one line before memory is taken."""

from __future__ import annotations

import io
import struct
import tracemalloc
import zlib
from pathlib import Path

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageOps

from flawline import imaging
from flawline.errors import FlawlineError
from flawline.image_structure import exif_orientation
from flawline.imaging import ImageError
from flawline.messages import MAX_SIDE_PX, Codec

RNG = np.random.default_rng(3)
PIXELS = cv2.GaussianBlur(RNG.integers(0, 256, (24, 40, 3), np.uint8), (0, 0), 2)
SHAPE = (24, 40, 3)


def saved(image: Image.Image, kind: str) -> bytes:
    file = io.BytesIO()
    image.save(file, kind)
    return file.getvalue()


def png_header(height: int, width: int) -> bytes:
    """Return a PNG that announces a size and has no pixels."""
    body = b"IHDR" + struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return imaging.PNG_SIGNATURE + struct.pack(">I", 13) + body + struct.pack(">I", zlib.crc32(body))


def jpeg_header(height: int, width: int) -> bytes:
    """Return a JPEG whose header announces a wrong size."""
    data = bytearray(imaging.encode(PIXELS, Codec.JPEG))
    place = data.index(b"\xff\xc0") + 5
    data[place : place + 4] = struct.pack(">HH", height, width)
    return bytes(data)


@pytest.mark.parametrize("codec", [Codec.PNG, Codec.RAW])
def test_lossless_codecs_give_the_same_pixels(codec: Codec) -> None:
    data = imaging.encode(PIXELS, codec)
    np.testing.assert_array_equal(imaging.decode(data, codec, shape=SHAPE), PIXELS)


def test_jpeg_keeps_size_channel_order_and_look() -> None:
    red = np.zeros((16, 16, 3), np.uint8)
    red[:, :, 0] = 200
    decoded = imaging.decode(imaging.encode(red, Codec.JPEG), Codec.JPEG)
    assert decoded.shape == (16, 16, 3) and decoded.dtype == np.uint8
    assert abs(decoded.astype(int) - red).max() < 10


@pytest.mark.parametrize("codec", [Codec.JPEG, Codec.PNG])
def test_probe_reads_the_size_from_the_header(codec: Codec) -> None:
    header = imaging.probe(imaging.encode(PIXELS, codec))
    assert (header.codec, header.height, header.width, header.channels) == (codec, *SHAPE)


@pytest.mark.parametrize("data", [b"", b"GIF89a" + bytes(40), b"\xff\xd8", b"\xff\xd8\xff", imaging.PNG_SIGNATURE])
def test_probe_of_something_else_is_an_image_error(data: bytes) -> None:
    with pytest.raises(ImageError):
        imaging.probe(data)


@pytest.mark.parametrize("mode", ["L", "LA", "RGB", "RGBA", "P", "1", "I;16"])
def test_png_of_any_mode_becomes_rgb_of_8_bits(mode: str) -> None:
    image = (
        Image.fromarray((PIXELS[:, :, 0].astype(np.uint16) << 8) | 255)
        if mode == "I;16"
        else Image.fromarray(PIXELS).convert(mode)
    )
    decoded = imaging.decode(saved(image, "PNG"), Codec.PNG)
    assert decoded.shape == SHAPE and decoded.dtype == np.uint8
    if mode in ("RGB", "RGBA"):
        np.testing.assert_array_equal(decoded, PIXELS)
    elif mode == "I;16":
        np.testing.assert_array_equal(decoded, np.repeat(PIXELS[:, :, :1], 3, axis=2))
    elif mode in ("L", "LA"):
        assert (decoded[:, :, 0] == decoded[:, :, 2]).all()


@pytest.mark.parametrize("mode", ["L", "CMYK"])
def test_jpeg_of_any_mode_becomes_rgb(mode: str) -> None:
    image = Image.fromarray(PIXELS).convert(mode)
    decoded = imaging.decode(saved(image, "JPEG"), Codec.JPEG)
    assert decoded.shape == SHAPE
    expected = np.asarray(image.convert("RGB")).astype(int)
    assert abs(decoded.astype(int) - expected).mean() < 12


@pytest.mark.parametrize("alpha", [(0, 0, 255, 255), (128, 128, 128, 128), (255, 255, 255, 254)])
def test_transparent_image_is_refused_in_one_line_and_not_darkened(alpha: tuple[int, ...]) -> None:
    image = np.full((4, 4, 4), 200, np.uint8)
    image[:, :, 3] = alpha
    data = saved(Image.fromarray(image), "PNG")
    with pytest.raises(ImageError, match="save it without its alpha channel"):
        imaging.decode(data, Codec.PNG)
    with pytest.raises(ImageError, match="alpha"):
        imaging.decode(image.tobytes(), Codec.RAW, shape=image.shape)


def test_drawn_mask_is_black_where_it_is_transparent(tmp_path: Path) -> None:
    drawing = np.full((4, 4, 4), 200, np.uint8)
    drawing[:, :, 3] = (0, 0, 255, 255)
    Image.fromarray(drawing).save(tmp_path / "mask.png")
    assert imaging.read_samples(tmp_path / "mask.png", blends=True)[0, :, 0].tolist() == [0, 0, 200, 200]


@pytest.mark.parametrize("bits", [10, 12, 14, 16])
@pytest.mark.parametrize("channels", [1, 3])
def test_samples_of_any_depth_are_scaled_by_their_own_depth(tmp_path: Path, bits: int, channels: int) -> None:
    deep = (PIXELS[:, :, :channels].astype(np.uint16) << (bits - 8)) + 3
    data = cv2.imencode(".png", deep)[1].tobytes()
    (tmp_path / "part.png").write_bytes(data)
    cv2.imwrite(str(tmp_path / "part.tif"), deep)
    expected = PIXELS[:, :, ::-1] if channels == 3 else np.repeat(PIXELS[:, :, :1], 3, axis=2)
    planned = imaging.plan(data, Codec.PNG)
    assert planned.header.sample_bits == 16 and imaging.pixels(planned).dtype == np.uint16
    for name in ("part.png", "part.tif"):
        np.testing.assert_array_equal(imaging.read_image(tmp_path / name, bits), expected)
    np.testing.assert_array_equal(imaging.eight_bits(imaging.pixels(planned), bits), expected)


def test_sample_beyond_the_depth_is_refused_with_both_depths(tmp_path: Path) -> None:
    (tmp_path / "part.png").write_bytes(cv2.imencode(".png", np.full((4, 4), 5000, np.uint16))[1].tobytes())
    with pytest.raises(ImageError, match=r"part\.png: samples up to 5000 take 13 bits, and images of 12 bits"):
        imaging.read_image(tmp_path / "part.png", 12)


def test_pixels_of_16_bits_survive_as_png_and_are_refused_in_other_codecs() -> None:
    deep = PIXELS.astype(np.uint16) << 4
    np.testing.assert_array_equal(imaging.pixels(imaging.plan(imaging.encode(deep, Codec.PNG), Codec.PNG)), deep)
    for codec in (Codec.JPEG, Codec.RAW):
        with pytest.raises(ImageError, match='codec = "png"'):
            imaging.encode(deep, codec)


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("kind", ["JPEG", "WEBP", "TIFF"])
def test_image_is_turned_as_its_exif_data_says(tmp_path: Path, kind: str, orientation: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    file = tmp_path / f"part.{kind.lower()}"
    options = {"TIFF": {"tiffinfo": {0x0112: orientation}}, "WEBP": {"lossless": True, "exif": exif}}
    Image.fromarray(PIXELS).save(file, kind, **options.get(kind, {"exif": exif, "quality": 95, "subsampling": 0}))
    expected = np.asarray(ImageOps.exif_transpose(Image.open(file)).convert("RGB"))
    read = imaging.read_image(file)
    assert read.shape == expected.shape and abs(read.astype(int) - expected).max() <= 3
    assert imaging.image_size(file) == expected.shape[1::-1]
    if kind == "JPEG":
        header = imaging.probe(file.read_bytes())
        assert (header.height, header.width) == expected.shape[:2]
        assert imaging.decode(file.read_bytes(), Codec.JPEG, shape=expected.shape).shape == expected.shape


def test_png_that_is_to_be_turned_is_refused_in_one_line() -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    file = io.BytesIO()
    Image.fromarray(PIXELS).save(file, "PNG", exif=exif)
    with pytest.raises(ImageError, match=r"orientation 6.*save it upright"):
        imaging.decode(file.getvalue(), Codec.PNG)


@pytest.mark.parametrize(
    "block",
    [
        b"",
        b"II",
        b"XX*\0\x08\0\0\0",
        b"II*\0\xff\xff\xff\xff",
        b"II*\0\x08\0\0\0\xff\xff\x12\x01",
        b"MM\0*" + bytes(40),
    ],
)
def test_damaged_exif_data_leaves_the_image_upright(block: bytes) -> None:
    assert exif_orientation(block) == 1


def tiff(image: Image.Image, **options: object) -> bytes:
    file = io.BytesIO()
    image.save(file, "TIFF", **options)
    return file.getvalue()


GREY = Image.fromarray(PIXELS[:, :, 0])
COLOUR = Image.fromarray(PIXELS)


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        (tiff(GREY.convert("1")), GREY.convert("1")),
        (tiff(GREY.convert("1"), compression="group4"), GREY.convert("1")),
        (tiff(COLOUR.convert("P")), COLOUR.convert("P")),
        (saved(COLOUR.convert("P"), "BMP"), COLOUR.convert("P")),
        (saved(GREY.convert("1"), "BMP"), GREY.convert("1")),
        (saved(GREY.convert("1"), "PNG"), GREY.convert("1")),
        (saved(COLOUR.convert("P"), "PNG"), COLOUR.convert("P")),
    ],
    ids=["1-bit tiff", "fax", "palette tiff", "palette bmp", "1-bit bmp", "1-bit png", "palette png"],
)
def test_files_of_1_bit_and_palettes_are_read_as_they_look(tmp_path: Path, data: bytes, expected: Image.Image) -> None:
    (tmp_path / "part.tif").write_bytes(data)
    np.testing.assert_array_equal(imaging.read_image(tmp_path / "part.tif"), np.asarray(expected.convert("RGB")))


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (tiff(Image.fromarray(PIXELS[:, :, 0].astype(np.float32) / 255)), "pixels of kind F"),
        (tiff(Image.fromarray(PIXELS[:, :, 0].astype(np.int32))), "pixels of kind I "),
        (tiff(COLOUR.convert("CMYK")), "pixels of kind CMYK"),
        (tiff(GREY.convert("LA")), "pixels of kind LA"),
        (tiff(COLOUR.convert("LAB")), "pixels of kind LAB"),
        (tiff(COLOUR, save_all=True, append_images=[COLOUR, COLOUR]), "holds 3 pages"),
        (tiff(COLOUR.convert("RGBA").point(lambda value: value // 2)), "alpha"),
    ],
    ids=["float", "32-bit", "cmyk", "grey with alpha", "lab", "pages", "transparent"],
)
def test_files_that_would_be_read_wrong_are_refused_in_one_line(tmp_path: Path, data: bytes, message: str) -> None:
    (tmp_path / "part.tif").write_bytes(data)
    with pytest.raises(ImageError, match=message) as caught:
        imaging.read_image(tmp_path / "part.tif")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "data",
    [png_header(60_000, 60_000), jpeg_header(65_500, 65_500)],
    ids=["png", "jpeg"],
)
def test_announced_size_is_refused_before_memory_is_taken(data: bytes) -> None:
    tracemalloc.start()
    with pytest.raises(ImageError, match="over the limit"):
        imaging.decode(data, imaging.probe(data).codec)
    assert tracemalloc.get_traced_memory()[1] < 1 << 20
    tracemalloc.stop()


def test_size_beyond_any_sensor_is_refused_by_the_probe() -> None:
    with pytest.raises(ImageError, match=str(MAX_SIDE_PX)):
        imaging.probe(png_header(1 << 31, 4))


def test_caller_sets_the_limit() -> None:
    data = imaging.encode(PIXELS, Codec.PNG)
    with pytest.raises(ImageError, match="limit of 100"):
        imaging.decode(data, Codec.PNG, pixel_limit=100)


@pytest.mark.parametrize("codec", [Codec.JPEG, Codec.PNG])
def test_image_of_another_size_than_announced_is_refused(codec: Codec) -> None:
    with pytest.raises(ImageError, match="24x40"):
        imaging.decode(imaging.encode(PIXELS, codec), codec, shape=(40, 24, 3))


def test_image_of_another_codec_than_announced_is_refused() -> None:
    with pytest.raises(ImageError, match="announces png and holds jpeg"):
        imaging.decode(imaging.encode(PIXELS, Codec.JPEG), Codec.PNG)


@pytest.mark.parametrize("shape", [None, (24, 40, 1), (24, 40, 2), (0, 0, 3), (1 << 40, 1 << 40, 3)])
def test_raw_bytes_that_do_not_fit_their_shape_are_refused(shape: tuple[int, int, int] | None) -> None:
    with pytest.raises(ImageError, match="raw frame"):
        imaging.decode(imaging.encode(PIXELS, Codec.RAW), Codec.RAW, shape=shape)


@pytest.mark.parametrize("codec", [Codec.JPEG, Codec.PNG])
@pytest.mark.parametrize("share", [0.0, 0.3, 0.6, 0.9])
def test_truncated_image_is_an_image_error(codec: Codec, share: float) -> None:
    data = imaging.encode(PIXELS, codec)
    with pytest.raises(ImageError):
        imaging.decode(data[: int(share * len(data))], codec)


@given(st.sampled_from([Codec.JPEG, Codec.PNG]), st.data())
@settings(max_examples=150)
def test_damaged_image_is_pixels_of_the_announced_size_or_an_image_error(codec: Codec, draw: st.DataObject) -> None:
    data = bytearray(imaging.encode(PIXELS, codec))
    for _ in range(draw.draw(st.integers(1, 3))):
        data[draw.draw(st.integers(0, len(data) - 1))] = draw.draw(st.integers(0, 255))
    try:
        assert imaging.decode(bytes(data), codec, shape=SHAPE).shape == SHAPE
    except ImageError as error:
        assert "\n" not in str(error)


@given(st.binary(max_size=300), st.sampled_from(list(Codec)))
def test_arbitrary_bytes_are_an_image_error(data: bytes, codec: Codec) -> None:
    with pytest.raises(ImageError):
        imaging.decode(data, codec)


@pytest.mark.parametrize("suffix", [".png", ".jpg", ".bmp", ".tif", ".webp"])
def test_image_files_of_every_kind_are_read(tmp_path: Path, suffix: str) -> None:
    file = tmp_path / f"part{suffix}"
    Image.fromarray(PIXELS).save(file)
    read = imaging.read_image(file)
    assert suffix in imaging.FILE_SUFFIXES and read.shape == SHAPE
    if suffix in (".png", ".bmp", ".tif"):
        np.testing.assert_array_equal(read, PIXELS)


def test_file_and_frame_with_the_same_bytes_give_the_same_pixels(tmp_path: Path) -> None:
    data = imaging.encode(PIXELS, Codec.JPEG)
    (tmp_path / "part.jpg").write_bytes(data)
    np.testing.assert_array_equal(imaging.read_image(tmp_path / "part.jpg"), imaging.decode(data, Codec.JPEG))


@pytest.mark.parametrize("content", [b"", b"no image", png_header(60_000, 60_000)])
def test_unreadable_file_is_named(tmp_path: Path, content: bytes) -> None:
    file = tmp_path / "broken.png"
    file.write_bytes(content)
    with pytest.raises(FlawlineError, match=r"broken\.png") as caught:
        imaging.read_image(file)
    assert "\n" not in str(caught.value)
    with pytest.raises(FlawlineError, match=r"gone\.png"):
        imaging.read_image(tmp_path / "gone.png")


def test_large_tiff_is_refused_before_it_is_decoded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(imaging, "PIXEL_LIMIT", 100)
    Image.fromarray(PIXELS).save(tmp_path / "large.tif")
    with pytest.raises(ImageError, match="limit"):
        imaging.read_image(tmp_path / "large.tif")


@given(st.integers(1, 9), st.integers(1, 9), st.data())
@settings(max_examples=40)
def test_mask_survives_its_encoding(height: int, width: int, draw: st.DataObject) -> None:
    bits = draw.draw(st.lists(st.booleans(), min_size=height * width, max_size=height * width))
    mask = np.array(bits).reshape(height, width)
    np.testing.assert_array_equal(imaging.decode_mask(imaging.encode_mask(mask)), mask)
    with pytest.raises(ImageError):
        imaging.decode_mask(b"")


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_floats_are_scaled_and_nan_is_black(dtype: type) -> None:
    image = np.array([[0.0, 0.5, 1.0, np.nan]], dtype)
    assert imaging.to_rgb(image)[0, :, 0].tolist() == [0, 128, 255, 0]


@pytest.mark.parametrize("image", [np.array([[0.0, 200.0]]), np.array([[-0.1, 1.0]]), np.array([[np.inf]])])
def test_floats_beyond_0_to_1_are_refused_and_not_made_white(image: np.ndarray) -> None:
    with pytest.raises(ImageError, match="what is white"):
        imaging.to_rgb(image)


@pytest.mark.parametrize(
    "image", [np.zeros((2, 2), np.int32), np.zeros((2, 2, 5), np.uint8), np.zeros((0, 2), np.uint8)]
)
def test_arrays_that_are_no_image_are_refused(image: np.ndarray) -> None:
    with pytest.raises(ImageError):
        imaging.to_rgb(image)
