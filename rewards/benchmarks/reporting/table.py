"""Results as one can show them: Markdown with the published rows beside them, and HTML with the pictures behind them.

A row of ours says how many prompts it has, what replaces the official scorer, and what is missing: a number that cannot
be compared does not look as if it could.
"""

from __future__ import annotations

import html
import json
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

PUBLISHED = Path(__file__).with_name("published.json")
MAX_SHOWN = 48
"""Prompts of a page, worst first."""
_STYLE = """
body{font:15px/1.5 system-ui,sans-serif;margin:2rem auto;max-width:1200px;padding:0 1rem;color:#1c2330;background:#fff}
table{border-collapse:collapse;margin:1rem 0}th,td{border:1px solid #ccd3dd;padding:.3rem .6rem;text-align:right}
th:first-child,td:first-child{text-align:left}tr.ours{background:#eef5ff}
.prompt{border-top:1px solid #ccd3dd;padding:.8rem 0}.prompt b{color:#9a2a2a}.prompt .right b{color:#1d6b3a}
.prompt img{width:160px;height:160px;object-fit:contain;background:#f1f3f6;margin:.3rem .3rem 0 0;image-rendering:auto}
small{color:#5b6675}
@media (prefers-color-scheme: dark){body{color:#dfe5ee;background:#141a22}th,td{border-color:#39424f}
tr.ours{background:#1d2b3f}.prompt{border-color:#39424f}.prompt img{background:#222a35}small{color:#97a3b4}}
"""


@dataclass(frozen=True, slots=True)
class Row:
    """One line of a table."""

    model: str
    cells: Mapping[str, str]
    """Measure -> text."""
    is_ours: bool
    note: str = ""


@cache
def published_rows() -> tuple[Mapping[str, Any], ...]:
    """The rows of published.json."""
    return tuple(json.loads(PUBLISHED.read_text(encoding="utf-8"))["rows"])


def rows_of(results: Sequence[Mapping[str, Any]]) -> list[Row]:
    """Rows of results of one benchmark, and below them those that were published."""
    ours = [_own_row(result) for result in results]
    name = results[0]["benchmark"]
    return ours + [
        Row(
            row["model"],
            {measure: f"{value:.3f}" for measure, value in row["measures"].items()},
            is_ours=False,
            note=f"published: {row['source']}{' (third-party)' if row['third_party'] else ''}",
        )
        for row in published_rows()
        if row["benchmark"] == name
    ]


def _own_row(result: Mapping[str, Any]) -> Row:
    cells = {
        name: f"{one['value']:.3f} ({one['low']:.3f}–{one['high']:.3f})" for name, one in result["measures"].items()
    }
    notes = [f"CoT: {result['pictures'].get('rewriter', 'unknown')}"]
    if result["metric"] != result["benchmark"]:
        notes.append(f"scorer: {result['metric']}")
    if result["num_prompts"] < result["num_prompts_of_benchmark"]:
        notes.append(f"{result['num_prompts']} of {result['num_prompts_of_benchmark']} prompts")
    if not result["is_complete"]:
        num = result["num_missing"] + result["num_failed"]
        notes.append(f"INCOMPLETE: {num} of {result['num_files']} files count as the lowest score")
    notes += result["data"]["departures"]
    return Row(Path(result["pictures"]["model"]).name, cells, is_ours=True, note="; ".join(notes))


def by_benchmark(results: Iterable[Mapping[str, Any]]) -> dict[str, list[Mapping[str, Any]]]:
    """Results by their benchmark, in the order in which they come."""
    grouped: dict[str, list[Mapping[str, Any]]] = {}
    for result in results:
        grouped.setdefault(result["benchmark"], []).append(result)
    return grouped


def columns_of(results: Sequence[Mapping[str, Any]]) -> list[str]:
    """The measures of results, in their order."""
    return list(dict.fromkeys(name for result in results for name in result["measures"]))


def as_markdown(results: Iterable[Mapping[str, Any]]) -> str:
    """A table for each benchmark, with 95 % intervals over prompts; notes below it."""
    parts = []
    for group in by_benchmark(results).values():
        columns, rows = columns_of(group), rows_of(group)
        lines = [f"## {group[0]['title']}", ""]
        lines += [_line(["model", *columns]), _line(["---", *["---:"] * len(columns)])]
        notes: dict[str, int] = {}
        for row in rows:
            number = notes.setdefault(row.note, len(notes) + 1)
            model = f"**{row.model}**" if row.is_ours else row.model
            lines.append(_line([f"{model} [{number}]", *(row.cells.get(name, "") for name in columns)]))
        lines += ["", *(f"[{number}] {note}  " for note, number in notes.items())]
        parts.append("\n".join(lines))
    return "\n\n".join(parts) + "\n"


def _line(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cell.replace('|', '/') for cell in cells)} |"


def as_html(results: Sequence[Mapping[str, Any]], folder: Path) -> str:
    """The same as a page for `folder`, and the prompts of each result with their pictures, worst first."""
    parts = []
    for group in by_benchmark(results).values():
        columns = columns_of(group)
        head = "".join(f"<th>{html.escape(name)}</th>" for name in ("model", *columns, "note"))
        body = "".join(_html_row(row, columns) for row in rows_of(group))
        parts.append(f"<h1>{html.escape(group[0]['title'])}</h1><table><tr>{head}</tr>{body}</table>")
        parts += [_pictures(result, folder) for result in group]
    meta = '<meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">'
    return f"<!doctype html><html lang=en><head>{meta}<title>Benchmarks</title><style>{_STYLE}</style></head><body>" + (
        "\n".join(parts) + "</body></html>\n"
    )


def _html_row(row: Row, columns: Sequence[str]) -> str:
    cells = "".join(f"<td>{html.escape(row.cells.get(name, ''))}</td>" for name in columns)
    kind = " class=ours" if row.is_ours else ""
    return f"<tr{kind}><td>{html.escape(row.model)}</td>{cells}<td><small>{html.escape(row.note)}</small></td></tr>"


def _pictures(result: Mapping[str, Any], folder: Path) -> str:
    prompts = sorted(result["prompts"], key=lambda prompt: (prompt["score"], prompt["key"]))[:MAX_SHOWN]
    model = html.escape(Path(result["pictures"]["model"]).name)
    shown = f"the {len(prompts)} worst of {len(result['prompts'])} prompts"
    return f"<h2>{model}: {shown}</h2>" + "".join(_prompt(prompt, folder) for prompt in prompts)


def _prompt(prompt: Mapping[str, Any], folder: Path) -> str:
    pictures = "".join(
        f'<img loading="lazy" alt="" src="{html.escape(_address(file, folder))}">' for file in prompt["files"]
    )
    kind = " right" if prompt["score"] >= 1 else ""
    what = f"<b>{prompt['score']:.2f}</b> <small>{html.escape(prompt['tag'])}</small> {html.escape(prompt['prompt'])}"
    return f'<div class="prompt"><div class="text{kind}">{what}</div>{pictures or "no picture"}</div>'


def _address(file: str, folder: Path) -> str:
    from urllib.parse import quote

    return quote(os.path.relpath(file, folder.resolve()))
