from __future__ import annotations

import pytest
from sqlalchemy import select

from discovery.store import class_commands, decisions, schema
from discovery.store.decision_records import find
from flawline.errors import UsageError
from flawline.messages import ClassState, Transition


def everything(store):
    with store.reading() as connection:
        return [
            connection.execute(select(table).order_by(*table.primary_key)).all()
            for table in (schema.classes, schema.class_events, schema.audit, schema.facts, schema.class_parents)
        ]


def ids(stream):
    return stream.class_of_kind()


def test_list_shows_every_living_class_with_its_frames(stream):
    rows = class_commands.list_classes(stream.store)
    assert {row["id"] for row in rows} == set(ids(stream).values())
    assert sum(row["frames"] for row in rows) == 84
    assert {row["state"] for row in rows} == {"confirmed"}


def test_named_class_is_audited_published_and_bound(stream):
    first = ids(stream)[0]
    shown = class_commands.name(stream.store, first, " long scratch ", who="ana", why="seen at the gate")
    assert (shown["id"], shown["name"]) == (first, "long scratch")
    assert shown["audit"][-1] | {"at": None} == {
        "at": None,
        "who": "ana",
        "action": "name",
        "value": "long scratch",
        "before": None,
        "why": "seen at the gate",
    }
    ((_, event),) = stream.store.outbox()
    assert (event.transition, event.name, event.who) == (Transition.NAMED, "long scratch", "ana")
    assert find(stream.registry(), "long scratch").fixed


def test_merged_classes_stay_one_in_later_rounds(stream):
    first, second = ids(stream)[0], ids(stream)[1]
    class_commands.name(stream.store, second, "dent")
    shown = class_commands.merge(stream.store, "dent", first)
    assert (shown["frames"], shown["name"], shown["merged_from"]) == (56, "dent", [second])
    for _ in range(3):
        stream.feed([0, 1, 2] * 14)
        stream.round()
    kinds = ids(stream)
    assert kinds[0] == kinds[1] == first
    assert kinds[2] not in (first, second)
    with stream.store.reading() as connection:
        assert second not in connection.scalars(select(schema.regions.c.class_id)).all()


def test_split_class_gets_a_child_and_both_stay_apart(stream):
    first, second = ids(stream)[0], ids(stream)[1]
    class_commands.merge(stream.store, second, first)
    child = class_commands.split(stream.store, first, why="two kinds after all")
    assert child["parents"] == [first]
    assert child["frames"] == 28
    assert class_commands.show(stream.store, first)["frames"] == 28
    for _ in range(2):
        stream.feed([0, 1, 2] * 14)
        stream.round()
    kinds = ids(stream)
    assert {kinds[0], kinds[1]} == {first, child["id"]}


def test_dismissed_class_stays_dismissed_and_takes_in_its_like(stream):
    first = ids(stream)[0]
    class_commands.dismiss(stream.store, first, why="reflex of the lamp")
    stream.feed([0, 1, 2] * 14)
    stream.round()
    assert ids(stream)[0] == first
    assert find(stream.registry(), first).state is ClassState.DISMISSED
    assert first not in {row["id"] for row in class_commands.list_classes(stream.store)}
    assert first in {row["id"] for row in class_commands.list_classes(stream.store, everything=True)}


def test_severity_is_set_and_shown(stream):
    assert class_commands.set_severity(stream.store, ids(stream)[2].lower(), "critical")["severity"] == "critical"


@pytest.mark.parametrize(
    ("attempt", "says"),
    [
        (lambda s, a, b: decisions.merge(s, a, a), "into itself"),
        (lambda s, a, b: decisions.name(s, a, "known"), "taken by class"),
        (lambda s, a, b: decisions.name(s, a, b), "taken by class"),
        (lambda s, a, b: decisions.name(s, a, "  "), "1 to 64"),
        (lambda s, a, b: decisions.name(s, a, "x" * 65), "1 to 64"),
        (lambda s, a, b: decisions.name(s, a, "two\nlines"), "1 to 64"),
        (lambda s, a, b: decisions.name(s, "D-9999", "new"), "no class 'D-9999'"),
        (lambda s, a, b: decisions.set_severity(s, a, "awful"), "minor, major, critical"),
        (lambda s, a, b: decisions.merge(s, a, "nobody"), "no class 'nobody'"),
    ],
)
def test_what_cannot_be_done_is_said_in_one_line_and_changes_nothing(stream, attempt, says):
    first, second = ids(stream)[0], ids(stream)[1]
    decisions.name(stream.store, second, "known")
    before = everything(stream.store)
    with pytest.raises(UsageError, match=says) as raised:
        attempt(stream.store, first, second)
    assert "\n" not in str(raised.value)
    assert everything(stream.store) == before


