"""A small random BLIP-VQA under its authors' names, and a tokenizer for it."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor
from transformers import BlipConfig, BlipForQuestionAnswering, PreTrainedTokenizerFast

from rewards.rehearsal.tokenizers import save_bert_tokenizer

WORDS = ("yes", "no", "a", "the", "red", "green", "blue", "bench", "bowl", "car", "round", "?", ",", "and", "metal")
VOCABULARY = {word: index for index, word in enumerate(("[PAD]", "[UNK]", "[CLS]", "[SEP]", *WORDS, "[DEC]", "[ENC]"))}
IMAGE_SIZE = 32
IN_BLOCK = {
    "self_attn.qkv": "attn.qkv",
    "self_attn.projection": "attn.proj",
    "layer_norm1": "norm1",
    "layer_norm2": "norm2",
    "mlp.fc1": "mlp.fc1",
    "mlp.fc2": "mlp.fc2",
}
VISION = {
    "embeddings.class_embedding": "cls_token",
    "embeddings.position_embedding": "pos_embed",
    "embeddings.patch_embedding.weight": "patch_embed.proj.weight",
    "embeddings.patch_embedding.bias": "patch_embed.proj.bias",
    "post_layernorm.weight": "norm.weight",
    "post_layernorm.bias": "norm.bias",
}


def tiny_blip_vqa() -> BlipForQuestionAnswering:
    torch.manual_seed(0)
    shared = {"hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 1}
    text = {
        **shared,
        "vocab_size": len(VOCABULARY),
        "encoder_hidden_size": 64,
        "max_position_embeddings": 40,
        "hidden_act": "gelu",
        "is_decoder": True,
    }
    vision = {**shared, "image_size": IMAGE_SIZE, "patch_size": 8, "layer_norm_eps": 1e-6, "hidden_act": "gelu"}
    model = BlipForQuestionAnswering(BlipConfig(text_config=text, vision_config=vision)).eval()
    for name, weight in model.named_parameters():
        torch.nn.init.normal_(weight, mean=1.0 if "norm" in name.lower() and weight.ndim == 1 else 0.0, std=0.3)
    return model


def as_original(model: BlipForQuestionAnswering) -> dict[str, Tensor]:
    """Its weights as the authors' file holds them."""
    written: dict[str, Tensor] = {}
    for name, tensor in model.state_dict().items():
        tower, _, rest = name.partition(".")
        if tower != "vision_model":
            written[name] = tensor
        elif rest in VISION:
            written[f"visual_encoder.{VISION[rest]}"] = tensor
        else:
            _, _, layer, *module, kind = rest.split(".")
            written[f"visual_encoder.blocks.{layer}.{IN_BLOCK['.'.join(module)]}.{kind}"] = tensor
    return written


def save_tiny_blip(folder: Path) -> Path:
    """model_base_vqa_capfilt_large.pth and the folder `bert`; returns the folder."""
    torch.save({"model": as_original(tiny_blip_vqa())}, folder / "model_base_vqa_capfilt_large.pth")
    (folder / "bert").mkdir()
    save_bert_tokenizer(folder / "bert", VOCABULARY)
    return folder


def tokenizer(folder: Path) -> PreTrainedTokenizerFast:
    loaded: PreTrainedTokenizerFast = PreTrainedTokenizerFast.from_pretrained(folder / "bert")
    return loaded
