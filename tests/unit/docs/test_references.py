"""The generated references say what the code says: types, defaults, constraints."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from pydantic import BaseModel
from pydantic.fields import FieldInfo

from configs.schema import RunConfig
from scripts.site.config_reference import config_reference, section_of
from scripts.site.hooks import for_site


def fields(model: type[BaseModel] = RunConfig, prefix: str = "") -> Iterator[tuple[str, FieldInfo]]:
    for name, field in model.model_fields.items():
        section, _ = section_of(field.annotation)
        yield f"{prefix}{name}", field
        if section is not None:
            yield from fields(section, f"{prefix}{name}.")


def test_every_config_field_says_what_it_means():
    """A section's own meaning is its class's docstring."""
    silent = [name for name, field in fields() if not field.description and section_of(field.annotation)[0] is None]
    sizes = {"rollout.num_workers.min", "rollout.num_workers.max", "rewards.replicas.min", "rewards.replicas.max"}
    assert [name for name in silent if name not in sizes] == []
    assert [
        name for name, field in fields() if (section := section_of(field.annotation)[0]) and not section.__doc__
    ] == []


@pytest.mark.parametrize(
    "row",
    [
        "| `steps`{ #run-steps } | integer | `100` | optimizer steps *resume* | ≥ 1 |",
        "| `path`{ #model-path } | text | **required** |",
        "| `lr`{ #learner-lr } | number | `1e-06` |",
        "| `num_workers`{ #rollout-num-workers } | integer, or `{min, max}` | `1` |",
        "| `clip_ratio_low`{ #algorithm-clip-ratio-low } | number or null | `null` |",
        "| `betas`{ #learner-betas } | [number, number] | `[0.9, 0.999]` |",
        "| `evaluation`{ #data-evaluation } | mapping of text to text | `{}` |",
        "| `policy_loss`{ #algorithm-policy-loss } | `ppo`, `gspo`, `cispo` | `ppo` |",
        "| [`scaling`](#cluster-scaling) | section | its defaults |",
    ],
)
def test_a_field_of_each_kind_is_described(row: str):
    assert row in config_reference()


@pytest.mark.parametrize(
    ("markdown", "page", "expected"),
    [
        ("[a](docs/faq.md#use)", "index.md", "[a](faq.md#use)"),
        ("![p](docs/curves.png)", "project/benchmarks.md", "![p](../curves.png)"),
        ("[b](BENCHMARKS.md#results)", "index.md", "[b](project/benchmarks.md#results)"),
        ("[b](README.md)", "project/changelog.md", "[b](../index.md)"),
        ("[`rollout/worker.py`](rollout/worker.py)", "index.md", "`rollout/worker.py`"),
        ("[proof](tests/x.py)", "index.md", "proof (`tests/x.py`)"),
        ("[p](https://arxiv.org/abs/1)", "index.md", "[p](https://arxiv.org/abs/1)"),
        ("[s](#here)", "index.md", "[s](#here)"),
    ],
)
def test_links_of_the_root_files_lead_to_pages_of_the_site(markdown: str, page: str, expected: str):
    assert for_site(markdown, page) == expected
