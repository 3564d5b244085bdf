"""Compiles every kernel of the search once; `scorer.search.warm` starts it by name as a child process."""

from __future__ import annotations

import numpy as np

from scorer import maps, whole_image
from scorer.coreset import unit
from scorer.search import loops
from scorer.search.bank import Bank


def compile_all() -> None:
    """Use every kernel once, as an image does."""
    rows = unit(np.eye(32, 16))
    mean = np.empty(rows.shape[1], dtype=np.float32)
    loops.mean_of_rows(rows, mean)
    distances, _ = Bank(rows).project(rows[:4], 5)
    of_layer = maps.LayerUnit(median=1.0, width=1.0)
    maps.log_score(maps.combined([distances.reshape(2, 2), np.ones((4, 4), dtype=np.float32)], [of_layer, of_layer]))
    whole_image.log_distances(rows[:1], rows)


if __name__ == "__main__":
    compile_all()
