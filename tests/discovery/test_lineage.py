from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from discovery.round.candidates import MONTH_NS, needed_evidence
from discovery.round.lineage import Clusters, DefectClass, Registry, Rules, class_id, evolve, match
from flawline.messages import ClassState, Transition

AXES = np.eye(12, dtype=np.float32)
RULES = Rules(birth_members=3, min_members=6, confirm_rounds=2, dormant_rounds=3, false_births_per_month=1.0)


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


def carry(registry, previous, labels, axes=None, fresh=None, rules=RULES, known=None, evidence=None, at=99):
    """Return the evolution by a survey's clusters or, with `known`, by those that a round between surveys keeps."""
    fresh = np.array([name is None for name in previous]) if fresh is None else np.array(fresh)
    labels = np.array(labels)
    count = max(labels.max() + 1, len(known or ()))
    clusters = Clusters(
        labels,
        AXES[list(range(count)) if axes is None else axes],
        places={defect_class.id: defect_class.centroid for defect_class in registry.live},
        known=known,
        evidence=None if evidence is None else np.full(count, evidence),
        is_new_line=evidence is not None,
    )
    return evolve(registry, previous, clusters, fresh, at=at, rules=rules, embedding_version="v")


def convinced(registry, number, evidence=99.0):
    """Return the registry in which new regions have confirmed candidate `number`."""
    return replace(
        registry,
        candidates=tuple(
            replace(candidate, evidence=evidence, needed=3.0, trials=9) if candidate.number == number else candidate
            for candidate in registry.candidates
        ),
    )


def after(evolution):
    """Return the registry with which the next round begins."""
    return evolution.registry


def states(evolution):
    return {defect_class.id: defect_class.state for defect_class in evolution.registry.classes}


def transitions(evolution):
    return [(change.class_id, change.transition) for change in evolution.changes]


def two(**fields):
    return Registry(classes=(known(1, **fields), known(2)), round=4, next_number=3)


def test_clusters_in_another_order_keep_the_ids():
    previous = ["D-0001"] * 10 + ["D-0002"] * 10
    evolution = carry(two(), previous, [1] * 10 + [0] * 10, axes=[2, 1])
    assert list(evolution.assigned) == previous
    assert evolution.changes == ()
    assert evolution.churn == 0


STRANGERS = ["D-0001"] * 10 + ["D-0002"] * 10 + [None] * 6
TWO_AND_STRANGERS = [0] * 10 + [1] * 10 + [2] * 6


def test_group_of_strangers_is_a_candidate_without_id_event_or_members():
    evolution = carry(two(), STRANGERS, TWO_AND_STRANGERS, axes=[1, 2, 3])
    assert set(evolution.assigned[20:]) == {None}
    assert evolution.changes == ()
    assert states(evolution).keys() == {"D-0001", "D-0002"}
    (candidate,) = evolution.registry.candidates
    assert (candidate.members, candidate.active, candidate.class_id) == (6, True, None)


def test_candidate_becomes_a_class_when_new_members_have_spoken_and_only_then_gets_an_id():
    first = carry(two(), STRANGERS, TWO_AND_STRANGERS, axes=[1, 2, 3])
    unsure = carry(after(first), list(first.assigned), TWO_AND_STRANGERS, axes=[1, 2, 3])
    assert set(unsure.assigned[20:]) == {None}
    registry = convinced(after(unsure), 1)
    sure = carry(registry, list(unsure.assigned), TWO_AND_STRANGERS, axes=[1, 2, 3], fresh=[True] * 26)
    assert set(sure.assigned[20:]) == {"D-0003"}
    assert transitions(sure) == [("D-0003", Transition.BORN), ("D-0003", Transition.CONFIRMED)]
    assert states(sure)["D-0003"] is ClassState.CONFIRMED
    assert sure.registry.candidates[0].class_id == "D-0003"
    assert sure.registry.next_number == 4


def test_too_few_strangers_are_no_candidate():
    previous = ["D-0001"] * 10 + ["D-0002"] * 10 + [None] * 2
    evolution = carry(two(), previous, [0] * 10 + [1] * 10 + [2] * 2, axes=[1, 2, 3])
    assert set(evolution.assigned[20:]) == {None}
    assert evolution.registry.candidates == ()


