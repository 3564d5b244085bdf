"""Maps of layers join into one, in units that do not depend on the layers' scales."""

from __future__ import annotations

import numpy as np
import pytest

from scorer.maps import LayerUnit, combined, enlarged, log_score, quiet_heat


def distances(side: int, seed: int) -> np.ndarray:
    return np.random.default_rng(seed).gamma(9, 0.03, (side, side)).astype(np.float32)


def test_combined_map_does_not_depend_on_a_layers_scale() -> None:
    maps = [distances(16, 0), distances(8, 1)]
    scaled = [maps[0] * 10, maps[1]]
    first = combined(maps, [LayerUnit.of(layer) for layer in maps])
    second = combined(scaled, [LayerUnit.of(layer) for layer in scaled])
    np.testing.assert_allclose(first, second, rtol=1e-4)


def test_ordinary_patch_has_ratio_one_and_a_far_one_stands_out() -> None:
    usual = np.full((8, 8), 0.3, dtype=np.float32)
    unit = LayerUnit(median=0.3, width=0.5)
    np.testing.assert_allclose(combined([usual], [unit]), 1, rtol=1e-5)
    usual[4, 4] = 0.9
    assert combined([usual], [unit]).argmax() == 4 * 8 + 4


def test_good_parts_that_are_all_alike_give_finite_units_and_scores() -> None:
    nothing = np.zeros((8, 8), dtype=np.float32)
    unit = LayerUnit.of(nothing)
    assert np.isfinite(log_score(combined([nothing], [unit]), 0.003))
    assert np.isfinite(log_score(combined([nothing + 2], [unit]), 0.003))


def test_score_is_the_mean_of_the_highest_patches() -> None:
    ratios = np.ones((32, 32), dtype=np.float32)
    ratios[3, 3:6] = [10, 20, 30]
    assert log_score(ratios, 0.003) == pytest.approx(np.log(20))
    assert log_score(ratios, 0.0005) == pytest.approx(np.log(30))


def test_enlarging_keeps_constants_and_ranges_and_the_identity() -> None:
    values = distances(8, 2)
    assert enlarged(values, 8, 8) is values
    np.testing.assert_allclose(enlarged(np.full((4, 4), 0.7, dtype=np.float32), 32, 32), 0.7, rtol=1e-6)
    large = enlarged(values, 32, 32)
    assert large.shape == (32, 32)
    assert values.min() <= large.min() <= large.max() <= values.max()
    assert enlarged(np.ones((1, 1, 5), dtype=np.float32), 4, 4).shape == (4, 4, 5)


@pytest.mark.parametrize("channels", [1, 128, 129, 1100])
def test_maps_of_any_number_of_channels_are_enlarged_as_each_channel_is_alone(channels: int) -> None:
    values = np.random.default_rng(3).standard_normal((5, 5, channels)).astype(np.float32)
    large = enlarged(values, 12, 12)
    assert large.shape == (12, 12, channels)
    for channel in (0, channels // 2, channels - 1):
        np.testing.assert_allclose(large[:, :, channel], enlarged(values[:, :, channel], 12, 12), atol=1e-6)


def test_smoothing_mirrors_the_map_about_its_outermost_patches() -> None:
    usual = np.full((4, 4), 0.3, dtype=np.float32)
    unit = LayerUnit(median=0.3, width=1.0)
    usual[0, 0] = 0.9
    inside = np.full((6, 6), 0.3, dtype=np.float32)
    inside[2, 2] = 0.9
    corner, middle = combined([usual], [unit]), combined([inside], [unit])
    assert corner[0, 0] == pytest.approx(middle[2, 2], rel=1e-6)  # the corner itself is no mirror image
    assert corner[0, 1] == pytest.approx(middle[2, 3], rel=1e-6)


def test_quiet_heat_does_not_see_a_defect_and_sees_what_is_warm_throughout() -> None:
    usual = np.random.default_rng(0).normal(0, 0.1, (32, 32)).astype(np.float32)
    spoiled = usual.copy()
    spoiled[:8, :8] = 5
    assert abs(quiet_heat(spoiled) - quiet_heat(usual)) < 0.02
    assert quiet_heat(usual + np.float32(0.5)) == pytest.approx(quiet_heat(usual) + 0.5, abs=1e-3)


def test_quiet_heat_passes_over_what_is_not_inspected() -> None:
    warm = np.random.default_rng(0).normal(1, 0.1, (32, 32)).astype(np.float32)
    masked = warm.copy()
    masked[:24] = masked[24:].min()
    assert quiet_heat(masked) == pytest.approx(quiet_heat(warm[24:]), abs=0.02)
    assert quiet_heat(np.zeros((4, 4), np.float32)) == 0
