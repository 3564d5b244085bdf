"""Ray for the workers' tests: one start for the whole session."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.workers.ray_session import running_ray


@pytest.fixture(scope="session")
def ray_here() -> Iterator[None]:
    """Ray on this machine with room for four test actors."""
    with running_ray():
        yield
