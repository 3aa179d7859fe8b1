"""vLLM's scheduler, with the log-probabilities of a request kept beside it until the request ends.

    sampler ─► [B, 2] a step ─► held by request ─► with the last token, all at once ─► rollout.vllm.requests

vLLM sends three small arrays for each request and step to the process that asked: packing and unpacking them takes
twenty times as long as the rest of a message. Nobody reads them before the request ends. Tokens still travel as they
are sampled, since vLLM counts weight versions by them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
from vllm.v1.core.sched.async_scheduler import AsyncScheduler
from vllm.v1.core.sched.interface import PauseState
from vllm.v1.core.sched.scheduler import Scheduler
from vllm.v1.outputs import LogprobsLists

BURST_TOKENS = 8
"""At most so many: by then the rest of a step is an eighth of what it was. Fewer than a block of the KV cache has."""
_TO_BE_SAMPLED = -1


class _Holding:
    """Above one of vLLM's schedulers, in which a step's tokens are told of by `update_from_output`."""

    def __init__(self, *arguments: Any, **keywords: Any) -> None:
        super().__init__(*arguments, **keywords)
        self._held: dict[str, list[list[float]]] = {}
        """By request, [number of tokens so far, 2]; a preempted request keeps its own, as it keeps its tokens."""

    def update_from_output(self, scheduler_output: Any, model_runner_output: Any) -> Any:
        update: Callable[[Any, Any], Any] = super().update_from_output  # type: ignore[misc]
        logprobs = model_runner_output.logprobs
        if logprobs is None:
            return update(scheduler_output, model_runner_output)
        rows, row_of = logprobs.logprobs.tolist(), model_runner_output.req_id_to_index
        starts = logprobs.cu_num_generated_tokens  # None: one token a row
        model_runner_output.logprobs = None
        outputs_of_clients = update(scheduler_output, model_runner_output)
        for of_client in outputs_of_clients.values():
            for output in of_client.outputs:
                request_id = output.request_id
                if output.new_token_ids:
                    row = row_of[request_id]
                    first = row if starts is None else starts[row]
                    self._held.setdefault(request_id, []).extend(rows[first : first + len(output.new_token_ids)])
                if output.finish_reason is not None and (held := self._held.pop(request_id, None)):
                    output.new_logprobs = _all_at_once(held)
        return outputs_of_clients

    def finish_requests(self, request_ids: str | Iterable[str] | None, finished_status: Any) -> Any:
        """Called for those that end from outside; nobody waits for their log-probabilities."""
        finished = super().finish_requests(request_ids, finished_status)  # type: ignore[misc]
        for request in finished:
            self._held.pop(request.request_id, None)
        return finished


class HoldingScheduler(_Holding, Scheduler):
    """For engines that schedule no step ahead."""


class BurstScheduler(HoldingScheduler):
    """For engines on a CPU: up to `BURST_TOKENS` tokens a row in one step, by `rollout.vllm.model.cpu.bursts`.

    There is no such step while a request can join the batch or is in its prompt, and a row that ends does not end it: a
    step for each end would cost more than the few tokens for which its place stays empty. So nothing waits longer than
    for these: the next request, new weights, an abort.
    """

    def schedule(self, throttle_prefills: bool = False) -> Any:
        if (length := self._tokens_a_row()) > 1:
            for request in self.running:
                lacking = request.max_tokens - request.num_output_tokens
                request.spec_token_ids = [_TO_BE_SAMPLED] * (min(length, lacking) - 1)
        return super().schedule(throttle_prefills)

    def make_spec_decoding_stats(self, *_: Any, **__: Any) -> None:
        """Nothing is speculated."""

    def _tokens_a_row(self) -> int:
        running, (_, num_waiting) = self.running, self.get_request_counts()
        if (
            not running
            or self._pause_state == PauseState.PAUSED_ALL
            or (num_waiting and len(running) < self.max_num_running_reqs)
            # A block for each row is all that it can need. Nobody is preempted for the sake of tokens to come.
            or self.kv_cache_manager.block_pool.get_num_free_blocks() < len(running)
            or any(_is_in_prompt(request) for request in running)
        ):
            return 1
        return min(BURST_TOKENS, self.max_num_scheduled_tokens // len(running))


def _is_in_prompt(request: Any) -> bool:
    return request.num_tokens - request.num_computed_tokens != 1 or not request.num_output_tokens


class HoldingAsyncScheduler(_Holding, AsyncScheduler):
    """For engines that schedule a step while the one before it is computed. A token that a finished or preempted
    request drops has no output, and so leaves nothing here."""


def _all_at_once(held: list[list[float]]) -> LogprobsLists:
    """As vLLM's front end takes them; of the columns' token ids and of ranks nobody reads anything."""
    values = np.array(held, dtype=np.float32)
    return LogprobsLists(np.zeros(values.shape, np.int32), values, np.zeros(len(values), np.int32))
