"""YAML as configs use it: plain data in and out, and what is written is read back as what it was.

Numbers, truth values and null are spelled as in YAML 1.2's core schema, so that `2e-6` is a number, and `on`,
`10:30` and `1_000` are texts. Tags (`!!…`) and values that hold themselves are refused; every fault is a ConfigError.
"""

from __future__ import annotations

import re
from typing import Any, Final

import yaml

from configs.errors import ConfigError

MAX_DEPTH: Final = 50
"""Of sections in sections."""
MAX_VALUES: Final = 100_000
"""In one file, anchors counted as often as they are used."""

MAX_DIGITS: Final = 40

_TAG: Final = "tag:yaml.org,2002:"
_FORMS: Final = (
    ("null", r"^(~|null|Null|NULL|)$", ["~", "n", "N", ""]),
    ("bool", r"^(true|True|TRUE|false|False|FALSE)$", list("tTfF")),
    ("int", r"^([-+]?[0-9]+|0o[0-7]+|0x[0-9a-fA-F]+)$", list("-+0123456789")),
    (
        "float",
        r"^([-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?|[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN))$",
        list("-+.0123456789"),
    ),
    ("merge", r"^<<$", ["<"]),
)
"""YAML 1.2.2, section 10.3.2: what a text without quotes stands for, by its first character."""
# Of PyYAML's constructors, for texts that its own scanner lets through.
_FAULTS_OF_PYYAML: Final = (ValueError, TypeError, LookupError, AttributeError, OverflowError)


class _Loader(yaml.SafeLoader):
    """PyYAML's safe loader without tags, with YAML 1.2's numbers, and with no key twice in a section."""

    def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node | None:
        parser: Any = self  # types-PyYAML leaves its methods untyped
        event = parser.peek_event()
        if getattr(event, "tag", None) is not None:
            raise yaml.composer.ComposerError(
                None, None, f"the tag {event.tag} is not understood here; leave it out", event.start_mark
            )
        return super().compose_node(parent, index)

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen: set[str] = set()
        for key_node in (key for key, _ in node.value if isinstance(key, yaml.ScalarNode)):
            if key_node.value in seen:
                raise yaml.constructor.ConstructorError(
                    None, None, f"the key '{key_node.value}' stands here twice; remove one", key_node.start_mark
                )
            seen.add(key_node.value)
        return super().construct_mapping(node, deep)

    def construct_scalar(self, node: yaml.ScalarNode | yaml.MappingNode) -> Any:
        value = super().construct_scalar(node)
        if isinstance(value, str) and (bad := re.search("[\0\ud800-\udfff]", value)):
            raise yaml.constructor.ConstructorError(
                None, None, f"the character U+{ord(bad[0]):04X} cannot stand in a text; remove it", node.start_mark
            )
        return value

    def construct_yaml_int(self, node: yaml.ScalarNode) -> int:
        text = str(self.construct_scalar(node))
        base = {"0o": 8, "0x": 16}.get(text[:2], 10)
        # Python refuses to read or show integers of some thousand digits, and nothing here takes more than 64 bits.
        value = int(text, base) if len(text) <= MAX_DIGITS else 2**63
        if not -(2**63) <= value < 2**63:
            shown = text if len(text) <= MAX_DIGITS else f"{text[:MAX_DIGITS]}…"
            raise yaml.constructor.ConstructorError(
                None, None, f"the number {shown} does not fit 64 bits; write a smaller one", node.start_mark
            )
        return value


_Loader.add_constructor(f"{_TAG}int", _Loader.construct_yaml_int)
_Loader.yaml_implicit_resolvers = {}
for _name, _pattern, _first in _FORMS:
    _Loader.add_implicit_resolver(_TAG + _name, re.compile(_pattern), _first)


