"""Bytes that each kind of process needs on its device.

Learner rank     weights and gradients in the model's dtype, two AdamW moments and (from ZeRO 1 on) master weights in
                 float32, divided as the ZeRO stage divides them; the reference; activations of a micro-batch; buffers
Rollout worker   the engine's weights, its KV cache, the VQ decoder in float32 and its activations
Both             the device's own context

What a ZeRO stage divides by the number of ranks: 1 the optimizer's state, 2 the gradients, too, 3 the weights, too
(Rajbhandari et al., arXiv:1910.02054, figure 1). The tests hold these sums against bytes measured on a CPU.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase

from cluster.planning.model_shape import ModelShape
from configs.schema import RunConfig

GIB = 2**30
CONTEXT_BYTES = int(0.5 * GIB)
"""CUDA context and libraries of one process; of its order, and not measured here."""
FLOAT32 = 4
BUFFER_ELEMENTS = 50_000_000
"""Of DeepSpeed's communication buffer, as `learner.zero.engine` sets it."""
GATHERED_ELEMENTS = 500_000_000
"""Of a sharded reference, as `learner.zero.sharded_module` sets it."""
EMBEDDING = "model.language_model.embed_tokens.weight"
_MIDDLE_TOKENS = 64
"""Tokens around a semantic CoT, for the length of an average sequence."""


@dataclass(frozen=True, slots=True)
class Need:
    """Bytes of one process, by what they are for."""

    parts: Mapping[str, int]

    @property
    def total(self) -> int:
        return sum(self.parts.values())


@dataclass(frozen=True, slots=True)
class NeedInTurns(Need):
    """Bytes of processes that take turns: what the largest turn needs."""

    turns: Mapping[str, Need]


def bytes_per_value(dtype: str) -> int:
    return 2 if dtype == "bfloat16" else FLOAT32


def learner_rank(config: RunConfig, shape: ModelShape) -> Need:
    """One learner rank."""
    learner, size = config.learner, bytes_per_value(config.model.dtype)
    trained = trained_parameters(config, shape)
    frozen = shape.drawing - (0 if learner.lora else trained)
    ranks = learner.num_ranks

    def share(stage: int) -> int:
        return ranks if learner.zero_stage >= stage else 1

    is_partitioned = learner.zero_stage > 0
    parts = {
        "weights": trained * size // share(3) + frozen * size,
        "gradients": trained * size // share(2),
        # Master weights are kept apart at ZeRO 1 and above, of a float32 model, too.
        "optimizer": trained * FLOAT32 * (3 if is_partitioned else 2) // share(1),
        # A bfloat16 rank converts its part of the gradients to float32 for the update.
        "update": trained * FLOAT32 // share(1) if size < FLOAT32 else 0,
        # Seen in measurements: beside its partitions a rank keeps the gradient of the embedding whole.
        "embedding": _whole_gradient(config, shape) * size if is_partitioned else 0,
        "buffers": BUFFER_ELEMENTS * size if learner.zero_stage == 3 or (is_partitioned and ranks > 1) else 0,
        "reference": _reference(config, shape, trained) * size,
        "activations": learner_activations(config, shape),
        "context": CONTEXT_BYTES if learner.gpus_per_rank > 0 else 0,
        "kept version": trained * size if config.weight_sync.delta and learner.gpus_per_rank == 0 else 0,
    }
    return Need(parts)


def _reference(config: RunConfig, shape: ModelShape, trained: int) -> int:
    """Parameters that the reference holds for itself: what is frozen it shares with the policy, but at ZeRO 3. Where it
    is sharded, its part, if not in host memory, and what is gathered at a time."""
    if not config.algorithm.needs_reference or config.learner.lora is not None:
        return 0
    if config.learner.reference != "whole":
        part = 0 if config.learner.reference == "offloaded" else shape.drawing // config.learner.num_ranks
        return part + min(shape.drawing, GATHERED_ELEMENTS)
    return shape.drawing if config.learner.zero_stage == 3 else trained


def trained_parameters(config: RunConfig, shape: ModelShape) -> int:
    """Values that training changes: with `learner.lora`, those of the adapters."""
    lora, text = config.learner.lora, shape.text
    if lora is None:
        return sum(size for name, size in _sizes(shape) if _trains(config, name))
    layers = {target: sizes for joined in _joined_layers(shape) for target, sizes in joined.items()}
    sizes = (sum(layers[target]) for target in lora.targets if target in layers)
    return text.num_layers * lora.rank * sum(sizes)


