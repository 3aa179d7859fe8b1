"""Exit codes and error messages that all commands share."""

from __future__ import annotations

import io
import sys
from collections.abc import Callable

from configs.errors import BicotError, ConfigError, DataError, ModelError


def print_what_can_be_shown() -> None:
    """From now on a terminal, a pipe or a log that is no UTF-8 gets escapes of what it cannot show, and no error."""
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")


def exit_code_of(command: Callable[[], int], interrupted: str) -> int:
    """Run a command, and tell on stderr in one line what ended it early.

    Returns what the command returns; 2 where its config, data or model is wrong, 1 for another error that bicot
    raises on purpose, 130 after Ctrl-C, with `interrupted`: what becomes of the work that is done.
    """
    print_what_can_be_shown()
    try:
        return command()
    except (ConfigError, DataError, ModelError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except BicotError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print(f"interrupted; {interrupted}", file=sys.stderr)
        return 130
