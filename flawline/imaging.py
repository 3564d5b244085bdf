"""Bytes to pixels and back, here only, so that a frame from Kafka and an image file give the same pixels."""

from __future__ import annotations

import contextlib
import io
import struct
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO

import cv2
import numpy as np
import simplejpeg
from PIL import ExifTags, Image, UnidentifiedImageError

from flawline.image_structure import (
    JPEG_SIGNATURE,
    PNG_SIGNATURE,
    UPRIGHT,
    ImageError,
    Plan,
    Probe,
    jpeg_plan,
    jpeg_probe,
    png_plan,
    png_probe,
)
from flawline.messages import Codec

_TIFF_BITS = 258
"""Tag BitsPerSample, of TIFF 6.0: one number for each channel, 1 where it is missing."""

PIXEL_LIMIT = 200_000_000
"""Larger images are refused before memory is taken for them; the largest line-scan sensors stay below."""

cv2.utils.logging.setLogLevel(cv2.utils.logging.LOG_LEVEL_ERROR)  # we report a damaged file ourselves

FILE_SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".bmp", ".tif", ".tiff", ".webp"})

SAMPLE_BITS = (8, 10, 12, 14, 16)
"""Depths of cameras. Samples of more than 8 bits come in 16-bit files, and only the data says how many are used."""

_FILE_MODES = frozenset({"1", "L", "P", "RGB", "RGBA", "RGBX", "YCbCr", "I;16", "I;16B", "I;16L"})
"""What other files than JPEG and PNG may hold, as Pillow names it, so that OpenCV reads them as Pillow does.

OpenCV takes CMYK in a TIFF for RGB with alpha, drops the alpha of grey, and gives floats without a white, as tried.
"""

STRIP_PX = 1 << 20
"""Pixels that are converted at a time, so that what lies between input and result takes a few megabytes."""


class ImageTooLarge(ImageError):
    """The image is sound, but decoding it takes more memory than the caller allows."""


def probe(data: bytes) -> Probe:
    """Read size and codec from the header; no pixel is decoded. Raises ImageError unless it is a JPEG or PNG."""
    return (jpeg_probe if _codec(data) is Codec.JPEG else png_probe)(data)


def _is_of_line(data: bytes) -> bool:
    """Return whether bytes are a JPEG or PNG, which frames may hold, by how they begin."""
    return data[:2] == JPEG_SIGNATURE or data[:8] == PNG_SIGNATURE


def _codec(data: bytes) -> Codec:
    if data[:2] == JPEG_SIGNATURE:
        return Codec.JPEG
    if data[:8] == PNG_SIGNATURE:
        return Codec.PNG
    raise ImageError(f"{len(data)} bytes that are neither JPEG nor PNG (they start with {data[:8].hex() or 'nothing'})")


def plan(
    data: bytes,
    codec: Codec | None,
    *,
    shape: tuple[int, int, int] | None = None,
    pixel_limit: int = PIXEL_LIMIT,
    memory_limit_bytes: int | None = None,
) -> Plan:
    """Return what decoding an image takes. It is checked from end to end, and no pixel is decoded.

    `codec` and `shape` (height, width, channels) are what the message announces. `raw` needs them; otherwise the image
    is compared with what is given. Raises ImageTooLarge for more than `memory_limit_bytes`, and ImageError.
    """
    if codec is Codec.RAW:
        if shape is None or int(np.prod(shape, dtype=object)) != len(data) or shape[2] not in (1, 3, 4):
            raise ImageError(f"raw frame of {len(data)} bytes does not fit its announced shape {shape}")
        result = Plan(Probe(codec, *shape), 3 * shape[0] * shape[1], data)
    else:
        held = _codec(data)
        if codec not in (None, held):
            raise ImageError(f"frame announces {codec} and holds {held}")
        planned = jpeg_plan(data) if held is Codec.JPEG else None
        header = planned.header if planned else png_probe(data)
        if shape is not None and (header.height, header.width) != tuple(shape[:2]):
            raise ImageError(
                f"frame announces {shape[0]}x{shape[1]} px and its image has {header.height}x{header.width}"
            )
        _check_pixels(header.height, header.width, pixel_limit)
        result = planned or png_plan(data)
    if memory_limit_bytes is not None and result.memory_bytes > memory_limit_bytes:
        header = result.header
        raise ImageTooLarge(
            f"{header.codec} of {header.height}x{header.width}x{header.channels} takes {result.memory_bytes} bytes to "
            f"decode, over the limit of {memory_limit_bytes}"
        )
    return result


