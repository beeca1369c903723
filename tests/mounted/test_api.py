"""passthrough.mount: a program's own mounts, in this very process and in programs that run for the test."""

import contextlib
import errno
import os
import signal
import socket
import stat
import subprocess
import sys
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from passthrough import (
    Attr,
    Context,
    Entry,
    FileSystem,
    Mounted,
    Opened,
    Tree,
    UserError,
    exitcodes,
    failure,
    install_wake_signal,
    mount,
)
from passthrough.api.words import MountWords
from passthrough.filesystem import Agreement, Kernel
from passthrough.protocol.errors import StreamError
from passthrough.transport import devfuse

from .harness import ROOT, TIMEOUT_S, Harness, is_mounted, wait_until

_SIGNALS = sorted(signal.valid_signals())


class Places:
    """A source with a file in it, and mount points; what was mounted on them and is left is cleared."""

    def __init__(self, harness: Harness) -> None:
        self.harness = harness
        self.source = harness.directory("source", 0o777)
        (self.source / "file").write_bytes(b"content")
        self.point = self.another()

    def another(self) -> Path:
        """One more mount point."""
        point = self.harness.directory("mount", 0o777)
        self.harness.cleanups.append(lambda: subprocess.run(["umount", "-l", point], capture_output=True, check=False))
        return point


@pytest.fixture
def places(harness: Harness) -> Places:
    return Places(harness)


def _descriptors() -> dict[int, str]:
    found = {}
    for name in os.listdir("/proc/self/fd"):
        with contextlib.suppress(OSError):
            found[int(name)] = os.readlink(f"/proc/self/fd/{name}")
    return found


@contextlib.contextmanager
def nothing_left() -> Iterator[None]:
    """Descriptors, threads, handlers of signals and the umask are afterwards what they were before."""

    def state() -> tuple[object, ...]:
        os.umask(mask := os.umask(0o22))
        return _descriptors(), set(threading.enumerate()), [signal.getsignal(n) for n in _SIGNALS], mask, os.getcwd()

    before = state()
    yield
    assert state() == before


_WORDS: dict[str, MountWords] = {"devfuse": {"io_uring": "off"}, "io_uring": {"io_uring": "on"}}


@pytest.fixture(params=_WORDS)
def words(request: pytest.FixtureRequest) -> MountWords:
    """How requests come."""
    if request.param == "io_uring":
        request.getfixturevalue("enabled")
    return _WORDS[request.param]


def test_a_mount_ends_with_its_block(places: Places, words: MountWords) -> None:
    with nothing_left():
        with mount(Tree(places.source), places.point, **words) as mounted:
            assert mounted.mountpoint == str(places.point)
            assert (places.point / "file").read_bytes() == b"content"
            (places.point / "new").write_bytes(b"other way")
            assert not mounted.wait(0)
        assert not is_mounted(places.point)
        assert mounted.wait()
        mounted.close()
    assert (places.source / "new").read_bytes() == b"other way"


@pytest.mark.parametrize("passthrough", ["auto", "off"])
def test_it_ends_while_files_are_open(places: Places, words: MountWords, passthrough: Any) -> None:
    with nothing_left():
        with mount(Tree(places.source, passthrough=passthrough), places.point, **words):
            fd = os.open(places.point / "file", os.O_RDONLY)
            directory = os.open(places.point, os.O_PATH)
        assert not is_mounted(places.point)
        with pytest.raises(OSError, match=r".") as caught:
            os.stat("not looked up before", dir_fd=directory)
        assert caught.value.errno in (errno.ENOTCONN, errno.ECONNABORTED)
        os.close(directory)
        with contextlib.suppress(OSError):
            os.close(fd)


def test_an_unmount_from_outside_ends_it(places: Places, words: MountWords) -> None:
    with nothing_left():
        mounted = mount(Tree(places.source), places.point, **words)
        subprocess.run(["umount", places.point], check=True)
        assert mounted.wait(TIMEOUT_S)
    mounted.close()


def test_one_that_was_detached_while_in_use_ends_by_close(places: Places, words: MountWords) -> None:
    """The kernel goes on serving who is inside; so do we until we are to end, and there is nothing to unmount then."""
    with nothing_left():
        with mount(Tree(places.source, passthrough="off"), places.point, **words) as mounted:
            fd = os.open(places.point / "file", os.O_RDONLY)
            subprocess.run(["umount", "--lazy", places.point], check=True)
            assert os.pread(fd, 7, 0) == b"content"
            assert not mounted.wait(0)
        with pytest.raises(OSError, match=r".") as caught:
            os.fstat(fd)
        assert caught.value.errno in (errno.ENOTCONN, errno.ECONNABORTED)
        with contextlib.suppress(OSError):
            os.close(fd)


