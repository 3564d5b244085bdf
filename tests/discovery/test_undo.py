"""The way back: what a person said is taken back, survives rounds and reaches the topic with its lineage."""

from __future__ import annotations

from typing import Any

import pytest
from sqlalchemy import delete, select, update

from discovery.store import class_commands, decisions, schema, undo
from discovery.store.database import stamp
from discovery.store.store import Store
from flawline.errors import UsageError
from flawline.messages import ClassState, Transition
from tests.discovery.factories import START_NS
from tests.discovery.stream import Stream

pytestmark = pytest.mark.system


def facts(store: Store, name: str) -> dict[str, Any]:
    """Return what a person sees of a class, without its history."""
    shown = class_commands.show(store, name)
    return {key: shown[key] for key in ("name", "severity", "state", "frames", "regions", "merged_into", "places")}


def members(store: Store, name: str) -> set[int]:
    with store.reading() as connection:
        return set(connection.scalars(select(schema.regions.c.id).where(schema.regions.c.class_id == name)))


def counted(store: Store) -> bool:
    """Return whether every class counts what it holds."""
    return all(row["regions"] == len(members(store, row["id"])) for row in class_commands.list_classes(store, True))


def events(stream: Stream) -> list[tuple[str, Transition, tuple[str, ...], str | None]]:
    told = [event for _, event in stream.store.outbox()]
    return [(event.class_id, event.transition, event.parents, event.merged_into) for event in told]


ACTIONS = {
    "name": lambda store, class_id, other_id: decisions.name(store, class_id, "dent"),
    "severity": lambda store, class_id, other_id: decisions.set_severity(store, class_id, "critical"),
    "dismiss": lambda store, class_id, other_id: decisions.dismiss(store, class_id),
    "merge": lambda store, class_id, other_id: decisions.merge(store, class_id, other_id),
    "split": lambda store, class_id, other_id: decisions.split(store, class_id),
}


@pytest.mark.parametrize("action", ACTIONS)
def test_action_that_is_taken_back_leaves_everything_as_it_was(stream: Stream, action: str) -> None:
    store, kinds = stream.store, stream.class_of_kind()
    decisions.name(store, kinds[0], "scratch")
    before = {name: (facts(store, name), members(store, name)) for name in kinds.values()}
    ACTIONS[action](store, kinds[0], kinds[1])
    assert before != {name: (facts(store, name), members(store, name)) for name in kinds.values()}
    shown = class_commands.undo(store, None, who="ana", why="a slip")
    assert {name: (facts(store, name), members(store, name)) for name in kinds.values()} == before
    assert shown["id"] == kinds[0] and counted(store)
    entry = shown["audit"][-1]
    assert (entry["who"], entry["action"], entry["value"], entry["why"]) == ("ana", "undo", action, "a slip")


def test_actions_are_taken_back_one_after_the_other(stream: Stream) -> None:
    store, kinds = stream.store, stream.class_of_kind()
    before = facts(store, kinds[0])
    decisions.name(store, kinds[0], "dent")
    decisions.set_severity(store, kinds[0], "minor")
    decisions.name(store, kinds[0], "deep dent")
    for name, severity in (("dent", "minor"), ("dent", None), (None, None)):
        class_commands.undo(store, None)
        shown = class_commands.show(store, kinds[0])
        assert (shown["name"], shown["severity"]) == (name, severity)
    assert facts(store, kinds[0]) == before
    with pytest.raises(UsageError, match="nothing to take back"):
        class_commands.undo(store, None)


def test_last_word_about_one_class_is_taken_back_and_others_stay(stream: Stream) -> None:
    store, kinds = stream.store, stream.class_of_kind()
    decisions.dismiss(store, kinds[0])
    decisions.name(store, kinds[1], "dent")
    assert class_commands.undo(store, kinds[0].lower())["state"] == "confirmed"
    assert class_commands.show(store, "dent")["id"] == kinds[1]
    with pytest.raises(UsageError, match=f"nothing to take back about class {kinds[0]}"):
        class_commands.undo(store, kinds[0])


def test_what_was_said_later_about_the_other_class_is_taken_back_first(stream: Stream) -> None:
    store, kinds = stream.store, stream.class_of_kind()
    decisions.merge(store, kinds[0], kinds[1])
    decisions.name(store, kinds[1], "both")
    with pytest.raises(UsageError, match=f"{kinds[1]} was named both after {kinds[0]} was merged into {kinds[1]}"):
        class_commands.undo(store, kinds[0])
    class_commands.undo(store, kinds[1])
    assert class_commands.undo(store, kinds[1])["id"] == kinds[0]
    assert class_commands.show(store, kinds[0])["merged_into"] is None


def test_classes_that_were_parted_again_stay_two_in_later_rounds(stream: Stream) -> None:
    store, kinds = stream.store, stream.class_of_kind()
    decisions.merge(store, kinds[0], kinds[1])
    stream.feed([0, 1, 2] * 14)
    stream.round()
    class_commands.restore(store, kinds[0])
    assert counted(store)
    for _ in range(3):
        stream.feed([0, 1, 2] * 14)
        stream.round()
    assert stream.class_of_kind() == kinds and counted(store)