def decode(
    data: bytes,
    codec: Codec,
    *,
    shape: tuple[int, int, int] | None = None,
    pixel_limit: int = PIXEL_LIMIT,
) -> np.ndarray:
    """Return the pixels of an encoded frame as uint8 (H, W, 3) RGB; `shape` and the errors are those of `plan`.

    Samples of 16 bits are taken to use all of them.
    """
    return eight_bits(pixels(plan(data, codec, shape=shape, pixel_limit=pixel_limit)))


def pixels(planned: Plan, *, blends: bool = False) -> np.ndarray:
    """Return the pixels of a planned image (H, W, 3) RGB: uint8, or uint16 where its samples have 16 bits.

    They are turned as its EXIF data says, and grey becomes three equal channels. How bright a sample of 16 bits is
    depends on the camera, see `eight_bits`. Raises ImageError, also for an image that is transparent, unless `blends`
    puts black behind it.
    """
    header, data = planned.header, planned.data
    if header.codec is Codec.RAW:
        raw = np.frombuffer(data, np.uint8).reshape(header.height, header.width, header.channels)
        return to_rgb(raw, blends=blends)
    if header.codec is Codec.JPEG and header.channels != 4:
        try:
            return _upright(simplejpeg.decode_jpeg(data, colorspace="RGB", strict=True), header.orientation)
        except (ValueError, KeyError) as error:
            raise ImageError(f"JPEG of {len(data)} bytes is damaged: {error}") from error
    image = _decode_generic(data, f"{header.codec} of {len(data)} bytes", blends=blends and header.codec is Codec.PNG)
    return _upright(image, header.orientation)


def _upright(image: np.ndarray, orientation: int) -> np.ndarray:
    """Return an image as it is to be shown, from its EXIF orientation (Exif 2.32, 4.6.4: 5 to 8 are turned too)."""
    if orientation == UPRIGHT:
        return image
    turned = image.transpose(1, 0, 2) if orientation > 4 else image
    rows = slice(None, None, -1 if orientation in (3, 4, 7, 8) else 1)
    columns = slice(None, None, -1 if orientation in (2, 3, 6, 7) else 1)
    return np.ascontiguousarray(turned[rows, columns])


def eight_bits(image: np.ndarray, sample_bits: int = 16) -> np.ndarray:
    """Return pixels (H, W, 3) as uint8, where those of uint16 use `sample_bits` (8 to 16) of their 16 bits.

    Raises ImageError when a sample is larger than that.
    """
    if image.dtype != np.uint16:
        return image
    highest = int(image.max())
    if highest >> sample_bits:
        raise ImageError(
            f"samples up to {highest} take {highest.bit_length()} bits, and images of {sample_bits} bits are expected"
        )
    result = np.empty(image.shape, np.uint8)
    for strip in _strips(image):
        result[strip] = image[strip] >> (sample_bits - 8)
    return result


def at_depth(image: np.ndarray, depths: Sequence[int]) -> np.ndarray:
    """Return pixels (H, W, 3) as uint8, for a model whose good images have samples of these `depths` (8 to 16 bits).

    Raises ImageError for an image of another depth: it would be read as nearly black, or as far too bright.
    """
    deep = [bits for bits in depths if bits > 8]
    if image.dtype == np.uint16 and deep:
        return eight_bits(image, deep[0])
    if image.dtype == np.uint8 and 8 in depths:
        return image
    raise ImageError(
        f"samples of {8 * image.itemsize} bits, and the good images of the model have {deep[0] if deep else 8}: fit it "
        "on images as the camera sends them, or set the camera to that depth"
    )


def bits_in_use(image: np.ndarray) -> int:
    """Return the smallest camera depth that holds all samples of an image: 8 for uint8, 10 to 16 for uint16."""
    highest = int(image.max()) if image.dtype == np.uint16 else 0
    return next(bits for bits in SAMPLE_BITS if not highest >> bits and bits >= 8 + 2 * (image.dtype == np.uint16))


def _check_pixels(height: int, width: int, pixel_limit: int) -> None:
    if height * width > pixel_limit:
        raise ImageError(f"image of {height}x{width} px is over the limit of {pixel_limit} pixels")