def test_two_mounts_in_one_process_create_as_their_callers(places: Places) -> None:
    """Credentials and umasks are the serving threads'; each mount has its own, and the program keeps its own."""
    points = [places.point, places.another()]
    code = "import os, sys; os.umask(0o27); [open(f'{sys.argv[1]}/{sys.argv[2]}-{n}', 'x').close() for n in range(50)]"
    with nothing_left(), contextlib.ExitStack() as stack:
        for point in points:
            stack.enter_context(mount(Tree(places.source), point, allow_other=True))
        writers = [
            subprocess.Popen([sys.executable, "-c", code, point, str(uid)], user=uid, group=uid, extra_groups=[])
            for point in points
            for uid in (1234, 4321)
            if (uid == 1234) == (point == places.point)
        ]
        assert [writer.wait(TIMEOUT_S) for writer in writers] == [0, 0]
        (points[0] / "own").touch()
    for uid in (1234, 4321):
        made = [os.stat(places.source / f"{uid}-{n}") for n in range(50)]
        assert {(st.st_uid, st.st_gid, stat.S_IMODE(st.st_mode)) for st in made} == {(uid, uid, 0o640)}
    assert os.stat(places.source / "own").st_uid == os.getuid()


def test_the_same_directory_and_one_inside_can_be_the_mount_point(places: Places) -> None:
    inside = places.source / "inside"
    inside.mkdir()
    (inside / "below").touch()
    with nothing_left():
        with mount(Tree(places.source), places.source):
            assert (places.source / "file").read_bytes() == b"content"
            assert is_mounted(places.source)
        with mount(Tree(places.source), inside, nonempty=True):
            assert (inside / "file").read_bytes() == b"content"
            assert os.listdir(inside / "inside") == ["below"]
        assert os.listdir(inside) == ["below"]


class _Broken(Tree):
    def init(self, agreement: Agreement, kernel: Kernel | None) -> None:
        raise RuntimeError("not today")


@pytest.mark.filterwarnings("error")
def test_what_cannot_begin_leaves_nothing_mounted(places: Places, caplog: pytest.LogCaptureFixture) -> None:
    with nothing_left():
        fs = _Broken(places.source)
        with pytest.raises(UserError, match="not today"):
            mount(fs, places.point)
        assert not is_mounted(places.point)
        fs.close()
    with nothing_left():
        empty = FileSystem()
        with pytest.raises(UserError, match="does not answer: Function not implemented") as caught:
            mount(empty, places.point)
        assert caught.value.status == exitcodes.SERVING
        assert not is_mounted(places.point)


def test_a_directory_on_a_file_is_asked_about(places: Places) -> None:
    point = places.harness.base / "a file"
    point.touch()
    with nothing_left():
        fs = Tree(places.source)
        with pytest.raises(UserError, match="is the root of the file system a regular file") as caught:
            mount(fs, point)
        assert caught.value.status == exitcodes.SERVING
        assert not is_mounted(point)
        fs.close()


def test_one_that_was_refused_can_be_mounted_elsewhere(places: Places) -> None:
    with nothing_left():
        fs = Tree(places.source)
        with pytest.raises(UserError, match="does not exist") as caught:
            mount(fs, places.point / "nowhere")
        assert caught.value.status == exitcodes.MOUNTPOINT
        with mount(fs, places.point):
            assert (places.point / "file").exists()


class _Failing(Tree):
    def unlink(self, ctx: Context, nodeid: int, name: bytes) -> None:
        raise RuntimeError("a mistake of the policy's")


def test_a_mistake_in_a_method_fails_one_request(places: Places, caplog: pytest.LogCaptureFixture) -> None:
    with mount(_Failing(places.source), places.point):
        with pytest.raises(OSError, match=os.strerror(errno.EIO)):
            os.unlink(places.point / "file")
        assert (places.point / "file").read_bytes() == b"content"
    assert "a mistake of the policy's" in caplog.text
    caplog.clear()


