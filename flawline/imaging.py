"""Bytes to pixels and back, here only, so that a frame from Kafka and an image file give the same pixels."""

from __future__ import annotations

import io
import struct
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import IO

import cv2
import numpy as np
import simplejpeg
from PIL import Image, UnidentifiedImageError

from flawline.image_structure import (
    JPEG_SIGNATURE,
    PNG_SIGNATURE,
    ImageError,
    Plan,
    Probe,
    jpeg_plan,
    jpeg_probe,
    png_plan,
    png_probe,
)
from flawline.messages import Codec

PIXEL_LIMIT = 200_000_000
"""Larger images are refused before memory is taken for them; the largest line-scan sensors stay below."""

cv2.utils.logging.setLogLevel(cv2.utils.logging.LOG_LEVEL_ERROR)  # we report a damaged file ourselves

FILE_SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".bmp", ".tif", ".tiff", ".webp"})

STRIP_PX = 1 << 20
"""Pixels that are converted at a time, so that what lies between input and result takes a few megabytes."""


class ImageTooLarge(ImageError):
    """The image is sound, but decoding it takes more memory than the caller allows."""


def probe(data: bytes) -> Probe:
    """Read size and codec from the header; no pixel is decoded. Raises ImageError unless it is a JPEG or PNG."""
    return (jpeg_probe if _codec(data) is Codec.JPEG else png_probe)(data)


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
    """Return the pixels of an encoded frame as uint8 (H, W, 3) RGB; `shape` and the errors are those of `plan`."""
    return pixels(plan(data, codec, shape=shape, pixel_limit=pixel_limit))


def pixels(planned: Plan) -> np.ndarray:
    """Return the pixels of a planned image as uint8 (H, W, 3) RGB.

    16-bit images are scaled to 8 bits, transparent pixels are blended with black, and grey becomes three equal
    channels. Raises ImageError.
    """
    header, data = planned.header, planned.data
    if header.codec is Codec.RAW:
        return to_rgb(np.frombuffer(data, np.uint8).reshape(header.height, header.width, header.channels))
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
    """Raise ImageError when the header of another image file cannot be read or announces too many pixels."""
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
    if image.ndim == 2:
        image = image[:, :, None]
    if image.ndim != 3 or 0 in image.shape or image.shape[2] not in (1, 2, 3, 4):
        raise ImageError(f"image of shape {image.shape} is not (height, width, 1 to 4 channels)")
    if image.dtype == np.uint8 and image.shape[2] == 3 and not bgr:
        return np.ascontiguousarray(image)
    result = np.empty((*image.shape[:2], 3), np.uint8)
    for strip in _strips(image):
        colours = _without_alpha(_of_8_bits(image[strip]))
        result[strip] = colours[:, :, ::-1] if bgr else colours
    return result


def _of_8_bits(image: np.ndarray) -> np.ndarray:
    if image.dtype == np.uint8:
        return image
    if image.dtype == np.uint16:
        return (image >> 8).astype(np.uint8)
    if image.dtype == bool:
        return image.astype(np.uint8) * 255
    if np.issubdtype(image.dtype, np.floating):
        return (np.nan_to_num(image).clip(0, 1) * 255 + 0.5).astype(np.uint8)
    raise ImageError(f"pixels of type {image.dtype} are not read: 8-bit, 16-bit or floats in 0..1")


def _without_alpha(image: np.ndarray) -> np.ndarray:
    if image.shape[2] not in (2, 4):
        return image
    alpha = image[:, :, -1:].astype(np.uint16)
    return ((image[:, :, :-1] * alpha + 127) // 255).astype(np.uint8)


def _strips(image: np.ndarray) -> Iterator[slice]:
    """Yield the rows of an image in strips of about STRIP_PX pixels."""
    rows = max(1, STRIP_PX // max(1, image.shape[1]))
    return (slice(start, start + rows) for start in range(0, image.shape[0], rows))


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


def decode_mask(data: bytes, *, pixel_limit: int = PIXEL_LIMIT) -> np.ndarray:
    """Return a mask that is a PNG as boolean (H, W): pixels above middle grey are inside. Raises ImageError."""
    return _bits(plan(data, Codec.PNG, pixel_limit=pixel_limit).data)


def decode_mask_file(data: bytes) -> np.ndarray:
    """Return a mask in the bytes of a file of any kind as boolean (H, W), as `decode_mask` does. Raises ImageError."""
    planned = _plan_of_file(data)
    return _bits(data if planned is None else planned.data)


def _bits(data: bytes) -> np.ndarray:
    try:
        image = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_GRAYSCALE)
    except cv2.error as error:
        raise ImageError(f"mask of {len(data)} bytes cannot be decoded: {error.err}") from error
    if image is None:
        raise ImageError(f"mask of {len(data)} bytes is damaged")
    return image > 127


def _plan_of_file(data: bytes) -> Plan | None:
    """Return what decoding a JPEG or PNG takes, None for another kind of file, whose header is checked."""
    if data[:2] == JPEG_SIGNATURE or data[:8] == PNG_SIGNATURE:
        return plan(data, _codec(data))
    _check_header(data)
    return None


def read_image(path: Path) -> np.ndarray:
    """Return the pixels of an image file as uint8 (H, W, 3) RGB, the same as of a frame with these bytes.

    Raises ImageError.
    """
    try:
        data = path.read_bytes()
    except OSError as error:
        raise ImageError(f"{path}: cannot be read: {error.strerror}") from error
    try:
        planned = _plan_of_file(data)
        return _decode_generic(data, f"file of {len(data)} bytes") if planned is None else pixels(planned)
    except ImageError as error:
        raise ImageError(f"{path}: {error}") from error
