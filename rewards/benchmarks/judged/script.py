"""What an official script says to its judge, read from the user's copy of it and never run.

    script ─► the first list of messages ({"role": …, "content": …}) ─► its literals, with names put in

bicot ships no judge's text: two of the benchmarks have no licence that allows it, and a copy could only grow old.
"""

from __future__ import annotations

import ast
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from configs.errors import DataError


class OfficialScript:
    """The messages of one script. Raises DataError when there are none in it, or they are no plain literals."""

    def __init__(self, path: Path, function: str | None = None) -> None:
        """function: whose messages; None: the first ones of the script."""
        try:
            tree = ast.parse(path.read_text(encoding="utf-8"), str(path))
        except (OSError, UnicodeDecodeError, SyntaxError) as error:
            raise DataError(f"{path} cannot be read: {error}") from error
        self._path = path
        self._constants = {
            ast.unparse(target): node.value.value
            for node in (*tree.body, *_own_attributes(tree))
            if isinstance(node, ast.Assign) and isinstance(node.value, ast.Constant)
            for target in node.targets
            if isinstance(target, ast.Name | ast.Attribute)
        }
        within = (node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef) and node.name == function)
        searched = tree if function is None else next(within, ast.Module(body=[], type_ignores=[]))
        found = next((node for node in ast.walk(searched) if _is_messages(node)), None)
        if found is None:
            raise DataError(f"{path} holds no messages to a judge; is it the official script?")
        self._messages = found

    def messages(self, values: Mapping[str, Any]) -> list[dict[str, Any]]:
        """The messages with values for the names in them. Raises DataError for a name that is not there."""
        read: list[dict[str, Any]] = self._value(self._messages, values)
        return read

    def _value(self, node: ast.AST, values: Mapping[str, Any]) -> Any:
        match node:
            case ast.Constant():
                return node.value
            case ast.List():
                return [self._value(item, values) for item in node.elts]
            case ast.Dict():
                return {
                    self._value(key, values): self._value(value, values)
                    for key, value in zip(node.keys, node.values, strict=True)
                    if key is not None
                }
            case ast.JoinedStr():
                return "".join(str(self._value(part, values)) for part in node.values)
            case ast.FormattedValue(value=inner, conversion=-1, format_spec=None):
                return self._value(inner, values)
            case ast.Name() if node.id in values or node.id in self._constants:
                return values[node.id] if node.id in values else self._constants[node.id]
            case ast.Attribute() if ast.unparse(node) in self._constants:
                return self._constants[ast.unparse(node)]
            case ast.Subscript(value=ast.Name(id=name), slice=ast.Constant(value=field)) if field in values.get(
                name, ()
            ):
                return values[name][field]
        line = getattr(node, "lineno", 0)
        raise DataError(f"{self._path}:{line}: {ast.unparse(node)[:80]} is not understood; is it the official script?")


def _own_attributes(tree: ast.Module) -> list[ast.Assign]:
    """Assignments to self.NAME."""
    return [
        node
        for node in ast.walk(tree)
        if isinstance(node, ast.Assign) and any(ast.unparse(target).startswith("self.") for target in node.targets)
    ]


def _is_messages(node: ast.AST) -> bool:
    """A list of dicts that all have a role."""
    return (
        isinstance(node, ast.List)
        and bool(node.elts)
        and all(
            isinstance(item, ast.Dict)
            and any(isinstance(key, ast.Constant) and key.value == "role" for key in item.keys)
            for item in node.elts
        )
    )
