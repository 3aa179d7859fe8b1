"""VQAScore: the probability that a vision-language model answers "Yes" to "does this figure show …?"

(Lin et al. 2024, arXiv 2404.01291, there with CLIP-FlanT5; here with Qwen2.5-VL or Qwen3-VL.)

    [system, user | picture | question, assistant]  ─►  logits after the last token  ─►  softmax  ─►  P("Yes")

One prefill and no sampling: the score is a probability, and not one verdict drawn from it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from transformers import AutoModelForImageTextToText, Qwen2VLImageProcessorPil

from configs.errors import ConfigError
from rewards.loading import load_model, load_tokenizer, model_errors, resolve_dtype
from rewards.loading.pretrained import single_token_id
from rewards.pictures import QwenPatches, check_pictures
from rewards.pictures.qwen_patches import SeenPictures
from rollout.records import Prompt, Score, UInt8Array

DEFAULT_MODEL = "Qwen/Qwen2.5-VL-7B-Instruct"
QUESTION = 'Does this figure show "{prompt}"? Please answer yes or no.'
"""The paper's."""
GPU_DTYPE = "bfloat16"
"""As it was trained: 7 B parameters, whose probability spreads over 0 to 1."""
SYSTEM = {
    "qwen2_5_vl": "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n",
    "qwen3_vl": "",
}
"""Model type -> what its chat template puts first."""
BEFORE_PICTURE = "<|im_start|>user\n"
AFTER_PICTURE = "{question}<|im_end|>\n<|im_start|>assistant\n"


class VqaScoreReward:
    """P("Yes") for each picture, 0 to 1.

    model: hub id or folder of a Qwen2.5-VL or Qwen3-VL with its tokenizer and image processor. question: what is
    asked, with {prompt} in it.
    Raises ModelError when the model cannot be loaded or is another, ConfigError for a question without {prompt}.
    """

    def __init__(self, device: str, model: str = DEFAULT_MODEL, dtype: str = "auto", question: str = QUESTION) -> None:
        if "{prompt}" not in question:
            raise ConfigError(f"rewards[].options.question of vqa_score is '{question}'; put {{prompt}} into it")
        self._question = question
        dtype = resolve_dtype(dtype, device, GPU_DTYPE)
        with model_errors("vqa_score", model):
            self._vlm: Any = load_model(AutoModelForImageTextToText, model, dtype, device)
            self._tokenizer = load_tokenizer(model)
            self._see = QwenPatches(Qwen2VLImageProcessorPil.from_pretrained(model))
            self._yes_id = single_token_id(self._tokenizer, "Yes")
            kind = self._vlm.config.model_type
            if kind not in SYSTEM:
                raise ValueError(f"it is a {kind}; only {' and '.join(SYSTEM)} are supported")
        self._before = f"{SYSTEM[kind]}{BEFORE_PICTURE}"

    @torch.inference_mode()
    def score(self, pictures: UInt8Array, prompts: Sequence[Prompt]) -> list[Score]:
        """P("Yes") for each picture; pictures uint8 [B, height, width, 3]. Parts: the likeliest first token."""
        check_pictures(pictures, prompts)
        seen = self._see(pictures, self._vlm.device)
        rows = [self._token_ids(prompt.text, seen.num_tokens) for prompt in prompts]
        probabilities = torch.softmax(self._last_logits(rows, seen), dim=-1)
        answers = self._tokenizer.batch_decode(probabilities.argmax(dim=-1)[:, None])
        values = probabilities[:, self._yes_id].tolist()
        return [Score(value, parts={"answer": answer}) for value, answer in zip(values, answers, strict=True)]

    def _token_ids(self, text: str, num_patches: int) -> Tensor:
        config = self._vlm.config
        picture = [config.vision_start_token_id, *[config.image_token_id] * num_patches, config.vision_end_token_id]
        question = self._question.replace("{prompt}", text)
        return torch.tensor(
            [*self._tokenize(self._before), *picture, *self._tokenize(AFTER_PICTURE.format(question=question))]
        )

    def _tokenize(self, text: str) -> list[int]:
        token_ids: list[int] = self._tokenizer(text, add_special_tokens=False).input_ids
        return token_ids

    def _last_logits(self, rows: Sequence[Tensor], seen: SeenPictures) -> Tensor:
        """Logits, float32 [B, vocabulary], after the last token of each row."""
        device = self._vlm.device
        # The padding's id does not matter under the mask, as long as it is no picture's.
        token_ids = pad_sequence(list(rows), batch_first=True, padding_side="left")
        mask = pad_sequence([torch.ones_like(row) for row in rows], batch_first=True, padding_side="left")
        logits = self._vlm(
            input_ids=token_ids.to(device),
            attention_mask=mask.to(device),
            mm_token_type_ids=(token_ids == self._vlm.config.image_token_id).int().to(device),
            pixel_values=seen.patches.to(self._vlm.dtype),
            image_grid_thw=seen.grid,
            use_cache=False,
            logits_to_keep=1,
        ).logits[:, -1]
        return logits.float()
