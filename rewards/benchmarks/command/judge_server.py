"""A judge on this machine: vLLM's OpenAI-compatible server, for as long as the command needs it.

    command ──pipe, never written to──► guard ──► vLLM's server, in a session of its own ──► OUTPUT/judge.log
               └ closed, or the command has died: the guard ends the server and all its processes

It starts when the first picture is to be judged, so that drawing has the GPU for itself, and wants a key that is on no
command line.
"""

from __future__ import annotations

import argparse
import os
import secrets
import shlex
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from configs.errors import ConfigError, ModelError
from configs.local.ports import free_port

MODULE: Final = "vllm.entrypoints.openai.api_server"
START_TIMEOUT_S: Final = 3600.0
"""A large judge may have to be downloaded first."""
STOP_TIMEOUT_S: Final = 20.0
"""For the server to end by itself, before it is killed."""
KEY_VARIABLE: Final = "BICOT_SERVED_JUDGE_KEY"
LOG_LINES: Final = 15
"""That are shown of a server which could not start."""
_POLL_S: Final = 0.5

_GUARD: Final = """
import contextlib, os, signal, subprocess, sys, threading
server = subprocess.Popen(sys.argv[2:], stdin=subprocess.DEVNULL, start_new_session=True)
def end(number):
    with contextlib.suppress(ProcessLookupError):
        os.killpg(server.pid, number)
def watch():
    sys.stdin.buffer.read()
    end(signal.SIGTERM)
    with contextlib.suppress(subprocess.TimeoutExpired):
        server.wait(float(sys.argv[1]))
    end(signal.SIGKILL)
threading.Thread(target=watch, daemon=True).start()
code = server.wait()
end(signal.SIGKILL)  # what it has left behind
os._exit(code if code >= 0 else 128 - code)
"""


class ServedJudge:
    """Serves `model` on loopback once `start` is called, until `stop`."""

    def __init__(
        self,
        model: str,
        name: str,
        options: Sequence[str],
        log: Path,
        note: Callable[[str], None],
        start_timeout_s: float = START_TIMEOUT_S,
    ) -> None:
        """model: hub id or folder. name: what requests call it. options: more of vLLM's server."""
        self._model, self._name, self._options = model, name, options
        self._log, self._note, self._start_timeout_s = log, note, start_timeout_s
        self._key = secrets.token_hex(16)
        self._port = free_port()
        self._process: subprocess.Popen[bytes] | None = None
        self._is_ready = False
        self._failure: ModelError | None = None
        self.url = f"http://127.0.0.1:{self._port}/v1"

    @property
    def key(self) -> str:
        """That every request has to carry."""
        return self._key

    def command(self) -> list[str]:
        """The server's command line."""
        where = ["--host", "127.0.0.1", "--port", str(self._port)]
        return [
            sys.executable,
            "-m",
            MODULE,
            "--model",
            self._model,
            "--served-model-name",
            self._name,
            *where,
            *self._options,
        ]

    def start(self) -> None:
        """Start it, unless it runs, and return when it answers. Raises ModelError, with the end of what it printed."""
        if self._failure is not None:
            raise self._failure
        if self._is_ready:
            return
        self._note(f"starting the judge {self._name} ({self._log})")
        try:
            self._start()
        except ModelError as error:
            self._failure = error
            self.stop()
            raise
        self._is_ready = True

    def _start(self) -> None:
        environment = {
            "VLLM_NO_USAGE_STATS": "1",
            "VLLM_CPU_OMP_THREADS_BIND": "nobind",  # of a CPU build: it would pin threads to cores that it does not own
            **os.environ,
            "VLLM_API_KEY": self._key,
        }
        guard = [sys.executable, "-c", _GUARD, str(STOP_TIMEOUT_S), *self.command()]
        try:
            self._log.parent.mkdir(parents=True, exist_ok=True)
            with self._log.open("wb") as log:
                process = self._process = subprocess.Popen(
                    guard, stdin=subprocess.PIPE, stdout=log, stderr=log, env=environment, start_new_session=True
                )
        except OSError as error:
            raise ModelError(f"the judge's server cannot be started: {error}") from error
        deadline = time.monotonic() + self._start_timeout_s
        while not self._answers():
            if (code := process.poll()) is not None:
                raise ModelError(f"the judge's server ended with code {code} before it answered; {self._last_lines()}")
            if time.monotonic() > deadline:
                waited = f"the judge's server did not answer within {self._start_timeout_s:g} s"
                raise ModelError(f"{waited}; {self._last_lines()}")
            time.sleep(_POLL_S)

    def stop(self) -> None:
        """End it with all its processes; safe to call twice."""
        process, self._process, self._is_ready = self._process, None, False
        if process is None:
            return
        assert process.stdin is not None
        process.stdin.close()
        try:
            process.wait(STOP_TIMEOUT_S + 10)
        except subprocess.TimeoutExpired:
            self._note(f"the judge's server, process {process.pid}, does not end; end it by hand")

    def _answers(self) -> bool:
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{self._port}/health", timeout=5) as answer:
                return bool(answer.status == 200)
        except (urllib.error.URLError, OSError):
            return False

    def _last_lines(self) -> str:
        lines = self._log.read_text(encoding="utf-8", errors="replace").splitlines()[-LOG_LINES:]
        return f"the last lines of {self._log}:\n" + "\n".join(lines)


@contextmanager
def served_judge(arguments: argparse.Namespace, note: Callable[[str], None]) -> Iterator[ServedJudge | None]:
    """The judge of --serve-judge, whose address and key the arguments have from now on; it ends with the block.

    None without that option. Raises ConfigError for --judge-args without it.
    """
    if arguments.serve_judge is None:
        if arguments.judge_args:
            raise ConfigError("--judge-args are of --serve-judge; name the model that is to be served, too")
        yield None
        return
    model: str = arguments.serve_judge
    folder = Path(model).expanduser()
    name = arguments.judge_model or (folder.resolve().name if folder.is_dir() else model)
    try:
        options = shlex.split(arguments.judge_args or "")
    except ValueError as error:
        raise ConfigError(f"--judge-args '{arguments.judge_args}': {error}") from error
    path = str(folder) if folder.is_dir() else model
    judge = ServedJudge(path, name, options, arguments.output_dir / "judge.log", note)
    os.environ[KEY_VARIABLE] = judge.key
    arguments.judge_url, arguments.judge_model, arguments.judge_key_env = judge.url, name, KEY_VARIABLE
    try:
        yield judge
    finally:
        judge.stop()
        os.environ.pop(KEY_VARIABLE, None)