def _check_header(data: bytes) -> int:
    """Return the EXIF orientation that is left to do for another image file than a JPEG or PNG, from its header.

    Raises ImageError when it cannot be read, announces too many pixels, or holds what is not read right.
    """
    try:
        with _opened(io.BytesIO(data)) as header:
            width, height = header.size
            mode, pages = header.mode, getattr(header, "n_frames", 1)
            orientation = _orientation(header)
    except UnidentifiedImageError as error:
        raise ImageError(f"file of {len(data)} bytes is no image, or of a kind that is not read") from error
    except (OSError, ValueError, SyntaxError, struct.error, Image.DecompressionBombError) as error:
        raise ImageError(f"file of {len(data)} bytes is damaged or of a kind that is not read: {error}") from error
    _check_pixels(height, width, PIXEL_LIMIT)
    if pages > 1:
        raise ImageError(f"file holds {pages} pages, and one image is read from a file: save each page by itself")
    if mode not in _FILE_MODES:
        raise ImageError(f"pixels of kind {mode} are not read: save it as grey or RGB of 8 or 16 bits")
    return orientation


@contextlib.contextmanager
def _opened(file: IO[bytes] | Path) -> Iterator[Image.Image]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # the limit here is our own
        with Image.open(file) as header:
            yield header


def _orientation(header: Image.Image) -> int:
    """Return the EXIF orientation that is left to do for a file that Pillow has opened.

    Pillow and OpenCV turn a TIFF themselves, and a PNG that is to be turned is refused when it is read.
    """
    value = UPRIGHT if header.format in ("PNG", "TIFF") else header.getexif().get(ExifTags.Base.Orientation, UPRIGHT)
    return value if value in range(1, 9) else UPRIGHT


@dataclass(frozen=True)
class FileHeader:
    """What the header of an image file says: its size as it is shown, the bits of a sample, and whether it is grey."""

    width: int
    height: int
    sample_bits: int
    is_grey: bool


def image_size(path: Path) -> tuple[int, int]:
    """Return width and height of an image file, as it is shown, from its header. Raises ImageError."""
    header = file_header(path)
    return header.width, header.height


def file_header(path: Path) -> FileHeader:
    """Return the header of an image file; no pixel is decoded. Raises ImageError."""
    try:
        with _opened(path) as header:
            width, height = header.size if _orientation(header) <= 4 else header.size[::-1]
            is_grey = header.mode in ("1", "L", "LA", "F") or header.mode.startswith("I")
            return FileHeader(width, height, _sample_bits(path, header), is_grey)
    except UnidentifiedImageError as error:
        raise ImageError(f"{path}: is no image, or of a kind that is not read") from error
    except (OSError, ValueError, SyntaxError, struct.error, Image.DecompressionBombError) as error:
        raise ImageError(f"{path}: cannot be read: {getattr(error, 'strerror', None) or error}") from error


def _sample_bits(path: Path, header: Image.Image) -> int:
    """Return the bits of a sample in a file that Pillow has opened, which names 16 bits of RGB as 8."""
    if header.format == "PNG":
        with path.open("rb") as file:
            return png_probe(file.read(64)).sample_bits
    if header.format == "TIFF":
        return max(header.tag_v2.get(_TIFF_BITS, (1,)))  # type: ignore[attr-defined]  # of Pillow's class for TIFF
    return 1 if header.mode == "1" else 8


def _decode_generic(data: bytes, what: str, *, blends: bool = False) -> np.ndarray:
    try:
        image = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_UNCHANGED)
    except cv2.error as error:
        raise ImageError(f"{what} cannot be decoded: {error.err}") from error
    if image is None:
        raise ImageError(f"{what} is damaged or of a kind that is not read")
    return to_rgb(image, bgr=True, blends=blends)


def to_rgb(image: np.ndarray, *, bgr: bool = False, blends: bool = False) -> np.ndarray:
    """Return an image of grey or colour as (H, W, 3) RGB: uint16 for uint16, else uint8; floats are of 0..1.

    `bgr` gives the order of its colour channels. An alpha channel must be opaque, since nothing says what lies behind
    a transparent pixel; with `blends` black lies there. Raises ImageError.
    """
    if image.ndim == 2:
        image = image[:, :, None]
    if image.ndim != 3 or 0 in image.shape or image.shape[2] not in (1, 2, 3, 4):
        raise ImageError(f"image of shape {image.shape} is not (height, width, 1 to 4 channels)")
    if image.dtype in (np.uint8, np.uint16) and image.shape[2] == 3 and not bgr:
        return np.ascontiguousarray(image)
    result = np.empty((*image.shape[:2], 3), np.uint16 if image.dtype == np.uint16 else np.uint8)
    for strip in _strips(image):
        colours = _without_alpha(_of_integers(image[strip]), blends)
        result[strip] = colours[:, :, ::-1] if bgr else colours
    return result


