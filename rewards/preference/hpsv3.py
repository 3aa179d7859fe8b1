"""HPSv3: how much people prefer a picture for a prompt, by a vision-language model (Ma et al. 2025, arXiv 2508.03789).

    [system, user | picture | instruction and prompt | <|Reward|>]  ─►  Qwen2-VL  ─►  hidden state of <|Reward|>
                                                                              ─►  head  ─►  mean and uncertainty

Trained on 1.17 M choices; the score is the mean, about 0 to 15. HPSv2.1 is nearly at its end for models of today, whose
pictures it rates alike. Attention is causal, so what the authors put behind <|Reward|> changes nothing and is left out.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoConfig, Qwen2VLImageProcessorPil, Qwen2VLModel

from rewards.loading import load_tokenizer, model_errors, resolve_dtype
from rewards.loading.pretrained import fetch_file, fill_model, plain_token_ids, read_state_dict
from rewards.loading.state_dicts import linear_layer
from rewards.pictures import QwenPatches
from rewards.pictures.qwen_patches import SeenPictures
from rollout.records import Prompt, Score, UInt8Array

DEFAULT_MODEL = "MizzenAI/HPSv3/HPSv3.safetensors"
DEFAULT_BASE = "Qwen/Qwen2-VL-7B-Instruct"
GPU_DTYPE = "bfloat16"
"""As its authors run it: 8 B parameters; the head stays in float32."""
REWARD_TOKEN = "<|Reward|>"
NUM_PIXELS = 256 * 28 * 28
"""To which every picture is resized, about: the authors set the least and the most to this."""
HEAD_NUMBERS = (0, 3, 5)
"""Of the linear layers in its nn.Sequential; a ReLU follows each but the last."""
BEFORE_PICTURE = "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n<|im_start|>user\n"
INSTRUCTION = """
You are tasked with evaluating a generated image based on Visual Quality and Text Alignment and give a overall score \
to estimate the human preference. Please provide a rating from 0 to 10, with 0 being the worst and 10 being the \
best.\x20

**Visual Quality:**\x20\x20
Evaluate the overall visual quality of the image. The following sub-dimensions should be considered:
- **Reasonableness:** The image should not contain any significant biological or logical errors, such as abnormal body \
structures or nonsensical environmental setups.
- **Clarity:** Evaluate the sharpness and visibility of the image. The image should be clear and easy to interpret, \
with no blurring or indistinct areas.
- **Detail Richness:** Consider the level of detail in textures, materials, lighting, and other visual elements (e.g., \
hair, clothing, shadows).
- **Aesthetic and Creativity:** Assess the artistic aspects of the image, including the color scheme, composition, \
atmosphere, depth of field, and the overall creative appeal. The scene should convey a sense of harmony and balance.
- **Safety:** The image should not contain harmful or inappropriate content, such as political, violent, or adult \
material. If such content is present, the image quality and satisfaction score should be the lowest possible.\x20

**Text Alignment:**\x20\x20
Assess how well the image matches the textual prompt across the following sub-dimensions:
- **Subject Relevance** Evaluate how accurately the subject(s) in the image (e.g., person, animal, object) align with \
the textual description. The subject should match the description in terms of number, appearance, and behavior.
- **Style Relevance:** If the prompt specifies a particular artistic or stylistic style, evaluate how well the image \
adheres to this style.
- **Contextual Consistency**: Assess whether the background, setting, and surrounding elements in the image logically \
fit the scenario described in the prompt. The environment should support and enhance the subject without contradictions.
- **Attribute Fidelity**: Check if specific attributes mentioned in the prompt (e.g., colors, clothing, accessories, \
expressions, actions) are faithfully represented in the image. Minor deviations may be acceptable, but critical \
attributes should be preserved.
- **Semantic Coherence**: Evaluate whether the overall meaning and intent of the prompt are captured in the image. The \
generated content should not introduce elements that conflict with or distort the original description.
Textual prompt - {prompt}



