from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as some
from sklearn.metrics import adjusted_rand_score

from discovery.round.clustering import centred, cluster, nearest, radius_of, with_dense_groups, within_reach
from discovery.round.number_of_classes import _agreement, estimate_count
from scorer.vectors import unit
from tests.discovery.factories import directions, near


def drawn(counts, spread=0.5, seed=1, dimension=24):
    rng = np.random.default_rng(seed)
    kinds = np.repeat(np.arange(len(counts)), counts)
    middle = directions(len(counts), dimension)
    return np.stack([near(middle[kind], rng, spread) for kind in kinds]), kinds


def same_partition(a, b):
    return len(set(zip(a, b, strict=True))) == len(set(a)) == len(set(b))


@pytest.mark.parametrize("counts", [[40, 40, 40], [60, 30, 20, 15, 40], [25] * 8])
def test_planted_kinds_are_found_with_their_number(counts):
    vectors, kinds = drawn(counts)
    clusters = cluster(vectors)
    assert clusters.count == len(counts)
    assert same_partition(clusters.labels.tolist(), kinds.tolist())
    assert clusters.stability > 0.9
    assert np.linalg.norm(clusters.centroids, axis=1) == pytest.approx(np.ones(len(counts)), abs=1e-5)


def test_two_well_separated_kinds_are_two():
    vectors, kinds = drawn([50, 50], spread=0.3)
    assert same_partition(cluster(vectors).labels.tolist(), kinds.tolist())


def test_one_cloud_is_one_kind():
    vectors, _ = drawn([150], spread=1.0, dimension=64)
    assert cluster(vectors).count == 1


def test_same_data_and_seed_give_the_same_clusters():
    vectors, _ = drawn([30, 40, 50], spread=0.9)
    first, second = cluster(vectors, seed=4), cluster(vectors, seed=4)
    assert np.array_equal(first.labels, second.labels)
    assert np.array_equal(first.centroids, second.centroids)


def test_fewer_than_thirty_regions_are_no_classes():
    assert cluster(drawn([10, 19])[0]) is None
    assert cluster(np.zeros((0, 8), np.float32)) is None


def test_identical_vectors_are_one_kind():
    assert cluster(np.tile(directions(1), (60, 1))).count == 1


def test_group_out_of_reach_has_a_label_of_its_own_whatever_its_share_and_a_lone_region_has_none():
    vectors, kinds = drawn([80, 80, 80, 6], spread=0.4)
    middle = directions(6)
    points = centred(unit(np.vstack([vectors, middle[4:]])), None, np.append(kinds, [-1, -1]))
    labels_before = np.append(np.where(kinds == 3, 0, kinds), [1, 2])
    labels = with_dense_groups(within_reach(points, labels_before), points)
    assert labels.tolist() == [*kinds.tolist(), -1, -1]


def test_kind_is_nearer_to_itself_on_another_product_when_the_product_is_taken_off():
    vectors, kinds, products = products_of(4, 0.5, np.random.default_rng(4))
    vectors = unit(vectors + 2 * directions(12, 48)[8:][products])
    points = centred(vectors, products, kinds)
    here, there = (
        points[(kinds == 0) & (products == 0)].mean(axis=0),
        points[(kinds == 0) & (products == 1)].mean(axis=0),
    )
    other = points[(kinds == 1) & (products == 0)].mean(axis=0)
    assert unit(here[None]) @ unit(there[None]).T > 0.6
    assert unit(here[None]) @ unit(other[None]).T < 0.1


def test_product_with_one_frequent_kind_does_not_lose_it():
    """Its mean would be that of the kind: what is left of it would be noise."""
    middle, rng = directions(4), np.random.default_rng(3)
    kinds = np.array([0] * 60 + [0, 1, 2, 3] * 10)
    products = np.array([0] * 60 + [1] * 40)
    vectors = unit(np.stack([near(middle[kind], rng, 0.4) for kind in kinds]))
    points = centred(vectors, products, kinds)
    frequent = points[:60]
    assert radius_of(frequent, unit(frequent.mean(axis=0))) < 0.3


