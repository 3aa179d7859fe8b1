"""mPLUG-large, which answers questions about pictures, on transformers' CLIP and BERT.

    picture ─► CLIP's tower ─► linear, norm ─┐
    question ─► BERT ────────────────────────┴─► fusion ─► picture and question ─► BERT as decoder ─► beams ─► answer

A layer of the fusion is BERT's with cross-attention to the picture, but for every `stride_layer`-th: that one attends
over picture and question as one sequence, and what it makes of the picture is added to the picture.

The folder is ModelScope's `damo/mplug_visual-question-answering_coco_large_en`: config.yaml, config_bert.json,
vocab.txt, pytorch_model.bin. (Li et al. 2022, arXiv 2205.12005; Apache-2.0.)
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import torch
import yaml
from torch import Tensor, nn
from transformers import BertConfig, BertLMHeadModel, BertModel, BertTokenizerFast, CLIPVisionConfig, CLIPVisionModel
from transformers.cache_utils import DynamicCache, EncoderDecoderCache
from transformers.models.bert.modeling_bert import BertLayer

from rewards.benchmarks.dpg.beam_search import search
from rewards.loading.blip import split_by_prefix
from rewards.loading.open_clip import convert_state_dict as convert_clip
from rewards.loading.pretrained import read_state_dict, refuse_missing

MAX_QUESTION_TOKENS: Final = 25
FILES: Final = ("config.yaml", "config_bert.json", "vocab.txt", "pytorch_model.bin")
_VISION_HEAD_SIZE: Final = 64
_TIED: Final = ("cls.predictions.decoder.weight", "cls.predictions.decoder.bias")
_MASKED: Final = -10000.0


class Fusion(nn.Module):
    """The layers in which picture and question meet."""

    def __init__(self, config: BertConfig) -> None:
        super().__init__()
        crossing = BertConfig.from_dict({**config.to_dict(), "is_decoder": True, "add_cross_attention": True})
        joint = BertConfig.from_dict(config.to_dict())
        for one in (crossing, joint):
            one._attn_implementation = "sdpa"
        stride = getattr(config, "stride_layer", 100)
        self.layer = nn.ModuleList(
            BertLayer(joint if number and number % stride == 0 else crossing)
            for number in range(min(config.fusion_layers, config.num_hidden_layers))
        )

    def forward(self, seen: Tensor, asked: Tensor, asked_mask: Tensor) -> Tensor:
        """Both as one sequence, float [B, N + L, hidden].

        seen: float [B, N, hidden]; asked: float [B, L, hidden]; asked_mask: int64 [B, L].
        """
        mask = (1.0 - asked_mask[:, None, None, :].to(asked.dtype)) * _MASKED
        over_both = torch.cat([mask.new_zeros(*mask.shape[:3], seen.shape[1]), mask], dim=3)
        for layer in self.layer:
            if layer.add_cross_attention:
                asked = layer(asked, mask, encoder_hidden_states=seen)
            else:
                both = layer(torch.cat([seen, asked], dim=1), over_both)
                made, asked = both.split((seen.shape[1], asked.shape[1]), dim=1)
                seen = seen + made
        return torch.cat([seen, asked], dim=1)


class MPlug(nn.Module):
    """See the top of this file."""

    def __init__(self, config: Mapping[str, Any], bert: BertConfig, tokenizer: BertTokenizerFast) -> None:
        """config: of config.yaml. Raises ValueError for another kind of mPLUG."""
        super().__init__()
        self.tokenizer = tokenizer
        self.image_size: int = config["image_res"]
        self.beams = {name: config[name] for name in ("beam_size", "min_length", "max_length")}
        width = config["clip_vision_width"]
        if bert.hidden_size == config["vision_width"] or bert.encoder_width != bert.hidden_size:
            raise ValueError("its picture and its text have the same width, so it is not mPLUG-large")
        self.vision = CLIPVisionModel(
            CLIPVisionConfig(
                hidden_size=width,
                intermediate_size=4 * width,
                num_hidden_layers=config["clip_vision_layers"],
                num_attention_heads=width // _VISION_HEAD_SIZE,
                patch_size=config["clip_vision_patch_size"],
                image_size=self.image_size,
            )
        )
        self.visn_fc = nn.Linear(config["vision_width"], bert.hidden_size)
        self.visn_layer_norm = nn.LayerNorm(bert.hidden_size, eps=1e-12)
        layers = {"num_hidden_layers": bert.text_encoder_layers}
        self.text_encoder = BertModel(BertConfig.from_dict({**bert.to_dict(), **layers}), add_pooling_layer=False)
        self.fusion = Fusion(bert)
        decoder = {"num_hidden_layers": bert.text_decode_layers, "is_decoder": True, "add_cross_attention": True}
        self.text_decoder = BertLMHeadModel(BertConfig.from_dict({**bert.to_dict(), **decoder}))

    def see(self, pixels: Tensor) -> Tensor:
        """Pictures, float [B, 3, side, side], normalised, as float [B, N, hidden]."""
        seen = self.vision(pixel_values=pixels).last_hidden_state
        return self.visn_layer_norm(self.visn_fc(self.vision.post_layernorm(seen)))

    @torch.inference_mode()
    def answer(self, seen: Tensor, questions: Sequence[str]) -> list[str]:
        """The answer to each question about its picture. seen: float [B, N, hidden], one a question."""
        encoded = self.tokenizer(
            [question.lower() for question in questions],
            padding="max_length",
            truncation=True,
            max_length=MAX_QUESTION_TOKENS,
            return_tensors="pt",
        )
        ids, mask = encoded.input_ids.to(seen.device), encoded.attention_mask.to(seen.device)
        asked = self.text_encoder(input_ids=ids, attention_mask=mask).last_hidden_state
        states = self.fusion(seen, asked, mask)
        states_mask = torch.cat([mask.new_ones(seen.shape[:2]), mask], dim=1)
        found = search(_Decoding(self.text_decoder, states, states_mask), len(ids), **self.beams, device=seen.device)
        return [self.tokenizer.decode(tokens, skip_special_tokens=True) for tokens in found]


class _Decoding:
    """Steps of the decoder, whose keys and values of what it attends to are made once for all beams and tokens."""

    def __init__(self, decoder: BertLMHeadModel, states: Tensor, mask: Tensor) -> None:
        self._decoder, self._states, self._mask = decoder, states, mask
        self._cache = EncoderDecoderCache(DynamicCache(), DynamicCache())

    def __call__(self, last: Tensor, origin: Tensor | None) -> Tensor:
        """See `beam_search.Step`."""
        if origin is not None:
            self._cache.self_attention_cache.reorder_cache(origin)
            if len(origin) != len(self._states):
                beams = len(origin) // len(self._states)
                self._cache.cross_attention_cache.batch_repeat_interleave(beams)
                self._states = self._states.repeat_interleave(beams, dim=0)
                self._mask = self._mask.repeat_interleave(beams, dim=0)
        output = self._decoder(
            input_ids=last[:, None],
            encoder_hidden_states=self._states,
            encoder_attention_mask=self._mask,
            past_key_values=self._cache,
            use_cache=True,
        )
        logits: Tensor = output.logits[:, -1]
        return logits


def convert_weights(original: Mapping[str, Tensor], bert: BertConfig) -> dict[str, Tensor]:
    """The authors' weights under the names of MPlug; the momentum copies of training are left out.

    Raises ValueError for a file that is none of theirs.
    """
    named = {name.replace("model.", ""): tensor for name, tensor in original.items()}
    tower = {f"visual.{name}": tensor for name, tensor in split_by_prefix(named, "visual_encoder.visual.").items()}
    converted = {
        name.replace("vision_model.", "vision.", 1): tensor
        for name, tensor in convert_clip(tower).items()
        if name.startswith("vision_model.")
    }
    for part in ("visn_fc", "visn_layer_norm"):
        converted |= {f"{part}.{name}": tensor for name, tensor in split_by_prefix(named, f"{part}.").items()}
    for part in ("text_encoder", "text_decoder"):
        converted |= {
            f"{part}.{name}": tensor
            for name, tensor in split_by_prefix(named, f"{part}.").items()
            if not name.endswith("position_ids")
        }
    stride = getattr(bert, "stride_layer", 100)
    first = max(0, bert.num_hidden_layers - bert.fusion_layers)
    for number in range(bert.num_hidden_layers - first):
        own = split_by_prefix(named, f"fusion_encoder.encoder.layer.{first + number}.")
        is_joint = number > 0 and number % stride == 0  # such a layer has a cross-attention that nothing uses
        converted |= {
            f"fusion.layer.{number}.{name}": tensor
            for name, tensor in own.items()
            if not (is_joint and name.startswith("crossattention."))
        }
    return converted


def load_mplug(folder: Path, device: str) -> MPlug:
    """The model of a folder in float32, frozen, on its device. Raises OSError or ValueError for another folder."""
    lacking = [name for name in FILES if not (folder / name).is_file()]
    if lacking:
        raise FileNotFoundError(f"{folder} lacks {', '.join(lacking)}")
    config = yaml.safe_load((folder / "config.yaml").read_text(encoding="utf-8"))
    bert = BertConfig.from_json_file(str(folder / "config_bert.json"))
    model = MPlug(config, bert, BertTokenizerFast(vocab=str(folder / "vocab.txt"), do_lower_case=True))
    weights = read_state_dict(str(folder / "pytorch_model.bin"))
    report = model.load_state_dict(convert_weights(weights, bert), strict=False)
    refuse_missing({name for name in report.missing_keys if not name.endswith((*_TIED, "position_ids"))}, str(folder))
    if report.unexpected_keys:
        raise ValueError(f"{folder} holds {report.unexpected_keys[0]}, which mPLUG-large has not")
    model.requires_grad_(False)
    return model.eval().to(torch.device(device))