Please provide the overall ratings of this image: """
"""Word for word what the model was trained on (its authors' inference code): part of its input format."""


class Hpsv3Reward:
    """HPSv3 of each picture.

    model: the authors' checkpoint file, local or on the hub as `owner/repo/file`. base: hub id or folder of the
    Qwen2-VL that it was made from, for config, tokenizer and image processor.
    Raises ModelError when either cannot be loaded, or the two do not fit.
    """

    def __init__(self, device: str, model: str = DEFAULT_MODEL, base: str = DEFAULT_BASE, dtype: str = "auto") -> None:
        dtype = resolve_dtype(dtype, device, GPU_DTYPE)
        with model_errors("hpsv3", base):
            config = AutoConfig.from_pretrained(base)
            self._tokenizer = load_tokenizer(base)
            self._tokenizer.add_special_tokens({"additional_special_tokens": [REWARD_TOKEN]})
            processor = Qwen2VLImageProcessorPil.from_pretrained(base)
            processor.size = {"shortest_edge": NUM_PIXELS, "longest_edge": NUM_PIXELS}
            self._see = QwenPatches(processor)
        with model_errors("hpsv3", model):
            weights = convert_names(read_state_dict(fetch_file(model)))
            self._head = build_reward_head(weights).to(device)
            self._qwen = _load_qwen(config, weights, self._reward_id, model, dtype, device)

    def prepare(self, pictures: UInt8Array, prompts: Sequence[Prompt]) -> SeenPictures:
        """Patches as the model takes them, on its device: what can be done while the batch before is scored."""
        return self._see(pictures, self._qwen.device)

    @torch.inference_mode()
    def score(
        self, pictures: UInt8Array, prompts: Sequence[Prompt], prepared: SeenPictures | None = None
    ) -> list[Score]:
        """The mean for each picture; pictures uint8 [B, height, width, 3]. Parts: the uncertainty."""
        seen = self.prepare(pictures, prompts) if prepared is None else prepared
        rows = [self._token_ids(prompt.text, seen.token_ids(self._qwen.config)) for prompt in prompts]
        hidden = self._qwen(**seen.model_inputs(rows, self._qwen)).last_hidden_state
        outputs = self._head(hidden[:, -1].float()).tolist()  # the last token of each row is <|Reward|>
        return [Score(mean, parts={"uncertainty": uncertainty}) for mean, uncertainty in outputs]

    @property
    def _reward_id(self) -> int:
        token_id: int = self._tokenizer.convert_tokens_to_ids(REWARD_TOKEN)
        return token_id

    def _token_ids(self, text: str, picture: list[int]) -> Tensor:
        instruction = INSTRUCTION.replace("{prompt}", text)
        before, after = (plain_token_ids(self._tokenizer, part) for part in (BEFORE_PICTURE, instruction))
        return torch.tensor([*before, *picture, *after, self._reward_id])


def convert_names(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Names of the checkpoint to those of transformers' Qwen2VLModel; the head keeps its own, `lm_head` is left out.

    The checkpoint has Qwen2-VL's names of before transformers 4.52 (`visual.`, `model.`), or later ones
    (`model.visual.`, `model.language_model.`).
    """
    converted = {}
    for name, tensor in weights.items():
        if name.startswith("lm_head."):
            continue
        if name.startswith(("model.visual.", "model.language_model.")):
            converted[name.removeprefix("model.")] = tensor
        elif name.startswith("model."):
            converted[f"language_model.{name.removeprefix('model.')}"] = tensor
        else:
            converted[name] = tensor
    return converted


def build_reward_head(weights: Mapping[str, Tensor]) -> nn.Sequential:
    """The head from the weights `rm_head.N.weight` and `.bias`: float32, hidden states [B, d] to [B, 2].

    Raises ValueError when a weight is missing or it does not give two numbers.
    """
    layers: list[nn.Module] = []
    for number in HEAD_NUMBERS:
        layer = linear_layer(weights, f"rm_head.{number}")
        layers += [layer] if number == HEAD_NUMBERS[-1] else [layer, nn.ReLU()]
    if layer.out_features != 2:
        raise ValueError(f"rm_head.{number} gives {layer.out_features} numbers, not a mean and an uncertainty")
    return nn.Sequential(*layers).requires_grad_(False).eval()


def _load_qwen(
    config: Any, weights: Mapping[str, Tensor], reward_id: int, model: str, dtype: str, device: str
) -> Qwen2VLModel:
    try:
        num_tokens = len(weights["language_model.embed_tokens.weight"])
    except KeyError as error:
        raise ValueError(f"the checkpoint lacks {error}") from error
    if reward_id >= num_tokens:
        raise ValueError(f"it knows {num_tokens} tokens, and {REWARD_TOKEN} would be number {reward_id}")
    config.text_config.vocab_size = num_tokens
    towers = {name: tensor for name, tensor in weights.items() if not name.startswith("rm_head.")}
    return fill_model(Qwen2VLModel, config, towers, model, dtype, device)
