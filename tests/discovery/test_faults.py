"""A discovery process that is killed in its rounds; `benchmarks.discovery_faults` does the same more often."""

from __future__ import annotations

import pytest

from benchmarks import discovery_faults

pytestmark = pytest.mark.system


@pytest.mark.parametrize("store", ["sqlite", "postgresql"])
def test_kills_in_rounds_lose_no_id_and_count_nothing_twice(store, request):
    url = request.getfixturevalue("postgres_server").new_database() if store == "postgresql" else None
    figures = discovery_faults.run(kills=2, store_url=url, seed=11)
    assert figures["kills"] == 2
    assert figures["classes"] >= discovery_faults.KINDS
    assert {name: figures[name] for name in discovery_faults.GOALS} == dict.fromkeys(discovery_faults.GOALS, 0)
