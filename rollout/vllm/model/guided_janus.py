"""Janus inside vLLM: one request, two streams, guidance within the engine.

    ids [T] ─┬─ as they are ──────► embed ─┐              ┌─ conditional ───┐
             └─ unconditional_ids ► embed ─┴► layers ─────┤                 ├─► rollout.vllm.model.sampler
                                   [T S, d]   [T S, d]    └─ unconditional ─┘   [T, S d]

All layers but attention treat rows alike. The streams of a token lie one behind the other, so that its heads in all
streams are one row of memory: to vLLM they are one attention with S times the heads, one kernel, one KV cache and one
block table. S is 2, or 1 in an engine without guidance (`rollout.guidance_scale: 1`): half the cache and half the
compute.

One vocabulary holds all: text ids as they are, VQ codes behind them. The heads are not run here, as vLLM's models do in
`compute_logits`: which of them a row needs, its phase says, and `rollout.vllm.model.sampler` knows it.

Text needs no unconditional stream: its KV cache is not read later, since a picture is a request of its own. On a GPU it
is computed all the same, the cost of having both phases in one batch. On a CPU it is not (`cpu`), and the
streams of a token lie apart: all rows of the first, then those of the second.

This file, `cpu`, `first_runner` and `second_runner` beside it are all that depends on vLLM's model internals.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import nn
from transformers.models.janus.modeling_janus import JanusVQVAEAlignerMLP, JanusVQVAEHead
from vllm.compilation.decorators import support_torch_compile
from vllm.config import VllmConfig
from vllm.model_executor.layers.attention import Attention
from vllm.model_executor.layers.layernorm import RMSNorm
from vllm.model_executor.layers.linear import QKVParallelLinear, RowParallelLinear
from vllm.model_executor.layers.logits_processor import LogitsProcessor
from vllm.model_executor.layers.rotary_embedding import get_rope
from vllm.model_executor.layers.vocab_parallel_embedding import ParallelLMHead, VocabParallelEmbedding
from vllm.model_executor.models.llama import LlamaMLP
from vllm.model_executor.models.utils import AutoWeightsLoader, WeightsMapper
from vllm.platforms import current_platform
from vllm.sequence import IntermediateTensors

from configs.learner_sections import LoraConfig
from rollout.guidance import unconditional_ids
from rollout.janus_checkpoint import SpecialIds
from rollout.vllm.model.adapters import Adapters
from rollout.vllm.model.cpu.forward import CpuForward
from rollout.vllm.model.sampler import TokenSampler
from rollout.weights.manifest import ENGINE_PARTS


class TwinAttention(nn.Module):
    """Llama's attention over all streams of a sequence: to vLLM, one attention with S times the heads."""

    def __init__(self, vllm_config: VllmConfig, prefix: str) -> None:
        super().__init__()
        config = vllm_config.model_config.hf_config.text_config
        self.num_streams: int = config.num_streams
        # Of one stream: `JanusOverride` has multiplied them for vLLM.
        total_heads = config.num_attention_heads // self.num_streams
        total_kv_heads = config.num_key_value_heads // self.num_streams
        bias = config.attention_bias
        self.qkv_proj = QKVParallelLinear(
            config.hidden_size, config.head_dim, total_heads, total_kv_heads, bias=bias, prefix=f"{prefix}.qkv_proj"
        )
        self.o_proj = RowParallelLinear(
            total_heads * config.head_dim, config.hidden_size, bias=bias, prefix=f"{prefix}.o_proj"
        )
        self.rotary_emb = get_rope(
            config.head_dim, max_position=config.max_position_embeddings, rope_parameters=config.rope_parameters
        )
        num_heads, num_kv_heads = self.qkv_proj.num_heads, self.qkv_proj.num_kv_heads  # of this tensor-parallel rank
        self.q_size, self.kv_size = num_heads * config.head_dim, num_kv_heads * config.head_dim
        self.attn = Attention(
            self.num_streams * num_heads,
            config.head_dim,
            config.head_dim**-0.5,
            num_kv_heads=self.num_streams * num_kv_heads,
            cache_config=vllm_config.cache_config,
            prefix=f"{prefix}.attn",
        )

    def forward(self, positions: torch.Tensor, hidden_states: torch.Tensor) -> torch.Tensor:
        """positions: int64 [T S]; hidden_states: [T S, d], the streams of a token one behind the other."""
        qkv, _ = self.qkv_proj(hidden_states)
        query, key, value = qkv.split([self.q_size, self.kv_size, self.kv_size], dim=-1)
        query, key = self.rotary_emb(positions, query, key)
        num_tokens = hidden_states.shape[0] // self.num_streams
        output = self.attn(*(heads.reshape(num_tokens, -1) for heads in (query, key, value)))
        output, _ = self.o_proj(output.view(-1, self.q_size))
        return output


