"""The conversion of a capture to the message that the producer sends."""

from __future__ import annotations

from flawline import imaging
from flawline.messages import Codec, Frame, checksum
from flawline.settings.producers import CameraBase
from producers.camera import Capture


def to_frame(
    capture: Capture, camera: CameraBase, epoch: int, sequence: int, memory_limit_bytes: int | None = None
) -> Frame:
    """Return the frame of a capture, with its bytes inline.

    Pixels are encoded with the codec of the capture, or else of the camera. Bytes that the source encoded stay
    unchanged; they are checked as a worker does before it decodes them. Raises ImageTooLarge when decoding takes more
    than `memory_limit_bytes`, and ImageError or ValueError when the capture holds no valid image or breaks a limit.
    """
    codec: Codec | None = capture.codec
    shape = None
    if capture.pixels is not None:
        pixels = capture.pixels
        if pixels.ndim != 3 or pixels.shape[2] != 3 or pixels.dtype not in ("uint8", "uint16"):
            pixels = imaging.to_rgb(pixels)
        codec = codec or camera.codec
        shape = pixels.shape
        data = imaging.encode(pixels, codec, quality=camera.jpeg_quality)
    else:
        data = capture.data or b""
    header = imaging.plan(data, codec, shape=shape, memory_limit_bytes=memory_limit_bytes).header
    return Frame(
        camera=camera.name,
        epoch=epoch,
        sequence=sequence,
        captured_at=capture.captured_at,
        codec=header.codec,
        height=header.height,
        width=header.width,
        channels=header.channels,
        data=data,
        checksum=checksum(data),
        size_bytes=len(data),
        part=capture.part,
        view=capture.view or camera.view,
        lot=capture.lot,
        trigger=capture.trigger,
    )