class _Dumper(yaml.SafeDumper):
    """PyYAML's safe dumper, which quotes what `_Loader`, or a YAML 1.1 reader, would take for something else."""

    yaml_implicit_resolvers = _Loader.yaml_implicit_resolvers
    _yaml_1_1: Any = yaml.resolver.Resolver()

    def ignore_aliases(self, data: Any) -> bool:
        return True

    def represent_text(self, text: str) -> yaml.ScalarNode:
        """Escapes where YAML would fold or lose a character, quotes where the text reads as a number or the like."""
        style = None
        if re.search(r"[^ -~\u00a1-\u167f\u2030-\ud7ff\ue000-\ufefe\U00010000-\U0010ffff]", text):
            style = '"'
        elif self._yaml_1_1.resolve(yaml.ScalarNode, text, (True, False)) != f"{_TAG}str":
            style = "'"
        return self.represent_scalar(f"{_TAG}str", text, style)


_Dumper.add_representer(str, _Dumper.represent_text)


def parse_yaml(text: str, source: str) -> Any:
    """The data of one YAML document: null, truth values, numbers, texts, lists and mappings.

    source: what messages begin with. Raises ConfigError, with line and column where they are known.
    """
    loader = None
    try:
        loader = _Loader(text)
        data = loader.get_single_data()
        _check_is_tree(data, source)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        place = f"{source}:{mark.line + 1}:{mark.column + 1}" if mark else source
        raise ConfigError(f"{place}: broken YAML: {error.problem or error.context}") from error
    except yaml.reader.ReaderError as error:
        raise ConfigError(
            f"{source}: broken YAML: the character U+{error.character:04X} at {error.position} cannot stand here"
        ) from error
    except RecursionError as error:
        raise ConfigError(f"{source}: broken YAML: more than {MAX_DEPTH} sections in one another") from error
    except _FAULTS_OF_PYYAML as error:
        place = f"{source}:{loader.line + 1}" if loader is not None else source
        raise ConfigError(f"{place}: broken YAML: {error}") from error
    return data


def parse_yaml_value(text: str, source: str) -> Any:
    """A value on a command line: YAML, but a text without quotes is taken whole, with what YAML calls a comment.

    Raises ConfigError, also for a comment elsewhere: it would be left out.
    """
    whole = text.strip()
    data = parse_yaml(text, source)
    if not whole:
        return data
    node = yaml.compose(text, _Loader)
    if node is None or (isinstance(node, yaml.ScalarNode) and node.style is None):
        return data if node is not None and node.value == whole else whole
    if (comment := _comment_in(text)) is not None:
        raise ConfigError(
            f"{source}: '{comment}' would be left out as a comment; put quotes around the text with the #"
        )
    return data


def _comment_in(text: str) -> str | None:
    """What stands between the tokens of a YAML text and is not blank."""
    end = 0
    for token in yaml.scan(text, _Loader):
        if between := text[end : token.start_mark.index].strip():
            return between
        end = max(end, token.end_mark.index)
    return text[end:].strip() or None


def dump_yaml(data: Any, width: int = 120) -> str:
    """The YAML of plain data, keys in their order; `parse_yaml` reads the same data back."""
    return str(yaml.dump(data, Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=width))


def _check_is_tree(data: Any, source: str) -> None:
    """Raises ConfigError for a value that holds itself, or grows beyond all reason, by anchors."""
    num_values = 0
    stack: list[tuple[Any, int]] = [(data, 0)]
    while stack:
        node, depth = stack.pop()
        num_values += 1
        if depth > MAX_DEPTH:
            raise ConfigError(
                f"{source}: broken YAML: more than {MAX_DEPTH} sections in one another, or one that holds itself"
            )
        if num_values > MAX_VALUES:
            raise ConfigError(f"{source}: broken YAML: more than {MAX_VALUES} values, or anchors that multiply")
        if isinstance(node, dict):
            for key in node:
                if not isinstance(key, str):
                    raise ConfigError(f"{source}: broken YAML: the key {key!r} is no text; quote it")
            stack.extend((child, depth + 1) for child in node.values())
        elif isinstance(node, list):
            stack.extend((child, depth + 1) for child in node)
