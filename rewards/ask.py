"""Ask a language model once which questions each prompt's picture has to answer, and keep them with the prompt.

    python -m rewards.ask prompts.jsonl --judge http://localhost:8000/v1 --model NAME --output asked.jsonl

    prompt ─► model ─► JSON list of yes-or-no questions ─► the same record, with metadata.questions

The reward `logprob_judge` then asks them of every picture (TIFA, arXiv 2303.11897, does so). They are made before
training and not during it, so that all pictures of all steps answer the same ones, and people can read and mend them.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TextIO

from configs.command_line import exit_code_of
from configs.errors import ConfigError, DataError, RewardError
from rewards.clients import ChatClient, check_url, read_api_key
from rewards.judge.logprob_judge import METADATA_KEY
from rollout.prompts.files import BadRecord, parse_prompt, read_records
from rollout.records import Prompt

INSTRUCTION = """\
A picture will be drawn for the prompt below. Write the yes-or-no questions that decide whether the picture shows all
that the prompt asks for: one for each object, number, colour, material, shape, action, position, text and style that it
names. Each question must be understood without the prompt and without the other questions, must ask one thing only, and
must have the answer yes for a picture that is right. Ask for nothing that the prompt does not say. At most {most}
questions.

Reply with a JSON list of texts and nothing else.

Prompt: {prompt}"""
_FENCE = re.compile(r"```(?:json)?\s*(.*?)```", re.DOTALL)
MAX_TOKENS = 1024


def main(argv: Sequence[str] | None = None) -> int:
    """The command; returns its exit code: 0 all asked, 1 some prompts failed, 2 wrong input."""
    arguments = build_parser().parse_args(argv)
    return exit_code_of(partial(_ask, arguments), "the lines written so far are complete; go on with --resume")


def build_parser() -> argparse.ArgumentParser:
    """The command line's parser."""
    parser = argparse.ArgumentParser(
        prog="python -m rewards.ask", description="Write the questions of each prompt for the reward logprob_judge."
    )
    parser.add_argument("prompts", type=Path, metavar="PROMPTS", help=".jsonl, .json, .csv, .parquet or .txt")
    parser.add_argument(
        "--judge", required=True, metavar="URL", help="OpenAI-compatible server, such as http://host/v1"
    )
    parser.add_argument("--model", required=True, metavar="NAME", help="the model's name on the server")
    parser.add_argument("--api-key-env", metavar="VARIABLE", help="environment variable that holds the server's key")
    parser.add_argument("--output", type=Path, metavar="FILE", help="default: PROMPTS with .questions.jsonl at its end")
    parser.add_argument("--max-questions", type=int, default=10, metavar="N", help="of a prompt (default %(default)s)")
    parser.add_argument("--parallel", type=int, default=16, metavar="N", help="requests at once (default %(default)s)")
    parser.add_argument("--timeout", type=float, default=120.0, metavar="S", help="of a request (default %(default)s)")
    parser.add_argument("--retries", type=int, default=2, metavar="N", help="of a prompt (default %(default)s)")
    existing = parser.add_mutually_exclusive_group()
    existing.add_argument("--resume", action="store_true", help="go on with an output that an earlier run began")
    existing.add_argument("--overwrite", action="store_true", help="replace an output that exists")
    return parser


def _ask(arguments: argparse.Namespace) -> int:
    if arguments.max_questions < 1 or arguments.parallel < 1 or arguments.retries < 0:
        raise ConfigError("--max-questions and --parallel must be above 0, and --retries not below it")
    check_url(arguments.judge, "--judge", "http://localhost:8000/v1")
    output: Path = arguments.output or arguments.prompts.with_suffix(".questions.jsonl")
    prompts = _read_prompts(arguments.prompts)
    done = _check_output(output, arguments)
    client = ChatClient(
        url=arguments.judge,
        model=arguments.model,
        timeout_s=arguments.timeout,
        retries=arguments.retries,
        backoff_s=1.0,
        settings={"temperature": 0.0, "max_tokens": MAX_TOKENS},
        api_key=read_api_key(arguments.api_key_env, "--api-key-env"),
    )
    missing = [prompt for prompt in prompts if prompt.text not in done]
    with output.open("a" if done else "w", encoding="utf-8") as file:
        num_failed = _write_questions(missing, client, arguments, file)
    print(f"{len(missing) - num_failed} prompts asked, {num_failed} failed, {len(prompts) - len(missing)} done before")
    print(f"questions: {output}")
    return 1 if num_failed else 0