def test_what_went_wrong_in_serving_is_raised(places: Places, monkeypatch: pytest.MonkeyPatch) -> None:
    """No kernel sends a stream that cannot be read, so its reader is made to find one."""

    def refuse(*_: object) -> None:
        raise StreamError("a header that lies")

    with nothing_left():
        mounted = mount(Tree(places.source), places.point, io_uring="off", threads=1)
        monkeypatch.setattr(devfuse, "read_header", refuse)
        with pytest.raises(OSError, match=r"."):
            os.listdir(places.point)
        with pytest.raises(UserError, match="cannot be trusted") as caught:
            mounted.wait(TIMEOUT_S)
        assert caught.value.status == exitcodes.SERVING
        assert not is_mounted(places.point)
        with pytest.raises(UserError, match="cannot be trusted"), mounted:
            pass


def test_an_error_in_the_block_goes_before(places: Places) -> None:
    with nothing_left(), pytest.raises(ZeroDivisionError), mount(Tree(places.source), places.point):
        raise ZeroDivisionError
    assert not is_mounted(places.point)


def test_read_only_and_who_may_not_be_let_in(places: Places) -> None:
    with mount(Tree(places.source), places.point, ro=True):
        with pytest.raises(OSError, match=os.strerror(errno.EROFS)):
            (places.point / "new").touch()
        subprocess.run(["mount", "--internal-only", "-o", "remount,rw", places.point], check=True)
        with pytest.raises(OSError, match=os.strerror(errno.EROFS)):
            (places.point / "new").touch()
    fs = Tree(places.source, default_permissions=False)
    with pytest.raises(ValueError, match="every user"):
        mount(fs, places.point, allow_other=True)
    fs.close()


def test_locks_that_wait_need_a_handler_which_the_program_asks_for(places: Places) -> None:
    before = signal.getsignal(signal.SIGURG)
    signal.signal(signal.SIGURG, signal.SIG_DFL)
    try:
        fs = Tree(places.source, flock=True)
        with pytest.raises(ValueError, match="install_wake_signal"):
            mount(fs, places.point)
        fs.close()
        install_wake_signal()
        with (
            nothing_left(),
            open(places.source / "file") as held,
            mount(Tree(places.source, flock=True), places.point) as mounted,
        ):
            _flock_waits(places, held.fileno(), mounted)
    finally:
        signal.signal(signal.SIGURG, before)


def _flock_waits(places: Places, held: int, mounted: Mounted) -> None:
    """Somebody waits for a lock when the mount is ended."""
    import fcntl

    fcntl.flock(held, fcntl.LOCK_EX)
    with subprocess.Popen(["flock", "--exclusive", places.point / "file", "true"], stderr=subprocess.DEVNULL) as waiter:
        wait_until(lambda: any(t.name == "waiting" for t in threading.enumerate()), "the lock is waited for")
        mounted.close()
        assert waiter.wait(TIMEOUT_S) != 0
    fcntl.flock(held, fcntl.LOCK_UN)


class _OneFile(FileSystem):
    """Its root is a regular file."""

    def getattr(self, ctx: Context, nodeid: int, fh: int | None) -> tuple[Attr, int]:
        return Attr(1, 4, 1, *(0,) * 6, stat.S_IFREG | 0o444, 1, 0, 0, 0), 0

    def open(self, ctx: Context, nodeid: int, flags: int, open_flags: int) -> Opened:
        return Opened(7)

    def read(self, ctx: Context, nodeid: int, fh: int, offset: int, size: int, flags: int) -> bytes:
        return b"one\n"[offset:]

    def release(self, ctx: Context, nodeid: int, fh: int, flags: int, release_flags: int, lock_owner: int) -> None:
        assert fh == 7


def test_a_file_system_that_is_one_file_is_mounted_on_a_file(places: Places) -> None:
    point = places.source / "file"
    with nothing_left(), mount(_OneFile(), point):
        assert point.read_bytes() == b"one\n"
    assert point.read_bytes() == b"content"


# What a policy is told


class _Paths(Tree):
    """Keeps what each lookup found."""

    def __init__(self, source: Path) -> None:
        self.found: dict[bytes, int] = {}
        super().__init__(source, cache="never", passthrough="off")

    def lookup(self, ctx: Context, nodeid: int, name: bytes) -> Entry:
        entry = super().lookup(ctx, nodeid, name)
        self.found[name] = entry.nodeid
        return entry