def test_stability_reports_what_every_criterion_proposed():
    vectors, _ = drawn([40, 40, 40])
    count, stability, proposals = estimate_count(vectors, previous=3)
    assert (count, set(proposals)) == (3, {"stability", "silhouette", "density"})
    assert 0 <= stability <= 1


def test_nearest_gives_the_two_smallest_distances():
    middle = directions(3)
    index, first, second = nearest(middle[[2]], middle)
    assert index.tolist() == [2]
    assert first[0] == pytest.approx(0, abs=1e-6)
    assert second[0] == pytest.approx(1, abs=1e-6)
    assert nearest(middle[[0]], middle[:1])[2][0] == np.inf


def test_zero_rows_stay_zero():
    assert not unit(np.zeros((2, 3))).any()


def test_kinds_of_two_products_are_found_although_the_products_differ_more():
    rng = np.random.default_rng(2)
    middle = directions(8)
    products, kinds = np.repeat([0, 1], 90), np.tile(np.repeat([2, 3, 4], 30), 2)
    # The second product's kinds are its own.
    vectors = np.stack(
        [near(unit(1.5 * middle[p] + middle[k + 3 * p]), rng, 0.3) for p, k in zip(products, kinds, strict=True)]
    )
    clusters = cluster(vectors, groups=products)
    assert same_partition(clusters.labels.tolist(), (10 * products + kinds).tolist())


def test_groups_too_small_to_be_judged_change_nothing():
    vectors, kinds = drawn([40, 40, 40])
    clusters = cluster(vectors, groups=np.arange(120))
    assert same_partition(clusters.labels.tolist(), kinds.tolist())


def test_kind_of_few_members_is_found_beside_a_large_one():
    vectors, kinds = drawn([200, 40, 12], spread=0.5)
    assert same_partition(cluster(vectors).labels.tolist(), kinds.tolist())


def test_known_number_stays_while_it_is_as_stable_as_the_best():
    vectors, _ = drawn([40, 40, 40, 40], spread=1.6)
    points = unit(vectors)
    fresh, _, _ = estimate_count(points)
    stable = [k for k in range(3, 9) if estimate_count(points, previous=k)[0] == k]
    assert fresh in stable
    assert estimate_count(points, previous=12)[0] != 12


def test_number_found_on_few_regions_has_no_say():
    vectors, _ = drawn([40, 40, 40, 40], spread=1.6)
    points = unit(vectors)
    fresh, _, _ = estimate_count(points)
    held = next(k for k in range(3, 9) if k != fresh and estimate_count(points, previous=k)[0] == k)
    assert estimate_count(points, previous=held, seen=0.5)[0] == fresh


def products_of(kinds, shift, rng, per_kind=16):
    """Return regions, kinds and products: four products share the kinds, which look a little different on each."""
    middle, deviations = directions(kinds, 48), directions(4 * kinds, 48, seed=8)
    rows = [(p, k) for p in range(4) for k in range(kinds) for _ in range(per_kind)]
    vectors = [near(unit(middle[k] + shift * deviations[p * kinds + k]), rng, 0.5) for p, k in rows]
    return np.stack(vectors), np.array([k for _, k in rows]), np.array([p for p, _ in rows])


@pytest.mark.parametrize(("kinds", "shift"), [(3, 0.5), (5, 0.5), (6, 0.7)])
def test_kinds_that_several_products_share_are_not_counted_for_each(kinds, shift):
    vectors, truth, products = products_of(kinds, shift, np.random.default_rng(4))
    clusters = cluster(vectors, groups=products)
    assert clusters.count == kinds
    assert same_partition(clusters.labels.tolist(), truth.tolist())


@given(some.lists(some.tuples(some.integers(-1, 3), some.integers(-1, 4)), min_size=1, max_size=30))
def test_agreement_is_the_adjusted_rand_index_of_what_both_have_labelled(labels):
    first, second = np.array(labels).T
    both = [(a, b) for a, b in labels if a >= 0 and b >= 0]
    divided = len({a for a, _ in both}) > 1 and len({b for _, b in both}) > 1
    expected = adjusted_rand_score(*zip(*both, strict=True)) if divided else 0.0
    assert _agreement(np.stack([first, second]), 5) == pytest.approx(expected)
