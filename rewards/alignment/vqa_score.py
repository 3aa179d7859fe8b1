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
from transformers import AutoModelForImageTextToText, Qwen2VLImageProcessorPil

from configs.errors import ConfigError
from rewards.loading import load_model, load_tokenizer, model_errors, resolve_dtype
from rewards.loading.pretrained import plain_token_ids, single_token_id
from rewards.pictures import QwenPatches
from rewards.pictures.qwen_patches import SeenPictures
from rollout.records import Prompt, Score, UInt8Array

DEFAULT_MODEL = "Qwen/Qwen2.5-VL-7B-Instruct"
QUESTION = 'Does this figure show "{prompt}"? Please answer Yes or No.'
"""The paper's, but for the capitals: Qwen repeats the words that it is offered, and "Yes" is what is read."""
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

    def prepare(self, pictures: UInt8Array, prompts: Sequence[Prompt]) -> SeenPictures:
        """Patches as the model takes them, on its device: what can be done while the batch before is scored."""
        return self._see(pictures, self._vlm.device)

    @torch.inference_mode()
    def score(
        self, pictures: UInt8Array, prompts: Sequence[Prompt], prepared: SeenPictures | None = None
    ) -> list[Score]:
        """P("Yes") for each picture; pictures uint8 [B, height, width, 3]. Parts: the likeliest first token."""
        seen = self.prepare(pictures, prompts) if prepared is None else prepared
        rows = [self._token_ids(prompt.text, seen.token_ids(self._vlm.config)) for prompt in prompts]
        logits = self._vlm(**seen.model_inputs(rows, self._vlm), logits_to_keep=1).logits[:, -1]
        probabilities = torch.softmax(logits.float(), dim=-1)
        answers = self._tokenizer.batch_decode(probabilities.argmax(dim=-1)[:, None])
        values = probabilities[:, self._yes_id].tolist()
        return [Score(value, parts={"answer": answer}) for value, answer in zip(values, answers, strict=True)]

    def _token_ids(self, text: str, picture: list[int]) -> Tensor:
        question = AFTER_PICTURE.format(question=self._question.replace("{prompt}", text))
        before, after = (plain_token_ids(self._tokenizer, part) for part in (self._before, question))
        return torch.tensor([*before, *picture, *after])