def _engine_adapters(config: RunConfig, shape: ModelShape) -> int:
    """Values of the adapters as an engine holds them: those of joined layers as one matrix, zeros between them."""
    lora = config.learner.lora
    if lora is None:
        return 0
    width = 0
    for joined in _joined_layers(shape):
        num_adapted = sum(target in lora.targets for target in joined)
        (inputs,) = {inputs for inputs, _ in joined.values()}
        width += num_adapted * (inputs + sum(outputs for _, outputs in joined.values()))
    return shape.text.num_layers * lora.rank * width


def _joined_layers(shape: ModelShape) -> Sequence[Mapping[str, tuple[int, int]]]:
    """(inputs, outputs) of the linear layers of one transformer layer, those together that engines join."""
    text = shape.text
    hidden, inner = text.hidden_size, text.intermediate_size
    wide, narrow = text.num_heads * text.head_dim, text.num_kv_heads * text.head_dim
    return (
        {"q_proj": (hidden, wide), "k_proj": (hidden, narrow), "v_proj": (hidden, narrow)},
        {"o_proj": (wide, hidden)},
        {"gate_proj": (hidden, inner), "up_proj": (hidden, inner)},
        {"down_proj": (inner, hidden)},
    )


def _sizes(shape: ModelShape) -> Sequence[tuple[str, int]]:
    """Parameters of each part of the policy, and the name of one of its tensors for `learner.trainable`."""
    text, vq = shape.text, shape.vq
    return (
        (EMBEDDING, text.embedding_parameters),
        ("model.language_model.layers.0.self_attn.q_proj.weight", text.num_layers * text.attention_parameters),
        (
            "model.language_model.layers.0.mlp.up_proj.weight",
            text.num_layers * (text.layer_parameters - text.attention_parameters),
        ),
        ("model.language_model.norm.weight", text.hidden_size),
        ("lm_head.weight", shape.lm_head),
        ("model.generation_embeddings.weight", vq.num_codes * vq.embed_dim),
        ("model.generation_aligner.fc1.weight", vq.embedding_parameters - vq.num_codes * vq.embed_dim),
        ("model.generation_head.vision_head.weight", vq.head_parameters),
    )


def _trains(config: RunConfig, name: str) -> bool:
    return any(fnmatchcase(name, pattern) for pattern in config.learner.trainable)


def _whole_gradient(config: RunConfig, shape: ModelShape) -> int:
    """Values of the embedding's gradient, where the embedding is trained."""
    return shape.text.embedding_parameters if config.learner.lora is None and _trains(config, EMBEDDING) else 0


def learner_activations(config: RunConfig, shape: ModelShape) -> int:
    """Of the longer phase of one micro-batch, a picture with its context.

    With gradient checkpointing a layer keeps its input, and one layer at a time all that it computes; without, all
    layers keep all (counted in values of the hidden size: Korthikanti et al., arXiv:2205.05198, section 4, without the
    attention matrix, which flash kernels do not store).
    """
    text, learner, size = shape.text, config.learner, bytes_per_value(config.model.dtype)
    streams = 2 if config.algorithm.policy == "guided" else 1
    tokens = learner.micro_batch_size * streams * sequence_tokens(config, shape)
    whole_layer = 8 * text.hidden_size + 2 * text.num_kv_heads * text.head_dim + 3 * text.intermediate_size
    if learner.gradient_checkpointing:
        layers = text.num_layers * text.hidden_size + whole_layer
    else:
        layers = text.num_layers * whole_layer
    logits = 3 * FLOAT32 * tokens * max(text.vocab_size, shape.vq.num_codes)
    return tokens * layers * size + min(learner.logprob_chunk_mb * 2**20, logits)


def sequence_tokens(config: RunConfig, shape: ModelShape) -> int:
    """The longest sequence that is trained on or drawn: prompt, semantic CoT and picture."""
    return config.rollout.max_prompt_tokens + config.rollout.max_cot_tokens + shape.num_image_tokens


def mean_sequence_tokens(config: RunConfig, shape: ModelShape) -> int:
    """A finished picture's sequence with a CoT of half its limit and a short prompt."""
    return _MIDDLE_TOKENS + config.rollout.max_cot_tokens // 2 + shape.num_image_tokens


