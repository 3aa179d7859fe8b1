"""What a vLLM process must know before it can run Janus: the model class and the weight engine.

vLLM imports this module in each of its processes: by the entry point `vllm.general_plugins` where
bicot is installed, by `worker_extension_cls` and with the pickled `hf_overrides` where it only lies
on PYTHONPATH (`ray job submit --working-dir`). Importing it registers; doing so twice is harmless.
"""

from __future__ import annotations

import multiprocessing
from dataclasses import asdict
from typing import Any

from transformers import PretrainedConfig
from vllm import ModelRegistry
from vllm.distributed.weight_transfer.factory import WeightTransferEngineFactory

from rollout.janus_checkpoint import SpecialIds
from rollout.vllm.child_process import end_with_parent

WEIGHT_BACKEND = "bicot"
_ARCHITECTURE = "JanusForConditionalGeneration"


class WorkerExtension:
    """Mixed into vLLM's worker class; adds nothing, its import is the point."""


def register() -> None:
    """Register model and weight engine in this process."""
    if _ARCHITECTURE not in ModelRegistry.get_supported_archs():
        # The class and not its name, for which vLLM would start a process to import and inspect it.
        from rollout.vllm.guided_janus import GuidedJanus

        ModelRegistry.register_model(_ARCHITECTURE, GuidedJanus)
    if WEIGHT_BACKEND not in WeightTransferEngineFactory._registry:
        WeightTransferEngineFactory.register_engine(WEIGHT_BACKEND, "rollout.vllm.weights", "BicotWeightEngine")


def widen_vocabulary(special_ids: SpecialIds, config: PretrainedConfig) -> PretrainedConfig:
    """Give a Janus config the vocabulary of `rollout.vllm.guided_janus`: text | codes | unconditional codes.

    Bind `special_ids` and pass the rest as vLLM's `hf_overrides`. vLLM also calls those with configs
    that have no parts; they stay as they are.
    """
    if not hasattr(config, "text_config") or hasattr(config, "guidance_special_ids"):
        return config
    text_config: Any = config.text_config
    text_config.text_vocab_size = text_config.vocab_size
    text_config.vocab_size += 2 * config.vq_config.num_embeddings
    config.guidance_special_ids = asdict(special_ids)  # a config must stay plain JSON
    return config


register()
if multiprocessing.current_process().name.startswith("EngineCore"):
    end_with_parent()  # vLLM's workers watch the engine core, but nothing makes that one watch us
