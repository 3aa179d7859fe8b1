"""MkDocs hooks: pages that are generated in the build, and files of the repository's root shown as pages.

    configs/schema.py ─► reference/config.md        cluster's METRICS ─► reference/metrics.md
    argparse parsers ──► reference/commands.md      rewards' classes ──► reference/rewards.md
    cluster/boards' ALERTS ─► reference/alerts.md
    configs/NAME.yaml ─► the end of recipes/NAME.md      ARCHITECTURE.md, … ─► project/*.md

None of these is written to docs/, so none can be edited by hand and then go stale.
"""

from __future__ import annotations

import re
import sys
from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

ROOT = Path(__file__).resolve().parents[2]
if str(ROOT) not in sys.path:  # the `mkdocs` command does not put it there; `python -m mkdocs` does
    sys.path.insert(0, str(ROOT))

from scripts.site.alerts_reference import alerts_reference  # noqa: E402
from scripts.site.commands_reference import commands_reference  # noqa: E402
from scripts.site.config_reference import config_reference  # noqa: E402
from scripts.site.metrics_reference import metrics_reference  # noqa: E402
from scripts.site.recipes import with_config  # noqa: E402
from scripts.site.rewards_reference import rewards_reference  # noqa: E402

ROOT_PAGES = {
    "ARCHITECTURE.md": "project/architecture.md",
    "BENCHMARKS.md": "project/benchmarks.md",
    "CHANGELOG.md": "project/changelog.md",
    "CONTRIBUTING.md": "project/contributing.md",
    "SECURITY.md": "project/security.md",
    "README.md": "index.md",
}
_LINK = re.compile(r"(!?)\[([^\]]*)\]\(([^)\s]+)\)")


def on_files(files: Files, *, config: MkDocsConfig) -> Files:
    """Add the generated pages."""
    generated = {
        "reference/config.md": config_reference(),
        "reference/rewards.md": rewards_reference(),
        "reference/metrics.md": metrics_reference(),
        "reference/commands.md": commands_reference(),
        "reference/alerts.md": alerts_reference(),
    }
    for source, target in ROOT_PAGES.items():
        generated[target] = for_site((ROOT / source).read_text(encoding="utf-8"), target)
    for target, content in generated.items():
        files.append(File.generated(config, target, content=content))
    return files


def on_page_markdown(markdown: str, *, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Add to a recipe what its config file says."""
    return with_config(markdown, page.file.src_uri)


def for_site(markdown: str, page: str) -> str:
    """A file of the repository's root as a page of the site: its links lead to pages, or become plain code.

    page: where the page lies in the site. A link to a file that the site does not hold (a source file) becomes its text
    and the file's name.
    """

    def replace(match: re.Match[str]) -> str:
        bang, text, target = match.groups()
        path, hash_sign, fragment = target.partition("#")
        if "://" in target or target.startswith(("#", "mailto:")):
            return match.group(0)
        up = "../" * page.count("/")
        if path.startswith("docs/"):
            return f"{bang}[{text}]({up}{path.removeprefix('docs/')}{hash_sign}{fragment})"
        if path in ROOT_PAGES:
            return f"{bang}[{text}]({up}{ROOT_PAGES[path]}{hash_sign}{fragment})"
        return text if path in text else f"{text} (`{path}`)"

    return _LINK.sub(replace, markdown)
