"""Command lines of documents, parsed as the command itself would, against today's parsers and schema."""

from __future__ import annotations

import argparse
import re
import shlex
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from configs.errors import ConfigError
from configs.load import load_config
from configs.resume import load_resumed_config
from rewards.scoring import choose_rewards
from scripts.site.commands_reference import COMMANDS, command_module
from tests.unit.docs.documents import ROOT

CONFIGS = [ROOT / "configs" / f"{name}.yaml" for name in ("shapes_cpu", "janus_pro_7b_8gpu", "janus_pro_7b_cluster")]
"""A `--set` that stands alone must fit one of these."""
PYTHONS = ("python", ".venv/bin/python")
OTHER_MODULES = ("pytest", "mkdocs", "scripts.draw_shown_prompts", "scripts.score_tiny_janus")
OTHER_PROGRAMS = ("ray", "export", "pip", "vllm", ".venv/bin/pre-commit", ".venv/bin/uv")
PROGRAMS_OF_CLOUDS = ("aws", "az", "docker", "gcloud", "helm", "kubectl", "sbatch", "sky")
"""Of them only that they run a command of ours can be checked."""
MAKE_VARIABLES = ("ARGS", "CONFIG", "EXTRA", "PYTHON", "PIP_FIND_LINKS")
COMMAND_OF_TARGET: Mapping[str, str] = {"train": "cluster.launch", "bench": "cluster.bench"}
PLACEHOLDERS: Mapping[str, str] = {"NAME": "phases", "N": "1"}
"""What a word in capitals stands for where the parser takes no word of that kind."""
ELLIPSIS = "…"


def command_lines(script: str) -> Iterator[list[str]]:
    """The commands of a shell script as words: continued lines joined, comments left out."""
    for line in script.replace("\\\n", " ").splitlines():
        words = shlex.split(line, comments=True)
        if words:
            yield words


def check_command(words: Sequence[str]) -> None:
    """Raises AssertionError or ConfigError for a command line that would be refused today."""
    if "--" in words and words[0] == "ray":
        check_command(words[words.index("--") + 1 :])
        return
    while words and re.match(r"^[A-Z_]+=", words[0]):  # variables of this command alone
        words = words[1:]
    if not words:  # variables of the lines below
        return
    program = words[0]
    if program in PROGRAMS_OF_CLOUDS:
        if "python" in words:
            check_command(words[words.index("python") :])
    elif program == "make":
        _check_make(words[1:])
    elif program in PYTHONS:
        _check_python(words[1:])
    else:
        assert program in OTHER_PROGRAMS, f"nobody knows how to check the program '{program}'"


def check_overrides(overrides: Sequence[str]) -> None:
    """Raises ConfigError for the overrides of a `--set` or of several that fit none of the shipped configs."""
    filled = [override.replace(ELLIPSIS, "redis://host:6379/0") for override in overrides]
    fault: ConfigError | None = None
    for config in CONFIGS:
        try:
            load_config(config, filled)
            return
        except ConfigError as error:
            fault = error
    assert fault is not None
    raise fault


def make_targets() -> set[str]:
    """The targets that `make` lists."""
    return set(re.findall(r"^([a-z-]+):.*## ", (ROOT / "Makefile").read_text(encoding="utf-8"), re.M))


def _check_make(words: Sequence[str]) -> None:
    assignments = dict(word.split("=", 1) for word in words if "=" in word)
    targets = [word for word in words if "=" not in word]
    unknown = set(targets) - make_targets()
    assert not unknown, f"the Makefile has no target {unknown}"
    assert set(assignments) <= set(MAKE_VARIABLES), f"the Makefile reads none of {set(assignments)}"
    for target in targets:
        if target in COMMAND_OF_TARGET and "ARGS" in assignments:
            _check_module(COMMAND_OF_TARGET[target], shlex.split(assignments["ARGS"]))


def _check_python(words: Sequence[str]) -> None:
    assert words[:1] == ["-m"], f"only modules are run in documents, not {words}"
    module, arguments = words[1], words[2:]
    if module not in OTHER_MODULES:
        assert module in COMMANDS, f"{module} is no command"
        _check_module(module, arguments)


def _check_module(module: str, arguments: Sequence[str]) -> None:
    options = parse(module, [_filled(word) for word in arguments])
    overrides: list[str] = getattr(options, "set", [])
    if module in ("rewards.score", "rewards.best_of") and overrides:  # options of rewards, and not of a run's config
        choose_rewards(options.rewards, options.config, overrides)
        return
    config = getattr(options, "config", None)
    if getattr(options, "resume", None):
        load_resumed_config(CONFIGS[0], overrides)
    elif config is not None and (ROOT / config).is_file():
        load_config(ROOT / config, overrides)
    else:  # a config of the reader's own
        assert config is None or Path(config).name.startswith("my_"), f"there is no {config}"
        check_overrides(overrides)


def _filled(word: str) -> str:
    """`seed=1` for `seed=N`, a word that stands for any other by one of its kind."""
    field, separator, value = word.rpartition("=")
    return f"{field}{separator}{PLACEHOLDERS.get(value, value)}"


def parse(module: str, arguments: Sequence[str]) -> argparse.Namespace:
    """The options of a command. Raises AssertionError with what its parser says of wrong ones."""
    code = command_module(module)
    # `parse_arguments` checks more than argparse can; with --gpu also what the machine has, which is no matter here.
    has_more_checks = hasattr(code, "parse_arguments") and "--gpu" not in arguments
    try:
        options: argparse.Namespace = (
            code.parse_arguments(arguments) if has_more_checks else code.build_parser().parse_args(arguments)
        )
    except SystemExit:
        raise AssertionError(f"python -m {module} refuses {list(arguments)}; what it said is on stderr") from None
    return options
