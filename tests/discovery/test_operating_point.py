"""What another alarm rate would have meant: counted where all frames are stored, estimated where a sample is."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from discovery.operating_point import Frames, Judgements, alarms, known, parts, rates_at, rest, share
from discovery.pictures.policy import Stratum
from discovery.quality_rates import Estimate, Judged, rates
from flawline.messages import Judgement

CUT = 1.0
"""The model's own cut-off in these tests."""

Row = tuple[str, float, float]
JudgedRow = tuple[str, float, float, str]


def frames(rows: Sequence[Row], camera: str = "cam-1", group: int = 0) -> Frames:
    strata, scores, weights = zip(*rows, strict=True) if rows else ((), (), ())
    return Frames(
        np.array([camera] * len(rows), str),
        np.full(len(rows), group, np.int64),
        np.array(strata, str),
        np.array(scores, np.float64),
        np.array(weights, np.float64),
    )


def judgements(rows: Sequence[JudgedRow], is_offered: bool = True) -> Judgements:
    strata, scores, weights, words = zip(*rows, strict=True) if rows else ((), (), (), ())
    return Judgements(
        np.zeros(len(rows), np.int64),
        np.array(strata, str),
        np.array(scores, np.float64),
        np.array(weights, np.float64),
        np.array(words, str),
        np.full(len(rows), is_offered),
    )


LINE = frames(
    [("reject", 5.0, 1), ("reject", 2.0, 1), ("review", 1.5, 1), ("unknown-product", np.inf, 1), ("near-miss", 0.9, 1),
     ("near-miss", 0.7, 1), *[("accepted", score, 100.0) for score in (0.6, 0.3, 0.1, -0.2)]]
)  # fmt: skip


SAMPLED = 400
"""How many frames the four accepted ones of the line stand for."""


def exactly(count: float) -> Estimate:
    return Estimate(count, count, count)


def test_alarms_and_near_misses_are_counted_at_any_cut_off() -> None:
    assert (LINE.alarms, LINE.near_misses, LINE.accepted) == (4, 2, 402)
    assert alarms(LINE, CUT, SAMPLED, is_covered=True) == exactly(4)
    assert alarms(LINE, 1.9, SAMPLED, is_covered=True) == exactly(3)
    assert alarms(LINE, 100.0, SAMPLED, is_covered=True) == exactly(1)  # another gate decides about unknown products
    assert alarms(LINE, 0.8, SAMPLED, is_covered=True) == exactly(5)


def test_the_sampled_frames_above_a_cut_off_stand_for_many_and_have_an_interval() -> None:
    estimate = alarms(LINE, 0.5, SAMPLED, is_covered=False)
    assert estimate.value == pytest.approx(6 + 100)
    assert 6 < estimate.low < 106 < estimate.high < 406
    none = alarms(
        LINE, 0.65, SAMPLED, is_covered=False
    )  # none of the sample is above it, which does not mean that none is
    assert none.value == 6 and none.low == 6 and none.high > 6
    assert alarms(frames([]), 0.5, 0, is_covered=False) == exactly(0)
    assert alarms(frames([]), 0.5, 9, is_covered=False) == Estimate(0.0, 0.0, 9.0)  # nothing is known of them


def test_found_and_false_alarms_follow_the_cut_off() -> None:
    spoken = judgements(
        [("reject", 5.0, 1, "real"), ("reject", 2.0, 1, "real"), ("review", 1.5, 1, "false"),
         ("near-miss", 0.9, 1, "real"), ("near-miss", 0.7, 1, "false"), ("accepted", 0.1, 100.0, "false")]
    )  # fmt: skip
    line = frames(
        [row for row in zip(LINE.strata, LINE.scores, LINE.weights, strict=True) if row[0] != "unknown-product"]
    )
    assert rest(rates_at(line, spoken, CUT, SAMPLED).escape).value == pytest.approx(2 / 3)
    assert rest(rates_at(line, spoken, 0.8, SAMPLED).escape).value == pytest.approx(1)
    stricter = rates_at(line, spoken, 1.9, SAMPLED)
    assert rest(stricter.escape).value == pytest.approx(2 / 3)
    assert stricter.overkill.value == 0 < rates_at(line, spoken, CUT, SAMPLED).overkill.value  # type: ignore[operator]
    assert vars(known(spoken, Judgement.REAL, 3.0)) == {"total": 3, "alarmed": 1, "passing": 1, "caught": 0}
    assert vars(known(spoken, Judgement.REAL, 0.8)) == {"total": 3, "alarmed": 3, "passing": 0, "caught": 1}
    assert vars(known(spoken, Judgement.FALSE, 0.6)) == {"total": 3, "alarmed": 2, "passing": 0, "caught": 1}


