"""What is a secret, and how it is shown: the one place that decides it.

    mask(tree)            a config as plain data, for config.yaml, --dry-run and messages
    mask_text(text)       any line that a person will read: credentials of URLs, bearer tokens, private keys
    mask_override(text)   FIELD=VALUE as --set has it

A secret is every value of `env_vars`, every value under a key that one of `SECRET_WORDS` is a word of (`api_key`,
`Authorization`, `AWS_SECRET_ACCESS_KEY`, `hubToken`), and of any other text the part that looks like one. A value
that is only a reference to an environment variable, `${NAME}`, is shown as it stands: it holds no secret.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any, Final

MASK: Final = "***"

SECRET_WORDS: Final = frozenset(
    [
        *("key", "keys", "apikey", "token", "secret", "secrets", "password", "passwords", "passwd", "passphrase"),
        *("pwd", "pw", "pat", "credential", "credentials", "cred", "creds", "auth", "authorization", "bearer"),
        *("cookie", "cookies", "signature", "sig", "dsn"),
    ]
)
_ENDINGS: Final = ("apikey", "token", "secret", "password", "passwd", "passphrase", "credentials")
"""Of words that are written together: `mysecret`, `hubtoken`."""
_NO_SECRET_ENDS: Final = frozenset({"env", "file", "path", "name", "type"})
"""Last words of keys whose values name where a secret is, not the secret: `api_key_env: JUDGE_KEY`."""
_ENVIRONMENT: Final = "env_vars"

_REFERENCE: Final = re.compile(r"\$\{([A-Za-z_][A-Za-z0-9_]*)\}")
_WORDS: Final = re.compile(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+")
_USER_AND_PASSWORD: Final = re.compile(r"(://[^:/@\s]*:)[^\s'\"]*(@)")
_USER_ALONE: Final = re.compile(r"(://)[^:/@\s?#'\"]+(@)")
_PARAMETER: Final = re.compile(r"([?&;]([A-Za-z][\w.-]*)=)([^&;\s'\"#]+)")
_NAMED: Final = re.compile(r"(([A-Za-z][\w-]*)\s*[:=]\s*)(\S+)")
"""`X-Api-Key: …`, `PASSWORD=…`."""
_HEADER: Final = re.compile(r"\b(bearer|basic)(\s+)(?!\*)[\w.~+/=-]{4,}", re.IGNORECASE)
_PRIVATE_KEY: Final = re.compile(
    r"-----BEGIN [A-Z ]*PRIVATE KEY-----.*?(-----END [A-Z ]*PRIVATE KEY-----|\Z)", re.DOTALL
)
# Tokens that say what they are: Hugging Face, OpenAI and others, GitHub, GitLab, Slack, AWS, Google.
_KNOWN_TOKEN: Final = re.compile(
    r"\b(hf_[A-Za-z0-9]{16,}|sk-[A-Za-z0-9_-]{16,}|gh[pousr]_[A-Za-z0-9]{16,}|github_pat_\w{16,}|glpat-[\w-]{16,}"
    r"|xox[abeprs]-[\w-]{10,}|A(KIA|SIA)[A-Z0-9]{12,}|AIza[\w-]{30,})"
)


def is_secret_key(key: str) -> bool:
    """Whether what stands under `key` is a secret by its name."""
    words = [word.lower() for word in _WORDS.findall(key)]
    if not words or words[-1] in _NO_SECRET_ENDS:
        return False
    return any(word in SECRET_WORDS or word.endswith(_ENDINGS) for word in words)


def mask(node: Any) -> Any:
    """Plain data (mappings, lists, scalars) with `***` for every secret in it; nothing is changed in place."""
    if isinstance(node, Mapping):
        return {key: _hidden(value) if _hides(str(key)) else mask(value) for key, value in node.items()}
    if isinstance(node, list | tuple):
        return [mask(value) for value in node]
    return mask_text(node) if isinstance(node, str) else node


def mask_at(location: Iterable[int | str], value: Any) -> Any:
    """`mask` of what stands at `location` in a config."""
    return _hidden(value) if any(_hides(str(step)) for step in location) else mask(value)


def mask_text(text: str) -> str:
    """`redis://user:***@host` for `redis://user:secret@host`, `Bearer ***`, `?password=***`, known tokens."""
    if _REFERENCE.fullmatch(text):
        return text
    if (named := _NAMED.fullmatch(text)) and is_secret_key(named[2]) and not _REFERENCE.fullmatch(named[3]):
        return f"{named[1]}{MASK}"
    text = _USER_AND_PASSWORD.sub(_kept_reference, text)
    text = _USER_ALONE.sub(rf"\g<1>{MASK}\g<2>", text)
    text = _PARAMETER.sub(_masked_parameter, text)
    text = _HEADER.sub(rf"\g<1>\g<2>{MASK}", text)
    text = _PRIVATE_KEY.sub(MASK, text)
    return _KNOWN_TOKEN.sub(MASK, text)


def mask_override(override: str) -> str:
    """`registry.redis_url=redis://:***@host` for an override with a secret in it."""
    field, separator, value = override.partition("=")
    if not separator:
        return mask_text(override)
    is_secret = any(_hides(step) for step in field.split("."))
    is_reference = _REFERENCE.fullmatch(value.strip()) is not None
    if is_secret and not is_reference:
        return f"{field}={MASK}"
    if any(_hides(word) for word in re.findall(r"[\w-]+(?=['\"]?\s*:)", value)):  # a mapping: {api_key: …}
        return f"{field}={MASK}"
    return f"{field}={mask_text(value)}"


def mask_message(text: str, overrides: Iterable[str] = ()) -> str:
    """A message, in which overrides may be quoted, as it may be shown."""
    for override in overrides:
        text = text.replace(override, mask_override(override))
    return mask_text(text)


def is_masked(value: Any) -> bool:
    """Whether `mask` has taken something out of a value."""
    return isinstance(value, str) and MASK in value


def _hides(key: str) -> bool:
    return key == _ENVIRONMENT or is_secret_key(key)


def _hidden(node: Any) -> Any:
    """What stands under a secret's key: nothing of it is shown but the names of what it holds."""
    if isinstance(node, Mapping):
        return {key: _hidden(value) for key, value in node.items()}
    if isinstance(node, list | tuple):
        return [_hidden(value) for value in node]
    if node is None or isinstance(node, bool) or (isinstance(node, str) and (not node or _REFERENCE.fullmatch(node))):
        return node
    return MASK


def _kept_reference(match: re.Match[str]) -> str:
    """`redis://:${PASSWORD}@host` stays: the password is not in it."""
    secret = match[0][len(match[1]) : -1]
    return match[0] if _REFERENCE.fullmatch(secret) else f"{match[1]}{MASK}{match[2]}"


def _masked_parameter(match: re.Match[str]) -> str:
    if not is_secret_key(match[2]) or _REFERENCE.fullmatch(match[3]):
        return match[0]
    return f"{match[1]}{MASK}"
