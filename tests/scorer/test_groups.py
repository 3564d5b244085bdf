"""Groups are found without labels, and images find their groups."""

from __future__ import annotations

import numpy as np
import pytest

from scorer.alignment import normal_level
from scorer.gallery import Gallery, _low_quantiles, first_copies, group_gates
from scorer.groups import _SMALLEST_SILHOUETTE, _best_cut, find_groups
from scorer.search.bank import unit_rows


def blobs(sizes: list[int], spread: float = 0.15, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    centres = unit_rows(rng.standard_normal((len(sizes), 24)))
    labels = np.repeat(np.arange(len(sizes)), sizes)
    return unit_rows(centres[labels] + spread * rng.standard_normal((len(labels), 24)) / np.sqrt(24)), labels


@pytest.mark.parametrize("sizes", [[60, 50, 40], [80, 30], [40] * 9])
def test_number_of_groups_and_members_are_found(sizes: list[int]) -> None:
    embeddings, labels = blobs(sizes)
    groups = find_groups(embeddings, None, seed=0)
    assert groups.max() + 1 == len(sizes)
    assert all(len(set(groups[labels == k])) == 1 for k in range(len(sizes)))


@pytest.mark.system
@pytest.mark.parametrize("count", [10, 100, 300])
def test_many_products_are_told_apart_though_some_are_alike_and_some_are_rare(count: int) -> None:
    """A third of the products are variants of others, ten times nearer to them than products are to each other."""
    rng = np.random.default_rng(count)
    centres = unit_rows(rng.standard_normal((count, 48)))
    variants = count - count // 3
    centres[variants:] = unit_rows(
        centres[: count - variants] + 0.14 * unit_rows(rng.standard_normal((count // 3, 48)))
    )
    labels = np.repeat(np.arange(count), rng.choice([12, 20, 40], count))
    spread = np.where((labels >= variants) | (labels < count // 3), 0.03, rng.uniform(0.03, 0.3, count)[labels])
    noise = rng.standard_normal((len(labels), 48)) / np.sqrt(48)
    embeddings = unit_rows(centres[labels] + spread[:, None] * noise)
    groups = find_groups(embeddings, None, seed=0)
    purity = sum(np.bincount(labels[groups == k]).max() for k in range(groups.max() + 1)) / len(labels)
    assert purity >= 0.98
    assert 0.97 * count <= groups.max() + 1 <= count


def test_the_best_cut_is_the_best_by_the_definition_of_the_silhouette() -> None:
    from scipy.cluster.hierarchy import cut_tree, linkage
    from sklearn.metrics import silhouette_score

    embeddings, _ = blobs([14, 9, 20, 11], spread=0.5)
    tree = linkage(embeddings.astype(np.float64), "ward")
    distance = np.maximum(1 - embeddings @ embeddings.T, 0)
    np.fill_diagonal(distance, 0)
    cuts = {k: cut_tree(tree, k)[:, 0] for k in range(2, 13)}
    values = {k: silhouette_score(distance, cut, metric="precomputed") for k, cut in cuts.items()}
    best = max(values, key=lambda k: values[k])
    groups = _best_cut(embeddings, 12)
    assert values[best] > _SMALLEST_SILHOUETTE
    assert len(set(zip(groups.tolist(), cuts[best].tolist(), strict=True))) == best == groups.max() + 1


def test_one_odd_image_does_not_hide_the_products() -> None:
    embeddings, labels = blobs([40, 40], spread=0.3)
    embeddings[7] = unit_rows(-embeddings.mean(axis=0, keepdims=True))[0]
    groups = np.delete(find_groups(embeddings, None, seed=0), 7)
    assert groups.max() == 1
    assert len(set(zip(groups.tolist(), np.delete(labels, 7).tolist(), strict=True))) == 2


def test_gates_by_group_are_those_of_the_plain_quantiles() -> None:
    rng = np.random.default_rng(0)
    values, kinds = rng.random(200), rng.choice([1, 4, 9], 200)
    expected = [np.quantile(values[kinds == k], 0.05) for k in (1, 4, 9)]
    np.testing.assert_allclose(_low_quantiles(values, kinds, 0.05), expected)


def test_images_of_one_look_are_one_group() -> None:
    rng = np.random.default_rng(0)
    assert find_groups(unit_rows(rng.standard_normal((100, 24))), None, seed=0).max() == 0


def test_one_product_whose_light_and_pose_vary_is_not_split() -> None:
    rng = np.random.default_rng(0)
    base, light, pose = rng.standard_normal((3, 24))
    variation = rng.normal(0, 0.3, (150, 2)) @ np.stack([light, pose])
    embeddings = unit_rows(base + variation + 0.2 * rng.standard_normal((150, 24)))
    assert find_groups(embeddings, None, seed=0).max() == 0


def test_identical_images_are_one_group() -> None:
    assert find_groups(np.repeat(blobs([1])[0], 50, axis=0), None, seed=0).max() == 0


def test_group_below_the_smallest_size_joins_a_neighbour() -> None:
    embeddings, _ = blobs([60, 60, 5])
    assert find_groups(embeddings, None, seed=0).max() + 1 == 2


def test_groups_do_not_depend_on_the_run() -> None:
    embeddings, _ = blobs([50, 50, 50])
    np.testing.assert_array_equal(find_groups(embeddings, None, 7), find_groups(embeddings, None, 7))


def test_given_number_of_groups_is_kept() -> None:
    assert find_groups(blobs([50, 50])[0], 1, seed=0).max() == 0
    assert find_groups(blobs([50, 50])[0], 2, seed=0).max() == 1
    many = find_groups(blobs([50, 50])[0], 60, seed=0)
    assert np.bincount(many).min() >= 8  # too many asked for: the smallest groups join their neighbours


def test_image_is_routed_to_its_group_and_its_neighbours_are_nearest_first() -> None:
    embeddings, labels = blobs([40, 40, 40])
    gallery = Gallery(embeddings, labels)
    fresh, fresh_labels = blobs([20, 20, 20])
    looks = [gallery.look(embedding, 25) for embedding in fresh]
    assert [look.group for look in looks] == fresh_labels.tolist()
    similarity = embeddings[looks[0].neighbours] @ fresh[0]
    assert (np.diff(similarity) <= 1e-6).all()
    assert len(looks[0].neighbours) == 25


def test_good_image_is_never_its_own_neighbour_even_among_duplicates() -> None:
    embeddings, _ = blobs([30])
    embeddings = np.concatenate([embeddings, embeddings[:5], embeddings[:5]])
    neighbours, distance = Gallery(embeddings, np.zeros(40, dtype=np.int64)).neighbours_of_members(3)
    assert neighbours.shape == (40, 3)
    assert not (neighbours == np.arange(40)[:, None]).any()
    assert distance[0] < 1e-3 < distance[20]


def test_copies_are_no_neighbours_unless_a_group_has_nothing_else() -> None:
    embeddings, labels = blobs([30, 12])
    embeddings = np.concatenate([embeddings, embeddings[:30], np.repeat(embeddings[30:31], 12, axis=0)])
    embeddings[30:42] = embeddings[30]  # the second group shows one image only
    groups = np.concatenate([labels, np.zeros(30, dtype=np.int64), np.ones(12, dtype=np.int64)])
    copies = first_copies(embeddings)
    assert copies[:30].tolist() == copies[42:72].tolist() == list(range(30))
    assert set(copies[30:42]) == set(copies[72:]) == {30}
    neighbours, distance = Gallery(embeddings, groups).neighbours_of_members(25, copies)
    assert not (copies[neighbours[:30]] == copies[:30, None]).any()
    assert distance[:30].min() > 1e-3
    assert distance[30:42].max() < 1e-3
    assert {copies[image] for row in neighbours[30:42] for image in row[row >= 0]} == {30}


def test_image_of_a_small_group_has_no_neighbours_of_another_look() -> None:
    embeddings, labels = blobs([60, 10])
    gallery = Gallery(embeddings, labels)
    neighbours, _ = gallery.neighbours_of_members(25)
    assert (neighbours[:60] >= 0).all()
    assert {tuple(sorted(set(row) - {-1})) for row in neighbours[60:].tolist()} == {
        tuple(other for other in range(60, 70) if other != image) for image in range(60, 70)
    }
    assert set(gallery.look(embeddings[65], 25).neighbours.tolist()) <= set(range(60, 70))
    log_scores = np.where(labels == 1, 5.0, 0.0)
    np.testing.assert_array_equal(normal_level(log_scores, neighbours), log_scores)


def test_gate_lets_the_groups_own_in_and_keeps_another_product_out() -> None:
    embeddings, labels = blobs([80, 80])
    gallery = Gallery(embeddings, labels)
    gates = group_gates(gallery, gallery.neighbours_of_members(1)[1])
    members = [gallery.look(embedding, 10) for embedding in blobs([80, 80], seed=0)[0]]
    stranger = gallery.look(blobs([1], seed=99)[0][0], 10)
    assert all(look.distance <= gates[look.group] for look in members)
    assert stranger.distance > gates[stranger.group]


def test_gate_of_two_variants_of_one_product_is_as_wide_as_without_the_other() -> None:
    embeddings, _ = blobs([120], spread=0.4)
    halves = (embeddings[:, 0] > np.median(embeddings[:, 0])).astype(np.int64)
    split, whole = Gallery(embeddings, halves), Gallery(embeddings, np.zeros(120, dtype=np.int64))
    within = whole.neighbours_of_members(1)[1]
    assert group_gates(split, within).max() == pytest.approx(group_gates(whole, within)[0])
