"""The one place where a run writes.

runs/NAME/              NAME-2, NAME-3, … when NAME already holds a run: nothing is overwritten
    config.yaml         the config of this run, every default written out
    metrics.jsonl       one object a step, see cluster.reports.metrics
    samples/            step_000010.png, .json, …: pictures with prompt, plan and score
    checkpoints/        for resuming and for use
    evaluation/         what evaluation gave before training
    live.json           what the run is at, see cluster.reports.live
    timeline.json       where every group was when: a Chrome trace, see cluster.reports.timeline
    curves.png          how the run went
    report.html         all of that in one file, to send around
    summary.json        how it ended
    trackers/           what trackers keep, see watching.trackers
    logs/               of libraries and workers
    redis/              of the private registry
    run_key             tells this run from all others of its name, see RunDirectory.key
    lock                held by the launcher that runs here
"""

from __future__ import annotations

import fcntl
import json
import os
import re
import secrets
import shlex
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, Final

from configs.errors import ConfigError
from configs.load import dump_config
from configs.schema import RunConfig

CONFIG_NAME = "config.yaml"
LOCK_NAME = "lock"
KEY_NAME = "run_key"
NO_RUN = frozenset({"lost+found", ".snapshot", ".DS_Store"})
"""What a mounted volume holds that nobody has written to yet."""
_KEY: Final = re.compile(r"(.+)-[0-9a-f]{8}")
LOCK_PATIENCE_S = 1.0
"""A launcher waits so long for the lock: who only looks whether it is held has it for an instant."""
PRIVATE_FOLDER = 0o700
"""Mode of a run directory: its logs and samples are its owner's, and its Redis' address holds a password."""


@dataclass(frozen=True, slots=True)
class RunDirectory:
    """Paths of one run. The folders among them exist."""

    path: Path
    """Absolute."""
    note: str | None = None
    """What the user should be told about where the directory is; None when it is where they asked for."""

    @classmethod
    def create(cls, config: RunConfig, key: str | None = None, *, exactly: bool = False) -> RunDirectory:
        """Claim a new directory, and write the config there.

        key: of a run that has one already. exactly: at run.name, and at no other name where that is taken.
        Raises ConfigError naming run.dir when it cannot be written, or is taken.
        """
        root, root_note = resolve_root(config.run.dir)
        try:
            path = _claim(root, config.run.name, dump_config(config), key, exactly=exactly)
            directory = cls(path, _join_notes(root_note, path, config.run.name))
            for folder in (directory.samples_dir, directory.checkpoints_dir, directory.logs_dir):
                folder.mkdir()
        except OSError as error:
            raise ConfigError(
                f"run.dir '{config.run.dir}': cannot write to {error.filename or root}: "
                f"{error.strerror or error}; set run.dir to a folder you may write to"
            ) from error
        return directory

    @classmethod
    def open(cls, path: Path) -> RunDirectory:
        """The directory of a run that was begun earlier. Raises ConfigError when `path` holds none."""
        directory = cls(path.expanduser().resolve())
        if not directory.config_path.is_file():
            raise ConfigError(f"--resume {path}: there is no run here ({CONFIG_NAME} is missing)")
        for folder in (directory.samples_dir, directory.checkpoints_dir, directory.logs_dir):
            folder.mkdir(exist_ok=True)
        return directory

    def is_in_use(self) -> bool:
        """Whether a launcher runs here now; on another machine only where the folder's file system tells."""
        try:
            with (self.path / LOCK_NAME).open("r") as file:
                fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except FileNotFoundError:
            return False
        except OSError:
            return True
        return False

    @contextmanager
    def locked(self, patience_s: float = LOCK_PATIENCE_S, check: Callable[[], None] = lambda: None) -> Iterator[None]:
        """Nobody else may run here meanwhile; a launcher that is killed lets go. Raises ConfigError when one does.

        patience_s: to wait for it to let go. check: called meanwhile; may raise.
        """
        path = self.path / LOCK_NAME
        try:
            file = path.open("a")
        except OSError as error:
            raise ConfigError(
                f"{path}: cannot open this file, which says who runs here: {error.strerror}; mend or remove it"
            ) from error
        with file:
            deadline = time.monotonic() + patience_s
            while not _takes(file):
                check()
                if time.monotonic() > deadline:
                    raise ConfigError(f"{self.path}: another launcher runs here; wait until it has ended")
                time.sleep(LOCK_PATIENCE_S / 20)
            yield

    def make_again(self, config: RunConfig) -> None:
        """Bring back the folders and the config, where somebody has removed them. Raises OSError."""
        for folder in (self.samples_dir, self.checkpoints_dir, self.logs_dir):
            folder.mkdir(parents=True, exist_ok=True)
        if not self.config_path.exists():
            self.config_path.write_text(dump_config(config), encoding="utf-8")

    def write_config(self, config: RunConfig) -> None:
        """Write down the config with which a run goes on, where it has changed."""
        text = dump_config(config)
        if text == self.config_path.read_text(encoding="utf-8"):
            return
        temporary = self.config_path.with_name(f"{CONFIG_NAME}.tmp")
        with open(temporary, "w", encoding="utf-8", opener=_open_private) as file:
            file.write(text)
        temporary.replace(self.config_path)

    @property
    def name(self) -> str:
        """The name under which nothing else runs here: run.name, or run.name-2, …"""
        return self.path.name

    @property
    def key(self) -> str:
        """The name under which nothing else runs anywhere: in a Redis and at a checkpoint.url that others use, too."""
        return key_of(self.path)

    @property
    def config_path(self) -> Path:
        return self.path / CONFIG_NAME

    @property
    def metrics_path(self) -> Path:
        return self.path / "metrics.jsonl"

    @property
    def report_path(self) -> Path:
        return self.path / "report.html"

    @property
    def live_path(self) -> Path:
        return self.path / "live.json"

    @property
    def timeline_path(self) -> Path:
        return self.path / "timeline.json"

    @property
    def curves_path(self) -> Path:
        return self.path / "curves.png"

    @property
    def summary_path(self) -> Path:
        return self.path / "summary.json"

    @property
    def samples_dir(self) -> Path:
        return self.path / "samples"

    @property
    def checkpoints_dir(self) -> Path:
        return self.path / "checkpoints"

    @property
    def evaluation_dir(self) -> Path:
        """Made by the first evaluation."""
        return self.path / "evaluation"

    @property
    def resume_command(self) -> str:
        """What goes on with this run."""
        return f"python -m cluster.launch --resume {shlex.quote(str(self.path))}"

    @property
    def logs_dir(self) -> Path:
        return self.path / "logs"

    @property
    def redis_dir(self) -> Path:
        """Made by the private server, when there is one."""
        return self.path / "redis"

    def samples_path(self, step: int) -> Path:
        return self.samples_dir / f"step_{step:06d}.png"