class TwinLayer(nn.Module):
    """A Llama layer of Janus's language model with `TwinAttention`."""

    def __init__(self, vllm_config: VllmConfig, prefix: str) -> None:
        super().__init__()
        config = vllm_config.model_config.hf_config.text_config
        self.self_attn = TwinAttention(vllm_config, f"{prefix}.self_attn")
        self.mlp = LlamaMLP(config.hidden_size, config.intermediate_size, config.hidden_act, prefix=f"{prefix}.mlp")
        self.input_layernorm = RMSNorm(config.hidden_size, eps=config.rms_norm_eps)
        self.post_attention_layernorm = RMSNorm(config.hidden_size, eps=config.rms_norm_eps)

    def forward(
        self, positions: torch.Tensor, hidden_states: torch.Tensor, residual: torch.Tensor | None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """hidden_states and residual: [T S, d]; both may be changed in place."""
        if residual is None:
            residual = hidden_states
            hidden_states = self.input_layernorm(hidden_states)
        else:
            hidden_states, residual = self.input_layernorm(hidden_states, residual)
        hidden_states = self.self_attn(positions, hidden_states)
        hidden_states, residual = self.post_attention_layernorm(hidden_states, residual)
        return self.mlp(hidden_states), residual


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
        self.num_streams: int = config.text_config.num_streams
        self.special_ids = SpecialIds(**config.guidance_special_ids)
        self.language_model = TwinLanguageModel(vllm_config, f"{prefix}.language_model")
        # Replicated on every tensor-parallel rank: about 0.2 GB at 7B, and sharding them would cost
        # an all-reduce a layer on a few rows.
        self.generation_embeddings = nn.Embedding(self.num_codes, vq_config.embed_dim)
        self.generation_aligner = JanusVQVAEAlignerMLP(vq_config)
        self.generation_head = JanusVQVAEHead(vq_config)
        self.on_cpu = CpuForward(self) if current_platform.is_cpu() else None

    def forward(
        self,
        input_ids: torch.Tensor,
        positions: torch.Tensor,
        intermediate_tensors: IntermediateTensors | None = None,
        inputs_embeds: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """input_ids, positions: int64 [T]. Returns [T, S d]: conditional, then unconditional hidden states."""
        if self.on_cpu is not None and not torch.compiler.is_compiling():
            return self.on_cpu(input_ids, positions)
        hidden_states = self.embed(self._streams(input_ids))
        positions = positions.repeat_interleave(self.num_streams)
        residual = None
        for layer in self.language_model.layers:
            hidden_states, residual = layer(positions, hidden_states, residual)
        hidden_states, _ = self.language_model.norm(hidden_states, residual)
        return hidden_states.view(input_ids.shape[0], -1)

    def embed_input_ids(self, input_ids: torch.Tensor) -> torch.Tensor:
        """[T, d]: the conditional embeddings."""
        return self.embed(input_ids)

    def _streams(self, input_ids: torch.Tensor) -> torch.Tensor:
        """int64 [T S] from int64 [T]: the streams of a token one behind the other."""
        if self.num_streams == 1:
            return input_ids
        unconditional = unconditional_ids(input_ids, self.special_ids, self.text_vocab_size)
        return torch.stack([input_ids, unconditional], dim=-1).view(-1)

    def embed(self, ids: torch.Tensor) -> torch.Tensor:
        """[N, d] from int64 [N]."""
        codes = ids - self.text_vocab_size
        is_code = codes >= 0
        code_embeddings = self.embed_codes(codes.clamp_(0, self.num_codes - 1))
        text_embeddings = self.language_model.embed_tokens(ids.masked_fill(is_code, self.special_ids.pad))
        return torch.where(is_code.unsqueeze(-1), code_embeddings, text_embeddings)

    def embed_codes(self, codes: torch.Tensor) -> torch.Tensor:
        """[N, d] from int64 [N]."""
        embeddings: torch.Tensor = self.generation_aligner(self.generation_embeddings(codes))
        return embeddings


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
        lora = text_config.lora
        self.adapters = Adapters(self, LoraConfig.model_validate(lora)) if lora else None

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
        """[B, S d] as it is: vLLM hands it to its sampler, which here is the one of `token_sampler`."""
        return hidden_states

    def token_sampler(self, sampled_logprobs: bool) -> TokenSampler:
        """The sampler with this model's heads."""
        return TokenSampler(
            text_head=lambda hidden: self.logits_processor(self.lm_head, hidden),
            code_head=self.model.generation_head,
            text_vocab_size=self.model.text_vocab_size,
            num_streams=self.model.num_streams,
            sampled_logprobs=sampled_logprobs,
        )

    @staticmethod
    def get_model_state_cls() -> Any:
        """For vLLM's newer model runner, whose modules need Triton."""
        from rollout.vllm.model.second_runner import GuidedModelState

        return GuidedModelState

    def load_weights(self, weights: Iterable[tuple[str, torch.Tensor]]) -> set[str]:
        """Load what the engine runs (`ENGINE_PARTS`), and adapters; the vision and VQ models stay behind."""
        own: Iterable[tuple[str, torch.Tensor]] = (entry for entry in weights if entry[0].startswith(ENGINE_PARTS))
        if self.adapters is not None:
            own = self.adapters.take(own)
        return AutoWeightsLoader(self).load_weights(own, mapper=self.hf_to_vllm_mapper)
