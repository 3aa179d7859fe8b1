"""A result on the screen."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from rewards.benchmarks.folders import slug

MAX_NAMED = 3


def show_result(result: Mapping[str, Any], folder: Path, console: Console) -> None:
    """Scores with their intervals, and loudly what is missing."""
    table = Table(
        "", "score", "95 %", "prompts", title=escape(f"{result['title']}: {result['metric']}"), title_justify="left"
    )
    for name, measure in result["measures"].items():
        interval = f"{measure['low']:.3f} to {measure['high']:.3f}"
        table.add_row(name, f"{measure['value']:.4f}", interval, str(measure["num_prompts"]))
    console.print(table)
    if result["num_prompts"] < result["num_prompts_of_benchmark"]:
        limited = f"{result['num_prompts']} of {result['num_prompts_of_benchmark']} prompts: no score of the benchmark"
        console.print(limited, style="yellow", markup=False)
    for what, names in (("are missing", result["missing"]), ("could not be judged", list(result["failed"]))):
        if names:
            shown = ", ".join(names[:MAX_NAMED]) + (", …" if len(names) > MAX_NAMED else "")
            share = f"{len(names)} of {result['num_files']} files {what} and count as the lowest score: {shown}"
            console.print(f"INCOMPLETE: {share}", style="bold red", markup=False)
    for name, reason in list(result["failed"].items())[:MAX_NAMED]:
        console.print(f"  {name}: {reason}", style="red", markup=False, highlight=False)
    path = folder / "results" / f"{slug(result['metric'])}.json"
    console.print(f"result: {path}", markup=False, highlight=False, soft_wrap=True)
