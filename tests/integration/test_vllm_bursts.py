"""Several tokens a row in one step of vLLM's scheduler sample what one token a row samples, in fewer steps.

vLLM's engine core, with its scheduler and runner, runs in one loop here, without a front end: so no timing decides when
a request joins, and both ways can be compared bit for bit.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pytest

from cluster.benchmarks.isolation import isolated
from configs.schema import RolloutConfig
from rollout.engine import EngineSettings, SequenceRequest
from rollout.janus_checkpoint import JanusCheckpoint
from rollout.records import Float32Array
from tests.tiny_models import tiny_janus_folder

pytestmark = pytest.mark.timeout(300)

CONFIG = RolloutConfig(
    max_prompt_tokens=64,
    max_cot_tokens=48,
    max_num_seqs=12,
    kv_cache_gib=0.25,
    enforce_eager=True,
    threads_per_worker=1,
)
NUM_IMAGE_TOKENS = 64
PROMPT = [2, 20, 21, 22, 23]


@dataclass
class Sampled:
    tokens: dict[str, list[int]] = field(default_factory=dict)
    logprobs: dict[str, Float32Array] = field(default_factory=dict)
    """Of requests that have ended."""
    num_steps: int = 0
    num_preemptions: int = 0


class Core:
    """vLLM's engine core in this process."""

    def __init__(self, folder: Path, guidance_scale: float) -> None:
        from rollout.vllm.plugin import register
        from rollout.vllm.settings import engine_arguments, environment

        config = CONFIG.model_copy(update={"guidance_scale": guidance_scale})
        os.environ.update(environment(config))
        register()
        from vllm import AsyncEngineArgs
        from vllm.v1.engine.core import EngineCore
        from vllm.v1.executor.abstract import Executor

        self.checkpoint = JanusCheckpoint.from_pretrained(str(folder), None, weights=True)
        arguments = engine_arguments(EngineSettings(str(folder), config), self.checkpoint)
        of_vllm = AsyncEngineArgs(**arguments).create_engine_config()
        self.core = EngineCore(of_vllm, Executor.get_class(of_vllm), log_stats=True)

    def add(self, name: str, draws: bool, seed: int, length: int = 0, after: Sequence[int] = ()) -> None:
        """after: tokens that another request has sampled with the same seed."""
        from vllm.v1.request import Request

        from rollout.vllm.requests import sampling_params

        ids = [*PROMPT, 24 + seed % 8, *((self.checkpoint.special_ids.begin_of_image,) if draws else ()), *after]
        new = length or (NUM_IMAGE_TOKENS if draws else CONFIG.max_cot_tokens)
        request = SequenceRequest(name, "image" if draws else "cot", np.array(ids, np.int32), new, 1.0, 5.0, seed)
        params = sampling_params(request, self.checkpoint)
        hasher, salt = self.core.request_block_hasher, request.phase
        self.core.add_request(
            Request(name, ids, params, None, arrival_time=float(seed), cache_salt=salt, block_hasher=hasher)
        )

    def run(self, at_step: Callable[[Sampled], None] = lambda _: None, sampled: Sampled | None = None) -> Sampled:
        """Until nothing is left to do; `at_step` is called before each step. sampled: what came before."""
        sampled = sampled or Sampled()
        while self.core.scheduler.has_requests():
            at_step(sampled)
            outputs, executed = self.core.step()
            self.core.post_step(executed)
            sampled.num_steps += 1
            for of_client in outputs.values():
                for output in of_client.outputs:
                    sampled.tokens.setdefault(output.request_id, []).extend(output.new_token_ids)
                    if output.new_logprobs is not None:
                        sampled.logprobs[output.request_id] = output.new_logprobs.logprobs
        return sampled


def pictures(core: Core) -> Sampled:
    for row in range(8):
        core.add(f"picture {row}", draws=True, seed=row)
    return core.run()


def plans_and_pictures(core: Core) -> Sampled:
    """More than the batch holds; a picture joins as its plan ends, and lengths differ."""
    for row in range(16):
        core.add(f"plan {row}", draws=False, seed=row)
    begun: set[str] = set()

    def join(sampled: Sampled) -> None:
        for name in sampled.logprobs.keys() - begun:
            begun.add(name)
            kind, _, row = name.partition(" ")
            if kind == "plan":
                core.add(f"picture {row}", draws=True, seed=100 + int(row), length=30 + int(row))

    return core.run(join)


