"""Video files, USB cameras and RTSP streams, against real files and a real RTSP server."""

import itertools
import logging
import os
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import cv2
import numpy as np
import pytest

from flawline.errors import UsageError
from flawline.outage import Outage
from flawline.settings.producers import RtspCamera, UsbCamera, VideoCamera
from producers.camera import CameraError, Capture
from producers.opencv import LiveDevice, RtspDevice, UsbDevice, VideoReplay
from producers.supervise import CameraRunner, CameraState
from tests.producers.doubles import FakeClock, until
from tests.support.ports import reserved_port

SERVER = Path(__file__).parents[1] / "support" / "rtsp_server.py"
SYSTEM_PYTHON = "/usr/bin/python3"  # Debian's Python, which has gi


@pytest.fixture
def video(tmp_path: Path) -> Path:
    """Return a video of ten frames, where frame n is grey of level 20 n."""
    path = tmp_path / "line.avi"
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter_fourcc(*"MJPG"), 10, (64, 48))
    for level in range(10):
        writer.write(np.full((48, 64, 3), level * 20, np.uint8))
    writer.release()
    return path


def played(camera: VideoReplay, count: int | None = None) -> list[Capture]:
    camera.open()
    frames = camera.frames()
    try:
        return list(frames) if count is None else [next(frames) for _ in range(count)]
    finally:
        camera.close()


def test_video_gives_every_frame_in_order_and_ends(video: Path) -> None:
    shown = played(VideoReplay(VideoCamera(kind="video", name="cam", path=video)))
    assert [capture.replay_key for capture in shown] == [str(n) for n in range(10)]
    levels = [float(capture.pixels.mean()) for capture in shown]
    assert levels == pytest.approx([20 * n for n in range(10)], abs=4)
    assert shown[0].pixels.shape == (48, 64, 3)


def test_video_in_a_loop_starts_again(video: Path) -> None:
    shown = played(VideoReplay(VideoCamera(kind="video", name="cam", path=video, loop=True)), 23)
    assert [capture.replay_key for capture in shown] == [str(n % 10) for n in range(23)]


def test_missing_video_and_a_file_that_is_no_video_are_refused_in_one_line(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"nothing\.mp4 does not exist: correct the path of camera cam"):
        VideoReplay(VideoCamera(kind="video", name="cam", path=tmp_path / "nothing.mp4"))
    (tmp_path / "text.mp4").write_text("this is no video")
    with pytest.raises(UsageError, match="cannot be played"):
        VideoReplay(VideoCamera(kind="video", name="cam", path=tmp_path / "text.mp4")).open()


# -- USB: no device is at hand, so opening is tested on paths, and the rate on a stand-in for cv2.VideoCapture ---------


def test_usb_camera_that_is_not_there_is_an_error_that_names_it(tmp_path: Path) -> None:
    for device in (str(tmp_path / "video9"), 97):
        with pytest.raises(CameraError, match=f"USB camera {device} (is not there|does not answer)"):
            UsbDevice(UsbCamera(kind="usb", name="cam", device=device)).open()


def test_usb_camera_reads_a_device_path_and_goes_away_at_its_end(video: Path) -> None:
    camera = UsbDevice(UsbCamera(kind="usb", name="cam", device=str(video)))
    camera.open()
    frames = camera.frames()
    assert [next(frames).pixels.shape for _ in range(10)] == [(48, 64, 3)] * 10
    with pytest.raises(CameraError, match="went away"):
        next(frames)
    camera.close()


class StandInDevice:
    """Behaves as cv2.VideoCapture with `count` frames, `period` seconds apart."""

    def __init__(self, clock: FakeClock, period_s: float, count: int) -> None:
        self.clock, self.period_s, self.left = clock, period_s, count
        self.retrieved = 0

    def isOpened(self) -> bool:
        return True

    def grab(self) -> bool:
        self.clock.advance(self.period_s)
        self.left -= 1
        return self.left >= 0

    def retrieve(self) -> tuple[bool, np.ndarray]:
        self.retrieved += 1
        return True, np.zeros((4, 4, 3), np.uint8)

    def release(self) -> None:
        pass


def test_device_faster_than_the_configured_rate_is_grabbed_and_thinned_not_buffered() -> None:
    clock = FakeClock()
    device = StandInDevice(clock, period_s=0.01, count=1000)  # 100 frames/s for 10 s
    camera = LiveDevice("cam", "test device", rate_hz=20, clock=clock)
    camera._device = device
    taken = []
    with pytest.raises(CameraError, match="went away"):
        taken.extend(camera.frames())
    assert device.retrieved == pytest.approx(200, abs=4)  # 20 frames/s for 10 s
    assert device.left == -1  # and every frame was taken out of the device


# -- RTSP ------------------------------------------------------------------------------------------------------------


Serve = Callable[..., tuple[subprocess.Popen, int]]


@pytest.fixture
def serve() -> Iterator[Serve]:
    """Start RTSP servers, each on a port (0: a free one) that is returned; skip where GStreamer's is missing."""
    if not Path(SYSTEM_PYTHON).exists():
        pytest.skip("no system Python to run GStreamer's RTSP server")
    probe = "import gi; gi.require_version('GstRtspServer', '1.0'); from gi.repository import GstRtspServer"
    if subprocess.run([SYSTEM_PYTHON, "-c", probe], capture_output=True).returncode != 0:
        pytest.skip("install python3-gi, gir1.2-gst-rtsp-server-1.0 and gstreamer1.0-plugins-good to test RTSP")
    started: list[subprocess.Popen] = []

    def start(port: int, *credentials: str) -> tuple[subprocess.Popen, int]:
        process = subprocess.Popen(
            [SYSTEM_PYTHON, str(SERVER), str(port), *credentials], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
        )
        started.append(process)
        word, _, bound = process.stdout.readline().decode().partition(" ")
        assert word == "ready"
        return process, int(bound)

    yield start
    for process in started:
        process.kill()
        process.wait()
        process.stdout.close()