def test_frames_that_a_person_looked_up_are_known_and_count_in_no_rate() -> None:
    spoken = judgements([("reject", 5.0, 1, "real")], is_offered=False)
    assert known(spoken, Judgement.REAL, CUT).total == 1
    assert rates_at(LINE, spoken, CUT, SAMPLED).escape.value is None


def test_a_share_of_all_frames_has_the_exact_interval() -> None:
    # 2 of 20: the published limits are 1.23 % and 31.70 %.
    assert list(vars(share(2, 20)).values()) == pytest.approx([0.1, 0.0123, 0.3170], abs=1e-4)
    assert share(0, 0) == Estimate(None, 0.0, 1.0)
    assert share(0, 10).low == 0 and share(10, 10).high == 1


ACCEPTED = ("near-miss", "accepted")
score_of = {
    "reject": st.floats(2, 9), "review": st.floats(1.001, 2), "unknown-product": st.just(np.inf),
    "near-miss": st.floats(0.5, CUT), "accepted": st.floats(-3, 0.5),
}  # fmt: skip
weight_of = {name: st.just(1.0) for name in score_of} | {"accepted": st.sampled_from([1.0, 60.0, 500.0])}
names = st.sampled_from(sorted(score_of))
rows = names.flatmap(lambda name: st.tuples(st.just(name), score_of[name], weight_of[name]))
said_rows = names.flatmap(
    lambda name: st.tuples(st.just(name), score_of[name], weight_of[name], st.sampled_from(["real", "false", "unsure"]))
)


@given(st.lists(rows, max_size=40), st.lists(said_rows, max_size=30))
def test_at_the_models_own_cut_off_the_decisions_and_the_rates_are_those_that_were(
    line: list[Row], spoken: list[JudgedRow]
) -> None:
    stored, judged = frames(line), judgements(spoken)
    sampled = round(sum(weight for stratum, _, weight in line if stratum == "accepted"))
    assert alarms(stored, CUT, sampled, is_covered=True) == exactly(stored.alarms)

    def weights(name: str, word: str) -> tuple[tuple[float, int], ...]:
        ordered = sorted(weight for stratum, _, weight, said_word in spoken if (stratum, said_word) == (name, word))
        return tuple((weight, ordered.count(weight)) for weight in dict.fromkeys(ordered))

    strata = [
        Judged(
            name,
            Stratum(name).is_alarm,
            round(sum(weight for stratum, _, weight in line if stratum == name)),
            weights(name, "real"),
            weights(name, "false"),
            sum(stratum == name and word == "unsure" for stratum, _, _, word in spoken),
        )
        for name in ("reject", "review", "unknown-product", "near-miss", "accepted")
    ]
    whole = [part for part in parts(stored, judged, CUT, sampled) if part.is_alarm == Stratum(part.stratum).is_alarm]
    assert whole == strata
    assert rates_at(stored, judged, CUT, sampled) == rates(strata)


@given(st.lists(rows, max_size=40), st.lists(said_rows, max_size=30), st.floats(-4, 10), st.floats(0, 5))
def test_a_higher_cut_off_never_alarms_more_and_never_finds_more_of_the_known_defects(
    line: list[Row], spoken: list[JudgedRow], low: float, more: float
) -> None:
    stored, judged = frames(line), judgements(spoken)
    lower, higher = (alarms(stored, cut_off, 5000, is_covered=False) for cut_off in (low, low + more))
    assert (higher.value or 0) <= (lower.value or 0) + 1e-9
    assert known(judged, Judgement.REAL, low + more).alarmed <= known(judged, Judgement.REAL, low).alarmed
    for part in (lower, higher):
        assert part.value is not None and part.low - 1e-9 <= part.value <= part.high + 1e-9
        assert part.high <= len(stored) + 5000
