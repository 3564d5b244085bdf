"""The worked examples of CONTRIBUTING.md are run as they stand there."""

from __future__ import annotations

import re
import textwrap
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import cv2
import numpy as np
import pytest
from pydantic import Field, TypeAdapter, ValidationError

from discovery.dashboards import operations
from flawline import telemetry
from flawline.clock import utc_ns
from flawline.messages import Decision, Defect, Verdict
from flawline.settings.producers import KIND, CameraBase
from flawline.settings.tree import AnyCamera
from producers.camera import Camera, Capture
from producers.framing import to_frame
from scorer.detector import Detector, Image, Maps, Mask, RegionInputs, Scores
from tests.support.brokers import RunningBroker
from tests.workers.line import FULL, feeding, frame, inspecting, line_settings, read

TEXT = (Path(__file__).parents[1] / "CONTRIBUTING.md").read_text(encoding="utf-8")


def examples(heading: str) -> list[str]:
    """Return the Python examples of a section."""
    section = TEXT.split(f"## {heading}\n")[1].split("\n## ")[0]
    return [
        textwrap.dedent(code) for code in re.findall(r"^ *```python\n(.*?)^ *```", section, re.DOTALL | re.MULTILINE)
    ]


def run(code: str, **names: Any) -> dict[str, Any]:
    """Run an example with the names that its place imports; return what it defines."""
    exec(compile(code, "CONTRIBUTING.md", "exec", dont_inherit=True), names)
    return names


def members(protocol: type) -> set[str]:
    return {name for name in vars(protocol) | protocol.__annotations__ if not name.startswith("_")}


def test_the_camera_of_the_example_delivers_frames() -> None:
    settings_code, device_code = examples("Add a camera kind")
    camera_kind = run(
        settings_code, CameraBase=CameraBase, KIND=KIND, Annotated=Annotated, Literal=Literal, Field=Field
    )
    noise = camera_kind["NoiseCamera"]
    block = {"name": "lab", "kind": "noise", "side_px": 32}
    with pytest.raises(ValidationError):
        TypeAdapter(AnyCamera).validate_python(block)  # the name has to be added there, as the text says
    settings = TypeAdapter(noise).validate_python(block)
    device_names = run(device_code, NoiseCamera=noise, Iterator=Iterator, Capture=Capture, utc_ns=utc_ns, np=np)
    camera = device_names["NoiseDevice"](settings)
    assert all(hasattr(camera, name) for name in members(Camera))
    camera.open()
    captures = camera.frames()
    first, second = (to_frame(next(captures), settings, epoch=1, sequence=sequence) for sequence in range(2))
    camera.close()
    assert (first.camera, first.height, first.width) == ("lab", 32, 32)
    assert first.data != second.data


@pytest.mark.system
def test_the_detector_of_the_example_works_in_a_worker(embedded_broker: RunningBroker, tmp_path: Path) -> None:
    (code,) = examples("Add a detector")
    names = run(
        code, dataclass=dataclass, Sequence=Sequence, Image=Image, Mask=Mask, Maps=Maps,
        RegionInputs=RegionInputs, Scores=Scores,
        Decision=Decision, np=np, cv2=cv2,
    )  # fmt: skip
    detector = names["BrightnessDetector"]()
    assert all(hasattr(detector, name) for name in members(Detector))
    settings = line_settings(embedded_broker.bootstrap, tmp_path)
    with feeding(settings) as feeder:
        feeder.send(frame("cam-0", 0), frame("cam-0", 1, level=FULL))
        feeder.flush()
        with inspecting(settings, detector=detector):
            dark, bright = read(settings, "verdicts", Verdict, 2)
            (defect,) = read(settings, "defects", Defect, 1)
    assert (dark.decision, bright.decision) == (Decision.ACCEPT, Decision.REJECT)
    assert bright.model_version == "brightness-1"
    assert defect.frame_id == bright.frame_id and defect.regions


def test_metric_and_panel_of_the_example_are_those_of_the_dashboard() -> None:
    metric_code, panel_code = examples("Add a dashboard panel")
    source = Path(str(telemetry.__file__)).read_text(encoding="utf-8")
    assert metric_code in source
    (panel,) = eval(panel_code, vars(operations))
    built = panel.build()
    titles = [shown.title for shown in operations.build("http://station").build().panels]
    assert built.title in titles
    assert "flawline_undescribed_defects_total" in built.targets[0].expr
