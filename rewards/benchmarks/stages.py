"""The stages of one benchmark run, each of which goes on where the last run ended.

    draw     prompts without pictures ─► engine ─► drawn/
    encode   drawn/ ─► official files in images/
    score    files without an answer ─► Scorer ─► answers/
    aggregate  answers ─► grade ─► measures with intervals ─► results/

With nothing left to score no model is loaded and no judge is asked: the rules run again on the answers that are kept.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any, Protocol

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeRemainingColumn

from configs.errors import ConfigError, DataError, RewardError
from rewards.benchmarks.drawing import draw_missing, model_weights
from rewards.benchmarks.encoding import encode_item
from rewards.benchmarks.folders import AnswerFile, RunFolder, read_json, slug, write_json
from rewards.benchmarks.protocol import (
    Answer,
    Asked,
    Benchmark,
    Data,
    Graded,
    Item,
    Scorer,
    ScorerOptions,
    UnreadableError,
    Values,
)
from rewards.benchmarks.provenance import join_names
from rewards.benchmarks.results import make_result, read_source
from rollout.drawing_options import DrawingOptions


@dataclass(frozen=True, slots=True)
class RunOptions:
    """What a user asks for."""

    drawing: DrawingOptions | None
    """None where pictures come from somewhere else."""
    scorer: ScorerOptions
    data: Path | None
    output_dir: Path
    images: Path | None = None
    limit: int | None = None


class Draw(Protocol):
    """Draws what is missing; see `rewards.benchmarks.drawing.draw_missing`."""

    def __call__(
        self,
        folder: RunFolder,
        items: Sequence[Item],
        chosen: Sequence[Item],
        options: DrawingOptions,
        advance: Callable[[], None],
    ) -> None: ...


@dataclass(frozen=True, slots=True)
class Machinery:
    """Who draws and who scores."""

    draw: Draw
    open_scorer: Callable[[Benchmark, ScorerOptions], Scorer]


HERE = Machinery(draw_missing, lambda benchmark, options: benchmark.open_scorer(options))
"""This process does both."""


def draw_benchmark(benchmark: Benchmark, options: RunOptions, console: Console, machinery: Machinery = HERE) -> None:
    """Draw what is missing, and write the official files. Raises what the stages raise."""
    data = benchmark.read_data(options.data)
    benchmark.variant(options.scorer)  # before anything is drawn: a wrong option is told at once
    for departure in data.departures:
        console.print(f"note: {departure}", style="yellow", markup=False)
    items = choose_items(data.items, options.limit)
    folder = RunFolder(options.output_dir / benchmark.name, options.images)
    if options.drawing is None:
        return
    with _progress(console) as (progress, task):
        _draw(folder, data, items, options.drawing, machinery.draw, progress, task)
        _encode(folder, items, progress, task)


def score_benchmark(
    benchmark: Benchmark, options: RunOptions, console: Console, machinery: Machinery = HERE
) -> dict[str, Any]:
    """Score what is drawn, and aggregate; returns the result, which is written, too. Raises what the stages raise."""
    data = benchmark.read_data(options.data)
    items = choose_items(data.items, options.limit)
    folder = RunFolder(options.output_dir / benchmark.name, options.images)
    source = read_source(folder, options.drawing, options.images)
    with _progress(console) as (progress, task):
        return _score(benchmark, data, items, folder, options.scorer, source, machinery.open_scorer, progress, task)


def score_drawn(
    benchmark: Benchmark,
    data: Data,
    items: Sequence[Item],
    folder: RunFolder,
    options: ScorerOptions,
    source: Mapping[str, Any],
) -> dict[str, Any]:
    """Encode, score and aggregate what something else has drawn into `folder`; returns the result, which is written.

    source: where the pictures come from, for the result.
    """
    with _progress(Console(quiet=True)) as (progress, task):
        _encode(folder, items, progress, task)
        return _score(benchmark, data, items, folder, options, source, HERE.open_scorer, progress, task)


def _score(
    benchmark: Benchmark,
    data: Data,
    items: Sequence[Item],
    folder: RunFolder,
    options: ScorerOptions,
    source: Mapping[str, Any],
    open_scorer: Callable[[Benchmark, ScorerOptions], Scorer],
    progress: Progress,
    task: TaskID,
) -> dict[str, Any]:
    metric = benchmark.name + join_names(benchmark.variant(options))
    answers = AnswerFile(folder, metric)
    _ask(partial(open_scorer, benchmark, options), folder, items, answers, metric, progress, task)
    graded, failed = grade_all(benchmark, folder, items, answers)
    scorer = read_json(folder.root / "scorers" / f"{slug(metric)}.json") or {}
    _, missing = folder.asked(items)
    result = make_result(benchmark, metric, data, items, graded, missing, failed, source, scorer, folder)
    write_json(folder.root / "results" / f"{slug(metric)}.json", result)
    return result


def choose_items(items: Sequence[Item], limit: int | None) -> list[Item]:
    """`limit` items, of each tag in turn, in their own order; all of them for None.

    A larger limit takes all that a smaller one takes.
    """
    if limit is None or limit >= len(items):
        return list(items)
    by_tag: dict[str, list[Item]] = {}
    for item in items:
        by_tag.setdefault(item.tag, []).append(item)
    rounds = max(map(len, by_tag.values()))
    in_turn = [group[i] for i in range(rounds) for group in by_tag.values() if i < len(group)]
    chosen = {item.key for item in in_turn[:limit]}
    return [item for item in items if item.key in chosen]


@contextmanager
def _progress(console: Console) -> Iterator[tuple[Progress, TaskID]]:
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as progress:
        yield progress, progress.add_task("reading")


def _draw(
    folder: RunFolder,
    data: Data,
    items: Sequence[Item],
    drawing: DrawingOptions,
    draw: Draw,
    progress: Progress,
    task: TaskID,
) -> None:
    missing = [item for item in items if folder.needs_drawing(item)]
    settings: dict[str, Any] = {name: value for name, value in asdict(drawing).items() if name != "num_images"}
    kept = folder.settings().get("weights")
    folder.agree({**settings, "weights": dict(model_weights(drawing)) if missing or kept is None else kept})
    if not missing:
        return
    progress.reset(task, total=len(missing), description="drawing")
    by_number: dict[int, list[Item]] = {}
    for item in missing:
        by_number.setdefault(item.num_pictures, []).append(item)
    for num_images, chosen in by_number.items():
        own = DrawingOptions(**{**asdict(drawing), "num_images": num_images})
        draw(folder, data.items, chosen, own, partial(progress.advance, task))


def _encode(folder: RunFolder, items: Sequence[Item], progress: Progress, task: TaskID) -> None:
    progress.reset(task, total=len(items), description="encoding")
    for item in items:
        drawn = folder.drawn(item)
        if all(path.exists() for path in drawn):
            try:
                encode_item(item, drawn, folder.images)
            except ValueError as error:
                raise DataError(f"a drawn picture of {item.key}: {error}; remove it, and it is drawn again") from error
        progress.advance(task)


def _ask(
    open_scorer: Callable[[], Scorer],
    folder: RunFolder,
    items: Sequence[Item],
    answers: AnswerFile,
    metric: str,
    progress: Progress,
    task: TaskID,
) -> None:
    there, _ = folder.asked(items)
    if not there:
        raise DataError(f"{folder.images} holds none of the pictures that are expected, such as {items[0].files[0]}")
    pending = [asked for asked in there if not answers.has_answer(asked)]
    if not pending:
        return
    progress.reset(task, total=len(pending), description="scoring")
    scorer = open_scorer()
    about_path = folder.root / "scorers" / f"{slug(metric)}.json"
    try:
        _check_same_scorer(about_path, scorer.about())
        for asked, answer in scorer.answers(pending):
            if isinstance(answer, RewardError):
                answers.add(asked, answer.answer if isinstance(answer, UnreadableError) else None, str(answer))
            else:
                answers.add(asked, answer)
            progress.advance(task)
    finally:
        write_json(about_path, scorer.about())
        scorer.close()


def _check_same_scorer(path: Path, about: Mapping[str, Any]) -> None:
    """Answers of two scorers must not be mixed in one file. What a run finds out in the end is not compared."""
    kept = read_json(path)
    for name in sorted(set(kept or {}) & set(about)):
        if not name.startswith("seen_") and kept[name] != about[name]:
            raise ConfigError(
                f"{path.parent.parent} was scored with {name} {kept[name]!r}, not {about[name]!r}; name another "
                "--output-dir (with --images, the pictures need not be drawn again)"
            )


def grade_all(
    benchmark: Benchmark, folder: RunFolder, items: Iterable[Item], answers: AnswerFile
) -> tuple[list[Graded], dict[str, str]]:
    """Each item with the grades of its files; and the files that have none though they are there, with the reason."""
    graded, failed = [], {}
    for item in items:
        values: list[Values | None] = []
        for number, name in enumerate(item.files):
            path = folder.find(item, number)
            line = answers.line(Asked(item, number, path)) if path else None
            grade, reason = _grade(benchmark, item, line)
            values.append(grade)
            if path is not None and reason:
                failed[name] = reason
        graded.append(Graded(item, tuple(values)))
    return graded, failed


def _grade(benchmark: Benchmark, item: Item, line: Mapping[str, Any] | None) -> tuple[Values | None, str]:
    if line is None or "answer" not in line:
        return None, line["error"] if line else "it was not scored"
    answer: Answer = line["answer"]
    try:
        return benchmark.grade(item, answer), ""
    except RewardError as error:
        return None, str(line.get("error", error))
