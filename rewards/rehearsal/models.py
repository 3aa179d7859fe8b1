"""The rewards' models with random weights, written as their publishers write them.

Sizes are the publishers', but for the number of layers and the vocabularies of CLIP and the vision-language model: a
made-up tokenizer knows few words.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

import torch
from safetensors.torch import save_file
from torch import Tensor
from transformers import (
    CLIPConfig,
    CLIPImageProcessorPil,
    CLIPModel,
    GitConfig,
    GitForCausalLM,
    GroundingDinoConfig,
    GroundingDinoForObjectDetection,
    GroundingDinoImageProcessorPil,
    LlavaOnevisionForConditionalGeneration,
    SiglipVisionConfig,
)

from rewards.loading.llava_qwen import MODEL_TYPE, convert_config
from rewards.rehearsal.tokenizers import BERT_VOCABULARY

_SEED: Final = 0
_STD: Final = 0.02
CLIP_H: Final = {
    "projection_dim": 1024,
    "vision": {"hidden_size": 1280, "intermediate_size": 5120, "num_attention_heads": 16, "patch_size": 14},
    "text": {"hidden_size": 1024, "intermediate_size": 4096, "num_attention_heads": 16},
}
"""ViT-H/14 of laion, which HPSv2 and PickScore are trained from."""
CLIP_B: Final = {
    "projection_dim": 512,
    "vision": {"hidden_size": 768, "intermediate_size": 3072, "num_attention_heads": 12, "patch_size": 32},
    "text": {"hidden_size": 512, "intermediate_size": 2048, "num_attention_heads": 8},
}
"""ViT-B/32 of OpenAI."""
CONTEXT: Final = 77
"""Tokens that CLIP reads."""
QWEN2_7B: Final = {
    "hidden_size": 3584,
    "intermediate_size": 18944,
    "num_attention_heads": 28,
    "num_key_value_heads": 4,
    "max_position_embeddings": 32768,
    "rms_norm_eps": 1e-6,
    "rope_theta": 1000000.0,
    "tie_word_embeddings": False,
}
_LLAVA_NAMES: Final = (
    ("model.vision_tower.", "model.vision_tower.vision_tower.vision_model."),
    ("model.multi_modal_projector.linear_1.", "model.mm_projector.0."),
    ("model.multi_modal_projector.linear_2.", "model.mm_projector.2."),
    ("model.language_model.", "model."),
)
"""Prefix in transformers -> prefix in a `llava_qwen` checkpoint."""


@contextmanager
def _seeded(dtype: torch.dtype = torch.float32) -> Iterator[None]:
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(_SEED)
            yield
    finally:
        torch.set_default_dtype(before)


def save_open_clip(path: Path, sizes: Mapping[str, Any], vocabulary: int, layers: int) -> None:
    """A checkpoint file as open_clip writes it, of a CLIP of these sizes."""
    vision, text, projection = sizes["vision"], sizes["text"], sizes["projection_dim"]
    wide, narrow, patch = vision["hidden_size"], text["hidden_size"], vision["patch_size"]
    shapes: dict[str, tuple[int, ...]] = {
        "positional_embedding": (CONTEXT, narrow),
        "text_projection": (narrow, projection),
        "token_embedding.weight": (vocabulary, narrow),
        **_norm("ln_final", narrow),
        "visual.class_embedding": (wide,),
        "visual.positional_embedding": ((224 // patch) ** 2 + 1, wide),
        "visual.proj": (wide, projection),
        "visual.conv1.weight": (wide, 3, patch, patch),
        **_norm("visual.ln_pre", wide),
        **_norm("visual.ln_post", wide),
    }
    for layer in range(layers):
        shapes |= _open_clip_layer(f"transformer.resblocks.{layer}", narrow, text["intermediate_size"])
        shapes |= _open_clip_layer(f"visual.transformer.resblocks.{layer}", wide, vision["intermediate_size"])
    with _seeded():
        weights = {name: _random(name, shape) for name, shape in shapes.items()}
    weights["logit_scale"] = torch.tensor(4.6)
    torch.save({"state_dict": weights}, path)


def _open_clip_layer(prefix: str, width: int, wide: int) -> dict[str, tuple[int, ...]]:
    return {
        **_norm(f"{prefix}.ln_1", width),
        f"{prefix}.attn.in_proj_weight": (3 * width, width),
        f"{prefix}.attn.in_proj_bias": (3 * width,),
        **_linear(f"{prefix}.attn.out_proj", width, width),
        **_norm(f"{prefix}.ln_2", width),
        **_linear(f"{prefix}.mlp.c_fc", width, wide),
        **_linear(f"{prefix}.mlp.c_proj", wide, width),
    }


def _norm(name: str, width: int) -> dict[str, tuple[int, ...]]:
    return {f"{name}.weight": (width,), f"{name}.bias": (width,)}


def _linear(name: str, inputs: int, outputs: int) -> dict[str, tuple[int, ...]]:
    return {f"{name}.weight": (outputs, inputs), f"{name}.bias": (outputs,)}


def _random(name: str, shape: Sequence[int]) -> Tensor:
    """Ones for the factors of norms, so that signals neither die nor explode."""
    is_factor = len(shape) == 1 and ".ln_" in f".{name}" and name.endswith(".weight")
    return torch.ones(shape) if is_factor else torch.randn(shape) * _STD


def save_clip(folder: Path, sizes: Mapping[str, Any], vocabulary: int, layers: int) -> None:
    """A folder of transformers' CLIPModel, with its image processor."""
    depth = {"num_hidden_layers": layers}
    config = CLIPConfig(
        projection_dim=sizes["projection_dim"],
        vision_config={"image_size": 224, "projection_dim": sizes["projection_dim"], **sizes["vision"], **depth},
        text_config={
            "vocab_size": vocabulary,
            "max_position_embeddings": CONTEXT,
            "bos_token_id": 0,
            "eos_token_id": vocabulary - 1,
            "projection_dim": sizes["projection_dim"],
            **sizes["text"],
            **depth,
        },
    )
    with _seeded():
        CLIPModel(config).save_pretrained(folder)
    CLIPImageProcessorPil().save_pretrained(folder)


