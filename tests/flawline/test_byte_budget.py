"""The limit on bytes in flight, as producers and workers use it."""

from __future__ import annotations

import threading

import pytest

from flawline.byte_budget import ByteBudget


def test_budget_refuses_over_its_limit_and_lets_one_large_frame_go_alone() -> None:
    budget = ByteBudget(100)
    assert budget.acquire(250)
    assert not budget.acquire(1)
    budget.release(250)
    assert budget.acquire(60)
    assert not budget.acquire(20, share=0.5)
    assert budget.acquire(20, share=0.5, force=True)
    assert budget.held_bytes == 80


def test_a_budget_closes_at_its_limit_and_opens_at_half_of_it() -> None:
    budget = ByteBudget(100)
    budget.add(99)
    assert not budget.closed
    budget.add(1)
    assert budget.closed
    budget.release(49)
    assert budget.closed, "51 of 100 bytes: opening now would flutter"
    assert not budget.wait_open(0)
    budget.release(1)
    assert not budget.closed
    assert budget.wait_open(0)
    with pytest.raises(ValueError, match="51 bytes are given back of 50"):
        budget.release(51)


def test_waiting_for_a_closed_budget_ends_when_it_opens() -> None:
    budget = ByteBudget(10)
    budget.add(10)
    opened: list[bool] = []
    waiter = threading.Thread(target=lambda: opened.append(budget.wait_open(30)))
    waiter.start()
    budget.release(10)
    waiter.join(30)
    assert opened == [True]


def test_every_change_is_told_to_the_gauge() -> None:
    values: list[int] = []
    budget = ByteBudget(100, values.append)
    budget.add(60)
    assert not budget.acquire(60)
    budget.release(60)
    assert values == [60, 0]
