"""One call to one worker, bounded in time, whose failures are errors of bicot."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

from ray.actor import ActorHandle

from cluster.pools.member import Member
from cluster.pools.remote_errors import WorkerLostError, call_error, resolve


class LateError(Exception):
    """A worker did not answer in time; the message says how long that was."""


async def ask(member: Member, invoke: Callable[[ActorHandle], Any], timeout_s: float) -> Any:
    """Await `invoke(handle)`, an object reference; whatever the worker answers counts as a sign of life.

    Raises LateError, what the worker's method raises on purpose, and WorkerLostError or CallFailedError for all else.
    """
    answer: asyncio.Future[Any] = asyncio.ensure_future(resolve(invoke(member.handle)))
    try:
        if not (await asyncio.wait({answer}, timeout=timeout_s))[0]:
            raise LateError(f"did not answer within {timeout_s:g} s")
        result = answer.result()
    except LateError:
        raise
    except Exception as error:
        own = call_error(member.worker_id, error)
        if not isinstance(own, WorkerLostError):
            member.hear()
        raise own from error
    finally:
        answer.cancel()
    member.hear()
    return result
