"""OneIG-Bench's style (English): do pictures look like the style that their prompt names? By two style descriptors.

    grid ─► 4 cells, as JPEGs ─┬─► CSD ────────────────────► cosine with the style's nearest reference ─┬─► mean
                               └─► OneIG's style encoder ──► the same, with its own references ─────────┘

A negative cosine counts as 0. 114 of the 245 prompts of anime and stylization name one of 29 styles. The references are
in the user's checkout. The official script leaves black cells out, which are pictures that could not be drawn:
`style_corrected` counts them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Final

from configs.errors import ConfigError, DataError
from rewards.benchmarks.oneig.columns import corrected_mean, found_of, mean_values, official_mean
from rewards.benchmarks.oneig.records import NUM_CELLS, PROMPTS, PROMPTS_SHA256, item_of, read_prompts, read_rows
from rewards.benchmarks.protocol import Answer, Data, Graded, Item, Scorer, ScorerOptions, Values
from rewards.benchmarks.provenance import read_official
from rewards.benchmarks.statistics import Measure

STYLES: Final = "scripts/style/style.csv"
CSD_REFERENCES: Final = "scripts/style/CSD_embed.pt"
SE_REFERENCES: Final = "scripts/style/SE_embed.pt"
FILES: Final[Mapping[str, str]] = {
    PROMPTS: PROMPTS_SHA256,
    STYLES: "6add59b8a5791b97c3abaec4b193d8a1635ef6377e2b2edbbf7730beaa097761",
    CSD_REFERENCES: "cab217036607911e4273003cda5c8dfb69528e4a0421ec6006af8ddc6525e56e",
    SE_REFERENCES: "c53719b72b40ea997547fad1a001150350337bf69039965c6ff731ff2a17dd83",
}
FOLDER: Final = "anime"
STYLE_ENCODER: Final = "xingpng/OneIG-StyleEncoder"


class OneIGStyle:
    """`oneig_style`: see the top of this file."""

    name = "oneig_style"
    title = "OneIG-Bench (English): style"
    repository = "OneIG-Bench/OneIG-Benchmark"
    needs = "a checkout of OneIG-Bench/OneIG-Benchmark"
    picture_score = "score"
    settings: Mapping[str, str] = {
        "csd": "CSD's checkpoint.pth of learn2phoenix/CSD",
        "style_encoder": f"folder or hub id of the style encoder; default: {STYLE_ENCODER}",
    }

    def read_data(self, path: Path | None) -> Data:
        """The prompts that name a style. Raises DataError."""
        if path is None:
            raise DataError(f"{self.name} needs --data: {self.needs}")
        hashes, departures = read_official(path, FILES)
        return Data(read_styled(path), hashes, tuple(departures))

    def variant(self, options: ScorerOptions) -> Mapping[str, str]:
        """Another style encoder, by its name. Raises ConfigError without CSD."""
        if "csd" not in options.settings:
            raise ConfigError(f"{self.name} needs --scorer csd=…: {self.settings['csd']}")
        encoder = options.settings.get("style_encoder", STYLE_ENCODER)
        return {} if STYLE_ENCODER.rpartition("/")[2] in encoder else {"style_encoder": Path(encoder).name}

    def open_scorer(self, options: ScorerOptions) -> Scorer:
        """Load both descriptors. Raises ModelError and DataError."""
        from rewards.benchmarks.oneig.cells import CellScorer
        from rewards.benchmarks.oneig.style_model import StyleModel

        assert options.data is not None
        model = StyleModel(
            csd=options.settings["csd"],
            style_encoder=options.settings.get("style_encoder", STYLE_ENCODER),
            references=(options.data / CSD_REFERENCES, options.data / SE_REFERENCES),
            device=options.device,
        )
        return CellScorer(model)

    def grade(self, item: Item, answer: Answer) -> Values:
        """score: of the picture, black cells left out; sum: over its cells; number: of those that are not black."""
        cells = found_of(answer, "cells", lambda drawn: drawn)
        return mean_values([(max(cell["csd"], 0.0) + max(cell["se"], 0.0)) / 2 for cell in cells])

    def measures(self, graded: Sequence[Graded]) -> list[Measure]:
        """style, as the official script has it and corrected."""
        return [
            *official_mean("style", graded, "black cells are left out"),
            corrected_mean("style", graded, NUM_CELLS, "black cells count 0"),
        ]


def read_styled(folder: Path) -> tuple[Item, ...]:
    """The prompts with a style, which is their tag, in the repository's order. Raises DataError."""
    style_of = {row["id"]: style_name(row.get("class") or "") for row in read_rows(folder / STYLES, ("id",))}
    items = []
    for category_folder, row in read_prompts(folder / PROMPTS):
        style = style_of.get(row["id"], "")
        if category_folder == FOLDER and style:
            items.append(item_of(row, FOLDER, tag=style))
    if not items:
        raise DataError(f"{folder / STYLES} names no style of a prompt in {folder / PROMPTS}")
    return tuple(items)


def style_name(text: str) -> str:
    """A style as the references are named."""
    return text.strip().lower().replace(" ", "_")
