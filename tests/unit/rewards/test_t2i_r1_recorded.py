"""`t2i_r1_compat` gives what T2I-R1's own code gave (tests/data/t2i_r1); the default differs for known reasons only."""

from __future__ import annotations

import gzip
import json
import math
from collections import Counter
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import PreTrainedTokenizerBase

from rewards.alignment.git_vqa import Questions
from rewards.loading.pretrained import load_tokenizer
from rewards.objects.detections import Candidates, DetectionRules
from rewards.objects.grounding_dino import Rules, collect_candidates
from rewards.rehearsal.tokenizers import save_bert_tokenizer
from rewards.t2i_r1.git_vqa import T2IR1Questions
from rewards.t2i_r1.grounding_dino import T2IR1DetectionRules
from rewards.t2i_r1.hps import half_cosines
from rewards.t2i_r1.orm import reply_probabilities, sampling_steps, score_reply
from rollout.records import CountInfo, Prompt, Score, SpatialInfo

FOLDER = Path(__file__).parents[2] / "data" / "t2i_r1"
SIDE = 384
FAILED_CALLS = ("TypeError", "ZeroDivisionError")


@cache
def recorded(name: str) -> dict[str, Any]:
    path = FOLDER / name
    text = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
    content: dict[str, Any] = json.loads(text)
    return content


def prompt_of(fields: dict[str, Any]) -> Prompt:
    relation, counts = fields.get("spatial_info"), fields.get("numeracy_info") or ()
    return Prompt(
        prompt_id="p",
        text="t",
        task_type=fields["task_type"],
        nouns=tuple(fields.get("nouns") or ()),
        attr_nouns=tuple(fields.get("attr_nouns") or ()),
        spatial_info=SpatialInfo(**relation) if relation else None,
        numeracy_info=tuple(CountInfo(**item) for item in counts),
    )


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> PreTrainedTokenizerBase:
    folder = tmp_path_factory.mktemp("tokenizer")
    save_bert_tokenizer(folder, recorded("grounding_dino.json.gz")["vocabulary"])
    return load_tokenizer(str(folder))


def detect(case: dict[str, Any], rules: Rules, tokenizer: PreTrainedTokenizerBase) -> Score:
    """The score of a recorded picture under these rules: the recorded boxes, with each phrase's own confidences."""
    prompt = prompt_of(case["prompt"])
    caption = rules.caption(prompt)
    found: dict[str, Candidates] = {}
    if caption is not None:
        encoding = tokenizer([caption.text], padding=True, return_tensors="pt")
        boxes = torch.tensor(case["boxes"]).view(-1, 4).numpy()
        token_scores = torch.tensor(case["logits"]).view(len(boxes), -1).sigmoid()
        assert encoding.input_ids.shape[1] == token_scores.shape[1] or not len(boxes)
        found = collect_candidates(encoding, 0, caption.phrases, boxes, token_scores, threshold=0.3)
    return rules.score(prompt, found, SIDE, SIDE)


def test_there_are_cases_of_every_kind() -> None:
    cases = recorded("grounding_dino.json.gz")["cases"]
    kinds = Counter(case["prompt"]["task_type"] for case in cases)
    assert set(kinds) == {"spatial", "numeracy", "complex", "color", "shape", "texture", "object", "non"}
    assert len(cases) == 770
    assert min(kinds.values()) >= 30
    assert len({round(case.get("score", -1), 3) for case in cases}) > 20


def test_the_detector_scores_every_recorded_case_as_t2i_r1_did(tokenizer: PreTrainedTokenizerBase) -> None:
    rules, wrong, failed = T2IR1DetectionRules(max_iou=0.5), [], 0
    for i, case in enumerate(recorded("grounding_dino.json.gz")["cases"]):
        score = detect(case, rules, tokenizer)
        if "error" in case:
            failed += 1
            assert case["error"] in FAILED_CALLS
            assert not score.applicable
        elif not score.applicable or score.value != pytest.approx(case["score"], abs=1e-6):
            wrong.append((i, score.value, case["score"]))
    assert wrong == []
    assert failed == 8


