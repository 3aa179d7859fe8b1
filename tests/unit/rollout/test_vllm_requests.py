"""What vLLM answers is taken apart, and an answer that lacks something is no trajectory."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest

from configs.errors import RolloutError
from rollout.engine import SequenceRequest
from rollout.janus_checkpoint import JanusCheckpoint
from rollout.vllm.requests import result_of, sampling_params
from tests.tiny_models import tiny_janus_folder


@pytest.fixture(scope="module")
def checkpoint() -> JanusCheckpoint:
    return JanusCheckpoint(tiny_janus_folder())


def request(phase: str) -> SequenceRequest:
    return SequenceRequest("r-1", phase, np.array([1, 4], np.int32), 3, 0.7, 5.0, seed=9)


def answer(token_ids: list[int], **changed: object) -> SimpleNamespace:
    spans = [SimpleNamespace(version="2", start=0, end=1), SimpleNamespace(version="3", start=1, end=len(token_ids))]
    logprobs = SimpleNamespace(logprobs=[-0.5, -2.0] * len(token_ids))
    return SimpleNamespace(
        **{"token_ids": token_ids, "logprobs": logprobs, "finish_reason": "length", "weight_versions": spans, **changed}
    )


def test_image_tokens_are_counted_from_the_end_of_the_text_vocabulary(checkpoint: JanusCheckpoint) -> None:
    first = checkpoint.text_vocab_size
    drawn = result_of(request("image"), answer([first, first + 5]), checkpoint)
    assert drawn.token_ids.tolist() == [0, 5]
    assert drawn.logprobs.tolist() == [-0.5, -0.5]
    assert drawn.unconditional_logprobs is not None
    assert drawn.unconditional_logprobs.tolist() == [-2.0, -2.0]
    assert result_of(request("cot"), answer([7, 8]), checkpoint).token_ids.tolist() == [7, 8]


def test_each_token_knows_the_weight_version_that_sampled_it(checkpoint: JanusCheckpoint) -> None:
    drawn = result_of(request("cot"), answer([7, 8, 9]), checkpoint)
    assert drawn.weight_versions.tolist() == [2, 3, 3]
    assert (drawn.oldest_weight_version, drawn.newest_weight_version) == (2, 3)


def test_text_has_no_unconditional_logprobs(checkpoint: JanusCheckpoint) -> None:
    without = answer([7, 8], logprobs=SimpleNamespace(logprobs=[-0.5, np.nan, -0.6, np.nan]))
    assert result_of(request("cot"), without, checkpoint).unconditional_logprobs is None


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"finish_reason": "abort"}, "ended request r-1 early: abort"),
        ({"finish_reason": None}, "ended request r-1 early: no reason given"),
        ({"logprobs": None}, "gave 0 log-probabilities and 2 weight versions for the 2 tokens of request r-1"),
        ({"logprobs": SimpleNamespace(logprobs=[-1.0, -2.0])}, "gave 1 log-probabilities"),
        ({"weight_versions": None}, "2 log-probabilities and 0 weight versions"),
        ({"weight_versions": [SimpleNamespace(version="2", start=0, end=1)]}, "2 log-probabilities and 1 weight ver"),
    ],
)
def test_an_answer_that_lacks_something_is_an_error(
    checkpoint: JanusCheckpoint, changed: dict[str, object], message: str
) -> None:
    with pytest.raises(RolloutError, match=message):
        result_of(request("cot"), answer([7, 8], **changed), checkpoint)


def test_only_a_picture_is_guided_and_only_a_cot_ends_with_eos(checkpoint: JanusCheckpoint) -> None:
    picture, cot = (sampling_params(request(phase), checkpoint) for phase in ("image", "cot"))
    assert picture.extra_args == {"seed": 9, "guidance_scale": 5.0}
    assert not picture.stop_token_ids
    assert cot.extra_args == {"seed": 9}
    assert cot.stop_token_ids == [checkpoint.special_ids.eos]
