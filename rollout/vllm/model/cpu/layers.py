"""The layers of Janus's language model on a CPU, by vLLM's kernels and without the calls around them.

In a small model's step such overhead counts: a layer is a dozen modules, each of which comes to its kernel through
half a dozen functions. vLLM computes a norm with eight operations of PyTorch, though it ships a kernel for it; its
kernel for the activation takes three times as long as the two operations of PyTorch.
"""

from __future__ import annotations

from typing import Any

import torch

from rollout.vllm.model.cpu.attention import CpuAttention
from rollout.vllm.model.cpu.rows import StreamRows


class CpuLayers:
    """`TwinLanguageModel`'s layers and its norm. Not under torch.compile."""

    def __init__(self, language_model: Any, num_streams: int) -> None:
        self._layers = [_Layer(layer, num_streams) for layer in language_model.layers]
        self._norm = language_model.norm
        self.attention: CpuAttention = self._layers[0].attention
        """The first layer's."""

    def __call__(self, embeddings: torch.Tensor, positions: torch.Tensor, rows: StreamRows) -> torch.Tensor:
        """[U, d] of embeddings [U, d], which it changes, at positions int64 [U]: of the rows that are computed."""
        residual, hidden_states = embeddings, torch.zeros_like(embeddings)
        for layer in self._layers:
            hidden_states = layer(hidden_states, residual, positions, rows)
        return _add_and_norm(hidden_states, residual, self._norm)


class _Layer:
    """`TwinLayer`."""

    def __init__(self, layer: Any, num_streams: int) -> None:
        # Modules find their parts by a look-up that takes as long as a small operation. Weights are looked up anew:
        # an update may put others in their place.
        attention, mlp = layer.self_attn, layer.mlp
        self.attention = CpuAttention(attention.attn, num_streams)
        self._qkv, self._out, self._rotary = attention.qkv_proj, attention.o_proj, attention.rotary_emb
        self._sizes = [attention.q_size, attention.kv_size, attention.kv_size]
        self._gate_up, self._down = mlp.gate_up_proj, mlp.down_proj
        self._norm_before, self._norm_between = layer.input_layernorm, layer.post_attention_layernorm

    def __call__(
        self, hidden_states: torch.Tensor, residual: torch.Tensor, positions: torch.Tensor, rows: StreamRows
    ) -> torch.Tensor:
        """What is to be added to `residual`, which has `hidden_states` added to it here; both [U, d]."""
        hidden_states = _add_and_norm(hidden_states, residual, self._norm_before)
        query, key, value = _product(self._qkv, hidden_states).split(self._sizes, -1)
        self._rotary.forward_cpu(positions, query, key)  # in place
        hidden_states = _product(self._out, self.attention(query, key, value, rows))
        hidden_states = _add_and_norm(hidden_states, residual, self._norm_between)
        gate, up = _product(self._gate_up, hidden_states).chunk(2, -1)
        return _product(self._down, torch.nn.functional.silu(gate).mul_(up))


def _add_and_norm(hidden_states: torch.Tensor, residual: torch.Tensor, norm: Any) -> torch.Tensor:
    """The norm of their sum; `residual` becomes the sum, and `hidden_states` is overwritten."""
    torch.ops._C.fused_add_rms_norm(hidden_states, residual, norm.weight, norm.variance_epsilon)
    return hidden_states


def _product(layer: Any, x: torch.Tensor) -> torch.Tensor:
    """A linear layer's output; of vLLM's own method, so that adapters and converted weights are what they are there."""
    if layer.tp_size > 1:
        output, _ = layer(x)  # it gathers what the ranks have
    else:
        output = layer.quant_method.apply(layer, x, layer.bias)
    result: torch.Tensor = output
    return result