def with_little_cache(core: Core) -> Sampled:
    """So few blocks are left that requests are preempted."""
    pool = core.core.scheduler.kv_cache_manager.block_pool
    held = pool.get_new_blocks(pool.get_num_free_blocks() - 20)
    try:
        for row in range(8):
            core.add(f"picture {row}", draws=True, seed=row)
        requests = [core.core.scheduler.requests[f"picture {row}"] for row in range(8)]
        sampled = core.run()
        sampled.num_preemptions = sum(request.num_preemptions for request in requests)
        return sampled
    finally:
        pool.free_blocks(held)


def with_an_abort_and_a_pause(core: Core) -> Sampled:
    from vllm.v1.core.sched.interface import PauseState

    for row in range(4):
        core.add(f"picture {row}", draws=True, seed=row)
    scheduler = core.core.scheduler

    def disturb(sampled: Sampled) -> None:
        if sampled.num_steps == 2:
            core.core.abort_requests(["picture 0"])
        if sampled.num_steps == 3:
            scheduler.set_pause_state(PauseState.PAUSED_ALL)

    sampled = core.run(disturb)
    assert not sampled.logprobs
    scheduler.reset_prefix_cache(reset_running_requests=True)  # as new weights do
    scheduler.set_pause_state(PauseState.UNPAUSED)
    sampled = core.run(sampled=sampled)
    del sampled.tokens["picture 0"]
    return sampled


def after_others_that_ended_beside_them(core: Core) -> Sampled:
    """Rows end one after the other within a step. What they leave in the prefix cache is read by those that come."""
    for row in range(12):
        core.add(f"picture {row}", draws=True, seed=row, length=20 + row)  # the cache's first block is full at 26
    ended = core.run()
    for row in range(12):
        core.add(f"more of {row}", draws=True, seed=row, length=4, after=ended.tokens[f"picture {row}"])
    return core.run(sampled=ended)


SCENARIOS = (
    pictures,
    plans_and_pictures,
    with_little_cache,
    with_an_abort_and_a_pause,
    after_others_that_ended_beside_them,
)


def _run_all(folder: Path, guidance_scale: float) -> dict[str, tuple[Sampled, Sampled]]:
    """By scenario: with one token a row in each step, and as shipped."""
    import rollout.vllm.scheduler as of_engines

    core, shipped = Core(folder, guidance_scale), of_engines.BURST_TOKENS
    results = {}
    for scenario in SCENARIOS:
        both = []
        for of_engines.BURST_TOKENS in (1, shipped):
            core.core.scheduler.reset_prefix_cache()
            both.append(scenario(core))
        results[scenario.__name__] = (both[0], both[1])
    return results


@pytest.fixture(scope="module", params=[5.0, 1.0], ids=["two streams", "one stream"])
def results(request: pytest.FixtureRequest) -> dict[str, tuple[Sampled, Sampled]]:
    return isolated(1, _run_all, tiny_janus_folder(num_kv_heads=2), request.param)


@pytest.mark.parametrize("scenario", [scenario.__name__ for scenario in SCENARIOS])
def test_many_tokens_a_step_are_the_tokens_and_logprobs_of_one_a_step(
    results: dict[str, tuple[Sampled, Sampled]], scenario: str
) -> None:
    one, many = results[scenario]
    assert many.num_steps < one.num_steps
    assert many.tokens == one.tokens
    assert many.logprobs.keys() == one.logprobs.keys() == many.tokens.keys()
    for name, logprobs in one.logprobs.items():
        assert len(logprobs) == len(many.tokens[name])
        np.testing.assert_allclose(many.logprobs[name], logprobs, rtol=0, atol=1e-5)


def test_a_step_of_pictures_alone_gives_eight_tokens_a_row(results: dict[str, tuple[Sampled, Sampled]]) -> None:
    one, many = (sampled.num_steps for sampled in results["pictures"])
    # The prompt's step gives the first token, and the last step tells the runner that requests have ended.
    assert (one, many) == (NUM_IMAGE_TOKENS + 1, 1 + (NUM_IMAGE_TOKENS - 1 + 7) // 8 + 1)


def test_without_room_for_tokens_to_come_nobody_is_preempted_more_often(
    results: dict[str, tuple[Sampled, Sampled]],
) -> None:
    one, many = (sampled.num_preemptions for sampled in results["with_little_cache"])
    assert 0 < many <= one
