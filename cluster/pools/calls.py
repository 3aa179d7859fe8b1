"""One call to one worker, bounded in time, whose failures are errors of bicot."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from typing import Any

from ray.actor import ActorHandle

from cluster.pools.member import Member
from cluster.pools.remote_errors import CallFailedError, WorkerLostError, call_error, resolve


class LateError(Exception):
    """A worker did not answer in time; the message says how long that was."""


async def ask(
    member: Member,
    invoke: Callable[[ActorHandle], Any],
    timeout_s: float,
    give_up: Callable[[Any], None] | None = None,
) -> Any:
    """Await `invoke(handle)`, an object reference; whatever the worker answers counts as a sign of life.

    Raises LateError, what the worker's method raises on purpose, and WorkerLostError or CallFailedError for all else.
    give_up: a worker that has answered other calls meanwhile is not stuck, but has too much to do: it is told to leave
    this one, which is a CallFailedError.
    """
    since_s = time.monotonic()
    reference = invoke(member.handle)
    answer: asyncio.Future[Any] = asyncio.ensure_future(resolve(reference))
    try:
        if not (await asyncio.wait({answer}, timeout=timeout_s))[0]:
            if give_up is not None and member.answered_s > since_s:
                give_up(reference)
                raise CallFailedError(f"{member.worker_id} did not answer within {timeout_s:g} s, though it did others")
            raise LateError(f"did not answer within {timeout_s:g} s")
        result = answer.result()
    except (LateError, CallFailedError):
        raise
    except Exception as error:
        own = call_error(member.worker_id, error)
        if not isinstance(own, WorkerLostError):
            member.answer()
        raise own from error
    finally:
        answer.cancel()
    member.answer()
    return result
