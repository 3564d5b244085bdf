"""`flawline cameras test`: what a camera delivers is told, and what keeps it from delivering is one line."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from pathlib import Path

import cv2
import numpy as np
import pytest

from flawline import imaging
from flawline.messages import Codec
from flawline.settings.producers import CameraBase, RtspCamera
from producers.camera import CameraError, Capture
from station.camera_trial import look_of, try_camera, try_cameras
from tests.station.test_cli import flawline, is_one_line

RNG = np.random.default_rng(0)
TEXTURE = RNG.integers(40, 200, (48, 64, 3), np.uint8)


class Pictures:
    """Delivers pictures, and then ends as a device does that goes away."""

    def __init__(self, pictures: list[np.ndarray]) -> None:
        self.name, self._pictures, self.is_open = "cam", pictures, False

    def open(self) -> None:
        self.is_open = True

    def frames(self) -> Iterator[Capture]:
        for number, pixels in enumerate(self._pictures):
            yield Capture(number, pixels=pixels)
        raise CameraError("test camera went away")

    def close(self) -> None:
        self.is_open = False


class Hanging(Pictures):
    """Never delivers, as a device whose driver hangs."""

    def __init__(self) -> None:
        super().__init__([])
        self.released = threading.Event()

    def frames(self) -> Iterator[Capture]:
        self.released.wait()
        return iter(())


def remarks(pictures: list[np.ndarray], asked_hz: float = 0.0) -> str:
    seconds = [0.5 + 0.1 * number for number in range(len(pictures))]
    return "; ".join(look_of(pictures, seconds, "pixels", asked_hz=asked_hz, is_live=True).remarks)


def test_look_tells_size_depth_rate_and_what_the_pictures_are_like() -> None:
    moving = [np.roll(TEXTURE, shift, axis=1) for shift in range(5)]
    look = look_of(moving, [0.5, 0.6, 0.7, 0.8, 0.9], "pixels", asked_hz=10, is_live=True)
    assert (look.frames, look.width, look.height, look.bits, look.remarks) == (5, 64, 48, 8, ())
    assert look.rate_hz == pytest.approx(10) and look.first_frame_s == 0.5
    deep = look_of([TEXTURE.astype(np.uint16) << 4], [0.0], "pixels", asked_hz=0, is_live=True)
    assert deep.bits == 12 and deep.rate_hz is None and deep.brightness == pytest.approx(look.brightness, abs=0.5)


def test_blurred_picture_is_less_sharp() -> None:
    sharp, blurred = (
        look_of([pixels], [0.0], "", asked_hz=0, is_live=False) for pixels in (TEXTURE, cv2.blur(TEXTURE, (5, 5)))
    )
    assert blurred.sharpness < sharp.sharpness / 10


def test_bad_light_a_frozen_picture_and_a_slow_camera_are_remarked() -> None:
    assert "nearly black" in remarks([TEXTURE // 50])
    assert "nearly white" in remarks([np.full_like(TEXTURE, 250)])
    assert "one even grey" in remarks([np.full_like(TEXTURE, 128)])
    assert "every frame is the same" in remarks([TEXTURE, TEXTURE])
    assert "slower than its rate_hz 20" in remarks([TEXTURE, TEXTURE[::-1]], asked_hz=20)
    assert remarks([TEXTURE, TEXTURE[::-1]], asked_hz=10) == ""


def test_camera_that_goes_away_after_its_first_frames_still_shows_them_and_is_closed() -> None:
    camera = Pictures([TEXTURE, TEXTURE[::-1]])
    trial = try_camera(CameraBase(name="cam"), 5, lambda _: camera)
    assert trial.error is None and trial.look is not None and trial.look.frames == 2
    assert np.array_equal(trial.picture, TEXTURE[::-1]) and not camera.is_open


def test_hanging_camera_is_given_up_and_the_others_are_shown() -> None:
    hanging = Hanging()
    slow = RtspCamera(kind="rtsp", name="slow", url="rtsp://10.0.0.7/x", open_timeout_s=0.1, rate_hz=100)
    trials = try_cameras(
        [slow, CameraBase(name="cam")], 2, lambda camera: hanging if camera is slow else Pictures([TEXTURE])
    )
    hanging.released.set()
    assert [trial.camera for trial in trials] == ["slow", "cam"]
    assert "no frame within 0 s" in str(trials[0].error) and trials[1].look is not None


@pytest.mark.system
def test_each_camera_has_its_line_and_a_dead_one_makes_exit_1(tmp_path: Path) -> None:
    (tmp_path / "images").mkdir()
    (tmp_path / "images" / "part.png").write_bytes(imaging.encode(TEXTURE, Codec.PNG))
    (tmp_path / "line.toml").write_text(
        '[[cameras]]\nname = "shelf"\nkind = "folder"\npath = "images"\n'
        '[[cameras]]\nname = "away"\nkind = "rtsp"\nurl = "rtsp://joe:s3cret@127.0.0.1:1/x"\nopen_timeout_s = 2\n'
    )
    done = flawline(tmp_path, "cameras", "test", "--pictures", "shots", "--json")
    report = {camera["camera"]: camera for camera in json.loads(done.stdout)["cameras"]}
    assert done.returncode == 1 and done.stderr == ""
    assert (report["shelf"]["width"], report["shelf"]["height"], report["shelf"]["works"]) == (64, 48, True)
    assert report["away"]["error"] == "RTSP camera rtsp://***@127.0.0.1:1/x does not answer, or is no camera"
    assert np.array_equal(imaging.read_image(tmp_path / "shots" / "shelf.png"), TEXTURE)
    shown = flawline(tmp_path, "cameras", "test", "shelf")
    assert shown.returncode == 0 and shown.stdout.startswith("ok   shelf") and "64x48 px, 8 bits" in shown.stdout
    wrong = flawline(tmp_path, "cameras", "test", "nobody")
    assert wrong.returncode == 2 and is_one_line(wrong.stderr) and "shelf, away" in wrong.stderr
