"""Several hosts on one machine, made of Linux namespaces, so that a test or the chaos harness sees what one
machine hides.

                     bridge (a network namespace of its own)
                    /        |          |          \\
              10.77.0.10    .11        .12         .13
                 head        a          b           c        one network, mount and UTS namespace each

A host has its own loopback, address, host name, /etc/hosts (with Debian's line `127.0.1.1 NAME`), /dev/shm, /tmp,
HOME and /srv (its disk). The checkout and the Python environment are visible on all of them, and so is /srv/shared
where a story asks for a shared disk. Processes keep the machine's process ids; `kill` ends those of one host.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

import psutil

from cluster.session.ray_connection import PROJECT_ROOT
from cluster.session.stop_signals import still_alive
from configs.errors import RunError
from configs.local.owned_folder import OwnedFolder, sweep

NETWORK = "10.77.0"
SHM_MIB = 600
TOOLS = ("ip", "nsenter", "unshare", "mount", "tc")
PREFIX = "bicot-hosts-"
BASE = Path("/var/tmp")
"""Not /tmp, which every host has of its own."""


def wait_until(condition: Callable[[], bool], timeout_s: float, otherwise: str) -> None:
    """Look a few times a second. Raises RunError with `otherwise` when the time is over."""
    deadline_s = time.monotonic() + timeout_s
    while not condition():
        if time.monotonic() > deadline_s:
            raise RunError(otherwise)
        time.sleep(0.1)


def why_not() -> str | None:
    """Why this machine cannot make hosts, or None when it can."""
    missing = [tool for tool in TOOLS if shutil.which(tool) is None]
    if missing:
        return f"{', '.join(missing)} not found (Debian: iproute2, util-linux)"
    if os.geteuid() != 0:
        return "network namespaces with addresses need root"
    name = f"bicot-probe-{os.getpid()}"
    made = _run(["ip", "netns", "add", name], check=False)
    if made.returncode != 0:
        return f"network namespaces are not allowed here: {made.stderr.strip()}"
    _run(["ip", "netns", "del", name])
    tried = _run(["unshare", "--mount", "--uts", "mount", "-t", "tmpfs", "tmpfs", "/dev/shm"], check=False)
    return None if tried.returncode == 0 else f"mount namespaces are not allowed here: {tried.stderr.strip()}"


@dataclass(eq=False)
class Host:
    """One host. `disk` is its /srv as this machine sees it."""

    name: str
    address: str
    netns: str
    switch: str
    cable: str
    root: Path
    environment: dict[str, str]
    holder: subprocess.Popen[bytes] | None = None
    logs: list[Path] = field(default_factory=list)

    @property
    def disk(self) -> Path:
        return self.root / "srv"

    def command(self, arguments: Sequence[str], environment: Mapping[str, str] | None = None) -> list[str]:
        """The command line that runs `arguments` on this host, in the checkout, as a login there would."""
        assert self.holder is not None
        variables = {
            "HOME": "/srv/home",
            "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
            "PYTHONPATH": str(PROJECT_ROOT),
            "OMP_NUM_THREADS": "1",
            "LANG": "C.UTF-8",
            **self.environment,
            **(environment or {}),
        }
        enter = ["nsenter", "--target", str(self.holder.pid), "--mount", "--uts", "--net", f"--wdns={PROJECT_ROOT}"]
        return [*enter, "env", "-i", *(f"{key}={value}" for key, value in variables.items()), *arguments]

    def run(self, *arguments: str, timeout_s: float = 60) -> subprocess.CompletedProcess[str]:
        return _run(self.command(arguments), check=False, timeout_s=timeout_s)

    def start(
        self, arguments: Sequence[str], log: str, environment: Mapping[str, str] | None = None
    ) -> tuple[subprocess.Popen[bytes], Path]:
        """Start a process in the background; what it prints goes to a file of the host's folder."""
        path = self.root / log
        self.logs.append(path)
        with path.open("wb") as file:
            process = subprocess.Popen(
                self.command(arguments, environment), stdout=file, stderr=subprocess.STDOUT, start_new_session=True
            )
        return process, path

    def cut_off(self) -> None:
        """Pull the network cable."""
        _run(["ip", "-n", self.switch, "link", "set", self.cable, "down"])

    def plug_in(self) -> None:
        _run(["ip", "-n", self.switch, "link", "set", self.cable, "up"])

    def limit_rate(self, rate: str) -> None:
        """Slow this host's sending down, for example to "100mbit"."""
        _run(["ip", "netns", "exec", self.netns, *f"tc qdisc replace dev eth0 root tbf rate {rate}".split(),
              *["burst", "256kb", "latency", "100ms"]])  # fmt: skip

    def processes(self) -> list[psutil.Process]:
        """All but the one that holds the namespaces."""
        assert self.holder is not None
        pids = [int(pid) for pid in _run(["ip", "netns", "pids", self.netns]).stdout.split()]
        found = []
        for pid in pids:
            if pid != self.holder.pid:
                with suppress(psutil.NoSuchProcess):
                    found.append(psutil.Process(pid))
        return found

    def kill(self) -> int:
        """End every process at once, as a power cut does; returns how many there were."""
        processes = self.processes()
        for process in processes:
            with suppress(psutil.NoSuchProcess):
                process.send_signal(signal.SIGKILL)
        if still_alive(processes, patience_s=10):
            raise RunError(f"processes of {self.name} do not end")
        return len(processes)

    def tail(self, lines: int = 15) -> str:
        """The last lines of all that was started here, for a failed assertion."""
        parts = [f"── {self.name}: {path.name}\n" + "\n".join(_lines(path)[-lines:]) for path in self.logs]
        return "\n".join(parts)


