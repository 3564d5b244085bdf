"""The conversion of a capture to the message that the producer sends."""

from __future__ import annotations

from flawline import imaging
from flawline.messages import Codec, Frame, checksum
from flawline.settings.producers import CameraBase
from producers.camera import Capture


def to_frame(capture: Capture, camera: CameraBase, epoch: int, sequence: int) -> Frame:
    """Return the frame of a capture, with its bytes inline.

    Pixels are encoded with the codec of the capture, or else of the camera. Bytes that the source encoded stay
    unchanged, and only their header is read. Raises ImageError or ValueError when the capture holds no valid image.
    """
    if capture.pixels is not None:
        pixels = capture.pixels
        if pixels.ndim != 3 or pixels.shape[2] != 3 or pixels.dtype != "uint8":
            pixels = imaging.to_rgb(pixels)
        codec = capture.codec or camera.codec
        height, width, channels = pixels.shape
        data = imaging.encode(pixels, codec, quality=camera.jpeg_quality)
    else:
        data = capture.data or b""
        header = imaging.probe(data)
        codec, height, width, channels = header.codec, header.height, header.width, header.channels
        if capture.codec not in (None, codec):
            raise ValueError(f"the source announced the codec {capture.codec}, but its data is {codec}")
    return Frame(
        camera=camera.name,
        epoch=epoch,
        sequence=sequence,
        captured_at=capture.captured_at,
        codec=Codec(codec),
        height=height,
        width=width,
        channels=channels,
        data=data,
        checksum=checksum(data),
        size_bytes=len(data),
        part=capture.part,
        view=capture.view or camera.view,
        lot=capture.lot,
        trigger=capture.trigger,
    )
