"""The run's registry against a real Redis server."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from urllib.parse import urlsplit

import pytest
import redis
from redis.backoff import NoBackoff
from redis.exceptions import RedisError
from redis.retry import Retry

from cluster.session import PrivateRedis
from cluster.state import Registry, RunDirectory
from cluster.state.ledger import MAY_FOLLOW, NOT_BEGUN, NUM_REASONS, GroupState
from cluster.state.outbox import Outbox
from cluster.state.registry import WorkerRecord
from configs.errors import LedgerError, RegistryError
from configs.schema import RunConfig
from tests.integration.training import run_tree

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def server(tmp_path: Path) -> Iterator[PrivateRedis]:
    with PrivateRedis(tmp_path / "redis") as started:
        yield started


def wait_until_gone(process_id: int, timeout_s: float) -> bool:
    deadline = time.monotonic() + timeout_s
    stat = Path(f"/proc/{process_id}/stat")
    while time.monotonic() < deadline:
        try:
            if stat.read_text().rpartition(")")[2].split()[0] == "Z":
                return True
        except (FileNotFoundError, ProcessLookupError):
            return True
        time.sleep(0.01)
    return False


async def test_a_snapshot_holds_what_was_written(server: PrivateRedis) -> None:
    async with Registry(server.url, "run") as registry:
        await registry.set_run("starting", num_steps=100)
        await registry.set_run("running")
        await registry.set_progress(3, 4, {"reward/mean": 0.5, "phase": "train"})
        await registry.set_worker("rollout-0", "rollout", "ready", 4)
        await registry.set_worker("reward-0", "reward", "ready")
        await registry.set_worker("rollout-1", "rollout", "ready", 4)
        await registry.remove_worker("rollout-1")
        snapshot = await registry.snapshot()
        assert (snapshot.status, snapshot.num_steps) == ("running", 100)
        assert snapshot.started_s is not None
        assert abs(snapshot.started_s - time.time()) < 60
        assert (snapshot.step, snapshot.weight_version) == (3, 4)
        assert snapshot.progress["reward/mean"] == 0.5
        assert snapshot.progress["phase"] == "train"
        assert snapshot.workers == {
            "rollout-0": WorkerRecord("rollout", "ready", 4),
            "reward-0": WorkerRecord("reward", "ready", None),
        }
        await registry.set_version(5)
        assert (await registry.snapshot()).weight_version == 5


async def test_an_unknown_run_has_an_empty_snapshot(server: PrivateRedis) -> None:
    async with Registry(server.url, "nobody") as registry:
        snapshot = await registry.snapshot()
    assert snapshot.status is None
    assert snapshot.step == 0
    assert not snapshot.workers
    assert set(snapshot.group_counts.values()) == {0}


# The way of a group to each state.
WAYS: dict[str, list[GroupState]] = {
    NOT_BEGUN: [],
    GroupState.DISPATCHED: [GroupState.DISPATCHED],
    GroupState.FAILED: [GroupState.DISPATCHED, GroupState.FAILED],
    GroupState.GIVEN_UP: [GroupState.DISPATCHED, GroupState.FAILED, GroupState.GIVEN_UP],
    GroupState.SCORED: [GroupState.DISPATCHED, GroupState.SCORED],
    GroupState.QUEUED: [GroupState.DISPATCHED, GroupState.SCORED, GroupState.QUEUED],
    GroupState.TRAINED: [GroupState.DISPATCHED, GroupState.SCORED, GroupState.QUEUED, GroupState.TRAINED],
}


async def test_groups_moved_concurrently_are_counted_in_exactly_one_state(server: PrivateRedis) -> None:
    last = [GroupState.QUEUED, GroupState.TRAINED, GroupState.GIVEN_UP]

    async def walk(registry: Registry, sequence: int) -> None:
        for state in WAYS[last[sequence % 3]]:
            await registry.ledger.move(sequence, state)

    async def watch(registry: Registry, walkers: asyncio.Future[list[None]]) -> int:
        seen = 0
        while not walkers.done():
            counts = (await registry.snapshot()).group_counts
            assert min(counts.values()) >= 0
            assert seen <= sum(counts.values()) <= 60, "a group was lost, or counted twice"
            seen = sum(counts.values())
        return seen

    async with Registry(server.url, "run") as registry, Registry(server.url, "run") as watcher:
        walkers = asyncio.gather(*(walk(registry, sequence) for sequence in range(60)))
        await watch(watcher, walkers)
        await walkers
        counts = (await registry.snapshot()).group_counts
    assert {state: count for state, count in counts.items() if count} == dict.fromkeys(last, 20)


@pytest.mark.parametrize("before", WAYS)
@pytest.mark.parametrize("after", GroupState)
async def test_a_move_that_the_table_does_not_hold_is_refused(
    server: PrivateRedis, before: str, after: GroupState
) -> None:
    async with Registry(server.url, "run") as registry:
        for state in WAYS[before]:
            await registry.ledger.move(3, state)
        counts = (await registry.snapshot()).group_counts
        if before in MAY_FOLLOW[after]:
            assert await registry.ledger.move(3, after, attempt=1)
            assert (await registry.snapshot()).group_counts[after] == 1
        else:
            with pytest.raises(LedgerError, match=f"group 3 is {before} and cannot become {after}"):
                await registry.ledger.move(3, after, attempt=1)
            assert (await registry.snapshot()).group_counts == counts


async def test_a_batch_is_trained_on_once_and_as_a_whole(server: PrivateRedis) -> None:
    async with Registry(server.url, "run") as registry:
        for sequence in range(4):
            for state in WAYS[GroupState.QUEUED if sequence < 3 else GroupState.DISPATCHED]:
                await registry.ledger.move(sequence, state)
        with pytest.raises(LedgerError, match="group 3 is dispatched and cannot become trained"):
            await registry.ledger.train(dict.fromkeys((2, 3), 0), step=1)
        assert (await registry.snapshot()).group_counts[GroupState.TRAINED] == 0, "all of them or none"
        await registry.ledger.train(dict.fromkeys((0, 1, 2), 0), step=1)
        await registry.ledger.train(dict.fromkeys((0, 1, 2), 0), step=1)  # sent again after a lost answer
        with pytest.raises(LedgerError, match="group 0 is trained and cannot become trained"):
            await registry.ledger.train({0: 0}, step=2)
        counts = (await registry.snapshot()).group_counts
    assert (counts[GroupState.DISPATCHED], counts[GroupState.TRAINED]) == (1, 3)


async def test_late_news_is_dropped(server: PrivateRedis) -> None:
    async with Registry(server.url, "run") as registry:
        ledger = registry.ledger
        assert await ledger.move(7, GroupState.DISPATCHED)
        assert await ledger.move(7, GroupState.FAILED, reason="reward is NaN", value=float("nan"))
        assert await ledger.move(7, GroupState.FAILED, attempt=1, reason="again")
        assert not await ledger.move(7, GroupState.SCORED, attempt=0), "of an earlier attempt"
        assert await ledger.move(7, GroupState.SCORED, attempt=2)
        await ledger.train({7: 2}, step=4)
        assert not await ledger.move(7, GroupState.QUEUED, attempt=2), "overtaken by the learner"
        counts = (await registry.snapshot()).group_counts
        assert (counts[GroupState.TRAINED], sum(counts.values())) == (1, 1)
        assert await ledger.groups([7, 8]) == [{"state": "trained", "attempt": 2, "step": 4, "life": 0}, None]


async def test_a_prompt_that_is_given_up_is_listed_and_its_group_goes_on(server: PrivateRedis) -> None:
    async with Registry(server.url, "run") as registry:
        await registry.ledger.move(5, GroupState.DISPATCHED)
        await registry.ledger.give_up(5, 3, "file:17", "it is cursed")
        await registry.ledger.move(5, GroupState.DISPATCHED, attempt=4)
        snapshot = await registry.snapshot()
    assert snapshot.given_up == {"file:17": {"sequence": 5, "reason": "it is cursed"}}
    assert (snapshot.group_counts[GroupState.DISPATCHED], sum(snapshot.group_counts.values())) == (1, 1)


async def test_a_run_that_goes_on_rewinds_the_ledger_and_shuts_out_its_earlier_life(server: PrivateRedis) -> None:
    async with Registry(server.url, "run") as earlier, Registry(server.url, "run") as later:
        assert await earlier.ledger.rewind(0) == 0
        for sequence in range(8):
            for state in WAYS[GroupState.QUEUED if sequence < 6 else GroupState.DISPATCHED]:
                await earlier.ledger.move(sequence, state)
        await earlier.ledger.train(dict.fromkeys(range(1, 6), 0), step=1)  # news of group 0 was lost
        assert await later.ledger.rewind(4) == 2, "groups 4 and 5 are to be trained on again"
        snapshot = await later.snapshot()
        assert snapshot.life == 2
        assert {state: count for state, count in snapshot.group_counts.items() if count} == {GroupState.TRAINED: 4}
        assert [group is None for group in await later.ledger.groups(range(8))] == [False] * 4 + [True] * 4
        with pytest.raises(LedgerError, match="another launcher goes on with this run"):
            await earlier.ledger.move(4, GroupState.DISPATCHED)
        for state in WAYS[GroupState.QUEUED]:
            await later.ledger.move(4, state)
        await later.ledger.train({4: 0}, step=2)


async def test_a_ledger_that_was_lost_is_made_again_from_the_checkpoint(server: PrivateRedis) -> None:
    async with Registry(server.url, "run") as registry:
        await registry.ledger.rewind(3)
        assert (await registry.snapshot()).group_counts[GroupState.TRAINED] == 3
        with pytest.raises(LedgerError, match="group 2 is trained and cannot become dispatched"):
            await registry.ledger.move(2, GroupState.DISPATCHED, attempt=1)


async def test_what_a_ledger_keeps_does_not_grow_with_the_run(server: PrivateRedis) -> None:
    async with Registry(server.url, "run") as registry:
        with redis.Redis.from_url(server.url) as admin:
            await registry.ledger.rewind(0)
            for step in range(200):
                for sequence in range(4 * step, 4 * step + 8):  # the groups of this step and of the next
                    for state in WAYS[GroupState.QUEUED]:
                        await registry.ledger.move(sequence, state)
                await registry.ledger.train(dict.fromkeys(range(4 * step, 4 * step + 4), 0), step + 1)
            used = sum(admin.memory_usage(key, samples=0) or 0 for key in registry.ledger.keys)
            assert admin.hlen("bicot:{run}:groups") <= 12
        assert used < 4096
        counts = (await registry.snapshot()).group_counts
        assert {state: count for state, count in counts.items() if count} == {
            GroupState.TRAINED: 800,
            GroupState.QUEUED: 4,
        }
        assert await registry.ledger.groups([3, 799, 803, 804]) == [
            {"state": "trained"},
            {"state": "trained", "attempt": 0, "step": 200, "life": 1},
            {"state": "queued", "attempt": 0},
            None,
        ]


async def test_a_million_groups_are_rewound_at_once(server: PrivateRedis) -> None:
    async with Registry(server.url, "run") as registry:
        await registry.ledger.rewind(1_000_000)
        started_s = time.monotonic()
        assert await registry.ledger.rewind(999_968) == 32
        assert time.monotonic() - started_s < 1.0
        assert (await registry.snapshot()).group_counts[GroupState.TRAINED] == 999_968
        with redis.Redis.from_url(server.url) as admin:
            assert sum(admin.memory_usage(key, samples=0) or 0 for key in registry.ledger.keys) < 1024


async def test_late_news_of_a_group_whose_record_is_gone_is_dropped_and_a_new_beginning_refused(
    server: PrivateRedis,
) -> None:
    async with Registry(server.url, "run") as registry:
        ledger = registry.ledger
        for step in range(3):
            for state in WAYS[GroupState.QUEUED]:
                await ledger.move(step, state)
            await ledger.train({step: 0}, step + 1)
        for state in (GroupState.SCORED, GroupState.QUEUED, GroupState.FAILED, GroupState.GIVEN_UP):
            assert not await ledger.move(0, state, attempt=1)
        for state in (GroupState.DISPATCHED, GroupState.TRAINED):
            with pytest.raises(LedgerError, match=f"group 0 is trained and cannot become {state}"):
                await ledger.move(0, state)
        counts = (await registry.snapshot()).group_counts
        assert {state: count for state, count in counts.items() if count} == {GroupState.TRAINED: 3}


async def test_of_prompts_given_up_the_last_are_kept_and_a_rewind_takes_back_its_own(server: PrivateRedis) -> None:
    async with Registry(server.url, "run") as registry:
        ledger = registry.ledger
        await ledger.rewind(0)
        for attempt in range(NUM_REASONS + 5):
            sequence = 0 if attempt < NUM_REASONS else 7
            await ledger.move(sequence, GroupState.DISPATCHED, attempt)
            await ledger.give_up(sequence, attempt, f"file:{attempt}", "all its rewards are equal")
        given_up = (await registry.snapshot()).given_up
        assert len(given_up) == NUM_REASONS
        assert "file:4" not in given_up
        assert given_up["file:5"] == {"sequence": 0, "reason": "all its rewards are equal"}
        await ledger.rewind(4)
        given_up = (await registry.snapshot()).given_up
        assert {entry["sequence"] for entry in given_up.values()} == {0}


async def test_a_server_that_comes_back_empty_is_given_the_ledger_again(server: PrivateRedis) -> None:
    async with Registry(server.url, "run") as registry:
        ledger = registry.ledger
        await registry.set_run("training", 9, 2)
        await ledger.rewind(2)
        for state in WAYS[GroupState.QUEUED]:
            await ledger.move(2, state)
        await ledger.move(3, GroupState.DISPATCHED)
        with redis.Redis.from_url(server.url) as admin:
            admin.flushall()
        assert await ledger.move(3, GroupState.SCORED)
        await ledger.train({2: 0, 3: 0}, step=2)
        await registry.set_progress(2, 2)
        snapshot = await registry.snapshot()
        counts = {state: count for state, count in snapshot.group_counts.items() if count}
        assert (counts, snapshot.life, snapshot.status) == ({GroupState.TRAINED: 4}, 1, "training")
        with redis.Redis.from_url(server.url) as admin:
            admin.set("bicot:{run}:life", 5)
        with pytest.raises(LedgerError, match="another launcher goes on with this run"):
            await ledger.move(4, GroupState.DISPATCHED)


async def test_a_pause_of_the_server_costs_no_news(server: PrivateRedis) -> None:
    notes: list[str] = []
    async with Registry(server.url, "run") as registry:
        box = Outbox(120.0, notes.append)
        ledger = registry.ledger
        await ledger.rewind(0)
        with redis.Redis.from_url(server.url) as admin:
            admin.execute_command("CLIENT", "PAUSE", "9000", "ALL")
        async with asyncio.timeout(60):
            for state in WAYS[GroupState.QUEUED]:
                await box.tell(partial(ledger.move, 0, state))
            await box.tell(partial(ledger.train, {0: 0}, 1))
            await box.flush(60)
        assert box.error is None
        assert len(notes) == 2
        assert (await registry.snapshot()).group_counts[GroupState.TRAINED] == 1


async def test_clear_forgets_an_earlier_run_and_no_other(server: PrivateRedis) -> None:
    async with Registry(server.url, "run") as registry, Registry(server.url, "run-2") as other:
        for each in (registry, other):
            await each.set_run("running", num_steps=1)
            await each.ledger.rewind(1)
        await registry.clear()
        assert (await registry.snapshot()).status is None
        assert (await other.snapshot()).group_counts[GroupState.TRAINED] == 1


async def test_a_second_run_of_one_name_on_one_server_leaves_the_first_alone(
    server: PrivateRedis, tmp_path: Path
) -> None:
    """Two people, each with a run directory of their own, launch the same config at the same Redis."""
    directories = [
        RunDirectory.create(RunConfig.model_validate(run_tree("exp", tmp_path / place))) for place in ("a", "b")
    ]
    async with Registry(server.url, directories[0].key) as first, Registry(server.url, directories[1].key) as second:
        await first.clear()
        await first.set_run("training", num_steps=9)
        await first.ledger.rewind(0)
        for state in WAYS[GroupState.QUEUED]:
            await first.ledger.move(0, state)
        await second.clear()
        await second.set_run("starting", num_steps=9)
        await second.ledger.rewind(0)
        await first.ledger.train({0: 0}, step=1)
        assert (await first.snapshot()).group_counts[GroupState.TRAINED] == 1
        assert (await second.snapshot()).status == "starting"
    assert await Registry.keys_of(server.url, "exp") == [directory.key for directory in directories]
    assert await Registry.keys_of(server.url, "ex") == []


async def test_a_life_that_was_cleared_is_still_counted(server: PrivateRedis) -> None:
    async with Registry(server.url, "run") as earlier, Registry(server.url, "run") as later:
        await earlier.ledger.rewind(0)
        await later.clear()
        await later.ledger.rewind(0)
        with pytest.raises(LedgerError, match="another launcher goes on with this run"):
            await earlier.ledger.move(0, GroupState.DISPATCHED)


async def test_a_killed_server_is_a_prompt_registry_error(server: PrivateRedis) -> None:
    async with Registry(server.url, "run") as registry:
        await registry.set_run("running", num_steps=1)
        os.kill(server.process_id, signal.SIGKILL)
        started_s = time.monotonic()
        with pytest.raises(RegistryError, match=r"registry\.redis_url") as raised:
            await registry.ledger.move(0, GroupState.DISPATCHED)
        with pytest.raises(RegistryError):
            await registry.snapshot()
        assert time.monotonic() - started_s < 5
        password = urlsplit(server.url).password
        assert password
        assert password not in str(raised.value)
        assert "127.0.0.1" in str(raised.value)
    assert not server.is_running


async def test_a_server_that_hangs_is_an_error_and_not_a_hang(server: PrivateRedis) -> None:
    async with Registry(server.url, "run") as registry:
        os.kill(server.process_id, signal.SIGSTOP)
        try:
            with pytest.raises(RegistryError, match="registry"):
                async with asyncio.timeout(20):
                    await registry.set_progress(1, 1)
        finally:
            os.kill(server.process_id, signal.SIGCONT)


async def test_a_registry_goes_on_when_its_connections_were_dropped(server: PrivateRedis) -> None:
    async with Registry(server.url, "run") as registry:
        await registry.ledger.move(0, GroupState.DISPATCHED)
        with redis.Redis.from_url(server.url) as admin:
            admin.execute_command("CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes")
        await registry.ledger.move(0, GroupState.SCORED)
        assert (await registry.snapshot()).group_counts[GroupState.SCORED] == 1


async def test_a_wrong_password_is_refused_without_showing_it(server: PrivateRedis) -> None:
    port = urlsplit(server.url).port
    with pytest.raises(RegistryError, match="password") as raised:
        await Registry(f"redis://:open-sesame@127.0.0.1:{port}/0", "run").connect()
    assert "open-sesame" not in str(raised.value)
    assert f"127.0.0.1:{port}" in str(raised.value)


@pytest.mark.parametrize("url", ["localhost:6379", "http://localhost", "redis://localhost:port", "redis://[::1"])
def test_a_malformed_url_names_the_config_field(url: str) -> None:
    with pytest.raises(RegistryError, match=r"registry\.redis_url"):
        Registry(url, "run")


def test_the_private_server_listens_on_loopback_and_wants_its_password(server: PrivateRedis) -> None:
    port = urlsplit(server.url).port
    assert port is not None
    with (
        redis.Redis(port=port, retry=Retry(NoBackoff(), 0)) as stranger,
        pytest.raises(RedisError, match="authenticate"),
    ):
        stranger.ping()
    with redis.Redis.from_url(server.url) as client:
        assert client.config_get("bind")["bind"] == "127.0.0.1"
    command_line = Path(f"/proc/{server.process_id}/cmdline").read_text()
    assert str(urlsplit(server.url).password) not in command_line


def test_the_registry_outlives_its_server(tmp_path: Path) -> None:
    with PrivateRedis(tmp_path) as first, redis.Redis.from_url(first.url) as client:
        client.set("kept", "yes")
    with PrivateRedis(tmp_path) as second, redis.Redis.from_url(second.url, decode_responses=True) as client:
        assert client.get("kept") == "yes"


def test_stop_ends_the_server_and_may_be_called_twice(tmp_path: Path) -> None:
    server = PrivateRedis(tmp_path)
    server.stop()
    server.stop()
    assert not Path(f"/proc/{server.process_id}").exists()


def test_a_busy_configured_port_is_named(tmp_path: Path) -> None:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        port = listener.getsockname()[1]
        with pytest.raises(RegistryError, match=rf"registry\.redis_port {port} .*0 to take a free one"):
            PrivateRedis(tmp_path, port)


def test_a_configured_port_is_used(tmp_path: Path) -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    with PrivateRedis(tmp_path, port) as server:
        assert urlsplit(server.url).port == port


def test_a_server_that_cannot_start_says_why(tmp_path: Path) -> None:
    (tmp_path / "appendonly.aof").write_text("this is no append-only file\n")
    (tmp_path / "appendonlydir").write_text("nor is this a folder\n")
    with pytest.raises(RegistryError, match=r"redis\.log.*registry\.redis_url"):
        PrivateRedis(tmp_path)


def test_no_server_to_be_found_names_the_remedy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(RegistryError, match="install one of them"):
        PrivateRedis(tmp_path)


@pytest.mark.parametrize("ending", [signal.SIGKILL, signal.SIGTERM, None], ids=["killed", "terminated", "returned"])
def test_the_server_ends_with_its_launcher(tmp_path: Path, ending: signal.Signals | None) -> None:
    launcher = subprocess.Popen(
        [
            sys.executable,
            "-c",
            "import sys; from pathlib import Path; from cluster.session.private_redis import PrivateRedis\n"
            "print(PrivateRedis(Path(sys.argv[1])).process_id, flush=True); sys.stdin.read()",
            str(tmp_path),
        ],
        cwd=ROOT,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    with launcher:
        assert launcher.stdout is not None
        assert launcher.stdin is not None
        server_process_id = int(launcher.stdout.readline())
        if ending is None:
            launcher.stdin.close()
        else:
            launcher.send_signal(ending)
        assert wait_until_gone(server_process_id, timeout_s=10)
        launcher.wait(10)