@contextmanager
def several_hosts(
    names: Sequence[str], environment: Mapping[str, str], shared: Path | None = None
) -> Iterator[dict[str, Host]]:
    """Make the hosts, the first of them at NETWORK.10, and take everything away at the end.

    shared: a folder that every host sees as /srv/shared; without, no host sees another's disk.
    """
    sweep(PREFIX, BASE, lambda _, tag: _end_namespaces(tag))
    tag = f"b{os.getpid() % 100000}"
    with ExitStack() as stack:
        root = stack.enter_context(OwnedFolder(PREFIX, BASE, tag)).path
        switch = f"{tag}-switch"
        _add_namespace(stack, switch)
        _run(["ip", "-n", switch, "link", "add", "br0", "type", "bridge"])
        _run(["ip", "-n", switch, "link", "set", "br0", "up"])
        addresses = {name: f"{NETWORK}.{10 + index}" for index, name in enumerate(names)}
        hosts = {}
        for index, (name, address) in enumerate(addresses.items()):
            host = Host(name, address, f"{tag}-{name}", switch, f"{tag}v{index}", root / name, dict(environment))
            _add_namespace(stack, host.netns)
            _plug(host)
            _prepare_disk(host, addresses)
            host.holder = _hold(host, shared)
            stack.callback(_end, host)
            hosts[name] = host
        yield hosts


def _end_namespaces(tag: str) -> None:
    """Of hosts whose maker was killed."""
    for line in _run(["ip", "netns", "list"]).stdout.splitlines():
        if (name := line.split()[0]).startswith(f"{tag}-"):
            for pid in _run(["ip", "netns", "pids", name], check=False).stdout.split():
                with suppress(ProcessLookupError):
                    os.kill(int(pid), signal.SIGKILL)
            _run(["ip", "netns", "del", name], check=False)


def _add_namespace(stack: ExitStack, name: str) -> None:
    _run(["ip", "netns", "add", name])
    stack.callback(_run, ["ip", "netns", "del", name], check=False)


def _plug(host: Host) -> None:
    for line in (
        f"ip link add {host.cable} netns {host.switch} type veth peer name eth0 netns {host.netns}",
        f"ip -n {host.switch} link set {host.cable} master br0",
        f"ip -n {host.switch} link set {host.cable} up",
        f"ip -n {host.netns} addr add {host.address}/24 dev eth0",
        f"ip -n {host.netns} link set eth0 up",
        f"ip -n {host.netns} link set lo up",
    ):
        _run(line.split())


def _prepare_disk(host: Host, addresses: Mapping[str, str]) -> None:
    for folder in ("srv/home", "tmp"):
        (host.root / folder).mkdir(parents=True)
    # As Debian's and Ubuntu's installers write it: the host's own name is a loopback address.
    others = [f"{address} node-{name}" for name, address in addresses.items() if name != host.name]
    lines = ["127.0.0.1 localhost", f"127.0.1.1 node-{host.name}", *others]
    (host.root / "hosts").write_text("\n".join(lines) + "\n")


def _hold(host: Host, shared: Path | None) -> subprocess.Popen[bytes]:
    """A sleeping process whose namespaces are the host's."""
    ready = host.root / "ready"
    seen = [PROJECT_ROOT, Path(sys.prefix), *([shared] if shared else [])]
    hidden = [path for path in seen if path.is_relative_to("/tmp")]  # would vanish under the host's own /tmp
    keep = [
        f"mkdir -p {host.root}/keep{index} && mount --rbind {path} {host.root}/keep{index}"
        for index, path in enumerate(hidden)
    ]
    bring_back = [
        f"mkdir -p {path} && mount --move {host.root}/keep{index} {path}" for index, path in enumerate(hidden)
    ]
    share = [f"mkdir /srv/shared && mount --rbind {shared} /srv/shared"] if shared else []
    Path("/srv").mkdir(exist_ok=True)
    script = "\n".join(
        [
            "set -e",
            f"hostname node-{host.name}",
            "mount --make-rprivate /",
            *keep,
            f"mount --bind {host.root}/srv /srv",
            *share,
            f"mount --bind {host.root}/tmp /tmp",
            *bring_back,
            f"mount --bind {host.root}/hosts /etc/hosts",
            f"mount -t tmpfs -o size={SHM_MIB}m tmpfs /dev/shm",
            f"touch {ready}",
            "exec sleep infinity",
        ]
    )
    command = ["ip", "netns", "exec", host.netns, "unshare", "--mount", "--uts", "bash", "-c", script]
    with (host.root / "holder.log").open("wb") as log:
        process = subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT, start_new_session=True)
    wait_until(lambda: ready.exists() or process.poll() is not None, 10, f"host {host.name} was not made within 10 s")
    assert ready.exists(), f"host {host.name} could not be made: {(host.root / 'holder.log').read_text()}"
    return process


def _end(host: Host) -> None:
    host.kill()
    assert host.holder is not None
    host.holder.kill()
    host.holder.wait(timeout=10)


def _lines(path: Path) -> list[str]:
    return path.read_text(errors="replace").splitlines() if path.exists() else []


def _run(command: Sequence[str], *, check: bool = True, timeout_s: float = 30) -> subprocess.CompletedProcess[str]:
    finished = subprocess.run(command, capture_output=True, text=True, timeout=timeout_s, check=False)
    assert not check or finished.returncode == 0, f"{' '.join(command)}: {finished.stderr}"
    return finished
