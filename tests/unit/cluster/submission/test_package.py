"""What travels with a Ray job: as Ray packs it, and refused with the names of what is too large."""

from __future__ import annotations

import os
from pathlib import Path
from zipfile import ZipFile

import pytest

from cluster.submission.job import check_is_packed
from cluster.submission.package import pack
from configs.errors import ConfigError

ROOT = Path(__file__).resolve().parents[4]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name in ("cluster/launch.py", ".venv/bin/python", "runs/old/model.bin", "prompts.txt", "notes/long.txt"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(name)
    (tmp_path / ".gitignore").write_text("runs/\n")
    (tmp_path / ".rayignore").write_text("/notes\n")
    return tmp_path


def test_what_git_and_ray_ignore_stays_behind(folder: Path) -> None:
    assert pack(folder, ()).names == {".gitignore", ".rayignore", "cluster/launch.py", "prompts.txt"}
    assert "prompts.txt" not in pack(folder, ("*.txt",)).names


def test_too_large_a_folder_is_refused_with_its_largest_files(folder: Path) -> None:
    (folder / "weights.bin").write_bytes(os.urandom(3 << 20))
    with pytest.raises(
        ConfigError, match=r"(?s)packed it has 3\.0 MiB.*takes 2\.0 MiB.*\.rayignore.*3\.0 MiB  weights"
    ):
        pack(folder, (), limit=2 << 20)


def test_a_folder_that_is_not_there_is_named() -> None:
    with pytest.raises(ConfigError, match="--working-dir /nowhere: there is no such folder"):
        pack(Path("/nowhere"), ())


def test_data_that_would_not_travel_are_named(folder: Path) -> None:
    names = pack(folder, ("prompts.txt",)).names
    with pytest.raises(ConfigError, match=r"'prompts\.txt' of the config .* leaves it out"):
        check_is_packed(["prompts.txt"], folder, names)
    check_is_packed(["shapes:train", "/mnt/shared/prompts.txt", "cluster/launch.py"], folder, names)


def test_the_project_itself_is_small_and_brings_its_configs() -> None:
    package = pack(ROOT, ())
    assert {"configs/shapes_cpu.yaml", "cluster/launch.py", "configs/tiny_janus/config.json"} <= package.names
    assert not any(name.startswith(("tests/", "docs/", "runs/")) for name in package.names)
    assert package.num_bytes < 20 << 20


def test_the_sizes_are_those_of_rays_own_zip_file(folder: Path, tmp_path: Path) -> None:
    from ray._private.runtime_env.packaging import create_package

    target = tmp_path.parent / "theirs.zip"
    create_package(str(folder), target, include_gitignore=True, excludes=[".venv"])
    package = pack(folder, ())
    assert package.num_bytes == target.stat().st_size
    with ZipFile(target) as archive:
        assert package.names == set(archive.namelist())
