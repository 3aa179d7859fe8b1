"""Log-probabilities wait beside vLLM's scheduler for the end of their request. vLLM's own part is given."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

pytest.importorskip("vllm")

from vllm.v1.core.sched.async_scheduler import AsyncScheduler
from vllm.v1.core.sched.scheduler import Scheduler
from vllm.v1.engine import EngineCoreOutput, EngineCoreOutputs, FinishReason
from vllm.v1.outputs import LogprobsLists

from rollout.vllm.scheduler import HoldingAsyncScheduler, HoldingScheduler

Holding = HoldingScheduler | HoldingAsyncScheduler


@pytest.fixture(params=[(HoldingScheduler, Scheduler), (HoldingAsyncScheduler, AsyncScheduler)], ids=["each", "ahead"])
def scheduler(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Holding:
    holding, vllms = request.param
    assert issubclass(holding, vllms)
    monkeypatch.setattr(vllms, "__init__", lambda self: None)
    monkeypatch.setattr(vllms, "update_from_output", given)
    monkeypatch.setattr(vllms, "finish_requests", lambda self, ids, status: [SimpleNamespace(request_id=ids)])
    return holding()


def given(scheduler: Scheduler, outputs: list[EngineCoreOutput], runner_output: Any) -> dict[int, EngineCoreOutputs]:
    assert runner_output.logprobs is None, "vLLM would slice and send them"
    return {0: EngineCoreOutputs(outputs=outputs)}


def step(scheduler: Holding, rows: list[str], outputs: list[EngineCoreOutput], number: int) -> list[Any]:
    """One step in which row i gives the log-probabilities (-number, -i)."""
    values = np.array([[-number, -row] for row in range(len(rows))], np.float32)
    logprobs = LogprobsLists(np.zeros(values.shape, np.int32), values, np.zeros(len(values), np.int32))
    output = SimpleNamespace(logprobs=logprobs, req_id_to_index={name: row for row, name in enumerate(rows)})
    return scheduler.update_from_output(outputs, output)[0].outputs


def token(request_id: str, finish_reason: FinishReason | None = None) -> EngineCoreOutput:
    return EngineCoreOutput(request_id=request_id, new_token_ids=[7], finish_reason=finish_reason)


def test_they_come_with_the_last_token_in_their_order_whatever_row_they_were_in(scheduler: Holding) -> None:
    assert step(scheduler, ["a", "b"], [token("a"), token("b")], 1)[0].new_logprobs is None
    step(scheduler, ["b"], [token("b")], 2)  # a is preempted
    step(scheduler, ["b", "a"], [token("b")], 3)  # a reads a part of its context again: no token
    a, b = step(scheduler, ["b", "a"], [token("a", FinishReason.LENGTH), token("b")], 4)
    assert b.new_logprobs is None
    assert a.new_logprobs.logprobs.tolist() == [[-1, 0], [-4, -1]]
    (b,) = step(scheduler, ["b"], [token("b", FinishReason.STOP)], 5)
    assert b.new_logprobs.logprobs.tolist() == [[-1, -1], [-2, 0], [-3, 0], [-4, 0], [-5, 0]]


def test_those_of_an_aborted_request_are_not_kept_for_the_next_one_of_its_name(scheduler: Holding) -> None:
    step(scheduler, ["a"], [token("a")], 1)
    scheduler.finish_requests("a", None)
    (a,) = step(scheduler, ["a"], [token("a", FinishReason.LENGTH)], 2)
    assert a.new_logprobs.logprobs.tolist() == [[-2, 0]]
