"""The hosts themselves: what a story relies on is so."""

from __future__ import annotations

import signal

from cluster.faults.hosts import several_hosts
from tests.waiting import wait_until


def test_hosts_have_names_disks_and_memory_of_their_own_and_reach_each_other(hosts_allowed: None) -> None:
    with several_hosts(["a", "b"], {}) as hosts:
        first, second = hosts["a"], hosts["b"]
        assert first.run("hostname").stdout.strip() == "node-a"
        first.run("touch", "/srv/mine", "/tmp/mine", "/dev/shm/mine")
        assert (first.disk / "mine").exists()
        assert second.run("ls", "/srv", "/tmp", "/dev/shm").stdout.count("mine") == 0
        connect = f"import socket; socket.create_connection(('{second.address}', 8000), timeout=2)"
        listener, log = second.start(
            ["python", "-u", "-m", "http.server", "8000", "--bind", second.address], "http.log"
        )
        wait_until(lambda: "Serving" in log.read_text(), 10, "no server came up")
        assert first.run("python", "-c", connect).returncode == 0
        second.cut_off()
        assert first.run("python", "-c", connect).returncode != 0
        second.plug_in()
        assert first.run("python", "-c", connect).returncode == 0
        assert second.kill() == 1
        assert listener.wait(timeout=5) == -signal.SIGKILL