def test_candidate_with_evidence_waits_for_members_and_for_its_second_round():
    small = carry(Registry(), [None] * 5, [0] * 5, evidence=99.0)
    assert small.registry.is_waiting
    still_small = carry(after(small), [None] * 5, [0] * 5)
    assert still_small.registry.classes == ()
    grown = carry(after(still_small), [None] * 6, [0] * 6)
    assert states(grown) == {"D-0001": ClassState.CONFIRMED}
    large = carry(Registry(), [None] * 9, [0] * 9, evidence=99.0)
    assert large.registry.classes == ()
    assert states(carry(after(large), [None] * 9, [0] * 9)) == {"D-0001": ClassState.CONFIRMED}


def test_candidate_that_came_and_went_is_recognised_and_its_history_goes_on():
    first = carry(two(), STRANGERS, TWO_AND_STRANGERS, axes=[1, 2, 3])
    told = convinced(after(first), 1, evidence=2.0)
    gone = carry(told, STRANGERS, [0] * 10 + [1] * 10 + [-1] * 6, axes=[1, 2])
    (resting,) = gone.registry.candidates
    assert not resting.active
    assert resting.evidence < 2.0  # a survey without it is evidence against it
    again = carry(after(gone), STRANGERS, TWO_AND_STRANGERS, axes=[1, 2, 3])
    (back,) = again.registry.candidates
    assert (back.number, back.active, back.opened_round) == (1, True, first.registry.round)
    assert back.evidence == resting.evidence
    other = carry(after(gone), STRANGERS, TWO_AND_STRANGERS, axes=[1, 2, 7])
    assert [candidate.number for candidate in other.registry.candidates] == [1, 2]


def test_candidate_that_nobody_has_seen_for_a_month_is_forgotten():
    first = carry(two(), STRANGERS, TWO_AND_STRANGERS, axes=[1, 2, 3])
    later = carry(after(first), STRANGERS, [0] * 10 + [1] * 10 + [-1] * 6, axes=[1, 2], at=99 + MONTH_NS)
    assert later.registry.candidates == ()


def test_each_candidate_of_a_month_needs_more_evidence_and_all_together_err_as_often_as_allowed():
    allowed = [math.exp(-needed_evidence(before, 0.5)) for before in range(2000)]
    assert allowed == sorted(allowed, reverse=True)
    assert 0.49 < sum(allowed) <= 0.5
    assert needed_evidence(0, 5.0) == pytest.approx(math.log(2 / 5))


def test_confirmed_class_splits_when_new_members_have_spoken_for_a_part_of_it():
    previous = ["D-0001"] * 20 + ["D-0002"] * 10
    labels, axes = [0] * 12 + [1] * 8 + [2] * 10, [1, 5, 2]
    first = carry(two(), previous, labels, axes)
    assert list(first.assigned) == previous
    again = carry(after(first), previous, labels, axes)
    assert list(again.assigned) == previous
    second = carry(convinced(after(again), 1), previous, labels, axes)
    assert second.assigned[:12] == ("D-0001",) * 12
    assert second.assigned[12:20] == ("D-0003",) * 8
    born = next(change for change in second.changes if change.transition is Transition.BORN)
    assert (born.class_id, born.parents) == ("D-0003", ("D-0001",))
    assert ("D-0001", Transition.SPLIT) in transitions(second)


def test_halves_of_a_class_take_no_turns_to_be_the_candidate():
    previous = ["D-0001"] * 20 + ["D-0002"] * 10
    first = carry(two(), previous, [0] * 11 + [1] * 9 + [2] * 10, axes=[5, 6, 2])
    again = carry(after(first), previous, [0] * 9 + [1] * 11 + [2] * 10, axes=[5, 6, 2])
    (candidate,) = again.registry.candidates
    assert (candidate.number, candidate.members, candidate.active) == (1, 11, True)
    assert candidate.centroid.tolist() == AXES[6].tolist()


def test_class_that_is_found_whole_again_is_not_its_candidate():
    previous = ["D-0001"] * 20 + ["D-0002"] * 10
    first = carry(two(), previous, [0] * 11 + [1] * 9 + [2] * 10, axes=[5, 6, 2])
    whole = carry(after(first), previous, [0] * 20 + [1] * 10, axes=[6, 2])
    assert list(whole.assigned) == previous
    (candidate,) = whole.registry.candidates
    assert not candidate.active


