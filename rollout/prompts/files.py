"""Records of prompt files as prompts; `rollout.prompts.formats` reads the files.

Every format ends in the same mapping, T2I-R1's schema, of which only `prompt` must be there:

    {"prompt": str, "task_type": str, "nouns": [str], "attr_nouns": [str],
     "spatial_info": {"obj1": str, "obj2": str, "locality": str}, "numeracy_info": [{"obj_name": str, "num": int}],
     "metadata": {any JSON}}

Fields of other names join the metadata, for rewards to read.

A record that cannot be read is a `BadRecord` in its place and does not stop the others.
"""

from __future__ import annotations

import contextlib
import unicodedata
from collections.abc import Mapping
from dataclasses import fields
from typing import Any

from rollout.prompts.formats import BadRecord as BadRecord
from rollout.prompts.formats import is_text, show
from rollout.prompts.formats import read_records as read_records
from rollout.prompts.metadata import NotJson, as_json
from rollout.records import CountInfo, Prompt, SpatialInfo

FIELDS = frozenset(field.name for field in fields(Prompt)) - {"text"} | {"prompt"}
"""Of a record that mean something to bicot itself; `prompt_id` is made anew, from the record's place."""
_UNSEEN = ("Cc", "Cf", "Zs", "Zl", "Zp")
"""Unicode's categories of characters without a picture."""


def parse_prompt(record: Any, prompt_id: str) -> Prompt:
    """A record as a Prompt. A field that is missing or null is empty; unknown fields join its metadata.

    Raises BadRecord.
    """
    if isinstance(record, BadRecord):
        raise record
    if not isinstance(record, Mapping):
        raise BadRecord(f"expected an object with a 'prompt', found {show(record)}")
    return Prompt(
        prompt_id=prompt_id,
        text=text_of(record, "prompt"),
        task_type=text_of(record, "task_type", required=False),
        nouns=_words(record, "nouns"),
        attr_nouns=_words(record, "attr_nouns"),
        spatial_info=_spatial_info(record.get("spatial_info")),
        numeracy_info=_numeracy_info(record.get("numeracy_info")),
        metadata=_metadata(record),
    )


def _metadata(record: Mapping[str, Any]) -> dict[str, Any]:
    """The record's own `metadata`, and before it the fields that bicot does not know, but for empty ones and for what
    JSON cannot hold (pictures in a Parquet file). Raises BadRecord for metadata that are no object."""
    own = record.get("metadata")
    if own is None:
        own = {}
    if not isinstance(own, Mapping):
        raise BadRecord(f"metadata: expected an object, found {show(own)}")
    known: dict[str, Any] = {}
    for name, value in record.items():
        if isinstance(name, str) and name not in FIELDS and value not in (None, ""):
            with contextlib.suppress(NotJson):
                known[name] = as_json(value)
    try:
        stated: dict[str, Any] = as_json(own)
    except NotJson as error:
        raise BadRecord(f"metadata: {error}") from None
    return known | stated


def text_of(record: Mapping[str, Any], field: str, *, required: bool = True) -> str:
    """A field's text without blanks around it. Raises BadRecord for one that is none, empty, or cannot be written."""
    value = record.get(field)
    if value is None:
        value = ""
    if not isinstance(value, str):
        raise BadRecord(f"{field}: expected a text, found {show(value)}")
    _check_characters(field, value)
    if required and not value.strip():
        raise BadRecord(f"{field}: missing or empty")
    if required and all(unicodedata.category(character) in _UNSEEN for character in value):
        raise BadRecord(f"{field}: empty but for characters that nobody sees, {value!a}")
    return value.strip()


def _check_characters(field: str, text: str) -> None:
    """Raises BadRecord for what tokenizers, C strings or UTF-8 files cannot hold."""
    if "\0" in text:
        raise BadRecord(f"{field}: holds the character U+0000, {show(text)}; is the file UTF-16? convert it to UTF-8")
    if not is_text(text):
        raise BadRecord(f"{field}: half a character in {show(text)}: a text was cut in two there (a lone surrogate)")


def _words(record: Mapping[str, Any], field: str) -> tuple[str, ...]:
    value = record.get(field)
    if value is None:
        return ()
    if not isinstance(value, list | tuple) or not all(isinstance(word, str) for word in value):
        raise BadRecord(f"{field}: expected a list of texts, found {show(value)}")
    for word in value:
        _check_characters(field, word)
    return tuple(value)


def _spatial_info(value: Any) -> SpatialInfo | None:
    if value is None or (isinstance(value, Mapping) and all(part is None for part in value.values())):
        return None
    if not isinstance(value, Mapping):
        raise BadRecord(f"spatial_info: expected an object with obj1, obj2 and locality, found {show(value)}")
    try:
        obj1, obj2, locality = (text_of(value, part) for part in ("obj1", "obj2", "locality"))
    except BadRecord as error:
        raise BadRecord(f"spatial_info.{error}") from None
    return SpatialInfo(obj1, obj2, locality)


def _numeracy_info(value: Any) -> tuple[CountInfo, ...]:
    if value is None:
        return ()
    if not isinstance(value, list):
        raise BadRecord(f"numeracy_info: expected a list, found {show(value)}")
    return tuple(_count_info(entry) for entry in value)


def _count_info(entry: Any) -> CountInfo:
    if not isinstance(entry, Mapping):
        raise BadRecord(f"numeracy_info: expected objects with obj_name and num, found {show(entry)}")
    try:
        name = text_of(entry, "obj_name")
    except BadRecord as error:
        raise BadRecord(f"numeracy_info.{error}") from None
    num = entry.get("num")
    if isinstance(num, float) and num.is_integer():
        num = int(num)  # a table with a gap in the column holds 3 as 3.0
    if isinstance(num, bool) or not isinstance(num, int) or num < 0:
        raise BadRecord(f"numeracy_info.num: expected a whole number from 0, found {show(num)}")
    return CountInfo(name, num)
