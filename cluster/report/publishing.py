"""What the page is made of, kept in Redis too, so that it can be shown where the run directory is not.

RUN/ ─► Publisher, every few seconds ─► Redis ─► cluster.watch.mirror ─► a folder like RUN/ ─► page

    key                              type    holds
    bicot:{KEY}:page                 hash    file name -> its tag: which state of the file Redis has
    bicot:{KEY}:page:files           hash    file name -> text: config, live.json, summary, the newest pictures
    bicot:{KEY}:page:metrics.jsonl   stream  a line a step, of the last MAX_STEPS
    bicot:{KEY}:page:timeline.json   stream  the run's own spans and moments

Tags lie where the files lie, so a server that comes back empty is given all of it again. The keys are bounded in size,
and go KEPT_S after the run's last word.
"""

from __future__ import annotations

import asyncio
import json
import os
import secrets
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any, Final, NamedTuple

import redis
from redis.backoff import NoBackoff
from redis.exceptions import RedisError
from redis.retry import Retry

from cluster.pools.cancellation import end_tasks
from cluster.reports.timeline import is_of_run
from cluster.state import RunDirectory
from cluster.telemetry.export import RESEND_S
from configs.local.masking import mask_text

KEPT_S: Final = 7 * 24 * 3600
MAX_SAMPLE_BYTES: Final = 8 << 20
"""Of all pages of pictures together; the newest one is there whatever it takes."""
MAX_STEPS: Final = 4000
MAX_EVENTS: Final = 20_000
CHUNK_BYTES: Final = 1 << 20
SOCKET_TIMEOUT_S: Final = 2.0


class Tailed(NamedTuple):
    """A file of lines that grows."""

    name: str
    max_lines: int
    is_kept: Callable[[str], bool]


TAILED: Final = (
    Tailed("metrics.jsonl", MAX_STEPS, lambda line: True),
    Tailed("timeline.json", MAX_EVENTS, is_of_run),
)


class Keys(NamedTuple):
    """Of one run's page."""

    tags: str
    files: str
    lines: Mapping[str, str]
    """Name of a file in TAILED -> its stream."""

    @classmethod
    def of(cls, key: str) -> Keys:
        """key: see `RunDirectory.key`."""
        page = f"bicot:{{{key}}}:page"  # the braces keep a run's keys on one node of a Redis Cluster
        return cls(page, f"{page}:files", {file.name: f"{page}:{file.name}" for file in TAILED})


def connect(url: str) -> redis.Redis:
    """A client whose calls end within seconds. Raises ValueError for an address that is none."""
    return redis.Redis.from_url(
        url,
        decode_responses=True,
        socket_timeout=SOCKET_TIMEOUT_S,
        socket_connect_timeout=SOCKET_TIMEOUT_S,
        retry=Retry(NoBackoff(), 0),
    )


@asynccontextmanager
async def published(
    tree: Callable[[], Mapping[str, Any]],
    directory: RunDirectory,
    redis_url: str,
    note: Callable[[str], None],
    *,
    every_s: float = RESEND_S,
) -> AsyncIterator[None]:
    """Meanwhile the run's page is in Redis, and once more at the end. tree: what live.json holds, see `Activity`.

    A server that does not answer is noted once, and tried again; nothing waits for it but the end, for a few seconds.
    """
    publisher = Publisher(directory, connect(redis_url))
    is_missed = False

    async def publish() -> None:
        nonlocal is_missed
        try:
            await asyncio.to_thread(publisher.publish, tree())
        except (RedisError, OSError) as error:
            if not is_missed:
                note(mask_text(f"the page over Redis is old: {error or type(error).__name__}; tried again meanwhile"))
            is_missed = True
        else:
            is_missed = False

    async def beat() -> None:
        while True:
            await publish()
            await asyncio.sleep(every_s)

    beating = asyncio.create_task(beat(), name="publish the page")
    try:
        yield
    finally:
        await end_tasks({beating})
        await publish()
        publisher.client.close()


