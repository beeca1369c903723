"""passthrough.serve: a program's own back end, driven by our front end in the same process."""

import errno
import os
import pwd
import re
import signal
import socket
import stat
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from passthrough import Context, Entry, Tree, UserError, exitcodes, failure, serve
from passthrough.protocol import constants as c
from passthrough.protocol import structs as s

from ..mounted.harness import ROOT, TIMEOUT_S, wait_until
from ..wire.fake import labels_extension
from .frontend import FrontEnd, Memory
from .fuse import INIT_FLAGS, Client, ReplyError


class _Hiding(Tree):
    """What a policy is to a guest."""

    def lookup(self, ctx: Context, nodeid: int, name: bytes) -> Entry:
        if name == b"hidden":
            raise failure(errno.ENOENT)
        return super().lookup(ctx, nodeid, name)


@pytest.fixture
def shared(tmp_path: Path) -> Path:
    """What is served."""
    path = tmp_path / "shared"
    path.mkdir()
    (path / "seen").write_bytes(b"content")
    (path / "hidden").touch()
    return path


def _client(path: Path, memory: Memory | None = None) -> tuple[FrontEnd, Client]:
    front = FrontEnd(str(path), memory)
    front.begin()
    client = Client(front)
    client.init()
    return front, client


def _state() -> tuple[object, ...]:
    os.umask(mask := os.umask(0o22))
    descriptors = {name: os.path.realpath(f"/proc/self/fd/{name}") for name in os.listdir("/proc/self/fd")}
    return descriptors, set(threading.enumerate()), mask, signal.getsignal(signal.SIGTERM)


def test_a_guest_is_served_through_the_policy(shared: Path, tmp_path: Path) -> None:
    path = tmp_path / "socket"
    memory = Memory()
    before = _state()
    with serve(_Hiding(shared, cache="never"), path) as served:
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
        for _ in range(2):  # one front end after the other
            front, client = _client(path, memory)
            nodeid = client.lookup(1, b"seen")
            assert client.open(nodeid, os.O_RDONLY)
            with pytest.raises(ReplyError) as caught:
                client.lookup(1, b"hidden")
            assert caught.value.errno == errno.ENOENT
            front.close()
        assert not served.wait(0)
    assert not path.exists()
    assert not path.with_name("socket.pid").exists()
    assert _state() == before


def test_it_ends_while_a_guest_is_served(shared: Path, tmp_path: Path) -> None:
    served = serve(Tree(shared), tmp_path / "socket", tag="share", num_request_queues=2, socket_group=str(os.getgid()))
    assert stat.S_IMODE((tmp_path / "socket").stat().st_mode) == 0o660
    front, client = _client(tmp_path / "socket")
    client.open(client.lookup(1, b"seen"), os.O_RDONLY)
    served.close()
    served.close()
    assert served.wait()
    assert not (tmp_path / "socket").exists()
    front.close()


def test_once_ends_with_the_first_front_end(shared: Path, tmp_path: Path) -> None:
    served = serve(Tree(shared), tmp_path / "socket", once=True)
    front, _ = _client(tmp_path / "socket")
    front.close()
    assert served.wait(TIMEOUT_S)


def test_read_only_holds_for_guests(shared: Path, tmp_path: Path) -> None:
    with serve(Tree(shared), tmp_path / "socket", readonly=True):
        front, client = _client(tmp_path / "socket")
        with pytest.raises(ReplyError) as caught:
            client.open(client.lookup(1, b"seen"), os.O_RDWR)
        assert caught.value.errno == errno.EROFS
        front.close()


def test_kernel_passthrough_is_not_offered_to_a_guest(shared: Path, tmp_path: Path) -> None:
    with serve(Tree(shared), tmp_path / "socket"):
        front = FrontEnd(str(tmp_path / "socket"))
        front.begin()
        reply = Client(front).init(c.FUSE_INIT_EXT | c.FUSE_PASSTHROUGH)
        assert not c.FUSE_PASSTHROUGH >> 32 & reply[10]
        front.close()
    fs = Tree(shared, passthrough="on")
    with pytest.raises(ValueError, match="for mounts"):
        serve(fs, tmp_path / "socket")
    fs.close()


def test_a_socket_of_the_programs_own(shared: Path, tmp_path: Path) -> None:
    path = tmp_path / "socket"
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))
        listener.listen()
        with serve(Tree(shared), fd=listener.fileno()):
            front, client = _client(path)
            assert client.getattr()["ino"] == shared.stat().st_ino
            front.close()
        assert path.exists()
        assert listener.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN)


def test_what_cannot_be_served_is_said(shared: Path, tmp_path: Path) -> None:
    fs = Tree(shared)
    for words, what in (
        ({}, "one of socket_path"),
        ({"socket_path": "x", "fd": 1}, "one of socket_path"),
        ({"fd": 1, "socket_group": "root"}, "one of socket_path"),
        ({"socket_path": "x", "num_request_queues": 0}, "1 to 255"),
        ({"socket_path": "x", "num_request_queues": 2}, "together with tag"),
        ({"socket_path": "x", "thread_pool_size": 300}, "0 to 256"),
        ({"socket_path": "x", "tag": "t" * 37}, "36 bytes"),
    ):
        with pytest.raises(ValueError, match=what):
            serve(fs, **words)
    with pytest.raises(UserError, match="cannot be written") as caught:
        serve(fs, tmp_path / "nowhere" / "socket")
    assert caught.value.status == exitcodes.SOCKET
    with serve(Tree(shared), tmp_path / "socket"), pytest.raises(UserError, match="another daemon"):
        serve(fs, tmp_path / "socket")
    fs.close()
    wait_until(lambda: not (tmp_path / "socket").exists(), "the socket is removed")


