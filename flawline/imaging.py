"""Bytes to pixels and back, here only, so that a frame from Kafka and an image file give the same pixels."""

from __future__ import annotations

import io
import struct
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import IO

import cv2
import numpy as np
import simplejpeg
from PIL import Image, UnidentifiedImageError

from flawline.errors import FlawlineError
from flawline.messages import MAX_SIDE_PX, Codec

PIXEL_LIMIT = 200_000_000
"""Larger images are refused before memory is taken for them; the largest line-scan sensors stay below."""

cv2.utils.logging.setLogLevel(cv2.utils.logging.LOG_LEVEL_ERROR)  # we report a damaged file ourselves

PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"
FILE_SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".bmp", ".tif", ".tiff", ".webp"})


class ImageError(FlawlineError):
    """The bytes are no image, or one outside the limits."""


@dataclass(frozen=True)
class Probe:
    """The header of an encoded image."""

    codec: Codec
    height: int
    width: int
    channels: int


def probe(data: bytes) -> Probe:
    """Read size and codec from the header; no pixel is decoded. Raises ImageError unless it is a JPEG or PNG."""
    if data[:2] == b"\xff\xd8":
        try:
            height, width, space, _ = simplejpeg.decode_jpeg_header(data, strict=False)
        except (ValueError, KeyError) as error:  # KeyError: a header that ends before it names its colour space
            raise ImageError(f"JPEG of {len(data)} bytes has a damaged header: {error}") from error
        return Probe(Codec.JPEG, height, width, {"Gray": 1, "GRAY": 1, "CMYK": 4, "YCCK": 4}.get(space, 3))
    if data[:8] == PNG_SIGNATURE and len(data) >= 33 and data[12:16] == b"IHDR":
        width, height, _, colour = struct.unpack(">IIBB", data[16:26])
        if not (1 <= width <= MAX_SIDE_PX and 1 <= height <= MAX_SIDE_PX):
            raise ImageError(f"PNG header announces {height}x{width} px: sides of 1 to {MAX_SIDE_PX} are read")
        return Probe(Codec.PNG, height, width, {0: 1, 2: 3, 3: 3, 4: 4, 6: 4}.get(colour, 3))
    raise ImageError(f"{len(data)} bytes that are neither JPEG nor PNG (they start with {data[:8].hex() or 'nothing'})")


def decode(
    data: bytes,
    codec: Codec,
    *,
    shape: tuple[int, int, int] | None = None,
    pixel_limit: int = PIXEL_LIMIT,
) -> np.ndarray:
    """Return the pixels of an encoded frame as uint8 (H, W, 3) RGB.

    `shape` (height, width, channels) is what the message announces. `raw` needs it; for the other codecs it is checked
    before memory is taken. 16-bit images are scaled to 8 bits, transparent pixels are blended with black, and grey
    becomes three equal channels. Raises ImageError.
    """
    if codec is Codec.RAW:
        if shape is None or int(np.prod(shape, dtype=object)) != len(data) or shape[2] not in (1, 3, 4):
            raise ImageError(f"raw frame of {len(data)} bytes does not fit its announced shape {shape}")
        return to_rgb(np.frombuffer(data, np.uint8).reshape(shape))
    header = probe(data)
    if header.codec is not codec:
        raise ImageError(f"frame announces {codec} and holds {header.codec}")
    if shape is not None and (header.height, header.width) != tuple(shape[:2]):
        raise ImageError(f"frame announces {shape[0]}x{shape[1]} px and its image has {header.height}x{header.width}")
    _check_pixels(header.height, header.width, pixel_limit)
    if header.codec is Codec.JPEG and header.channels != 4:
        try:
            return simplejpeg.decode_jpeg(data, colorspace="RGB", strict=True)
        except (ValueError, KeyError) as error:
            raise ImageError(f"JPEG of {len(data)} bytes is damaged: {error}") from error
    return _decode_generic(data, f"{header.codec} of {len(data)} bytes")


def _check_pixels(height: int, width: int, pixel_limit: int) -> None:
    if height * width > pixel_limit:
        raise ImageError(f"image of {height}x{width} px is over the limit of {pixel_limit} pixels")


def _check_header(data: bytes) -> None:
    """Raise ImageError when the header of an image of any kind cannot be read or announces too many pixels."""
    if data[:2] == b"\xff\xd8" or data[:8] == PNG_SIGNATURE:
        header = probe(data)
        _check_pixels(header.height, header.width, PIXEL_LIMIT)
        return
    try:
        width, height = _size(io.BytesIO(data))
    except UnidentifiedImageError as error:
        raise ImageError(f"file of {len(data)} bytes is no image, or of a kind that is not read") from error
    except (OSError, ValueError, SyntaxError, struct.error, Image.DecompressionBombError) as error:
        raise ImageError(f"file of {len(data)} bytes is damaged or of a kind that is not read: {error}") from error
    _check_pixels(height, width, PIXEL_LIMIT)


