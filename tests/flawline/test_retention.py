"""The policy of retention: what is too old goes, then the least valuable, and never more than there has to."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from flawline.retention import Going, Holding, Limits, Value, going

NOW_NS = 1_000_000

VALUES = st.sampled_from(list(Value))
HOLDINGS = st.lists(st.tuples(VALUES, st.integers(0, NOW_NS), st.integers(0, 1_000)), max_size=30).map(
    lambda rows: [Holding(number, *row) for number, row in enumerate(rows)]
)
LIMITS = st.builds(
    Limits,
    st.dictionaries(VALUES, st.integers(0, NOW_NS)),
    st.none() | st.integers(0, 20_000),
)
LACKING = st.integers(-5_000, 20_000)


def size_of(holdings) -> int:
    return sum(item.size_bytes for item in holdings)


@given(HOLDINGS, LIMITS)
def test_exactly_what_is_older_than_its_age_goes_by_age(holdings: list[Holding[int]], limits: Limits) -> None:
    old = {item.key for item in holdings if NOW_NS - item.at_ns > limits.ages_ns.get(item.value, NOW_NS)}
    assert {item.key for item in going(holdings, limits, NOW_NS).too_old} == old


@given(HOLDINGS, LIMITS, LACKING)
def test_what_stays_is_within_the_limit_and_has_freed_what_lacks(
    holdings: list[Holding[int]], limits: Limits, lacking: int
) -> None:
    gone = going(holdings, limits, NOW_NS, lacking)
    stays = [item for item in holdings if item not in (*gone.too_old, *gone.too_much)]
    assert limits.limit_bytes is None or size_of(stays) <= limits.limit_bytes
    assert size_of((*gone.too_old, *gone.too_much)) >= lacking or size_of(stays) == 0


@given(HOLDINGS, LIMITS, LACKING)
def test_nothing_goes_for_room_that_need_not(holdings: list[Holding[int]], limits: Limits, lacking: int) -> None:
    gone = going(holdings, limits, NOW_NS, lacking)
    if not gone.too_much:
        return
    assert all(item.size_bytes for item in gone.too_much)
    last = gone.too_much[-1]
    stays = [item for item in holdings if item not in (*gone.too_old, *gone.too_much)] + [last]
    freed = size_of((*gone.too_old, *gone.too_much)) - last.size_bytes
    assert (limits.limit_bytes is not None and size_of(stays) > limits.limit_bytes) or freed < lacking


@given(HOLDINGS, LIMITS, LACKING)
def test_the_least_valuable_and_oldest_goes_first(holdings: list[Holding[int]], limits: Limits, lacking: int) -> None:
    gone = going(holdings, limits, NOW_NS, lacking)
    stays = [item for item in holdings if item not in (*gone.too_old, *gone.too_much) and item.size_bytes]
    worth = [(item.value, item.at_ns) for item in gone.too_much]
    assert worth == sorted(worth)
    if worth and stays:
        assert worth[-1] <= min((item.value, item.at_ns) for item in stays)


@given(HOLDINGS, LIMITS, LACKING)
def test_a_second_look_at_what_stays_removes_nothing(
    holdings: list[Holding[int]], limits: Limits, lacking: int
) -> None:
    gone = going(holdings, limits, NOW_NS, lacking)
    stays = [item for item in holdings if item not in (*gone.too_old, *gone.too_much)]
    freed = size_of((*gone.too_old, *gone.too_much))
    if freed >= lacking:
        assert going(stays, limits, NOW_NS, lacking - freed) == Going()


def test_order_is_samples_near_misses_dismissed_defects() -> None:
    holdings = [Holding(str(value), value, 10 - value, 100) for value in reversed(Value)]
    assert [item.value for item in going(holdings, Limits(), NOW_NS, 301).too_much] == [
        Value.SAMPLE,
        Value.NEAR_MISS,
        Value.DISMISSED,
        Value.DEFECT,
    ]
