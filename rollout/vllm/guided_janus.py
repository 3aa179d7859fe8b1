"""Janus inside vLLM: one request, two streams, guidance within the engine.

    ids [T] ─┬─ as they are ──────► embed ─┐            ┌─ conditional ───┐   ┌─ lm_head ──────────► text
             └─ unconditional_ids ► embed ─┴► layers ───┤                 ├───┼─ generation_head ──► codes
                                    [2T, d]   [2T, d]   └─ unconditional ─┘   └─ generation_head ──► codes

Both streams lie one behind the other in a batch of 2T rows. All layers but attention treat rows
alike; `TwinAttention` keeps a KV cache a stream, on the one block table vLLM has for the sequence.
The model returns [T, 2d], both hidden states of a token side by side.

One vocabulary holds all: text ids as they are, VQ codes behind them, and behind those a block that
only carries the unconditional logits to `rollout.vllm.guidance_processor`, which mixes and hides it:

    log_softmax(text) | log_softmax(conditional codes) | unconditional code logits

The first two blocks are what vLLM reports for a sampled token in `logprobs_mode="raw_logits"`: the
conditional log-probability at temperature 1, however the token was sampled. (In "processed_logprobs" vLLM
reports the one it sampled with: guided, at the request's temperature.)

While text is decoded, the unconditional stream is computed without being used: its KV cache is not needed later, since
a picture is a request of its own. This is the cost of having both phases in one batch.

This file and `rollout.vllm.guidance_processor` are all that depends on vLLM's model internals.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import nn
from transformers.models.janus.modeling_janus import JanusVQVAEAlignerMLP, JanusVQVAEHead
from vllm.compilation.decorators import support_torch_compile
from vllm.config import VllmConfig
from vllm.model_executor.layers.layernorm import RMSNorm
from vllm.model_executor.layers.logits_processor import LogitsProcessor
from vllm.model_executor.layers.vocab_parallel_embedding import ParallelLMHead, VocabParallelEmbedding
from vllm.model_executor.models.llama import Attention, LlamaAttention, LlamaDecoderLayer
from vllm.model_executor.models.utils import AutoWeightsLoader, WeightsMapper
from vllm.sequence import IntermediateTensors

from configs.library_layout import require_attributes
from rollout.guidance import unconditional_ids
from rollout.janus_checkpoint import SpecialIds
from rollout.weights.manifest import ENGINE_PARTS

_ATTENTION_PARTS = (
    "num_heads", "num_kv_heads", "head_dim", "scaling", "q_size", "kv_size", "qkv_proj", "rotary_emb", "attn", "o_proj",
)  # fmt: skip
"""What `TwinAttention` uses of its base."""


class TwinAttention(LlamaAttention):
    """Llama attention over the two streams of each sequence, each with its own KV cache."""

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        require_attributes("vllm", self, _ATTENTION_PARTS, "LlamaAttention")
        self.unconditional_attn = Attention(
            self.num_heads,
            self.head_dim,
            self.scaling,
            num_kv_heads=self.num_kv_heads,
            cache_config=kwargs["cache_config"],
            quant_config=kwargs["quant_config"],
            prefix=f"{kwargs['prefix']}.unconditional_attn",
        )

    def forward(self, positions: torch.Tensor, hidden_states: torch.Tensor) -> torch.Tensor:
        """positions: int64 [2T]; hidden_states: [2T, d], the conditional stream first."""
        qkv, _ = self.qkv_proj(hidden_states)
        query, key, value = qkv.split([self.q_size, self.kv_size, self.kv_size], dim=-1)
        query, key = self.rotary_emb(positions, query, key)
        num_tokens = positions.shape[0] // 2
        conditional = self.attn(query[:num_tokens], key[:num_tokens], value[:num_tokens])
        unconditional = self.unconditional_attn(query[num_tokens:], key[num_tokens:], value[num_tokens:])
        output, _ = self.o_proj(torch.cat([conditional, unconditional]))
        return output


class TwinLayer(LlamaDecoderLayer):
    """A Llama layer of Janus's language model with `TwinAttention`."""

    def __init__(self, vllm_config: VllmConfig, prefix: str) -> None:
        text_config = vllm_config.model_config.hf_config.text_config
        super().__init__(vllm_config, prefix, config=text_config, attn_layer_type=TwinAttention)


class TwinLanguageModel(nn.Module):
    """Embedding, layers and norm of Janus's language model; holds weights, `GuidedJanusModel` runs it."""

    def __init__(self, vllm_config: VllmConfig, prefix: str) -> None:
        super().__init__()
        config = vllm_config.model_config.hf_config.text_config
        # Vocabulary-parallel: at Janus-Pro-7B the two text matrices are 1.7 GB in bf16, too much
        # to hold on every tensor-parallel rank, and vLLM gathers their outputs anyway.
        self.embed_tokens = VocabParallelEmbedding(
            config.text_vocab_size, config.hidden_size, prefix=f"{prefix}.embed_tokens"
        )
        self.layers = nn.ModuleList(
            TwinLayer(vllm_config, f"{prefix}.layers.{index}") for index in range(config.num_hidden_layers)
        )
        self.norm = RMSNorm(config.hidden_size, eps=config.rms_norm_eps)


