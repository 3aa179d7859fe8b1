"""Random models of the classes of each reward, a few layers each, that see pictures in their published size.

What a reward does beside its model (resizing, tokenizing, reading the answer) is then most of the work.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Final

import torch
from safetensors.torch import save_file
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from torch import nn
from transformers import (
    BlipTextConfig,
    BlipTextModel,
    BlipVisionConfig,
    BlipVisionModel,
    CLIPConfig,
    CLIPImageProcessorPil,
    CLIPModel,
    GitConfig,
    GitForCausalLM,
    GroundingDinoConfig,
    GroundingDinoForObjectDetection,
    GroundingDinoImageProcessorPil,
    LlavaOnevisionConfig,
    LlavaOnevisionForConditionalGeneration,
    Mask2FormerConfig,
    Mask2FormerForUniversalSegmentation,
    PreTrainedTokenizerFast,
    Qwen2_5_VLConfig,
    Qwen2_5_VLForConditionalGeneration,
    Qwen2VLConfig,
    Qwen2VLImageProcessorPil,
    Qwen2VLModel,
    SiglipImageProcessorPil,
    SiglipVisionConfig,
    SiglipVisionModel,
    ViTConfig,
    ViTForImageClassification,
    ViTImageProcessorPil,
)

from rewards.alignment.orm import BEFORE_PICTURE, QUESTION
from rewards.loading.blip import HEAD_SIZE
from rewards.loading.score_head import PUBLISHED_NUMBERS
from rewards.objects.coco import CLASS_NAMES
from rewards.preference.aesthetic_v2_5 import HEAD_NAME, HEAD_NUMBERS
from rewards.preference.hpsv3 import HEAD_NUMBERS as HPSV3_HEAD_NUMBERS
from rewards.preference.hpsv3 import INSTRUCTION
from rewards.rehearsal.tokenizers import BERT_SPECIAL, save_bert_tokenizer

PROMPT_WORDS: Final = ("a", "red", "blue", "star", "above", "circle", "cat", "dog")
_TOWER: Final = {"num_hidden_layers": 2, "num_attention_heads": 2, "hidden_size": 64, "intermediate_size": 128}
_SWIN: Final = {"embed_dim": 16, "depths": [1, 1, 1, 1], "num_heads": [1, 1, 2, 2], "window_size": 4}
_BERT_VOCABULARY: Final = {**BERT_SPECIAL, **{word: 1030 + i for i, word in enumerate((*PROMPT_WORDS, "yes", "no"))}}


def save_clip(folder: Path, **tower: Any) -> dict[str, Any]:
    """CLIP at 224 pixels, with 32 to a patch. tower: fields of both towers."""
    words = ("<start>", "<unk>", *PROMPT_WORDS, "<end>")
    tokenizer = _word_tokenizer(words, "<unk>")
    end = words.index("<end>")
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<start> $A <end>", special_tokens=[("<start>", 0), ("<end>", end)]
    )
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="<unk>", pad_token="<end>").save_pretrained(folder)
    shape = {**_TOWER, **tower}
    config = CLIPConfig(
        vision_config={**shape, "image_size": 224, "patch_size": 32, "projection_dim": 64},
        text_config={**shape, "vocab_size": len(words), "bos_token_id": 0, "eos_token_id": end},
        projection_dim=64,
    )
    CLIPModel(config).save_pretrained(folder)
    CLIPImageProcessorPil().save_pretrained(folder)
    return {"model": str(folder)}


def _save_pick_score(folder: Path) -> dict[str, Any]:
    return {**save_clip(folder), "processor": str(folder)}


def _save_aesthetic(folder: Path) -> dict[str, Any]:
    return {**save_clip(folder), "head": _save_head(folder / "head.pth", "layers", PUBLISHED_NUMBERS)}


def _save_aesthetic_v2_5(folder: Path) -> dict[str, Any]:
    SiglipVisionModel(SiglipVisionConfig(**_TOWER, image_size=384, patch_size=32)).save_pretrained(folder)
    SiglipImageProcessorPil(size={"height": 384, "width": 384}).save_pretrained(folder)
    return {"model": str(folder), "head": _save_head(folder / "head.pth", HEAD_NAME, HEAD_NUMBERS)}


def _save_head(path: Path, name: str, numbers: tuple[int, ...]) -> str:
    torch.save(_head_weights(f"{name}.", numbers, (64, 32, 16, 8, 4, 1)), path)
    return str(path)


def _head_weights(prefix: str, numbers: tuple[int, ...], widths: tuple[int, ...]) -> dict[str, torch.Tensor]:
    layers = zip(numbers, map(nn.Linear, widths[:-1], widths[1:]), strict=True)
    return {f"{prefix}{n}.{name}": tensor for n, layer in layers for name, tensor in layer.state_dict().items()}


def _save_image_reward(folder: Path) -> dict[str, Any]:
    """ImageReward's checkpoint, whose names are not transformers'."""
    width = 2 * HEAD_SIZE
    shape = {"hidden_size": width, "intermediate_size": width, "num_hidden_layers": 2, "num_attention_heads": 2}
    vision = BlipVisionModel(BlipVisionConfig(**shape, image_size=224, patch_size=16)).state_dict()
    words = {"vocab_size": 1100, "bos_token_id": None, "eos_token_id": None, "sep_token_id": None}
    text = BlipTextModel(
        BlipTextConfig(**shape, **words, encoder_hidden_size=width, is_decoder=True), add_pooling_layer=False
    ).state_dict()
    weights = {f"blip.visual_encoder.{_original_name(name)}": tensor for name, tensor in vision.items()}
    weights |= {f"blip.text_encoder.{name}": tensor for name, tensor in text.items()}
    weights |= _head_weights("mlp.layers.", PUBLISHED_NUMBERS, (width, 32, 16, 8, 4, 1))
    torch.save(weights, folder / "model.pt")
    save_bert_tokenizer(folder, _BERT_VOCABULARY)
    return {"model": str(folder / "model.pt"), "tokenizer": str(folder)}


def _original_name(name: str) -> str:
    """Of a weight of BLIP's vision tower, in its authors' code."""
    for ours, theirs in (
        ("embeddings.class_embedding", "cls_token"),
        ("embeddings.position_embedding", "pos_embed"),
        ("embeddings.patch_embedding", "patch_embed.proj"),
        ("post_layernorm", "norm"),
        ("encoder.layers.", "blocks."),
        ("self_attn.projection", "attn.proj"),
        ("self_attn", "attn"),
        ("layer_norm", "norm"),
    ):
        name = name.replace(ours, theirs)
    return name


def _save_grounding_dino(folder: Path) -> dict[str, Any]:
    config = GroundingDinoConfig(
        backbone_config={"model_type": "swin", "out_indices": [2, 3, 4], "image_size": 800, **_SWIN},
        text_config={"model_type": "bert", "vocab_size": 1100, **_TOWER},
        d_model=32,
        encoder_layers=1,
        decoder_layers=2,
        encoder_attention_heads=2,
        decoder_attention_heads=2,
        encoder_ffn_dim=32,
        decoder_ffn_dim=32,
        num_queries=24,
    )
    GroundingDinoForObjectDetection(config).save_pretrained(folder)
    save_bert_tokenizer(folder, _BERT_VOCABULARY)
    GroundingDinoImageProcessorPil().save_pretrained(folder)
    return {"model": str(folder)}


def _save_geneval(folder: Path) -> dict[str, Any]:
    config = Mask2FormerConfig(
        backbone_config={
            "model_type": "swin",
            "image_size": 800,
            "out_features": ["stage1", "stage2", "stage3", "stage4"],
            **_SWIN,
        },
        feature_size=32,
        mask_feature_size=32,
        hidden_dim=32,
        encoder_feedforward_dim=32,
        encoder_layers=1,
        decoder_layers=2,
        num_attention_heads=2,
        dim_feedforward=32,
        num_queries=8,
        id2label=dict(enumerate(CLASS_NAMES)),
    )
    Mask2FormerForUniversalSegmentation(config).save_pretrained(folder / "detector")
    return {"model": str(folder / "detector"), "clip": save_clip(folder)["model"]}


def _save_git(folder: Path) -> dict[str, Any]:
    vision = {**_TOWER, "image_size": 480, "patch_size": 32}
    GitForCausalLM(
        GitConfig(vision_config=vision, vocab_size=1100, bos_token_id=101, eos_token_id=102, **_TOWER)
    ).save_pretrained(folder)
    save_bert_tokenizer(folder, _BERT_VOCABULARY)
    size = {"height": 480, "width": 480}
    CLIPImageProcessorPil(size={"shortest_edge": 480}, crop_size=size).save_pretrained(folder)
    return {"model": str(folder)}


def _save_nsfw(folder: Path) -> dict[str, Any]:
    labels = {0: "normal", 1: "nsfw"}
    ViTForImageClassification(ViTConfig(**_TOWER, patch_size=32, id2label=labels)).save_pretrained(folder)
    ViTImageProcessorPil().save_pretrained(folder)
    return {"model": str(folder)}


def _word_tokenizer(words: tuple[str, ...], unknown: str) -> Tokenizer:
    tokenizer = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token=unknown))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    return tokenizer


_CHAT: Final = ("[UNK]", "[PAD]", "<image>", "<|vision_start|>", "<|vision_end|>", "<|im_start|>", "<|im_end|>")
_SAID: Final = f"Yes No yes no figure show {' '.join(PROMPT_WORDS)} {BEFORE_PICTURE} {QUESTION} {INSTRUCTION}"
_WORDS: Final = (*_CHAT, *sorted({word for word in re.findall(r"\w+|[^\w\s]", _SAID) if word not in _CHAT}))
_TEXT: Final[dict[str, Any]] = {
    "bos_token_id": None,
    "eos_token_id": None,
    "vocab_size": len(_WORDS) + 1,  # hpsv3 adds a token
    "hidden_size": 256,
    "intermediate_size": 512,
    "num_hidden_layers": 6,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "initializer_range": 0.06,
}
_ROPE: Final = {"rope_type": "default", "rope_theta": 1e6, "mrope_section": [8, 12, 12]}
_QWEN_IDS: Final = {
    "image_token_id": _WORDS.index("<image>"),
    "vision_start_token_id": _WORDS.index("<|vision_start|>"),
    "vision_end_token_id": _WORDS.index("<|vision_end|>"),
}


def _save_chat_tokenizer(folder: Path) -> None:
    PreTrainedTokenizerFast(
        tokenizer_object=_word_tokenizer(_WORDS, "[UNK]"),
        pad_token="[PAD]",
        unk_token="[UNK]",
        additional_special_tokens=list(_CHAT[2:]),
    ).save_pretrained(folder)


def save_llava(folder: Path, image_size: int = 384, patch_size: int = 32) -> dict[str, Any]:
    """LLaVA-OneVision that sees pictures as one square."""
    vision = {"hidden_size": 128, "intermediate_size": 256, "num_hidden_layers": 4, "num_attention_heads": 4}
    config = LlavaOnevisionConfig(
        vision_config={
            "model_type": "siglip_vision_model",
            "image_size": image_size,
            "patch_size": patch_size,
            "vision_use_head": False,
            **vision,
        },
        text_config={"model_type": "qwen2", **_TEXT},
        image_token_index=_WORDS.index("<image>"),
        video_token_index=len(_WORDS) - 1,
        vision_aspect_ratio="pad",
    )
    LlavaOnevisionForConditionalGeneration(config).save_pretrained(folder)
    _save_chat_tokenizer(folder)
    return {"model": str(folder)}


def save_qwen(folder: Path, patch_size: int = 28, max_side: int = 448) -> dict[str, Any]:
    """Qwen2.5-VL; max_side: pixels of the largest square that it sees."""
    config = Qwen2_5_VLConfig(
        vision_config={
            "depth": 4,
            "hidden_size": 128,
            "intermediate_size": 256,
            "num_heads": 4,
            "out_hidden_size": _TEXT["hidden_size"],
            "patch_size": patch_size,
            "window_size": 8 * patch_size,
            "fullatt_block_indexes": [3],
        },
        text_config={**_TEXT, "rope_parameters": _ROPE},
        **_QWEN_IDS,
    )
    Qwen2_5_VLForConditionalGeneration(config).save_pretrained(folder)
    size = {"shortest_edge": 32 * 32, "longest_edge": max_side**2}
    Qwen2VLImageProcessorPil(patch_size=patch_size, size=size).save_pretrained(folder)
    _save_chat_tokenizer(folder)
    return {"model": str(folder)}


def _save_hpsv3(folder: Path) -> dict[str, Any]:
    patch_size, width = 28, int(_TEXT["hidden_size"])
    vision = {"depth": 2, "embed_dim": 64, "hidden_size": width, "num_heads": 2, "patch_size": patch_size}
    config = Qwen2VLConfig(text_config={**_TEXT, "rope_parameters": _ROPE}, vision_config=vision, **_QWEN_IDS)
    config.save_pretrained(folder)
    _save_chat_tokenizer(folder)
    Qwen2VLImageProcessorPil(patch_size=patch_size).save_pretrained(folder)
    weights = {f"model.{name}": tensor.contiguous() for name, tensor in Qwen2VLModel(config).state_dict().items()}
    weights |= _head_weights("rm_head.", HPSV3_HEAD_NUMBERS, (width, 64, 16, 2))
    save_file(weights, folder / "HPSv3.safetensors")
    return {"model": str(folder / "HPSv3.safetensors"), "base": str(folder)}


SMALL_MODELS: Final[Mapping[str, Callable[[Path], dict[str, Any]]]] = {
    "hps": save_clip,
    "pick_score": _save_pick_score,
    "clip_score": save_clip,
    "aesthetic": _save_aesthetic,
    "aesthetic_v2_5": _save_aesthetic_v2_5,
    "image_reward": _save_image_reward,
    "hpsv3": _save_hpsv3,
    "git_vqa": _save_git,
    "orm": save_llava,
    "vqa_score": save_qwen,
    "grounding_dino": _save_grounding_dino,
    "geneval": _save_geneval,
    "nsfw": _save_nsfw,
}
"""Reward -> what writes its files into a folder, and returns the options that name them."""
