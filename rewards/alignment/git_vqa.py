"""GIT-VQA: does the picture show each object with its attributes? (GIT: Wang et al. 2022, arXiv 2205.14100.)

GIT, fine-tuned on VQAv2, is asked `red apple?` for every attribute noun of the prompt, or `apple?` for every noun when
it has none with attributes. With z the logits of its first answer token, an answer counts
P(yes) / (P(yes) + P(no)) = sigmoid(z_yes - z_no), and a picture the mean over its questions (T2I-R1, section 3.3). A
prompt without either has nothing to ask, and where or how many things are is not asked: the reward does not apply to
a relation or a count that names no attributes.

    [picture | CLS question]  ─►  GIT  ─►  hidden state of the question's last token  ─►  logits
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import CLIPImageProcessorPil, GitForCausalLM

from rewards.loading import load_model, load_tokenizer, model_errors, resolve_dtype
from rewards.loading.pretrained import single_token_id
from rewards.pictures import Preprocessing
from rewards.t2i_r1.git_vqa import T2IR1Questions
from rollout.records import Prompt, Score, UInt8Array

DEFAULT_MODEL = "microsoft/git-large-vqav2"
GPU_DTYPE = "tf32"
"""As T2I-R1 runs it: a probability from two logits, and the mean of few of them."""
_PLACES_AND_COUNTS = ("spatial", "numeracy")


class Questions:
    """What GIT is asked, and what a prompt earns that it is not asked about."""

    def nouns(self, prompt: Prompt) -> tuple[str, ...]:
        """The nouns to ask for, each one question."""
        if prompt.attr_nouns:
            return prompt.attr_nouns
        kind_unknown = not prompt.task_type
        place_or_count = prompt.task_type in _PLACES_AND_COUNTS or (
            kind_unknown and (prompt.spatial_info is not None or bool(prompt.numeracy_info))
        )
        return () if place_or_count else prompt.nouns

    def fixed_score(self, prompt: Prompt) -> Score:
        """The score of a prompt without questions: not applicable."""
        return Score(None)


class GitVqaReward:
    """Mean probability of "yes" over the attribute questions of a prompt, 0 to 1.

    model: hub id or folder of transformers' GitForCausalLM with its tokenizer and image processor.
    t2i_r1_compat: a constant where there is nothing to ask, as in T2I-R1 (rewards/t2i_r1/git_vqa.py).
    Raises ModelError when it cannot be loaded.
    """

    def __init__(
        self, device: str, model: str = DEFAULT_MODEL, dtype: str = "auto", t2i_r1_compat: bool = False
    ) -> None:
        self._questions = T2IR1Questions() if t2i_r1_compat else Questions()
        dtype = resolve_dtype(dtype, device, GPU_DTYPE)
        with model_errors("git_vqa", model):
            git = load_model(GitForCausalLM, model, dtype, device)
            self._tokenizer = load_tokenizer(model)
            self._prepare = Preprocessing.of(CLIPImageProcessorPil.from_pretrained(model))
            self._yes_id = single_token_id(self._tokenizer, "yes")
            self._no_id = single_token_id(self._tokenizer, "no")
        self._git: GitForCausalLM = git

    @staticmethod
    def applies_to(prompt: Prompt, options: Mapping[str, Any]) -> bool:
        """Whether there is something to ask. T2I-R1's rules have a number for every prompt."""
        return bool(options.get("t2i_r1_compat") or Questions().nouns(prompt))

    def prepare(self, pictures: UInt8Array, prompts: Sequence[Prompt]) -> Tensor:
        """Pixels as the model takes them, on its device: what can be done while the batch before is scored."""
        return self._prepare(pictures, self._git.device)

    @torch.inference_mode()
    def score(self, pictures: UInt8Array, prompts: Sequence[Prompt], prepared: Tensor | None = None) -> list[Score]:
        """Mean over the questions for each picture; pictures uint8 [B, height, width, 3].

        Parts: question -> probability.
        """
        pixels = self.prepare(pictures, prompts) if prepared is None else prepared
        # Pictures with equally many questions go together: GIT tiles a picture's features over its questions.
        by_num_questions: dict[int, list[int]] = defaultdict(list)
        questions = [[f"{noun}?" for noun in self._questions.nouns(prompt)] for prompt in prompts]
        for i, asked in enumerate(questions):
            by_num_questions[len(asked)].append(i)
        scores = [self._questions.fixed_score(prompt) for prompt in prompts]
        for num_questions, indices in by_num_questions.items():
            if num_questions == 0:
                continue
            probabilities = self._probabilities(pixels[indices], [questions[i] for i in indices])
            for i, answers in zip(indices, probabilities.tolist(), strict=True):
                scores[i] = Score(sum(answers) / num_questions, parts=dict(zip(questions[i], answers, strict=True)))
        return scores

    def _probabilities(self, pixels: Tensor, questions: Sequence[Sequence[str]]) -> Tensor:
        """P(yes) / (P(yes) + P(no)), float32 [B, Q], of Q questions to each of B pictures."""
        num_pictures, num_questions = len(questions), len(questions[0])
        # Row q * B + b holds question q of picture b: the order in which GIT repeats the pictures' features.
        rows = [questions[b][q] for q in range(num_questions) for b in range(num_pictures)]
        token_ids = [[self._tokenizer.cls_token_id, *ids] for ids in self._tokenize(rows)]
        lengths = torch.tensor([len(ids) for ids in token_ids])
        # Text is causal in GIT, so padding on the right changes nothing before it.
        padded = torch.full((len(rows), int(lengths.max())), self._tokenizer.pad_token_id)
        for row, ids in zip(padded, token_ids, strict=True):
            row[: len(ids)] = torch.tensor(ids)
        device = self._git.device
        hidden = self._git.git(
            input_ids=padded.to(device), pixel_values=pixels.to(self._git.dtype), use_cache=False
        ).last_hidden_state
        num_image_tokens = hidden.shape[1] - padded.shape[1]
        last = hidden[torch.arange(len(rows), device=device), (num_image_tokens + lengths - 1).to(device)]
        logits = self._git.output(last).float()
        probabilities = torch.sigmoid(logits[:, self._yes_id] - logits[:, self._no_id])
        return probabilities.view(num_questions, num_pictures).T

    def _tokenize(self, texts: list[str]) -> list[list[int]]:
        token_ids: list[list[int]] = self._tokenizer(texts, add_special_tokens=False).input_ids
        return token_ids
