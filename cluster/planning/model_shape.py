"""How many parameters a Janus model has, part by part, from its config.json alone.

Counted as transformers' `JanusForConditionalGeneration` builds them; the tests hold the sums against that class.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

_TEXT_DEFAULTS = {
    "hidden_size": 4096,
    "intermediate_size": 11008,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "vocab_size": 32000,
}
"""Of transformers' LlamaConfig, which leaves defaults out of config.json."""
_VQ_DEFAULTS = {
    "embed_dim": 8,
    "num_embeddings": 16384,
    "latent_channels": 256,
    "in_channels": 3,
    "out_channels": 3,
    "base_channels": 128,
    "channel_multiplier": [1, 1, 2, 2, 4],
    "num_res_blocks": 2,
    "projection_dim": 2048,
    "num_hidden_layers": 2,
    "image_token_embed_dim": 2048,
}
_VISION_DEFAULTS = {
    "hidden_size": 1024,
    "num_hidden_layers": 24,
    "image_size": 384,
    "patch_size": 16,
    "num_channels": 3,
    "mlp_ratio": 4.0,
    "projection_dim": 2048,
    "depth": 2,
    "attention_bias": True,
}
"""Of transformers' JanusVQVAEConfig and JanusVisionConfig."""


@dataclass(frozen=True, slots=True)
class TextShape:
    """The language model (Llama)."""

    hidden_size: int
    intermediate_size: int
    num_layers: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    vocab_size: int

    @property
    def layer_parameters(self) -> int:
        return self.attention_parameters + 3 * self.hidden_size * self.intermediate_size + 2 * self.hidden_size

    @property
    def attention_parameters(self) -> int:
        """Of one layer."""
        hidden, wide = self.hidden_size, self.num_heads * self.head_dim
        return hidden * wide * 2 + hidden * self.num_kv_heads * self.head_dim * 2

    @property
    def embedding_parameters(self) -> int:
        return self.vocab_size * self.hidden_size

    def kv_bytes_per_token(self, bytes_per_value: int, num_streams: int) -> int:
        """Of all layers' keys and values. num_streams: 2 under guidance, the conditional and the unconditional one."""
        return 2 * self.num_layers * self.num_kv_heads * self.head_dim * bytes_per_value * num_streams


@dataclass(frozen=True, slots=True)
class VQShape:
    """The VQ model and what the language model draws with."""

    embed_dim: int
    num_codes: int
    latent_channels: int
    in_channels: int
    out_channels: int
    base_channels: int
    multipliers: tuple[int, ...]
    num_res_blocks: int
    projection_dim: int
    aligner_depth: int
    image_token_embed_dim: int

    @property
    def parameters(self) -> int:
        """Encoder, codebook and decoder."""
        convolutions = _conv(self.latent_channels, self.embed_dim, 1) + _conv(self.embed_dim, self.latent_channels, 1)
        return self._encoder() + self._decoder() + self.num_codes * self.embed_dim + convolutions

    @property
    def head_parameters(self) -> int:
        """The generation head, whose rows the engine samples from."""
        return _linear(self.image_token_embed_dim, self.projection_dim) + _linear(self.projection_dim, self.num_codes)

    @property
    def embedding_parameters(self) -> int:
        """The generation embeddings and their aligner."""
        hidden = (self.aligner_depth - 1) * _linear(self.projection_dim, self.projection_dim)
        return self.num_codes * self.embed_dim + _linear(self.embed_dim, self.projection_dim) + hidden

    @property
    def widths(self) -> tuple[int, ...]:
        """Channels of each level, the full resolution first."""
        return tuple(self.base_channels * multiplier for multiplier in self.multipliers)

    def _encoder(self) -> int:
        total, width = _conv(self.in_channels, self.base_channels, 3), self.base_channels
        for level, out in enumerate(self.widths):
            is_last = level == len(self.widths) - 1
            for _ in range(self.num_res_blocks):
                total += _res_block(width, out) + (_attention(out) if is_last else 0)
                width = out
            # Without residual blocks a level keeps the width that it was given.
            total += 0 if is_last else _conv(width, width, 3)
        return total + _middle(width) + _norm(width) + _conv(width, self.latent_channels, 3)

    def _decoder(self) -> int:
        width = self.widths[-1]
        total = _conv(self.latent_channels, width, 3) + _middle(width)
        for level in reversed(range(len(self.widths))):
            out, is_last = self.widths[level], level == len(self.widths) - 1
            for _ in range(self.num_res_blocks + 1):
                total += _res_block(width, out) + (_attention(out) if is_last else 0)
                width = out
            total += _conv(width, width, 3) if level else 0
        return total + _norm(width) + _conv(width, self.out_channels, 3)


