"""T2I-CompBench (Huang et al. 2023, arXiv 2307.06350; MIT): six categories of compositions, 300 prompts each.

    color, shape, texture   BLIP-VQA, asked about every noun chunk
    spatial                 UniDet: are the two objects there, and one left of the other?
    non_spatial             CLIP
    complex                 the mean of those of the three that a prompt is about

Ten pictures a prompt; a prompt is read back from the name of its file, so it stands in it.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Final

from configs.errors import ConfigError, DataError, RewardError
from rewards.benchmarks.compbench.language import GivenLanguage, Language, SpacyLanguage
from rewards.benchmarks.compbench.spatial import score_2d
from rewards.benchmarks.grading import by_tag
from rewards.benchmarks.protocol import Answer, Benchmark, Data, Graded, Item, Scorer, ScorerOptions, Values
from rewards.benchmarks.provenance import sha256_of
from rewards.benchmarks.statistics import Measure, each_tag, mean_of_tags

NUM_PICTURES: Final = 10
CATEGORIES: Final[Mapping[str, str]] = {
    "color": "1634259756dbc77d13093d907d414480080ec9790a8c97ad09efaea7b2534f2d",
    "shape": "37e1a276906c7ea9516cbd7ac8501be896006c0c17ca7344f260562834455bae",
    "texture": "fbb5363515b4a28009e360afaaaf389d2dd2289e50dbb0c6ef4ea0c7fe4f3d4f",
    "spatial": "8707a1d7e42ce3002d95363cf55f74bd043c843ae27108f5125aaaa7840ca988",
    "non_spatial": "04c56cc9ac441dc9ea6c5157652058bd1635b5308526dd31bb29a1caab9a758d",
    "complex": "1b808018b8d9916db3d47d5aa2ef18377a3549a56901a474156f799824cdf3b4",
}
"""Category -> SHA-256 of its file CATEGORY_val.txt."""
KINDS_OF_COMPLEX: Final[Mapping[str, str]] = {
    "complex_val_spatial.txt": "6c7ac0ab75c7c9080cfc7b421fb059b9b0febb98471707aeedf58771088abc02",
    "complex_val_action.txt": "d49ee4c7f99e3f3379fb8704a54ff5288b83bb412971edf616a4721c2473308e",
}
"""Lists of the complex prompts that are about attributes and places, and about attributes and actions -> SHA-256."""
LABELS: Final = "UniDet_eval/dataset/detection_features.pt"
LABELS_SHA256: Final = "c38ba9352b2a9f832b14fdc19ac407527ffeaa2903958a73f6eb649f78119c76"
TOKENIZER, CLIP = "google-bert/bert-base-uncased", "openai/clip-vit-base-patch32"
BLIP_FILE = "model_base_vqa_capfilt_large.pth"
UNIDET_FILE = "Unified_learned_OCIM_RS200_6x+2x.pth"
BATCH_SIZE = 8
PARSED = "a JSON file of prompts, their noun chunks and words; default: by the spaCy of this environment"
NEEDS = "a checkout of Karine-Huang/T2I-CompBench"


class CompBench:
    """`t2i_compbench`: see the top of this file."""

    name = "t2i_compbench"
    title = "T2I-CompBench"
    repository = "Karine-Huang/T2I-CompBench"
    needs = NEEDS
    picture_score = "score"
    settings: Mapping[str, str] = {
        "blip": f"the authors' file {BLIP_FILE}",
        "unidet": f"the authors' file {UNIDET_FILE}",
        "tokenizer": f"folder or hub id of BERT's tokenizer; default: {TOKENIZER}",
        "clip": f"folder or hub id of CLIP ViT-B/32; default: {CLIP}",
        "parsed": PARSED,
        "batch_size": f"pictures at once; default: {BATCH_SIZE}",
    }

    def read_data(self, path: Path | None) -> Data:
        """The prompts of the six categories. Raises DataError."""
        checkout = Checkout(path, self.name)
        items = checkout.items(CATEGORIES)
        spatial, action = (
            {lookup_of(line) for line in lines_of(checkout.prompts(name, expected))}
            for name, expected in KINDS_OF_COMPLEX.items()
        )
        return checkout.data([_with_kind(item, spatial, action) if item.tag == "complex" else item for item in items])

    def variant(self, options: ScorerOptions) -> Mapping[str, str]:
        """Another model than the official one, by its name. Raises ConfigError without BLIP, UniDet or its labels."""
        variant = files_in_place_of(options, self, {"blip": BLIP_FILE, "unidet": UNIDET_FILE})
        clip = options.settings.get("clip", CLIP)
        return variant | ({} if CLIP.rpartition("/")[2] in clip else {"clip": Path(clip).name})

    def open_scorer(self, options: ScorerOptions) -> Scorer:
        """Find the source of chunks and words; models are loaded when they are needed."""
        from rewards.benchmarks.compbench.objects import read_labels
        from rewards.benchmarks.compbench.scorer import CompBenchScorer

        assert options.data is not None
        defaults = {"tokenizer": TOKENIZER, "clip": CLIP}
        names = {name: options.settings.get(name, default) for name, default in defaults.items()}
        return CompBenchScorer(
            names={**names, "blip": options.settings["blip"], "unidet": options.settings["unidet"]},
            labels=read_labels(options.data / LABELS),
            language=open_language(options),
            device=options.device,
            batch_size=int(options.settings.get("batch_size", BATCH_SIZE)),
        )

    def grade(self, item: Item, answer: Answer) -> Values:
        """score: the product over the chunks, the raw cosine, the rule for places, or the mean of some of them."""
        from rewards.benchmarks.compbench.scorer import product_of

        parts = {}
        if "chunks" in answer:
            parts["attributes"] = product_of([chance for _, chance in answer["chunks"]])
        if "cosine" in answer:
            parts["action"] = float(answer["cosine"])
        if "objects" in answer:
            parts["spatial"] = score_2d(item.prompt, answer["nouns"], answer["objects"])
        wanted = item.record.get("parts", tuple(parts))
        if not wanted or any(name not in parts for name in wanted):
            raise RewardError("the answer lacks what this category is scored by")
        values = {"score": sum(parts[name] for name in wanted) / len(wanted)}
        return values | ({"in_reach": float(answer["in_reach"])} if item.tag == "spatial" else {})

    def measures(self, graded: Sequence[Graded]) -> list[Measure]:
        """The mean of the six categories, each of them, and spatial without the prompts that nothing can satisfy."""
        strata = by_tag(graded, "score", tuple(CATEGORIES))
        measures = [mean_of_tags("overall", strata), *each_tag(strata)]
        reachable = [one for one in graded if one.item.tag == "spatial" and _is_in_reach(one)]
        corrected = by_tag(reachable, "score", ("spatial",))["spatial"]
        meaning = "without prompts that name what the detector has no class for: they score 0, whatever is drawn"
        return measures + ([mean_of_tags("spatial_corrected", {"spatial": corrected}, meaning)] if corrected else [])


class Checkout:
    """A user's copy of the repository: its files, their hashes, and which of them are not the official ones."""

    def __init__(self, path: Path | None, name: str) -> None:
        """Raises DataError without a path."""
        if path is None:
            raise DataError(f"{name} needs --data: {NEEDS}")
        self._path, self._name = path, name
        self.hashes: dict[str, str] = {}
        self.departures: list[str] = []

    def prompts(self, name: str, expected: str) -> Path:
        """One of the files in examples/dataset, or in the folder itself. Raises DataError when it is missing."""
        places = (self._path / "examples" / "dataset" / name, self._path / name)
        file = next((one for one in places if one.is_file()), None)
        if file is None:
            raise DataError(f"--data {self._path} lacks {name}; {self._name} needs {NEEDS}")
        self._note(name, file, expected)
        return file

    def items(self, categories: Mapping[str, str]) -> list[Item]:
        """The prompts of each category's file; categories: name -> SHA-256. Raises DataError."""
        return [
            item
            for category, expected in categories.items()
            for item in read_category(category, self.prompts(f"{category}_val.txt", expected))
        ]

    def data(self, items: Sequence[Item]) -> Data:
        """What was read, with the detector's labels; without them only drawing is possible, which the scorer says."""
        if (self._path / LABELS).is_file():
            self._note(LABELS, self._path / LABELS, LABELS_SHA256)
        return Data(tuple(items), self.hashes, tuple(self.departures))

    def _note(self, name: str, file: Path, expected: str) -> None:
        self.hashes[name] = sha256_of(file)
        if self.hashes[name] != expected:
            self.departures.append(f"{name} is not the official file")


