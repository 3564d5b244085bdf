"""A line on which nothing changes, in compressed time: classes stay as they are; what is new, gone or moved is seen."""

from __future__ import annotations

import numpy as np
import pytest

from benchmarks.discovery_bank import STRAY, Bank
from benchmarks.discovery_calm import Line, drifting, members_until_confirmed, return_after_a_month, stationary
from flawline.settings.discovery import DiscoverySettings
from tests.discovery.factories import directions, near

pytestmark = pytest.mark.system

KINDS, PRODUCTS, SIDE = 5, 3, 32
SETTINGS = DiscoverySettings(
    window_regions=400, pool_regions=100, round_regions=20, min_members=6, class_limit=12, dormant_rounds=8
)


@pytest.fixture(scope="module")
def bank():
    """Kinds that look a little different on each product, and what is seen on good parts."""
    axes, rng = directions(KINDS + PRODUCTS * KINDS + 1, SIDE), np.random.default_rng(4)
    rows = [(kind, product) for kind in range(KINDS) for product in range(PRODUCTS) for _ in range(40)]
    centre = [axes[kind] + 0.4 * axes[KINDS + PRODUCTS * kind + product] for kind, product in rows]
    vectors = [near(middle, rng, 0.5) for middle in centre] + [near(axes[-1], rng, 3.0) for _ in range(20)]
    products = np.array([product for _, product in rows] + [n % PRODUCTS for n in range(20)])
    kinds = np.array([f"kind {kind}" for kind, _ in rows] + [STRAY] * 20)
    return Bank(np.stack(vectors), kinds, products, products)


def test_line_on_which_nothing_changes_gives_each_kind_one_id_and_no_news(bank):
    line = Line(bank, SETTINGS)
    figures = stationary(line, 60)
    assert figures["kinds_without_a_class"] == 0
    assert figures["public_ids_given"] <= KINDS + 1
    assert figures["rounds_with_another_number_of_confirmed"] == 0
    assert figures["false_births_per_1000_rounds"] == 0
    assert figures["stationary_ari"] > 0.9


def test_kind_that_enters_at_one_percent_has_a_class_within_fifteen_of_its_members(bank):
    assert members_until_confirmed(Line(bank, SETTINGS), "kind 2", 10)["new_kind_members_until_confirmed"] <= 15


def test_kind_that_was_away_for_a_month_is_the_class_that_it_was(bank):
    assert return_after_a_month(Line(bank, SETTINGS), "kind 1", 12)["not_revived_after_a_month"] == 0


def test_kind_that_drifts_keeps_its_id(bank):
    assert drifting(Line(bank, SETTINGS), "kind 3", 12)["drifting_kinds_with_another_id"] == 0
