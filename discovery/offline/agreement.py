"""How well found classes agree with known kinds: the three figures of the field."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from scipy.optimize import linear_sum_assignment
from sklearn.metrics import adjusted_rand_score, normalized_mutual_info_score


def accuracy(truth: Sequence[str], labels: Sequence[str]) -> float:
    """Return the share that is right under the best one-to-one naming of the clusters (the papers' micro F1)."""
    _, rows = np.unique(list(truth), return_inverse=True)
    _, columns = np.unique(list(labels), return_inverse=True)
    table = np.zeros((rows.max() + 1, columns.max() + 1))
    np.add.at(table, (rows, columns), 1)
    return float(table[linear_sum_assignment(-table)].sum() / len(truth))


def agreement(truth: Sequence[str], labels: Sequence[str]) -> dict[str, float]:
    """Return `nmi`, `ari` and `accuracy` of two labellings of the same things, at least one of them."""
    return {
        "nmi": float(normalized_mutual_info_score(truth, labels)),
        "ari": float(adjusted_rand_score(truth, labels)),
        "accuracy": accuracy(truth, labels),
    }
