"""A daemon among its neighbours: the service manager that started it, the journal, the system log."""

import contextlib
import os
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from passthrough import exitcodes
from passthrough.protocol import constants as c
from passthrough.protocol import structs as s

from ..notified import Listener, listening, stream_of
from ..vhost.frontend import FrontEnd
from ..vhost.fuse import Client
from .harness import (
    ROOT,
    Harness,
    Mount,
    background,
    command,
    daemon_pid,
    ended,
    is_mounted,
    log_size,
    refusal,
    run,
    said_in_log,
    wait_until,
)


@pytest.fixture
def peer(harness: Harness) -> Iterator[Listener]:
    """A service manager's socket."""
    with listening(harness.base / "notify") as made:
        yield made


def environment(peer: Listener, **more: str) -> dict[str, str]:
    """What a service manager gives to what it starts."""
    own = {"NOTIFY_SOCKET": peer.address, "WATCHDOG_USEC": "1000000", "PYTHONPATH": str(ROOT)}
    return {**os.environ, **own, "PYTHONDONTWRITEBYTECODE": "1", **more}


def sockets(pid: int) -> int:
    """How many sockets this process has."""
    links = (os.readlink(entry) for entry in Path(f"/proc/{pid}/fd").iterdir())
    return sum(link.startswith("socket:") for link in links)


@pytest.fixture
def mount(harness: Harness) -> Mount:
    """Two directories, which are unmounted whatever happens."""
    made = Mount(harness.directory("source"), harness.directory("mount"))
    harness.mounts.append(made)
    return made


@pytest.mark.parametrize("kind", ["mount", "export"])
def test_a_manager_is_told_of_readiness_life_and_end(harness: Harness, peer: Listener, kind: str, mount: Mount) -> None:
    if kind == "export":
        mount.source, mount.point = harness.base / "image", harness.base / "file"
        mount.source.write_bytes(bytes(4096))
        mount.point.touch()
    words = command(kind, "-f", mount.source, mount.point)
    with background(*words, env=environment(peer), stderr=subprocess.DEVNULL) as process:
        state = peer.states()
        assert state == {"MAINPID": str(process.pid), "READY": "1", "STATUS": f"{mount.source} on {mount.point}"}
        assert is_mounted(mount.point)
        for _ in range(3):
            assert peer.states() == {"WATCHDOG": "1"}
        mount.pid = process.pid
        served = mount.server
        assert sockets(served) < sockets(process.pid) + 3  # signals and channel, and not the manager's:
        links = {os.readlink(entry) for entry in Path(f"/proc/{served}/fd").iterdir()}
        kept = {os.readlink(entry) for entry in Path(f"/proc/{process.pid}/fd").iterdir()}
        assert not {link for link in links & kept if link.startswith("socket:")}
        process.terminate()
        assert "STOPPING" in peer.until("STOPPING")
        assert process.wait(30) == exitcodes.OK
    assert not is_mounted(mount.point)


def test_an_abstract_socket_is_reached_as_well(mount: Mount) -> None:
    with listening(f"@passthrough-test-{os.getpid()}") as peer:
        words = command("mount", "-f", mount.source, mount.point)
        with background(*words, env=environment(peer), stderr=subprocess.DEVNULL) as process:
            assert peer.states()["READY"] == "1"
            assert peer.states() == {"WATCHDOG": "1"}
            mount.umount()
            assert "STOPPING" in peer.until("STOPPING")
            assert process.wait(30) == exitcodes.OK


def test_who_is_left_behind_is_the_main_process(peer: Listener, mount: Mount) -> None:
    result = run("mount", mount.source, mount.point, env=environment(peer))
    assert result.returncode == 0, result.stderr
    mount.pid = daemon_pid(mount.point)
    said = [peer.until("MAINPID"), peer.until("MAINPID")]  # from the process itself, and from the one that was started
    assert {state["MAINPID"] for state in said} == {str(mount.pid)}
    assert peer.until("WATCHDOG")


def test_no_sign_of_life_while_requests_go_unanswered(harness: Harness, peer: Listener, mount: Mount) -> None:
    words = command("mount", "-f", mount.source, mount.point)
    with background(*words, env=environment(peer), stderr=subprocess.DEVNULL) as process:
        peer.until("WATCHDOG")
        mount.pid = process.pid
        served = mount.server
        os.kill(served, signal.SIGSTOP)
        try:
            peer.falls_silent(3)  # six times the interval
        finally:
            os.kill(served, signal.SIGCONT)
        assert peer.until("WATCHDOG")
        process.terminate()
        assert process.wait(30) == exitcodes.OK


