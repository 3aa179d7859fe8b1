"""What a vLLM process must know before it can run Janus: the model class and the weight engine.

Importing this module changes nothing; `register` does. It is called in each of vLLM's processes: by the entry point
`vllm.general_plugins` where bicot is installed, and by the unpickling of `JanusOverride`, which travels with vLLM's
config, where bicot only lies on PYTHONPATH (`ray job submit --working-dir`).
"""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import cache
from typing import Any

from transformers import PretrainedConfig
from vllm import ModelRegistry
from vllm.distributed.weight_transfer.factory import WeightTransferEngineFactory

from configs.learner_sections import LoraConfig
from rollout.janus_checkpoint import SpecialIds
from rollout.vllm.child_process import end_with_parent

WEIGHT_BACKEND = "bicot"
_ARCHITECTURE = "JanusForConditionalGeneration"


@cache
def register() -> None:
    """Register model and weight engine in this process; calls after the first one do nothing.

    In vLLM's engine core it also starts the thread that ends the process with the one that has started it: vLLM's
    workers watch the engine core, but nothing makes the engine core watch us.
    """
    if _ARCHITECTURE not in ModelRegistry.get_supported_archs():
        # The class and not its name, for which vLLM would start a process to import and inspect it.
        from rollout.vllm.model.guided_janus import GuidedJanus

        ModelRegistry.register_model(_ARCHITECTURE, GuidedJanus)
    WeightTransferEngineFactory.register_engine(WEIGHT_BACKEND, "rollout.vllm.weights.transfer", "BicotWeightEngine")
    if multiprocessing.current_process().name.startswith("EngineCore"):
        end_with_parent()


@dataclass(frozen=True)
class JanusOverride:
    """vLLM's `hf_overrides`: gives a Janus config the vocabulary and the heads of `rollout.vllm.model.guided_janus`.

    The vocabulary is text | codes; an attention layer has the heads of all streams. vLLM keeps this object in its
    config and sends it to each process that it starts; where it is unpickled, `register` is called.
    """

    special_ids: SpecialIds
    num_streams: int = 2
    """1 for an engine without guidance."""
    lora: LoraConfig | None = None
    """The adapters that weight updates bring."""

    def __call__(self, config: PretrainedConfig) -> PretrainedConfig:
        """Widens `config` in place. vLLM also calls it with configs that have no parts; they stay as they are."""
        if not hasattr(config, "text_config") or hasattr(config, "guidance_special_ids"):
            return config
        text_config: Any = config.text_config
        text_config.text_vocab_size = text_config.vocab_size
        text_config.vocab_size += config.vq_config.num_embeddings
        text_config.head_dim = text_config.head_dim or text_config.hidden_size // text_config.num_attention_heads
        # vLLM reads from here how many heads an attention layer has: those of all streams.
        text_config.num_attention_heads *= self.num_streams
        text_config.num_key_value_heads *= self.num_streams
        text_config.num_streams = self.num_streams
        # A config must stay plain JSON.
        text_config.lora = self.lora.model_dump(mode="json") if self.lora else None
        config.guidance_special_ids = asdict(self.special_ids)
        return config

    def __reduce__(self) -> tuple[Callable[..., JanusOverride], tuple[SpecialIds, int, LoraConfig | None]]:
        return _arrive, (self.special_ids, self.num_streams, self.lora)


def _arrive(special_ids: SpecialIds, num_streams: int, lora: LoraConfig | None) -> JanusOverride:
    register()
    return JanusOverride(special_ids, num_streams, lora)
