"""Every example that a reader may copy from README and docs works with today's schema, parsers and code."""

from __future__ import annotations

import json
import re
from importlib.util import find_spec
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import yaml

from cluster.reports.metrics import METRIC_PREFIXES, METRICS
from configs.schema import RunConfig
from rewards.calling import LoadedReward
from rewards.registry import REGISTERED, reward_path
from rollout.prompts.files import parse_prompt
from rollout.records import Prompt
from rollout.shapes.world import expected_objects
from scripts.draw_shown_prompts import read_prompt, shown_prompts
from scripts.site.commands_reference import COMMANDS, command_module
from scripts.site.config_reference import field_paths
from scripts.site.rewards_reference import options_of
from tests.unit.docs.commands import check_command, check_overrides, command_lines
from tests.unit.docs.documents import ROOT, Example, all_blocks, all_spans

BASE: dict[str, Any] = {
    "model": {"path": "deepseek-community/Janus-Pro-1B"},
    "data": {"train": "prompts.jsonl"},
    "rewards": [{"name": "hps"}],
    "learner": {"zero_stage": 1},
}
"""What a fragment of a config is laid over: as little as a config can have."""
NO_FIELDS = ("run.json", "model.language_model.*", "model.generation_head.*")
"""Inline code that looks like a field of the config and is something else: a file, names of parameters."""
OPEN_FIELDS = ("data.evaluation", "rewards[].options", "rewards[].runtime_env")
"""Mappings whose keys the schema leaves open."""
LANGUAGES = ("yaml", "bash", "python", "json", "text", "bibtex", "")


def over(base: Any, fragment: Any) -> Any:
    """`fragment` laid over `base`: mappings key by key, all else as a whole."""
    if not isinstance(base, dict) or not isinstance(fragment, dict):
        return fragment
    return {**base, **{key: over(base.get(key), value) for key, value in fragment.items()}}


def test_every_fenced_block_says_its_language():
    unknown = {str(block): block.language for block in all_blocks(*LANGUAGES, "shell", "sh", "console", "yml", "py")}
    assert {place: language for place, language in unknown.items() if language not in LANGUAGES} == {}
    outside = [str(block) for block in all_blocks("") if not block.place.startswith(("ARCHITECTURE", "BENCHMARKS"))]
    assert outside == []


@pytest.mark.parametrize("block", all_blocks("yaml"), ids=str)
def test_every_yaml_example_is_a_config_of_today(block: Example):
    fragment = yaml.safe_load(block.text)
    if "kind" in fragment:  # Kubernetes
        assert fragment["spec"]
        return
    config = RunConfig.model_validate(over(BASE, fragment))
    for reward in config.rewards:
        path = reward_path(reward.implementation)
        if reward.implementation in REGISTERED:
            _, options = options_of(path)
            assert set(reward.options) <= {option.name for option in options}
            assert {option.name for option in options if option.default is None} <= set(reward.options)


@pytest.mark.parametrize("block", all_blocks("bash"), ids=str)
def test_every_command_line_is_accepted_today(block: Example):
    for words in command_lines(block.text):
        check_command(words)


def test_every_shown_prompt_of_the_shapes_world_can_be_checked_on_a_trained_policy():
    """`python -m scripts.draw_shown_prompts` draws them; here it is only asked what it would demand."""
    shown = shown_prompts()
    assert "docs/quickstart.md" in shown.values()
    assert all(expected_objects(read_prompt(text)) for text in shown)


@pytest.mark.parametrize(
    "span",
    [span for span in all_spans() if span.text.startswith(("python -m ", ".venv/bin/python -m ", "make "))],
    ids=str,
)
def test_every_command_in_a_sentence_is_accepted_today(span: Example):
    words = span.text.split()
    if len(words) == 3 and words[1] == "-m":  # only named: `python -m cluster.status`
        assert words[2] in (*COMMANDS, "pytest", "mkdocs")
    elif span.text.endswith("RUN"):
        check_command([*words[:-1], "runs/shapes_cpu"])
    else:
        check_command(next(command_lines(span.text)))


