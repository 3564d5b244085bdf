"""The life of classes over many rounds, from the arrival of regions to the rows of the store."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from sqlalchemy import func, select

from discovery.round import single_round
from discovery.round.clustering import Clustering
from discovery.round.lineage import DefectClass, Registry
from discovery.store import registry, schema
from discovery.store.store import Store
from flawline.messages import ClassState
from flawline.settings.discovery import DiscoverySettings
from scorer.vectors import unit
from tests.discovery.factories import DIMENSION, VERSION, directions, near
from tests.discovery.stream import Stream

pytestmark = pytest.mark.system

SETTINGS = DiscoverySettings(window_regions=200, pool_regions=200, exemplars=30, dormant_rounds=4, class_limit=12)


@pytest.fixture
def stream(tmp_path):
    store = Store(f"sqlite:///{tmp_path / 'store.db'}")
    yield Stream(store, SETTINGS, directions(6), spread=0.5)
    store.close()


def states(stream):
    return {defect_class.id: defect_class.state for defect_class in stream.registry().classes}


def test_ids_stay_while_a_class_enters_one_dies_and_one_drifts(stream):
    births, first_ids, confirmed_at = [], {}, {}
    goal = directions(7)[6]
    entered = 0
    for number in range(1, 21):
        kinds = [0, 1, 2, 3] + ([4] if number > 6 else [])
        if number > 12:
            kinds.remove(1)
        stream.directions[2] = drifted(stream.directions[2], goal)
        arriving = stream.rng.choice(kinds, 40).tolist()
        entered += arriving.count(4)
        stream.feed(arriving)
        outcome = stream.round()
        births += [event.class_id for event in outcome.events if event.transition == "born"]
        now = stream.class_of_kind()
        for kind, name in now.items():
            if states(stream)[name] is ClassState.CONFIRMED:
                confirmed_at.setdefault(kind, number)
                first_ids.setdefault(kind, name)
        # What has been confirmed never changes its id.
        assert {kind: now[kind] for kind in first_ids} == first_ids
        if entered >= 10 and 4 not in confirmed_at:
            assert number <= 10, "the new class was not confirmed within three rounds of its tenth member"
    assert len(set(first_ids.values())) == 5
    assert states(stream)[first_ids[1]] is ClassState.DORMANT
    assert len(births) <= 5 + 1
    assert outcome.figures.churn < 0.05


def drifted(direction, goal):
    moved = direction + 0.02 * goal
    return (moved / np.linalg.norm(moved)).astype(np.float32)


def test_members_are_counted_as_the_regions_say(stream):
    for _ in range(4):
        stream.feed(stream.rng.choice(5, 40).tolist())
        stream.round()
        of = schema.regions.c.class_id
        with stream.store.reading() as connection:
            held = connection.execute(select(of, func.count()).where(of.is_not(None)).group_by(of)).all()
        counted = {row[0]: row[1] for row in held}
        assert {
            defect_class.id: defect_class.members for defect_class in stream.registry().classes if defect_class.members
        } == counted


def test_round_sees_no_more_than_its_bounds_whatever_the_history(stream):
    for _ in range(12):
        stream.feed(stream.rng.choice(4, 60).tolist())
        outcome = stream.round()
    bound = SETTINGS.window_regions + SETTINGS.pool_regions + SETTINGS.exemplars * len(stream.registry().classes)
    assert outcome.figures.regions <= bound
    assert outcome.figures.regions < 720


def test_round_is_deterministic(stream):
    stream.feed(stream.rng.choice(4, 80).tolist())
    with stream.store.reading() as connection:
        regions = registry.regions_of_round(connection, SETTINGS, VERSION)
    first, second = (single_round.run_round(regions, Registry(), SETTINGS, VERSION, 0, 5) for _ in range(2))
    assert first.assigned == second.assigned
    assert first.events == second.events


def test_too_few_regions_make_no_class(stream):
    stream.feed([0] * 15 + [1] * 14)
    assert stream.round() is None
    assert stream.registry().classes == ()


def test_region_far_from_all_classes_is_assigned_to_none(stream):
    stream.feed(stream.rng.choice(3, 60).tolist())
    for _ in range(2):
        stream.round()
    assigner = single_round.Assigner(stream.registry(), VERSION)
    known = directions(6)
    assigned = assigner.assign(np.stack([known[0], known[5], (known[0] + known[1]) / np.sqrt(2)]))
    assert assigned[0] == stream.class_of_kind()[0]
    assert assigned[1:] == [None, None]
    assert single_round.Assigner(stream.registry(), "another version").assign(known) == [None] * 6


def test_number_of_classes_does_not_hang_on_the_order_of_arrival():
    """Six kinds on four products, similar in pairs: neither small first rounds nor the pairs change the number."""
    base, deviations, rng = directions(10, 48), directions(24, 48, seed=8), np.random.default_rng(2)
    middle = unit(base[np.arange(6) % 3] + base[4:])
    rows = [(product, kind) for product in range(4) for kind in range(6) for _ in range(7)]
    drawn = [near(unit(middle[kind] + 0.6 * deviations[6 * product + kind]), rng, 0.6) for product, kind in rows]
    vectors, groups = np.stack(drawn), np.array([product for product, _ in rows])
    orders = [np.random.default_rng(seed).permutation(len(rows)) for seed in range(6)]
    counts = [classes_in_order(vectors, groups, order) for order in orders]
    assert all(abs(count - 6) <= 1 for count in counts), counts


def classes_in_order(vectors, groups, order, batch=50):
    """Return how many classes have members after regions came in an order, with a round after each batch."""
    known, last = Registry(), 0
    classes, exemplars = [None] * len(order), np.zeros(len(order), bool)
    for end in [*range(batch, len(order), batch), len(order)]:
        rows, ids = order[:end], np.arange(1, end + 1)
        classes[last:end] = single_round.Assigner(known, VERSION).assign(unit(vectors[order[last:end]]))
        keys, at = tuple(str(row) for row in rows), ids * 10**9
        shown = single_round.Regions(
            ids, ids, keys, tuple(classes[:end]), exemplars[:end], at, vectors[rows], groups=groups[rows]
        )
        outcome = single_round.run_round(shown, known, SETTINGS, VERSION, last, end * 10**9)
        known, last = outcome.registry, end
        classes[:end], exemplars[:end] = outcome.assigned, outcome.exemplars
    return len(set(classes) - {None})


@pytest.mark.parametrize(
    ("vector", "says"),
    [
        (np.zeros(DIMENSION), "zero"),
        (np.full(DIMENSION, np.nan), "NaN"),
        (np.full(DIMENSION, np.inf), "NaN or infinity"),
        (np.ones(3), "3 dimensions, others of its version have 24"),
        (np.ones((2, 12)), "no vector"),
        (np.ones(0), "no vector"),
    ],
)
def test_embedding_that_cannot_be_used_is_named(vector, says):
    assert says in single_round.problem_of(vector, DIMENSION)


def test_usable_embedding_has_no_problem():
    assert single_round.problem_of(np.ones(DIMENSION), DIMENSION) is None
    assert single_round.problem_of(np.ones(5), None) is None


def two_spoken_of(bound=True):
    """Return regions of two classes that people have set apart, 10 new ones like the second, and the registry."""
    axes, rng = directions(3), np.random.default_rng(1)
    kinds = np.array([0] * 30 + [1] * 20 + [1] * 10)
    ids = np.arange(1, 61)
    classes = ("D-0001",) * 30 + ("D-0002",) * 20 + (None,) * 10
    regions = single_round.Regions(
        ids, ids, tuple(map(str, ids)), classes, np.zeros(60, bool), ids * 10**9,
        np.stack([near(axes[kind], rng, 0.4) for kind in kinds]),
    )  # fmt: skip
    known = tuple(
        DefectClass(f"D-000{n}", n, ClassState.CONFIRMED, 20, 0, 1, 0, axes[n - 1], 0.3, VERSION, bound=bound)
        for n in (1, 2)
    )
    return regions, Registry(classes=known, round=3, next_number=3)


@pytest.mark.parametrize(("bound", "share"), [(True, 1.0), (False, 0.0)])
def test_survey_that_finds_two_classes_as_one_parts_them_where_people_have_spoken(bound, share):
    regions, known = two_spoken_of(bound)
    whole = Clustering(np.zeros(60, int), np.zeros((1, DIMENSION), np.float32), {}, 1.0)
    outcome = single_round.run_round(regions, known, SETTINGS, VERSION, 50, 10**12, whole)
    assert outcome.assigned[:50] == regions.classes[:50]
    assert np.mean([name == "D-0002" for name in outcome.assigned[50:]]) == share


def test_region_that_a_person_has_placed_stays_where_a_round_would_move_it():
    regions, known = two_spoken_of()
    placed = replace(regions, classes=("D-0002",) * 2 + regions.classes[2:], pinned=regions.ids <= 2)
    for last in (0, 50):  # as new regions, and as old ones
        outcome = single_round.run_round(placed, known, SETTINGS, VERSION, last, 10**12)
        assert outcome.assigned[:2] == ("D-0002",) * 2
        assert outcome.exemplars[:2].all()