def test_members_that_came_or_left_since_a_merge_stay_where_they_are(stream: Stream) -> None:
    store, kinds = stream.store, stream.class_of_kind()
    first = members(store, kinds[0])
    decisions.merge(store, kinds[0], kinds[1])
    stream.feed([0] * 10)
    child = decisions.split(store, kinds[1])
    apart = members(store, child)
    class_commands.restore(store, kinds[0])
    assert members(store, kinds[0]) == first - apart and members(store, child) == apart
    assert counted(store)


def test_events_say_who_and_where_the_class_came_from(stream: Stream) -> None:
    store, kinds = stream.store, stream.class_of_kind()
    decisions.merge(store, kinds[0], kinds[1])
    child = decisions.split(store, kinds[2])
    store.mark_published(row for row, _ in store.outbox())
    class_commands.undo(store, None, who="ana")
    assert events(stream) == [
        (child, Transition.MERGED, (), kinds[2]),
        (kinds[2], Transition.GREW, (), None),
    ]
    class_commands.undo(store, None, who="ana")
    assert events(stream)[2:] == [
        (kinds[1], Transition.SPLIT, (), None),
        (kinds[0], Transition.REVIVED, (kinds[1],), None),
    ]
    assert {event.who for _, event in store.outbox()} == {"ana"}


def test_class_that_was_dismissed_by_an_older_version_is_restored(stream: Stream) -> None:
    store, kinds = stream.store, stream.class_of_kind()
    decisions.dismiss(store, kinds[0])
    decisions.merge(store, kinds[1], kinds[2])
    with store.transaction() as connection:
        connection.execute(delete(schema.audit_notes))
    assert class_commands.restore(store, kinds[0])["state"] == "confirmed"
    with pytest.raises(UsageError, match="before this version"):
        class_commands.restore(store, kinds[1])
    with pytest.raises(UsageError, match="neither dismissed nor merged"):
        class_commands.restore(store, kinds[0])


def test_counts_that_are_as_they_were_go_back_and_others_stay(stream: Stream) -> None:
    store, kinds, t = stream.store, stream.class_of_kind(), schema.defect_totals
    row = {"minute": stamp(START_NS), "camera": "cam-1", "group_id": 0, "decision": "reject", "class_id": kinds[0]}
    with store.transaction() as connection:
        connection.execute(t.insert(), [row | {"frames": 3}, row | {"frames": 5}])
    decisions.merge(store, kinds[0], kinds[1])
    with store.transaction() as connection:
        connection.execute(update(t).where(t.c.frames == 5).values(frames=50))
    assert class_commands.restore(store, kinds[0])["frames"] == 28 + 3
    assert class_commands.show(store, kinds[1])["frames"] == 28 + 50


def test_name_that_another_class_took_since_is_not_given_back(stream: Stream) -> None:
    store, kinds = stream.store, stream.class_of_kind()
    decisions.name(store, kinds[0], "dent")
    decisions.name(store, kinds[0], "deep dent")
    decisions.name(store, kinds[1], "dent")
    with pytest.raises(UsageError, match=f"'dent' is taken by class {kinds[1]} since"):
        class_commands.undo(store, kinds[0])
    assert class_commands.show(store, kinds[0])["name"] == "deep dent"


def test_name_comes_back_with_the_class_that_a_merge_took_it_from(stream: Stream) -> None:
    store, kinds = stream.store, stream.class_of_kind()
    decisions.name(store, kinds[0], "dent")
    decisions.merge(store, "dent", kinds[1])
    assert class_commands.show(store, "dent")["id"] == kinds[1]
    class_commands.undo(store, None)
    assert class_commands.show(store, "dent")["id"] == kinds[0]
    assert class_commands.show(store, kinds[1])["name"] is None


def test_class_of_a_merged_class_is_restored_before_it(stream: Stream) -> None:
    store, kinds = stream.store, stream.class_of_kind()
    decisions.merge(store, kinds[0], kinds[1])
    decisions.merge(store, kinds[1], kinds[2])
    with pytest.raises(UsageError, match=f"class {kinds[1]} was merged into {kinds[2]} since"):
        class_commands.restore(store, kinds[0])
    for name in (kinds[1], kinds[0]):
        class_commands.restore(store, name)
    assert {row["id"] for row in class_commands.list_classes(store)} == set(kinds.values()) and counted(store)


def test_last_word_is_told_in_words(stream: Stream) -> None:
    store, kinds = stream.store, stream.class_of_kind()
    assert undo.last(store) is None
    decisions.merge(store, kinds[0], kinds[1], who="ana")
    told = undo.last(store)
    assert told is not None and told["class_id"] == kinds[0]
    assert (told["action"], told["value"], told["who"]) == ("merge", kinds[1], "ana")
    class_commands.undo(store, None)
    assert undo.last(store) is None and ClassState.MERGED not in {
        row["state"] for row in class_commands.list_classes(store, True)
    }
