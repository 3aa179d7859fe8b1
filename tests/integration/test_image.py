"""The image is built from the Dockerfile, on a Debian base made here, and its container trains the tiny model.

Neither Docker nor a registry is needed: buildah builds in a chroot, mmdebstrap makes the base from Debian's packages.
Takes about 20 GiB of disk while it runs, and leaves nothing.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
NEEDED_GIB = 20
PASSED_ON = ("PIP_INDEX_URL", "PIP_FIND_LINKS", "SSL_CERT_FILE")
"""What the Dockerfile takes as arguments where packages come from elsewhere than PyPI."""
MISSING = [name for name in ("buildah", "mmdebstrap") if shutil.which(name) is None]
TOTAL_S = 3000

pytestmark = [
    pytest.mark.slow,
    pytest.mark.proof,
    pytest.mark.timeout(TOTAL_S),
    pytest.mark.skipif(bool(MISSING), reason=f"{' and '.join(MISSING)} missing: apt-get install buildah mmdebstrap"),
    pytest.mark.skipif(os.geteuid() != 0, reason="buildah's chroot wants root"),
    pytest.mark.skipif(
        shutil.disk_usage(tempfile.gettempdir()).free < NEEDED_GIB << 30,
        reason=f"{NEEDED_GIB} GiB of disk are not free",
    ),
]


@dataclass(frozen=True, slots=True)
class Buildah:
    """One with a store of its own."""

    store: Path

    def __call__(self, command: str, *arguments: str) -> str:
        """What it prints; fails the test with its last words."""
        options = ("--root", str(self.store / "root"), "--runroot", str(self.store / "run"), "--storage-driver", "vfs")
        done = subprocess.run(
            ["buildah", *options, command, *arguments], cwd=ROOT, capture_output=True, text=True, timeout=TOTAL_S
        )
        assert done.returncode == 0, f"buildah {command}: {done.stdout[-4000:]}\n{done.stderr[-4000:]}"
        return done.stdout

    def run(self, container: str, *command: str) -> str:
        return self("run", "--isolation", "chroot", "--network", "host", container, "--", *command)


@pytest.fixture(scope="module")
def buildah() -> Iterator[Buildah]:
    folder = Path(tempfile.mkdtemp(prefix="bicot-image-"))
    try:
        yield Buildah(folder)
    finally:
        shutil.rmtree(folder)


@pytest.fixture(scope="module")
def base(buildah: Buildah) -> str:
    """Debian with nothing but what makes it start, and the certificates of this machine."""
    archive = buildah.store / "base.tar"
    certificates = os.environ.get("SSL_CERT_FILE", "/etc/ssl/certs/ca-certificates.crt")
    hook = f"--customize-hook=upload {certificates} {certificates}"
    options = ("--variant=minbase", "--include=ca-certificates", hook)
    made = subprocess.run(["mmdebstrap", *options, "bookworm", str(archive)], capture_output=True, text=True)
    assert made.returncode == 0, made.stderr[-4000:]
    buildah("from", "--name", "base", "scratch")
    buildah("add", "base", str(archive), "/")
    archive.unlink()
    buildah("commit", "--rm", "base", "localhost/base")
    return "localhost/base"


@pytest.fixture(scope="module")
def container(buildah: Buildah, base: str) -> str:
    """Of the CPU image."""
    wanted = {"BASE_IMAGE": base} | {name: os.environ[name] for name in PASSED_ON if name in os.environ}
    arguments = [option for name, value in wanted.items() for option in ("--build-arg", f"{name}={value}")]
    links = os.environ.get("PIP_FIND_LINKS", "")
    volumes = ("--volume", f"{links}:{links}:ro") if Path(links).is_absolute() else ()
    buildah("bud", "--isolation", "chroot", "--network", "host", *arguments, *volumes, "--tag", "bicot", ".")
    return buildah("from", "localhost/bicot").strip()


def test_its_user_has_no_rights_over_the_machine_and_it_brings_what_kuberay_calls(
    buildah: Buildah, container: str
) -> None:
    assert buildah.run(container, "id").startswith("uid=1000(ray) gid=100(users)")
    assert buildah.run(container, "bash", "-lc", "command -v ray wget bash").count("\n") == 3
    assert "Show runs in a browser" in buildah.run(container, "python", "-m", "cluster.watch", "--help")


def test_its_container_trains_the_tiny_model(buildah: Buildah, container: str) -> None:
    smaller = ("algorithm.groups_per_step=4", "algorithm.group_size=8", "data.num_evaluation_prompts=4")
    settings = [option for each in ("run.steps=2", "run.dir=/tmp/runs", *smaller) for option in ("--set", each)]
    buildah.run(container, "python", "-m", "cluster.launch", *settings)
    summary = json.loads(buildah.run(container, "cat", "/tmp/runs/shapes_cpu/summary.json"))
    assert (summary["status"], summary["steps"]) == ("finished", 2)
    assert (summary["heldout_reward_after"] or 0) > 0
