"""All processes of a run execute the same code, or say which do not."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from cluster.actors.sources import PACKAGES, VARIABLE, check_same_sources, sources_digest, sources_root
from configs.errors import RunError


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    for package in PACKAGES:
        shutil.copytree(sources_root() / package, tmp_path / package, ignore=shutil.ignore_patterns("__pycache__"))
    return tmp_path


def test_a_copy_elsewhere_has_the_same_digest_whatever_else_lies_beside_it(copy: Path) -> None:
    (copy / "cluster" / "__pycache__").mkdir()
    (copy / "cluster" / "notes.txt").write_text("mine")
    assert sources_digest(copy) == sources_digest()


@pytest.mark.parametrize("change", ["append", "rename", "add"])
def test_any_change_of_a_source_changes_the_digest(copy: Path, change: str) -> None:
    path = copy / "rollout" / "worker.py"
    if change == "append":
        path.write_text(path.read_text() + "\n")
    elif change == "rename":
        path.rename(path.with_name("workers.py"))
    else:
        path.with_name("new.py").write_text("")
    assert sources_digest(copy) != sources_digest()


def test_an_actor_with_other_sources_names_its_node(monkeypatch: pytest.MonkeyPatch) -> None:
    check_same_sources("10.0.0.7")  # no launcher has said anything
    monkeypatch.setenv(VARIABLE, sources_digest())
    check_same_sources("10.0.0.7")
    monkeypatch.setenv(VARIABLE, "0" * 64)
    with pytest.raises(RunError, match=r"node 10\.0\.0\.7 has another version of bicot"):
        check_same_sources("10.0.0.7")
