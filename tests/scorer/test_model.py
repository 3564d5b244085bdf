"""What must hold of any fit, shown on features whose hidden products are known to the test alone."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from sklearn.metrics import roc_auc_score

from flawline.errors import FlawlineError
from flawline.settings.scorer import LayerSettings, ScorerSettings
from scorer import crossfit, maps
from scorer.coreset import greedy_k_centre, projected
from scorer.crossfit import cross_fit, selection
from scorer.features.store import FeatureStore
from scorer.fit_model import fit_model
from scorer.gallery import Gallery, image_embeddings
from scorer.model import Model, cut_offs
from scorer.search.bank import unit_rows

GRIDS, CHANNELS = (8, 4), (12, 20)
LAYERS = (
    LayerSettings(size=64, stride=8, rows=400, rows_per_image=10),
    LayerSettings(size=64, stride=16, rows=200, rows_per_image=5, neighbours=5),
)
SETTINGS = ScorerSettings(layers=LAYERS, alarm_rate=0.05)


def raw_features(per_product: int, seed: int, defects: bool = False, scale: dict[int, float] | None = None):  # type: ignore[no-untyped-def]
    """Return features of three products whose patches vary by different amounts, and each image's product."""
    rng = np.random.default_rng(seed)
    world = np.random.default_rng(0)
    patterns = [world.standard_normal((3, grid * grid, c)) * 3 for grid, c in zip(GRIDS, CHANNELS, strict=True)]
    products = np.repeat(np.arange(3), per_product)
    layers = []
    for pattern in patterns:
        noise = (
            rng.standard_normal((len(products), *pattern.shape[1:]))
            * np.asarray([0.2, 0.5, 1.0])[products][:, None, None]
        )
        features = pattern[products] + noise
        if defects:
            place = rng.integers(0, pattern.shape[1], len(products))
            features[np.arange(len(products)), place] += rng.standard_normal((len(products), pattern.shape[2])) * 2.5
        for product, factor in (scale or {}).items():
            features[products == product] *= factor
        layers.append(features)
    return layers, products


def store_of(layers: list[np.ndarray]) -> FeatureStore:
    return FeatureStore(
        [unit_rows(layer).astype(np.float16) for layer in layers],
        [layer.mean(axis=1).astype(np.float32) for layer in layers],
        list(GRIDS),
    )


