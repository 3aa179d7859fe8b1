"""From a YAML file and `--set` overrides to a checked RunConfig, and back to text.

    YAML file ─► plain tree ─► overrides applied ─► RunConfig

Every fault on the way is a ConfigError.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, get_args

import yaml
from pydantic import BaseModel, ValidationError

from configs.errors import ConfigError
from configs.schema import RewardConfig, RunConfig

DEFAULT_CONFIG = "configs/shapes_cpu.yaml"
"""What a command takes that is not given a config."""
MASK = "***"
_SECRET_KEY = re.compile(r"(password|secret|token|api_key)$", re.IGNORECASE)


class _Loader(yaml.SafeLoader):
    """PyYAML's safe loader with `2e-6` as a number (YAML 1.2), and no key twice in a section."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen: set[str] = set()
        for key_node in (key for key, _ in node.value if isinstance(key, yaml.ScalarNode)):
            if key_node.value in seen:
                raise yaml.constructor.ConstructorError(
                    None, None, f"the key '{key_node.value}' stands here twice; remove one", key_node.start_mark
                )
            seen.add(key_node.value)
        return super().construct_mapping(node, deep)


# YAML 1.1, which PyYAML follows, wants a dot and a sign: it reads 2e-6 as a string.
_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"^[-+]?[0-9]+(\.[0-9]*)?[eE][-+]?[0-9]+$"), list("-+0123456789")
)


def load_config(path: str | Path, overrides: Sequence[str] = ()) -> RunConfig:
    """Read a config file, apply overrides such as `learner.lr=2e-6`, and check the result.

    An override's value is YAML. Elements of `rewards` are named by name or by place:
    `rewards.shapes.weight=0.5`, `rewards.0.weight=0.5`.

    Raises ConfigError, which lists every wrong field with its value and what is wrong with it.
    """
    tree = _read_tree(Path(path))
    for override in overrides:
        _apply_override(tree, override)
    try:
        return RunConfig.model_validate(tree)
    except ValidationError as error:
        faults = "\n".join(f"  {line}" for line in _describe_faults(error, tree))
        raise ConfigError(f"{path}: the config is wrong\n{faults}") from None


def load_rewards(path: str | Path) -> tuple[RewardConfig, ...]:
    """The rewards of a config file, which may hold nothing else. Raises ConfigError as `load_config`."""
    tree = _read_tree(Path(path))
    if tree.keys() != {"rewards"}:
        return load_config(path).rewards
    around = {"model": {"path": "any/model", "dtype": "float32"}, "data": {"train": "any.txt"}}
    try:
        return RunConfig.model_validate({**around, **tree}).rewards
    except ValidationError as error:
        faults = "\n".join(f"  {line}" for line in _describe_faults(error, tree))
        raise ConfigError(f"{path}: the config is wrong\n{faults}") from None


def parse_value(text: str, source: str) -> Any:
    """A value as YAML has it, with 2e-6 as a number. Raises ConfigError, naming the source."""
    return _parse_yaml(text, source)


def dump_config(config: RunConfig) -> str:
    """The resolved config as YAML, every default written out, secrets as `***`."""
    tree = _mask_secrets(config.model_dump(mode="json"))
    if config.registry.redis_url is not None:
        tree["registry"]["redis_url"] = mask_url(config.registry.redis_url)
    return yaml.safe_dump(tree, sort_keys=False, allow_unicode=True, width=120)


def mask_url(url: str) -> str:
    """`redis://user:***@host:6379` for `redis://user:secret@host:6379`; also `?password=`."""
    url = re.sub(r"(://[^:/@]*:).*(@)", rf"\g<1>{MASK}\g<2>", url)
    return re.sub(r"([?&]password=)[^&]*", rf"\g<1>{MASK}", url)


def _read_tree(path: Path) -> dict[str, Any]:
    try:
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise ConfigError(f"{path}: cannot read the config file: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path}: not UTF-8 text, at byte {error.start}; convert the file to UTF-8") from error
    tree = _parse_yaml(text, str(path))
    if not isinstance(tree, dict):
        raise ConfigError(f"{path}: expected sections such as 'model:' and 'data:', found {_show(tree)}")
    return tree


def _parse_yaml(text: str, source: str) -> Any:
    try:
        return yaml.load(text, _Loader)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        place = f"{source}:{mark.line + 1}:{mark.column + 1}" if mark else source
        raise ConfigError(f"{place}: broken YAML: {error.problem or error.context}") from error
    except yaml.YAMLError as error:
        raise ConfigError(f"{source}: broken YAML: {error}") from error


def _apply_override(tree: dict[str, Any], override: str) -> None:
    dotted, separator, text = override.partition("=")
    steps = dotted.strip().split(".")
    if not separator or not all(steps):
        raise ConfigError(f"--set {override}: expected path.to.field=value, such as learner.lr=2e-6")
    value = _parse_yaml(text, f"--set {override}")
    node: Any = tree
    for depth, step in enumerate(steps[:-1]):
        node = _descend(node, step, override, ".".join(steps[:depth]))
    if isinstance(node, list):
        node[_element(node, steps[-1], override)] = value
    elif isinstance(node, dict):
        node[steps[-1]] = value
    else:
        raise ConfigError(f"--set {override}: {'.'.join(steps[:-1])} is {_show(node)}, which has no fields")


def _descend(node: Any, step: str, override: str, parent: str) -> Any:
    """The child `step` of `node`; a section that the file leaves out is made, since its defaults hold."""
    if isinstance(node, list):
        return node[_element(node, step, override)]
    if not isinstance(node, dict):
        raise ConfigError(f"--set {override}: {parent} is {_show(node)}, which has no fields")
    if node.get(step) is None:
        node[step] = {}
    return node[step]


def _element(elements: list[Any], step: str, override: str) -> int:
    names = [element.get("name") if isinstance(element, dict) else None for element in elements]
    if step in names:
        return names.index(step)
    if step.isdecimal() and int(step) < len(elements):
        return int(step)
    known = ", ".join(str(name) for name in names if name is not None)
    raise ConfigError(
        f"--set {override}: there is no element '{step}'; use one of {known}, or 0 to {len(elements) - 1}"
    )


def _describe_faults(error: ValidationError, tree: Mapping[str, Any]) -> list[str]:
    lines = []
    for fault in error.errors(include_url=False):
        location, kind = fault["loc"], fault["type"]
        field = _dotted(location, tree)
        if kind == "extra_forbidden":
            lines.append(f"{field} = {_show(fault['input'])}: unknown key{_suggest(location)}")
        elif kind == "missing":
            lines.append(f"{field}: missing; add it")
        elif kind == "value_error" and isinstance(fault["input"], Mapping | BaseModel):
            lines.append(f"{field}: {fault['ctx']['error']}" if field else str(fault["ctx"]["error"]))
        else:
            message = fault["msg"].removeprefix("Value error, ")
            lines.append(f"{field} = {_show(fault['input'])}: {message}")
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
    return ".".join(steps)


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


def _mask_secrets(node: Any) -> Any:
    if isinstance(node, dict):
        return {
            key: MASK if isinstance(value, str) and _SECRET_KEY.search(str(key)) else _mask_secrets(value)
            for key, value in node.items()
        }
    if isinstance(node, list):
        return [_mask_secrets(value) for value in node]
    return node
