"""A run's page brought from Redis into a folder like a run directory: for machines that do not see the run's own."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import redis
from redis.exceptions import RedisError

from cluster.report.publishing import KEPT_S, TAILED, Keys, connect
from cluster.state import Registry
from cluster.state.run_directory import name_in_key
from configs.errors import ConfigError, RegistryError
from configs.local.masking import mask_text

_FILE: Final = re.compile(r"config\.yaml|(live|summary)\.json|samples/[\w.-]+\.json")
"""What is taken from Redis, and nothing else: whoever writes there does not choose where we write."""


@dataclass(slots=True)
class Mirror:
    """Of the run `key`; `path` is its folder, which `refresh` fills and keeps up with the run."""

    url: str
    key: str
    folder: Path
    """Of the mirrors; each has one of its own in it."""
    _keys: Keys = field(init=False)
    _client: redis.Redis = field(init=False)
    _tags: dict[str, str] = field(default_factory=dict, init=False)
    """Of the files that are here."""
    _last: dict[str, str] = field(default_factory=dict, init=False)
    """Name of a file of lines -> id of its last one that is here."""

    def __post_init__(self) -> None:
        self._keys, self._client = Keys.of(self.key), connect(self.url)

    @classmethod
    def of(cls, url: str, name: str, folder: Path) -> Mirror:
        """The run of a name that was begun last. Raises RegistryError when there is none, or no server."""
        return cls(url, asyncio.run(Registry.newest_key_of(url, name)), folder)

    @property
    def path(self) -> Path:
        return self.folder / self.key / name_in_key(self.key)

    def refresh(self) -> None:
        """Bring what is new. Raises RegistryError when Redis is gone, ConfigError when it has no page of the run."""
        with self._errors():
            tags: Any = self._client.hgetall(self._keys.tags)
            if "config.yaml" not in tags:
                raise ConfigError(
                    f"the registry at {mask_text(self.url)} has no page of {name_in_key(self.key)}: a launcher keeps "
                    f"one there for {KEPT_S // 86400} days where registry.redis_url is set and watching.metrics is "
                    "on; python -m cluster.status shows the registry itself"
                )
            files = {name: tag for name, tag in tags.items() if _FILE.fullmatch(name)}
            for name in [name for name in self._tags if _FILE.fullmatch(name) and name not in files]:
                (self.path / name).unlink(missing_ok=True)
                del self._tags[name]
            self._bring_files({name: tag for name, tag in files.items() if self._tags.get(name) != tag})
            for file in TAILED:
                if (tag := tags.get(file.name, "")) != self._tags.get(file.name, ""):
                    self._bring_lines(file.name, tag)

    def _bring_files(self, tags: dict[str, str]) -> None:
        if not tags:
            return
        texts: list[Any] = self._client.hmget(self._keys.files, list(tags))
        for (name, tag), text in zip(tags.items(), texts, strict=True):
            if text is not None:  # else it was taken away between the two questions
                path = self.path / name
                path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
                path.write_text(text, encoding="utf-8")
                self._tags[name] = tag

    def _bring_lines(self, name: str, tag: str) -> None:
        is_same = tag.partition(":")[0] == self._tags.get(name, "").partition(":")[0]
        first = f"({self._last[name]}" if is_same and name in self._last else "-"
        found: Any = self._client.xrange(self._keys.lines[name], min=first)
        with (self.path / name).open("a" if is_same else "w", encoding="utf-8") as file:
            file.writelines(f"{fields['line']}\n" for _, fields in found)
        if found:
            self._last[name] = found[-1][0]
        elif not is_same:
            self._last.pop(name, None)
        self._tags[name] = tag

    @contextmanager
    def _errors(self) -> Iterator[None]:
        try:
            yield
        except RedisError as error:
            raise RegistryError(
                f"cannot read the page of {name_in_key(self.key)} from {mask_text(self.url)}: "
                f"{mask_text(str(error)) or type(error).__name__}"
            ) from error
