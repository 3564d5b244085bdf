"""What `flawline fit` and `evaluate` tell a person: figures in words, which files to look at, and what to do next."""

from __future__ import annotations

import re
from pathlib import Path

import cv2
import pytest

from flawline.settings.scorer import ScorerSettings
from flawline.settings.tree import Settings
from scorer import commands
from station import terminal
from station.cli import evaluate, fit
from tests.scorer.conftest import draw


def write(folder: Path, first: int, count: int, defect: bool = False) -> None:
    folder.mkdir(parents=True)
    for i in range(count):
        cv2.imwrite(str(folder / f"{i:02}.png"), draw("board", first + i, defect)[:, :, ::-1])


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a product with two wrong labels: a defect among its good test images, a good one among its defects."""
    root = tmp_path_factory.mktemp("data") / "board"
    write(root / "train/good", 0, 24)
    write(root / "test/good", 100, 5)
    write(root / "test/blot", 200, 5, defect=True)
    cv2.imwrite(str(root / "test/good/blotted.png"), draw("board", 300, defect=True)[:, :, ::-1])
    cv2.imwrite(str(root / "test/blot/clean.png"), draw("board", 301)[:, :, ::-1])
    return root.parent


@pytest.mark.system
def test_report_names_alarmed_good_parts_missed_defects_and_the_next_step(
    data: Path, settings: ScorerSettings, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    line = Settings(scorer=settings)
    model = tmp_path / "model"
    fit.show(fit.fit_model(line, data, model), model)
    output = " ".join(capsys.readouterr().out.split())
    percent = r"\d+\.\d\d %"
    assert re.search(rf"good parts alarmed: {percent} \(worst product {percent}, asked for 5.00 %\)", output)
    assert re.search(rf"defects found at that: {percent}; \d+\.\d images/s", output)
    assert f"good parts were alarmed: {data}/board/test/good/blotted.png" in output  # the highest score first
    assert f"defects were accepted: {data}/board/test/blot/clean.png" in output
    assert "review above" in output
    assert "meant for 5.00 % of good parts" in output
    assert f"next: flawline publish {tmp_path}/model" in output
    evaluate.show(evaluate.evaluate_model(line, model, data), model, data)
    output = " ".join(capsys.readouterr().out.split())
    assert "next: --scores FILE.csv lists every image" in output
    assert f"flawline explain {tmp_path}/model IMAGE" in output


def test_interrupted_fit_says_that_it_can_go_on(
    data: Path, settings: ScorerSettings, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch
) -> None:  # type: ignore[no-untyped-def]
    def interrupted(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(commands, "fit", interrupted)
    with pytest.raises(KeyboardInterrupt):
        fit.fit_model(Settings(scorer=settings), data, tmp_path / "model")
    assert "the same command continues the fit where it stopped" in " ".join(capsys.readouterr().err.split())


def test_progress_in_a_log_says_how_long_it_still_takes(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    now = [100.0]
    monkeypatch.setattr(terminal.time, "monotonic", lambda: now[0])
    with terminal.progress("images") as advance:
        for done in range(0, 50, 10):
            advance(done, 100, "features")
            now[0] += 3
    lines = capsys.readouterr().err.splitlines()
    assert lines == ["features: 20 of 100, about 24 s to go", "features: 40 of 100, about 18 s to go"]
