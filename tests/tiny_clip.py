"""A small random CLIP with a tokenizer of a few words."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import CLIPConfig, CLIPImageProcessorPil, CLIPModel, PreTrainedTokenizerFast

from rewards.objects.geneval import COLORS


def save_tiny_clip(path: Path, names: Sequence[str]) -> Path:
    """Write it with the words of GenEval's templates and these names; returns the folder."""
    torch.manual_seed(2)
    named = {word for name in names for word in name.split()}
    words = ["<start>", "<unk>", *sorted({"a", "photo", "of", "-", "colored", "object", *COLORS, *named}), "<end>"]
    ids = {word: index for index, word in enumerate(words)}
    tokenizer = Tokenizer(models.WordLevel(ids, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<start> $A <end>", special_tokens=[("<start>", 0), ("<end>", ids["<end>"])]
    )
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, unk_token="<unk>", pad_token="<end>", model_max_length=24
    ).save_pretrained(path)
    tower = {"num_hidden_layers": 2, "num_attention_heads": 2, "hidden_size": 32, "intermediate_size": 64}
    CLIPModel(
        CLIPConfig(
            vision_config={**tower, "image_size": 32, "patch_size": 8, "initializer_factor": 8.0},
            text_config={
                **tower,
                "vocab_size": len(words),
                "max_position_embeddings": 24,
                "bos_token_id": 0,
                "eos_token_id": ids["<end>"],
                "initializer_factor": 8.0,
            },
            projection_dim=16,
        )
    ).save_pretrained(path)
    CLIPImageProcessorPil(size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32}).save_pretrained(path)
    return path
