"""The sampler of vLLM's newer model runner: which settings a row of a step has, and what it gives back.

`tests/integration/test_second_runner.py` runs it within vLLM.
"""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from vllm import SamplingParams

from rollout.vllm.model import second_runner
from rollout.vllm.model.row_settings import extra_args
from rollout.vllm.model.sampler import Batch, Sampled
from rollout.vllm.model.second_runner import RunnerSampler


class RecordingModel:
    """Samples a row's place in its sequence, and keeps the batches that it was given."""

    def __init__(self) -> None:
        self.batches: list[Batch] = []
        self.samples_processed: bool | None = None

    def token_sampler(self, sampled_logprobs: bool) -> Any:
        self.samples_processed = sampled_logprobs
        return self._sample

    def _sample(self, hidden: torch.Tensor, batch: Batch, positions: torch.Tensor) -> Sampled:
        self.batches.append(batch)
        return Sampled(positions, torch.stack([-positions.float(), torch.full((len(positions),), torch.nan)], dim=1))


def input_batch(places: list[int], seq_lens: list[int]) -> Any:
    return SimpleNamespace(
        num_reqs=len(places),
        idx_mapping_np=np.array(places),
        idx_mapping=torch.tensor(places),
        seq_lens=torch.tensor([*seq_lens, 0, 0], dtype=torch.int32),  # padded, as the runner's are
        cu_num_logits=torch.arange(len(places) + 1),
    )


def slow_num_sampled(
    ones: torch.Tensor, seq_lens: torch.Tensor, _: Any, places: torch.Tensor, prefill_len: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    sampled = [int(seq_lens[row] >= prefill_len[place]) for row, place in enumerate(places.tolist())]
    return torch.tensor(sampled), torch.zeros(len(sampled))


@pytest.fixture
def model() -> RecordingModel:
    return RecordingModel()


@pytest.fixture
def sampler(model: RecordingModel, monkeypatch: pytest.MonkeyPatch) -> RunnerSampler:
    monkeypatch.setattr(second_runner, "get_num_sampled_and_rejected", slow_num_sampled)  # a kernel in Triton
    own = SimpleNamespace(
        add_request=None,
        apply_staged_writes=None,
        logprobs_mode="raw_logprobs",
        penalties_state=object(),
        req_states=SimpleNamespace(prefill_len=SimpleNamespace(gpu=torch.tensor([5, 5, 9, 5]))),
    )
    return RunnerSampler(own, model)


def params(seed: int, guidance_scale: float | None, temperature: float = 1.0) -> SamplingParams:
    return SamplingParams(temperature=temperature, extra_args=extra_args(seed, guidance_scale))


def rows_that_draw(batch: Batch) -> list[int]:
    if batch.drawing is None:
        return []
    return list(range(batch.size)) if batch.drawing.rows is None else batch.drawing.rows.tolist()


def test_a_row_has_the_settings_of_the_request_in_its_place(sampler: RunnerSampler, model: RecordingModel) -> None:
    for place, scale in ((0, None), (2, 5.0), (3, None)):
        sampler.add_request(place, params(place, scale))
    output = sampler(torch.zeros(3, 4), input_batch([3, 2, 0], [7, 8, 9]))
    assert rows_that_draw(model.batches[-1]) == [1]
    assert output.sampled_token_ids.tolist() == [[7], [8], [9]]
    assert output.num_sampled.tolist() == [1, 0, 1]  # the picture's prompt of nine tokens is not read to its end
    assert output.logprobs_tensors is not None
    assert output.logprobs_tensors.logprobs[:, 0].tolist() == [-7, -8, -9]


def test_rows_are_settled_anew_when_they_change_and_when_a_place_changes_hands(
    sampler: RunnerSampler, model: RecordingModel
) -> None:
    sampler.add_request(0, params(1, None))
    sampler.add_request(1, params(2, 5.0))
    for places in ([0, 1], [0, 1], [1, 0]):
        sampler(torch.zeros(2, 4), input_batch(places, [6, 6]))
    first, same, turned = model.batches
    assert first is same
    assert (rows_that_draw(first), rows_that_draw(turned)) == ([1], [0])
    sampler.add_request(0, params(3, 5.0))  # the plan has ended, and a picture has its place
    sampler(torch.zeros(2, 4), input_batch([1, 0], [6, 6]))
    assert rows_that_draw(model.batches[-1]) == [0, 1]


def test_a_trial_run_before_any_request_writes(sampler: RunnerSampler, model: RecordingModel) -> None:
    sampler(torch.zeros(2, 4), input_batch([0, 1], [1, 1]))
    assert model.batches[-1].drawing is None