def test_a_share_gives_no_sign_while_its_rings_stand_still(harness: Harness, peer: Listener) -> None:
    """The share is a mount whose daemon is stopped: the ring's thread hangs in it, and a second request waits."""
    below = harness.mount("-o", "cache=never")
    path, log = harness.base / "socket", harness.base / "serve.log"
    words = command("serve", f"--socket-path={path}", f"--shared-dir={below.point}")
    with log.open("w") as file, background(*words, env=environment(peer), stderr=file) as process:
        state = peer.states()
        assert state["STATUS"] == f"{below.point}: waiting for a front end"
        assert state["MAINPID"] == str(process.pid)
        front = FrontEnd(str(path))
        front.begin()
        assert peer.until("STATUS")["STATUS"] == f"{below.point}: connected"
        client = Client(front)
        client.init()
        client.getattr()
        assert peer.until("WATCHDOG")
        stopped = below.server
        os.kill(stopped, signal.SIGSTOP)
        try:
            for slot in (client.slot, client.new_slot()):
                args = s.FUSE_GETATTR_IN.struct.pack(0, 0)
                pieces = client.pieces("getattr", c.FUSE_ROOT_ID, args, out=s.FUSE_ATTR_OUT.size, slot=slot)[1]
                client.submit(pieces, slot)
            wait_until(lambda: "not being answered" in log.read_text(), "the ring stands still")
            peer.falls_silent(3)
        finally:
            os.kill(stopped, signal.SIGCONT)
        for _ in range(2):
            front.rings[1].wait()
        assert peer.until("WATCHDOG")
        front.close()
        assert peer.until("STATUS")["STATUS"] == f"{below.point}: waiting for a front end"
        process.terminate()
        assert process.wait(30) == exitcodes.OK


@contextlib.contextmanager
def beside_a_journal(harness: Harness, mount: Mount, *words: str) -> Iterator[tuple[Listener, Path]]:
    """`passthrough mount -f` where there is a journal, which also reads its standard error; the mount as it sees it."""
    stderr = harness.base / "stderr"
    with listening(harness.base / "journal") as journal, stderr.open("w") as file:
        setup = "mount -t tmpfs none /run/systemd\nmkdir /run/systemd/journal\n"
        setup += f"ln -s {journal.address} /run/systemd/journal/socket"
        shell = ["unshare", "--mount", "--propagation=private", "sh", "-ec", f'{setup}\nexec "$@"', "sh"]
        own = {"PYTHONPATH": str(ROOT), "PYTHONDONTWRITEBYTECODE": "1", "JOURNAL_STREAM": stream_of(stderr)}
        full = [*shell, *command("mount", "-f", *words, mount.source, mount.point)]
        with background(*full, env={**os.environ, **own}, stderr=file) as process:
            yield journal, Path(f"/proc/{process.pid}/root") / mount.point.relative_to("/")
            process.terminate()
            assert process.wait(30) == exitcodes.OK
    assert stderr.read_text() == ""


def test_the_journal_gets_fields_out_of_the_sandbox(harness: Harness, mount: Mount) -> None:
    Path("/run/systemd").mkdir(exist_ok=True)
    with beside_a_journal(harness, mount, "--log-level=trace") as (journal, point):
        while "INIT" not in (entry := journal.entry())["MESSAGE"]:
            pass
        assert entry["PASSTHROUGH_TARGET"] == str(mount.point)
        assert entry["PASSTHROUGH_SOURCE"] == str(mount.source)
        assert entry["PASSTHROUGH_COMMAND"] == "mount"
        wait_until(lambda: os.path.ismount(point), "mounted")
        with pytest.raises(FileNotFoundError):
            (point / "missing").read_bytes()
        while "'missing'" not in (entry := journal.entry())["MESSAGE"]:
            pass
        _, unique, name, *_ = entry["MESSAGE"].split()
        assert (entry["PASSTHROUGH_REQUEST"], entry["PRIORITY"], name) == (unique, "7", "LOOKUP")
        while not (entry := journal.entry())["MESSAGE"].startswith(f"< {unique} "):
            pass
        assert entry["MESSAGE"].endswith("ENOENT")
        assert entry["PASSTHROUGH_REQUEST"] == unique


@pytest.mark.skipif(Path("/dev/log").exists(), reason="this machine has a system log")
def test_without_a_system_log_asking_for_it_is_an_error(harness: Harness, mount: Mount) -> None:
    for words in (
        ("mount", "--syslog", mount.source, mount.point),
        ("mount", "-f", "-o", "syslog", mount.source, mount.point),
        ("serve", "--syslog", f"--shared-dir={mount.source}", f"--socket-path={harness.base}/s"),
    ):
        line = refusal(run(*words), exitcodes.SYSTEM)
        assert "syslog: /dev/log cannot be opened" in line
    assert not is_mounted(mount.point)


def test_levels_hold_in_the_background(harness: Harness) -> None:
    if Path("/dev/log").exists() or Path("/run/systemd/journal/socket").exists():
        pytest.skip("this machine has a log of its own, which tests do not read")
    before = log_size()
    loud = harness.mount("-o", "log_level=trace,passthrough=off")
    quiet = harness.mount("--log-level=off", "-o", "passthrough=off")
    for mount in (loud, quiet):
        (mount.point / "file").write_text("content")
        mount.umount()
        assert mount.pid is not None
        assert ended(mount.pid)
    lines = said_in_log(loud.pid, since=before)
    assert [line for line in lines if "CREATE" in line and "'file'" in line]
    assert said_in_log(quiet.pid, since=before) == []


def test_only_a_dead_mount_is_cleared_with_dead(harness: Harness) -> None:
    mount = harness.mount()
    (mount.point / "file").touch()
    assert run("umount", "--dead", mount.point).returncode == 0
    assert run("umount", "--dead", harness.directory("other")).returncode == 0
    assert (mount.point / "file").exists()
    assert mount.pid is not None
    os.kill(mount.pid, signal.SIGKILL)
    assert ended(mount.pid)
    result = run("umount", "--dead", mount.point)
    assert (result.returncode, result.stderr) == (0, "")
    assert not is_mounted(mount.point)
