"""The supervision of a camera: stalls, pulled cables, cameras that hang."""

import logging
import threading
from collections.abc import Callable

import pytest

from flawline import telemetry
from flawline.errors import UsageError
from flawline.outage import REMINDER_S, Outage
from flawline.settings.producers import CameraBase, FolderCamera, UsbCamera
from producers.camera import Camera, Capture
from producers.supervise import CameraRunner, CameraState
from tests.producers.doubles import FakeClock, ScriptedCamera, until


class Rig:
    """Holds a runner of scripted cameras: each attempt takes the next script, and the last script repeats."""

    def __init__(self, *scripts: tuple[int, str], settings: CameraBase | None = None) -> None:
        self.clock = FakeClock()
        self.stop = threading.Event()
        self.release = threading.Event()
        self.settings = settings or UsbCamera(kind="usb", name="cam", rate_hz=10, open_timeout_s=10)
        self.cameras: list[ScriptedCamera] = []
        self.taken: list[Capture] = []
        self.scripts = scripts
        self.runner = CameraRunner(
            self.settings,
            self._make,
            self.taken.append,
            Outage(1.0, 8.0, clock=self.clock, chance=lambda: 1.0),
            self.stop,
            self.clock,
        )

    def _make(self) -> ScriptedCamera:
        count, then = self.scripts[min(len(self.cameras), len(self.scripts) - 1)]
        self.cameras.append(ScriptedCamera("cam", count, then, self.release))
        return self.cameras[-1]

    def tick_until(self, condition: Callable[[], object]) -> None:
        def ticked() -> object:
            self.runner.tick()
            return condition()

        until(ticked, what="runner")

    def metric(self, name: str) -> float | None:
        return telemetry.REGISTRY.get_sample_value(f"flawline_{name}", {"camera": "cam"})

    def close(self) -> None:
        self.release.set()
        self.stop.set()
        self.runner.close(5)


@pytest.fixture
def rig() -> Callable[..., Rig]:
    made: list[Rig] = []

    def make(*scripts: tuple[int, str], **options: object) -> Rig:
        made.append(Rig(*scripts, **options))
        return made[-1]

    yield make
    for line in made:
        line.close()


def test_stalled_camera_is_noticed_in_twice_its_period_and_a_second_and_opened_again(
    rig: Callable[..., Rig], caplog: pytest.LogCaptureFixture
) -> None:
    line = rig((3, "hang"), (2, "hang"))
    line.tick_until(lambda: len(line.taken) == 3 and line.runner.state is CameraState.UP)
    assert line.metric("camera_up") == 1
    reconnects = line.metric("camera_reconnects_total")
    line.clock.advance(1.19)  # the limit of 10 frames/s is 2 x 0.1 s + 1 s
    line.runner.tick()
    assert line.runner.state is CameraState.UP
    line.clock.advance(0.02)
    line.runner.tick()
    assert line.runner.state is CameraState.AWAY
    assert line.metric("camera_up") == 0
    assert "cam: is waiting for its next frame for 1.2 s" in caplog.text
    line.clock.advance(1.01)
    line.tick_until(lambda: len(line.taken) == 5)
    assert len(line.cameras) == 2
    assert line.metric("camera_reconnects_total") == reconnects + 1


def test_reader_that_was_given_up_publishes_nothing_when_it_wakes(rig: Callable[..., Rig]) -> None:
    line = rig((1, "hang"), (0, "hang"))
    line.tick_until(lambda: len(line.taken) == 1 and line.runner.state is CameraState.UP)
    line.clock.advance(2)
    line.runner.tick()
    first = line.cameras[0]
    line.release.set()  # its read returns a frame now
    until(lambda: first.closed, what="the abandoned reader's end")
    assert len(line.taken) == 1


def test_camera_that_goes_away_is_tried_again_with_growing_waits(
    rig: Callable[..., Rig], caplog: pytest.LogCaptureFixture
) -> None:
    line = rig((0, "unreachable"), (0, "unreachable"), (0, "unreachable"), (4, "away"), (0, "unreachable"))
    waits = []
    for attempt in range(1, 6):
        line.tick_until(lambda: line.runner.state is CameraState.AWAY)
        waits.append(line.runner._due - line.clock.now)
        assert len(line.cameras) == attempt
        line.clock.advance(waits[-1])
        line.runner.tick()
    assert waits == pytest.approx([1, 2, 4, 1, 2])  # it delivered in between
    assert len(line.taken) == 4
    assert "secret" not in caplog.text and "rtsp://***@10.0.0.9/1" in caplog.text


def test_camera_that_never_answers_is_given_up_at_its_limit_and_does_not_block(rig: Callable[..., Rig]) -> None:
    line = rig((5, "hang-in-open"))
    line.tick_until(lambda: line.cameras and line.cameras[0].opened)
    line.clock.advance(9.9)
    line.runner.tick()
    assert line.runner.state is CameraState.OPENING
    line.clock.advance(0.2)
    line.runner.tick()
    assert line.runner.state is CameraState.AWAY


def test_device_that_hangs_at_every_attempt_takes_no_more_than_three_threads(rig: Callable[..., Rig]) -> None:
    line = rig((5, "hang-in-open"))
    for _ in range(20):
        line.runner.tick()
        line.clock.advance(10.1)
    assert len(line.cameras) == 3
    line.release.set()  # it comes back
    line.tick_until(lambda: len(line.cameras) > 3)


