"""The documentation builds without a warning; its links lead somewhere; nothing in it is fetched from outside."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from cluster.reports.metrics import METRIC_PREFIXES, METRICS
from rewards.registry import REGISTERED
from scripts.site.commands_reference import COMMANDS
from scripts.site.config_reference import anchor, field_paths
from tests.unit.docs.documents import DOCUMENTS, ROOT
from tests.unit.docs.html import broken_links, outside_assets, read_page

MAX_README_LINES = 150
PACKAGES = ("configs", "rollout", "rewards", "learner", "cluster")


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The built site. A warning of the build is an error, as with `make docs`."""
    folder = tmp_path_factory.mktemp("site")
    build = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(folder)],
        cwd=ROOT,
        env=os.environ | {"NO_MKDOCS_2_WARNING": "1"},
        capture_output=True,
        text=True,
        timeout=240,
    )
    assert build.returncode == 0, build.stdout + build.stderr
    return folder


def test_every_link_and_anchor_of_the_site_leads_somewhere(site: Path):
    assert broken_links(site) == []


def test_the_site_fetches_nothing_from_outside(site: Path):
    assert outside_assets(site) == []


def test_the_config_reference_has_every_field(site: Path):
    ids = read_page(site / "reference" / "config.html").ids
    inner = {path for path in field_paths() if path.startswith(("rollout.num_workers.", "rewards[].replicas."))}
    assert {path for path in field_paths() - inner if anchor(path) not in ids} == set()


def test_the_metrics_reference_has_every_key(site: Path):
    text = (site / "reference" / "metrics.html").read_text(encoding="utf-8")
    assert [key for key in METRICS if f"<code>{key}</code>" not in text] == []
    assert [prefix for prefix in METRIC_PREFIXES if f"<code>{prefix}…</code>" not in text] == []


def test_the_references_have_every_command_and_every_reward(site: Path):
    commands = read_page(site / "reference" / "commands.html").ids
    rewards = read_page(site / "reference" / "rewards.html").ids
    assert {command.replace(".", "-") for command in COMMANDS} <= commands
    assert {name.replace("_", "-") for name in REGISTERED} <= rewards


def test_every_command_of_the_sources_is_in_the_reference():
    sources = [path.read_text(encoding="utf-8") for name in PACKAGES for path in (ROOT / name).rglob("*.py")]
    commands = {command for source in sources for command in re.findall(r'prog="python -m ([\w.]+)"', source)}
    assert commands == set(COMMANDS)


def test_every_shipped_config_has_a_recipe_that_shows_it(site: Path):
    for path in sorted((ROOT / "configs").glob("*.yaml")):
        page = (site / "recipes" / f"{path.stem}.html").read_text(encoding="utf-8")
        for heading in ("placement", "the-config"):
            assert f'id="{heading}"' in page, f"{path.stem}: no {heading}"


def test_generated_pages_are_not_committed():
    assert [path for path in ("docs/reference", "docs/project", "docs/index.md") if (ROOT / path).exists()] == []


def test_every_registered_reward_is_in_both_tables_of_the_rewards_page():
    text = (ROOT / "docs" / "rewards.md").read_text(encoding="utf-8")
    missing = [name for name in REGISTERED if len(re.findall(rf"^\| `{name}` \|", text, re.M)) != 2]
    assert missing == [], "what a reward judges, and under which licence its weights are, stand in docs/rewards.md"


def test_the_readme_is_read_to_its_end():
    assert len((ROOT / "README.md").read_text(encoding="utf-8").splitlines()) <= MAX_README_LINES


LINK = re.compile(r"(?<!`)\[[^\]]*\]\(([^)\s]+)\)")


@pytest.mark.parametrize("path", [*DOCUMENTS, ROOT / "CHANGELOG.md"], ids=lambda path: str(path.relative_to(ROOT)))
def test_every_link_in_the_sources_leads_to_a_file_and_a_heading(path: Path):
    """As a reader of the repository sees them; the site's own links are checked where it is built."""
    for target in LINK.findall(path.read_text(encoding="utf-8")):
        file, _, fragment = target.partition("#")
        if "://" in target or is_made_by_the_build(path, file):
            continue
        linked = (path.parent / file).resolve() if file else path
        assert linked.exists(), f"{path.name}: there is no {target}"
        if fragment and linked.suffix == ".md":
            assert fragment in headings(linked), f"{path.name}: {linked.name} has no heading #{fragment}"


def is_made_by_the_build(path: Path, file: str) -> bool:
    """Whether a link leads to a page that only the built site has."""
    target = (path.parent / file).resolve()
    made = (ROOT / "docs" / "reference", ROOT / "docs" / "project")
    return any(target.is_relative_to(folder) for folder in made)


def headings(path: Path) -> set[str]:
    """Anchors of a Markdown file's headings, as GitHub and MkDocs make them of plain titles."""
    text = re.sub(r"```.*?```", "", path.read_text(encoding="utf-8"), flags=re.S)
    titles = re.findall(r"^#+ (.+?)\s*$", text, re.M)
    return {re.sub(r"[^\w\- ]", "", title.lower()).strip().replace(" ", "-") for title in titles}
