"""The cameras that OpenCV reads: video files, USB cameras and RTSP streams."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol

import cv2
import numpy as np

from flawline.clock import Monotonic, UtcNs, monotonic, utc_ns
from flawline.errors import UsageError
from flawline.redaction import redact
from flawline.settings.producers import RtspCamera, UsbCamera, VideoCamera
from producers.camera import CameraError, Capture

# FFmpeg and OpenCV print to stderr without a log handler, and FFmpeg prints URLs with their credentials. The errors
# that matter come back from the calls. Both libraries read their level once, before the first camera.
os.environ.setdefault("OPENCV_FFMPEG_LOGLEVEL", "-8")
cv2.utils.logging.setLogLevel(cv2.utils.logging.LOG_LEVEL_ERROR)


class VideoDevice(Protocol):
    """Has the methods of cv2.VideoCapture that these cameras call."""

    def isOpened(self) -> bool: ...
    def grab(self) -> bool: ...
    def retrieve(self) -> tuple[bool, np.ndarray]: ...
    def release(self) -> None: ...


def _rgb(device: VideoDevice, what: str) -> np.ndarray:
    """Return the grabbed frame as uint8 (H, W, 3) RGB. Raises CameraError, which names the camera as `what`."""
    ok, image = device.retrieve()
    if not ok or image is None:
        raise CameraError(f"{what}: a frame cannot be decoded")
    if image.ndim == 2:
        return cv2.cvtColor(image, cv2.COLOR_GRAY2RGB)
    return cv2.cvtColor(image, cv2.COLOR_BGR2RGB)


class VideoReplay:
    """Replays a video file once or in a loop. The constructor raises UsageError for a file that does not exist."""

    def __init__(self, settings: VideoCamera, now_ns: UtcNs = utc_ns) -> None:
        self.name = settings.name
        self._path = settings.path
        self._loop = settings.loop
        self._now_ns = now_ns
        self._device: VideoDevice | None = None
        if not settings.path.is_file():
            what = "is no file" if settings.path.exists() else "does not exist"
            raise UsageError(f"video {settings.path} {what}: correct the path of camera {settings.name}")

    def open(self) -> None:
        """Open the file. Raises UsageError when OpenCV cannot play it."""
        self._device = cv2.VideoCapture(str(self._path), cv2.CAP_FFMPEG)
        if not self._device.isOpened():
            raise UsageError(f"video {self._path} cannot be played: give a file that FFmpeg reads")

    def frames(self) -> Iterator[Capture]:
        """Yield the frames in order; `replay_key` is a frame's number in the file."""
        while True:
            device = self._device
            index = 0
            while device is not None and device.grab():
                captured_at = self._now_ns()
                pixels = _rgb(device, f"video {self._path}")
                yield Capture(captured_at, pixels=pixels, replay_key=str(index))
                index += 1
            if index == 0:
                raise UsageError(f"video {self._path} has no frames: give a file that FFmpeg reads")
            if not self._loop or self._device is None:
                return
            self.close()
            self.open()

    def close(self) -> None:
        """Close the file."""
        device, self._device = self._device, None
        if device is not None:
            device.release()


class LiveDevice:
    """Reads each frame when the device delivers it: the common part of USB and RTSP cameras.

    With a rate, the frames in between are grabbed but not decoded, so that the device's buffer holds no old frames.
    """

    def __init__(
        self, name: str, what: str, rate_hz: float, clock: Monotonic = monotonic, now_ns: UtcNs = utc_ns
    ) -> None:
        self.name = name
        self.what = what
        self._period_s = 1.0 / rate_hz if rate_hz > 0 else 0.0
        self._clock = clock
        self._now_ns = now_ns
        self._device: VideoDevice | None = None

    def _connect(self) -> VideoDevice:
        """Return the device, open or not. Raises CameraError or cv2.error."""
        raise NotImplementedError

    def open(self) -> None:
        """Connect to the device. Raises CameraError when it does not answer."""
        try:
            device = self._connect()
        except cv2.error as error:
            raise CameraError(f"{self.what} cannot be opened: {redact(str(error.err or error))}") from None
        if not device.isOpened():
            device.release()
            raise CameraError(f"{self.what} does not answer, or is no camera")
        self._device = device

    def frames(self) -> Iterator[Capture]:
        """Yield captures until `close`. Raises CameraError when the device goes away."""
        due = self._clock()
        while (device := self._device) is not None:
            if not device.grab():
                raise CameraError(f"{self.what} went away")
            captured_at, now = self._now_ns(), self._clock()
            # Jitter of the device: a frame that is early by up to a tenth of the period is not skipped.
            if now < due - 0.1 * self._period_s:
                continue
            due = max(due + self._period_s, now)
            yield Capture(captured_at, pixels=_rgb(device, self.what))

    def close(self) -> None:
        """Release the device."""
        device, self._device = self._device, None
        if device is not None:
            device.release()


class UsbDevice(LiveDevice):
    """Reads a camera of this machine."""

    def __init__(self, settings: UsbCamera, **clocks: Any) -> None:
        super().__init__(settings.name, f"USB camera {settings.device}", settings.rate_hz, **clocks)
        self._settings = settings

    def _connect(self) -> VideoDevice:
        device = self._settings.device
        if isinstance(device, str) and device.isdigit():
            device = int(device)
        if isinstance(device, str) and not Path(device).exists():
            raise CameraError(f"{self.what} is not there")
        return cv2.VideoCapture(device, cv2.CAP_V4L2 if _is_video_node(device) else cv2.CAP_ANY)


def _is_video_node(device: int | str) -> bool:
    return isinstance(device, int) or Path(device).is_char_device()


class FfmpegOptions:
    """Sets FFmpeg's options; OpenCV reads them only from the environment of the process, while it opens a stream.

    Cameras of one transport can open at the same time. A camera of another transport waits until no camera is opening,
    and later cameras wait too, so that cameras that never answer cannot block it for ever.
    """

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._transport = ""
        self._opening = 0
        self._waiting = 0

    @contextmanager
    def transport(self, transport: str) -> Iterator[None]:
        """Keep the options at `transport` ("tcp" or "udp") while a stream opens."""
        with self._changed:
            if self._opening and (transport != self._transport or self._waiting):
                self._waiting += 1
                self._changed.wait_for(lambda: not self._opening)
                self._waiting -= 1
            self._opening += 1
            self._transport = transport
            os.environ["OPENCV_FFMPEG_CAPTURE_OPTIONS"] = f"rtsp_transport;{transport}"
        try:
            yield
        finally:
            with self._changed:
                self._opening -= 1
                self._changed.notify_all()


_FFMPEG_OPTIONS = FfmpegOptions()


class RtspDevice(LiveDevice):
    """Reads a network camera. FFmpeg limits the time to open and to read, so that no thread hangs on a dead camera."""

    def __init__(self, settings: RtspCamera, **clocks: Any) -> None:
        url = settings.url.get_secret_value()
        super().__init__(settings.name, f"RTSP camera {redact(url)}", settings.rate_hz, **clocks)
        self._url = url
        self._transport = settings.transport
        self._timeout_ms = int(settings.open_timeout_s * 1000)

    def _connect(self) -> VideoDevice:
        timeouts = [cv2.CAP_PROP_OPEN_TIMEOUT_MSEC, self._timeout_ms, cv2.CAP_PROP_READ_TIMEOUT_MSEC, self._timeout_ms]
        with _FFMPEG_OPTIONS.transport(self._transport):
            return cv2.VideoCapture(self._url, cv2.CAP_FFMPEG, timeouts)