def _program_of_the_page(mark: str) -> str:
    """The example of passthrough(3) that has this in it."""
    page = (ROOT / "man" / "passthrough.3").read_text(encoding="utf-8").replace("\\-", "-").replace("\\e", "\\")
    (found,) = (block for block in re.findall(r"^\.EX\n(.*?)^\.EE$", page, re.MULTILINE | re.DOTALL) if mark in block)
    return str(found)


def _run(code: str) -> "subprocess.Popen[str]":
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "PYTHONDONTWRITEBYTECODE": "1"}
    return subprocess.Popen([sys.executable, "-c", code], env=environment, text=True, stderr=subprocess.PIPE)


def test_the_page_s_program_that_confines_itself(shared: Path, tmp_path: Path) -> None:
    path = tmp_path / "socket"
    code = _program_of_the_page("sandbox.enter")
    code = code.replace("/run/share.sock", str(path)).replace("/srv/data", str(shared))
    (tmp_path / "other").touch()
    beyond = f"    open({str(tmp_path / 'other')!r})\n"
    code = code.replace("\nserve(", f"\ntry:\n{beyond}except PermissionError:\n    serve(")
    with _run(code) as process:
        try:
            wait_until(lambda: process.poll() is not None or path.exists(), "it listens")
            front, client = _client(path)
            assert client.open(client.lookup(1, b"seen"), os.O_RDWR)
            front.close()
            process.terminate()
            _, errors = process.communicate(timeout=TIMEOUT_S)
            assert (process.returncode, errors) == (0, "")
        finally:
            process.kill()


def test_the_page_s_program_without_a_directory(tmp_path: Path) -> None:
    path = tmp_path / "socket"
    code = _program_of_the_page("class Clock").replace("/run/clock.sock", str(path))
    with _run(code) as process:
        try:
            wait_until(lambda: process.poll() is not None or path.exists(), "it listens")
            front, client = _client(path)
            assert stat.S_ISREG(client.getattr()["mode"])
            front.close()
            process.terminate()
            _, errors = process.communicate(timeout=TIMEOUT_S)
            assert (process.returncode, errors) == (0, "")
        finally:
            process.kill()


def test_labels_and_other_names_are_for_guests_too(shared: Path, tmp_path: Path) -> None:
    """Without what brings labels a guest is refused; with it a new file has its own, under the host's name."""
    label = b"system_u:object_r:guest_t:s0\0"
    fs = Tree(shared, security_label=True, xattrmap="selinux")
    with serve(fs, tmp_path / "socket"):
        front = FrontEnd(str(tmp_path / "socket"))
        front.begin()
        client = Client(front)
        with pytest.raises(ReplyError):
            client.init()
        client.init(INIT_FLAGS | c.FUSE_SECURITY_CTX)
        args = s.FUSE_MKDIR_IN.struct.pack(0o755, 0) + b"new\0"
        client.call("mkdir", 1, args, out=128, extension=labels_extension(((b"security.selinux", label),)))
        nodeid = client.lookup(1, b"new")
        assert client.getxattr(nodeid, b"security.selinux") == label
        front.close()
    assert os.getxattr(shared / "new", "trusted.virtiofs.security.selinux") == label


_ROOT_FILE_SYSTEM = """
import sys
from passthrough import MappedTree, serve

class Quiet(MappedTree):
    def mkdir(self, ctx, nodeid, name, mode, umask):
        print(name.decode(), ctx.uid, flush=True)
        return super().mkdir(ctx, nodeid, name, mode, umask)

serve(Quiet(sys.argv[1]), sys.argv[2]).run()
"""


@pytest.fixture
def nobodys() -> Iterator[Path]:
    """A directory of an ordinary user's, which that user can reach."""
    nobody = pwd.getpwnam("nobody").pw_uid
    with tempfile.TemporaryDirectory(prefix="passthrough-test-") as name:
        os.chown(name, nobody, nobody)
        yield Path(name)


def test_an_ordinary_users_program_keeps_a_root_file_system(nobodys: Path) -> None:
    nobody = nobodys.stat().st_uid
    shared, path = nobodys / "shared", nobodys / "socket"
    shared.mkdir()
    os.chown(shared, nobody, nobody)
    with subprocess.Popen(
        [sys.executable, "-W", "error", "-c", _ROOT_FILE_SYSTEM, shared, path],
        env={**os.environ, "PYTHONPATH": str(ROOT), "PYTHONDONTWRITEBYTECODE": "1"},
        user=nobody,
        group=nobody,
        extra_groups=[],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        try:
            wait_until(lambda: process.poll() is not None or path.exists(), "it listens")
            front, client = _client(path)
            device = s.FUSE_MKNOD_IN.struct.pack(stat.S_IFCHR | 0o666, 0x103, 0) + b"null\0"
            client.call("mknod", 1, device, out=128, uid=1000)
            client.call("mkdir", 1, s.FUSE_MKDIR_IN.struct.pack(0o700, 0) + b"home\0", out=128, uid=1000)
            null, home = (client.getattr(client.lookup(1, name)) for name in (b"null", b"home"))
            assert (null["mode"], null["uid"], null["rdev"]) == (stat.S_IFCHR | 0o666, 1000, 0x103)
            assert (home["mode"], home["uid"]) == (stat.S_IFDIR | 0o700, 1000)
            front.close()
            process.terminate()
            assert process.communicate(timeout=TIMEOUT_S) == ("home 1000\n", "")
        finally:
            process.kill()
    assert {(entry.stat().st_uid, stat.S_IFMT(entry.stat().st_mode)) for entry in os.scandir(shared)} == {
        (nobody, stat.S_IFREG),
        (nobody, stat.S_IFDIR),
    }
