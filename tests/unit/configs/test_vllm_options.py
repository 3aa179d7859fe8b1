"""What of vLLM can be set, and what is refused with its reason."""

from __future__ import annotations

from pathlib import Path

import pytest

import configs
from configs.errors import ConfigError
from configs.load import load_config
from configs.worker_sections import _ELSEWHERE, _INEXACT, VllmOptions

SHAPES = Path(configs.__file__).parent / "shapes_cpu.yaml"
RECOMPUTED = ["algorithm.old_logprobs=recompute", "algorithm.mismatch_correction=tis"]


def test_what_is_set_is_handed_on_and_nothing_else() -> None:
    config = load_config(SHAPES, ["rollout.vllm.block_size=64", "rollout.vllm.enable_chunked_prefill=false"])
    assert config.rollout.vllm.arguments == {"block_size": 64, "enable_chunked_prefill": False}


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("rollout.vllm.block_sise=64", "block_sise"),
        ("rollout.vllm.quantization=fp8", "break the exactness .* not rounded"),
        ("rollout.vllm.speculative_config=x", "break the exactness .* knows no guidance"),
        ("rollout.vllm.max_num_seqs=8", r"decided by rollout\.max_num_seqs"),
        ("rollout.vllm.block_size=yes", "block_size"),
        ("rollout.vllm.block_size=48", r"block_size 48 is no multiple of 32"),
        ("rollout.vllm.kv_cache_dtype=fp8", r"mismatch_correction to tis"),
    ],
)
def test_another_name_or_value_is_refused_with_the_reason(override: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        load_config(SHAPES, [override])


def test_a_rounded_cache_is_let_through_with_a_correction() -> None:
    config = load_config(SHAPES, ["rollout.vllm.kv_cache_dtype=fp8", *RECOMPUTED])
    assert config.rollout.vllm.rounds_kv_cache


def test_vllm_knows_every_name() -> None:
    engine = pytest.importorskip("vllm.engine.arg_utils")
    known = set(engine.AsyncEngineArgs.__dataclass_fields__)
    assert {*VllmOptions.model_fields, *_ELSEWHERE, *_INEXACT} <= known
