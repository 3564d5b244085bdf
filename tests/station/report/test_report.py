"""`flawline report` and its page: every figure is that of the frames that went in."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import select

from discovery.pictures.policy import stratum_of
from discovery.shifts import Calendar
from discovery.store import class_commands, frame_pictures, production, schema
from discovery.store.store import Batch, LineRules, Store, TakenDefect
from flawline.messages import Decision
from flawline.settings.tree import Settings, load_settings
from station.cli.main import main
from station.report.figures import pareto_of, stops_in
from tests.discovery.factories import START_NS, defect, directions, verdict
from tests.discovery.stream import Stream

pytestmark = pytest.mark.system

S_NS = 1_000_000_000
MINUTE_NS = 60 * S_NS
NASTY = "<b>lot</b>"
LINE = """
line = "press-7"
data_dir = "{folder}"
[[shifts]]
name = "late"
begin = "22:00"
end = "23:00"
[[shifts]]
name = "night"
begin = "23:00"
end = "06:00"
"""
"""START_NS is 22:14:00 UTC on 2023-11-14."""


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    (tmp_path / "line.toml").write_text(LINE.format(folder=tmp_path / "data"))
    return load_settings(tmp_path / "line.toml")


@pytest.fixture
def store(settings: Settings) -> Iterator[Store]:
    """Yield a store: 20 accepted frames of lot A, a stop of ten minutes, 4 rejects of another lot and model."""
    opened = Store(settings.store_url)
    good = [replace(verdict(n), lot="A", part=f"P{n}") for n in range(20)]
    later = START_NS + 11 * MINUTE_NS
    bad = [
        replace(verdict(n, "cam-2", Decision.REJECT, later + n * S_NS, model_version="m2"), lot=NASTY) for n in range(4)
    ]
    rules = LineRules(Calendar(settings.shifts, settings.time_zone), (), 60 * S_NS)
    where = directions(1)[0]
    rejected = [replace(defect(n, where, camera="cam-2", captured_at=later + n * S_NS), lot=NASTY) for n in range(4)]
    defects = [TakenDefect(of_frame, (None,)) for of_frame in rejected]
    opened.ingest(Batch(verdicts=[*good, *bad], defects=defects), rules=rules)
    with opened.transaction() as connection:
        counted = [(of_frame, stratum_of(of_frame, 0.02)) for of_frame in (*good, *bad)]
        origins = production.origins(connection, [*good, *bad], rules.calendar)
        frame_pictures.count_frames(connection, counted, origins)
    yield opened
    opened.close()


def run(tmp_path: Path, capsys: pytest.CaptureFixture[str], *arguments: str, code: int = 0) -> str:
    with pytest.raises(SystemExit) as ended:
        main(["report", *arguments, "--config", str(tmp_path / "line.toml")])
    printed = capsys.readouterr()
    assert ended.value.code == code, printed.err
    return printed.out if code == 0 else printed.err


SHIFT = ("--shift", "late", "--day", "2023-11-14")


def test_a_shift_is_reported_with_all_that_happened_in_it(
    store: Store, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    report: dict[str, Any] = json.loads(run(tmp_path, capsys, *SHIFT, "--json"))
    assert (report["since"], report["until"]) == ("2023-11-14T22:00:00+00:00", "2023-11-14T23:00:00+00:00")
    assert report["decisions"] == {"accept": 20, "reject": 4}
    assert report["accepted"] == pytest.approx(20 / 24)
    assert (report["part_yield"], report["parts"]) == (1.0, {"accept": 20})
    assert [(row["name"], row["frames"], row["alarms"]) for row in report["cameras"]] == [
        ("cam-1", 20, 0), ("cam-2", 4, 4),
    ]  # fmt: skip
    assert [(row["name"], row["share"]) for row in report["lots"]] == [(NASTY, 1.0), ("A", 0.0)]
    assert [(bar["name"], bar["frames"], bar["cumulative"]) for bar in report["pareto"]] == [("unassigned", 4, 1.0)]
    assert [(use["version"], use["frames"]) for use in report["models"]] == [("m1", 20), ("m2", 4)]
    assert report["stops"] is None, "the store keeps minutes for some days only"
    assert {part["stratum"]: part["frames"] for part in report["strata"]}["reject"] == 4
    other = json.loads(run(tmp_path, capsys, "--shift", "night", "--day", "2023-11-14", "--json"))
    assert (other["frames"], other["accepted"], other["pareto"]) == (0, None, [])
    one_lot = json.loads(run(tmp_path, capsys, *SHIFT, "--lot", NASTY, "--json"))
    assert (one_lot["frames"], one_lot["parts"]) == (4, {})


def test_the_page_shows_names_as_text_and_needs_no_other_file(
    store: Store, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    page = tmp_path / "report.html"
    out = run(tmp_path, capsys, *SHIFT, "--out", str(page))
    assert "24 frames, 83.33% accepted" in out
    text = page.read_text()
    assert "press-7" in text
    assert "shift late of 2023-11-14" in text
    assert "&lt;b&gt;lot&lt;/b&gt;" in text
    assert NASTY not in text
    assert not re.findall(r'(?:src|href)="', text)


def test_the_same_page_comes_as_pdf(store: Store, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("weasyprint", exc_type=(ImportError, OSError))  # type: ignore[arg-type]
    run(tmp_path, capsys, *SHIFT, "-o", str(tmp_path / "report.pdf"))
    assert (tmp_path / "report.pdf").read_bytes().startswith(b"%PDF-")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [(("--shift", "dawn"), "it has late, night"), (("--day", "2023-11-14"), "name the shift"),
     ((*SHIFT, "--since", "2h"), "not both"), (("--out", "report.txt"), ".html or .pdf"),
     (("--since", "1h", "--until", "2h"), "give a time before")],
)  # fmt: skip
def test_a_wrong_question_is_one_line(
    store: Store, tmp_path: Path, capsys: pytest.CaptureFixture[str], arguments: tuple[str, ...], words: str
) -> None:
    error = run(tmp_path, capsys, *arguments, code=2)
    assert words in error
    assert error.strip().count("\n") == 0


def test_a_page_in_a_folder_that_is_none_is_one_line(
    store: Store, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert "cannot be written" in run(tmp_path, capsys, *SHIFT, "--out", str(tmp_path / "no" / "r.html"), code=1)


def test_a_class_is_named_in_the_pareto_and_its_changes_are_told(
    settings: Settings, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    store = Store(settings.store_url)
    stream = Stream(store, settings.discovery.model_copy(update={"window_regions": 200}), directions(5), spread=0.4)
    for _ in range(3):
        stream.feed([0, 1] * 14)
        stream.round()
    with store.reading() as connection:
        first = connection.scalar(select(schema.classes.c.id).order_by(schema.classes.c.number).limit(1))
        assert first is not None
    class_commands.name(store, first, "scratch", who="ana")
    store.close()
    report = json.loads(run(tmp_path, capsys, "--since", "2023-11-01", "--json"))
    assert "scratch" in [bar["name"] for bar in report["pareto"]]
    assert sum(bar["share"] for bar in report["pareto"]) == pytest.approx(1)
    told = {(change["transition"], change["who"]) for change in report["changes"]}
    assert ("named", "ana") in told
    assert any(transition == "confirmed" for transition, _ in told)


def test_stops_are_the_minutes_in_which_no_camera_had_a_frame() -> None:
    start = datetime(2026, 11, 28, 6, tzinfo=UTC)
    minutes = [start + timedelta(minutes=n) for n in (2, 3, 4, 12, 13)]
    stops = stops_in(minutes, start, start + timedelta(minutes=20))
    assert [(stop.begin - start, stop.minutes) for stop in stops] == [
        (timedelta(minutes=5), 7), (timedelta(minutes=14), 6),
    ]  # fmt: skip
    assert [stop.minutes for stop in stops_in([], start, start + timedelta(minutes=30))] == [30]
    assert stops_in([start + timedelta(minutes=n) for n in range(30)], start, start + timedelta(minutes=30)) == ()


def test_a_pareto_adds_up() -> None:
    bars = pareto_of([("D-0001", "dent", None, 1), ("D-0002", "crack", "major", 6), (None, "unassigned", None, 3)])
    assert [(bar.name, bar.frames, bar.share, round(bar.cumulative, 3)) for bar in bars] == [
        ("crack", 6, 0.6, 0.6), ("unassigned", 3, 0.3, 0.9), ("dent", 1, 0.1, 1.0),
    ]  # fmt: skip
