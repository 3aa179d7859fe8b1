"""A run's page in a real Redis: what the launcher keeps there, and what another machine makes of it."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import redis

from cluster.report import publishing, read_run
from cluster.report.publishing import KEPT_S, Keys, Publisher, connect, published
from cluster.report.view import STALE_AFTER_S, RunView
from cluster.reports.metrics import read_metrics
from cluster.reports.metrics_file import MetricsWriter
from cluster.session import PrivateRedis
from cluster.state import Registry, RunDirectory
from cluster.watch.__main__ import main
from cluster.watch.mirror import Mirror
from configs.errors import ConfigError, RegistryError
from tests.runs import add_step, finish, live_tree, make_run


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[PrivateRedis]:
    with PrivateRedis(tmp_path_factory.mktemp("redis")) as started:
        yield started


@pytest.fixture
def client(server: PrivateRedis) -> Iterator[redis.Redis]:
    with connect(server.url) as connected:
        connected.flushall()
        yield connected


@pytest.fixture
def directory(tmp_path: Path) -> RunDirectory:
    return make_run(tmp_path)


@pytest.fixture
def publisher(directory: RunDirectory, client: redis.Redis) -> Publisher:
    return Publisher(directory, client)


@pytest.fixture
def mirror(directory: RunDirectory, server: PrivateRedis, tmp_path: Path) -> Mirror:
    return Mirror(server.url, directory.key, tmp_path / "elsewhere")


def seen(mirror: Mirror) -> RunView:
    mirror.refresh()
    return read_run(mirror.path)


def test_all_that_the_page_shows_arrives(publisher: Publisher, mirror: Mirror, directory: RunDirectory) -> None:
    publisher.publish(live_tree(12))
    there, here = seen(mirror), read_run(directory.path)
    assert (there.name, there.status, there.step, there.steps) == ("trial", "running", 12, 40)
    assert (list(there.rows), there.config) == (list(here.rows), here.config)
    assert (there.moments, there.phases) == (here.moments, here.phases)
    assert there.samples(12) == here.samples(12)
    finish(directory)
    publisher.publish(live_tree(12))
    there = seen(mirror)
    assert there.status == "finished"
    assert there.before_after == read_run(directory.path).before_after


def test_a_launcher_that_was_killed_is_told_from_one_that_lives(
    publisher: Publisher, mirror: Mirror, directory: RunDirectory
) -> None:
    publisher.publish({**live_tree(12), "updated_s": time.time() - 2 * STALE_AFTER_S})
    there = seen(mirror)
    assert there.status == "killed"
    assert there.resume_command == directory.resume_command, "and not where the page's own files lie"


def test_it_follows_steps_rewinds_and_the_runs_going_on(
    publisher: Publisher, mirror: Mirror, directory: RunDirectory, client: redis.Redis
) -> None:
    publisher.publish(live_tree(12))
    assert seen(mirror).step == 12
    add_step(directory, 13)
    publisher.publish(live_tree(13))
    assert [row["step"] for row in seen(mirror).rows] == list(range(1, 14))
    with MetricsWriter(directory.metrics_path) as metrics:
        metrics.rewind(5)
    add_step(directory, 6)
    publisher.publish(live_tree(6))
    assert [row["step"] for row in seen(mirror).rows] == list(range(1, 7))
    Publisher(directory, client).publish(live_tree(6))  # a launcher that goes on
    assert [row["step"] for row in seen(mirror).rows] == list(range(1, 7))


def test_a_line_that_is_being_written_is_left_for_the_next_time(
    publisher: Publisher, mirror: Mirror, directory: RunDirectory
) -> None:
    line = json.dumps({"step": 13, "reward/mean": 0.5})
    with directory.metrics_path.open("a") as file:
        file.write(line[:9])
        file.flush()
        publisher.publish(live_tree(12))
        assert seen(mirror).step == 12
        file.write(line[9:] + "\n")
    publisher.publish(live_tree(13))
    assert seen(mirror).step == 13


def test_long_files_travel_in_pieces_and_all_lines_arrive_once(
    publisher: Publisher, mirror: Mirror, directory: RunDirectory, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(publishing, "CHUNK_BYTES", 700)
    publisher.publish(live_tree(12))
    assert list(seen(mirror).rows) == read_metrics(directory.metrics_path)


def test_a_server_that_comes_back_empty_is_given_all_of_it_again(
    publisher: Publisher, mirror: Mirror, client: redis.Redis
) -> None:
    publisher.publish(live_tree(12))
    before = seen(mirror)
    client.flushall()
    publisher.publish(live_tree(12))
    assert list(seen(mirror).rows) == list(before.rows)
    assert seen(mirror).samples(12) == before.samples(12)


def test_what_lies_in_redis_is_bounded_and_goes_by_itself(
    publisher: Publisher, mirror: Mirror, directory: RunDirectory, client: redis.Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    publisher.publish(live_tree(12))
    assert seen(mirror).sample_steps == [12]
    size = directory.samples_path(12).with_suffix(".json").stat().st_size
    monkeypatch.setattr(publishing, "MAX_SAMPLE_BYTES", 2.5 * size)
    for step in (13, 14, 15):
        add_step(directory, step)
    publisher.publish(live_tree(15))
    assert seen(mirror).sample_steps == [14, 15]
    monkeypatch.setattr(publishing, "MAX_SAMPLE_BYTES", 1)
    publisher.publish(live_tree(15))
    assert seen(mirror).sample_steps == [15], "the newest one is there whatever it takes"
    keys = Keys.of(directory.key)
    for key in (keys.tags, keys.files, *keys.lines.values()):
        assert KEPT_S - 60 < client.ttl(key) <= KEPT_S


def test_no_name_in_redis_leads_out_of_the_mirrors_folder(
    publisher: Publisher, mirror: Mirror, directory: RunDirectory, client: redis.Redis, tmp_path: Path
) -> None:
    publisher.publish(live_tree(12))
    keys = Keys.of(directory.key)
    for name in ("../../evil.json", "samples/../../evil.json", "/tmp/evil.json", "lock"):
        client.hset(keys.files, name, "{}")
        client.hset(keys.tags, name, "1")
    mirror.refresh()
    found = {str(path.relative_to(mirror.path)) for path in mirror.path.rglob("*") if path.is_file()}
    assert found == {"config.yaml", "live.json", "metrics.jsonl", "timeline.json", "samples/step_000012.json"}
    assert not list(tmp_path.rglob("evil.json"))


def test_a_directory_that_is_removed_takes_nothing_from_redis(
    publisher: Publisher, mirror: Mirror, directory: RunDirectory
) -> None:
    publisher.publish(live_tree(12))
    directory.config_path.rename(directory.path / "hidden")
    publisher.publish(live_tree(12))
    assert seen(mirror).step == 12


async def test_a_lost_server_is_one_note_and_ends_nothing(directory: RunDirectory, tmp_path: Path) -> None:
    notes: list[str] = []
    with PrivateRedis(tmp_path / "own") as own:
        async with published(lambda: live_tree(12), directory, own.url, notes.append, every_s=0.05):
            with connect(own.url) as client:
                for _ in range(200):
                    if client.exists(Keys.of(directory.key).tags):
                        break
                    await asyncio.sleep(0.05)
                assert client.exists(Keys.of(directory.key).tags)
            await asyncio.to_thread(own.stop)
            for _ in range(200):
                if notes:
                    break
                await asyncio.sleep(0.05)
            await asyncio.sleep(0.3)
    assert len(notes) == 1
    assert "the page over Redis is old" in notes[0]
    password = own.url.partition("@")[0].rpartition(":")[2]
    assert password not in notes[0]


def test_what_cannot_be_shown_is_said_without_the_password(
    server: PrivateRedis,
    directory: RunDirectory,
    client: redis.Redis,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
) -> None:
    assert main(["trial", "--redis", server.url]) == 1
    assert "knows no run 'trial'" in capsys.readouterr().err

    async def register() -> None:
        async with Registry(server.url, directory.key) as registry:
            await registry.set_run("training", 40, 2)

    asyncio.run(register())
    assert main(["trial", "--redis", server.url]) == 2
    said = capsys.readouterr().err
    assert "has no page of trial" in said
    assert server.url not in said
    gone = "redis://:secret@127.0.0.1:9/0"
    with pytest.raises(RegistryError, match="cannot read the page of trial") as raised:
        Mirror(gone, directory.key, tmp_path / "gone").refresh()
    assert "secret" not in str(raised.value)
    with pytest.raises(ConfigError, match=r"watching\.metrics"):
        Mirror(server.url, directory.key, tmp_path / "none").refresh()