def test_piece_of_a_class_takes_in_new_regions_for_that_class():
    previous = ["D-0001"] * 20 + ["D-0002"] * 10 + [None]
    evolution = carry(two(bound=True), previous, [0] * 11 + [1] * 9 + [2] * 10 + [1], axes=[1, 5, 2])
    assert evolution.assigned == (*previous[:30], "D-0001")


def test_classes_merge_when_one_survey_after_the_other_finds_one_and_the_older_survives():
    previous, registry = ["D-0001"] * 8 + ["D-0002"] * 14, two()
    for _ in range(7):
        evolution = carry(registry, previous, [0] * 22, axes=[2])
        assert list(evolution.assigned) == previous
        registry = after(evolution)
    last = carry(registry, previous, [0] * 22, axes=[2])
    assert set(last.assigned) == {"D-0001"}
    assert states(last)["D-0002"] is ClassState.MERGED
    assert (
        next(defect_class for defect_class in last.registry.classes if defect_class.id == "D-0002").merged_into
        == "D-0001"
    )
    assert last.churn == 0  # a merged member has not changed its class


def test_surveys_that_disagree_merge_nothing():
    previous, registry = ["D-0001"] * 8 + ["D-0002"] * 14, two()
    for number in range(60):
        together = number % 4 != 3
        labels, axes = ([0] * 22, [2]) if together else ([0] * 8 + [1] * 14, [1, 2])
        evolution = carry(registry, previous, labels, axes, fresh=[True] * 22)
        registry = after(evolution)
    assert list(evolution.assigned) == previous
    assert states(evolution) == dict.fromkeys(["D-0001", "D-0002"], ClassState.CONFIRMED)


def test_round_between_surveys_takes_in_what_is_known_and_neither_splits_nor_merges():
    first = carry(two(), STRANGERS, TWO_AND_STRANGERS, axes=[1, 2, 3])
    previous = [*first.assigned, None, None, None]
    between = carry(after(first), previous, [*TWO_AND_STRANGERS, 0, 2, -1], [1, 2, 3], known=("D-0001", "D-0002", None))
    assert between.assigned[26:] == ("D-0001", None, None)
    assert between.registry.candidates[0].members == 7
    assert between.registry.unions == {}
    assert between.changes == ()


def test_what_was_assigned_between_rounds_is_decided_anew_and_what_was_there_before_stays():
    previous = ["D-0001"] * 10 + ["D-0002"] * 10
    fresh = [False] * 8 + [True] * 2 + [False] * 10
    evolution = carry(two(), previous, [0] * 7 + [-1, -1, 1] + [1] * 10, known=("D-0001", "D-0002"), fresh=fresh)
    assert evolution.assigned[:10] == ("D-0001",) * 8 + (None, "D-0002")


def test_what_was_assigned_to_a_named_class_leaves_it_only_for_none():
    previous = ["D-0001"] * 10 + ["D-0002"] * 10
    fresh = [False] * 8 + [True] * 2 + [False] * 10
    registry = two(name="scratch")
    registry = replace(registry, classes=(registry.classes[0], known(2)))
    evolution = carry(registry, previous, [0] * 8 + [-1, 1] + [1] * 10, known=("D-0001", "D-0002"), fresh=fresh)
    assert evolution.assigned[8:10] == (None, "D-0001")


def test_candidate_of_a_store_of_before_keeps_its_id_and_is_confirmed_with_enough_members():
    registry = Registry(classes=(known(1, ClassState.CANDIDATE, members=5), known(2)), round=4, next_number=3)
    previous = ["D-0001"] * 5 + ["D-0002"] * 8
    waiting = carry(registry, previous, [0] * 5 + [1] * 8, axes=[1, 2], fresh=[True] * 13)
    assert states(waiting)["D-0001"] is ClassState.CANDIDATE
    grown = carry(after(waiting), [*previous, None], [0] * 5 + [1] * 8 + [0], axes=[1, 2])
    assert transitions(grown) == [("D-0001", Transition.CONFIRMED)]


def test_class_that_has_lost_all_of_its_members_sleeps():
    registry = Registry(classes=(known(1, members=0), known(2)), round=4, next_number=3)
    evolution = carry(registry, ["D-0002"] * 8, [0] * 8, axes=[2], fresh=[True] * 8)
    assert transitions(evolution) == [("D-0001", Transition.DORMANT)]