def save_git(folder: Path, layers: int) -> None:
    """git-large-vqav2: a ViT-L/14 at 420 pixels under a decoder of BERT's width."""
    vision = {
        "hidden_size": 1024,
        "intermediate_size": 4096,
        "num_attention_heads": 16,
        "image_size": 420,
        "patch_size": 14,
        "num_hidden_layers": layers,
    }
    with _seeded():
        GitForCausalLM(
            GitConfig(vision_config=vision, vocab_size=BERT_VOCABULARY, num_hidden_layers=layers)
        ).save_pretrained(folder)
    size = {"height": 420, "width": 420}
    CLIPImageProcessorPil(size={"shortest_edge": 420}, crop_size=size).save_pretrained(folder)


def save_grounding_dino(folder: Path, layers: int) -> None:
    """grounding-dino-tiny: Swin-T and BERT under six layers of encoder and decoder."""
    depth = {"num_hidden_layers": layers}
    swin = {
        "model_type": "swin",
        "image_size": 224,
        "window_size": 7,
        "embed_dim": 96,
        "depths": [2, 2, min(6, max(layers, 2)), 2],
        "num_heads": [3, 6, 12, 24],
        "out_indices": [2, 3, 4],
    }
    config = GroundingDinoConfig(
        backbone_config=swin,
        text_config={"model_type": "bert", "vocab_size": BERT_VOCABULARY, **depth},
        encoder_layers=layers,
        decoder_layers=layers,
    )
    with _seeded():
        GroundingDinoForObjectDetection(config).save_pretrained(folder)
    GroundingDinoImageProcessorPil().save_pretrained(folder)


def save_llava_qwen(folder: Path, vocabulary: Mapping[str, int], layers: int) -> None:
    """ORM-T2I-R1's kind of checkpoint: SigLIP at 384 pixels before a Qwen2-7B, in bfloat16."""
    tower = folder / "siglip"
    SiglipVisionConfig(
        hidden_size=1152,
        intermediate_size=4304,
        num_attention_heads=16,
        image_size=384,
        patch_size=14,
        num_hidden_layers=layers + 1,  # the last one is dropped, see `rewards.loading.llava_qwen`
    ).save_pretrained(tower)
    original = {
        "model_type": MODEL_TYPE,
        "architectures": ["LlavaQwenForCausalLM"],
        "mm_vision_tower": str(tower),
        "mm_projector_type": "mlp2x_gelu",
        "image_aspect_ratio": "anyres_max_9",
        "image_grid_pinpoints": "(1x1),...,(6x6)",
        "vocab_size": len(vocabulary),
        "num_hidden_layers": layers,
        **QWEN2_7B,
    }
    (folder / "config.json").write_text(json.dumps(original), encoding="utf-8")
    with _seeded(torch.bfloat16):
        weights = LlavaOnevisionForConditionalGeneration(convert_config(original)).state_dict()
    save_file(
        {_llava_name(name): tensor.contiguous() for name, tensor in weights.items()},
        folder / "model.safetensors",
        metadata={"format": "pt"},
    )


def _llava_name(name: str) -> str:
    return next((old + name.removeprefix(new) for new, old in _LLAVA_NAMES if name.startswith(new)), name)
