"""Errors that come from an actor, as the user should read them, and as the launcher may act on them.

Ray wraps what an actor's method raises into a RayTaskError, whose message is the actor's traceback. All else that
waiting for an actor raises is Ray's own: the actor died, or what it was given or has answered is lost.
"""

from __future__ import annotations

import asyncio
import re
from typing import Any, Final

from ray.exceptions import ActorDiedError, ObjectLostError, RayError, RayTaskError, TaskCancelledError

from configs.errors import BicotError, DataError, RewardError, RolloutError, RunError, WeightSyncError

PASSED_ON: Final = (DataError, RewardError, RolloutError, WeightSyncError)
"""What a worker's method raises on purpose. Anything else that it raises is an accident of the call."""

_ANSI: Final = re.compile(r"\x1b\[[0-9;]*m")
_ADDRESS: Final = re.compile(r"\bip[=:]\s*([0-9a-fA-F.:]*[0-9a-fA-F])")
_CAUSE: Final = "The actor is dead because"
_GUESSES: Final = " Some common causes include"


class WorkerLostError(BicotError):
    """A worker died or hung during a call. The call may be made again; another worker answers it."""


class CallFailedError(BicotError):
    """A call failed by accident, and its worker goes on. What the call was part of may be made again."""


class ObjectsLostError(CallFailedError):
    """What a call was given, or what it answered, went with its node. The same call would fail again."""


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


def raised_by(error: BaseException) -> BaseException:
    """What the method itself raised; through several actors, where one waited for another."""
    cause = error
    while isinstance(cause, RayTaskError):
        cause = cause.cause
    return cause


def call_error(worker_id: str, error: Exception) -> BicotError:
    """What a failed call means, of whatever waiting for its answer raised.

    The method's own error where it is one of `PASSED_ON`; WorkerLostError where the worker is gone; ObjectsLostError
    and CallFailedError where it is not.
    """
    own = raised_by(error)
    if isinstance(own, WorkerLostError):
        return WorkerLostError(f"{worker_id} died during a call: {own}")
    if isinstance(own, PASSED_ON):
        return own
    if isinstance(own, ObjectLostError):
        return ObjectsLostError(f"{worker_id}: what it was given or has answered is lost with its node: {told(error)}")
    if isinstance(error, RayError) and not isinstance(error, RayTaskError):
        return WorkerLostError(f"{worker_id} died during a call: {told(error)}")
    return CallFailedError(f"{worker_id} failed in a call: {told(error)}")


def start_error(kind: str, worker_id: str, error: Exception) -> BicotError:
    """What ends a pool whose worker could not start: with the worker's name, and its node's where that is known, as
    what is wrong may be wrong only there."""
    own = raised_by(error)
    if isinstance(own, RunError):
        return own
    if isinstance(own, BicotError) and not isinstance(own, WorkerLostError | CallFailedError):
        named: BicotError = type(own)(f"{worker_id}: {told(error)}")
    else:
        named = RunError(f"no {kind} worker could be started; {worker_id}: {told(error)}")
    named.__cause__ = error
    return named


def first_line(error: BaseException | None) -> str:
    """The first line of an error's own message."""
    own = None if error is None else raised_by(error)
    text = str(own).strip()
    return text.splitlines()[0] if text else type(own).__name__


def told(error: BaseException) -> str:
    """An error in one line: which, why, and on which node, as far as that is known.

    Of an actor that could not be made Ray says what it is in the first line, and why in the last one.
    """
    own = raised_by(error)
    lines = [line.strip() for line in _ANSI.sub("", str(own)).splitlines() if line.strip()]
    reason = lines[0] if lines else type(own).__name__
    if isinstance(own, ActorDiedError) and lines:
        named = [line for line in lines if line.startswith(_CAUSE)]
        reason = (named[0] if named else lines[-1]).partition(_GUESSES)[0]
    elif lines and not isinstance(own, BicotError | RayError):
        reason = f"{type(own).__name__}: {reason}"
    address = node_of(error)
    return reason if address is None or address in reason else f"{reason} (on node {address})"


def node_of(error: BaseException) -> str | None:
    """Address of the node that an error comes from; None when it does not say."""
    found = _ADDRESS.search(str(error)) if isinstance(error, RayError) else None
    return None if found is None else found[1]


def own_error(error: BaseException) -> BaseException:
    """bicot's own error for one of Ray's; any other as it is."""
    if not isinstance(error, RayError):
        return error
    own = raised_by(error)
    return own if isinstance(own, BicotError) else RunError(f"an actor of the run failed: {told(error)}")