def _read_prompts(path: Path) -> list[Prompt]:
    prompts = []
    for unit, number, record in read_records(path):
        try:
            prompts.append(parse_prompt(record, f"{path.name}:{number}"))
        except BadRecord as error:
            raise DataError(f"{path}: {unit} {number}: {error}") from error
    if not prompts:
        raise DataError(f"{path}: holds no prompts")
    return prompts


def _check_output(output: Path, arguments: argparse.Namespace) -> set[str]:
    """Texts of the prompts that an earlier run has done, with --resume."""
    if output.exists() and output.resolve() == arguments.prompts.resolve():
        raise ConfigError(f"--output {output} is the prompts file itself; name another")
    if not output.exists() or arguments.overwrite:
        return set()
    if not arguments.resume:
        raise ConfigError(f"{output} exists; go on with it by --resume, replace it by --overwrite, or name another")
    return {prompt.text for prompt in _read_prompts(output)} if output.stat().st_size else set()


def _write_questions(prompts: Sequence[Prompt], client: ChatClient, arguments: argparse.Namespace, file: TextIO) -> int:
    """A line a prompt, in order, as they are answered; returns how many failed."""
    num_failed = 0
    with ThreadPoolExecutor(arguments.parallel) as threads:
        answers: Iterator[list[str] | RewardError] = threads.map(
            partial(questions_for, client=client, most=arguments.max_questions, tries=arguments.retries + 1), prompts
        )
        for prompt, questions in zip(prompts, answers, strict=True):
            if isinstance(questions, RewardError):
                num_failed += 1
                print(f"{prompt.prompt_id}: {questions}", file=sys.stderr)
                continue
            asked = replace(prompt, metadata={**prompt.metadata, METADATA_KEY: questions})
            file.write(json.dumps(asked.to_record(), ensure_ascii=False) + "\n")
            file.flush()
    return num_failed


def questions_for(prompt: Prompt, client: ChatClient, most: int, tries: int) -> list[str] | RewardError:
    """The questions of one prompt; one that brings its own keeps them. The last error when no reply can be read."""
    if prompt.metadata.get(METADATA_KEY):
        return list(prompt.metadata[METADATA_KEY])
    question = INSTRUCTION.replace("{most}", str(most)).replace("{prompt}", prompt.text)
    problem = RewardError("was not asked")
    for number in range(tries):
        # At temperature 0 the same request has the same reply.
        again = f"\n\nYour last reply was no such list: {problem}" if number else ""
        try:
            reply = client.ask(question + again, None)
        except RewardError as error:
            return error  # the client has tried again already
        try:
            return read_questions(reply, most)
        except RewardError as error:
            problem = error
    return problem


def read_questions(reply: str, most: int) -> list[str]:
    """The JSON list of texts in a reply, in a code fence or not, each once. Raises RewardError for anything else."""
    fenced = _FENCE.search(reply)
    text = fenced[1] if fenced else reply
    start, end = text.find("["), text.rfind("]")
    try:
        items = json.loads(text[start : end + 1]) if 0 <= start < end else None
    except ValueError as error:
        raise RewardError(f"the reply holds no JSON list: {error}") from error
    if not isinstance(items, list) or not items or not all(isinstance(item, str) and item.strip() for item in items):
        raise RewardError(f"the reply holds no list of texts: {reply[:200]}")
    questions = list(dict.fromkeys(item.strip() for item in items))
    if len(questions) > most:
        raise RewardError(f"the reply holds {len(questions)} questions, more than {most}")
    return questions


if __name__ == "__main__":
    sys.exit(main())
