"""What the demo reports, computed from verdicts, class assignments and truth. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from sklearn.metrics import (
    adjusted_rand_score,
    average_precision_score,
    normalized_mutual_info_score,
    roc_auc_score,
)

from flawline.messages import Decision, Verdict

UNASSIGNED = "unassigned"


@dataclass(frozen=True)
class Truth:
    """What a captured part really is; `defect` is None on a good part."""

    product: str
    defect: str | None


def quality(verdicts: Sequence[Verdict], truths: Mapping[str, Truth]) -> dict[str, float | None]:
    """Return pooled image AUROC and average precision of the aligned scores, all products in one list.

    None where it is undefined, because only good or only defective parts passed.
    """
    labels = np.array([truths[verdict.frame_id].defect is not None for verdict in verdicts])
    scores = np.array([verdict.score for verdict in verdicts])
    if len(set(labels.tolist())) < 2:
        return {"pooled_image_auroc": None, "pooled_image_ap": None}
    return {
        "pooled_image_auroc": float(roc_auc_score(labels, scores)),
        "pooled_image_ap": float(average_precision_score(labels, scores)),
    }


def alarm_rate(verdicts: Sequence[Verdict], truths: Mapping[str, Truth], target: float) -> dict[str, Any]:
    """Return the share of good parts that were not accepted, beside the target rate."""
    good = [verdict for verdict in verdicts if truths[verdict.frame_id].defect is None]
    alarms = sum(verdict.decision is not Decision.ACCEPT for verdict in good)
    return {"target": target, "measured": alarms / len(good) if good else None, "good_frames": len(good)}


def escape_rate(verdicts: Sequence[Verdict], truths: Mapping[str, Truth]) -> dict[str, Any]:
    """Return the share of defective parts that were accepted."""
    bad = [verdict for verdict in verdicts if truths[verdict.frame_id].defect is not None]
    escapes = sum(verdict.decision is Decision.ACCEPT for verdict in bad)
    return {"measured": escapes / len(bad) if bad else None, "defective_frames": len(bad)}


def classes(
    verdicts: Sequence[Verdict],
    truths: Mapping[str, Truth],
    assignments: Mapping[str, str],
    with_product: bool,
) -> dict[str, Any]:
    """Return how the classes agree with the true defect kinds, over the defective frames that were not accepted.

    `with_product`: a kind of defect belongs to its product, as in a data set whose products name their own kinds; the
    simulated kinds occur on every product. A frame without a class counts as one of the class `unassigned`, so leaving
    frames out does not raise the figures.
    """

    def kind_of(truth: Truth) -> str:
        return f"{truth.product}/{truth.defect}" if with_product else str(truth.defect)

    flagged = [
        verdict.frame_id
        for verdict in verdicts
        if verdict.decision is not Decision.ACCEPT and truths[verdict.frame_id].defect is not None
    ]
    true = [kind_of(truths[frame]) for frame in flagged]
    assigned = [assignments.get(frame, UNASSIGNED) for frame in flagged]
    return {
        "found": len(set(assignments.values())),
        "true": len({kind_of(truth) for truth in truths.values() if truth.defect is not None}),
        "ari": float(adjusted_rand_score(true, assigned)) if flagged else None,
        "nmi": float(normalized_mutual_info_score(true, assigned)) if flagged else None,
        "frames": len(flagged),
        "assigned_frames": sum(name != UNASSIGNED for name in assigned),
    }


def throughput(verdicts: Sequence[Verdict]) -> float:
    """Return the frames per second between the first capture and the last verdict."""
    if not verdicts:
        return 0.0
    span = max(v.decided_at for v in verdicts) - min(v.captured_at for v in verdicts)
    return len(verdicts) / (span / 1e9) if span > 0 else 0.0


def latency_ms(verdicts: Sequence[Verdict]) -> dict[str, float | None]:
    """Return the time from capture to decision: median and 99th percentile."""
    if not verdicts:
        return {"p50": None, "p99": None}
    waits = np.array([(v.decided_at - v.captured_at) / 1e6 for v in verdicts])
    return {"p50": float(np.percentile(waits, 50)), "p99": float(np.percentile(waits, 99))}
