"""The config reference as Markdown, made from the pydantic tree: every field with type, default, meaning, constraint.

    RunConfig ─► sections in order, each with its docstring ─► one table row a field

Nothing is written here by hand that the schema says already, so the page cannot differ from it.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin

import annotated_types
from pydantic import BaseModel
from pydantic.fields import FieldInfo

from configs.schema import RunConfig
from configs.worker_sections import PoolSize

INTRODUCTION = """\
# Config reference

A config is one YAML file with the sections below. Only `model`, `data` and `rewards` must be there; every other field
has the default that is shown. A config is checked before anything starts: unknown keys, wrong types, values out of
range and combinations that cannot work are refused with the field, the value and the remedy.

- `--set section.field=value` changes one field on the command line; the value is YAML. A reward is named by its name:
  `--set rewards.hps.weight=0.5`.
- `--dry-run` prints the resolved config, with every default written out.
- Units are in the names: `_s` seconds, `_ms` milliseconds, `_mb` 2^20 bytes, `_gib` 2^30 bytes.
- A field that a resumed run may change is marked *resume*; see [Failures and recovery](../failures.md#resume).

This page is generated from `configs/schema.py` when the site is built.
"""
SCALARS = {str: "text", int: "integer", float: "number", bool: "true or false", NoneType: "null", Any: "anything"}


def config_reference() -> str:
    """The page's whole Markdown."""
    parts = [INTRODUCTION, '<div class="reference" markdown>', ""]
    for name, field in RunConfig.model_fields.items():
        section, is_list = section_of(field.annotation)
        assert section is not None, f"RunConfig.{name} is no section"
        parts.extend(_describe_section(f"{name}[]" if is_list else name, section, field, level=2))
    return "\n".join([*parts, "</div>", ""])


def field_paths() -> set[str]:
    """Every dotted path of the config: `rollout.num_workers`, `rewards[].weight`, `model.tiny.seed`, sections too."""
    paths: set[str] = set()

    def visit(prefix: str, model: type[BaseModel]) -> None:
        for name, field in model.model_fields.items():
            section, is_list = section_of(field.annotation)
            path = f"{prefix}{name}"
            paths.update({path, f"{path}[]"} if is_list else {path})
            if section is not None:
                visit(f"{path}[]." if is_list else f"{inside(path, field)}.", section)

    visit("", RunConfig)
    return paths


def section_of(annotation: Any) -> tuple[type[BaseModel] | None, bool]:
    """The section inside `Section | None`, `Annotated[…]`, `dict[str, Section]` or `tuple[Section, ...]`, and whether
    it is a list."""
    origin = get_origin(annotation)
    if origin is Annotated:
        return section_of(get_args(annotation)[0])
    if origin in (Union, UnionType, tuple, list, dict):
        for inner in get_args(annotation):
            section, _ = section_of(inner)
            if section is not None:
                return section, origin in (tuple, list)
        return None, False
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation, False
    return None, False


def inside(path: str, field: FieldInfo) -> str:
    """Where the fields of a section are: of a mapping under each of its names."""
    return f"{path}.NAME" if get_origin(field.annotation) is dict else path


def _describe_section(path: str, section: type[BaseModel], field: FieldInfo, level: int) -> Iterator[str]:
    yield f"{'#' * level} `{path}` {{ #{anchor(path.removesuffix('.NAME'))} }}"
    yield ""
    yield " ".join((section.__doc__ or "").split("\n\n")[0].split())
    if NoneType in get_args(field.annotation):
        yield ""
        yield "The section may be left out."
    yield ""
    yield "| field | type | default | meaning | constraint |"
    yield "|---|---|---|---|---|"
    nested: list[tuple[str, type[BaseModel], FieldInfo]] = []
    for name, inner in section.model_fields.items():
        inner_section, _ = section_of(inner.annotation)
        own_page_part = inner_section is not None and inner_section is not PoolSize
        yield _row(f"{path}.{name}", name, inner, inner_section if own_page_part else None)
        if own_page_part and inner_section is not None:
            nested.append((inside(f"{path}.{name}", inner), inner_section, inner))
    yield ""
    for inner_path, inner_section, inner in nested:
        yield from _describe_section(inner_path, inner_section, inner, level + 1)


def _row(path: str, name: str, field: FieldInfo, section: type[BaseModel] | None) -> str:
    target = anchor(path)
    if section is not None:
        label = f"[`{name}`](#{target})"
        kind = "section" if inside(path, field) == path else "mapping of names to sections"
    else:
        label = f"`{name}`{{ #{target} }}"
        kind = type_text(field.annotation)
    meaning = (field.description or "").strip()
    if _may_change_on_resume(path):
        meaning = f"{meaning} *resume*" if meaning else "*resume*"
    cells = (label, kind, _default(field), meaning, "; ".join(_constraints(field)))
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"


def anchor(path: str) -> str:
    """The id of a section or field on the page: `rewards[].weight` becomes `rewards-weight`."""
    return re.sub(r"[^a-z0-9]+", "-", path.lower()).strip("-")


def type_text(annotation: Any) -> str:
    """A type in the words of a YAML file."""
    if annotation in SCALARS:
        return SCALARS[annotation]
    origin, inner = get_origin(annotation), get_args(annotation)
    if section_of(annotation)[0] is PoolSize:
        return "integer, or `{min, max}`"
    if origin is Annotated:
        return type_text(inner[0])
    if origin is Literal:
        return ", ".join(f"`{value}`" for value in inner)
    if origin in (Union, UnionType):
        return " or ".join(type_text(option) for option in sorted(inner, key=lambda option: option is NoneType))
    if origin is tuple and len(inner) == 2 and inner[1] is Ellipsis:
        return f"list of {type_text(inner[0])}"
    if origin is tuple:
        return f"[{', '.join(type_text(option) for option in inner)}]"
    if origin in (dict, Mapping):
        return f"mapping of {type_text(inner[0])} to {type_text(inner[1])}"
    raise TypeError(f"the config reference has no words for the type {annotation!r}; add them to type_text")


def _default(field: FieldInfo) -> str:
    if field.is_required():
        return "**required**"
    value = field.get_default(call_default_factory=True)
    if isinstance(value, PoolSize):
        return f"`{value.min}`" if not value.is_elastic else f"`{{min: {value.min}, max: {value.max}}}`"
    if isinstance(value, BaseModel):
        return "its defaults"
    if isinstance(value, float):
        return f"`{value:g}`"
    if isinstance(value, str):
        return f"`{value}`"
    return f"`{json.dumps(value)}`"


def _constraints(field: FieldInfo) -> Iterator[str]:
    for item in field.metadata:
        match item:
            case annotated_types.Ge(ge=least):
                yield f"≥ {least}"
            case annotated_types.Gt(gt=least):
                yield f"> {least}"
            case annotated_types.Le(le=most):
                yield f"≤ {most}"
            case annotated_types.Lt(lt=most):
                yield f"< {most}"
            case annotated_types.MultipleOf(multiple_of=unit):
                yield f"a multiple of {unit}"
            case annotated_types.MinLen(min_length=least):
                yield "not empty" if least == 1 else f"at least {least} long"
            case annotated_types.MaxLen(max_length=most):
                yield f"at most {most} long"
            case _ if getattr(item, "pattern", None):
                yield f"matches `{item.pattern}`"


def _may_change_on_resume(path: str) -> bool:
    from fnmatch import fnmatchcase

    from configs.resume import MAY_CHANGE

    dotted = path.replace("[]", ".NAME")
    return any(fnmatchcase(dotted, pattern) for pattern in MAY_CHANGE)