def test_merged_class_cannot_be_spoken_about_any_more(stream):
    first, second = ids(stream)[0], ids(stream)[1]
    decisions.merge(stream.store, first, second)
    with pytest.raises(UsageError, match=f"merged into {second}"):
        decisions.name(stream.store, first, "late")
    with pytest.raises(UsageError, match="dismissed already"):
        [decisions.dismiss(stream.store, second) for _ in range(2)]
    assert class_commands.show(stream.store, first)["merged_into"] == second


def members(stream, name):
    """Return the ids of a class's regions by the true kind of their frames."""
    d, r = schema.defects, schema.regions
    query = select(r.c.id, d.c.frame_id).join_from(r, d).where(r.c.class_id == name).order_by(r.c.id)
    result = {}
    with stream.store.reading() as connection:
        for region, frame_id in connection.execute(query):
            result.setdefault(stream.truth[frame_id], []).append(region)
    return result


def test_selected_members_draw_their_like_into_a_class_that_later_rounds_leave(stream):
    first, second = ids(stream)[0], ids(stream)[1]
    class_commands.merge(stream.store, second, first)
    stream.store.mark_published(row for row, _ in stream.store.outbox())
    seed = members(stream, first)[1][:3]
    child = class_commands.split(stream.store, first, who="ana", regions=seed)
    assert set(members(stream, child["id"])) == {1} and child["frames"] == 28
    split, born = (event for _, event in stream.store.outbox())
    assert (split.transition, split.class_id, split.who) == (Transition.SPLIT, first, "ana")
    assert (born.transition, born.parents, born.selected) == (Transition.BORN, (first,), 3)
    for _ in range(3):
        stream.feed([0, 1, 2] * 14)
        stream.round()
    kinds = ids(stream)
    assert (kinds[0], kinds[1]) == (first, child["id"])
    assert set(seed) <= set(members(stream, child["id"])[1])


def test_selected_members_alone_leave_when_only_they_are_meant_and_no_round_moves_them(stream):
    first, other = ids(stream)[0], ids(stream)[2]
    seed = members(stream, first)[0][-4:]  # the others of their kind stay: only the person's word keeps these apart
    child = class_commands.split(stream.store, first, regions=seed, alike=False)
    assert members(stream, child["id"]) == {0: seed}
    for _ in range(3):
        stream.feed([0, 1, 2] * 14)
        stream.round()
    assert set(seed) <= set(members(stream, child["id"])[0])
    assert ids(stream)[2] == other
    counts = {row["id"]: row["regions"] for row in class_commands.list_classes(stream.store)}
    assert counts[child["id"]] == len(members(stream, child["id"])[0])
    class_commands.undo(stream.store, child["id"])
    assert set(seed) <= set(members(stream, first)[0])


@pytest.mark.parametrize(
    ("choose", "says"),
    [
        (lambda mine, theirs: theirs[:1], "is no member of class"),
        (lambda mine, theirs: [10**12], "region 1000000000000 is no member"),
        (lambda mine, theirs: mine, "all members of class"),
    ],
)
def test_selection_that_makes_no_part_is_refused_and_changes_nothing(stream, choose, says):
    first, second = ids(stream)[0], ids(stream)[1]
    before = everything(stream.store)
    (mine,), (theirs,) = members(stream, first).values(), members(stream, second).values()
    with pytest.raises(UsageError, match=says):
        decisions.split(stream.store, first, regions=choose(mine, theirs))
    assert everything(stream.store) == before


@pytest.mark.parametrize("text", ["x", "1,-2", "1.5", "٣", "9" * 30])
def test_text_that_names_no_region_is_refused(text):
    with pytest.raises(UsageError, match="give ids of regions"):
        decisions.region_ids(text)


def test_ids_of_regions_are_read_from_a_text():
    assert decisions.region_ids(" 3, 14,,15 ") == [3, 14, 15]
