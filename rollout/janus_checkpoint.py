"""A Janus checkpoint on disk: its files, its sizes, its special tokens.

    model_path ─► resolve_folder ─► JanusCheckpoint ─► tokenizer, chat template, special ids, sizes
    (hub id or folder)

A checkpoint is a plain Hugging Face folder of transformers' `JanusForConditionalGeneration`, such
as the hub's deepseek-community/Janus-Pro-1B and -7B. Everything that is wrong with one is found
here and raised as ModelError, naming the file. No weights are read.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from configs.errors import ModelError
from configs.model_sections import TINY_JANUS, TINY_JANUS_FOLDER

if TYPE_CHECKING:
    from transformers import JanusConfig, PreTrainedTokenizerBase

DEFAULT_GUIDANCE_SCALE = 5.0
"""Of Janus-Pro, and of T2I-R1."""
_SMALL_FILES = ("*.json", "*.jinja", "*.model", "*.txt")
WEIGHT_FILES = ("*.safetensors",)


@dataclass(frozen=True, slots=True)
class Roles:
    """How the chat template calls the two sides."""

    user: str = "<|User|>"
    assistant: str = "<|Assistant|>"

    def chat_template(self) -> str:
        """Janus's own format: `{role}: {message}` and a separator, and the role with a colon alone at the end."""
        return "".join(
            [
                "{{- bos_token -}}",
                "{%- for message in messages -%}",
                "{%- set is_user = message['role'] == 'user' -%}",
                f"{{{{- ({self.user!r} if is_user else {self.assistant!r}) + ': ' -}}}}",
                "{%- if message['content'] is string -%}{{- message['content'] | trim -}}",
                "{%- else -%}{%- for part in message['content'] if part['type'] == 'text' -%}",
                "{{- part['text'] | trim -}}{%- endfor -%}{%- endif -%}",
                "{{- '\\n\\n' if is_user else eos_token -}}",
                "{%- endfor -%}",
                f"{{%- if add_generation_prompt -%}}{{{{- {self.assistant + ':'!r} -}}}}{{%- endif -%}}",
            ]
        )


@dataclass(frozen=True, slots=True)
class SpecialIds:
    """Ids of the special tokens, in the tokenizer's vocabulary."""

    bos: int
    eos: int
    pad: int
    begin_of_image: int
    """The last token of an image prompt; every token after it is a VQ code."""


def resolve_folder(model_path: str, revision: str | None = None, weight_files: Sequence[str] = WEIGHT_FILES) -> Path:
    """The local folder of a checkpoint; a hub id is downloaded (once) first. 'tiny-janus' is the one shipped.

    weight_files: patterns of the weight files to fetch; none are fetched when it is empty.
    Raises ModelError when there is no such folder or id.
    """
    folder = TINY_JANUS_FOLDER if model_path == TINY_JANUS else Path(model_path).expanduser()
    if folder.is_dir():
        return folder.resolve()
    if folder.is_absolute() or model_path.startswith((".", "~")) or model_path.count("/") != 1:
        raise ModelError(f"model '{model_path}': no such folder, and not a hub id (OWNER/NAME)")
    from huggingface_hub import snapshot_download

    patterns = [*_SMALL_FILES, *weight_files]
    try:
        return Path(snapshot_download(model_path, revision=revision, allow_patterns=patterns))
    except (OSError, ValueError) as error:  # the hub's errors derive from these two
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise ModelError(
            f"model '{model_path}': neither a local folder nor to be had from the hub: {reason}"
        ) from error


