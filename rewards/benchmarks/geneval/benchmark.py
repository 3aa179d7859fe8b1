"""GenEval (Ghosh et al. 2023, arXiv 2310.11513): 553 prompts, 4 pictures each, six tags of right or wrong.

    picture ─► Mask2Former ─► objects ─► CLIP: colour of each object whose prompt names one ─► rules ─► 1 or 0

The detector is the official one when its file is given; the hub's copy of the same architecture is Meta's own training,
whose scores differ near the thresholds: a substitute, and named so.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from configs.errors import ConfigError, DataError
from rewards.benchmarks.geneval.records import items_of, read_lines
from rewards.benchmarks.geneval.rules import geneval_measures, grade_objects
from rewards.benchmarks.protocol import Answer, Data, Graded, Item, Scorer, ScorerOptions, Values
from rewards.benchmarks.provenance import sha256_of
from rewards.benchmarks.statistics import Measure

METADATA = "prompts/evaluation_metadata.jsonl"
METADATA_SHA256 = "5c48e0813e812e3c373fa5c8ed07a8f0a483be30272b4427b0559c8048e67c13"
DETECTOR_SHA256 = ("743b7d99", "c9d0c4f2")
"""First digits, as in the two files' own names: of mmdetection 2 and 3, the same weights."""
CLIP = "openai/clip-vit-large-patch14"
SHORT_SIDE = 800
BATCH_SIZE = 8
"""Pictures in memory at once; how many of them the detector sees in one pass is its own affair."""


class GenEvalBenchmark:
    """`geneval`: see the top of this file."""

    name = "geneval"
    title = "GenEval"
    repository = "djghosh13/geneval"
    needs = "a checkout of djghosh13/geneval, or its evaluation_metadata.jsonl"
    picture_score = "correct"
    settings: Mapping[str, str] = {
        "detector": "the official Mask2Former's .pth file; or a folder or hub id of another, as a named substitute",
        "clip": f"folder or hub id of CLIP ViT-L/14; default: {CLIP}",
        "batch_size": f"pictures read at once, and seen at once by the detector on a GPU; default: {BATCH_SIZE}",
        "short_side": f"pixels to which pictures are enlarged; default: {SHORT_SIDE}, the official value",
    }

    def read_data(self, path: Path | None) -> Data:
        """553 prompts. Raises DataError."""
        if path is None:
            raise DataError(f"geneval needs --data: {self.needs}")
        places = (path, path / METADATA, path / Path(METADATA).name)
        file = next((place for place in places if place.is_file()), path / METADATA)
        items = items_of(read_lines(file), file.name)
        found = sha256_of(file)
        departures = () if found == METADATA_SHA256 else (f"{file.name} is not the official file",)
        return Data(items, {file.name: found}, departures)

    def variant(self, options: ScorerOptions) -> Mapping[str, str]:
        """Another detector, CLIP or size than the official. Raises ConfigError without a detector."""
        detector = options.settings.get("detector")
        if detector is None:
            raise ConfigError(f"geneval needs --scorer detector=…: {self.settings['detector']}")
        variant = {}
        path = Path(detector)
        if not path.is_file() or not sha256_of(path).startswith(DETECTOR_SHA256):
            variant["detector"] = path.name if path.exists() else detector
        clip = options.settings.get("clip", CLIP)
        if CLIP.rpartition("/")[2] not in clip:  # a folder is taken by its name; the result has its hash
            variant["clip"] = Path(clip).name if Path(clip).exists() else clip
        if int(options.settings.get("short_side", SHORT_SIDE)) != SHORT_SIDE:
            variant["short_side"] = options.settings["short_side"]
        return variant

    def open_scorer(self, options: ScorerOptions) -> Scorer:
        """Load detector and CLIP. Raises ModelError."""
        from rewards.benchmarks.geneval.scorer import GenEvalScorer

        return GenEvalScorer(
            options.settings["detector"],
            options.settings.get("clip", CLIP),
            options.device,
            int(options.settings.get("short_side", SHORT_SIDE)),
            int(options.settings.get("batch_size", BATCH_SIZE)),
        )

    def grade(self, item: Item, answer: Answer) -> Values:
        """See `grade_objects`."""
        return grade_objects(item, answer)

    def measures(self, graded: Sequence[Graded]) -> list[Measure]:
        """See `geneval_measures`."""
        return geneval_measures(graded)
