"""Errors that come from an actor, as the user should read them.

Ray wraps what an actor's method raises into a RayTaskError, whose message is the actor's traceback.
"""

from __future__ import annotations

import asyncio
from typing import Any

from ray.exceptions import RayError, RayTaskError, TaskCancelledError

from configs.errors import BicotError, RunError


class WorkerLostError(BicotError):
    """A worker died or hung during a call. The call may be made again; another worker answers it."""


async def resolve(reference: Any) -> Any:
    """Await an object reference. Raises WorkerLostError where an actor has ended itself.

    That cancels the calls it is at, which must not look as if this task was cancelled.
    """
    try:
        return await reference
    except (RayTaskError, TaskCancelledError) as error:
        if isinstance(error, TaskCancelledError) or isinstance(raised_by(error), asyncio.CancelledError):
            raise WorkerLostError("the worker ended itself during a call") from error
        raise


def raised_by(error: RayTaskError) -> BaseException:
    """What the method itself raised; through several actors, where one waited for another."""
    cause: BaseException = error
    while isinstance(cause, RayTaskError):
        cause = cause.cause
    return cause


def first_line(error: BaseException | None) -> str:
    """The first line of an error's own message."""
    own = raised_by(error) if isinstance(error, RayTaskError) else error
    text = str(own).strip()
    return text.splitlines()[0] if text else type(own).__name__


def own_error(error: BaseException) -> BaseException:
    """bicot's own error for one of Ray's; any other as it is."""
    if not isinstance(error, RayError):
        return error
    own = raised_by(error) if isinstance(error, RayTaskError) else error
    return own if isinstance(own, BicotError) else RunError(f"an actor of the run failed: {first_line(error)}")