class JanusCheckpoint:
    """The small files of a checkpoint, read on demand."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.config: JanusConfig = self._read_config()

    @classmethod
    def from_pretrained(cls, model_path: str, revision: str | None = None, weights: bool = False) -> JanusCheckpoint:
        """Of a folder or hub id, whose weights are fetched, too, with `weights`. Raises ModelError."""
        return cls(resolve_folder(model_path, revision, WEIGHT_FILES if weights else ()))

    @property
    def num_image_tokens(self) -> int:
        """Image tokens a picture: the square of `image_size // patch_size`."""
        return int(self.config.vq_config.num_patches) ** 2

    @property
    def num_codes(self) -> int:
        """Size of the VQ codebook."""
        return int(self.config.vq_config.num_embeddings)

    @property
    def text_vocab_size(self) -> int:
        """Size of the text vocabulary; ids from here on stand for image tokens where both share one range."""
        return int(self.config.text_config.vocab_size)

    @property
    def max_positions(self) -> int:
        """Longest sequence, prompt and image tokens together."""
        return int(self.config.text_config.max_position_embeddings)

    @property
    def guidance_scale(self) -> float:
        """The guidance weight stored with the checkpoint, or Janus-Pro's."""
        return float(self._generation_config.get("guidance_scale") or DEFAULT_GUIDANCE_SCALE)

    @cached_property
    def tokenizer(self) -> PreTrainedTokenizerBase:
        """The tokenizer, with the checkpoint's chat template. Raises ModelError."""
        from transformers import AutoTokenizer

        try:
            tokenizer = AutoTokenizer.from_pretrained(str(self.folder), local_files_only=True)
        except (OSError, ValueError, KeyError) as error:
            raise ModelError(f"model {self.folder}: its tokenizer cannot be loaded: {error}") from error
        if tokenizer.chat_template is None:
            tokenizer.chat_template = self._processor_chat_template()
        return tokenizer

    @cached_property
    def special_ids(self) -> SpecialIds:
        """BOS, EOS, padding and begin-of-image. Raises ModelError when one is nowhere to be found."""
        generation, text, tokenizer = self._generation_config, self.config.text_config, self.tokenizer
        boi_token = getattr(tokenizer, "boi_token", None) or "<begin_of_image>"
        boi_id = tokenizer.get_vocab().get(boi_token)
        extra = generation.get("generation_kwargs") or {}
        return SpecialIds(
            bos=self._first("bos", generation.get("bos_token_id"), tokenizer.bos_token_id, text.bos_token_id),
            eos=self._first("eos", tokenizer.eos_token_id, text.eos_token_id),
            pad=self._first("pad", generation.get("pad_token_id"), tokenizer.pad_token_id, text.pad_token_id),
            begin_of_image=self._first("boi", extra.get("boi_token_id"), generation.get("boi_token_id"), boi_id),
        )

    @cached_property
    def pixel_mean_and_std(self) -> tuple[list[float], list[float]]:
        """Per channel, of the pixels' normalisation `(x / 255 - mean) / std` that the VQ model was trained with."""
        processor = self._read_json("preprocessor_config.json") or self._read_json("processor_config.json") or {}
        settings = processor.get("image_processor", processor)
        mean, std = settings.get("image_mean", [0.5] * 3), settings.get("image_std", [0.5] * 3)
        if len(mean) != 3 or len(std) != 3:
            raise ModelError(f"model {self.folder}: image_mean {mean} and image_std {std} must have 3 values each")
        return list(map(float, mean)), list(map(float, std))

    @cached_property
    def _generation_config(self) -> dict[str, Any]:
        return self._read_json("generation_config.json") or {}

    def _read_config(self) -> JanusConfig:
        from transformers import JanusConfig

        content = self._read_json("config.json")
        if content is None and (self.folder / "adapter_config.json").exists():
            raise ModelError(
                f"model {self.folder} holds adapters alone, in PEFT's format; name the folder above, where bicot "
                "writes the model with them merged into it"
            )
        if content is None:
            raise ModelError(f"model {self.folder}: config.json is missing; is this a Hugging Face checkpoint?")
        if content.get("model_type") == "multi_modality":
            raise ModelError(
                f"model {self.folder} is in its authors' own format; convert it once, with "
                f"`python -m rollout.convert_janus {self.folder} NEW_FOLDER` (--roles User,Assistant for T2I-R1's)"
            )
        if content.get("model_type") != "janus":
            raise ModelError(
                f"model {self.folder}: config.json has model_type '{content.get('model_type')}', not 'janus'; "
                "use a checkpoint in transformers' format, such as deepseek-community/Janus-Pro-1B"
            )
        config: JanusConfig = JanusConfig.from_dict(content)
        num_image_tokens = int(config.vq_config.num_patches) ** 2
        if config.vision_config.num_image_tokens != num_image_tokens:
            raise ModelError(
                f"model {self.folder}: vision_config.num_image_tokens {config.vision_config.num_image_tokens} "
                f"contradicts the picture's {num_image_tokens} patches"
            )
        return config

    def _processor_chat_template(self) -> str:
        """Older checkpoints keep the template in the processor's files, where the tokenizer does not look."""
        for name in ("chat_template.json", "processor_config.json"):
            template = (self._read_json(name) or {}).get("chat_template")
            if isinstance(template, str):
                return template
        raise ModelError(
            f"model {self.folder}: no chat template in tokenizer_config.json, chat_template.jinja, "
            "chat_template.json or processor_config.json"
        )

    def _read_json(self, name: str) -> dict[str, Any] | None:
        path = self.folder / name
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
        except FileNotFoundError:
            return None
        except (OSError, ValueError) as error:
            raise ModelError(f"{path} cannot be read: {error}") from error
        if not isinstance(content, dict):
            raise ModelError(f"{path} does not hold a JSON object")
        return content

    def _first(self, name: str, *candidates: int | None) -> int:
        for candidate in candidates:
            if candidate is not None:
                return int(candidate)
        raise ModelError(
            f"model {self.folder}: {name}_token_id is neither in generation_config.json nor in the tokenizer"
        )
