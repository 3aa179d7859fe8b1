"""Pictures as files, with what they were drawn from beside them.

GroupRollout + pictures ─► FOLDER/0000-a-red-star-0.png, … and a line each in FOLDER/images.jsonl

In a folder that holds pictures already, numbering goes on after them; no file is ever written over.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from PIL import Image

from configs.errors import DataError
from rollout.records import GroupRollout, UInt8Array

MANIFEST = "images.jsonl"
_MAX_WORDS_LENGTH = 40


class PictureWriter:
    """Writes the pictures of a group, and appends a line for each to the manifest."""

    def __init__(self, folder: Path, settings: dict[str, Any]) -> None:
        """settings: what every line of the manifest repeats. Raises DataError when the folder cannot be made."""
        self._folder = folder
        self._settings = settings
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise DataError(f"output folder {folder} cannot be made: {error}") from error
        numbers = (re.match(r"(\d{4,})-.*\.png$", path.name) for path in folder.iterdir())
        self._first = max((int(match[1]) + 1 for match in numbers if match), default=0)

    def write(
        self, rollout: GroupRollout, pictures: UInt8Array, notes: Sequence[Mapping[str, Any]] | None = None
    ) -> list[Path]:
        """Paths of the pictures; a name holds the prompt's place, its words, and the picture's number.

        notes: what else the line of each picture says.

        Raises DataError where another process has written a picture of the same name meanwhile.
        """
        request = rollout.request
        words = "-".join(re.findall(r"\w+", request.prompt.text.lower()))[:_MAX_WORDS_LENGTH].rstrip("-")
        paths = []
        with (self._folder / MANIFEST).open("a", encoding="utf-8") as manifest:
            drawn = zip(rollout.trajectories, pictures, notes or [{}] * len(pictures), strict=True)
            for number, (trajectory, picture, note) in enumerate(drawn):
                path = self._folder / f"{self._first + request.sequence:04d}-{words}-{number}.png"
                try:
                    with path.open("xb") as file:
                        Image.fromarray(picture).save(file, "PNG")
                except FileExistsError:
                    raise DataError(
                        f"{path} was written by another process meanwhile; name an output folder of your own"
                    ) from None
                line = {
                    "file": path.name,
                    "prompt_id": request.prompt.prompt_id,
                    **request.prompt.to_record(),
                    "plan": trajectory.cot_text,
                    "guidance_scale": trajectory.guidance_scale,
                    "trajectory_seed": trajectory.seed,
                    **self._settings,
                    **note,
                }
                manifest.write(json.dumps(line, ensure_ascii=False) + "\n")
                paths.append(path)
        return paths
