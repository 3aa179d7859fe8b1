"""Prompts of both phases as token ids, by the checkpoint's chat template and tokenizer.

    prompt ─► semantic_prompt ─► (engine writes) CoT ids ─► decode_cot ─► CoT text
    prompt + CoT text ─► image_prompt ─► (engine draws) image tokens

Both prompts go through the checkpoint's own chat template and tokenizer. Janus-Pro's reads

    <bos>{system prompt}\\n\\n<|User|>: {instruction with prompt}\\n\\n<|Assistant|>:
    <bos><|User|>: {prompt}. {CoT}\\n\\n<|Assistant|>:<begin_of_image>

The system prompt stands before the template's text, as in Janus's own processor, since its template has no system role.
The system prompt and instruction that a policy was trained with are kept beside its weights, in
`bicot_conversation.json`: with other ones its plans are worse.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from configs.errors import DataError, ModelError
from configs.schema import RolloutConfig
from rollout.janus_checkpoint import JanusCheckpoint, Roles
from rollout.records import Int32Array, Prompt

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

FORMAT_FILE = "bicot_conversation.json"
_PROBE = "probe"
_SYSTEM_SEPARATOR = "\n\n"


class PromptTooLong(DataError):
    """A prompt has more tokens than its limit. The message names both."""


@dataclass(frozen=True, slots=True)
class ConversationFormat:
    """The words around a prompt when the policy is asked for a semantic CoT, and how its answer becomes a picture's
    prompt."""

    system_prompt: str = "You plan pictures. From a short request you write what a painter needs to know."
    """May be empty."""
    instruction: str = (
        'Plan the picture for this request: "{prompt}"\n'
        "Name every object in it, with its attributes (colour, shape, texture, material), how many of it there are, "
        "and where it stands in relation to the others. Add nothing that contradicts the request. "
        "Answer with the plan alone, in at most 50 words."
    )
    """The user message, with `{prompt}` where the prompt goes."""
    roles: tuple[str, str] | None = None
    """How the chat template calls user and assistant; None: as the checkpoint's own template does."""
    image_prompt: Literal["tidy", "verbatim"] = "tidy"
    """`{prompt}. {CoT}`, tidy with one full stop and one space, and without both where there is no CoT. Verbatim joins
    the two as they are, spaces and full stops at their ends included, as T2I-R1's code does."""

    def __post_init__(self) -> None:
        if "{prompt}" not in self.instruction:
            raise ValueError(f"the instruction must hold the placeholder {{prompt}}: {self.instruction!r}")

    @classmethod
    def load(cls, folder: str | Path) -> ConversationFormat:
        """The format stored in a checkpoint folder, or the default. Raises ModelError for a broken file."""
        path = Path(folder) / FORMAT_FILE
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
            return cls(**content | {"roles": tuple(content["roles"]) if content.get("roles") else None})
        except FileNotFoundError:
            return cls()
        except (OSError, ValueError, TypeError) as error:
            raise ModelError(f"{path} does not hold a system_prompt and an instruction: {error}") from error

    @classmethod
    def of_run(cls, folder: str | Path, rollout: RolloutConfig) -> ConversationFormat:
        """The stored one, with what the config of a run sets in its place. Raises ModelError."""
        names = ("system_prompt", "instruction", "roles", "image_prompt")
        given: dict[str, Any] = {name: getattr(rollout, name) for name in names}
        return replace(cls.load(folder), **{name: value for name, value in given.items() if value is not None})

    def save(self, folder: str | Path) -> None:
        """Write the format into a checkpoint folder."""
        path = Path(folder) / FORMAT_FILE
        unset = {"roles": None, "image_prompt": "tidy"}
        content = {name: value for name, value in asdict(self).items() if unset.get(name, value is None) != value}
        path.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


