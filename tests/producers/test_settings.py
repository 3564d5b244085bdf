"""Cameras and the publisher in the configuration."""

from __future__ import annotations

import subprocess
import sys

import pytest
from pydantic import ValidationError

from flawline.errors import UsageError
from flawline.settings.producers import FolderCamera, ProducerSettings, RtspCamera, SimulatedCamera, WhenFull
from flawline.settings.tree import Settings
from producers.service import make_camera


def test_sources_without_a_rate_wait_and_all_others_spool_by_default() -> None:
    folder = {"kind": "folder", "name": "cam", "path": "x"}
    assert FolderCamera(**folder).full_policy is WhenFull.WAIT
    assert FolderCamera(**folder, rate_hz=5).full_policy is WhenFull.SPOOL
    assert FolderCamera(**folder, when_full="drop").full_policy is WhenFull.DROP
    assert RtspCamera(kind="rtsp", name="cam", url="rtsp://x/1").full_policy is WhenFull.SPOOL


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"shard": 2, "shards": 2}, "shards are numbered from 0 to 1"),
        ({"rate_hz": -1}, "greater than or equal to 0"),
        ({"codec": "bmp"}, "codec"),
        ({"colour": "red"}, "Extra inputs"),
        ({"name": "a b"}, "name"),
    ],
)
def test_wrong_camera_is_refused(options: dict, message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        FolderCamera(**{"kind": "folder", "name": "cam", "path": "x", **options})


def test_backoff_that_shrinks_is_refused() -> None:
    with pytest.raises(ValidationError, match="give the first wait, then a longer one"):
        ProducerSettings(reconnect_backoff_s=(5, 1))


def test_unknown_product_of_a_simulated_camera_is_refused_in_one_line() -> None:
    with pytest.raises(UsageError, match="'unobtainium'"):
        make_camera(SimulatedCamera(kind="simulated", name="cam", products=["unobtainium"]))


def test_camera_kind_decides_the_settings_class() -> None:
    settings = Settings(
        cameras=[
            {"kind": "simulated", "name": "a", "frames": 3},
            {"kind": "folder", "name": "b", "path": "x"},
            {"kind": "video", "name": "c", "path": "x.mp4"},
            {"kind": "usb", "name": "d", "device": "/dev/video3"},
            {"kind": "rtsp", "name": "e", "url": "rtsp://u:p@h/1"},
        ]
    )
    assert [camera.kind for camera in settings.cameras] == ["simulated", "folder", "video", "usb", "rtsp"]


@pytest.mark.system
def test_settings_load_without_the_libraries_that_cameras_need() -> None:
    code = (
        "import sys, flawline.settings.producers; "
        "print([name for name in ('cv2', 'kafka', 'skimage') if name in sys.modules])"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n"
