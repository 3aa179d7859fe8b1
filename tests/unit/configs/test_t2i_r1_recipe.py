"""`configs/t2i_r1.yaml` is T2I-R1's run: each published setting is in the config, or is a numbered departure."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from configs.load import load_config
from configs.schema import RunConfig

ROOT = Path(__file__).resolve().parents[3]
SETTINGS = json.loads((ROOT / "tests" / "data" / "t2i_r1" / "settings.json").read_text())
DEPARTURES = (ROOT / "ARCHITECTURE.md").read_text().partition("## Departures")[2].partition("\n## ")[0]


@pytest.fixture(scope="module")
def recipe() -> RunConfig:
    return load_config(ROOT / "configs" / "t2i_r1.yaml")


def value_of(config: RunConfig, field: str) -> Any:
    if field == "rewards":
        return {reward.name: reward.weight for reward in config.rewards}
    value: Any = config
    for name in field.split("."):
        value = getattr(value, name)
    if field == "data.train":
        return "/".join(Path(str(value)).parts[-2:])
    return list(value) if isinstance(value, tuple) else value


@pytest.mark.parametrize("entry", SETTINGS, ids=lambda entry: entry["setting"][:40])
def test_each_published_setting_is_in_the_config_or_among_the_departures(
    recipe: RunConfig, entry: dict[str, Any]
) -> None:
    if "departure" in entry:
        assert re.search(rf"^{entry['departure']}\. ", DEPARTURES, re.MULTILINE), entry
    else:
        assert value_of(recipe, entry["field"]) == entry.get("becomes", entry["value"])


def test_its_rewards_follow_its_own_rules(recipe: RunConfig) -> None:
    assert all(reward.options["t2i_r1_compat"] for reward in recipe.rewards)


def test_every_numbered_departure_of_its_run_is_claimed_by_a_setting() -> None:
    """11 to 16 are about this run alone; a line there without a setting would be a claim without a source."""
    claimed = {entry["departure"] for entry in SETTINGS if "departure" in entry}
    assert {11, 12, 13, 14, 15, 16} <= claimed


def test_what_we_recommend_says_where_it_differs(recipe: RunConfig) -> None:
    """The comparison on the page is of exactly the fields that differ."""
    ours = load_config(ROOT / "configs" / "janus_pro_7b_8gpu.yaml")
    different = set()
    for section in ("algorithm", "rollout", "learner"):
        theirs, mine = getattr(recipe, section), getattr(ours, section)
        different |= {
            f"{section}.{name}" for name in type(theirs).model_fields if getattr(theirs, name) != getattr(mine, name)
        }
    table = (ROOT / "docs" / "t2i-r1.md").read_text().partition("## What we recommend instead")[2].partition("\n## ")[0]
    assert set(re.findall(r"^\| `([a-z_.]+)`", table, re.MULTILINE)) == different
