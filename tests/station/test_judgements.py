"""`flawline judgements`: from the queue to a folder that a model can be extended with."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from discovery.pictures.keeper import picture_store
from discovery.store import judgements
from discovery.store.store import Store
from flawline.messages import Decision
from flawline.settings.tree import Settings, load_settings
from flawline.user import user_name
from station.cli.main import main
from tests.discovery.factories import frame
from tests.discovery.pictures import photos
from tests.discovery.pictures.photos import scored


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    (tmp_path / "line.toml").write_text(f'data_dir = "{tmp_path / "data"}"')
    return load_settings(tmp_path / "line.toml")


@pytest.fixture
def store(settings: Settings) -> Iterator[Store]:
    """Yield a store: frames 0 to 2 are rejects with kept pictures; frame 3 is a near miss."""
    opened, pictures = Store(settings.store_url), picture_store(settings)
    pictures.create()
    keys = tuple(pictures.put(frame(n)[1]) for n in range(3))
    size_bytes = len(frame(0)[1])
    photos.keep(opened, *(scored(n) for n in range(3)), keys=keys, size_bytes=size_bytes)
    photos.keep(opened, scored(3, Decision.ACCEPT, p_value=0.01))
    yield opened
    opened.close()


def run(tmp_path: Path, capsys: pytest.CaptureFixture[str], *arguments: str, code: int = 0) -> str:
    with pytest.raises(SystemExit) as ended:
        main(["judgements", *arguments, "--config", str(tmp_path / "line.toml")])
    printed = capsys.readouterr()
    assert ended.value.code == code, printed.err
    return printed.out if code == 0 else printed.err


def run_json(tmp_path: Path, capsys: pytest.CaptureFixture[str], *arguments: str) -> Any:
    return json.loads(run(tmp_path, capsys, *arguments, "--json"))


def test_a_frame_is_judged_listed_and_taken_back(
    store: Store, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    entry = run_json(tmp_path, capsys, "judge", "cam-1:1:0", "false", "--why", "a drop of oil")
    assert (entry["judgement"], entry["why"], entry["who"]) == ("false", "a drop of oil", user_name())
    listed = run_json(tmp_path, capsys, "list")
    assert [row["frame"] for row in listed["judgements"]] == ["cam-1:1:0"]
    assert listed["waiting"] == {"alarms": 2, "audit": 1}
    assert listed["people"] == {user_name(): {"false": 1}}
    assert "2 alarms and 1 accepted frames wait" in run(tmp_path, capsys, "list")
    assert run_json(tmp_path, capsys, "list", "--only", "real")["judgements"] == []
    assert "cam-1:1:0 is no longer judged false" in run(tmp_path, capsys, "undo")
    assert run_json(tmp_path, capsys, "list")["judgements"] == []
    assert "nothing to take back" in run(tmp_path, capsys, "undo", code=2)
    assert "has no picture" in run(tmp_path, capsys, "judge", "cam-1:1:9", "real", code=2)
    assert "one of real, false, unsure" in run(tmp_path, capsys, "judge", "cam-1:1:0", "bad", code=2)


def test_false_alarms_become_a_folder_of_good_images(
    store: Store, settings: Settings, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for number, judgement in enumerate(("false", "real", "false")):
        judgements.judge(store, f"cam-1:1:{number}", judgement, who="ana", is_offered=True)
    judgements.judge(
        store, "cam-1:1:3", "false", who="ana", is_offered=True
    )  # the line accepted it, so it is no false alarm
    folder = tmp_path / "good"
    (lost,) = (row for row in judgements.false_alarms(store) if row.frame_id == "cam-1:1:2")
    picture_store(settings).remove(lost.object_key)
    report = run_json(tmp_path, capsys, "export", str(folder))
    assert (report["exported"], report["gone"]) == (["cam-1:1:0"], ["cam-1:1:2"])
    assert {file.name: file.read_bytes() for file in folder.iterdir()} == {"cam-1-1-0.jpg": frame(0)[1]}
    text = run(tmp_path, capsys, "export", str(folder))
    assert "1 false alarms are in" in text
    assert "flawline extend MODEL" in text
    (tmp_path / "file").touch()
    assert "export to" in run(tmp_path, capsys, "export", str(tmp_path / "file"), code=1)


def test_the_rates_are_printed_with_their_intervals(
    store: Store, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert "overkill" in run(tmp_path, capsys, "rates")
    for number, judgement in enumerate(("false", "real", "real")):
        judgements.judge(store, f"cam-1:1:{number}", judgement, who="ana", is_offered=True)
    judgements.judge(store, "cam-1:1:3", "false", who="ana", is_offered=True)
    report = run_json(tmp_path, capsys, "rates")
    share = report["rates"]["false_alarm_share"]
    assert share["value"] == pytest.approx(1 / 3)
    assert share["low"] < 1 / 3 < share["high"]
    assert {part["stratum"]: part["judged"] for part in report["strata"] if part["judged"]} == {
        "reject": 3, "near-miss": 1,
    }  # fmt: skip
    assert "33.33% (" in run(tmp_path, capsys, "rates")
    assert run_json(tmp_path, capsys, "rates", "--camera", "cam-9")["rates"]["escape"]["value"] is None
    assert "in the future" in run(tmp_path, capsys, "rates", "--since", "2999-01-01", code=2)
