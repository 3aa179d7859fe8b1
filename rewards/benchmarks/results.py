"""The record of a result: scores with their intervals, what they were made with, and every prompt's own score."""

from __future__ import annotations

import datetime
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from configs.errors import DataError
from rewards.benchmarks.folders import RunFolder, read_json
from rewards.benchmarks.grading import prompt_mean
from rewards.benchmarks.protocol import Benchmark, Data, Graded, Item
from rewards.benchmarks.provenance import versions
from rollout.drawing_options import DrawingOptions

SCHEMA = 1
NO_REWRITER, SEMANTIC_COT = "none", "semantic CoT"


def read_source(folder: RunFolder, drawing: DrawingOptions | None, images: Path | None) -> dict[str, Any]:
    """Where the pictures come from: the model and how it drew, or the folder that was given."""
    if drawing is None:
        return {"model": str(images), "images": str(images), "rewriter": "unknown"}
    options = {name: value for name, value in asdict(drawing).items() if name not in ("model", "num_images", "no_cot")}
    scales = _guidance_scales(folder.root / "drawn.jsonl")
    return {
        "model": drawing.model,
        "weights": dict(folder.settings().get("weights", {})),
        "rewriter": NO_REWRITER if drawing.no_cot else SEMANTIC_COT,
        **options,
        "guidance_scale": scales[0] if len(scales) == 1 else scales,
    }


def _guidance_scales(path: Path) -> list[float]:
    import json

    if not path.exists():
        return []
    lines = (json.loads(line) for line in path.read_text(encoding="utf-8").splitlines() if line.endswith("}"))
    return sorted({line["guidance_scale"] for line in lines})


def make_result(
    benchmark: Benchmark,
    metric: str,
    data: Data,
    items: Sequence[Item],
    graded: Sequence[Graded],
    missing: Sequence[str],
    failed: Mapping[str, str],
    source: Mapping[str, Any],
    scorer: Mapping[str, Any],
    folder: RunFolder,
) -> dict[str, Any]:
    """The result as JSON has it. Of a run that lacks pictures or judgements `is_complete` is false."""
    num_files = sum(len(item.files) for item in items)
    return {
        "schema": SCHEMA,
        "benchmark": benchmark.name,
        "title": benchmark.title,
        "metric": metric,
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "is_complete": not missing and not failed,
        "num_prompts": len(items),
        "num_prompts_of_benchmark": len(data.items),
        "num_files": num_files,
        "num_missing": len(missing),
        "num_failed": len(failed),
        "missing": list(missing),
        "failed": dict(failed),
        "measures": {measure.name: measure.to_record() for measure in benchmark.measures(graded)},
        "pictures": dict(source),
        "scorer": dict(scorer),
        "data": {"files": dict(data.files), "departures": list(data.departures)},
        "versions": dict(versions()),
        "prompts": [_prompt_record(benchmark, one, folder) for one in graded],
    }


def _prompt_record(benchmark: Benchmark, graded: Graded, folder: RunFolder) -> dict[str, Any]:
    item = graded.item
    paths = (folder.find(item, number) for number in range(len(item.files)))
    return {
        "key": item.key,
        "prompt": item.prompt,
        "tag": item.tag,
        "score": prompt_mean(graded, lambda values: values[benchmark.picture_score]),
        "files": [str(path.resolve()) for path in paths if path],
        "values": [None if values is None else dict(values) for values in graded.values],
    }


def read_result(path: Path) -> dict[str, Any]:
    """A result's file. Raises DataError for one that is none."""
    content = read_json(path)
    if content is None:
        raise DataError(f"{path} is no file")
    if not isinstance(content, dict) or content.get("schema") != SCHEMA or "measures" not in content:
        raise DataError(f"{path} is no result of `python -m rewards.benchmark`")
    return content
