from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from discovery.round.lineage import DefectClass, Registry, Rules, class_id, evolve, match
from flawline.messages import ClassState, Transition

AXES = np.eye(12, dtype=np.float32)
RULES = Rules(birth_members=3, min_members=6, confirm_rounds=2, dormant_rounds=3)


def known(number, state=ClassState.CONFIRMED, axis=None, **fields):
    return DefectClass(
        id=class_id(number),
        number=number,
        state=state,
        members=fields.pop("members", 20),
        born_at=0,
        born_round=1,
        last_seen_at=0,
        centroid=AXES[number if axis is None else axis],
        radius=0.1,
        embedding_version="v",
        confirmed_at=5 if state is ClassState.CONFIRMED else None,
        seen_rounds=5,
        **fields,
    )


def carry(registry, previous, labels, axes=None, fresh=None, rules=RULES):
    labels = np.array(labels)
    count = labels.max() + 1
    fresh = np.array([name is None for name in previous]) if fresh is None else np.array(fresh)
    centroids = AXES[list(range(count)) if axes is None else axes]
    return evolve(registry, previous, labels, centroids, fresh, at=99, rules=rules, embedding_version="v")


def after(registry, evolution):
    return replace(
        registry,
        classes=evolution.classes,
        next_number=evolution.next_number,
        round=registry.round + 1,
        pending=evolution.pending,
    )


def states(evolution):
    return {one.id: one.state for one in evolution.classes}


def transitions(evolution):
    return [(change.class_id, change.transition) for change in evolution.changes]


def two(**fields):
    return Registry(classes=(known(1, **fields), known(2)), round=4, next_number=3)


def test_clusters_in_another_order_keep_the_ids():
    previous = ["D-0001"] * 10 + ["D-0002"] * 10
    found = carry(two(), previous, [1] * 10 + [0] * 10, axes=[2, 1])
    assert list(found.assigned) == previous
    assert found.changes == ()
    assert found.churn == 0


def test_group_of_strangers_is_born_as_a_candidate_with_a_fresh_id():
    previous = ["D-0001"] * 10 + ["D-0002"] * 10 + [None] * 4
    found = carry(two(), previous, [0] * 10 + [1] * 10 + [2] * 4, axes=[1, 2, 3])
    assert set(found.assigned[20:]) == {"D-0003"}
    assert transitions(found) == [("D-0003", Transition.BORN)]
    assert states(found)["D-0003"] is ClassState.CANDIDATE
    assert found.next_number == 4


def test_too_few_strangers_stay_without_a_class():
    previous = ["D-0001"] * 10 + ["D-0002"] * 10 + [None] * 2
    found = carry(two(), previous, [0] * 10 + [1] * 10 + [2] * 2, axes=[1, 2, 3])
    assert set(found.assigned[20:]) == {None}
    assert found.changes == ()


def test_candidate_is_confirmed_after_two_rounds_and_enough_members():
    registry = Registry(round=1)
    first = carry(registry, [None] * 8, [0] * 8)
    assert states(first) == {"D-0001": ClassState.CANDIDATE}
    second = carry(after(registry, first), list(first.assigned), [0] * 8)
    assert states(second) == {"D-0001": ClassState.CONFIRMED}
    assert transitions(second) == [("D-0001", Transition.CONFIRMED)]


def test_small_candidate_is_not_confirmed_however_often_it_is_seen():
    registry, previous = Registry(), [None] * 5
    for _ in range(2):
        found = carry(registry, previous, [0] * 5)
        registry, previous = after(registry, found), list(found.assigned)
    assert states(found) == {"D-0001": ClassState.CANDIDATE}


def test_confirmed_class_splits_only_when_two_rounds_ask_for_it():
    registry, previous = two(), ["D-0001"] * 20 + ["D-0002"] * 10
    labels, axes = [0] * 12 + [1] * 8 + [2] * 10, [1, 5, 2]
    first = carry(registry, previous, labels, axes)
    assert list(first.assigned) == previous
    assert first.pending == {"split:D-0001"}
    second = carry(after(registry, first), previous, labels, axes)
    assert second.assigned[:12] == ("D-0001",) * 12
    assert second.assigned[12:20] == ("D-0003",) * 8
    born = next(change for change in second.changes if change.transition is Transition.BORN)
    assert (born.class_id, born.parents) == ("D-0003", ("D-0001",))
    assert ("D-0001", Transition.SPLIT) in transitions(second)


def test_confirmed_classes_merge_only_when_two_rounds_ask_for_it_and_the_older_survives():
    registry, previous = two(), ["D-0001"] * 8 + ["D-0002"] * 14
    first = carry(registry, previous, [0] * 22, axes=[2])
    assert list(first.assigned) == previous
    assert first.pending == {"merge:D-0002:D-0001"}
    second = carry(after(registry, first), previous, [0] * 22, axes=[2])
    assert set(second.assigned) == {"D-0001"}
    assert states(second)["D-0002"] is ClassState.MERGED
    assert next(one for one in second.classes if one.id == "D-0002").merged_into == "D-0001"
    assert second.churn == 0  # a merged member has not changed its class


def test_candidate_merges_at_once_into_the_confirmed_class():
    registry = Registry(classes=(known(1, ClassState.CANDIDATE), known(2)), round=4, next_number=3)
    found = carry(registry, ["D-0001"] * 14 + ["D-0002"] * 8, [0] * 22, axes=[1])
    assert set(found.assigned) == {"D-0002"}
    assert states(found)["D-0001"] is ClassState.MERGED


