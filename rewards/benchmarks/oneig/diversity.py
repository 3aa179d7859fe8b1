"""OneIG-Bench's diversity (English): how far apart are the four pictures of a prompt? By DreamSim.

    grid ─► 4 cells, as JPEGs ─► DreamSim ─► 1 - cosine of each of the 6 pairs ─► mean ─► mean over all five folders

The official script leaves black cells out, which are pictures that could not be drawn, and prompts with fewer than two
others: `diversity_corrected` counts each pair with a black cell as 0.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import chain
from pathlib import Path
from typing import Final

from configs.errors import ConfigError, DataError
from rewards.benchmarks.oneig.columns import corrected_mean, found_of, mean_values, official_mean
from rewards.benchmarks.oneig.records import FOLDERS, NUM_CELLS, PROMPTS, PROMPTS_SHA256, item_of, read_prompts
from rewards.benchmarks.protocol import Answer, Data, Graded, Item, Scorer, ScorerOptions, Values
from rewards.benchmarks.provenance import read_official
from rewards.benchmarks.statistics import Measure

NUM_PAIRS: Final = NUM_CELLS * (NUM_CELLS - 1) // 2
RELEASE: Final[Mapping[str, str]] = {
    "dino": "dino_vitbase16_pretrain.pth",
    "clip": "clip_vitb16_pretrain.pth.tar",
    "open_clip": "open_clip_vitb16_pretrain.pth.tar",
    "adapter": "ensemble_lora/adapter_model.safetensors",
    "adapter_config": "ensemble_lora/adapter_config.json",
}
"""What DreamSim consists of -> its file."""
TORCH_HUB: Final = "checkpoints"
"""The folder in which DreamSim's own package keeps DINO's file."""


class OneIGDiversity:
    """`oneig_diversity`: see the top of this file."""

    name = "oneig_diversity"
    title = "OneIG-Bench (English): diversity"
    repository = "OneIG-Bench/OneIG-Benchmark"
    needs = "a checkout of OneIG-Bench/OneIG-Benchmark"
    picture_score = "score"
    settings: Mapping[str, str] = {
        "dreamsim": "folder of DreamSim's unpacked ensemble, with dino_vitbase16_pretrain.pth"
    }

    def read_data(self, path: Path | None) -> Data:
        """The prompts of all five folders. Raises DataError."""
        if path is None:
            raise DataError(f"{self.name} needs --data: {self.needs}")
        hashes, departures = read_official(path, {PROMPTS: PROMPTS_SHA256})
        items = tuple(item_of(row, folder) for folder, row in read_prompts(path / PROMPTS))
        return Data(items, hashes, tuple(departures))

    def variant(self, options: ScorerOptions) -> Mapping[str, str]:
        """The official one alone. Raises ConfigError without DreamSim's files."""
        if "dreamsim" not in options.settings:
            raise ConfigError(f"{self.name} needs --scorer dreamsim=…: {self.settings['dreamsim']}")
        find_release(Path(options.settings["dreamsim"]))
        return {}

    def open_scorer(self, options: ScorerOptions) -> Scorer:
        """Load DreamSim. Raises ConfigError and ModelError."""
        from rewards.benchmarks.oneig.cells import CellScorer
        from rewards.benchmarks.oneig.diversity_model import DiversityModel

        return CellScorer(DiversityModel(find_release(Path(options.settings["dreamsim"])), options.device))

    def grade(self, item: Item, answer: Answer) -> Values:
        """score: mean distance of the pairs that were drawn; sum: over them; number: of them."""
        return mean_values(found_of(answer, "distances", lambda drawn: drawn * (drawn - 1) // 2))

    def measures(self, graded: Sequence[Graded]) -> list[Measure]:
        """diversity, as the official script has it and corrected, and as it has it by folder."""
        return [
            *official_mean("diversity", graded, "black cells are left out"),
            corrected_mean("diversity", graded, NUM_PAIRS, "pairs with a black cell count 0"),
            *chain.from_iterable(
                official_mean(f"diversity_{folder}", [one for one in graded if one.item.tag == folder])
                for folder in FOLDERS.values()
            ),
        ]


def find_release(folder: Path) -> Mapping[str, Path]:
    """The files of DreamSim by what they are. Raises ConfigError for a folder that lacks one."""
    found = {part: folder / name for part, name in RELEASE.items()}
    if not found["dino"].is_file():
        found["dino"] = folder / TORCH_HUB / RELEASE["dino"]
    missing = [RELEASE[part] for part, path in found.items() if not path.is_file()]
    if missing:
        raise ConfigError(f"--scorer dreamsim={folder} lacks {', '.join(missing)}")
    return found
