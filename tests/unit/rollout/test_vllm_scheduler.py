"""Log-probabilities wait beside vLLM's scheduler for the end of their request, and rows get several tokens a step where
nothing waits for it. vLLM's own part is given."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

pytest.importorskip("vllm")

from vllm.v1.core.sched.async_scheduler import AsyncScheduler
from vllm.v1.core.sched.interface import PauseState
from vllm.v1.core.sched.scheduler import Scheduler
from vllm.v1.engine import EngineCoreOutput, EngineCoreOutputs, FinishReason
from vllm.v1.outputs import LogprobsLists

from rollout.vllm.scheduler import BURST_TOKENS, BurstScheduler, HoldingAsyncScheduler, HoldingScheduler

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


def test_of_several_tokens_a_row_each_keeps_its_own(scheduler: Holding) -> None:
    values = np.arange(8, dtype=np.float32).reshape(4, 2)  # two a row
    logprobs = LogprobsLists(np.zeros(values.shape, np.int32), values, np.zeros(4, np.int32), [0, 2, 4])
    runner_output = SimpleNamespace(logprobs=logprobs, req_id_to_index={"b": 0, "a": 1})
    outputs = [
        EngineCoreOutput(request_id="a", new_token_ids=[7], finish_reason=FinishReason.LENGTH),
        EngineCoreOutput(request_id="b", new_token_ids=[7, 8], finish_reason=FinishReason.LENGTH),
    ]
    a, b = scheduler.update_from_output(outputs, runner_output)[0].outputs
    assert a.new_logprobs.logprobs.tolist() == [[4, 5]]  # vLLM took one of its two
    assert b.new_logprobs.logprobs.tolist() == [[0, 1], [2, 3]]


def running(max_tokens: int = 64, num_output_tokens: int = 3, left_of_prompt: int = 0) -> SimpleNamespace:
    return SimpleNamespace(
        max_tokens=max_tokens,
        num_output_tokens=num_output_tokens,
        num_tokens=20,
        num_computed_tokens=19 - left_of_prompt,
        spec_token_ids=[],
    )


@pytest.mark.parametrize(
    ("change", "tokens_of_rows"),
    [
        ({}, [BURST_TOKENS, BURST_TOKENS]),
        ({"running": [running(), running(num_output_tokens=59)]}, [BURST_TOKENS, 5]),  # the second ends after five
        ({"running": [running(num_output_tokens=63)]}, [1]),
        ({"running": [running(), running(left_of_prompt=4)]}, [1, 1]),
        ({"running": [running(), running(num_output_tokens=0)]}, [1, 1]),  # its prompt's last token is left
        ({"waiting": 1}, [1, 1]),
        ({"waiting": 1, "max_num_running_reqs": 2}, [BURST_TOKENS, BURST_TOKENS]),  # it cannot join
        ({"free_blocks": 1}, [1, 1]),
        ({"_pause_state": PauseState.PAUSED_ALL}, [1, 1]),
        ({"max_num_scheduled_tokens": 7}, [3, 3]),
    ],
)
def test_rows_get_many_tokens_a_step_unless_something_waits_for_it(
    monkeypatch: pytest.MonkeyPatch, change: dict[str, Any], tokens_of_rows: list[int]
) -> None:
    monkeypatch.setattr(Scheduler, "__init__", lambda self: None)
    monkeypatch.setattr(Scheduler, "schedule", lambda self, throttle_prefills: throttle_prefills)
    given: dict[str, Any] = {
        "running": [running(), running()],
        "waiting": 0,
        "free_blocks": 2,
        "max_num_running_reqs": 8,
    } | change
    scheduler = BurstScheduler()
    pool = SimpleNamespace(get_num_free_blocks=lambda: given["free_blocks"])
    parts = {"max_num_scheduled_tokens": 8192, "_pause_state": PauseState.UNPAUSED} | given
    for name, part in {**parts, "kv_cache_manager": SimpleNamespace(block_pool=pool)}.items():
        monkeypatch.setattr(scheduler, name, part, raising=False)
    monkeypatch.setattr(scheduler, "get_request_counts", lambda: (len(given["running"]), given["waiting"]))
    assert scheduler.schedule(True) is True
    assert [len(request.spec_token_ids) + 1 for request in given["running"]] == tokens_of_rows