def rtsp(url: str, **options: object) -> RtspCamera:
    return RtspCamera(kind="rtsp", name="cam", url=url, **{"open_timeout_s": 5, **options})


@pytest.mark.system
def test_rtsp_camera_with_credentials_gives_moving_pictures(serve: Serve) -> None:
    _, port = serve(0, "joe", "s3cret")
    camera = RtspDevice(rtsp(f"rtsp://joe:s3cret@127.0.0.1:{port}/line"))
    camera.open()
    frames = camera.frames()
    shown = [next(frames) for _ in range(10)]
    camera.close()
    assert {capture.pixels.shape for capture in shown} == {(240, 320, 3)}
    assert not np.array_equal(shown[0].pixels, shown[-1].pixels)
    assert all(a.captured_at < b.captured_at for a, b in itertools.pairwise(shown))


@pytest.mark.system
def test_refused_rtsp_camera_is_named_without_its_credentials(serve: Serve, capfd: pytest.CaptureFixture) -> None:
    _, port = serve(0, "joe", "s3cret")
    with pytest.raises(CameraError) as caught:
        RtspDevice(rtsp(f"rtsp://joe:wr0ng@127.0.0.1:{port}/line")).open()
    assert f"rtsp://***@127.0.0.1:{port}/line" in str(caught.value)
    assert "wr0ng" not in str(caught.value) + "".join(capfd.readouterr())


@pytest.mark.system
def test_rtsp_camera_delivers_again_after_its_server_died_and_came_back(
    serve: Serve, caplog: pytest.LogCaptureFixture, tmp_path: Path
) -> None:
    caplog.set_level(logging.INFO)
    server, port = serve(reserved_port())  # it comes back on the same port
    settings = rtsp(f"rtsp://joe:s3cret@127.0.0.1:{port}/line", rate_hz=10, open_timeout_s=5)
    taken: list[Capture] = []
    stop = threading.Event()
    runner = CameraRunner(settings, lambda: RtspDevice(settings), taken.append, Outage(0.1, 0.2), stop)

    def ticked(condition: Callable[[], bool]) -> Callable[[], bool]:
        def check() -> bool:
            runner.tick()
            return condition()

        return check

    try:
        until(ticked(lambda: len(taken) > 5 and runner.state is CameraState.UP), what="first frames")
        server.kill()
        server.wait()
        killed = time.monotonic()
        until(ticked(lambda: runner.state is CameraState.AWAY), what="noticing that the server is away")
        assert time.monotonic() - killed < 2 / 10 + 1 + 2  # the limit, and room for a busy machine
        seen = len(taken)
        serve(port)
        until(ticked(lambda: len(taken) > seen + 5), what="frames after the return", timeout_s=40)
    finally:
        stop.set()
        runner.close(5)
    assert "s3cret" not in caplog.text


@pytest.mark.system
def test_rtsp_camera_that_never_answers_fails_after_its_time_limit(tmp_path: Path) -> None:
    import socket

    with socket.socket() as mute:  # accepts, and says nothing
        mute.bind(("127.0.0.1", 0))
        mute.listen()
        camera = RtspDevice(rtsp(f"rtsp://127.0.0.1:{mute.getsockname()[1]}/line", open_timeout_s=1))
        started = time.monotonic()
        with pytest.raises(CameraError, match="does not answer"):
            camera.open()
        assert time.monotonic() - started < 10


def test_settings_never_show_the_url_of_an_rtsp_camera() -> None:
    settings = rtsp("rtsp://joe:s3cret@10.0.0.9/1")
    assert "s3cret" not in f"{settings!r} {settings.model_dump_json()}"


def test_camera_opens_with_its_transport_while_a_camera_of_another_transport_opens(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    first_opens, go_on = threading.Event(), threading.Event()
    seen: dict[str, str] = {}

    def slow_open(url: str, *_: object) -> object:
        if url.endswith("tcp"):
            first_opens.set()
            assert go_on.wait(20)
        seen[url] = os.environ["OPENCV_FFMPEG_CAPTURE_OPTIONS"]
        return object()

    monkeypatch.setenv("OPENCV_FFMPEG_CAPTURE_OPTIONS", "")
    monkeypatch.setattr(cv2, "VideoCapture", slow_open)
    cameras = [RtspDevice(rtsp(f"rtsp://10.0.0.9/{transport}", transport=transport)) for transport in ("tcp", "udp")]
    threads = [threading.Thread(target=camera._connect) for camera in cameras]
    threads[0].start()
    assert first_opens.wait(20)
    threads[1].start()
    threads[1].join(0.2)  # time enough to change the options, for code that does not wait
    go_on.set()
    for thread in threads:
        thread.join(20)
    assert seen == {
        "rtsp://10.0.0.9/tcp": "rtsp_transport;tcp",
        "rtsp://10.0.0.9/udp": "rtsp_transport;udp",
    }
