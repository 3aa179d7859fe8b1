"""Janus as a policy: log-probabilities of given CoTs and given pictures.

    context ids ──embed_tokens──┐                             ┌─► lm_head ─────────► CoT log-probabilities
                                ├─► language model ─► hidden ─┤
    CoT ids ──embed_tokens──────┤                             └─► generation_head ─► image log-probabilities
    VQ codes ─embeddings+aligner┘

Each phase is one forward pass of the language model (teacher forcing). The continuation follows its context without a
gap, and padding is on the right, where causal attention does not look. So a causal forward pass without an attention
mask, at positions 0, 1, 2, ..., gives every real token the same result as a pass over its sequence alone.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from fnmatch import fnmatchcase
from typing import Any

import torch
from safetensors import SafetensorError
from torch import Tensor, nn
from transformers import JanusForConditionalGeneration

from configs.errors import ModelError
from configs.learner_sections import LANGUAGE_MODEL, LoraConfig
from learner.lora import checkpoint_names
from learner.objective.logprobs import LogprobHead
from learner.objective.phase_tokens import LogprobRequest, PhaseTokens
from rollout.guidance import guided_logits, unconditional_ids
from rollout.janus_checkpoint import JanusCheckpoint, SpecialIds, resolve_folder
from rollout.weights.adapters import LoraLinear, adapter_parameters, add_adapters, named_adapters
from rollout.weights.manifest import ENGINE_PARTS, part_of

EVERYTHING = tuple(f"{part}*" for part in ENGINE_PARTS)
"""Patterns that match every parameter of a policy."""


def load_janus(path: str, dtype: torch.dtype, revision: str | None = None) -> JanusForConditionalGeneration:
    """The model of a hub id or folder, in `dtype`, on the CPU.

    Raises ModelError when it cannot be loaded, or lacks weights: transformers would draw them at random.
    """
    folder = resolve_folder(path, revision)
    try:
        model, loading = JanusForConditionalGeneration.from_pretrained(
            str(folder), dtype=dtype, local_files_only=True, output_loading_info=True
        )
    except (OSError, ValueError, KeyError, RuntimeError, SafetensorError) as error:
        raise ModelError(f"model {folder}: its weights cannot be loaded: {error}") from error
    wrong = sorted({*loading["missing_keys"], *(entry[0] for entry in loading["mismatched_keys"])})
    if wrong:
        raise ModelError(
            f"model {folder}: {len(wrong)} weights are missing or have another shape, {wrong[0]} among them; "
            "is it a whole Janus checkpoint?"
        )
    return model


class JanusParts(nn.Module):
    """The parts of a Janus model that write and draw, named as in the model and in its checkpoints.

    The modules are this object's own, so adapters, other heads and gradient checkpointing do not show in the
    model that they came from. The weights are not copied: its parameters share the memory of the model's.
    """

    model: Any
    lm_head: LogprobHead

    def __init__(self, janus: JanusForConditionalGeneration, logprob_chunk_bytes: int) -> None:
        super().__init__()
        # In the model's own order: it is the order of optimizer states and weight buckets.
        trunk: Any = nn.Module()
        for name in ("generation_embeddings", "generation_aligner", "generation_head", "language_model"):
            trunk.add_module(name, _copy_modules(getattr(janus.model, name)))
        trunk.generation_head.vision_head = LogprobHead(trunk.generation_head.vision_head, logprob_chunk_bytes)
        self.model = trunk
        self.lm_head = LogprobHead(_copy_modules(janus.lm_head), logprob_chunk_bytes)
        if janus.lm_head.weight is janus.model.language_model.embed_tokens.weight:
            self.lm_head.weight = trunk.language_model.embed_tokens.weight


def _copy_modules(module: nn.Module) -> Any:
    """A copy of `module` whose parameters are new ones over the same memory."""
    shared = {id(p): nn.Parameter(p.detach(), requires_grad=p.requires_grad) for p in module.parameters()}
    return copy.deepcopy(module, memo=dict(shared))


class JanusPolicy(nn.Module):
    """Log-probabilities of given tokens under the parts of Janus that write and draw.

    Of these parts, parameters whose names match a pattern of `trainable` train, by default the language model
    and its head (a warm start trains everything, since it may start from random weights). The vision model and the
    VQ model are not held: they never change in training.

    Log-probabilities are float32, unguided and at temperature 1 unless asked for otherwise. Under ZeRO-3
    all ranks must make the same calls in the same order, since every call of a module gathers its
    parameters from all.
    """

    def __init__(
        self,
        janus: JanusForConditionalGeneration,
        *,
        special_ids: SpecialIds,
        logprob_chunk_bytes: int,
        trainable: Sequence[str] = LANGUAGE_MODEL,
        lora: LoraConfig | None = None,
    ) -> None:
        """`janus` stays as it is and usable, but its weights are shared: training the policy changes them, too.

        special_ids: those of the checkpoint; logprob_chunk_bytes: that logits may take at
        once; trainable: names in the Hugging Face checkpoint, with wildcards as in the shell; lora: adapters, which
        then train in their place. Raises ModelError for a pattern that no parameter matches.
        """
        super().__init__()
        self._special_ids = special_ids
        self._text_vocab_size: int = janus.config.text_config.vocab_size
        self.model = JanusParts(janus, logprob_chunk_bytes)
        self._is_checkpointing = False
        names = [name for name, _ in self.model.named_parameters()]
        for pattern in trainable:
            if not any(fnmatchcase(name, pattern) for name in names):
                raise ModelError(
                    f"learner.trainable: no parameter's name matches '{pattern}'; names are like {names[0]}"
                )
        for name, parameter in self.model.named_parameters():
            is_trainable = lora is None and any(fnmatchcase(name, pattern) for pattern in trainable)
            parameter.requires_grad_(is_trainable)
        if lora is not None:
            add_adapters(self.model.model.language_model, lora)
        self.eval()

    @classmethod
    def load(
        cls,
        path: str,
        dtype: torch.dtype,
        *,
        logprob_chunk_bytes: int,
        revision: str | None = None,
        trainable: Sequence[str] = LANGUAGE_MODEL,
        lora: LoraConfig | None = None,
        janus: JanusForConditionalGeneration | None = None,
    ) -> JanusPolicy:
        """From a hub id or folder, on the CPU. janus: what `load_janus` gave of it. Raises ModelError."""
        return cls(
            janus or load_janus(path, dtype, revision),
            special_ids=JanusCheckpoint.from_pretrained(path, revision, weights=True).special_ids,
            logprob_chunk_bytes=logprob_chunk_bytes,
            trainable=trainable,
            lora=lora,
        )

    def enable_gradient_checkpointing(self) -> None:
        """Keep only each layer's input for backward. Janus has no dropout, so training mode changes nothing else."""
        language_model = self.model.model.language_model
        # Reentrant, because ZeRO-3 has let a layer's parameters go when the other kind wants them.
        language_model.gradient_checkpointing_enable({"use_reentrant": True})
        language_model.train()
        self._is_checkpointing = True

    def named_trainable_parameters(self) -> list[tuple[str, nn.Parameter]]:
        """(name, parameter) of everything that trains, in the model's order; names are those of the Hugging Face
        checkpoint, but for adapters, which it does not have."""
        return [(name, parameter) for name, parameter in self.model.named_parameters() if parameter.requires_grad]

    def named_changing_parameters(self) -> list[tuple[str, nn.Parameter]]:
        """(name in the Hugging Face checkpoint, parameter) of what training changes, with what is frozen beside it:
        engines take a part of the model (`ENGINE_PARTS`) as a whole. Adapters are left out; see `adapters`."""
        parts = {part_of(name) for name, _ in self.named_trainable_parameters()}
        name_of = checkpoint_names(self.model)
        return [
            (name_of[name], parameter)
            for name, parameter in self.model.named_parameters()
            if name in name_of and part_of(name) in parts
        ]

    def share_frozen(self, other: JanusPolicy) -> None:
        """Take the memory of the parameters that `other` does not train in place of copies. Both must be of the same
        checkpoint, in the same precision, and whole on this rank."""
        own = dict(self.model.named_parameters())
        for name, parameter in other.model.named_parameters():
            if not parameter.requires_grad:
                own[name].data = parameter.data

    def named_exported_parameters(self) -> list[tuple[str, nn.Parameter]]:
        """(name, parameter) of what engines need to follow the policy: the adapters alone, where there are some, under
        PEFT's names; else `named_changing_parameters`."""
        return list(adapter_parameters(self.model).items()) or self.named_changing_parameters()

    def adapters(self) -> dict[str, LoraLinear]:
        """Name of a linear layer in the Hugging Face checkpoint -> the layer with its adapter."""
        return named_adapters(self.model)

    def forward(self, request: LogprobRequest) -> tuple[Tensor, Tensor]:
        """Teacher-forced log-probability of each target, and the entropy there, each [B, N], nats.

        Values where the mask is False mean nothing. Each phase has a forward and a backward pass of its own: that
        halves the memory of activations, and ZeRO-3 with gradient checkpointing allows a layer once in a forward pass.
        """
        tokens = request.tokens.distinct()
        targets = tokens.target_ids
        last_layer: LogprobHead
        if tokens.phase == "cot":
            last_layer, features = self.model.lm_head, self._text_features(tokens)
        else:
            last_layer, features = self.model.model.generation_head.vision_head, self._image_features(request)
        logprobs, entropy = last_layer(
            features, targets.reshape(-1), temperature=request.temperature, entropy_gradient=request.entropy_gradient
        )
        num_sharing = request.tokens.num_sharing
        return _for_all(logprobs.view_as(targets), num_sharing), _for_all(entropy.view_as(targets), num_sharing)

    def _text_features(self, tokens: PhaseTokens) -> Tensor:
        """Input of the text head's last layer, [B N, d]."""
        embed = self.model.model.language_model.embed_tokens
        (features,) = self._hidden(embed(tokens.context_ids), embed(tokens.target_ids), tokens)
        return features

    def _image_features(self, request: LogprobRequest) -> Tensor:
        """Input of the image head's last layer, [B N, d]; with guidance, the mix of both streams."""
        janus, tokens = self.model.model, request.tokens
        context_ids = tokens.context_ids
        if request.unconditional_rows is not None:
            dropped = unconditional_ids(context_ids, self._special_ids, self._text_vocab_size)
            context_ids = torch.where(request.unconditional_rows[:, None], dropped, context_ids)
        if request.guidance_scales is not None:
            # Both streams pass as one batch of 2B rows, the conditional one first.
            dropped = unconditional_ids(context_ids, self._special_ids, self._text_vocab_size)
            context_ids = torch.cat([context_ids, dropped])
        codes = janus.generation_aligner(janus.generation_embeddings(tokens.target_ids))
        head = janus.generation_head
        hidden = self._hidden(janus.language_model.embed_tokens(context_ids), codes, tokens)
        features: Tensor = head.activation_fn(head.proj_out(hidden))
        return features[0] if request.guidance_scales is None else _guided(features, request.guidance_scales)

    def _hidden(self, context: Tensor, targets: Tensor, tokens: PhaseTokens) -> Tensor:
        """The hidden states that predict the targets, [num_streams, B N, d].

        context [num_streams B, P, d] and targets [B, N, d] are embeddings; all streams have the same targets.
        """
        num_rows, num_targets, width = targets.shape
        num_streams = len(context) // num_rows
        steps = torch.arange(num_targets, device=targets.device)
        places = (tokens.context_lengths[:, None] + steps).repeat(num_streams, 1)
        # The last target is predicted, but predicts nothing: it is no input.
        inputs = torch.cat([context, context.new_zeros(len(context), num_targets - 1, width)], dim=1)
        drawn = targets[:, :-1].repeat(num_streams, 1, 1)
        inputs = inputs.scatter(1, places[:, :-1, None].expand(-1, -1, width), drawn)
        if self._is_checkpointing and torch.is_grad_enabled() and not inputs.requires_grad:
            inputs.requires_grad_()  # where the embedding is frozen: reentrant checkpointing asks its inputs alone
        hidden: Tensor = self.model.model.language_model(inputs_embeds=inputs, use_cache=False).last_hidden_state
        return hidden.gather(1, (places - 1)[..., None].expand(-1, -1, width)).reshape(num_streams, -1, width)


def _for_all(values: Tensor, num_sharing: int) -> Tensor:
    """[B, N] of [B / num_sharing, N]: each row so many times, one behind the other."""
    return values.unsqueeze(1).expand(-1, num_sharing, -1).flatten(0, 1)


def _guided(features: Tensor, guidance_scales: Tensor) -> Tensor:
    """Input of the last layer for which it gives the guided logits (see `guided_logits`), [B N, d]. Mixed in float32
    or better.

    features: [2, B N, d], the conditional stream first.
    """
    exact = torch.promote_types(features.dtype, torch.float32)
    conditional, unconditional = features.to(exact)
    scales = guidance_scales.repeat_interleave(len(conditional) // len(guidance_scales))[:, None]
    return guided_logits(conditional, unconditional, scales).to(features.dtype)
