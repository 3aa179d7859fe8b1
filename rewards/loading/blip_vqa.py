"""BLIP-VQA from its authors' file: `model_base_vqa_capfilt_large.pth` as transformers' BlipForQuestionAnswering.

    visual_encoder.*  ─► vision_model.*, at its own 480 pixels (the hub's copy was converted at 384, its positions
                         interpolated)
    text_encoder.*, text_decoder.*  ─► the same names

The original begins a question with [ENC], its last token id, where transformers has [CLS], and an answer with
[DEC], the one before: `yes_probabilities` does as the original.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor
from transformers import BlipConfig, BlipForQuestionAnswering, PreTrainedTokenizerBase

from rewards.loading.blip import convert_text, convert_vision, infer_text_config, infer_vision_config, split_by_prefix
from rewards.loading.pretrained import freeze, parse_dtype, read_state_dict, refuse_missing, single_token_id

MAX_QUESTION_TOKENS = 35
_TIED = {"text_decoder.cls.predictions.decoder.bias", "text_decoder.cls.predictions.decoder.weight"}


def convert_state_dict(original: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The weights under transformers' names. Raises ValueError for a name that is not of BLIP-VQA."""
    converted = {
        f"vision_model.{name}": tensor
        for name, tensor in convert_vision(split_by_prefix(original, "visual_encoder.")).items()
    }
    for tower in ("text_encoder", "text_decoder"):
        weights = convert_text(split_by_prefix(original, f"{tower}."))
        converted |= {
            f"{tower}.{name}": tensor
            for name, tensor in weights.items()
            if not name.endswith("embeddings.position_ids")
        }
    known = ("visual_encoder.", "text_encoder.", "text_decoder.")
    others = [name for name in original if not name.startswith(known)]
    if others:
        raise ValueError(f"'{others[0]}' is no weight of BLIP-VQA")
    return converted


def load_blip_vqa(path: str, dtype: str, device: str) -> BlipForQuestionAnswering:
    """The model in a file of the authors', frozen, on its device. Raises OSError or ValueError for another file."""
    weights = convert_state_dict(read_state_dict(path))
    vision = infer_vision_config(split_by_prefix(weights, "vision_model."))
    text = infer_text_config(split_by_prefix(weights, "text_encoder."))
    model = BlipForQuestionAnswering(BlipConfig(text_config=text.to_dict(), vision_config=vision.to_dict()))
    report = model.load_state_dict(weights, strict=False)
    refuse_missing({name for name in report.missing_keys if name not in _TIED and "position_ids" not in name}, path)
    if report.unexpected_keys:
        raise ValueError(f"{path} holds {report.unexpected_keys[0]}, which transformers' BLIP has not")
    return freeze(model.to(parse_dtype(dtype)), device)


@torch.inference_mode()
def yes_probabilities(
    model: BlipForQuestionAnswering, tokenizer: PreTrainedTokenizerBase, pixels: Tensor, questions: Sequence[str]
) -> Tensor:
    """P(yes) / (P(yes) + P(no)) of the first token of the answer to each question, float32 [B].

    pixels: float [B, 3, side, side], normalised, one picture a question. Raises ValueError for another tokenizer.
    """
    vocab_size = model.config.text_config.vocab_size
    begin_answer, begin_question = vocab_size - 2, vocab_size - 1
    yes, no = (single_token_id(tokenizer, word) for word in ("yes", "no"))
    encoded = tokenizer(list(questions), truncation=True, max_length=MAX_QUESTION_TOKENS).input_ids
    seen = model.vision_model(pixel_values=pixels.to(model.device, model.dtype)).last_hidden_state
    logits = torch.empty(len(questions), vocab_size, device=seen.device)
    # One length at a time: transformers' BLIP does not mask the padding of a question where the answer attends to it.
    for length in sorted(set(map(len, encoded))):
        rows = [row for row, ids in enumerate(encoded) if len(ids) == length]
        ids = torch.tensor([encoded[row] for row in rows], device=seen.device)
        ids[:, 0] = begin_question
        asked = model.text_encoder(input_ids=ids, encoder_hidden_states=seen[rows]).last_hidden_state
        begin = torch.full((len(rows), 1), begin_answer, device=seen.device)
        logits[rows] = model.text_decoder(input_ids=begin, encoder_hidden_states=asked).logits[:, 0].float()
    chances = logits.softmax(dim=-1)
    return chances[:, yes] / (chances[:, yes] + chances[:, no])
