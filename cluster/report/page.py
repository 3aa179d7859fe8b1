"""From runs to HTML: sections that report and live page share, and the whole page around them.

The page asks nothing of any network: styles, script and pictures are in it, and its Content-Security-Policy forbids all
else. All texts of a run (prompts, plans, notes) are escaped by the templates.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, Final

import jinja2
from markupsafe import Markup

from cluster.report import sections
from cluster.report.charts import legend, number
from cluster.report.curves import charts_of, reward_charts
from cluster.report.view import RunView, config_differences, read_runs, shown

REPORT_NAME: Final = "report.html"
SECTIONS: Final[Mapping[str, str]] = {
    "top": "",
    "now": "Now",
    "before_after": "Before and after",
    "curves": "Curves",
    "samples": "Pictures",
    "rewards": "Rewards",
    "time": "Time and faults",
    "config": "Config",
}
"""Name of each section -> its heading in the contents."""
ONE_RUN: Final = ("top", "before_after", "curves", "samples", "rewards", "time", "config")
SEVERAL_RUNS: Final = ("top", "curves", "rewards", "before_after", "samples", "time", "config")
LIVE: Final = ("top", "now", "samples", "curves", "rewards", "before_after", "time", "config")
MAX_SAMPLE_BYTES: Final = 3 << 20
"""Of the pictures of all steps in a report; the first and the last page are in it whatever they take."""
_TEMPLATES: Final = Path(__file__).parent / "templates"


@dataclass(frozen=True, slots=True)
class Section:
    """One part of the page."""

    name: str
    html: Markup
    digest: str
    """Changes when the HTML does."""


@dataclass(frozen=True, slots=True)
class Strip:
    """The pages of samples of one run that are in the page."""

    steps: Sequence[int]
    """All that a reader may choose."""
    pages: Sequence[tuple[int, Mapping[str, Any]]]


def write_report(paths: Sequence[Path], to: Path) -> Path:
    """Write a report of these run directories; a reader sees the whole file or none. Raises ConfigError, OSError."""
    text = report_html(read_runs(paths))
    temporary = to.with_name(to.name + ".tmp")
    temporary.write_text(text, encoding="utf-8")
    os.replace(temporary, to)
    return to


def report_html(views: Sequence[RunView]) -> str:
    """The report as one file."""
    strips = [_chosen(view) for view in views]
    parts = sections_of(views, strips, ONE_RUN if len(views) == 1 else SEVERAL_RUNS)
    names = ", ".join(view.name for view in views)
    return page(parts, f"bicot: {names}", "Made by python -m cluster.report. Nothing in this file asks the network.")


def page(parts: Sequence[Section], title: str, footer: str, refresh_ms: int = 0) -> str:
    """The page around its sections; one that is live asks for them again every `refresh_ms`."""
    return _environment().get_template("page.html").render(
        sections=parts, title=title, footer=footer, live=refresh_ms, style=_raw("style.css"), script=_raw("page.js")
    )  # fmt: skip


def sections_of(views: Sequence[RunView], strips: Sequence[Strip], order: Sequence[str]) -> list[Section]:
    """Of SECTIONS these, in this order; one that has nothing to show is empty."""
    contents = [(name, SECTIONS[name]) for name in order if SECTIONS[name] and _is_in(name, views)]
    made = []
    for name in order:
        template = _environment().get_template(f"{name}.html")
        html = template.render(views=views, strips=strips, contents=contents) if _is_in(name, views) else ""
        made.append(Section(name, Markup(html), hashlib.sha256(html.encode()).hexdigest()[:16]))
    return made


def sample_page(tree: Mapping[str, Any]) -> str:
    """The pictures of one step."""
    parts: Any = _environment().get_template("parts.html").make_module()
    return str(parts.sample_page(_page_tree(tree)))


def newest_strip(view: RunView) -> Strip:
    """Of a live page: the newest page of samples, and the steps of the others, which it can ask for."""
    pages = []
    if view.sample_steps and (tree := view.samples(view.sample_steps[-1])) is not None:
        pages = [(view.sample_steps[-1], _page_tree(tree))]
    return Strip(view.sample_steps, pages)


def _is_in(name: str, views: Sequence[RunView]) -> bool:
    if name == "now":
        return any(view.is_running for view in views)
    return name != "before_after" or any(view.before_after for view in views)


def _chosen(view: RunView) -> Strip:
    """The last page, the first one, and as many between as there is room for, evenly."""
    steps = list(view.sample_steps)
    order = [steps[-1], steps[0], *_halving(steps[1:-1])] if len(steps) > 1 else steps
    taken: dict[int, Mapping[str, Any]] = {}
    room = MAX_SAMPLE_BYTES
    for step in order:
        tree = view.samples(step)
        size = len(json.dumps(tree)) if tree else 0
        if tree is None or (len(taken) >= 2 and size > room):
            continue
        room -= size
        taken[step] = _page_tree(tree)
    return Strip(sorted(taken), sorted(taken.items()))


def _halving(steps: Sequence[int]) -> list[int]:
    """The middle one first, then those of the halves: any beginning of it is spread evenly."""
    order, stretches = [], [steps]
    while stretches:
        stretch = stretches.pop(0)
        if stretch:
            middle = len(stretch) // 2
            order.append(stretch[middle])
            stretches += [stretch[:middle], stretch[middle + 1 :]]
    return order


def _page_tree(tree: Mapping[str, Any]) -> Mapping[str, Any]:
    return {"title": tree.get("title", ""), "entries_": tree["entries"]}  # a mapping has a method `entries` of its own


@lru_cache(maxsize=1)
def _environment() -> jinja2.Environment:
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(_TEMPLATES),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.globals.update(
        {name: getattr(sections, name) for name in (
            "verdict", "facts", "reward_table", "correlations", "time_split", "fault_counts", "faults", "notes", "now",
            "pairs", "versions", "from_defaults",
        )},
        charts_of=charts_of,
        reward_charts=reward_charts,
        config_differences=config_differences,
        legend=legend,
        number=number,
        score=lambda value: "–" if value is None else f"{value:.2f}",
        percent=_percent,
        bar_style=_bar_style,
        cell_style=_cell_style,
        scores_json=_scores_json,
        reward_names=lambda views: list(dict.fromkeys(name for view in views for name in view.rewards)),
        shown=shown,
    )  # fmt: skip
    return environment


@lru_cache
def _raw(name: str) -> Markup:
    return Markup((_TEMPLATES / name).read_text(encoding="utf-8"))


def _percent(share: float | None) -> str:
    return "–" if share is None or not math.isfinite(share) else f"{share:.0%}"


def _bar_style(score: float | None) -> str:
    """Width and colour of a score from 0 to 1, from red over amber to green; others fill none or all of it."""
    share = min(1.0, max(0.0, score)) if score is not None and math.isfinite(score) else 0.0
    return f"width:{100 * share:.1f}%;--s:hsl({130 * share:.0f} 58% 45%)"


def _cell_style(value: float | None) -> str:
    """Colour of a correlation: blue above 0, red below."""
    if value is None or not math.isfinite(value):
        return ""
    color = "--c0" if value >= 0 else "--bad"
    return f"background:color-mix(in srgb, var({color}) {abs(value) * 55:.0f}%, transparent)"


def _scores_json(entry: Mapping[str, Any]) -> str:
    return json.dumps({"score": entry.get("score"), **(entry.get("rewards") or {})})