def rollout_worker(config: RunConfig, shape: ModelShape, device_bytes: int | None) -> Need:
    """One rollout worker, on each of its tensor-parallel devices; `device_bytes` of one, None on a CPU.

    The engine takes `rollout.gpu_memory_utilization` of the device, of which the KV cache is what the weights leave,
    or of `rollout.kv_cache_gib`.
    New weights are staged in the memory of the host, see docs/weight_sync.md.
    """
    rollout, size = config.rollout, bytes_per_value(config.model.dtype)
    weights = (shape.drawing + _engine_adapters(config, shape)) * size // rollout.tensor_parallel_size
    cache = rollout.kv_cache_bytes
    if cache is None:
        cache = max(0, int(rollout.gpu_memory_utilization * (device_bytes or 0)) - weights - CONTEXT_BYTES)
    decoder = shape.vq.parameters * FLOAT32 + decoder_activations(shape, rollout.decode_batch_size)
    is_staged = device_bytes is None and rollout.engine == "vllm" and config.weight_sync.staged
    keeps_version = device_bytes is None and config.weight_sync.delta
    return Need(
        {
            "weights": weights,
            "staged weights": weights if is_staged else 0,
            "kept version": trained_parameters(config, shape) * size if keeps_version else 0,
            "KV cache": cache,
            "VQ decoder": decoder,
            "context": 0 if device_bytes is None else 2 * CONTEXT_BYTES,
        }
    )


def in_turns(config: RunConfig, shape: ModelShape, device_bytes: int) -> NeedInTurns:
    """A learner rank and a rollout worker on one GPU (`rollout.colocate`).

    While the engine sleeps, the worker holds its contexts and the VQ decoder's weights; while the learner's optimizer
    is offloaded, the rank holds weights, reference and buffers. Captured CUDA graphs, which stay, are not counted.
    """
    rank, worker = learner_rank(config, shape).parts, rollout_worker(config, shape, device_bytes).parts
    contexts = rank["context"] + worker["context"]
    learning = Need({**rank, "VQ decoder": shape.vq.parameters * FLOAT32, "context": contexts})
    resting = {f"learner's {name}": rank[name] for name in ("weights", "reference", "buffers")}
    drawing = Need({**worker, **resting, "context": contexts})
    largest = max(learning, drawing, key=lambda need: need.total)
    return NeedInTurns(largest.parts, {"drawing": drawing, "learning": learning})


def pictures_at_once(config: RunConfig, shape: ModelShape, cache_bytes: int) -> int:
    """Finished pictures whose KV cache fits, with plans of the usual length."""
    rollout = config.rollout
    streams = 2 if rollout.guidance_scale != 1 else 1
    per_token = shape.text.kv_bytes_per_token(bytes_per_value(config.model.dtype), streams)
    return cache_bytes * rollout.tensor_parallel_size // (per_token * mean_sequence_tokens(config, shape))


def decoder_activations(shape: ModelShape, batch_size: int) -> int:
    """Peak of the VQ decoder's live float32 tensors for a batch.

    Walks through the decoder as transformers runs it and keeps the largest sum of tensors that live at once: of a
    residual block its input, what it has normalised, and the gate or the next convolution's output.
    """
    vq, side = shape.vq, shape.image_size // shape.patch_size
    peak, width = 0, vq.widths[-1]
    for level in reversed(range(len(vq.widths))):
        area, out = side * side, vq.widths[level]
        for _ in range(vq.num_res_blocks + 1):
            peak = max(peak, area * _residual_block_peak(width, out))
            width = out
        if level:
            # The upsampled input and the convolution's output.
            peak = max(peak, (area + 4 * area * 2) * width)
            side *= 2
    peak = max(peak, side * side * 3 * width)  # the last normalisation, its gate, and its input
    codes = (shape.image_size // shape.patch_size) ** 2 * (vq.latent_channels + vq.embed_dim)
    return (peak + codes) * FLOAT32 * batch_size


def _residual_block_peak(inputs: int, outputs: int) -> int:
    """Most channels that live at once: input, normalised input and gate; input, conv's input and its output; input, the
    first convolution's output and its normalised one; at the end a shortcut, if there is one, and the sum."""
    with_shortcut = inputs + 3 * outputs if inputs != outputs else 0
    return max(3 * inputs, 2 * inputs + outputs, inputs + 2 * outputs, with_shortcut)