def scores(model: Model, store: FeatureStore) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return raw log scores, aligned scores and groups, by the definition."""
    gallery = Gallery(model.embeddings, model.groups)
    embeddings = image_embeddings(store.means)
    rows = []
    for i in range(len(store)):
        look = gallery.look(embeddings[i], model.look_alikes)
        distance = [
            projected(store.pool(n, np.asarray([i])), model.banks[look.group][n], layer.neighbours)[0].reshape(
                grid, grid
            )
            for n, (layer, grid) in enumerate(zip(model.layers, GRIDS, strict=True))
        ]
        raw = maps.log_score(maps.combined(distance, model.units[look.group]), model.top_share)
        level = model.levels(np.asarray([look.group]), look.neighbours[None])[0]
        rows.append((raw, raw - level, look.group))
    raw, aligned, group = np.asarray(rows).T
    return raw, aligned, group.astype(int)


@pytest.fixture(scope="module")
def model() -> Model:
    return fit_model(store_of(raw_features(60, 1)[0]), SETTINGS, threads=2)


def test_hidden_products_become_groups(model: Model) -> None:
    products = np.repeat(np.arange(3), 60)
    assert [len(set(model.groups[products == k])) for k in range(3)] == [1, 1, 1]
    assert model.groups.max() == 2


def test_scaling_one_products_features_by_ten_changes_no_score_and_no_pooled_ranking(model: Model) -> None:
    scale = {1: 10.0}
    again = fit_model(store_of(raw_features(60, 1, scale=scale)[0]), SETTINGS)
    np.testing.assert_array_equal(again.groups, model.groups)
    results = []
    for fitted, factor in ((model, None), (again, scale)):
        good = scores(fitted, store_of(raw_features(10, 3, scale=factor)[0]))
        bad = scores(fitted, store_of(raw_features(10, 2, defects=True, scale=factor)[0]))
        results.append([np.concatenate(pair) for pair in zip(good, bad, strict=True)])
    (_, before, routed), (_, after, routed_again) = results
    np.testing.assert_array_equal(routed, routed_again)
    # Half precision rounds the scaled embeddings a little differently; unit vectors are the same.
    np.testing.assert_allclose(after, before, atol=2e-3)
    is_defect = np.repeat([False, True], 30)
    assert roc_auc_score(is_defect, after) == pytest.approx(roc_auc_score(is_defect, before), abs=1e-6)


def test_pooled_ranking_equals_the_products_own_ranking(model: Model) -> None:
    good, products = raw_features(40, 3)
    bad, _ = raw_features(40, 4, defects=True)
    aligned = np.concatenate([scores(model, store_of(good))[1], scores(model, store_of(bad))[1]])
    is_defect = np.repeat([False, True], 120)
    both = np.concatenate([products, products])
    macro = np.mean([roc_auc_score(is_defect[both == k], aligned[both == k]) for k in range(3)])
    assert roc_auc_score(is_defect, aligned) > macro - 0.03
    assert macro > 0.8


@pytest.mark.system
def test_alarm_rate_on_unseen_good_parts_is_at_most_twice_the_target() -> None:
    model = fit_model(store_of(raw_features(150, 1)[0]), SETTINGS, threads=2)
    _, aligned, groups = scores(model, store_of(raw_features(300, 5)[0]))
    alarms = aligned / model.widths[groups] > model.review.value
    assert 0.02 < alarms.mean() < 0.08
    assert max(alarms[groups == k].mean() for k in range(3)) <= 0.1


def test_reject_is_never_easier_than_review_and_one_far_image_decides_neither() -> None:
    good = np.random.default_rng(0).normal(size=300)
    alone = cut_offs(np.sort(good), *SETTINGS.model_copy(update={"alarm_rate": 0.005}).rates(0.005))
    review, reject = cut_offs(np.sort(np.append(good, 9.0)), 0.005, 0.001)
    assert review.value < reject.value < 9.0
    assert (review.value, reject.value) == pytest.approx([cut.value for cut in alone], rel=0.1)


@pytest.mark.parametrize(("asked", "used"), [("auto", (0.02, 0.004)), (0.3, (0.3, 0.06))])
def test_auto_is_the_rate_that_the_images_vouch_for_and_a_number_stays_a_number(
    asked: float | str, used: tuple[float, float]
) -> None:
    assert ScorerSettings(alarm_rate=asked).rates(0.02) == pytest.approx(used)
    assert ScorerSettings(alarm_rate="auto", reject_rate=0.03).rates(0.02) == (0.02, 0.02)


def test_heat_map_range_reaches_from_good_peaks_to_foreign_patches(model: Model) -> None:
    low, high = model.heatmap_range
    alone = fit_model(store_of([layer[:60] for layer in raw_features(60, 1)[0]]), SETTINGS)
    assert 0 < low < high
    assert alone.groups.max() == 0
    assert alone.heatmap_range[1] == alone.heatmap_range[0] + 1.25


def test_cross_fitted_scores_match_fresh_ones_where_in_sample_scores_are_far_below(model: Model) -> None:
    train = store_of(raw_features(60, 1)[0])
    fresh = scores(model, store_of(raw_features(60, 6)[0]))[0]
    in_sample = scores(model, train)[0]
    assert abs(np.median(model.log_scores) - np.median(fresh)) < 0.1
    assert np.median(in_sample) < np.median(fresh) - 0.2


def test_no_calibration_distance_is_zero_unless_images_are_duplicates() -> None:
    store = store_of(raw_features(20, 1)[0])
    members = [np.arange(len(store))]
    _, distances = cross_fit(store, SETTINGS, members, np.arange(len(store)), 1, None)
    assert min(float(layer.min()) for layer in distances) > 1e-3


def test_one_group_is_a_flat_memory_bank() -> None:
    store = store_of(raw_features(20, 1)[0])
    model = fit_model(store, SETTINGS.model_copy(update={"groups": 1}))
    for layer, rows in enumerate((400, 200)):
        patches, bank = store.pool(layer, np.arange(60)), model.banks[0][layer]
        assert len({row.tobytes() for row in bank}) == len(bank) == rows
        assert {row.tobytes() for row in bank} <= {patch.tobytes() for patch in patches}
        # Selected in parts, the bank covers all patches nearly as well as a greedy selection from all of them at once.
        greedy = patches[greedy_k_centre(patches, rows)]
        radius, best_radius = (np.sqrt(2 - 2 * (patches @ selected.T).max(axis=1).min()) for selected in (bank, greedy))
        assert radius <= 1.5 * best_radius
    fresh = store_of(raw_features(4, 2)[0])
    patches = fresh.pool(0, np.asarray([5]))
    brute = np.linalg.norm(patches[:, None] - model.banks[0][0][None], axis=2).min(axis=1)
    np.testing.assert_allclose(projected(patches, model.banks[0][0], 1)[0], brute, atol=1e-5)


def test_same_data_and_seed_give_the_same_model_on_any_number_of_threads(model: Model) -> None:
    again = fit_model(store_of(raw_features(60, 1)[0]), SETTINGS, threads=1)
    for field in dataclasses.fields(Model):
        first, second = getattr(model, field.name), getattr(again, field.name)
        if field.name == "banks":
            assert all(
                np.array_equal(a, b) for x, y in zip(first, second, strict=True) for a, b in zip(x, y, strict=True)
            )
        elif field.name == "means":
            assert all(np.array_equal(a, b) for a, b in zip(first, second, strict=True))
        else:
            assert np.array_equal(first, second) if isinstance(first, np.ndarray) else first == second


def test_duplicate_images_give_finite_scores() -> None:
    layers, _ = raw_features(1, 1)
    store = store_of([np.repeat(layer[:1], 30, axis=0) for layer in layers])
    model = fit_model(store, SETTINGS)
    assert np.isfinite(model.log_scores).all()
    assert np.isfinite(model.review.value)
    assert np.isfinite(scores(model, store_of(raw_features(5, 2)[0]))[1]).all()


def test_a_folder_copied_twice_is_calibrated_as_if_it_were_not() -> None:
    layers, _ = raw_features(30, 1)
    once = fit_model(store_of(layers), SETTINGS)
    rng = np.random.default_rng(0)
    order = rng.permutation(180)
    twice = fit_model(store_of([np.concatenate([layer, layer])[order] for layer in layers]), SETTINGS)
    assert twice.log_scores.min() > once.log_scores.min() - 0.1
    assert abs(np.median(twice.log_scores) - np.median(once.log_scores)) < 0.1
    place = np.argsort(order)
    np.testing.assert_allclose(twice.log_scores[place[:90]], twice.log_scores[place[90:]], atol=1e-4)
    np.testing.assert_allclose(np.sort(twice.gates), np.sort(once.gates), rtol=0.03)


def test_a_single_image_of_another_product_among_good_ones_is_scored_with_its_neighbours() -> None:
    layers, products = raw_features(30, 1)
    chosen = np.flatnonzero((products < 2) | (np.arange(90) == 89))
    model = fit_model(store_of([layer[chosen] for layer in layers]), SETTINGS)
    assert model.groups.max() == 1  # no group of its own: one image is no scale
    assert np.isfinite(model.log_scores).all()
    assert model.standardised[-1] > model.standardised[:-1].max()
    assert np.isfinite(scores(model, store_of(raw_features(5, 2)[0]))[1]).all()


def test_too_few_images_are_refused_in_one_line() -> None:
    with pytest.raises(FlawlineError, match="at least 20 are needed"):
        fit_model(store_of([layer[:19] for layer in raw_features(19, 1)[0]]), SETTINGS)


def test_large_pools_are_selected_in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(crossfit, "_POOL_BYTES", 500 * 4 * 12)
    store = store_of(raw_features(20, 1)[0])
    bank = selection(store, 0, np.arange(60), 100)
    assert bank.shape == (100, CHANNELS[0])
    assert len({row.tobytes() for row in bank}) == 100