def _of_integers(image: np.ndarray) -> np.ndarray:
    if image.dtype in (np.uint8, np.uint16):
        return image
    if image.dtype == bool:
        return image.astype(np.uint8) * 255
    if np.issubdtype(image.dtype, np.floating):
        values = np.nan_to_num(image)
        if values.min() < 0 or values.max() > 1:
            raise ImageError(
                f"floats from {values.min():g} to {values.max():g} are not read, since only 0 to 1 says what is white: "
                "give 8 or 16 bits"
            )
        return (values * 255 + 0.5).astype(np.uint8)
    raise ImageError(f"pixels of type {image.dtype} are not read: 8-bit, 16-bit or floats in 0..1")


def _without_alpha(image: np.ndarray, blends: bool) -> np.ndarray:
    if image.shape[2] not in (2, 4):
        return image
    colours, alpha = image[:, :, :-1], image[:, :, -1:]
    opaque = np.iinfo(image.dtype).max
    if blends:
        return (colours.astype(np.float32) * (alpha / np.float32(opaque)) + 0.5).astype(image.dtype)
    if alpha.min() < opaque:
        raise ImageError(
            f"image is transparent (alpha down to {int(alpha.min())} of {opaque}), and nothing says what lies behind: "
            "save it without its alpha channel"
        )
    return colours


def _strips(image: np.ndarray) -> Iterator[slice]:
    """Yield the rows of an image in strips of about STRIP_PX pixels."""
    rows = max(1, STRIP_PX // max(1, image.shape[1]))
    return (slice(start, start + rows) for start in range(0, image.shape[0], rows))


def encode(pixels: np.ndarray, codec: Codec, *, quality: int = 90) -> bytes:
    """Return the encoded bytes of uint8 (H, W, 3) RGB pixels, for PNG also of uint16; `quality` (1 to 100) is JPEG's.

    PNG uses its fastest level: 5 times faster for 10 % more bytes. Raises ImageError for uint16 in another codec.
    """
    if pixels.dtype == np.uint16 and codec is not Codec.PNG:
        raise ImageError(f'pixels of 16 bits are not sent as {codec}: set codec = "png", or give 8 bits')
    if codec is Codec.JPEG:
        return simplejpeg.encode_jpeg(np.ascontiguousarray(pixels), quality=quality, colorspace="RGB")
    if codec is Codec.PNG:
        _, data = cv2.imencode(".png", pixels[:, :, ::-1], [cv2.IMWRITE_PNG_COMPRESSION, 1])
        return data.tobytes()
    return np.ascontiguousarray(pixels).tobytes()


def encode_mask(mask: np.ndarray) -> bytes:
    """Return a boolean (H, W) mask as a PNG of 0 and 255."""
    return cv2.imencode(".png", np.asarray(mask, bool).astype(np.uint8) * 255)[1].tobytes()


def decode_mask(data: bytes, *, pixel_limit: int = PIXEL_LIMIT) -> np.ndarray:
    """Return a mask that is a PNG as boolean (H, W): pixels above middle grey are inside. Raises ImageError."""
    return _bits(plan(data, Codec.PNG, pixel_limit=pixel_limit).data)


def decode_mask_file(data: bytes) -> np.ndarray:
    """Return a mask in the bytes of a file of any kind as boolean (H, W), as `decode_mask` does. Raises ImageError."""
    if _is_of_line(data):
        return _bits(plan(data, _codec(data)).data)
    _check_header(data)
    return _bits(data)


def _bits(data: bytes) -> np.ndarray:
    try:
        image = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_GRAYSCALE)
    except cv2.error as error:
        raise ImageError(f"mask of {len(data)} bytes cannot be decoded: {error.err}") from error
    if image is None:
        raise ImageError(f"mask of {len(data)} bytes is damaged")
    return image > 127


def read_samples(path: Path, *, blends: bool = False) -> np.ndarray:
    """Return the pixels of an image file (H, W, 3) RGB as those of a frame with these bytes, see `pixels`.

    With `blends` black lies behind transparent pixels. Raises ImageError.
    """
    try:
        data = path.read_bytes()
    except OSError as error:
        raise ImageError(f"{path}: cannot be read: {error.strerror}") from error
    try:
        if _is_of_line(data):
            return pixels(plan(data, _codec(data)), blends=blends)
        orientation = _check_header(data)
        return _upright(_decode_generic(data, f"file of {len(data)} bytes", blends=blends), orientation)
    except ImageError as error:
        raise ImageError(f"{path}: {error}") from error


def read_image(path: Path, sample_bits: int = 16) -> np.ndarray:
    """Return the pixels of an image file as uint8 (H, W, 3) RGB; `sample_bits` as for `eight_bits`.

    Raises ImageError.
    """
    image = read_samples(path)
    try:
        return eight_bits(image, sample_bits)
    except ImageError as error:
        raise ImageError(f"{path}: {error}") from error
