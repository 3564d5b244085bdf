"""Regions without a class go to a class by a person's word: bound, published, audited, and taken back."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from sqlalchemy import select

from discovery.store import class_commands, schema
from discovery.store.store import Store
from flawline.errors import UsageError
from flawline.messages import ClassState, Transition
from tests.discovery.stream import Stream

pytestmark = pytest.mark.system


def of_class(store: Store, name: str | None) -> set[int]:
    r = schema.regions.c
    with store.reading() as connection:
        return set(connection.scalars(select(r.id).where(r.class_id.is_(None) if name is None else r.class_id == name)))


@pytest.fixture
def loose(stream: Stream) -> list[int]:
    """Return the ids of four regions that look like no class."""
    before = of_class(stream.store, None)
    stream.feed([3] * 4)
    stream.store.mark_published(row for row, _ in stream.store.outbox())
    return sorted(of_class(stream.store, None) - before)


def rounds(stream: Stream, count: int) -> None:
    for _ in range(count):
        stream.feed([0, 1, 2] * 14)
        stream.round()


def test_regions_that_a_person_gives_to_a_class_stay_in_it_in_later_rounds(stream: Stream, loose: list[int]) -> None:
    first = stream.class_of_kind()[0]
    before = class_commands.show(stream.store, first)
    shown = class_commands.assign(stream.store, loose[:2], first, who="ana", why="the same tool")
    assert (shown["id"], shown["regions"], shown["frames"]) == (first, before["regions"] + 2, before["frames"] + 2)
    ((_, event),) = stream.store.outbox()
    assert (event.transition, event.selected, event.who) == (Transition.GREW, 2, "ana")
    entry = shown["audit"][-1]
    assert (entry["action"], entry["value"], entry["why"]) == ("assign", "2 regions", "the same tool")
    rounds(stream, 2)
    assert set(loose[:2]) <= of_class(stream.store, first)


def test_new_class_of_chosen_regions_is_named_bound_and_kept(stream: Stream, loose: list[int]) -> None:
    shown = class_commands.assign(stream.store, loose, None, " burr ", who="ana")
    assert (shown["name"], shown["state"], shown["regions"], shown["parents"]) == ("burr", "confirmed", 4, [])
    ((_, event),) = stream.store.outbox()
    assert (event.transition, event.name, event.selected) == (Transition.BORN, "burr", 4)
    rounds(stream, 2)
    assert set(loose) <= of_class(stream.store, shown["id"])


@pytest.mark.parametrize("is_new", [False, True])
def test_regions_are_without_a_class_again_when_it_is_taken_back(
    stream: Stream, loose: list[int], is_new: bool
) -> None:
    first = stream.class_of_kind()[0]
    before, loose_before = class_commands.show(stream.store, first), of_class(stream.store, None)
    shown = class_commands.assign(stream.store, loose, None if is_new else first, who="ana")
    assert of_class(stream.store, None) == loose_before - set(loose)
    undone = class_commands.undo(stream.store, None, who="ana")
    assert undone["id"] == shown["id"] and of_class(stream.store, None) == loose_before
    assert set(stream.store.assignments()) == {frame for frame, kind in stream.truth.items() if kind != 3} - _frames_of(
        stream.store, loose_before
    )
    after = class_commands.show(stream.store, first)
    assert {key: after[key] for key in ("regions", "frames", "state", "name")} == {
        key: before[key] for key in ("regions", "frames", "state", "name")
    }
    if is_new:
        assert (undone["regions"], undone["state"]) == (0, "dormant")
        stream.feed([3] * 4)
        stream.round()
        assert not of_class(stream.store, shown["id"]), "the like of a class that was taken back came back to it"
        again = class_commands.assign(stream.store, loose[:1], shown["id"])
        assert (again["state"], again["regions"]) == (ClassState.CONFIRMED, 1)


def _frames_of(store: Store, regions: set[int]) -> set[str]:
    r, d = schema.regions.c, schema.defects.c
    with store.reading() as connection:
        query = select(d.frame_id).join(schema.regions, r.defect_id == d.id).where(r.id.in_(regions))
        return set(connection.scalars(query))


Attempt = Callable[[Any, list[int], str, int], Any]

REFUSED: list[tuple[Attempt, str]] = [
    (lambda store, loose, first, member: class_commands.assign(store, [], first), "choose the regions"),
    (lambda store, loose, first, member: class_commands.assign(store, [10**12], first), "is not there"),
    (lambda store, loose, first, member: class_commands.assign(store, [member], None), "already: split it off"),
    (lambda store, loose, first, member: class_commands.assign(store, loose, "D-9999"), "no class 'D-9999'"),
    (lambda store, loose, first, member: class_commands.assign(store, loose, first, "burr"), "either a class or"),
    (lambda store, loose, first, member: class_commands.assign(store, loose, None, first), "is taken by class"),
    (
        lambda store, loose, first, member: [
            class_commands.dismiss(store, first),
            class_commands.assign(store, loose, first),
        ],
        "is dismissed: bring it back first",
    ),
]


def test_regions_that_cannot_go_to_a_class_stay_where_they_are(stream: Stream, loose: list[int]) -> None:
    first = stream.class_of_kind()[0]
    member, before = min(of_class(stream.store, first)), of_class(stream.store, None)
    for attempt, says in REFUSED:
        with pytest.raises(UsageError, match=says) as raised:
            attempt(stream.store, loose, first, member)
        assert "\n" not in str(raised.value) and of_class(stream.store, None) == before
