"""How commands end."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from configs.command_line import exit_code_of
from configs.errors import BicotError, ConfigError, DataError, ModelError, RewardError


@pytest.mark.parametrize("code", [0, 1])
def test_a_command_ends_with_what_it_returns(code: int, capsys: pytest.CaptureFixture[str]) -> None:
    assert exit_code_of(lambda: code, "nothing is lost") == code
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize(
    ("error", "code"),
    [(ConfigError("a"), 2), (DataError("a"), 2), (ModelError("a"), 2), (RewardError("a"), 1), (BicotError("a"), 1)],
)
def test_an_error_is_told_in_one_line_without_a_traceback(
    error: BicotError, code: int, capsys: pytest.CaptureFixture[str]
) -> None:
    def command() -> int:
        raise error

    assert exit_code_of(command, "nothing is lost") == code
    assert capsys.readouterr().err == "error: a\n"


def test_ctrl_c_says_what_becomes_of_the_work(capsys: pytest.CaptureFixture[str]) -> None:
    def command() -> int:
        raise KeyboardInterrupt

    assert exit_code_of(command, "nothing is lost") == 130
    assert capsys.readouterr().err == "interrupted; nothing is lost\n"


def test_our_own_mistakes_are_not_hidden() -> None:
    def command() -> int:
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        exit_code_of(command, "nothing is lost")


def test_a_terminal_that_is_no_utf_8_shows_what_it_can() -> None:
    command = "from configs.command_line import exit_code_of; exit(exit_code_of(lambda: print('é ─') or 0, ''))"
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[3]), "PYTHONIOENCODING": "ascii"}
    shown = subprocess.run(
        [sys.executable, "-c", command], env=environment, capture_output=True, text=True, check=False
    )
    assert (shown.returncode, shown.stdout) == (0, "\\xe9 \\u2500\n"), shown.stderr