def test_the_path_of_a_node_follows_it(places: Places) -> None:
    (places.source / "dir").mkdir()
    (places.source / "dir" / "real (deleted)").touch()
    (places.source / "dir" / "one").touch()
    outside = places.harness.directory("outside")
    with mount(fs := _Paths(places.source), places.point):
        assert fs.path_of(1) == b"/"
        assert fs.path_of(1, b"name") == b"/name"
        held = [os.open(places.point / "dir" / name, os.O_PATH) for name in ("one", "real (deleted)")]
        node = fs.found[b"one"]
        assert fs.path_of(node) == b"/dir/one"
        assert fs.path_of(fs.found[b"dir"], b"new") == b"/dir/new"
        assert fs.path_of(fs.found[b"real (deleted)"]) == b"/dir/real (deleted)"
        os.rename(places.point / "dir" / "one", places.point / "two")
        assert fs.path_of(node) == b"/two"
        os.rename(places.source / "two", places.source / "three")
        assert fs.path_of(node) == b"/three"
        os.rename(places.source / "three", outside / "three")
        assert fs.path_of(node) is None
        os.unlink(outside / "three")
        assert fs.path_of(node) is None
        with pytest.raises(OSError, match=os.strerror(errno.EBADF)):
            fs.path_of(999_999)
        for fd in held:
            os.close(fd)


def test_a_node_can_be_looked_into(places: Places) -> None:
    with mount(fs := _Paths(places.source), places.point):
        held = os.open(places.point / "file", os.O_PATH)
        fd = fs.open_node(fs.found[b"file"])
        assert os.read(fd, 100) == b"content"
        os.close(fd)
        with socket.socket(socket.AF_UNIX) as bound:
            bound.bind(str(places.source / "socket"))
        assert stat.S_ISSOCK(os.stat(places.point / "socket").st_mode)
        with pytest.raises(OSError, match=os.strerror(errno.EBADF)):
            fs.open_node(fs.found[b"socket"])
        os.close(held)


def test_errors_of_a_method_reach_the_caller(places: Places) -> None:
    class Refusing(Tree):
        def open(self, ctx: Context, nodeid: int, flags: int, open_flags: int) -> Opened:
            raise failure(errno.EDQUOT)

    with mount(Refusing(places.source), places.point), pytest.raises(OSError, match=os.strerror(errno.EDQUOT)):
        (places.point / "file").read_bytes()


# Programs

_HEAD = "import os, signal, sys, threading; from passthrough import Tree, mount\n"