@pytest.mark.parametrize("fields", [{"name": "scratch"}, {"bound": True}])
def test_what_a_person_has_named_is_neither_split_nor_merged(fields):
    registry, previous = two(**fields), ["D-0001"] * 20 + ["D-0002"] * 10
    for _ in range(3):
        found = carry(registry, previous, [0] * 11 + [1] * 9 + [2] * 10, axes=[1, 5, 2])
        registry = after(registry, found)
    assert list(found.assigned) == previous
    for _ in range(3):
        found = carry(registry, previous, [0] * 30, axes=[2])
        registry = after(registry, found)
    assert set(found.assigned[:20]) == {"D-0001"}


def test_dismissed_class_stays_dismissed_and_keeps_taking_in_its_like():
    registry = Registry(classes=(known(1, ClassState.DISMISSED), known(2)), round=4, next_number=3)
    found = carry(registry, ["D-0001"] * 8 + ["D-0002"] * 8 + [None] * 4, [0] * 8 + [1] * 8 + [0] * 4, axes=[1, 2])
    assert set(found.assigned[16:]) == {"D-0001"}
    assert states(found)["D-0001"] is ClassState.DISMISSED


def test_class_without_new_members_goes_dormant_and_comes_back_as_what_it_was():
    registry, previous = two(), ["D-0001"] * 8 + ["D-0002"] * 8
    for _ in range(3):
        found = carry(registry, previous, [0] * 8 + [1] * 8, axes=[1, 2], fresh=[False] * 8 + [True] * 8)
        registry = after(registry, found)
    assert transitions(found) == [("D-0001", Transition.DORMANT)]
    again = carry(registry, [*previous, None], [0] * 8 + [1] * 8 + [0], axes=[1, 2])
    assert transitions(again) == [("D-0001", Transition.REVIVED)]
    assert states(again)["D-0001"] is ClassState.CONFIRMED


def test_candidate_that_falls_apart_is_dormant_and_its_id_is_not_given_again():
    registry = Registry(classes=(known(1, ClassState.CANDIDATE), *map(known, (2, 3, 4))), round=4, next_number=5)
    previous = ["D-0001"] * 6 + ["D-0002"] * 10 + ["D-0003"] * 10 + ["D-0004"] * 10
    found = carry(registry, previous, [0, 0, 1, 1, 2, 2] + [0] * 10 + [1] * 10 + [2] * 10, axes=[2, 3, 4])
    assert states(found)["D-0001"] is ClassState.DORMANT
    born = carry(after(registry, found), [*found.assigned, *[None] * 4], [0] * 36 + [1] * 4, axes=[2, 9])
    assert "D-0005" in states(born)


def test_class_in_many_pieces_keeps_its_id_on_the_largest():
    previous = ["D-0001"] * 20 + ["D-0002"] * 10
    labels = [0] * 5 + [1] * 5 + [2] * 5 + [3] * 5 + [4] * 10
    found = carry(two(), previous, labels, axes=[6, 7, 8, 9, 2])
    assert list(found.assigned) == previous


def test_few_shared_members_are_matched_by_centroid():
    overlap, sizes = np.array([[0], [2]]), np.array([3, 2])
    cosines = np.array([[0.95], [0.1]])
    assert match(overlap, sizes, np.array([2]), cosines) == {0: 0}


def test_unlike_clusters_are_left_alone():
    assert match(np.array([[2]]), np.array([30]), np.array([30]), np.array([[0.2]])) == {}
    assert match(np.zeros((0, 3), int), np.zeros(0, int), np.zeros(3, int), np.zeros((0, 3))) == {}


@st.composite
def histories(draw):
    rounds = draw(st.integers(2, 7))
    return [
        (
            draw(st.lists(st.integers(-1, 4), min_size=12, max_size=40)),
            draw(st.integers(0, 12)),
            draw(st.integers(0, 2**16)),
        )
        for _ in range(rounds)
    ]


@settings(max_examples=150)
@given(histories())
def test_whatever_the_rounds_no_id_is_reused_or_lost(history):
    registry, memory = Registry(), {}
    pool: list[str | None] = []
    for labels, newcomers, seed in history:
        rng = np.random.default_rng(seed)
        pool = (pool + [None] * len(labels))[: len(labels)]
        for row in rng.permutation(len(labels))[:newcomers]:
            pool[row] = None
        used = sorted(set(labels) - {-1})
        labels = np.array([used.index(label) if label >= 0 else -1 for label in labels])
        found = evolve(
            registry,
            pool,
            labels,
            AXES[rng.permutation(12)[: len(used)]],
            np.array([p is None for p in pool]),
            7,
            RULES,
            "v",
        )
        ids = [one.id for one in found.classes]
        numbers = [one.number for one in found.classes]
        assert len(set(ids)) == len(ids)
        assert memory.keys() <= set(ids)  # none is lost
        assert all(memory.get(one.id, one.number) == one.number for one in found.classes)  # none is renumbered
        assert max(numbers, default=0) < found.next_number
        assert found.next_number >= registry.next_number
        alive = {one.id for one in found.classes if one.state is not ClassState.MERGED}
        assert {name for name in found.assigned if name} <= alive
        for one in found.classes:
            assert (one.merged_into is not None) == (one.state is ClassState.MERGED)
            assert one.merged_into is None or one.merged_into in ids
        before = {one.id: one for one in registry.classes}
        told = {change.class_id for change in found.changes}
        for one in found.classes:  # every change of state is told
            assert (before[one.id].state if one.id in before else None) == one.state or one.id in told
        # Nothing that had a class is left without one.
        assert all(new is not None for old, new in zip(pool, found.assigned, strict=True) if old is not None)
        memory |= {one.id: one.number for one in found.classes}
        registry, pool = after(registry, found), list(found.assigned)