def files_in_place_of(options: ScorerOptions, benchmark: Benchmark, official: Mapping[str, str]) -> dict[str, str]:
    """Files with other names than the official ones, by setting. Raises ConfigError for a missing file or labels."""
    for name in official:
        if name not in options.settings:
            raise ConfigError(f"{benchmark.name} needs --scorer {name}=…: {benchmark.settings[name]}")
    if options.data is not None and not (options.data / LABELS).is_file():
        raise ConfigError(f"--data {options.data} lacks {LABELS}, the detector's labels; it has to be {NEEDS}")
    chosen = {name: Path(options.settings[name]).name for name in official}
    return {name: file for name, file in chosen.items() if file != official[name]}


def open_language(options: ScorerOptions) -> Language:
    """Where chunks and words come from. Raises ConfigError and DataError."""
    given = options.settings.get("parsed")
    return GivenLanguage(Path(given)) if given else SpacyLanguage()


def _with_kind(item: Item, spatial: Collection[str], action: Collection[str]) -> Item:
    """A complex prompt with the scores that count for it."""
    lookup = lookup_of(item.prompt)
    parts = {"spatial", "attributes", "action"}
    if lookup in spatial:
        parts -= {"action"}
    elif lookup in action:
        parts -= {"spatial"}
    return replace(item, record={"parts": tuple(sorted(parts))})


def lookup_of(prompt: str) -> str:
    """What the official lists are searched for."""
    return prompt.partition(".")[0].lower()


def lines_of(path: Path) -> list[str]:
    """The prompts in a file, without what stands behind a tabulator."""
    return [line.partition("\t")[0].strip() for line in path.read_text(encoding="utf-8").splitlines()]


def _is_in_reach(graded: Graded) -> bool:
    return any(values is None or values["in_reach"] for values in graded.values)


def read_category(category: str, path: Path) -> list[Item]:
    """The prompts of a file, one a line. Raises DataError for one that cannot be a file's name."""
    items = []
    for index, prompt in enumerate(lines_of(path)):
        if not prompt or "/" in prompt or "_" in prompt:
            raise DataError(f"{path}:{index + 1}: '{prompt[:80]}' is empty, or holds / or _, and cannot name a file")
        files = tuple(
            f"{category}/samples/{prompt}_{NUM_PICTURES * index + number:06d}.png" for number in range(NUM_PICTURES)
        )
        items.append(Item(f"{category}-{index:03d}", prompt, category, files))
    return items