class Conversation:
    """Turns prompts and CoTs into token ids, and CoT ids into text. Immutable; safe to share between threads."""

    def __init__(self, checkpoint: JanusCheckpoint, format: ConversationFormat) -> None:
        self.checkpoint = checkpoint
        self.format = format
        self._special_ids = checkpoint.special_ids
        if format.roles is not None:
            checkpoint.tokenizer.chat_template = Roles(*format.roles).chat_template()
        self._special_text = _special_text_pattern(checkpoint.tokenizer)
        self._typed_contents = self._template_wants_typed_contents()
        self._before_answer = self._text_before_answer()

    @classmethod
    def from_pretrained(
        cls,
        model_path: str,
        system_prompt: str | None = None,
        instruction: str | None = None,
        revision: str | None = None,
    ) -> Conversation:
        """Of a checkpoint folder or hub id; what is given wins over what is stored with it.

        Raises ModelError when the checkpoint cannot be used.
        """
        checkpoint = JanusCheckpoint.from_pretrained(model_path, revision)
        format = ConversationFormat.load(checkpoint.folder)
        if system_prompt is not None:
            format = replace(format, system_prompt=system_prompt)
        if instruction is not None:
            format = replace(format, instruction=instruction)
        return cls(checkpoint, format)

    @classmethod
    def of_run(cls, model_path: str, rollout: RolloutConfig, revision: str | None = None) -> Conversation:
        """With what the config of a run says of it. Raises ModelError."""
        checkpoint = JanusCheckpoint.from_pretrained(model_path, revision)
        return cls(checkpoint, ConversationFormat.of_run(checkpoint.folder, rollout))

    @property
    def tokenizer(self) -> PreTrainedTokenizerBase:
        return self.checkpoint.tokenizer

    @property
    def bos_id(self) -> int:
        return self._special_ids.bos

    @property
    def eos_id(self) -> int:
        return self._special_ids.eos

    @property
    def pad_id(self) -> int:
        return self._special_ids.pad

    @property
    def boi_id(self) -> int:
        return self._special_ids.begin_of_image

    def semantic_prompt(self, prompt: str) -> Int32Array:
        """int32 [N_semantic_prompt]: context of a semantic CoT, from BOS to the assistant's turn."""
        # Not str.format: a prompt may hold braces.
        message = self.format.instruction.replace("{prompt}", self._plain(prompt))
        text = self._render(message)
        if self.format.system_prompt:
            text = self.format.system_prompt + _SYSTEM_SEPARATOR + text
        return self._encode_from_bos(text)

    def image_prompt(self, prompt: str, cot: str, max_cot_tokens: int | None = None) -> Int32Array:
        """int32 [N_image_prompt]: context of a picture, from BOS to begin-of-image.

        An empty CoT leaves the prompt alone. A CoT that makes the context longer by more than max_cot_tokens loses its
        end (its text may need more tokens than were sampled). Raises DataError when the tokenizer reads words of the
        prompt as begin-of-image.
        """
        ids = self._image_prompt(prompt, cot)
        if max_cot_tokens is None:
            return ids
        # By the prompt itself, and not by the longest that a run allows: the same prompt, plan and seed shall give the
        # same picture in whatever company.
        most = len(self._image_prompt(prompt, "")) + max_cot_tokens
        words = self._encode(self.plain(cot)) if len(ids) > most else []
        # Each turn keeps fewer tokens of the CoT as it was given. To go on from the text of the turn before would not
        # do: half a character becomes U+FFFD, which may take as many tokens as were cut, for ever.
        while len(ids) > most and words:
            words = words[: max(0, len(words) - (len(ids) - most))]
            ids = self._image_prompt(prompt, self.decode_cot(np.array(words, dtype=np.int32)))
        return ids

    def encode_cot(self, cot: str) -> Int32Array:
        """int32 [N_cot]: a written CoT as the policy would sample it, with its final EOS."""
        return np.array([*self._encode(self._before_answer + self.plain(cot)), self.eos_id], dtype=np.int32)

    def decode_cot(self, cot_ids: Int32Array) -> str:
        """The words of a sampled CoT, without special tokens."""
        return self._plain(str(self.tokenizer.decode(cot_ids.tolist(), skip_special_tokens=True)))

    def check_length(
        self,
        ids: Int32Array,
        max_tokens: int,
        prompt: str,
        remedy: str = "shorten it, or raise rollout.max_prompt_tokens",
    ) -> None:
        """Raises PromptTooLong, naming the tokens and the limit, when `ids` (made from `prompt`) are too many."""
        if len(ids) > max_tokens:
            raise PromptTooLong(
                f"prompt '{_shortened(prompt)}' takes {len(ids)} tokens with the words around it, "
                f"at most {max_tokens} are allowed; {remedy}"
            )

    def reason_against(self, max_prompt_tokens: int) -> Callable[[Prompt], str | None]:
        """For `PromptSet.without`: why a prompt cannot be asked in `max_prompt_tokens`, or None."""

        def reason(prompt: Prompt) -> str | None:
            if not self.plain(prompt.text):
                return f"prompt '{prompt.text}' is empty but for special tokens of the model"
            try:
                for ids in (self.semantic_prompt(prompt.text), self.image_prompt(prompt.text, "")):
                    self.check_length(ids, max_prompt_tokens, prompt.text)
            except DataError as error:
                return str(error)
            return None

        return reason

    def longest(self, prompts: Iterable[Prompt], limit: int, *, with_cot: bool) -> int:
        """Tokens of the longest of these prompts with the words around it: before its plan, where there is to be one,
        and before its picture.

        Raises DataError for an empty one, and PromptTooLong for one of more than `limit` tokens.
        """
        num_tokens = 0
        for prompt in prompts:
            if not self.plain(prompt.text):
                raise DataError(f"prompt {prompt.prompt_id} is empty, or holds nothing but special tokens of the model")
            contexts = [self.image_prompt(prompt.text, "")]
            if with_cot:
                contexts.append(self.semantic_prompt(prompt.text))
            for ids in contexts:
                self.check_length(ids, limit, prompt.text, "shorten it, or lower max_cot_tokens")
                num_tokens = max(num_tokens, len(ids))
        return num_tokens

    def _image_prompt(self, prompt: str, cot: str) -> Int32Array:
        prompt, cot = self._plain(prompt), self._plain(cot)
        if self.format.image_prompt == "verbatim":
            text = self._render(f"{prompt}. {cot}")
        else:
            text = self._render(f"{prompt.rstrip('. ')}. {cot}" if cot else prompt)
        ids = np.append(self._encode_from_bos(text), np.int32(self.boi_id))
        if np.count_nonzero(ids == self.boi_id) != 1:
            raise DataError(
                f"prompt '{_shortened(prompt)}': the tokenizer of {self.checkpoint.folder} reads a part of it, "
                "or of its plan, as begin-of-image; leave that part out"
            )
        return ids

    def _plain(self, text: str) -> str:
        """`plain`, and in verbatim image prompts the spaces around the text stay."""
        without = self._special_text.sub(" ", text)
        return without if self.format.image_prompt == "verbatim" else without.strip()

    def plain(self, text: str) -> str:
        """Text whose words cannot be read as special tokens: neither user nor policy may open a turn or a picture."""
        return self._special_text.sub(" ", text).strip()

    def _render(self, message: str, answer: str | None = None) -> str:
        messages = [self._message("user", message)]
        if answer is not None:
            messages.append(self._message("assistant", answer))
        text = str(self.tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=answer is None))
        return text.removeprefix(str(self.tokenizer.bos_token))

    def _message(self, role: str, text: str) -> dict[str, object]:
        return {"role": role, "content": [{"type": "text", "text": text}] if self._typed_contents else text}

    def _template_wants_typed_contents(self) -> bool:
        """Janus's template wants contents as a list of typed parts, others want plain text: ask it."""
        for typed in (False, True):
            self._typed_contents = typed
            rendered = self._render(_PROBE)
            if _PROBE in rendered and "'type'" not in rendered:
                return typed
        raise ModelError(f"model {self.checkpoint.folder}: its chat template does not render a user message")

    def _text_before_answer(self) -> str:
        """What the template puts between the assistant's turn and its words (Janus: one space)."""
        opening, whole = self._render(_PROBE), self._render(_PROBE, answer=_PROBE)
        end = whole.rfind(_PROBE)
        return whole[len(opening) : end] if whole.startswith(opening) and end >= len(opening) else ""

    def _encode(self, text: str) -> list[int]:
        return list(self.tokenizer.encode(text, add_special_tokens=False))

    def _encode_from_bos(self, text: str) -> Int32Array:
        return np.array([self.bos_id, *self._encode(text)], dtype=np.int32)


def _shortened(prompt: str) -> str:
    return prompt if len(prompt) <= 60 else prompt[:57] + "..."


def _special_text_pattern(tokenizer: PreTrainedTokenizerBase) -> re.Pattern[str]:
    """Matches the text of every special token, and of added ones in angle brackets (Janus's roles).

    Not of all added tokens: Janus-Pro's tokenizer adds plain letters such as 'ü', too.
    """
    special = set(tokenizer.all_special_tokens)
    for token in tokenizer.added_tokens_decoder.values():
        if token.special or (token.content.startswith("<") and token.content.endswith(">")):
            special.add(token.content)
    longest_first = sorted(special, key=len, reverse=True)
    return re.compile("|".join(map(re.escape, longest_first)))
