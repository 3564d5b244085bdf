"""Frames with pictures in a store, without a broker: what the album writes, step by step."""

from __future__ import annotations

from dataclasses import replace

from discovery.pictures.policy import Candidate, Pick, Stratum, chance_of, stratum_of
from discovery.store import frame_pictures
from discovery.store.store import Store
from flawline.messages import Decision, Verdict
from tests.discovery.factories import verdict


def scored(
    sequence: int, decision: Decision = Decision.REJECT, *, p_value: float = 0.5, camera: str = "cam-1",
    captured_at: int | None = None,
) -> Verdict:  # fmt: skip
    return replace(verdict(sequence, camera, decision, captured_at), p_value=p_value)


def pick_of(scored: Verdict, probability: float = 1.0) -> Pick:
    stratum = stratum_of(scored, 0.02)
    return Pick(Candidate(scored, 0, scored.sequence), stratum, probability, chance_of(scored.frame_id))


def keep(
    store: Store, *verdicts: Verdict, probability: float = 0.1, keys: tuple[str, ...] = (), size_bytes: int = 100
) -> None:
    """Count verdicts, and note that their frames are in the picture store, each as an object of `size_bytes`."""
    picks = [
        pick_of(scored, probability if stratum_of(scored, 0.02) is Stratum.ACCEPTED else 1.0) for scored in verdicts
    ]
    with store.transaction() as connection:
        frame_pictures.count_frames(connection, [(pick.candidate.verdict, pick.stratum) for pick in picks])
        frame_pictures.want(connection, picks)
        for number, row in enumerate(frame_pictures.wanted(connection, len(picks))):
            key = keys[number] if keys else f"{row.id:064x}"
            frame_pictures.keep(
                connection, row.id, object_key=key, codec="jpeg", height=64, width=64, size_bytes=size_bytes
            )  # fmt: skip
