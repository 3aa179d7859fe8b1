"""A run's own files beside the copies of its checkpoints, so that it can go on where its directory is not.

URL/KEY/run/config.yaml, metrics.jsonl, evaluation/…      as they were when the newest checkpoint was copied
URL/KEY/step_000050/…                                     see `cluster.state.checkpoint_copies`

launcher on a new machine ─► fetch_run ─► run.dir/NAME with the same KEY ─► catch_up ─► the newest checkpoint
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Self

import fsspec

from cluster.state.checkpoint_copies import CheckpointCopies
from cluster.state.checkpoint_names import step_of
from cluster.state.run_directory import CONFIG_NAME, RunDirectory, key_of, name_in_key, resolve_root
from configs.errors import ConfigError
from configs.load import load_config
from configs.local.masking import mask_text
from configs.schema import RunConfig

FOLDER: Final = "run"
KEPT: Final = ("metrics.jsonl", "evaluation/*.json", CONFIG_NAME)
"""In this order: where the config is, the others are."""


@dataclass(frozen=True, slots=True)
class RunCopies:
    """Of the run `key`, at an address that fsspec knows. Methods raise ConfigError for what the file system raises."""

    url: str
    key: str

    @classmethod
    def at(cls, address: str) -> Self:
        """Of `URL/KEY`."""
        url, _, key = address.rstrip("/").rpartition("/")
        return cls(url, key)

    @property
    def address(self) -> str:
        """To show."""
        return mask_text(f"{self.url}/{self.key}")

    @staticmethod
    def keys_of(url: str, name: str) -> list[str]:
        """Keys of the runs at `url` that are called `name`."""
        with _named(url):
            system, root = fsspec.core.url_to_fs(url)
            folders = system.ls(root, detail=False) if system.exists(root) else []
            keys = [folder.rstrip("/").rpartition("/")[2] for folder in folders]
            named = [key for key in sorted(keys) if name_in_key(key) == name]
            return [key for key in named if system.exists(f"{root.rstrip('/')}/{key}/{FOLDER}/{CONFIG_NAME}")]

    def add(self, directory: Path) -> None:
        """Copy what the run's directory holds of `KEPT`. Raises what the file system raises."""
        system, root = self._open()
        for pattern in KEPT:
            for path in sorted(directory.glob(pattern)):
                remote = f"{root}/{path.relative_to(directory).as_posix()}"
                system.makedirs(remote.rpartition("/")[0], exist_ok=True)
                system.put_file(str(path), remote)

    def fetch(self, directory: Path) -> None:
        """Bring all but the config into a run's directory."""
        with _named(self.address):
            system, root = self._open()
            for remote in system.find(root):
                name = remote.removeprefix(f"{root}/")
                if name != CONFIG_NAME:
                    path = directory / name
                    path.parent.mkdir(parents=True, exist_ok=True)
                    system.get_file(remote, str(path))

    def config(self) -> RunConfig:
        """As the run's directory held it. Raises ConfigError where there is no run."""
        with _named(self.address):
            system, root = self._open()
            if not system.exists(remote := f"{root}/{CONFIG_NAME}"):
                raise ConfigError(f"--resume {self.address}: there is no copy of a run here ({FOLDER}/{CONFIG_NAME})")
            with tempfile.TemporaryDirectory() as folder:
                system.get_file(remote, f"{folder}/{CONFIG_NAME}")
                return load_config(Path(folder) / CONFIG_NAME)

    def _open(self) -> tuple[Any, str]:
        system, root = fsspec.core.url_to_fs(self.url)
        return system, f"{root.rstrip('/')}/{self.key}/{FOLDER}"


def fetch_run(copies: RunCopies, run_dir: str | None = None) -> RunDirectory:
    """The directory of a run whose copies lie there: the one that is here, or one that is made again.

    run_dir: in place of the run's own. Raises ConfigError where there is no run, or the directory cannot be made.
    """
    config = copies.config()
    if run_dir is not None:
        config = config.model_copy(update={"run": config.run.model_copy(update={"dir": run_dir})})
    root = resolve_root(config.run.dir)[0]
    for path in sorted(root.glob(f"{config.run.name}*/{CONFIG_NAME}")):
        if key_of(path.parent) == copies.key:
            return RunDirectory.open(path.parent)
    return RunDirectory.create(config, copies.key)


def catch_up(directory: RunDirectory, config: RunConfig) -> str | None:
    """Where the copies hold a newer checkpoint than the directory, bring it here, and with it the metrics.

    As after a while on other machines. config: with its secrets. Returns what to tell the user. Raises ConfigError when
    the copies cannot be read and there is nothing here to go on with.
    """
    if (url := config.checkpoint.url) is None:
        return None
    steps = [step_of(path.name) for path in directory.checkpoints_dir.iterdir()]
    here = max((step for step in steps if step is not None), default=0)
    copies = RunCopies(url, directory.key)
    try:
        with _named(copies.address):
            checkpoints = CheckpointCopies(url, directory.key, lambda *_: True)
            names = checkpoints.names()
            if not names or (step := step_of(names[-1]) or 0) <= here:
                return None
            checkpoints.fetch_newest(directory.checkpoints_dir)
        copies.fetch(directory.path)
    except ConfigError as error:
        if not here:
            raise
        return f"{error}; going on with what is here"
    return f"the checkpoint of step {step} is brought from {copies.address}"


@contextmanager
def _named(address: str) -> Iterator[None]:
    """Whatever a file system raises inside is a ConfigError that names the address."""
    try:
        yield
    except ConfigError:
        raise
    except Exception as error:  # each file system raises its own
        raise ConfigError(
            f"{mask_text(address)}: cannot read the copies of the run: {type(error).__name__}: {mask_text(str(error))}"
        ) from error
