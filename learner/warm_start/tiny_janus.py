"""A Janus small enough for a laptop: transformers' own class, with its own word-level tokenizer.

    TinyJanusConfig + words ─► build_tiny_janus ─► (model, tokenizer) ─► save_pretrained_model ─► folder

The folder is a plain Hugging Face checkpoint: `JanusForConditionalGeneration.from_pretrained` and
`AutoTokenizer.from_pretrained` load it, and `model.generate(..., generation_mode="image")` draws.
Special tokens and roles are spelled as in Janus-Pro's tokenizer, so that nothing downstream needs
to know which of the two it holds. Words are lower-cased; unknown ones become `<unk>`.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

import torch
from tokenizers import AddedToken, Tokenizer
from tokenizers.models import WordLevel
from tokenizers.normalizers import Lowercase
from tokenizers.pre_tokenizers import Whitespace
from transformers import (
    GenerationConfig,
    JanusConfig,
    JanusForConditionalGeneration,
    JanusVisionConfig,
    JanusVQVAEConfig,
    LlamaConfig,
    PreTrainedTokenizerFast,
)

from configs.schema import TinyJanusConfig
from rollout.prompts.conversation import ConversationFormat

PAD, BOS, EOS, UNK = "<｜▁pad▁｜>", "<｜begin▁of▁sentence｜>", "<｜end▁of▁sentence｜>", "<unk>"
BEGIN_OF_IMAGE, END_OF_IMAGE, IMAGE = "<begin_of_image>", "<end_of_image>", "<image_placeholder>"
USER, ASSISTANT = "<|User|>", "<|Assistant|>"
SPECIAL_TOKENS = (PAD, BOS, EOS, UNK, BEGIN_OF_IMAGE, END_OF_IMAGE, IMAGE, USER, ASSISTANT)

PUNCTUATION = (".", ",", ";", ":", "!", "?", "-", "'", '"', "(", ")")

TINY_FORMAT = ConversationFormat(system_prompt="", instruction="{prompt}")
"""A tiny policy knows one task, and is asked in as few tokens as possible."""
TINY_GUIDANCE_SCALE = 2.0
"""The best of the measured scales for a policy of this size: with 1 and 3 pictures are worse."""

# BOS, the system message's own words, then each turn behind its role. A message's content is a
# string, or a list of parts of which the text ones count (the form multimodal callers use).
CHAT_TEMPLATE = """\
{{- bos_token -}}
{%- for message in messages -%}
{%- if message['role'] == 'user' -%}<|User|>{%- elif message['role'] == 'assistant' -%}<|Assistant|>{%- endif -%}
{%- if message['content'] is string -%}{{ message['content'] }}
{%- else -%}
{%- for part in message['content'] if part['type'] == 'text' -%}{{ part['text'] }}{%- endfor -%}
{%- endif -%}
{%- if message['role'] == 'assistant' -%}{{ eos_token }}{%- endif -%}
{%- endfor -%}
{%- if add_generation_prompt -%}<|Assistant|>{%- endif -%}
"""


def collect_words(texts: Iterable[str]) -> list[str]:
    """Every different word and punctuation mark of `texts`, lower-cased and sorted, as the tokenizer splits them."""
    splitter = Whitespace()
    return sorted({word for text in texts for word, _ in splitter.pre_tokenize_str(text.lower())})


def build_tokenizer(words: Sequence[str]) -> PreTrainedTokenizerFast:
    """A word-level tokenizer of the special tokens, punctuation and `words`, in this order."""
    entries = dict.fromkeys((*SPECIAL_TOKENS, *PUNCTUATION, *(word.lower() for word in words)))
    backend = Tokenizer(WordLevel({entry: index for index, entry in enumerate(entries)}, unk_token=UNK))
    backend.normalizer = Lowercase()
    backend.pre_tokenizer = Whitespace()
    backend.add_special_tokens([AddedToken(token, normalized=False, special=True) for token in SPECIAL_TOKENS])
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        pad_token=PAD,
        bos_token=BOS,
        eos_token=EOS,
        unk_token=UNK,
        extra_special_tokens={"image_token": IMAGE, "boi_token": BEGIN_OF_IMAGE, "eoi_token": END_OF_IMAGE},
        chat_template=CHAT_TEMPLATE,
        padding_side="left",
        clean_up_tokenization_spaces=False,
    )


def build_tiny_janus(
    config: TinyJanusConfig, words: Sequence[str], weight_std: float | None = None
) -> tuple[JanusForConditionalGeneration, PreTrainedTokenizerFast]:
    """A float32 Janus with random weights (seeded by `config.seed`) and its tokenizer.

    It draws pictures of `config.image_size` pixels a side; its text vocabulary is the tokenizer's.
    weight_std: standard deviation of the matrices that write and draw; None is what trains well, 1 / √hidden_size.
    """
    tokenizer = build_tokenizer(words)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.seed)
        model = JanusForConditionalGeneration(_model_config(config, tokenizer, weight_std)).float().eval()
    model.generation_config = GenerationConfig(
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        guidance_scale=TINY_GUIDANCE_SCALE,
        generation_kwargs={"boi_token_id": tokenizer.convert_tokens_to_ids(BEGIN_OF_IMAGE)},
    )
    return model, tokenizer


def save_pretrained_model(
    model: JanusForConditionalGeneration, tokenizer: PreTrainedTokenizerFast, directory: Path
) -> None:
    """Write a tiny Janus, its tokenizer and its conversation format as one Hugging Face folder."""
    model.save_pretrained(directory)
    tokenizer.save_pretrained(directory)
    TINY_FORMAT.save(directory)


def save_random_tiny_janus(
    directory: Path, config: TinyJanusConfig, words: Sequence[str], weight_std: float = 0.06
) -> JanusForConditionalGeneration:
    """Write an untrained tiny Janus, for tests and benchmarks, and return it.

    weight_std: see `build_tiny_janus`; smaller ones make every next-token distribution nearly uniform,
    which hides mistakes.
    """
    model, tokenizer = build_tiny_janus(config, words, weight_std)
    save_pretrained_model(model, tokenizer, directory)
    return model


def _model_config(config: TinyJanusConfig, tokenizer: PreTrainedTokenizerFast, weight_std: float | None) -> JanusConfig:
    hidden_size, num_patches = config.hidden_size, config.image_size // config.patch_size
    text = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=hidden_size,
        intermediate_size=hidden_size * 8 // 3 // 32 * 32,
        num_hidden_layers=config.num_layers,
        num_attention_heads=config.num_heads,
        num_key_value_heads=config.num_heads,
        # transformers' 0.02 is that of models 20 times as wide; from it the warm start took three times the steps.
        initializer_range=weight_std or hidden_size**-0.5,
        max_position_embeddings=config.max_positions,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    # Janus reads pictures through its vision model, which drawing never uses: as small as it goes.
    vision = JanusVisionConfig(
        image_size=config.image_size,
        patch_size=config.patch_size,
        hidden_size=32,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_image_tokens=num_patches**2,
        projection_dim=hidden_size,
    )
    # Each level but the last halves the picture; GroupNorm wants channels in multiples of 32. Residual
    # blocks at full resolution would take most of the training time, and such pictures need none.
    num_levels = config.patch_size.bit_length()
    vq = JanusVQVAEConfig(
        num_embeddings=config.num_codes,
        embed_dim=8,
        latent_channels=32,
        base_channels=32,
        channel_multiplier=[1] * num_levels,
        num_res_blocks=0,
        num_patches=num_patches,
        projection_dim=hidden_size,
        image_token_embed_dim=hidden_size,
    )
    return JanusConfig(
        text_config=text.to_dict(),
        vision_config=vision.to_dict(),
        vq_config=vq.to_dict(),
        image_token_id=tokenizer.convert_tokens_to_ids(IMAGE),
        tie_word_embeddings=False,
    )
