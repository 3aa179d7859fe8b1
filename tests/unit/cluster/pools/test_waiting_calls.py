"""Turns: order, cancelled ones, and the end."""

from __future__ import annotations

import asyncio

import pytest

from cluster.pools.waiting_calls import Turns


async def test_those_who_wait_are_served_in_order_and_only_as_far_as_there_is_something() -> None:
    turns: Turns[str] = Turns()
    first, second, third = (turns.join() for _ in range(3))
    stock = ["a", "b"]
    turns.serve(lambda: stock.pop(0) if stock else None)
    assert (await first, await second) == ("a", "b")
    assert not third.done()
    assert len(turns) == 1


async def test_a_cancelled_turn_takes_nothing() -> None:
    turns: Turns[str] = Turns()
    first, second = turns.join(), turns.join()
    first.cancel()
    stock = ["a"]
    turns.serve(lambda: stock.pop() if stock else None)
    assert await second == "a"


async def test_nothing_is_taken_when_nobody_waits() -> None:
    turns: Turns[str] = Turns()
    turns.join().cancel()
    turns.serve(lambda: pytest.fail("nobody waits"))


async def test_at_the_end_everybody_goes_home_with_nothing() -> None:
    turns: Turns[str] = Turns()
    waiting = [turns.join() for _ in range(2)]
    turns.end()
    assert await asyncio.gather(*waiting) == [None, None]
