"""Which picture belongs to which prompt: a folder of pictures and a file of prompts, matched.

    records with `image` or `file`  ─► that picture of the folder, whatever the order
    records without                 ─► the pictures in the order of their names, k to a record: pictures / records

Names are ordered as people count: `2.png` before `10.png`. They have to differ in their numbers alone: the place of a
`grid.png` among them says nothing of a record, and it would shift the others to another record's prompt. A record that
is no prompt keeps its place, so that it shifts no other; its pictures are skipped by name.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from configs.errors import DataError
from rollout.pictures.reader import is_file
from rollout.prompts.files import BadRecord, parse_prompt, read_records
from rollout.prompts.formats import show
from rollout.records import Prompt

SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".tif", ".tiff")
IMAGE_FIELDS = ("image", "file")
"""Fields that name a record's picture; `file` is what rollout.generate writes."""

DRAWN_FIELDS = ("plan", "guidance_scale", "trajectory_seed", "model", "temperature", "seed")
"""Fields by which rollout.generate says how it drew a picture."""


@dataclass(frozen=True, slots=True)
class Pair:
    """One picture to score."""

    name: str
    """Path within the folder."""
    path: Path
    prompt: Prompt
    plan: str | None = None
    """What it was drawn by, where the record has a field `plan`, as rollout.generate writes it."""


@dataclass(frozen=True, slots=True)
class Skipped:
    """A picture, or a record, that cannot be scored."""

    name: str
    reason: str

    def __str__(self) -> str:
        return f"{self.name}: {self.reason}"


def match_pictures(prompts_file: Path, folder: Path) -> tuple[list[Pair], list[Skipped]]:
    """The pictures of a folder with their prompts, and what was left out and why.

    Raises DataError when the file or the folder cannot be read, or the numbers do not fit.
    """
    records = [(f"{prompts_file.name}:{number}", record) for _, number, record in read_records(prompts_file)]
    if not records:
        raise DataError(f"{prompts_file}: there is no prompt in this file")
    pictures = list_pictures(folder)
    if any(_image_of(record) is not None for _, record in records):
        return _match_by_name(records, folder)
    _check_numbered(pictures, folder)
    if len(pictures) % len(records):
        raise DataError(
            f"{folder} holds {len(pictures)} pictures for the {len(records)} records of {prompts_file}: no "
            "whole number to a record; give each record the name of its picture in a field 'image'"
        )
    return _match_by_order(records, pictures)


def list_pictures(folder: Path) -> list[Path]:
    """All pictures of a folder, by name, but hidden ones: macOS keeps a `._1.png` beside a `1.png`, which is none.

    Subfolders are not read. Raises DataError when there is none.
    """
    try:
        paths = [path for path in folder.iterdir() if path.suffix.lower() in SUFFIXES and not path.name.startswith(".")]
        paths = [path for path in paths if is_file(path)]
    except OSError as error:
        raise DataError(f"{folder}: cannot list the pictures: {error.strerror or error}") from error
    if not paths:
        raise DataError(f"{folder}: there is no picture in this folder (looked for {', '.join(SUFFIXES)})")
    return sorted(paths, key=_as_counted)


def _check_numbered(pictures: Sequence[Path], folder: Path) -> None:
    """Raise DataError unless the names differ in their numbers alone; one picture may have any name."""
    by_form: dict[str, list[str]] = {}
    for path in pictures:
        by_form.setdefault(re.sub(r"\d+", "#", path.stem), []).append(path.name)
    if len(pictures) == 1 or (len(by_form) == 1 and "#" in next(iter(by_form))):
        return
    most = max(by_form.values(), key=len)
    odd = next((name for names in by_form.values() if names is not most for name in names), most[-1])
    raise DataError(
        f"{folder}: which record does {show(odd)} belong to? Pictures go to records in the order of their names only "
        "where these differ in their numbers alone, as 1.png and 2.png do; give each record the name of its picture in "
        "a field 'image', or take out what is no picture of a record"
    )


def _match_by_name(records: Sequence[tuple[str, Any]], folder: Path) -> tuple[list[Pair], list[Skipped]]:
    pairs, skipped = [], []
    for place, record in records:
        name = _image_of(record)
        try:
            prompt, plan = _prompt_and_plan(record, place)
        except BadRecord as error:
            skipped.append(Skipped(place, str(error)))
            continue
        if name is None:
            skipped.append(Skipped(place, f"names no picture in {' or '.join(IMAGE_FIELDS)}, as other records do"))
        elif not is_file(folder / name):
            skipped.append(Skipped(place, f"there is no picture {show(name)} in {folder}"))
        else:
            pairs.append(Pair(name, folder / name, prompt, plan))
    return pairs, skipped


def _match_by_order(records: Sequence[tuple[str, Any]], pictures: Sequence[Path]) -> tuple[list[Pair], list[Skipped]]:
    pairs, skipped = [], []
    num_each = len(pictures) // len(records)
    for i, (place, record) in enumerate(records):
        own = pictures[i * num_each : (i + 1) * num_each]
        try:
            prompt, plan = _prompt_and_plan(record, place)
        except BadRecord as error:
            skipped += [Skipped(path.name, f"its prompt, {place}, is bad: {error}") for path in own]
        else:
            pairs += [Pair(path.name, path, prompt, plan) for path in own]
    return pairs, skipped


def _prompt_and_plan(record: Any, place: str) -> tuple[Prompt, str | None]:
    """The prompt under the id that the record gives it, else its place; what only names the picture is no metadata.

    Raises BadRecord.
    """
    if not isinstance(record, Mapping):
        return parse_prompt(record, place), None
    plan, prompt_id = record.get("plan"), record.get("prompt_id")
    asked = {name: value for name, value in record.items() if name not in (*IMAGE_FIELDS, *DRAWN_FIELDS)}
    prompt = parse_prompt(asked, prompt_id if isinstance(prompt_id, str) and prompt_id else place)
    return prompt, plan if isinstance(plan, str) else None


def _image_of(record: Any) -> str | None:
    if not isinstance(record, Mapping):
        return None
    names = (record.get(field) for field in IMAGE_FIELDS)
    return next((name for name in names if isinstance(name, str) and name), None)


def _as_counted(path: Path) -> list[tuple[int, str]]:
    """Sort key: digits as numbers, the rest as text."""
    return [(int(part), "") if part.isdecimal() else (-1, part) for part in re.split(r"(\d+)", path.name)]