@pytest.mark.parametrize("span", [span for span in all_spans() if span.text.startswith("--set ")], ids=str)
def test_every_override_in_a_sentence_is_accepted_today(span: Example):
    check_overrides([text.strip() for text in span.text.split("--set ") if text.strip()])


@pytest.mark.parametrize("module", COMMANDS)
def test_every_example_in_a_commands_help_is_accepted(module: str):
    help_text = command_module(module).build_parser().format_help()
    lines = [line.strip() for line in help_text.splitlines() if line.startswith("  python -m ")]
    for line in lines:
        check_command(next(command_lines(line)))


def config_fields() -> list[Example]:
    sections = "|".join(RunConfig.model_fields)
    looks_like_a_field = re.compile(rf"^({sections})(\[\])?\.[a-z_\[\].*]+")
    return [span for span in all_spans() if looks_like_a_field.match(span.text)]


@pytest.mark.parametrize("span", config_fields(), ids=str)
def test_every_field_that_a_sentence_names_is_in_the_schema(span: Example):
    name = re.split(r"[:= ,]", span.text)[0]
    if name in NO_FIELDS or is_module(name):
        return
    for reward in REGISTERED:
        name = name.replace(f"rewards.{reward}.", "rewards[].")
    is_open = any(name.startswith(f"{field}.") for field in OPEN_FIELDS)
    assert name in field_paths() or is_open, f"the config has no field {name}"


def is_module(name: str) -> bool:
    """Whether `name` is a module, or something in one."""
    parts = name.split(".")
    try:
        found = find_spec(".".join(parts[:2]))
    except (ImportError, ValueError):
        return False
    return found is not None


METRIC_FAMILIES = ("reward/", "reward_correlation/", "kl/", "entropy/", "ratio/", "parity/", "staleness/", "time/")


@pytest.mark.parametrize("span", [span for span in all_spans() if span.text.startswith(METRIC_FAMILIES)], ids=str)
def test_every_metric_that_a_sentence_names_is_written_by_a_run(span: Example):
    if span.text in METRICS:
        return
    family = next((prefix for prefix in METRIC_PREFIXES if span.text.startswith(prefix)), None)
    assert family is not None, f"{span.text} is in neither table of cluster.reports.metrics"
    _, _, suffix = span.text.removeprefix(family).rpartition("/")
    if "/" in span.text.removeprefix(family):
        assert suffix in METRIC_PREFIXES[family], f"{family} has no …/{suffix}"


PATH = re.compile(r"^(configs|rollout|rewards|learner|cluster|tests|scripts|docs)/[\w./-]*\w\.(py|yaml|md|png|svg|sh)$")


@pytest.mark.parametrize("span", [span for span in all_spans() if PATH.match(span.text)], ids=str)
def test_every_file_that_a_sentence_names_is_there(span: Example):
    assert (ROOT / span.text).is_file()


@pytest.mark.parametrize("block", all_blocks("python"), ids=str)
def test_every_python_example_compiles_and_every_reward_scores(block: Example):
    code = compile(block.text, block.place, "exec")
    if "my_rewards.py" not in block.text:
        return
    module = ModuleType("my_rewards")
    exec(code, module.__dict__)
    pictures = np.stack([np.zeros((4, 4, 3), np.uint8), np.full((4, 4, 3), 128, np.uint8)])
    prompts = [Prompt(prompt_id="p:1", text="night"), Prompt(prompt_id="p:2", text="fog")]
    reward = module.Brightness("cpu") if hasattr(module, "Brightness") else LoadedReward(module.brightness, {})
    scores: list[Any] = reward.score(pictures, prompts)
    assert [score.value for score in scores] == pytest.approx([0.5, 1 - abs(128 / 255 - 0.5)])


@pytest.mark.parametrize("block", all_blocks("json"), ids=str)
def test_every_record_is_a_prompt(block: Example):
    record = json.loads(block.text)
    prompt = parse_prompt(record, block.place)
    assert prompt.text == record["prompt"]
    known = {"prompt", "task_type", "nouns", "attr_nouns", "spatial_info", "numeracy_info", "metadata"}
    assert set(record) <= known | {"plan", "image"}
