"""Janus as a policy: log-probabilities of given CoTs and given pictures.

    context ids ──embed_tokens──┐                             ┌─► lm_head ─────────► CoT log-probabilities
                                ├─► language model ─► hidden ─┤
    CoT ids ──embed_tokens──────┤                             └─► generation_head ─► image log-probabilities
    VQ codes ─embeddings+aligner┘

Each phase is one pass of the language model. Sequences have no gap: the continuation follows its context,
and padding comes last, where causal attention never looks. So the plain causal pass (no attention
mask, positions 0, 1, 2, ...) gives every real token what it would get alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from fnmatch import fnmatchcase

import torch
from safetensors import SafetensorError
from torch import Tensor, nn
from transformers import GenerationConfig, JanusForConditionalGeneration

from configs.errors import ModelError
from configs.learner_sections import LANGUAGE_MODEL, LoraConfig
from learner.lora import LoraLinear, add_adapters, checkpoint_name, named_adapters
from learner.objective.logprobs import LogprobHead
from learner.objective.phase_tokens import PhaseTokens
from rollout.guidance import guided_logits
from rollout.janus_checkpoint import resolve_folder
from rollout.weights.manifest import ENGINE_PARTS, part_of

EVERYTHING = tuple(f"{part}*" for part in ENGINE_PARTS)
"""Patterns of all that a policy keeps of a model."""


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


class JanusPolicy(nn.Module):
    """The parts of Janus that write and draw. Only these are kept; the others never change in training.

    Of them, parameters whose names match a pattern of `trainable` train, by default the language model
    and its head (a warm start trains everything, since it may start from random weights).

    Log-probabilities are float32, unguided and at temperature 1 unless asked for otherwise. Under ZeRO-3
    all ranks must make the same calls in the same order, since every call of a module gathers its
    parameters from all.
    """

    def __init__(
        self,
        model: JanusForConditionalGeneration,
        *,
        logprob_chunk_tokens: int,
        trainable: Sequence[str] = LANGUAGE_MODEL,
        lora: LoraConfig | None = None,
    ) -> None:
        """Takes over `model`: its vision model, vision aligner and VQ model are let go, its heads give no logits.

        logprob_chunk_tokens: tokens of a vocabulary whose logits are held at once; trainable: names in
        the Hugging Face checkpoint, with wildcards as in the shell; lora: adapters, which then train in their place.
        Raises ModelError when the generation config does not name BOS, pad and begin-of-image, and for
        a pattern that no parameter matches.
        """
        super().__init__()
        self.kept_in_context = _kept_in_context(model.generation_config)
        self.pad_id: int = model.generation_config.pad_token_id
        for part in ("vision_model", "aligner", "vqmodel"):
            delattr(model.model, part)
        model.lm_head = LogprobHead(model.lm_head, logprob_chunk_tokens)
        head = model.model.generation_head
        head.vision_head = LogprobHead(head.vision_head, logprob_chunk_tokens)
        self.model = model
        self._is_checkpointing = False
        names = [name for name, _ in model.named_parameters()]
        for pattern in trainable:
            if not any(fnmatchcase(name, pattern) for name in names):
                raise ModelError(
                    f"learner.trainable: no parameter's name matches '{pattern}'; names are like {names[0]}"
                )
        for name, parameter in model.named_parameters():
            is_trainable = lora is None and any(fnmatchcase(name, pattern) for pattern in trainable)
            parameter.requires_grad_(is_trainable)
        if lora is not None:
            add_adapters(model.model.language_model, lora)
        self.eval()

    @classmethod
    def load(
        cls,
        path: str,
        dtype: torch.dtype,
        *,
        logprob_chunk_tokens: int,
        revision: str | None = None,
        trainable: Sequence[str] = LANGUAGE_MODEL,
        lora: LoraConfig | None = None,
    ) -> JanusPolicy:
        """From a hub id or folder, on the CPU. Raises ModelError."""
        model = load_janus(path, dtype, revision)
        return cls(model, logprob_chunk_tokens=logprob_chunk_tokens, trainable=trainable, lora=lora)

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
        own = {id(factor) for layer in self.adapters().values() for factor in (layer.lora_a, layer.lora_b)}
        return [
            (checkpoint_name(name), parameter)
            for name, parameter in self.model.named_parameters()
            if part_of(name) in parts and id(parameter) not in own
        ]

    def adapters(self) -> dict[str, LoraLinear]:
        """Name of a weight in the Hugging Face checkpoint -> the layer with the adapter that changes it."""
        return named_adapters(self.model)

    def forward(
        self,
        tokens: PhaseTokens,
        unconditional: Tensor | None = None,
        *,
        guidance_scales: Tensor | None = None,
        temperature: float = 1.0,
        entropy_gradient: bool = False,
    ) -> tuple[Tensor, Tensor]:
        """Teacher-forced log-probability of each target, and the entropy there, each [B, N], nats.

        Values where the mask is False mean nothing. Phases go one by one, each with its own backward
        pass: that halves the activations, and ZeRO-3 with gradient checkpointing takes a layer once a pass.

        unconditional: bool [B], for pictures; these rows are drawn without their prompt: every
        context token but BOS and begin-of-image becomes the pad token, still attended to, as in the
        unconditional stream of classifier-free guidance.
        guidance_scales: float [B], for pictures; then both streams pass, as one batch of 2B rows, and the
        distribution is the guided one that the engine samples from, `softmax((u + w (c - u)) / temperature)`.
        entropy_gradient: the entropy carries a gradient, as an entropy bonus needs it.
        """
        janus = self.model.model
        context_ids = tokens.context_ids
        if unconditional is not None:
            context_ids = self.drop_prompt(context_ids, unconditional)
        embed_text = janus.language_model.embed_tokens
        last_layer: LogprobHead
        if tokens.phase == "cot":
            last_layer = self.model.lm_head
            (features,) = self._hidden(embed_text(context_ids), embed_text(tokens.target_ids), tokens)
        else:
            if guidance_scales is not None:
                everywhere = torch.ones_like(tokens.context_lengths, dtype=torch.bool)
                context_ids = torch.cat([context_ids, self.drop_prompt(context_ids, everywhere)])
            codes = janus.generation_aligner(janus.generation_embeddings(tokens.target_ids))
            head = janus.generation_head
            last_layer = head.vision_head
            features = head.activation_fn(head.proj_out(self._hidden(embed_text(context_ids), codes, tokens)))
            features = features[0] if guidance_scales is None else _guided(features, guidance_scales)
        logprobs, entropy = last_layer(
            features, tokens.target_ids.reshape(-1), temperature=temperature, entropy_gradient=entropy_gradient
        )
        return logprobs.view_as(tokens.target_ids), entropy.view_as(tokens.target_ids)

    def drop_prompt(self, context_ids: Tensor, rows: Tensor) -> Tensor:
        """context_ids int64 [B, P] with all but BOS and begin-of-image replaced by pad where rows [B] is True."""
        kept = torch.isin(context_ids, context_ids.new_tensor(self.kept_in_context))
        return context_ids.masked_fill(rows[:, None] & ~kept, self.pad_id)

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


def _guided(features: Tensor, guidance_scales: Tensor) -> Tensor:
    """What the last layer makes the guided logits of (see `guided_logits`), [B N, d], mixed in float32 or better.

    features: [2, B N, d], the conditional stream first.
    """
    exact = torch.promote_types(features.dtype, torch.float32)
    conditional, unconditional = features.to(exact)
    scales = guidance_scales.repeat_interleave(len(conditional) // len(guidance_scales))[:, None]
    return guided_logits(conditional, unconditional, scales).to(features.dtype)


def _kept_in_context(generation_config: GenerationConfig) -> list[int]:
    """Ids of BOS and begin-of-image."""
    ids = {
        "bos_token_id": generation_config.bos_token_id,
        "pad_token_id": generation_config.pad_token_id,
        "generation_kwargs.boi_token_id": (getattr(generation_config, "generation_kwargs", None) or {}).get(
            "boi_token_id"
        ),
    }
    missing = [name for name, value in ids.items() if value is None]
    if missing:
        raise ModelError(f"the model's generation_config.json lacks {', '.join(missing)}; add it")
    return [ids["bos_token_id"], ids["generation_kwargs.boi_token_id"]]
