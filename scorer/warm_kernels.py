"""Compiles every kernel of search and regions once; `scorer.search.warm` starts it by name as a child process."""

from __future__ import annotations

import numpy as np

from scorer.regions.components import component_counts
from scorer.search import warm
from scorer.search.bank import Int8Index, unit_rows


def compile_all() -> None:
    """Use every kernel once, as scoring an image does, so that numba compiles it into its cache."""
    rows = unit_rows(np.eye(32, 16))
    Int8Index(rows).project(rows[:4], 5)
    component_counts(rows, np.array([1, 0]))
    warm.mark_complete()


if __name__ == "__main__":
    compile_all()
