"""From a YAML file and `--set` overrides to a checked RunConfig, and back to text.

    YAML file ─► plain tree ─► overrides applied ─► RunConfig

Every fault on the way is a ConfigError.
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, get_args

from pydantic import BaseModel, ValidationError

from configs.errors import ConfigError
from configs.local.masking import mask, mask_at
from configs.schema import RewardConfig, RunConfig
from configs.yaml_text import dump_yaml, parse_yaml, parse_yaml_value

DEFAULT_CONFIG = str(Path(__file__).with_name("shapes_cpu.yaml"))
"""What a command takes that is not given a config, wherever it is started."""


def load_config(path: str | Path, overrides: Sequence[str] = ()) -> RunConfig:
    """Read a config file, apply overrides such as `learner.lr=2e-6`, and check the result.

    An override's value is YAML. Elements of `rewards` are named by name or by place:
    `rewards.shapes.weight=0.5`, `rewards.0.weight=0.5`.

    Raises ConfigError, which lists every wrong field with its value and what is wrong with it.
    """
    tree = _read_tree(Path(path))
    for override in overrides:
        _apply_override(tree, override)
    return config_from_tree(tree, str(path))


def config_from_tree(tree: Mapping[str, Any], source: str) -> RunConfig:
    """Check plain data as a config; `source` is what the message begins with. Raises ConfigError as `load_config`."""
    try:
        return RunConfig.model_validate(tree)
    except ValidationError as error:
        faults = "\n".join(f"  {line}" for line in _describe_faults(error, tree))
        raise ConfigError(f"{source}: the config is wrong\n{faults}") from None
    except UnicodeEncodeError as error:  # pydantic's own, of a key that it wants to name
        raise ConfigError(f"{source}: a name in the config is no text: {error}") from None


def load_rewards(path: str | Path) -> tuple[RewardConfig, ...]:
    """The rewards of a config file, which may hold nothing else. Raises ConfigError as `load_config`."""
    tree = _read_tree(Path(path))
    if tree.keys() != {"rewards"}:
        return load_config(path).rewards
    around = {"model": {"path": "any/model", "dtype": "float32"}, "data": {"train": "any.txt"}}
    return config_from_tree({**around, **tree}, str(path)).rewards


def dump_config(config: RunConfig) -> str:
    """The resolved config as YAML, every default written out, secrets as `***`."""
    return dump_yaml(mask(config.model_dump(mode="json")))


def _read_tree(path: Path) -> dict[str, Any]:
    try:
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise ConfigError(f"{path}: cannot read the config file: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path}: not UTF-8 text, at byte {error.start}; convert the file to UTF-8") from error
    except ValueError as error:  # a NUL in the path
        raise ConfigError(f"{str(path)!r}: cannot read the config file: {error}") from error
    tree = parse_yaml(text, str(path))
    if not isinstance(tree, dict):
        raise ConfigError(f"{path}: expected sections such as 'model:' and 'data:', found {_show(tree)}")
    return tree


def _apply_override(tree: dict[str, Any], override: str) -> None:
    dotted, separator, text = override.partition("=")
    steps = dotted.strip().split(".")
    if not separator or not all(steps):
        raise ConfigError(f"--set {override}: expected path.to.field=value, such as learner.lr=2e-6")
    value = parse_yaml_value(text, f"--set {override}")
    node: Any = tree
    done = 0
    while True:
        if not isinstance(node, dict | list):
            raise ConfigError(f"--set {override}: {'.'.join(steps[:done])} is {_show(node)}, which has no fields")
        key, num_steps = _key(node, steps[done:], override)
        done += num_steps
        if done == len(steps):
            node[key] = value
            return
        if isinstance(node, dict) and node.get(key) is None:
            node[key] = {}  # a section that the file leaves out is made, since its defaults hold
        node = node[key]


def _key(node: dict[str, Any] | list[Any], steps: Sequence[str], override: str) -> tuple[Any, int]:
    """Key or index of the child that the first of `steps` name, and how many: a child's name may hold dots."""
    names: list[Any] = list(node)
    if isinstance(node, list):
        names = [element.get("name") if isinstance(element, dict) else None for element in node]
    for num_steps in range(len(steps), 0, -1):
        if (name := ".".join(steps[:num_steps])) in names:
            return names.index(name) if isinstance(node, list) else name, num_steps
    if isinstance(node, dict):
        return steps[0], 1
    if steps[0].isdecimal() and int(steps[0][:9]) < len(node):
        return int(steps[0]), 1
    known = [str(name) for name in names if name is not None]
    remedy = f"use one of {', '.join(known)}, or 0 to {len(node) - 1}" if node else "the list is empty"
    raise ConfigError(f"--set {override}: there is no element '{steps[0]}'; {remedy}")


def _describe_faults(error: ValidationError, tree: Mapping[str, Any]) -> list[str]:
    lines = []
    for fault in error.errors(include_url=False):
        location, kind = fault["loc"], fault["type"]
        field = _dotted(location, tree)
        if kind == "extra_forbidden":
            lines.append(f"{field} = {_show(mask_at(location, fault['input']))}: unknown key{_suggest(location)}")
        elif kind == "missing":
            lines.append(f"{field}: missing; add it")
        elif kind == "value_error" and isinstance(fault["input"], Mapping | BaseModel):
            lines.append(f"{field}: {fault['ctx']['error']}" if field else str(fault["ctx"]["error"]))
        else:
            message = fault["msg"].removeprefix("Value error, ")
            lines.append(f"{field} = {_show(mask_at(location, fault['input']))}: {message}")
    return lines


def _dotted(location: tuple[int | str, ...], tree: Mapping[str, Any]) -> str:
    """`rewards.shapes.weight` for ("rewards", 0, "weight")."""
    steps: list[str] = []
    node: Any = tree
    for step in location:
        try:
            node = node[step]
        except (KeyError, IndexError, TypeError):
            node = None
        named = isinstance(step, int) and isinstance(node, Mapping) and "name" in node
        steps.append(str(node["name"] if named else step))
    return ".".join(steps).encode(errors="backslashreplace").decode()  # a key may be no text that a screen can show


def _suggest(location: tuple[int | str, ...]) -> str:
    """What the unknown key at `location` was probably meant to be."""
    section: type[BaseModel] | None = RunConfig
    for step in location[:-1]:
        if section is not None and isinstance(step, str):
            section = _section_class(section.model_fields[step].annotation)
    if section is None:
        return ""
    close = difflib.get_close_matches(str(location[-1]), section.model_fields, n=1)
    if close:
        return f"; did you mean '{close[0]}'?"
    return f"; known are {', '.join(section.model_fields)}"


def _section_class(annotation: Any) -> type[BaseModel] | None:
    """The section inside `Section`, `Section | None` or `tuple[Section, ...]`."""
    for candidate in (annotation, *get_args(annotation)):
        if isinstance(candidate, type) and issubclass(candidate, BaseModel):
            return candidate
    return None


def _show(value: Any) -> str:
    text = "null" if value is None else repr(value)
    return text if len(text) <= 80 else f"{text[:77]}..."
