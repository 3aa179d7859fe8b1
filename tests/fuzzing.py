"""What property-based tests of parsers share: how long they look, and texts that parsers are known to stumble over."""

from __future__ import annotations

import os

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st

EXAMPLES = int(os.environ.get("BICOT_FUZZ_EXAMPLES", "2000"))
"""Of a test that looks at all of them; `make test-all` has it look at five times as many."""


def looking_at(one_in: int = 1) -> settings:
    """Settings of a property-based test: `EXAMPLES` inputs, or a part of them for what takes long; always the same."""
    return settings(
        max_examples=max(1, EXAMPLES // one_in),
        deadline=None,
        derandomize=True,
        database=None,
        suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture],
    )


ODD_TEXTS = [
    "\x00",
    "\x07",
    "\x0b",
    "\x1c",
    "\x85",
    "\u2028",
    "\u202e",
    "\ufeff",
    "\ud800",
    "\U0001f600",
    "\r",
    "\u200b",
]
ANY_TEXT = st.text(max_size=8) | st.sampled_from(ODD_TEXTS)
WRITABLE_TEXT = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=8)
"""Without what no text file, or no path, can hold."""


def is_printable(text: str) -> bool:
    """Whether a text can be written to a file or a screen as UTF-8."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True
