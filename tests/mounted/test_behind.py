"""What happens behind the mount's back: names that the kernel believes absent appear, files are leased."""

import errno
import fcntl
import os
import signal
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from .harness import Harness, Mount
from .posix.calls import opened
from .posix.children import NOBODY, as_user, beside, in_time
from .posix.modes import attempt

_SECRET, _LATER = b"root's own", b"anybody's"
_SOON_S = 15.0
"""Longer than any answer takes, and far less than a holder has to let go of a lease (fs.lease-break-time, 45 s)."""

# Names that the kernel believes absent


@pytest.fixture(params=["", "passthrough=off", "cache=metadata", "cache=always", "threads=1,io_uring=off"])
def believing(request: pytest.FixtureRequest, harness: Harness) -> Mount:
    """A mount on which an absent name stays absent for a minute, of a directory that everybody may write."""
    mount = harness.mount("-o", ",".join(filter(None, ("allow_other,negative_timeout=60", request.param))))
    mount.source.chmod(0o777)
    return mount


def _appears(mount: Mount, name: str, content: bytes, mode: int, uid: int = 0) -> Path:
    """Somebody has been told that there is no such name; then it is made in the source."""
    path = mount.point / name
    assert as_user(lambda: attempt(lambda: os.stat(path))) == "ENOENT"
    file = mount.source / name
    file.write_bytes(content)
    os.chown(file, uid, uid)
    file.chmod(mode)
    return path


def _use(path: Path, flags: int) -> bytes:
    with opened(path, flags | os.O_CREAT, 0o666) as fd:
        return os.pread(fd, 100, 0)


@pytest.mark.parametrize("flags", [os.O_RDWR, os.O_RDONLY, os.O_WRONLY, os.O_RDWR | os.O_TRUNC])
def test_creating_opens_no_file_that_the_caller_may_not_open(believing: Mount, flags: int) -> None:
    path = _appears(believing, "secret", _SECRET, 0o600)
    assert as_user(lambda: attempt(lambda: _use(path, flags))) == "EACCES"
    file = believing.source / "secret"
    assert file.read_bytes() == _SECRET
    assert (file.stat().st_uid, file.stat().st_mode & 0o7777) == (0, 0o600)


def test_creating_writes_to_no_file_that_may_only_be_read(believing: Mount) -> None:
    path = _appears(believing, "secret", _SECRET, 0o644)
    assert as_user(lambda: attempt(lambda: _use(path, os.O_RDWR))) == "EACCES"
    assert as_user(lambda: _use(path, os.O_RDONLY)) == _SECRET


def test_creating_leads_through_no_directory_that_is_closed(believing: Mount) -> None:
    path = believing.point / "link"
    assert as_user(lambda: attempt(lambda: os.stat(path))) == "ENOENT"
    closed = believing.source / "closed"
    closed.mkdir(0o700)
    (closed / "file").write_bytes(_SECRET)
    (closed / "file").chmod(0o666)
    (believing.source / "link").symlink_to("closed/file")
    assert as_user(lambda: attempt(lambda: _use(path, os.O_RDWR))) == "EACCES"
    assert (closed / "file").read_bytes() == _SECRET


@pytest.mark.parametrize("uid", [0, NOBODY])
def test_creating_opens_a_file_that_the_caller_may_write(believing: Mount, uid: int) -> None:
    path = _appears(believing, "later", _LATER, 0o600, uid)

    def act() -> bytes:
        with opened(path, os.O_RDWR | os.O_CREAT, 0o666) as fd:
            found = os.pread(fd, 100, 0)
            os.pwrite(fd, b"A", 0)
            return found

    assert as_user(act, uid) == _LATER
    assert (believing.source / "later").read_bytes() == b"A" + _LATER[1:]
    assert as_user(lambda: _use(path, os.O_RDWR | os.O_TRUNC), uid) == b""


def test_creating_exclusively_sees_what_is_there(believing: Mount) -> None:
    path = _appears(believing, "later", _LATER, 0o666)
    assert as_user(lambda: attempt(lambda: _use(path, os.O_RDWR | os.O_EXCL))) == "EEXIST"
    assert (believing.source / "later").read_bytes() == _LATER