def test_finite_source_ends(rig: Callable[..., Rig]) -> None:
    line = rig((3, "end"), settings=CameraBase(name="cam"))
    line.tick_until(lambda: line.runner.over)
    assert (line.runner.state, len(line.taken), line.runner.error) == (CameraState.ENDED, 3, None)


@pytest.mark.parametrize(
    "error",
    [
        UsageError("image folder /nowhere does not exist: correct the camera's path"),
        ImportError("No module named 'skimage'"),
        RuntimeError("the driver exploded"),
    ],
)
def test_camera_that_cannot_be_made_is_tried_again_with_one_line_now_and_then(
    rig: Callable[..., Rig], caplog: pytest.LogCaptureFixture, error: Exception
) -> None:
    caplog.set_level(logging.INFO)
    line = rig((3, "end"), settings=CameraBase(name="cam"))
    made, is_well = line.runner._make, threading.Event()

    def make() -> Camera:
        if not is_well.is_set():
            raise error
        return made()

    line.runner._make = make
    for attempt in range(1, 5):
        line.tick_until(lambda: line.runner.state is CameraState.AWAY)
        assert line.runner.error is None and line.metric("camera_up") == 0
        pause_s = line.runner._due - line.clock.now
        assert pause_s == pytest.approx(min(8, 2 ** (attempt - 1)))
        line.clock.advance(pause_s)
        line.runner.tick()
    line.tick_until(lambda: line.runner.state is CameraState.AWAY)
    (message,) = caplog.messages
    assert str(error) in message and "then with growing pauses, and the other cameras go on" in message
    line.clock.advance(REMINDER_S)
    line.runner.tick()
    line.tick_until(lambda: line.runner.state is CameraState.AWAY)
    assert "has been away for 315 s (6 attempts failed, lastly: " in caplog.messages[-1] and len(caplog.messages) == 2
    is_well.set()
    line.clock.advance(8)
    line.runner.tick()
    line.tick_until(lambda: line.runner.over)
    assert (line.runner.state, len(line.taken)) == (CameraState.ENDED, 3)
    assert "cam delivers again, after 323 s" in caplog.text


def test_replay_that_breaks_off_is_not_read_from_its_beginning_again_unless_it_is_a_loop(
    rig: Callable[..., Rig],
) -> None:
    once = rig((3, "away"), settings=CameraBase(name="cam"))
    once.tick_until(lambda: once.runner.over)
    assert once.runner.state is CameraState.FAILED and str(once.runner.error) == "the cable was pulled"
    assert once.metric("camera_up") == 0 and len(once.cameras) == 1
    loop = rig((3, "away"), settings=FolderCamera(kind="folder", name="cam", path=".", loop=True))
    loop.tick_until(lambda: loop.runner.state is CameraState.AWAY)
    loop.clock.advance(1)
    loop.tick_until(lambda: len(loop.taken) == 6)


def test_camera_waits_for_its_turn_when_the_system_has_no_thread_left(
    rig: Callable[..., Rig], monkeypatch: pytest.MonkeyPatch
) -> None:
    line = rig((3, "end"), settings=CameraBase(name="cam"))

    def refuse(_: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    with monkeypatch.context() as patch:
        patch.setattr(threading.Thread, "start", refuse)
        line.runner.tick()
    assert line.runner.state is CameraState.AWAY
    line.clock.advance(1)
    line.tick_until(lambda: line.runner.over)
    assert len(line.taken) == 3


def test_late_replay_is_reported_and_is_not_started_again(
    rig: Callable[..., Rig], caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    line = rig((2, "hang"), settings=CameraBase(name="cam", rate_hz=1000))
    line.clock.now = 0.0

    def moving() -> bool:
        line.clock.advance(0.01)
        return len(line.taken) == 2 and line.runner.state is CameraState.UP

    line.tick_until(moving)
    line.clock.advance(5)
    line.runner.tick()
    assert line.runner.state is CameraState.STALLED and len(line.cameras) == 1
    line.release.set()
    line.tick_until(lambda: line.runner.over)
    assert len(line.taken) == 3


def test_camera_whose_driver_raises_any_error_counts_as_away(rig: Callable[..., Rig]) -> None:
    line = rig((0, "hang"))

    class Broken(ScriptedCamera):
        def open(self) -> None:
            raise RuntimeError("driver rtsp://a:b@c/d exploded")

    line.runner._make = lambda: Broken("cam", 0, "end")
    line.tick_until(lambda: line.runner.state is CameraState.AWAY)


@pytest.mark.parametrize("rate_hz", [50.0])
def test_replay_keeps_its_rate(rate_hz: float) -> None:
    import time

    taken: list[float] = []
    runner = CameraRunner(
        CameraBase(name="cam", rate_hz=rate_hz),
        lambda: ScriptedCamera("cam", 26, "end"),
        lambda _: taken.append(time.monotonic()),
        Outage(1, 2),
        threading.Event(),
    )
    runner.tick()
    until(lambda: (runner.tick(), runner.over)[1])
    assert len(taken) == 26
    assert taken[-1] - taken[0] >= 25 / rate_hz * 0.95
