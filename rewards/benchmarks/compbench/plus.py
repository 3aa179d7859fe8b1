"""T2I-CompBench++'s two further categories (Huang et al. 2025, arXiv 2307.06350v3; MIT), 300 prompts each.

    numeracy      UniDet: is each kind of object there, as often as the prompt says?
    3d_spatial    UniDet and DPT: is the one object in front of the other, or behind it?

The official script reads its depth map with rows and columns exchanged, which published numbers contain:
`3d_spatial_corrected` reads it the right way.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from configs.errors import RewardError
from rewards.benchmarks.compbench.benchmark import (
    BATCH_SIZE,
    LABELS,
    NEEDS,
    PARSED,
    Checkout,
    files_in_place_of,
    open_language,
)
from rewards.benchmarks.compbench.language import Language
from rewards.benchmarks.compbench.numeracy import Nouns, numeracy_score
from rewards.benchmarks.compbench.spatial import outer_nouns, score_3d
from rewards.benchmarks.grading import by_tag
from rewards.benchmarks.protocol import Answer, Asked, Data, Graded, Item, Scorer, ScorerOptions, Values
from rewards.benchmarks.provenance import weights_of
from rewards.benchmarks.statistics import Measure, each_tag, mean_of_tags

CATEGORIES: Final[Mapping[str, str]] = {
    "numeracy": "dad8df141604b70ba7554bec724e3db0a80023680769b5c514854ea2d2527bbe",
    "3d_spatial": "c9953597315f36a5fcb41291bb19bdc6ab5f64a0fa760d691b4854a73f5d1fe9",
}
"""Category -> SHA-256 of its file CATEGORY_val.txt."""
NUMERACY, SPATIAL = CATEGORIES
NOUNS: Final = "new_objects.txt"
NOUNS_SHA256: Final = "f39a3d2ff6067d7738673cbf465dc659ccc750776162989a5d9916f1d5f3e231"
UNIDET_FILE: Final = "Unified_learned_OCIM_R50_6x+2x.pth"
DEPTH: Final = "Intel/dpt-hybrid-midas"
DEPTHS: Final[Mapping[str, str]] = {"score": "depth", "corrected": "depth_corrected"}
"""A picture's score -> the depth of an object by which it is made."""


class CompBenchPlusPlus:
    """`t2i_compbench_pp`: see the top of this file."""

    name = "t2i_compbench_pp"
    title = "T2I-CompBench++: numeracy and 3D"
    repository = "Karine-Huang/T2I-CompBench"
    needs = NEEDS
    picture_score = "score"
    settings: Mapping[str, str] = {
        "unidet": f"the authors' file {UNIDET_FILE}",
        "depth": f"folder or hub id of DPT-hybrid; default: {DEPTH}",
        "parsed": PARSED,
        "batch_size": f"pictures at once; default: {BATCH_SIZE}",
    }

    def read_data(self, path: Path | None) -> Data:
        """The prompts of both categories. Raises DataError."""
        checkout = Checkout(path, self.name)
        items = checkout.items(CATEGORIES)
        Nouns(checkout.prompts(NOUNS, NOUNS_SHA256))
        return checkout.data(items)

    def variant(self, options: ScorerOptions) -> Mapping[str, str]:
        """Another model than the official one, by its name. Raises ConfigError without UniDet or its labels."""
        variant = files_in_place_of(options, self, {"unidet": UNIDET_FILE})
        depth = options.settings.get("depth", DEPTH)
        return variant | ({} if DEPTH.rpartition("/")[2] in depth else {"depth": Path(depth).name})

    def open_scorer(self, options: ScorerOptions) -> Scorer:
        """Find the source of words; models are loaded when they are needed."""
        from rewards.benchmarks.compbench.objects import read_labels

        assert options.data is not None
        return PlusPlusScorer(
            names={"unidet": options.settings["unidet"], "depth": options.settings.get("depth", DEPTH)},
            labels=read_labels(options.data / LABELS),
            nouns=Nouns(Checkout(options.data, self.name).prompts(NOUNS, NOUNS_SHA256)),
            language=open_language(options),
            device=options.device,
            batch_size=int(options.settings.get("batch_size", BATCH_SIZE)),
        )

    def grade(self, item: Item, answer: Answer) -> Values:
        """score, and of 3D the corrected one, by the official rules."""
        if "objects" not in answer:
            raise RewardError("no answer of a detector")
        objects = answer["objects"]
        if item.tag == NUMERACY:
            return {"score": numeracy_score(answer["wanted"], objects)}
        return {name: score_3d(item.prompt, answer["nouns"], objects, depth) for name, depth in DEPTHS.items()}

    def measures(self, graded: Sequence[Graded]) -> list[Measure]:
        """Each category, and 3D corrected; they have no common score."""
        measures = each_tag(by_tag(graded, "score", tuple(CATEGORIES)))
        own = [one for one in graded if one.item.tag == SPATIAL]
        if not own:
            return measures
        corrected = by_tag(own, "corrected", (SPATIAL,))
        meaning = "with the depth map's rows for rows; the official script takes them for columns"
        return [*measures, mean_of_tags(f"{SPATIAL}_corrected", corrected, meaning)]


class PlusPlusScorer:
    """UniDet, with depths for 3D."""

    def __init__(
        self,
        names: Mapping[str, str],
        labels: Sequence[str],
        nouns: Nouns,
        language: Language,
        device: str,
        batch_size: int,
    ) -> None:
        """names: of the models: unidet, depth."""
        self._names, self._labels, self._nouns, self._language = names, labels, nouns, language
        self._device, self._batch_size = device, batch_size
        self._about = {**{name: dict(weights_of(names[name])) for name in names}, "language": language.source}

    def answers(self, asked: Sequence[Asked]) -> Iterator[tuple[Asked, Answer | RewardError]]:
        """The objects in each picture, and what its prompt wants of them."""
        from rewards.benchmarks.compbench.objects import ObjectFinder

        for tag, depth in ((NUMERACY, None), (SPATIAL, self._names["depth"])):
            own = [one for one in asked if one.item.tag == tag]
            if not own:
                continue
            finder = ObjectFinder("t2i_compbench_pp", self._names["unidet"], self._labels, self._device, depth)
            for one, objects in finder.look(own, self._batch_size):
                yield one, objects if isinstance(objects, RewardError) else {"objects": objects, **self._wish(one)}

    def _wish(self, one: Asked) -> dict[str, Any]:
        words = self._language.words(one.item.prompt)
        if one.item.tag == NUMERACY:
            return {"wanted": [list(wish) for wish in self._nouns.wanted(words)]}
        return {"nouns": outer_nouns(words)}

    def about(self) -> Mapping[str, Any]:
        """Hashes of the models, and where the words come from."""
        return self._about

    def close(self) -> None:
        """Its models go with it."""
