"""Fixtures of discovery's tests."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from discovery.store.store import Store
from flawline.settings.discovery import DiscoverySettings
from tests.discovery.factories import directions
from tests.discovery.stream import Stream


@pytest.fixture(scope="session")
def vit_weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return weights of timm's tiny `test_vit`, random but always the same: nothing is downloaded, and it is quick."""
    import timm
    import torch
    from safetensors.torch import save_file

    torch.manual_seed(3)
    path = tmp_path_factory.mktemp("weights") / "vit.safetensors"
    save_file(timm.create_model("test_vit", pretrained=False).state_dict(), path)
    return path


@pytest.fixture(params=["sqlite", "postgresql"])
def stream(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Stream]:
    """Fill a store with three classes in two rounds, on each database; their events are published."""
    if request.param == "sqlite":
        url = f"sqlite:///{tmp_path / 'store.db'}"
    else:
        url = request.getfixturevalue("postgres_server").new_database()
    opened = Store(url)
    settings = DiscoverySettings(window_regions=200, exemplars=30, class_limit=10)
    filled = Stream(opened, settings, directions(5), spread=0.4)
    for _ in range(2):
        filled.feed([0, 1, 2] * 14)
        filled.round()
    opened.mark_published(row for row, _ in opened.outbox())
    yield filled
    opened.close()
