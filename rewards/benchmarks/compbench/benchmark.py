"""T2I-CompBench (Huang et al. 2023, arXiv 2307.06350; MIT): colour, shape and texture by BLIP-VQA, non-spatial by CLIP.

300 prompts a category, 10 pictures each; a prompt is read back from the name of its file, so it stands in it.

Not scored: spatial, 3d_spatial and numeracy need UniDet's detectors (detectron2, ResNeSt-200), complex needs spatial.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Final

from configs.errors import ConfigError, DataError, RewardError
from rewards.benchmarks.compbench.chunks import GivenChunks, SpacyChunks
from rewards.benchmarks.grading import by_tag
from rewards.benchmarks.protocol import Answer, Data, Graded, Item, Scorer, ScorerOptions, Values
from rewards.benchmarks.provenance import sha256_of
from rewards.benchmarks.statistics import Measure, each_tag

NUM_PICTURES: Final = 10
CATEGORIES: Final[Mapping[str, str]] = {
    "color": "1634259756dbc77d13093d907d414480080ec9790a8c97ad09efaea7b2534f2d",
    "shape": "37e1a276906c7ea9516cbd7ac8501be896006c0c17ca7344f260562834455bae",
    "texture": "fbb5363515b4a28009e360afaaaf389d2dd2289e50dbb0c6ef4ea0c7fe4f3d4f",
    "non_spatial": "04c56cc9ac441dc9ea6c5157652058bd1635b5308526dd31bb29a1caab9a758d",
}
"""Category -> SHA-256 of its file CATEGORY_val.txt."""
NOT_SCORED: Final = (
    "spatial, numeracy, 3d_spatial and complex are not scored: they need UniDet's detectors, which bicot has not"
)
TOKENIZER, CLIP = "google-bert/bert-base-uncased", "openai/clip-vit-base-patch32"
BLIP_FILE = "model_base_vqa_capfilt_large.pth"
BATCH_SIZE = 8


class CompBench:
    """`t2i_compbench`: see the top of this file."""

    name = "t2i_compbench"
    title = "T2I-CompBench"
    repository = "Karine-Huang/T2I-CompBench"
    needs = "a checkout of Karine-Huang/T2I-CompBench, or its folder examples/dataset"
    picture_score = "score"
    settings: Mapping[str, str] = {
        "blip": f"the authors' file {BLIP_FILE}",
        "tokenizer": f"folder or hub id of BERT's tokenizer; default: {TOKENIZER}",
        "clip": f"folder or hub id of CLIP ViT-B/32; default: {CLIP}",
        "chunks": "a JSON file of prompts and their noun chunks; default: by the spaCy of this environment",
        "batch_size": f"pictures at once; default: {BATCH_SIZE}",
    }

    def read_data(self, path: Path | None) -> Data:
        """The prompts of the four categories. Raises DataError."""
        if path is None:
            raise DataError(f"{self.name} needs --data: {self.needs}")
        items: list[Item] = []
        hashes, departures = {}, [NOT_SCORED]
        for category, expected in CATEGORIES.items():
            name = f"{category}_val.txt"
            file = next((one for one in (path / "examples" / "dataset" / name, path / name) if one.is_file()), None)
            if file is None:
                raise DataError(f"--data {path} lacks {name}; {self.name} needs {self.needs}")
            hashes[name] = sha256_of(file)
            if hashes[name] != expected:
                departures.append(f"{name} is not the official file")
            items += read_category(category, file)
        return Data(tuple(items), hashes, tuple(departures))

    def variant(self, options: ScorerOptions) -> Mapping[str, str]:
        """Another BLIP or CLIP than the official one, by its name. Raises ConfigError without a BLIP."""
        blip = options.settings.get("blip")
        if blip is None:
            raise ConfigError(f"{self.name} needs --scorer blip=…: {self.settings['blip']}")
        clip = options.settings.get("clip", CLIP)
        variant = {} if Path(blip).name == BLIP_FILE else {"blip": Path(blip).name}
        return variant | ({} if CLIP.rpartition("/")[2] in clip else {"clip": Path(clip).name})

    def open_scorer(self, options: ScorerOptions) -> Scorer:
        """Find the noun chunks' source; models are loaded when they are needed."""
        from rewards.benchmarks.compbench.scorer import CompBenchScorer

        given = options.settings.get("chunks")
        chunks = GivenChunks(Path(given)) if given else SpacyChunks()
        return CompBenchScorer(
            blip=options.settings["blip"],
            tokenizer=options.settings.get("tokenizer", TOKENIZER),
            clip=options.settings.get("clip", CLIP),
            chunks_of=chunks,
            chunks_source=chunks.source,
            device=options.device,
            batch_size=int(options.settings.get("batch_size", BATCH_SIZE)),
        )

    def grade(self, item: Item, answer: Answer) -> Values:
        """score: the product over the chunks, or the raw cosine."""
        from rewards.benchmarks.compbench.scorer import product_of

        if "cosine" in answer:
            return {"score": float(answer["cosine"])}
        if "chunks" not in answer:
            raise RewardError("no answer of BLIP-VQA or CLIP")
        return {"score": product_of([chance for _, chance in answer["chunks"]])}

    def measures(self, graded: Sequence[Graded]) -> list[Measure]:
        """Each category; they have no common score here, as the official mean is over six."""
        return each_tag(by_tag(graded, "score", tuple(CATEGORIES)))


def read_category(category: str, path: Path) -> list[Item]:
    """The prompts of a file, one a line. Raises DataError for one that cannot be a file's name."""
    items = []
    for index, line in enumerate(path.read_text(encoding="utf-8").splitlines()):
        prompt = line.partition("\t")[0].strip()
        if not prompt or "/" in prompt or "_" in prompt:
            raise DataError(f"{path}:{index + 1}: '{line[:80]}' is empty, or holds / or _, and cannot name a file")
        files = tuple(
            f"{category}/samples/{prompt}_{NUM_PICTURES * index + number:06d}.png" for number in range(NUM_PICTURES)
        )
        items.append(Item(f"{category}-{index:03d}", prompt, category, files))
    return items
