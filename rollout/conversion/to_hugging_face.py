"""From the authors' format to the Hugging Face folder that bicot trains.

    config.json (multi_modality) ─┐
    weights, .bin or safetensors ─┼─► names.py ─► checked against transformers' class ─► config.json, safetensors
    tokenizer files ──────────────┘                                                      tokenizer with a chat template
                                       what has no place ─► original/

The chat template is the authors' own format, with the two roles that the checkpoint was trained with.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from transformers import AutoTokenizer, GenerationConfig, JanusConfig, JanusForConditionalGeneration

from configs.errors import ModelError
from rollout.conversion.configs import hugging_face_config
from rollout.conversion.folders import (
    AUTHORS_FILES,
    KEPT,
    TAGS,
    TOKENIZER_FILES,
    UNUSED_WEIGHTS,
    copy_files,
    read_json,
    whole_or_nothing,
    write_json,
)
from rollout.conversion.names import to_hugging_face
from rollout.conversion.weights import read_weights, write_weights
from rollout.janus_checkpoint import Roles

GUIDANCE_SCALE = 5.0
"""Of the authors' `generation_inference.py`; stored as the checkpoint's default."""


def convert_to_hugging_face(source: Path, target: Path, roles: Roles, max_shard_size: str = "5GB") -> None:
    """Write the checkpoint in `source` (the authors' format) as a Hugging Face folder `target`.

    Values and dtypes stay as they are. Raises ModelError when `source` is no whole Janus checkpoint or `target` exists.
    """
    original = read_json(source / "config.json")
    if original.get("model_type") != "multi_modality":
        raise ModelError(
            f"{source}/config.json has model_type '{original.get('model_type')}', not 'multi_modality', as checkpoints "
            "in the authors' format have"
        )
    with whole_or_nothing(target) as folder:
        special_ids = _write_tokenizer(source, folder, roles)
        tensors, unused = to_hugging_face(read_weights(source))
        shapes = {name: tensor.shape for name, tensor in tensors.items()}
        config = hugging_face_config(original, shapes, special_ids["image_tag"])
        check_tensors(config, shapes)
        config.architectures = ["JanusForConditionalGeneration"]
        config.save_pretrained(folder)
        write_weights(tensors, folder, max_shard_size)
        _generation_config(special_ids).save_pretrained(folder)
        _write_image_processor(source, folder, config)
        copy_files(AUTHORS_FILES, source, folder / KEPT)
        if unused:
            save_file({name: tensor.contiguous() for name, tensor in unused.items()}, folder / KEPT / UNUSED_WEIGHTS)


def check_tensors(config: JanusConfig, shapes: Mapping[str, torch.Size]) -> None:
    """Raises ModelError unless these are exactly the tensors of transformers' model with that config."""
    with torch.device("meta"):
        expected = {name: tensor.shape for name, tensor in JanusForConditionalGeneration(config).state_dict().items()}
    if config.tie_word_embeddings and "lm_head.weight" not in shapes:
        expected.pop("lm_head.weight", None)
    missing, unknown = sorted(expected.keys() - shapes.keys()), sorted(shapes.keys() - expected.keys())
    if missing or unknown:
        raise ModelError(
            f"the checkpoint is not a whole Janus model: {len(missing)} tensors are missing "
            f"({', '.join(missing[:3])}), {len(unknown)} are unknown ({', '.join(unknown[:3])})"
        )
    for name, shape in expected.items():
        if shape != shapes[name]:
            raise ModelError(f"tensor '{name}' has shape {list(shapes[name])}, expected {list(shape)}")


def _write_tokenizer(source: Path, folder: Path, roles: Roles) -> dict[str, int]:
    """Copy the tokenizer with its new chat template; returns the ids of its special tokens by their tags."""
    copy_files(TOKENIZER_FILES, source, folder)
    settings = read_json(folder / "tokenizer_config.json")
    settings["chat_template"] = roles.chat_template()
    write_json(folder / "tokenizer_config.json", settings)
    try:
        tokenizer = AutoTokenizer.from_pretrained(str(folder), local_files_only=True)
    except (OSError, ValueError, KeyError) as error:
        raise ModelError(f"{source}: its tokenizer cannot be loaded: {error}") from error
    processor, vocabulary = read_json(source / "processor_config.json"), tokenizer.get_vocab()
    ids = {"bos": tokenizer.bos_token_id, "eos": tokenizer.eos_token_id}
    for tag, default in TAGS.items():
        token = processor.get(tag, default)
        if token not in vocabulary:
            raise ModelError(f"{source}: its tokenizer does not know {tag} '{token}'")
        ids[tag] = vocabulary[token]
    for name in ("bos", "eos"):
        if ids[name] is None:
            raise ModelError(f"{source}/tokenizer_config.json names no {name}_token")
    return ids


def _generation_config(special_ids: Mapping[str, int]) -> GenerationConfig:
    return GenerationConfig(
        bos_token_id=special_ids["bos"],
        eos_token_id=special_ids["eos"],
        pad_token_id=special_ids["pad_tag"],
        guidance_scale=GUIDANCE_SCALE,
        generation_kwargs={"boi_token_id": special_ids["image_start_tag"]},
    )


def _write_image_processor(source: Path, folder: Path, config: JanusConfig) -> None:
    """transformers' name for the authors' image processor, with the same numbers."""
    authors = read_json(source / "preprocessor_config.json")
    size = int(authors.get("image_size", config.vision_config.image_size))
    settings: dict[str, Any] = {
        "image_processor_type": "JanusImageProcessor",
        "image_mean": authors.get("image_mean", [0.5] * 3),
        "image_std": authors.get("image_std", [0.5] * 3),
        "min_size": authors.get("min_size", 14),
        "rescale_factor": authors.get("rescale_factor", 1 / 255),
        "size": {"height": size, "width": size},
    }
    write_json(folder / "preprocessor_config.json", settings)
