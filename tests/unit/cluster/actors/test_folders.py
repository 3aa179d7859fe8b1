"""Folders on their way to nodes that do not have them."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest

from cluster.actors import folders


@pytest.fixture
def model(tmp_path: Path) -> Path:
    folder = tmp_path / "here" / "model"
    (folder / "tokenizer").mkdir(parents=True)
    (folder / "config.json").write_text("{}")
    (folder / "weights.safetensors").write_bytes(bytes(range(256)) * 10)
    (folder / "tokenizer" / "empty.txt").touch()
    return folder


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_a_folder_is_the_same_when_it_arrives(model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(folders, "PART_BYTES", 1000)
    parts = list(folders.pack(str(model)))
    assert len(parts) == 5, "2560 bytes in three parts, and two small files"
    there = tmp_path / "there" / "cache" / "model"
    folders.unpack(str(there), parts)
    assert contents(there) == contents(model)
    assert {path.name for path in there.parent.iterdir()} == {"model", ".model.lock"}


def test_a_home_is_that_of_the_node(model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    parts = list(folders.pack(str(model)))
    monkeypatch.setenv("HOME", str(tmp_path / "another home"))
    assert not folders.is_here("~/cache/model")
    folders.unpack("~/cache/model", parts)
    assert folders.is_here("~/cache/model")
    assert (tmp_path / "another home" / "cache" / "model" / "config.json").is_file()


def test_a_folder_that_is_here_is_not_written_again(model: Path) -> None:
    before = contents(model)
    folders.unpack(str(model), [folders.Part("config.json", b"other", True)])
    assert contents(model) == before


def test_a_folder_that_arrives_in_part_is_none(tmp_path: Path) -> None:
    def parts() -> object:
        yield folders.Part("config.json", b"{}", True)
        raise ConnectionError("the node went")

    there = tmp_path / "model"
    with pytest.raises(ConnectionError):
        folders.unpack(str(there), parts())  # type: ignore[arg-type]
    assert [path.name for path in tmp_path.iterdir()] == [".model.lock"]


def test_a_digest_is_that_of_the_content(model: Path) -> None:
    data = (model / "weights.safetensors").read_bytes()
    expected = {"sha256": hashlib.sha256(data).hexdigest(), "bytes": 2560}
    assert folders.digest_file(model / "weights.safetensors") == expected
