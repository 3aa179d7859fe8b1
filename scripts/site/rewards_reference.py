"""The rewards reference as Markdown: every registered reward with its options, read from the sources.

The sources are parsed and not imported, because importing them loads PyTorch and transformers.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from rewards.registry import REGISTERED

ROOT = Path(__file__).resolve().parents[2]
INTRODUCTION = """\
# Rewards reference

Every reward that is shipped, with the options that `rewards[].options` takes. [Rewards](../rewards.md) says what each
one judges, and under which licence its weights are.

This page is generated from the rewards' own code when the site is built.
"""


@dataclass(frozen=True, slots=True)
class Option:
    """One keyword argument of a reward's class."""

    name: str
    type_text: str
    default: str | None
    """As Python writes it; None: it must be given."""


def rewards_reference() -> str:
    """The page's whole Markdown."""
    return "\n".join(
        [
            INTRODUCTION,
            '<div class="reference" markdown>',
            "",
            *(line for name, path in REGISTERED.items() for line in _describe(name, path)),
            "</div>",
            "",
        ]
    )


def options_of(path: str) -> tuple[str, list[Option]]:
    """Docstring and options of the reward at `module:Class`; `device` is left out, which the pool gives."""
    module_name, _, class_name = path.partition(":")
    module = _parse(module_name)
    node = next(item for item in module.body if isinstance(item, ast.ClassDef) and item.name == class_name)
    constants = _constants(module)
    init = next((item for item in node.body if isinstance(item, ast.FunctionDef) and item.name == "__init__"), None)
    if init is None:
        return ast.get_docstring(node) or "", []
    arguments = init.args.args[1:]
    defaults: list[ast.expr | None] = [None] * (len(arguments) - len(init.args.defaults)) + list(init.args.defaults)
    options = [
        Option(
            argument.arg,
            "" if argument.annotation is None else ast.unparse(argument.annotation),
            None if default is None else _shown(default, constants),
        )
        for argument, default in zip(arguments, defaults, strict=True)
        if argument.arg != "device"
    ]
    return ast.get_docstring(node) or "", options


def _shown(default: ast.expr, constants: dict[str, object]) -> str:
    """A default's value, or how the source writes one that is worked out when it is imported."""
    try:
        return repr(_value(default, constants))
    except ValueError:
        return ast.unparse(default)


def _describe(name: str, path: str) -> Iterator[str]:
    docstring, options = options_of(path)
    yield from (f"## `{name}` {{ #{name.replace('_', '-')} }}", "", docstring, "", f"Class: `{path}`", "")
    if options:
        yield from ("| option | type | default |", "|---|---|---|")
        for option in options:
            default = "**required**" if option.default is None else f"`{option.default}`"
            cells = (f"`{option.name}`", f"`{option.type_text}`", default)
            yield "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"
        yield ""


def _parse(module_name: str) -> ast.Module:
    folder = ROOT.joinpath(*module_name.split("."))
    path = folder / "__init__.py" if folder.is_dir() else folder.with_suffix(".py")
    return ast.parse(path.read_text(encoding="utf-8"), str(path))


def _constants(module: ast.Module) -> dict[str, object]:
    """Constants of a module whose values can be read off, and those that it imports from others of this repository."""
    found: dict[str, object] = {}
    for item in module.body:
        if isinstance(item, ast.ImportFrom) and item.module and item.module.startswith("rewards."):
            theirs = _constants(_parse(item.module))
            found.update(
                {alias.asname or alias.name: theirs[alias.name] for alias in item.names if alias.name in theirs}
            )
        elif isinstance(item, ast.Assign | ast.AnnAssign) and item.value is not None:
            try:
                value = _value(item.value, found)
            except ValueError:
                continue  # worked out when it is imported, and so no value that could be shown
            for target in item.targets if isinstance(item, ast.Assign) else [item.target]:
                found.update(_names_of(target, value))
    return found


def _names_of(target: ast.expr, value: object) -> dict[str, object]:
    """What an assignment gives to each name: `A = 1`, and `A, B = 1, 2`."""
    if isinstance(target, ast.Name):
        return {target.id: value}
    if isinstance(target, ast.Tuple) and isinstance(value, tuple):
        pairs = zip(target.elts, value, strict=True)
        return {name.id: part for name, part in pairs if isinstance(name, ast.Name)}
    return {}


def _value(node: ast.expr, constants: dict[str, object]) -> object:
    """What an expression of literals, constants and tuples of them is. Raises ValueError for any other."""
    if isinstance(node, ast.Name):
        if node.id not in constants:
            raise ValueError(f"{node.id} is not a constant that can be read off")
        return constants[node.id]
    if isinstance(node, ast.Tuple):
        return tuple(_value(element, constants) for element in node.elts)
    return ast.literal_eval(node)
