"""`scripts/setup.sh` on machines without a Python that fits: what to do is one line, and uv may do it."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

SETUP = Path(__file__).resolve().parents[2] / "scripts" / "setup.sh"
TOOLS = ("bash", "dirname", "env", "mktemp", "rm", "sed", "tail", "uname")
OLD_PYTHON = '#!/bin/sh\n[ "$1" = -c ] && exit 1\necho Python 3.9.9\n'


@pytest.fixture
def machine(tmp_path: Path) -> Path:
    """A checkout that holds the script alone, and a PATH with an old Python, in `bin`."""
    (tmp_path / "scripts").mkdir()
    shutil.copy(SETUP, tmp_path / "scripts")
    (tmp_path / "bin").mkdir()
    for tool in TOOLS:
        found = shutil.which(tool)
        assert found is not None
        (tmp_path / "bin" / tool).symlink_to(found)
    put(tmp_path, "python3", OLD_PYTHON)
    return tmp_path


def put(machine: Path, name: str, script: str) -> None:
    (machine / "bin" / name).write_text(script, encoding="utf-8")
    (machine / "bin" / name).chmod(0o755)


def setup(machine: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [machine / "scripts" / "setup.sh", "cpu"],
        env={"PATH": str(machine / "bin"), **environment},
        capture_output=True,
        text=True,
        timeout=60,
    )


def test_without_a_python_that_fits_one_line_says_how_to_get_one(machine: Path):
    done = setup(machine)
    assert done.returncode == 1
    assert done.stdout == ""
    said = done.stderr.strip().splitlines()
    assert said[0] == "set-up failed: no Python 3.11 or 3.12 was found (looked for: python3.11 python3.12 python3)"
    assert len(said) == 2
    assert "make setup PYTHON=uv" in said[1]


def test_a_named_python_that_does_not_fit_is_named(machine: Path):
    done = setup(machine, PYTHON="python3")
    assert done.returncode == 1
    assert "(looked for: python3)" in done.stderr


def test_uv_fetches_python_where_it_is_asked_to(machine: Path):
    fetched = machine / "bin" / "python-of-uv"
    put(
        machine,
        fetched.name,
        f'#!/bin/sh\necho "$@" >> "{machine}/calls"\n[ "$1" = -V ] && echo Python 3.12.9\nexit 7\n',
    )
    put(machine, "uv", f'#!/bin/sh\necho uv "$@" >> "{machine}/calls"\n[ "$2" = find ] && echo "{fetched}"\nexit 0\n')
    done = setup(machine, PYTHON="uv")
    assert (machine / "calls").read_text().splitlines() == [
        "uv python install --quiet 3.12",
        "uv python find 3.12",
        "-V",
        "-m venv .venv",
    ]
    assert "creating .venv with Python 3.12.9" in done.stdout


def test_without_a_network_uv_says_why_and_what_else_there_is(machine: Path):
    put(machine, "uv", "#!/bin/sh\necho 'error: no network' >&2\nexit 2\n")
    done = setup(machine, PYTHON="uv")
    assert done.returncode == 1
    assert "error: no network" in done.stderr
    assert "uv could not fetch Python 3.12" in done.stderr
    assert "package manager" in done.stderr