def test_git_asks_and_scores_every_recorded_case_as_t2i_r1_did() -> None:
    questions, num_nan = T2IR1Questions(), 0
    for case in recorded("git.json")["cases"]:
        prompt = prompt_of(case["prompt"])
        if case["score"] is None:  # an empty list of attr_nouns: the mean of nothing
            num_nan += 1
            assert case["prompt"]["attr_nouns"] == []
            continue
        nouns = questions.nouns(prompt)
        assert [f"{noun}?" for noun in nouns] == case["questions"]
        if nouns:
            answers = [1 / (1 + math.exp(no - yes)) for yes, no in case["yes_no_logits"]]
            assert sum(answers) / len(answers) == pytest.approx(case["score"], abs=1e-6)
        else:
            assert questions.fixed_score(prompt) == Score(case["score"])
    assert num_nan == sum(case["score"] is None for case in recorded("git.json")["cases"]) > 0


def test_the_orm_scores_every_recorded_reply_as_t2i_r1_did() -> None:
    content, wrong = recorded("orm.json"), []
    for i, case in enumerate(content["cases"]):
        steps = sampling_steps(0.3, case["top_k"], case["top_p"])
        (row,) = reply_probabilities(torch.tensor([case["logits"]]), steps)
        assert row[case["drawn"]] > 0
        p_yes, p_no = (float(row[content["tokens"].index(word)]) for word in ("yes", "no"))
        score = score_reply(content["tokens"][case["drawn"]], p_yes, p_no)
        expected = 0.0 if case.get("error") == "ZeroDivisionError" else case["score"]
        if score.value != pytest.approx(expected, abs=1e-6):
            wrong.append((i, score, expected))
    assert wrong == []
    assert len(content["cases"]) == 160


def test_hps_ends_in_the_recorded_steps_of_float16() -> None:
    cases = recorded("hps.json")["cases"]
    pictures, texts = (torch.tensor([case[key] for case in cases]) for key in ("picture", "text"))
    assert half_cosines(pictures, texts).tolist() == [case["score"] for case in cases]


def test_git_by_default_differs_only_where_t2i_r1_gives_a_constant() -> None:
    right, compat, differing = Questions(), T2IR1Questions(), Counter[str]()
    for case in recorded("git.json")["cases"]:
        prompt = prompt_of(case["prompt"])
        if right.nouns(prompt) != compat.nouns(prompt):
            # Attributes that a relation or a count names are asked for; T2I-R1 gives these task types 0 unseen.
            assert prompt.attr_nouns
            assert prompt.task_type in ("spatial", "numeracy")
            differing["attributes of a relation or count"] += 1
        elif not right.nouns(prompt):
            assert not right.fixed_score(prompt).applicable
            differing["a constant"] += 1
    assert differing["attributes of a relation or count"] > 0
    assert differing["a constant"] > 80


def departures(case: dict[str, Any]) -> Iterator[str]:
    """Why the default may score this case otherwise, by the list in rewards/t2i_r1/__init__.py."""
    prompt = prompt_of(case["prompt"])
    if not prompt.nouns:
        yield "no nouns"
    if any(len(noun.split()) > 2 for noun in prompt.nouns):
        yield "a noun of three words"
    if len(set(prompt.nouns)) < len(prompt.nouns):
        yield "a noun twice"
    if any(noun != noun.lower() for noun in prompt.nouns):
        yield "capitals"
    kind = {"spatial": "relation", "numeracy": "count"}.get(prompt.task_type, "presence")
    if kind != ("relation" if prompt.spatial_info else "count" if prompt.numeracy_info else "presence"):
        yield "a rule that task_type does not name"
    relation = prompt.spatial_info
    if relation and not {relation.obj1, relation.obj2} <= set(prompt.nouns):
        yield "an object that is not among the nouns"
    if relation and case["score"] >= 0.4:
        yield "both objects are there: the relation itself"
    if relation and relation.locality == "behind":
        yield "a locality that boxes cannot tell"
    if kind == "count":
        yield "a count"


def test_the_detector_by_default_differs_only_for_the_listed_reasons(tokenizer: PreTrainedTokenizerBase) -> None:
    rules, equal, reasons = DetectionRules(max_iou=0.5), Counter[str](), Counter[str]()
    for case in recorded("grounding_dino.json.gz")["cases"]:
        if "error" in case:
            continue
        found = list(departures(case))
        reasons.update(found)
        if not found:
            equal[case["prompt"]["task_type"]] += 1
            assert detect(case, rules, tokenizer).value == pytest.approx(case["score"], abs=1e-6), case
    assert equal["spatial"] > 50
    assert sum(equal.values()) > 150
    assert len(reasons) == 9, "each reason has its cases"