def key_of(path: Path) -> str:
    """See `RunDirectory.key`. Of a run that an older bicot has begun: its name alone."""
    try:
        return (path / KEY_NAME).read_text(encoding="utf-8").strip()
    except FileNotFoundError:
        return path.name


def new_key(name: str) -> str:
    """See `RunDirectory.key`."""
    return f"{name}-{secrets.token_hex(4)}"


def name_in_key(key: str) -> str:
    """The run's name in its key."""
    found = _KEY.fullmatch(key)
    return key if found is None else found[1]


def read_summary(path: Path) -> Mapping[str, Any] | None:
    """How a run ended; None when there is no summary, or only a part of one (the power went)."""
    try:
        summary = json.loads(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, ValueError):
        return None
    return summary if isinstance(summary, dict) and {"status", "steps"} <= summary.keys() else None


def is_in_job_copy() -> bool:
    """Whether the current directory is Ray's copy of a job's working directory, which goes with the job."""
    return _is_ray_package(Path.cwd())


def _takes(file: IO[str]) -> bool:
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def resolve_root(run_dir: str, option: str = "run.dir") -> tuple[Path, str | None]:
    """The absolute folder that run directories go into, and what to tell the user where it is a surprise.

    A relative run.dir is relative to the current directory. Not so in a Ray job with a working
    directory: there the current directory is Ray's copy of it, in a temporary folder which Ray
    deletes when the job has ended, and the run with it. Then it is relative to the home directory.
    """
    path = Path(run_dir).expanduser()
    if path.is_absolute():
        return path, None
    current = Path.cwd()
    if not _is_ray_package(current):
        return current / path, None
    root = Path.home() / path
    return root, (
        f"{option} '{run_dir}' is relative, and this Ray job runs in a temporary copy of its working directory, "
        f"which Ray deletes; what it writes is kept in {root} instead (give {option} an absolute path to choose)"
    )


def _is_ray_package(path: Path) -> bool:
    """Ray unpacks a job's working directory to .../runtime_resources/working_dir_files/_ray_pkg_HASH."""
    return any(part.startswith("_ray_pkg_") for part in path.parts) or "working_dir_files" in path.parts


def _open_private(path: str, flags: int) -> int:
    """An opener for files that only their owner may read."""
    return os.open(path, flags, 0o600)


def _claim(root: Path, name: str, config_text: str, key: str | None, *, exactly: bool) -> Path:
    """The first free one of NAME, NAME-2, NAME-3, …, or NAME `exactly`, with the config in it.

    Creating config.yaml exclusively is what decides between two launchers that start at once. A
    folder that is there but empty is taken: it may be a mounted volume.
    """
    root.mkdir(parents=True, exist_ok=True)
    attempt = 1
    while True:
        if exactly and attempt > 1:
            raise ConfigError(f"{root / name}: this folder holds something else than a run; choose another run.name")
        path = root / (name if attempt == 1 else f"{name}-{attempt}")
        attempt += 1
        try:
            path.mkdir(mode=PRIVATE_FOLDER, exist_ok=True)
            if any(entry.name not in NO_RUN and not entry.name.startswith(".nfs") for entry in path.iterdir()):
                continue
            with open(path / CONFIG_NAME, "x", encoding="utf-8", opener=_open_private) as file:
                file.write(config_text)
            (path / KEY_NAME).write_text(f"{key or new_key(path.name)}\n", encoding="utf-8")
        except FileExistsError:
            continue
        return path


def _join_notes(root_note: str | None, path: Path, wanted_name: str) -> str | None:
    notes = [root_note] if root_note else []
    if path.name != wanted_name:
        notes.append(f"{path.with_name(wanted_name)} already holds a run; this one is kept in {path}")
    return "; ".join(notes) or None