@dataclass(slots=True)
class Publisher:
    """Sends what Redis does not have yet of a run's page."""

    directory: RunDirectory
    client: redis.Redis
    _keys: Keys = field(init=False)
    _life: str = field(default_factory=lambda: secrets.token_hex(4), init=False)
    """Tells the inodes of this machine and time from others."""

    def __post_init__(self) -> None:
        self._keys = Keys.of(self.directory.key)

    def publish(self, live: Mapping[str, Any]) -> None:
        """live: what the run is at. Raises RedisError, OSError."""
        if not self.directory.config_path.is_file():
            return  # the directory is gone, and what Redis has of it is the last there is
        has: Any = self.client.hgetall(self._keys.tags)
        self._send_files(has, live)
        for file in TAILED:
            tag = has.get(file.name, "")
            while (next_tag := self._send_lines(file, tag)) != tag:
                tag = next_tag
        with self.client.pipeline(transaction=False) as pipe:
            for key in (self._keys.tags, self._keys.files, *self._keys.lines.values()):
                pipe.expire(key, KEPT_S)
            pipe.execute()

    def _send_files(self, has: Mapping[str, str], live: Mapping[str, Any]) -> None:
        directory, tags = self.directory, dict(self._files())
        known = {name for name in has if name not in self._keys.lines}
        with self.client.pipeline(transaction=True) as pipe:
            for name in known - tags.keys() - {"live.json"}:
                pipe.hdel(self._keys.tags, name)
                pipe.hdel(self._keys.files, name)
            for name in (name for name, tag in tags.items() if has.get(name) != tag):
                text = (directory.path / name).read_text(encoding="utf-8")
                pipe.hset(self._keys.files, name, mask_text(text) if name == "config.yaml" else text)
                pipe.hset(self._keys.tags, name, tags[name])
            pipe.hset(self._keys.files, "live.json", json.dumps({**live, "directory": str(directory.path)}))
            pipe.hset(self._keys.tags, "live.json", str(live["updated_s"]))
            pipe.execute()

    def _files(self) -> Iterator[tuple[str, str]]:
        """Name and tag of each whole file that belongs there."""
        directory, room = self.directory, MAX_SAMPLE_BYTES
        for path in (directory.config_path, directory.summary_path):
            if path.is_file():
                yield path.name, _tag(path.stat())
        stats = {path.name: path.stat() for path in directory.samples_dir.glob("*.json")}
        for name, stat in sorted(stats.items(), key=lambda item: item[1].st_mtime_ns, reverse=True):
            if stat.st_size <= room or room == MAX_SAMPLE_BYTES:
                yield f"{directory.samples_dir.name}/{name}", _tag(stat)
            room -= stat.st_size

    def _send_lines(self, file: Tailed, tag: str) -> str:
        """Send a chunk of what follows the place that `tag` names. Returns the new place's, or the same at the end."""
        path = self.directory.path / file.name
        if not path.is_file():
            return tag
        stream = self._keys.lines[file.name]
        with path.open("rb") as opened:
            stat = os.fstat(opened.fileno())
            source = f"{self._life}-{stat.st_ino}"
            known, _, place = tag.partition(":")
            is_begun = known == source and int(place) <= stat.st_size  # else it was made again, or by an earlier life
            offset = opened.seek(int(place) if is_begun else 0)
            lines = opened.readlines(CHUNK_BYTES)
        if lines and not lines[-1].endswith(b"\n"):
            lines.pop()  # it is being written
        next_tag = f"{source}:{offset + sum(map(len, lines))}"
        if next_tag == tag:
            return tag
        with self.client.pipeline(transaction=True) as pipe:
            if not is_begun:
                pipe.delete(stream)
            for line in (line.decode(errors="replace").rstrip("\n") for line in lines):
                if file.is_kept(line):
                    pipe.xadd(stream, {"line": line}, maxlen=file.max_lines, approximate=True)
            pipe.hset(self._keys.tags, file.name, next_tag)
            pipe.execute()
        return next_tag


def _tag(stat: os.stat_result) -> str:
    return f"{stat.st_mtime_ns}-{stat.st_size}"
