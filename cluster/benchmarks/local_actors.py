"""Actors of this very process, behind the same handles as Ray's: what drives actors can then be measured, and
tested, by itself.

    handle.method.remote(*arguments)  ─►  a task that runs the method of the plain object
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Generator
from typing import Any

from ray.exceptions import ActorDiedError


class LocalActor:
    """Handle of `worker`, an object with async methods. After `kill` every call fails as a dead actor's does."""

    def __init__(self, worker: Any) -> None:
        self._worker = worker
        self.is_dead = False
        self._running: set[asyncio.Future[Any]] = set()

    def __getattr__(self, method: str) -> _Method:
        return _Method(self._call, method)

    def kill(self) -> None:
        self.is_dead = True
        for call in self._running:
            if not call.done():
                call.set_exception(ActorDiedError())

    def _call(self, method: str, arguments: tuple[Any, ...]) -> asyncio.Future[Any]:
        answer: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        if self.is_dead:
            answer.set_exception(ActorDiedError())
            return answer
        self._running.add(answer)
        answer.add_done_callback(self._running.discard)
        work = asyncio.create_task(getattr(self._worker, method)(*arguments))

        def pass_on(work: asyncio.Task[Any]) -> None:
            if answer.done():
                return
            if (error := work.exception()) is not None:
                answer.set_exception(error)
            else:
                answer.set_result(work.result())

        work.add_done_callback(pass_on)
        answer.add_done_callback(lambda _: work.cancel() if not work.done() else None)
        return answer


class _Method:
    def __init__(self, call: Callable[[str, tuple[Any, ...]], asyncio.Future[Any]], method: str) -> None:
        self._call = call
        self._method = method

    def remote(self, *arguments: Any) -> asyncio.Future[Any]:
        return self._call(self._method, arguments)

    def options(self, num_returns: int = 1, concurrency_group: str | None = None) -> _Method | _SplitMethod:
        """concurrency_group: methods run beside each other as they are."""
        return self if num_returns == 1 else _SplitMethod(self, num_returns)


class _SplitMethod:
    """A method whose result is a tuple, each element behind a reference of its own."""

    def __init__(self, method: _Method, num_returns: int) -> None:
        self._method = method
        self._num_returns = num_returns

    def remote(self, *arguments: Any) -> tuple[Any, ...]:
        answer = self._method.remote(*arguments)
        return tuple(_Element(answer, index) for index in range(self._num_returns))


class _Element:
    """Reference to one element of an answer; it need not be awaited."""

    def __init__(self, answer: asyncio.Future[Any], index: int) -> None:
        self._answer = answer
        self._index = index

    def __await__(self) -> Generator[Any, None, Any]:
        answer = yield from self._answer.__await__()
        return answer[self._index]