@pytest.mark.parametrize("fields", [{"name": "scratch"}, {"bound": True}])
def test_what_a_person_has_named_is_neither_split_nor_merged(fields):
    registry, previous = two(**fields), ["D-0001"] * 20 + ["D-0002"] * 10
    for _ in range(3):
        evolution = carry(registry, previous, [0] * 11 + [1] * 9 + [2] * 10, axes=[1, 5, 2])
        registry = after(evolution)
    assert list(evolution.assigned) == previous
    for _ in range(3):
        evolution = carry(registry, previous, [0] * 30, axes=[2])
        registry = after(evolution)
    assert set(evolution.assigned[:20]) == {"D-0001"}


def test_dismissed_class_stays_dismissed_and_keeps_taking_in_its_like():
    registry = Registry(classes=(known(1, ClassState.DISMISSED), known(2)), round=4, next_number=3)
    evolution = carry(registry, ["D-0001"] * 8 + ["D-0002"] * 8 + [None] * 4, [0] * 8 + [1] * 8 + [0] * 4, axes=[1, 2])
    assert set(evolution.assigned[16:]) == {"D-0001"}
    assert states(evolution)["D-0001"] is ClassState.DISMISSED


def test_class_without_new_members_goes_dormant_and_comes_back_as_what_it_was():
    registry, previous = two(), ["D-0001"] * 8 + ["D-0002"] * 8
    for _ in range(3):
        evolution = carry(registry, previous, [0] * 8 + [1] * 8, axes=[1, 2], fresh=[False] * 8 + [True] * 8)
        registry = after(evolution)
    assert transitions(evolution) == [("D-0001", Transition.DORMANT)]
    again = carry(registry, [*previous, None], [0] * 8 + [1] * 8 + [0], axes=[1, 2])
    assert transitions(again) == [("D-0001", Transition.REVIVED)]
    assert states(again)["D-0001"] is ClassState.CONFIRMED


def test_class_in_many_pieces_keeps_its_id_on_the_largest():
    previous = ["D-0001"] * 20 + ["D-0002"] * 10
    labels = [0] * 5 + [1] * 5 + [2] * 5 + [3] * 5 + [4] * 10
    evolution = carry(two(), previous, labels, axes=[6, 7, 8, 9, 2])
    assert list(evolution.assigned) == previous


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
        candidates = [
            replace(candidate, evidence=float(rng.integers(12)), trials=1) for candidate in registry.candidates
        ]
        registry = replace(registry, candidates=tuple(candidates))
        evolution = evolve(
            registry,
            pool,
            Clusters(
                labels,
                AXES[rng.permutation(12)[: len(used)]],
                places={defect_class.id: AXES[defect_class.number % 12] for defect_class in registry.live},
                evidence=rng.integers(12, size=len(used)).astype(float) if rng.random() < 0.5 else None,
            ),
            np.array([p is None for p in pool]),
            7,
            RULES,
            "v",
        )
        classes = evolution.registry.classes
        ids = [defect_class.id for defect_class in classes]
        numbers = [defect_class.number for defect_class in classes]
        assert len(set(ids)) == len(ids)
        assert memory.keys() <= set(ids)  # no id is lost
        assert all(
            memory.get(defect_class.id, defect_class.number) == defect_class.number for defect_class in classes
        )  # no number changes
        assert max(numbers, default=0) < evolution.registry.next_number
        assert evolution.registry.next_number >= registry.next_number
        alive = {defect_class.id for defect_class in classes if defect_class.state is not ClassState.MERGED}
        assert {name for name in evolution.assigned if name} <= alive
        for defect_class in classes:
            assert (defect_class.merged_into is not None) == (defect_class.state is ClassState.MERGED)
            assert defect_class.merged_into is None or defect_class.merged_into in ids
        before = {defect_class.id: defect_class for defect_class in registry.classes}
        told = {change.class_id for change in evolution.changes}
        for defect_class in classes:  # every change of state has an event
            assert (
                before[defect_class.id].state if defect_class.id in before else None
            ) == defect_class.state or defect_class.id in told
        # A region that had a class still has one.
        assert all(new is not None for old, new in zip(pool, evolution.assigned, strict=True) if old is not None)
        opened = [candidate.number for candidate in evolution.registry.candidates]
        assert len(set(opened)) == len(opened)
        assert max(opened, default=0) < evolution.registry.next_candidate
        assert {candidate.number for candidate in candidates} <= set(
            opened
        )  # within the month no candidate loses its history
        memory |= {defect_class.id: defect_class.number for defect_class in classes}
        registry, pool = after(evolution), list(evolution.assigned)
