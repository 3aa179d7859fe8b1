"""An engine is refused before it starts on a vLLM that lacks what the engine is built on."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

import pytest
import vllm
from vllm import envs, triton_utils
from vllm.model_executor.models.llama import LlamaMLP
from vllm.v1.engine.async_llm import AsyncLLM

from configs.errors import ConfigError, LibraryError
from configs.schema import RolloutConfig
from rollout.engine import EngineSettings
from rollout.janus_checkpoint import JanusCheckpoint
from rollout.vllm import VllmEngine, layout
from rollout.vllm.layout import check_arguments, check_vllm
from rollout.vllm.settings import engine_arguments, environment
from rollout.vllm.weights import BicotWeightEngine
from tests.tiny_models import tiny_janus_folder

CONFIG = RolloutConfig(max_prompt_tokens=32, max_cot_tokens=32)


@pytest.mark.parametrize("gpus", [0.0, 1.0])
def test_the_installed_vllm_has_all_that_is_used_of_it(gpus: float):
    config = CONFIG.model_copy(update={"gpus_per_worker": gpus})
    check_vllm(environment(config))
    folder = tiny_janus_folder()
    check_arguments(engine_arguments(EngineSettings(str(folder), config), JanusCheckpoint(folder)))


@pytest.mark.parametrize(
    ("changed", "scheduler"),
    [
        ({}, "BurstScheduler"),
        ({"enforce_eager": False}, "HoldingScheduler"),  # a burst takes the forward pass that is not compiled
        ({"model_runner": "second"}, "HoldingScheduler"),
        ({"gpus_per_worker": 1.0}, "HoldingAsyncScheduler"),
    ],
)
def test_a_step_samples_several_tokens_where_bicots_own_forward_pass_runs(changed: dict[str, Any], scheduler: str):
    config = CONFIG.model_copy(update={"gpus_per_worker": 0.0, "enforce_eager": True, **changed})
    folder = tiny_janus_folder()
    arguments = engine_arguments(EngineSettings(str(folder), config), JanusCheckpoint(folder))
    assert arguments["scheduler_cls"] == f"rollout.vllm.scheduler.{scheduler}"


def without_pause(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(AsyncLLM, "pause_generation")


def without_first_model_runner(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(envs.environment_variables, "VLLM_USE_V2_MODEL_RUNNER")


def with_another_mlp(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(LlamaMLP, "__init__", lambda self, config, prefix: None)


def without_a_kernel(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(layout, "CPU_KERNELS", (*layout.CPU_KERNELS, "no_such_kernel"))


def without_weight_versions(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(layout, "COMPLETION_FIELDS", (*layout.COMPLETION_FIELDS, "renamed_weight_versions"))


def with_a_new_abstract_method(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(BicotWeightEngine, "__abstractmethods__", frozenset({"prefetch_weights"}))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (without_pause, "has no pause_generation in AsyncLLM"),
        (without_first_model_runner, "does not know VLLM_USE_V2_MODEL_RUNNER as a variable"),
        (with_another_mlp, "has no parameter hidden_size, intermediate_size, hidden_act in"),
        (without_a_kernel, "has no no_such_kernel in its CPU kernels"),
        (without_weight_versions, "does not know renamed_weight_versions as a field of CompletionOutput"),
        (with_a_new_abstract_method, "asks prefetch_weights of BicotWeightEngine"),
    ],
)
def test_what_is_missing_is_named_with_the_version(
    monkeypatch: pytest.MonkeyPatch, change: Callable[[pytest.MonkeyPatch], None], message: str
):
    change(monkeypatch)
    with pytest.raises(LibraryError, match=f"vllm {vllm.__version__} {message}"):
        check_vllm(environment(CONFIG))


def test_the_newer_model_runner_is_refused_where_there_is_no_triton(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(triton_utils, "HAS_TRITON", False)
    second = CONFIG.model_copy(update={"model_runner": "second"})
    with pytest.raises(ConfigError, match=r"rollout\.model_runner: the second is written in Triton"):
        check_vllm(environment(second))


def test_an_engine_argument_that_is_gone_is_named():
    with pytest.raises(LibraryError, match="does not know no_such_argument as an engine argument"):
        check_arguments(["model", "no_such_argument"])


async def test_an_engine_without_vllm_says_how_to_install_it(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, "vllm", None)
    with pytest.raises(LibraryError, match=r"install bicot\[cpu\] or bicot\[gpu\]"):
        await VllmEngine.start(EngineSettings(str(tiny_janus_folder()), CONFIG))