@dataclass(frozen=True, slots=True)
class ModelShape:
    """A Janus model in numbers; parameters are counted, not bytes."""

    text: TextShape
    vq: VQShape
    vision_parameters: int
    """The vision model and its aligner; drawing never uses them."""
    image_size: int
    patch_size: int
    ties_embeddings: bool

    @property
    def num_image_tokens(self) -> int:
        return (self.image_size // self.patch_size) ** 2

    @property
    def language_model(self) -> int:
        """Embeddings, layers and final norm, without the head."""
        text = self.text
        return text.embedding_parameters + text.num_layers * text.layer_parameters + text.hidden_size

    @property
    def lm_head(self) -> int:
        return 0 if self.ties_embeddings else self.text.embedding_parameters

    @property
    def trainable(self) -> int:
        """What T2I-R1 trains: the language model and its head."""
        return self.language_model + self.lm_head

    @property
    def drawing(self) -> int:
        """What a learner rank and an engine hold: all but the vision model and the VQ model."""
        return self.trainable + self.vq.head_parameters + self.vq.embedding_parameters

    @property
    def total(self) -> int:
        return self.drawing + self.vq.parameters + self.vision_parameters

    @classmethod
    def of(cls, config: Mapping[str, Any]) -> ModelShape:
        """Of a config.json with model_type `janus`. Fields that it leaves out have transformers' defaults."""
        text = {**_TEXT_DEFAULTS, **config.get("text_config", {})}
        vq = {**_VQ_DEFAULTS, **config.get("vq_config", {})}
        vision = {**_VISION_DEFAULTS, **config.get("vision_config", {})}
        heads = int(text["num_attention_heads"])
        return cls(
            text=TextShape(
                hidden_size=int(text["hidden_size"]),
                intermediate_size=int(text["intermediate_size"]),
                num_layers=int(text["num_hidden_layers"]),
                num_heads=heads,
                num_kv_heads=int(text.get("num_key_value_heads") or heads),
                head_dim=int(text.get("head_dim") or text["hidden_size"] // heads),
                vocab_size=int(text["vocab_size"]),
            ),
            vq=VQShape(
                embed_dim=int(vq["embed_dim"]),
                num_codes=int(vq["num_embeddings"]),
                latent_channels=int(vq["latent_channels"]),
                in_channels=int(vq["in_channels"]),
                out_channels=int(vq["out_channels"]),
                base_channels=int(vq["base_channels"]),
                multipliers=tuple(vq["channel_multiplier"]),
                num_res_blocks=int(vq["num_res_blocks"]),
                projection_dim=int(vq["projection_dim"]),
                aligner_depth=int(vq["num_hidden_layers"]),
                image_token_embed_dim=int(vq["image_token_embed_dim"]),
            ),
            vision_parameters=_vision(vision),
            image_size=int(vision["image_size"]),
            patch_size=int(vision["patch_size"]),
            ties_embeddings=bool(config.get("tie_word_embeddings", True)),
        )


def _vision(vision: Mapping[str, Any]) -> int:
    hidden, out, patch = int(vision["hidden_size"]), int(vision["projection_dim"]), int(vision["patch_size"])
    wide = int(hidden * float(vision["mlp_ratio"]))
    bias = bool(vision["attention_bias"])
    qkv = 3 * (hidden * hidden + (hidden if bias else 0))
    layer = qkv + _linear(hidden, hidden) + _linear(hidden, wide) + _linear(wide, hidden) + 4 * hidden
    patches = (int(vision["image_size"]) // patch) ** 2
    embeddings = _conv(int(vision["num_channels"]), hidden, patch) + patches * hidden
    aligner = _linear(hidden, out) + (int(vision["depth"]) - 1) * _linear(out, out)
    return embeddings + int(vision["num_hidden_layers"]) * layer + 2 * hidden + aligner


def _linear(inputs: int, outputs: int) -> int:
    return inputs * outputs + outputs


def _conv(inputs: int, outputs: int, kernel: int) -> int:
    return inputs * outputs * kernel**2 + outputs


def _norm(channels: int) -> int:
    return 2 * channels


def _res_block(inputs: int, outputs: int) -> int:
    shortcut = _conv(inputs, outputs, 1) if inputs != outputs else 0
    return _norm(inputs) + _conv(inputs, outputs, 3) + _norm(outputs) + _conv(outputs, outputs, 3) + shortcut


def _attention(channels: int) -> int:
    return _norm(channels) + 4 * _conv(channels, channels, 1)


def _middle(channels: int) -> int:
    return 2 * _res_block(channels, channels) + _attention(channels)
