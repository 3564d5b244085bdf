"""What new members say of a candidate: whether it is a kind of its own."""

from __future__ import annotations

import numpy as np
import pytest

from discovery.round import clustering
from discovery.round.candidates import HIT, MISS, Candidate, cross_fitted, witnessed
from scorer.vectors import unit
from tests.discovery.factories import directions, near


def candidate(centroid, evidence=0.0):
    return Candidate(
        number=1,
        centroid=centroid,
        embedding_version="v",
        opened_at=0,
        opened_round=1,
        last_seen_at=0,
        needed=3.0,
        evidence=evidence,
    )


def tried(old, new, labels, groups=None):
    """Return the candidate after new regions; `labels` are the clusters of the old ones, the last is the candidate.

    The new regions go to what is nearest.
    """
    old, new, labels = (
        np.asarray(old, np.float32),
        np.asarray(new, np.float32).reshape(-1, len(old[0])),
        np.array(labels),
    )
    centroids = np.stack([unit(old[labels == label].mean(axis=0)) for label in range(labels.max() + 1)])
    vectors = np.vstack([old, new])
    owners = (vectors @ centroids.T).argmax(axis=1)
    owners[: len(old)] = labels
    fresh = np.arange(len(vectors)) >= len(old)
    place = len(centroids) - 1
    known = [candidate(centroids[place])]
    (result,) = witnessed(known, vectors, groups, owners, [place], centroids, fresh, 0.1, at=0)
    return result


def drawn(axis, count, spread, seed):
    rng = np.random.default_rng(seed)
    return np.stack([near(axis, rng, spread) for _ in range(count)])


def test_members_of_a_kind_of_its_own_speak_for_it():
    axes = directions(3)
    old = np.vstack([drawn(axes[0], 40, 0.4, 1), drawn(axes[1], 40, 0.4, 2), drawn(axes[2], 5, 0.4, 3)])
    labels = [0] * 40 + [1] * 40 + [2] * 5
    result = tried(old, drawn(axes[2], 12, 0.4, 4), labels)
    assert result.trials >= 8
    assert result.evidence >= 5
    assert tried(old, drawn(axes[0], 12, 0.4, 5), labels).trials == 0


def test_members_between_a_candidate_and_its_neighbour_speak_against_it():
    axes = directions(2)
    old = np.vstack([drawn(axes[0], 40, 0.2, 1), drawn(axes[1], 10, 0.2, 2)])
    between = [unit(0.4 * axes[0] + 0.6 * axes[1])] * 3
    result = tried(old, between, [0] * 40 + [1] * 10)
    assert result.evidence == pytest.approx(3 * MISS)
    assert result.trials == 3


def test_pieces_of_one_cloud_become_kinds_as_rarely_as_the_bound_says():
    axis, bound, false = directions(1)[0], 20.0, 0
    for seed in range(60):
        cloud = drawn(axis, 40, 1.0, seed)
        labels = clustering.fit(cloud, 2)
        labels = labels if (labels == 1).sum() <= 20 else 1 - labels
        highest = max(tried(cloud, drawn(axis, n, 1.0, 1000 + seed), labels).evidence for n in (10, 20, 40, 80))
        false += highest >= np.log(bound)
    assert false <= 60 / bound


def test_kind_as_it_looks_on_another_product_is_not_tried():
    """One kind on two products: its half there has no other half of the class beside it."""
    axes = directions(4)
    here, there = unit(axes[0] + 0.45 * axes[1]), unit(axes[0] - 0.45 * axes[1])
    old = np.vstack([drawn(here, 30, 0.3, 1), drawn(axes[3], 30, 0.3, 2), drawn(there, 10, 0.3, 3)])
    labels, new = [0] * 30 + [1] * 30 + [2] * 10, drawn(there, 15, 0.3, 4)
    products = np.array([0] * 30 + [0, 1] * 15 + [1] * 10 + [1] * 15)
    known_elsewhere = tried(old, new, labels, products)
    beside_each_other = tried(old, new, labels, np.zeros(85, int))
    assert known_elsewhere.trials == 0
    assert beside_each_other.trials >= 10


def test_candidate_beside_nothing_needs_members_only():
    old = drawn(directions(1)[0], 10, 0.3, 1)
    assert tried(old, drawn(directions(1)[0], 4, 0.3, 2), [0] * 10).evidence == pytest.approx(4 * HIT)


def test_where_nothing_is_known_the_later_regions_of_each_cluster_speak_for_it():
    axes, rng = directions(4), np.random.default_rng(3)
    kinds = rng.integers(4, size=120)
    vectors = np.stack([near(axes[kind], rng, 0.5) for kind in kinds])
    assert (cross_fitted(vectors, None, kinds) > 4).all()
    cloud = drawn(axes[0], 120, 1.0, 4)
    assert (cross_fitted(cloud, None, clustering.fit(cloud, 4)) < 3).all()