@pytest.mark.parametrize("kind", ["directory", "fifo"])
def test_creating_opens_nothing_else_either(believing: Mount, kind: str) -> None:
    path = believing.point / "name"
    assert as_user(lambda: attempt(lambda: os.stat(path))) == "ENOENT"
    if kind == "directory":
        (believing.source / "name").mkdir()
    else:
        os.mkfifo(believing.source / "name", 0o600)
    found = as_user(lambda: attempt(lambda: _use(path, os.O_RDWR | os.O_NONBLOCK)))
    assert found == {"directory": "EISDIR", "fifo": "EACCES"}[kind]


# Leases


def _hold(path: Path, kind: int, until: Callable[[], object]) -> Callable[[Callable[[], None]], None]:
    """Take a lease, say so, and hold it until told otherwise, whoever asks."""

    def hold(announce: Callable[[], None]) -> None:
        signal.signal(signal.SIGIO, signal.SIG_IGN)  # how the kernel asks; it would end us
        with opened(path, os.O_RDONLY if kind == fcntl.F_RDLCK else os.O_RDWR) as fd:
            fcntl.fcntl(fd, fcntl.F_SETLEASE, kind)
            announce()
            until()

    return hold


@pytest.fixture(params=["threads=1,io_uring=off", "threads=1,io_uring=off,cache=never", "writeback,threads=1", ""])
def mount(request: pytest.FixtureRequest, harness: Harness) -> Mount:
    """A mount whose daemon opens every file itself."""
    mount = harness.mount("-o", ",".join(filter(None, ("passthrough=off", request.param))))
    (mount.source / "leased").write_bytes(b"content")
    (mount.source / "other").write_bytes(b"other")
    return mount


@pytest.fixture
def leased(mount: Mount) -> Iterator[Mount]:
    """Its file `leased` is held by somebody who does not let go."""
    never = threading.Event()
    with beside(_hold(mount.source / "leased", fcntl.F_WRLCK, lambda: never.wait(120))) as holder:
        holder.wait_announced()
        yield mount
        assert not holder.done(), holder.result()


_OPENING: dict[str, Callable[[Path], object]] = {
    "read": lambda path: os.close(os.open(path, os.O_RDONLY)),
    "write": lambda path: os.close(os.open(path, os.O_WRONLY)),
    "both": lambda path: os.close(os.open(path, os.O_RDWR)),
    "create": lambda path: os.close(os.open(path, os.O_RDWR | os.O_CREAT)),
    "O_TRUNC": lambda path: os.close(os.open(path, os.O_WRONLY | os.O_TRUNC)),
    "truncate": lambda path: os.truncate(path, 3),
}


@pytest.mark.parametrize("how", _OPENING)
def test_a_lease_stalls_nobody(leased: Mount, how: str) -> None:
    with beside(lambda announce: attempt(lambda: _OPENING[how](leased.point / "leased"))) as opener:
        others = in_time(lambda: [(leased.point / "other").read_bytes() for _ in range(20)], _SOON_S)
        assert others == [b"other"] * 20
        assert in_time(lambda: (leased.point / "leased").stat().st_size, _SOON_S) == 7
        assert opener.result(_SOON_S) == "EAGAIN"


def test_a_holder_is_asked_to_let_go(mount: Mount) -> None:
    """The first open breaks the lease; when the holder has let go, opening works."""
    asked, answer = os.pipe()
    path = mount.source / "leased"

    def wait() -> None:
        signal.signal(signal.SIGIO, lambda *_: os.write(answer, b"!"))
        os.read(asked, 1)

    try:
        with beside(_hold(path, fcntl.F_WRLCK, wait)) as holder:
            holder.wait_announced()
            first = in_time(lambda: attempt(lambda: (mount.point / "leased").read_bytes()), _SOON_S)
            assert first in ("EAGAIN", b"content")
            holder.result(_SOON_S)
            assert in_time(lambda: (mount.point / "leased").read_bytes(), _SOON_S) == b"content"
    finally:
        os.close(asked)
        os.close(answer)


def test_a_lease_against_writers_lets_readers_by(mount: Mount) -> None:
    never = threading.Event()
    with beside(_hold(mount.source / "leased", fcntl.F_RDLCK, lambda: never.wait(120))) as holder:
        holder.wait_announced()
        assert in_time(lambda: (mount.point / "leased").read_bytes(), _SOON_S) == b"content"
        with pytest.raises(OSError, match=os.strerror(errno.EAGAIN)):
            in_time(lambda: os.close(os.open(mount.point / "leased", os.O_WRONLY)), _SOON_S)
        assert not holder.done()
