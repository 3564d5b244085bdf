"""`flawline classes`: what hides frames is confirmed with their number, and comes back."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import select, update

from discovery.store import class_commands, schema
from discovery.store.store import Store
from station.cli import main
from tests.station.web.conftest import filled


@pytest.fixture
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Store]:
    monkeypatch.chdir(tmp_path)
    opened = filled(f"sqlite:///{tmp_path}/data/store.db")
    yield opened
    opened.close()


def states(store: Store) -> dict[str, Any]:
    return {row["id"]: row["state"] for row in class_commands.list_classes(store, everything=True)}


@pytest.mark.parametrize("words", [["dismiss", "D-0001"], ["merge", "D-0001", "D-0002"]], ids=lambda words: words[0])
def test_what_hides_frames_is_confirmed_and_comes_back(
    words: list[str], store: Store, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    before = states(store)
    assert main._run(["classes", *words]) == 2
    assert "28 frames of class D-0001" in capsys.readouterr().err and states(store) == before
    monkeypatch.setattr("sys.stdin.isatty", lambda: True, raising=False)
    asked: list[str] = []
    monkeypatch.setattr("typer.confirm", lambda text, **_: asked.append(text))
    assert main._run(["classes", *words]) == 0
    assert states(store) != before and "28 frames of class D-0001" in asked[0]
    for way in (["undo"], ["restore", "D-0001"]):
        assert main._run(["classes", *way]) == 0
        assert states(store) == before
        assert main._run(["classes", *words, "--yes"]) == 0
        assert states(store) != before and len(asked) == 1


def test_no_leaves_everything_as_it_is(
    store: Store, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(text: str, **_: Any) -> None:
        raise main.typer.Abort

    before = states(store)
    monkeypatch.setattr("sys.stdin.isatty", lambda: True, raising=False)
    monkeypatch.setattr("typer.confirm", refuse)
    assert main._run(["classes", "dismiss", "D-0001"]) == 130
    assert states(store) == before


def test_nothing_to_take_back_is_one_line(store: Store, capsys: pytest.CaptureFixture[str]) -> None:
    assert main._run(["classes", "undo"]) == 2
    assert "nothing to take back" in capsys.readouterr().err


def test_regions_without_a_class_are_given_to_a_new_one_and_taken_back(
    store: Store, capsys: pytest.CaptureFixture[str]
) -> None:
    r = schema.regions
    with store.transaction() as connection:
        connection.execute(update(r).where(r.c.id.in_([1, 2])).values(class_id=None))
    assert main._run(["classes", "assign", "1,2", "--name", "burr", "--why", "as on the drawing"]) == 0
    assert "burr" in capsys.readouterr().out and class_commands.show(store, "burr")["regions"] == 2
    assert main._run(["classes", "assign", "1", "--into", "burr"]) == 2
    assert "is in class" in capsys.readouterr().err
    assert main._run(["classes", "undo"]) == 0
    with store.reading() as connection:
        assert connection.scalars(select(r.c.class_id).where(r.c.id.in_([1, 2]))).all() == [None, None]