@support_torch_compile(dynamic_arg_dims={"input_ids": 0, "positions": 0})
class GuidedJanusModel(nn.Module):
    """From token ids to the hidden states of both streams; parameters are named as in the checkpoint."""

    def __init__(self, *, vllm_config: VllmConfig, prefix: str = "") -> None:
        super().__init__()
        config = vllm_config.model_config.hf_config
        vq_config = config.vq_config
        self.text_vocab_size: int = config.text_config.text_vocab_size
        self.num_codes: int = vq_config.num_embeddings
        self.special_ids = SpecialIds(**config.guidance_special_ids)
        self.language_model = TwinLanguageModel(vllm_config, f"{prefix}.language_model")
        # Replicated on every tensor-parallel rank: about 0.2 GB at 7B, and sharding them would cost
        # an all-reduce a layer on a few rows.
        self.generation_embeddings = nn.Embedding(self.num_codes, vq_config.embed_dim)
        self.generation_aligner = JanusVQVAEAlignerMLP(vq_config)
        self.generation_head = JanusVQVAEHead(vq_config)

    def forward(
        self,
        input_ids: torch.Tensor,
        positions: torch.Tensor,
        intermediate_tensors: IntermediateTensors | None = None,
        inputs_embeds: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """input_ids, positions: int64 [T]. Returns [T, 2d]: conditional, then unconditional hidden states."""
        hidden_states = self._embed_streams(input_ids)
        positions = positions.repeat(2)
        residual = None
        for layer in self.language_model.layers:
            hidden_states, residual = layer(positions, hidden_states, residual)
        hidden_states, _ = self.language_model.norm(hidden_states, residual)
        conditional, unconditional = hidden_states.chunk(2)
        return torch.cat([conditional, unconditional], dim=-1)

    def embed_input_ids(self, input_ids: torch.Tensor) -> torch.Tensor:
        """[T, d]: the conditional embeddings."""
        return self._embed(input_ids, [input_ids])

    def _embed_streams(self, input_ids: torch.Tensor) -> torch.Tensor:
        """[2T, d] from int64 [T]."""
        unconditional = unconditional_ids(input_ids, self.special_ids, self.text_vocab_size)
        return self._embed(input_ids, [input_ids, unconditional])

    def _embed(self, input_ids: torch.Tensor, streams: list[torch.Tensor]) -> torch.Tensor:
        """[n T, d] of n streams, each int64 [T], that share the image tokens of `input_ids` int64 [T]."""
        stream_ids = torch.cat(streams)
        is_code = input_ids >= self.text_vocab_size
        codes = (input_ids - self.text_vocab_size).clamp(0, self.num_codes - 1)
        code_embeddings = self.generation_aligner(self.generation_embeddings(codes))
        text_ids = stream_ids.masked_fill(stream_ids >= self.text_vocab_size, self.special_ids.pad)
        text_embeddings = self.language_model.embed_tokens(text_ids)
        is_code, code_embeddings = is_code.repeat(len(streams)), code_embeddings.repeat(len(streams), 1)
        return torch.where(is_code.unsqueeze(-1), code_embeddings, text_embeddings)


class GuidedJanus(nn.Module):
    """The model class vLLM runs for `JanusForConditionalGeneration`.

    Wants the config of `rollout.vllm.plugin.JanusOverride`.
    """

    hf_to_vllm_mapper = WeightsMapper(
        orig_to_new_stacked={
            ".q_proj": (".qkv_proj", "q"),
            ".k_proj": (".qkv_proj", "k"),
            ".v_proj": (".qkv_proj", "v"),
            ".gate_proj": (".gate_up_proj", 0),
            ".up_proj": (".gate_up_proj", 1),
        }
    )

    def __init__(self, *, vllm_config: VllmConfig, prefix: str = "") -> None:
        super().__init__()
        text_config = vllm_config.model_config.hf_config.text_config
        self.config = vllm_config.model_config.hf_config
        self.model = GuidedJanusModel(vllm_config=vllm_config, prefix="model")
        self.lm_head = ParallelLMHead(text_config.text_vocab_size, text_config.hidden_size, prefix="lm_head")
        self.logits_processor = LogitsProcessor(text_config.text_vocab_size)

    def embed_input_ids(self, input_ids: torch.Tensor) -> torch.Tensor:
        return self.model.embed_input_ids(input_ids)

    def forward(
        self,
        input_ids: torch.Tensor,
        positions: torch.Tensor,
        intermediate_tensors: IntermediateTensors | None = None,
        inputs_embeds: torch.Tensor | None = None,
    ) -> torch.Tensor:
        return self.model(input_ids, positions)

    def compute_logits(self, hidden_states: torch.Tensor) -> torch.Tensor:
        """From [B, 2d] to float32 [B, V_text + 2 num_codes], laid out as the file's head says."""
        streams = torch.cat(hidden_states.chunk(2, dim=-1))  # [2B, d]
        text = self.logits_processor(self.lm_head, streams[: hidden_states.shape[0]])
        conditional, unconditional = self.model.generation_head(streams).float().chunk(2)
        return torch.cat([text.float().log_softmax(-1), conditional.log_softmax(-1), unconditional], dim=-1)

    def load_weights(self, weights: Iterable[tuple[str, torch.Tensor]]) -> set[str]:
        """Load what the engine runs (`ENGINE_PARTS`); the vision and VQ models stay behind."""
        own = ((name, tensor) for name, tensor in weights if name.startswith(ENGINE_PARTS))
        return AutoWeightsLoader(self).load_weights(own, mapper=self.hf_to_vllm_mapper)