def program(code: str, *words: object, before: Sequence[str] = (), **more: Any) -> "subprocess.Popen[str]":
    """One that runs this code, by what stands before it on the command line; more is for Popen."""
    return subprocess.Popen(
        [*before, sys.executable, "-W", "error", "-c", _HEAD + code, *map(str, words)],
        env={**os.environ, "PYTHONPATH": str(ROOT), "PYTHONDONTWRITEBYTECODE": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        **more,
    )


def ends(process: "subprocess.Popen[str]") -> tuple[int, str, str]:
    """Its exit status, and what it said."""
    try:
        out, err = process.communicate(timeout=TIMEOUT_S)
    finally:
        process.kill()
    return process.returncode, out, err


def handles(pid: int, number: signal.Signals) -> bool:
    """Whether a process has a handler of this signal."""
    status = Path(f"/proc/{pid}/status").read_text()
    (caught,) = (line.split()[1] for line in status.splitlines() if line.startswith("SigCgt:"))
    return bool(int(caught, 16) >> (number - 1) & 1)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_the_foreground_ends_by_a_signal(places: Places, number: signal.Signals) -> None:
    code = (
        "before = [signal.getsignal(n) for n in signal.valid_signals()]\n"
        "mount(Tree(sys.argv[1]), sys.argv[2]).run()\n"
        "assert before == [signal.getsignal(n) for n in signal.valid_signals()]\n"
        "print('over', os.path.ismount(sys.argv[2]), threading.active_count())\n"
    )
    process = program(code, places.source, places.point)
    wait_until(lambda: handles(process.pid, signal.SIGHUP), "it is mounted, and in the foreground")
    assert (places.point / "file").read_bytes() == b"content"
    process.send_signal(number)
    assert ends(process) == (0, "over False 1\n", "")


def test_the_foreground_ends_by_an_unmount(places: Places) -> None:
    process = program("mount(Tree(sys.argv[1]), sys.argv[2]).run()\n", places.source, places.point)
    wait_until(lambda: is_mounted(places.point), "it is mounted")
    subprocess.run(["umount", places.point], check=True)
    assert ends(process) == (0, "", "")


def test_a_keyboard_interrupt_ends_the_block(places: Places) -> None:
    process = program(
        "with mount(Tree(sys.argv[1]), sys.argv[2]) as mounted:\n    print('in', flush=True)\n    mounted.wait()\n",
        places.source,
        places.point,
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "in\n"
    process.send_signal(signal.SIGINT)
    status, _, err = ends(process)
    assert (status, err.splitlines()[-1]) == (-signal.SIGINT, "KeyboardInterrupt")
    assert not is_mounted(places.point)


def test_a_program_that_ends_leaves_no_mount(places: Places) -> None:
    process = program("mount(Tree(sys.argv[1]), sys.argv[2]); print('over')\n", places.source, places.point)
    assert ends(process) == (0, "over\n", "")
    assert not is_mounted(places.point)


def test_a_child_that_was_forked_leaves_the_mount_alone(places: Places) -> None:
    code = (
        "with mount(Tree(sys.argv[1]), sys.argv[2]) as mounted:\n"
        "    if os.fork() == 0:\n        mounted.close(); sys.exit(0)\n"
        "    print(os.wait()[1], os.path.ismount(sys.argv[2]), open(sys.argv[2] + '/file').read())\n"
        "print(os.path.ismount(sys.argv[2]))\n"
    )
    process = program("import warnings; warnings.simplefilter('ignore')\n" + code, places.source, places.point)
    assert ends(process) == (0, "0 True content\nFalse\n", "")


def test_too_few_descriptors_leave_no_mount(places: Places) -> None:
    code = (
        "import resource\nbefore = len(os.listdir('/proc/self/fd'))\nfs = Tree(sys.argv[1])\n"
        "count = len(os.listdir('/proc/self/fd'))\nresource.setrlimit(resource.RLIMIT_NOFILE, (count + 8,) * 2)\n"
        "try:\n    mount(fs, sys.argv[2], threads=64)\nexcept OSError as error:\n    print(error.errno)\n"
        "fs.close()\n"
        "print(os.path.ismount(sys.argv[2]), len(os.listdir('/proc/self/fd')) - before, threading.active_count())\n"
    )
    status, out, err = ends(program(code, places.source, places.point))
    assert (status, out, err) == (0, f"{errno.EMFILE}\nFalse 0 1\n", "")


@pytest.mark.parametrize("way", ["close_fds=False", "and the switch"])
def test_a_program_with_a_file_of_its_mount_open_starts_another(places: Places, way: str) -> None:
    """Each way that the page gives: its child would close the file, and we would have to answer meanwhile."""
    code = (
        "import subprocess, passthrough; passthrough.install_wake_signal()\n"
        "with mount(Tree(sys.argv[1], posix_lock=True, passthrough='off'), sys.argv[2], io_uring='off'):\n"
        "    with open(sys.argv[2] + '/file', 'a') as file:\n"
        + (
            "        subprocess.run(['true'], check=True, close_fds=False)\n"
            if way == "close_fds=False"
            else "        subprocess._USE_VFORK = False; subprocess.run(['true'], check=True)\n"
        )
    )
    assert ends(program(code, places.source, places.point)) == (0, "", "")


_ORDINARY = """
def descriptors():
    return sorted(name for name in os.listdir('/proc/self/fd') if os.path.exists(f'/proc/self/fd/{name}'))
before = descriptors()
with mount(Tree(sys.argv[1]), sys.argv[2], io_uring='off') as mounted:
    held = os.open(sys.argv[2] + '/file', os.O_RDONLY)
    assert os.read(held, 7) == b'content'
    if len(sys.argv) > 3:
        os.close(held)
assert not os.path.ismount(sys.argv[2])
if len(sys.argv) == 3:
    try:
        os.fstat(held)
    except OSError as error:
        print(error.errno)
    try:
        os.close(held)
    except OSError:
        pass
print(threading.active_count(), descriptors() == before)
"""


@pytest.mark.parametrize("closed", [False, True], ids=["in use", "not in use"])
def test_an_ordinary_user_mounts_through_fusermount(places: Places, user: int, *, closed: bool) -> None:
    for path in (places.source, places.point):
        os.chown(path, user, user)
    words = [places.source, places.point, *(["closed"] if closed else [])]
    status, out, err = ends(program(_ORDINARY, *words, user=user, group=user, extra_groups=[]))
    assert (status, err) == (0, "")
    *aborted, last = out.splitlines()
    assert last == "1 True"
    assert closed or int(aborted[0]) in (errno.ENOTCONN, errno.ECONNABORTED)


def test_what_an_ordinary_user_may_not_have_is_refused(places: Places, user: int) -> None:
    code = "Tree(sys.argv[1], passthrough='on')\n"
    status, _, err = ends(program(code, places.source, user=user, group=user, extra_groups=[]))
    assert status == 1
    assert err.splitlines()[-1].endswith("UserError: passthrough='on' needs CAP_SYS_ADMIN")
