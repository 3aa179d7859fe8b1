"""What the page of a recipe gets from its config file: the placement plan and the file itself."""

from __future__ import annotations

from pathlib import Path

from cluster.session.placement import plan_placement
from configs.load import load_config

ROOT = Path(__file__).resolve().parents[2]


def with_config(markdown: str, page: str) -> str:
    """The page `recipes/NAME.md` with what configs/NAME.yaml says at its end; other pages are left as they are."""
    folder, _, name = page.removesuffix(".md").rpartition("/")
    path = ROOT / "configs" / f"{name}.yaml"
    if folder != "recipes" or not path.is_file():
        return markdown
    plan = plan_placement(load_config(path)).describe()
    parts = (
        markdown.rstrip(),
        f"## Placement\n\nWhat `--dry-run` prints:\n\n```text\n{plan}\n```",
        f"## The config\n\n`configs/{name}.yaml`:\n\n```yaml\n{path.read_text(encoding='utf-8').rstrip()}\n```",
    )
    return "\n\n".join(parts) + "\n"
