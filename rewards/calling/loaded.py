"""A reward that is made: one way to call whatever the user wrote."""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from configs.errors import RewardError
from rewards.calling.answers import Answer, read_answers
from rollout.records import Prompt, Score, UInt8Array

Applies = Callable[[Prompt], bool]


class LoadedReward:
    """Calls one reward, in one thread.

    is_group_wise: it sees the pictures of one prompt together, and a call holds no others.
    reads_plans: it is given the plan that each picture was drawn by.
    is_random: it may score the same picture differently another time.
    prepares: it has a method `prepare`, for which another thread may be used.
    """

    def __init__(self, made: Any, options: Mapping[str, Any], applies: Applies | None = None) -> None:
        """made: an object with `score_group` or `score`, or a callable, which is given `options`, too."""
        self.is_group_wise = hasattr(made, "score_group")
        self.is_random = bool(getattr(made, "is_random", False))
        self._made = made
        self._applies = applies
        is_object = self.is_group_wise or hasattr(made, "score")
        method = "score_group" if self.is_group_wise else "score"
        self._score: Callable[..., Any] = getattr(made, method) if is_object else made
        self._options = {} if is_object else dict(options)
        self.reads_plans = takes(self._score, "plans")
        self.prepares = is_object and not self.is_group_wise and hasattr(made, "prepare")
        self._needs_plans = self.reads_plans and _is_required(self._score, "plans")
        self._runner: asyncio.Runner | None = None

    def prepare(self, pictures: UInt8Array, prompts: Sequence[Prompt]) -> Any:
        """What `score` of the same pictures may be given as `prepared`; None where the reward applies to none."""
        shown = [i for i, prompt in enumerate(prompts) if self.applies_to(prompt)]
        return self._made.prepare(pictures[shown], [prompts[i] for i in shown]) if shown else None

    def score(
        self,
        pictures: UInt8Array,
        prompts: Sequence[Prompt],
        plans: Sequence[str] | None = None,
        prepared: Any = None,
    ) -> list[Answer]:
        """One Score or RewardError a picture, in order.

        pictures: uint8 [B, height, width, 3], RGB; prompts: the B prompts they were drawn for, of a group-wise reward
        all the same one; plans: the B plans, None where there are none; prepared: by `prepare` of the same pictures, or
        None. What the reward does not apply to is not shown to it.
        Raises WrongAnswerError, and whatever the reward raises.
        """
        shown = [i for i, prompt in enumerate(prompts) if self.applies_to(prompt)]
        answers: list[Answer] = [Score(None)] * len(prompts)
        if not shown:
            return answers
        given: list[Any] = [pictures if len(shown) == len(prompts) else pictures[shown]]
        given.append(prompts[0] if self.is_group_wise else [prompts[i] for i in shown])
        more: dict[str, Any] = {} if prepared is None else {"prepared": prepared}
        if self.reads_plans and plans is not None:
            more["plans"] = [plans[i] for i in shown]
        elif self._needs_plans:
            raise RewardError("it reads the plans that pictures were drawn by, and these pictures have none")
        returned = self._wait_for(self._score(*given, **more, **self._options))
        for i, answer in zip(shown, read_answers(returned, len(shown)), strict=True):
            answers[i] = answer
        return answers

    def applies_to(self, prompt: Prompt) -> bool:
        """False where the reward says, without a picture, that it has nothing to say of this prompt."""
        return self._applies is None or self._applies(prompt)

    def close(self) -> None:
        """Let the reward end what it has begun: threads, connections. To be called where it was called."""
        try:
            close = getattr(self._made, "close", None)
            if callable(close):
                self._wait_for(close())
        finally:
            if self._runner is not None:
                self._runner.close()

    def _wait_for(self, returned: Any) -> Any:
        """What a coroutine returns, or the value itself. One event loop for the reward's life: connections need it."""
        if not inspect.isawaitable(returned):
            return returned
        if self._runner is None:
            self._runner = asyncio.Runner()
        return self._runner.run(_finish(returned))


async def _finish(awaitable: Any) -> Any:
    return await awaitable


def takes(function: Callable[..., Any], parameter: str) -> bool:
    """Whether a callable has a parameter of this name. False where its signature cannot be read."""
    try:
        return parameter in inspect.signature(function).parameters
    except (TypeError, ValueError):
        return False


def _is_required(function: Callable[..., Any], parameter: str) -> bool:
    return inspect.signature(function).parameters[parameter].default is inspect.Parameter.empty