def _size(file: IO[bytes] | Path) -> tuple[int, int]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # the limit here is our own
        with Image.open(file) as header:
            return header.size


def image_size(path: Path) -> tuple[int, int]:
    """Return width and height of an image file from its header. Raises ImageError."""
    try:
        return _size(path)
    except UnidentifiedImageError as error:
        raise ImageError(f"{path}: is no image, or of a kind that is not read") from error
    except (OSError, ValueError, SyntaxError, struct.error, Image.DecompressionBombError) as error:
        raise ImageError(f"{path}: cannot be read: {getattr(error, 'strerror', None) or error}") from error


def _decode_generic(data: bytes, what: str) -> np.ndarray:
    try:
        image = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_UNCHANGED)
    except cv2.error as error:
        raise ImageError(f"{what} cannot be decoded: {error.err}") from error
    if image is None:
        raise ImageError(f"{what} is damaged or of a kind that is not read")
    return to_rgb(image, bgr=True)


def to_rgb(image: np.ndarray, *, bgr: bool = False) -> np.ndarray:
    """Return an image as uint8 (H, W, 3) RGB: grey, colour or transparent, of 8 or 16 bits or floats in 0..1.

    `bgr` gives the order of its colour channels. Raises ImageError.
    """
    if image.dtype == np.uint16:
        image = (image >> 8).astype(np.uint8)
    elif image.dtype == bool:
        image = image.astype(np.uint8) * 255
    elif np.issubdtype(image.dtype, np.floating):
        image = (np.nan_to_num(image).clip(0, 1) * 255 + 0.5).astype(np.uint8)
    elif image.dtype != np.uint8:
        raise ImageError(f"pixels of type {image.dtype} are not read: 8-bit, 16-bit or floats in 0..1")
    if image.ndim == 2:
        image = image[:, :, None]
    if image.ndim != 3 or 0 in image.shape or image.shape[2] not in (1, 2, 3, 4):
        raise ImageError(f"image of shape {image.shape} is not (height, width, 1 to 4 channels)")
    if image.shape[2] in (2, 4):
        alpha = image[:, :, -1:].astype(np.uint16)
        image = ((image[:, :, :-1] * alpha + 127) // 255).astype(np.uint8)
    if image.shape[2] == 1:
        return np.repeat(image, 3, axis=2)
    return np.ascontiguousarray(image[:, :, ::-1] if bgr else image)


def encode(pixels: np.ndarray, codec: Codec, *, quality: int = 90) -> bytes:
    """Return the encoded bytes of uint8 (H, W, 3) RGB pixels; `quality` (1 to 100) is that of JPEG.

    PNG uses its fastest level: 5 times faster for 10 % more bytes.
    """
    if codec is Codec.JPEG:
        return simplejpeg.encode_jpeg(np.ascontiguousarray(pixels), quality=quality, colorspace="RGB")
    if codec is Codec.PNG:
        _, data = cv2.imencode(".png", pixels[:, :, ::-1], [cv2.IMWRITE_PNG_COMPRESSION, 1])
        return data.tobytes()
    return np.ascontiguousarray(pixels).tobytes()


def encode_mask(mask: np.ndarray) -> bytes:
    """Return a boolean (H, W) mask as a PNG of 0 and 255."""
    return cv2.imencode(".png", np.asarray(mask, bool).astype(np.uint8) * 255)[1].tobytes()


def decode_mask(data: bytes) -> np.ndarray:
    """Return an encoded mask as boolean (H, W): pixels above middle grey are inside. Raises ImageError."""
    _check_header(data)
    try:
        image = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_GRAYSCALE)
    except cv2.error as error:
        raise ImageError(f"mask of {len(data)} bytes cannot be decoded: {error.err}") from error
    if image is None:
        raise ImageError(f"mask of {len(data)} bytes is damaged")
    return image > 127


def read_image(path: Path) -> np.ndarray:
    """Return the pixels of an image file as uint8 (H, W, 3) RGB, the same as of a frame with these bytes.

    Raises ImageError.
    """
    try:
        data = path.read_bytes()
    except OSError as error:
        raise ImageError(f"{path}: cannot be read: {error.strerror}") from error
    try:
        if data[:2] == b"\xff\xd8" or data[:8] == PNG_SIGNATURE:
            return decode(data, probe(data).codec)
        _check_header(data)
        return _decode_generic(data, f"file of {len(data)} bytes")
    except ImageError as error:
        raise ImageError(f"{path}: {error}") from error
