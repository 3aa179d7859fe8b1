"""A registry that answers late is waited for and caught up with; one that stays away ends the patience."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

import pytest

from cluster.state import outbox
from cluster.state.outbox import Outbox
from configs.errors import LedgerError, RegistryError

WAIT_S = 10.0


class Server:
    """Takes numbers while it answers."""

    def __init__(self) -> None:
        self.answers = True
        self.refuses: set[int] = set()
        self.told: list[int] = []
        self.notes: list[str] = []

    def news(self, number: int) -> Callable[[], Awaitable[int]]:
        async def send() -> int:
            await asyncio.sleep(0)
            if not self.answers:
                raise RegistryError("Timeout reading")
            if number in self.refuses:
                raise LedgerError("another launcher goes on with this run")
            self.told.append(number)
            return number

        return send


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Server:
    monkeypatch.setattr(outbox, "FIRST_PAUSE_S", 0.001)
    monkeypatch.setattr(outbox, "LONGEST_PAUSE_S", 0.01)
    return Server()


async def test_a_server_that_answers_is_told_at_once(server: Server) -> None:
    box = Outbox(1.0, server.notes.append)
    await box.tell(server.news(1))
    assert server.told == [1]
    assert server.notes == []


async def test_what_a_late_server_has_missed_is_told_in_order_and_nothing_waits_for_it(server: Server) -> None:
    box = Outbox(WAIT_S, server.notes.append)
    await box.tell(server.news(0))
    server.answers = False
    async with asyncio.timeout(1):
        for number in range(1, 50):
            await box.tell(server.news(number))
    assert box.num_waiting == 49
    assert box.error is None
    server.answers = True
    await box.tell(server.news(50))
    await box.flush(WAIT_S)
    assert server.told == list(range(51))
    assert len(server.notes) == 2
    assert server.notes[0].startswith("Timeout reading; training goes on, and it is told later")
    assert server.notes[1] == "the run's registry answers again, and has been told what it missed"
    await box.tell(server.news(51))
    assert server.told[-1] == 51


async def test_a_server_that_stays_away_is_the_end_after_the_patience(server: Server) -> None:
    box = Outbox(0.05, server.notes.append)
    server.answers = False
    await box.tell(server.news(1))
    async with asyncio.timeout(WAIT_S):
        while box.error is None:
            await asyncio.sleep(0.001)
    assert isinstance(box.error, RegistryError)
    await box.tell(server.news(2))
    assert box.num_waiting == 0


async def test_what_a_server_refuses_late_is_the_end_and_what_it_refuses_at_once_is_raised(server: Server) -> None:
    box = Outbox(WAIT_S, server.notes.append)
    server.refuses = {3}
    with pytest.raises(LedgerError):
        await box.tell(server.news(3))
    server.answers = False
    await box.tell(server.news(1))
    await box.tell(server.news(3))
    server.answers = True
    await box.flush(WAIT_S)
    assert server.told == [1]
    assert isinstance(box.error, LedgerError)


async def test_a_new_beginning_waits_for_the_server_and_drops_what_waited(server: Server) -> None:
    box = Outbox(WAIT_S, server.notes.append)
    server.answers = False
    await box.tell(server.news(1))
    insisting = asyncio.create_task(box.insist(server.news(7)))
    await asyncio.sleep(0.02)
    assert not insisting.done()
    server.answers = True
    assert await asyncio.wait_for(insisting, WAIT_S) == 7
    assert server.told == [7]


async def test_a_new_beginning_is_an_error_after_the_patience(server: Server) -> None:
    server.answers = False
    with pytest.raises(RegistryError):
        await asyncio.wait_for(Outbox(0.02, server.notes.append).insist(server.news(7)), WAIT_S)


async def test_news_that_pile_up_beyond_all_bounds_are_the_end(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(outbox, "MAX_WAITING", 10)
    box = Outbox(WAIT_S, server.notes.append)
    server.answers = False
    for number in range(12):
        await box.tell(server.news(number))
    assert isinstance(box.error, RegistryError)
    assert "is behind by 11 messages" in str(box.error)
    await box.close()
