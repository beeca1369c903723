"""The units of systemd/: well formed, hardened as far as they may be, and working under a systemd."""

import os
import re
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from sandbox import capabilities

from ..mounted.harness import wait_until
from ..vhost.frontend import FrontEnd
from ..vhost.fuse import Client
from .manager import UNITS, Manager, install, manager

SERVICES = sorted(path.name for path in UNITS.glob("*.service"))
_EXPOSURE = {"passthrough-mount@.service": 7.0, "passthrough-export@.service": 6.9, "passthrough-serve@.service": 5.0}
"""The most that `systemd-analyze security` may say (0 is best, 10 worst); it knows nothing of our own sandbox."""


@pytest.fixture(scope="module")
def systemd(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Manager]:
    """One manager for all tests of this file."""
    if os.geteuid() != 0:
        pytest.skip("mounting as a service does takes root")
    with manager(tmp_path_factory.mktemp("systemd")) as made:
        yield made


def test_every_unit_is_well_formed(tmp_path: Path) -> None:
    units = install(tmp_path, str(tmp_path), outputs=False)
    instances = [units / path.name for path in UNITS.iterdir()]
    result = subprocess.run(
        ["systemd-analyze", "verify", "--man=no", *map(str, instances)],
        env={**os.environ, "SYSTEMD_UNIT_PATH": f"{units}:"},
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert (result.returncode, result.stderr) == (0, "")


@pytest.mark.parametrize("name", SERVICES)
def test_is_hardened(tmp_path: Path, name: str) -> None:
    units = install(tmp_path, str(tmp_path), outputs=False)
    threshold = str(int(_EXPOSURE[name] * 10))
    words = ["systemd-analyze", "security", "--offline=yes", f"--threshold={threshold}", str(units / name)]
    result = subprocess.run(words, capture_output=True, text=True, check=False, timeout=60)
    assert result.returncode == 0, result.stdout[-2000:] + result.stderr


@pytest.mark.parametrize("name", SERVICES)
def test_leaves_what_the_daemon_needs(name: str) -> None:
    text = (UNITS / name).read_text()
    left = set(re.findall(r"CAP_\w+", " ".join(re.findall(r"^CapabilityBoundingSet=.*$", text, re.MULTILINE))))
    wanted = {f"CAP_{capability}" for capability in (*capabilities.KEPT, "SYS_ADMIN", "DAC_READ_SEARCH")}
    assert wanted <= left
    for word in ("Type=notify", "NotifyAccess=main", "WatchdogSec=", "KillMode=mixed", "NoNewPrivileges=yes"):
        assert f"\n{word}" in text


@pytest.mark.parametrize("name", ["passthrough-mount@.service", "passthrough-export@.service"])
def test_no_mount_is_hidden_in_a_namespace_of_the_service(name: str) -> None:
    """What implies a mount namespace (systemd.exec(5)), whose mounts nobody else would see."""
    text = (UNITS / name).read_text()
    implied = r"^(Private\w+|Protect\w+|ReadOnlyPaths|ReadWritePaths|InaccessiblePaths|BindPaths|TemporaryFileSystem)="
    assert re.findall(implied, text, re.MULTILINE) == []


def test_a_mount_is_made_kept_and_undone(systemd: Manager, tmp_path: Path) -> None:
    source, point = tmp_path / "the source", tmp_path / "mount"
    source.mkdir()
    point.mkdir()
    (source / "file").write_text("content")
    unit = "passthrough-mount@made.service"
    systemd.configure("mount-made", SRC=f'"{source}"', MNT=point, OPTIONS="-o passthrough=off,cache=never")
    systemd.control("start", unit)  # returns when it is ready, so it must answer now
    inside = systemd.seen(point)
    assert (inside / "file").read_text() == "content"
    os.mknod(inside / "node", 0o600 | 0o010000)
    os.chmod(inside / "file", 0o4755)
    assert (source / "file").stat().st_mode & 0o7777 == 0o4755
    assert systemd.show(unit, "StatusText") == f"{source} on {point}"
    main = int(systemd.show(unit, "MainPID"))
    systemd.control("stop", unit)
    assert systemd.show(unit, "Result") == "success"
    assert os.listdir(inside) == []
    assert not Path(f"/proc/{main}").exists()


def test_a_mount_comes_back_after_its_process_was_killed(systemd: Manager, tmp_path: Path) -> None:
    source, point = tmp_path / "source", tmp_path / "mount"
    source.mkdir()
    point.mkdir()
    (source / "file").write_text("content")
    unit = "passthrough-mount@killed.service"
    systemd.configure("mount-killed", SRC=source, MNT=point, OPTIONS="")
    systemd.control("start", unit)
    first = int(systemd.show(unit, "MainPID"))
    os.kill(first, signal.SIGKILL)  # which leaves a dead mount behind
    wait_until(
        lambda: systemd.show(unit, "MainPID") not in ("0", str(first)) and systemd.show(unit, "SubState") == "running",
        "another took its place",
    )
    assert (systemd.seen(point) / "file").read_text() == "content"
    systemd.control("stop", unit)
    assert os.listdir(systemd.seen(point)) == []


def test_a_mount_that_answers_nothing_is_started_anew(systemd: Manager, tmp_path: Path) -> None:
    """The watchdog is of use: a daemon that is stopped has a keeper that lives, and yet there is no sign of life."""
    source, point = tmp_path / "source", tmp_path / "mount"
    source.mkdir()
    point.mkdir()
    unit = "passthrough-mount@stopped.service"
    systemd.configure("mount-stopped", SRC=source, MNT=point, OPTIONS="")
    drop_in = systemd.base / "units" / f"{unit}.d"
    drop_in.mkdir()
    (drop_in / "watchdog.conf").write_text("[Service]\nWatchdogSec=2\nLimitCORE=0\n")
    systemd.control("daemon-reload")
    systemd.control("start", unit)
    first = int(systemd.show(unit, "MainPID"))
    (served,) = Path(f"/proc/{first}/task/{first}/children").read_text().split()
    os.kill(int(served), signal.SIGSTOP)
    wait_until(lambda: systemd.show(unit, "NRestarts") == "1", "the manager ended it")
    wait_until(lambda: systemd.show(unit, "SubState") == "running", "another took its place")
    assert os.listdir(systemd.seen(point)) == []
    systemd.control("stop", unit)


def test_an_image_is_exported(systemd: Manager, tmp_path: Path) -> None:
    image, file = tmp_path / "image", tmp_path / "file"
    image.write_bytes(b"x" * 8192)
    file.touch()
    unit = "passthrough-export@disk.service"
    systemd.configure("export-disk", IMAGE=image, FILE=file, OPTIONS="--writable --format=raw")
    systemd.control("start", unit)
    inside = systemd.seen(file)
    with open(inside, "r+b") as exported:
        exported.write(b"y")
    assert image.read_bytes()[:2] == b"yx"
    systemd.control("stop", unit)
    assert inside.stat().st_size == 0


def test_a_share_is_started_by_its_first_front_end(systemd: Manager, tmp_path: Path) -> None:
    shared = tmp_path / "shared"
    shared.mkdir()
    name = "passthrough-serve@my-share"
    systemd.configure("serve-my-share", DIR=shared, OPTIONS="--xattr")
    systemd.control("start", f"{name}.socket")
    assert systemd.show(f"{name}.service", "ActiveState") == "inactive"
    front = FrontEnd(str(systemd.base / "sockets" / "my-share.sock"))
    front.begin()
    client = Client(front)
    client.init()
    assert client.getattr()["ino"] == shared.stat().st_ino
    assert systemd.show(f"{name}.service", "StatusText") == f"{shared}: connected"
    client.call("mkdir", 1, (0o700).to_bytes(4, "little") + bytes(4) + b"made\0", room=128)
    assert (shared / "made").is_dir()
    front.close()
    wait_until(lambda: systemd.show(f"{name}.service", "StatusText").endswith("waiting for a front end"), "it waits")
    systemd.control("stop", f"{name}.service", f"{name}.socket")
    assert systemd.show(f"{name}.service", "Result") == "success"
