"""transport=llfuse: how it starts, and is refused; what it cannot do, as the kernel then has it; who chooses it."""

import errno
import fcntl
import os
import re
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from struct import pack

import pytest

from passthrough import exitcodes

from .harness import (
    NEWER_LLFUSE,
    ROOT,
    TIMEOUT_S,
    Harness,
    Mount,
    apart,
    background,
    command,
    ended,
    is_mounted,
    log_size,
    mount_line,
    mounts_below,
    newer_llfuse_or_skip,
    refusal,
    run,
    said_in_log,
    wait_until,
    with_modules,
)
from .posix.calls import FS_IOC_GETFLAGS, birth, fallocate, link_descriptor, opened, renameat2

LLFUSE = "--transport=llfuse"
_PAGE = ROOT / "man/passthrough-mount.1"
_FALLOC_FL_KEEP_SIZE, _RENAME_NOREPLACE, _RENAME_EXCHANGE = 1, 1, 2


@pytest.fixture
def pair(harness: Harness) -> tuple[Path, Path]:
    """A source and a mount point."""
    return harness.directory("source"), harness.directory("mount")


@pytest.fixture
def mount(harness: Harness) -> Iterator[Mount]:
    """Served by llfuse, without a complaint."""
    old = log_size()
    made = harness.mount(LLFUSE)
    yield made
    assert said_in_log(made.pid, since=old) == []


def by_llfuse(mount: Mount) -> bool:
    """Whether libfuse 2 serves this mount."""
    return "/llfuse.cpython" in Path(f"/proc/{mount.server}/maps").read_text()


# Start and end


def test_it_is_llfuse_that_serves(mount: Mount) -> None:
    assert by_llfuse(mount)
    (mount.point / "file").write_bytes(b"content")
    assert (mount.source / "file").read_bytes() == b"content"


def test_llfuse_s_own_mount_is_seen_by_nobody(harness: Harness) -> None:
    """libfuse mounts by itself when it begins; a copy of all mounts that hears of new ones hears of ours alone."""
    words = ["unshare", "--mount", "--propagation=slave", "sh", "-c", "echo ready; exec sleep 1000"]
    with background(*words, stdout=subprocess.PIPE) as elsewhere:
        assert elsewhere.stdout is not None
        assert elsewhere.stdout.readline() == "ready\n"
        mount = harness.mount(LLFUSE)
        assert mounts_below(Path("/run/passthrough")) == []
        assert "llfuse-" not in Path(f"/proc/{elsewhere.pid}/mountinfo").read_text()
        assert not list(Path("/run/passthrough").glob("llfuse-*"))
        mount.umount()
        elsewhere.stdout.close()


def test_the_daemon_has_one_device_and_no_way_out(mount: Mount) -> None:
    descriptors = Path(f"/proc/{mount.server}/fd")
    targets = [os.readlink(path) for path in descriptors.iterdir()]
    assert targets.count("/dev/fuse") == 1
    status = Path(f"/proc/{mount.server}/status").read_text()
    assert "Seccomp:\t2" in status
    assert "NoNewPrivs:\t1" in status
    assert os.readlink(f"/proc/{mount.server}/ns/mnt") != os.readlink("/proc/self/ns/mnt")


@pytest.mark.parametrize("sandbox", ["namespace", "chroot", "landlock", "none"])
def test_a_mountpoint_within_the_source(harness: Harness, sandbox: str) -> None:
    source = harness.directory("source")
    (source / "point").mkdir()
    mount = harness.mount(LLFUSE, f"--sandbox={sandbox}", source=source, point=source / "point")
    (mount.point / "file").touch()
    assert sorted(os.listdir(mount.point)) == ["file", "point"]
    assert os.listdir(mount.point / "point") == []


def test_a_directory_on_itself(harness: Harness) -> None:
    source = harness.directory("source")
    (source / "file").write_bytes(b"content")
    mount = harness.mount(LLFUSE, source=source, point=source)
    assert by_llfuse(mount)
    assert (source / "file").read_bytes() == b"content"
    mount.umount()
    assert (source / "file").read_bytes() == b"content"


def test_two_mounts(harness: Harness) -> None:
    """llfuse has one session in a process: each mount has a process."""
    first, second = harness.mount(LLFUSE), harness.mount(LLFUSE)
    (first.point / "first").touch()
    (second.point / "second").touch()
    assert (os.listdir(first.point), os.listdir(second.point)) == (["first"], ["second"])
    first.umount()
    assert os.listdir(second.point) == ["second"]


def test_umount_by_the_kernel_s_own_command(mount: Mount) -> None:
    assert mount.pid is not None
    subprocess.run(["umount", mount.point], check=True)
    assert ended(mount.pid)
    assert not is_mounted(mount.point)


def test_root_alone_besides_the_one_who_mounts(harness: Harness) -> None:
    """allow_root is libfuse's to keep here."""
    mount = harness.mount(LLFUSE, "--allow-root")
    (mount.point / "file").touch()
    result = subprocess.run(["ls", mount.point], user=65534, extra_groups=[], capture_output=True, check=False)
    assert b"Permission denied" in result.stderr


def test_debug_shows_libfuse_s_lines(harness: Harness, pair: tuple[Path, Path]) -> None:
    harness.mounts.append(Mount(*pair))
    words, log = command("mount", LLFUSE, "--debug", *pair), harness.base / "log"
    with log.open("w") as file, background(*words, stderr=file, env=with_modules()) as process:
        wait_until(lambda: is_mounted(pair[1]) or process.poll() is not None, "mounted")
        (pair[1] / "file").touch()
        assert run("umount", pair[1]).returncode == 0
        assert process.wait(TIMEOUT_S) == exitcodes.OK
    assert "opcode: CREATE" in log.read_text()


@pytest.mark.parametrize("closed", ["2>&-", "0<&- 1>&- 2>&-"])
def test_closed_standard_streams(harness: Harness, pair: tuple[Path, Path], closed: str) -> None:
    harness.mounts.append(Mount(*pair))
    words = ["sh", "-c", f'exec "$@" {closed}', "sh", *command("mount", LLFUSE, *pair)]
    assert subprocess.run(words, env=with_modules(), check=False, timeout=TIMEOUT_S).returncode == exitcodes.OK
    (pair[1] / "file").touch()
    assert (pair[0] / "file").exists()


# What it cannot do


def _lseek(d: Path) -> object:
    with opened(d / "file", os.O_CREAT | os.O_RDWR) as fd:
        os.ftruncate(fd, 1 << 20)
        return os.lseek(fd, 0, os.SEEK_DATA), os.lseek(fd, 0, os.SEEK_HOLE)


def _copy(d: Path) -> object:
    (d / "from").write_bytes(b"0123456789")
    with opened(d / "from", os.O_RDONLY) as source, opened(d / "to", os.O_CREAT | os.O_RDWR) as target:
        return os.copy_file_range(source, target, 10), os.pread(target, 20, 0)


def _lock(d: Path) -> object:
    """Among those who come through the mount."""
    with opened(d / "file", os.O_CREAT | os.O_RDWR) as first, opened(d / "file") as second:
        fcntl.flock(first, fcntl.LOCK_EX)
        with pytest.raises(BlockingIOError):
            fcntl.flock(second, fcntl.LOCK_EX | fcntl.LOCK_NB)
        with opened(_behind(d / "file")) as behind:
            fcntl.flock(behind, fcntl.LOCK_EX | fcntl.LOCK_NB)
    return None


def _behind(path: Path) -> Path:
    """The same file in the source, by the names that the harness gives."""
    return next(path.parent.parent.glob("source*")) / path.name


def _unnamed(d: Path) -> object:
    with opened(d, os.O_TMPFILE | os.O_RDWR) as fd:
        link_descriptor(fd, d / "named")
    return None


def _allocate(d: Path) -> object:
    with opened(d / "file", os.O_CREAT | os.O_RDWR) as fd:
        fallocate(fd, _FALLOC_FL_KEEP_SIZE, 0, 4096)
    return None


def _rename(d: Path) -> object:
    (d / "old").touch()
    renameat2(d / "old", d / "new", _RENAME_NOREPLACE)
    return None


def _exchange(d: Path) -> object:
    for name in ("old", "new"):
        (d / name).touch()
    renameat2(d / "old", d / "new", _RENAME_EXCHANGE)
    return None


def _ioctl(d: Path) -> object:
    with opened(d, os.O_RDONLY) as fd:
        return fcntl.ioctl(fd, FS_IOC_GETFLAGS, bytes(4))


def _access_list(d: Path) -> object:
    """user::rwx, user:65534:rwx, group::r-x, mask::rwx, other::r-x (linux/posix_acl_xattr.h)."""
    entries = ((1, 7, -1), (2, 7, 65534), (4, 5, -1), (16, 7, -1), (32, 5, -1))
    os.setxattr(d, "system.posix_acl_access", pack("<I", 2) + b"".join(pack("<HHi", *entry) for entry in entries))
    return None


@pytest.mark.parametrize(
    ("call", "result"),
    [
        (_lseek, (0, 1 << 20)),
        (_copy, (10, b"0123456789")),
        (_lock, None),
        (_unnamed, errno.EOPNOTSUPP),
        (_allocate, errno.EOPNOTSUPP),
        (_rename, errno.EINVAL),
        (_exchange, errno.EINVAL),
        (lambda d: birth(d), None),
        (_ioctl, errno.ENOTTY),
        (_access_list, errno.EOPNOTSUPP),
        (lambda d: os.setxattr(d, "fuse_stacktrace", b""), errno.EOPNOTSUPP),
    ],
    ids=[
        "data and holes (lseek)",
        "copy_file_range",
        "locks",
        "unnamed files (O_TMPFILE)",
        "fallocate",
        "rename flags: not replacing",
        "rename flags: an exchange",
        "birth time (statx)",
        "inode flags (ioctl)",
        "access lists",
        "fuse_stacktrace (attribute)",
    ],
)
def test_what_it_cannot_do_is_what_the_page_says(
    mount: Mount, request: pytest.FixtureRequest, call: Callable[[Path], object], result: object
) -> None:
    row = request.node.callspec.id.partition(":")[0]
    (said,) = re.findall(rf"^{re.escape(row)};(.*)$", _PAGE.read_text().replace("\\-", "-"), re.MULTILINE)
    if isinstance(result, int):
        assert ("EOPNOTSUPP" if result == errno.EOPNOTSUPP else errno.errorcode[result]) in said
        with pytest.raises(OSError, match=re.escape(os.strerror(result))):
            call(mount.point)
    else:
        assert call(mount.point) == result
    (mount.point / "after").touch()
    assert (mount.source / "after").exists()


def test_listing_brings_no_attributes_along(mount: Mount) -> None:
    for number in range(200):
        (mount.source / f"{number}").touch()
    assert len(list(os.scandir(mount.point))) == 200


# Node numbers


def test_inode_numbers_are_the_source_s(mount: Mount) -> None:
    (mount.source / "directory").mkdir()
    (mount.source / "file").touch()
    os.link(mount.source / "file", mount.source / "directory/hard")
    for name in ("", "directory", "file", "directory/hard"):
        assert (mount.point / name).stat().st_ino == (mount.source / name).stat().st_ino
    with os.scandir(mount.point) as entries:
        assert {entry.name: entry.inode() for entry in entries} == {
            name: (mount.source / name).stat().st_ino for name in ("directory", "file")
        }


def test_a_number_that_comes_again_is_another_file(mount: Mount) -> None:
    """A file system gives an inode number anew as soon as the file is gone."""
    for turn in range(200):
        path = mount.point / f"{turn}"
        path.write_text(f"{turn}")
        assert path.read_text() == f"{turn}"
        path.unlink()
    assert os.listdir(mount.point) == []


def test_what_is_forgotten_is_let_go(mount: Mount) -> None:
    """With so few descriptors every file has to be forgotten while others come."""
    for number in range(500):
        (mount.source / f"{number}").touch()
    mount.umount()
    again = Harness(mount.source.parent / "again")
    again.base.mkdir()
    try:
        few = again.mount(LLFUSE, source=mount.source, point=again.directory("mount"), descriptors=256)
        assert sum(1 for path in few.point.iterdir() if path.stat().st_size == 0) == 500
    finally:
        again.close()


# Pages in the cache


def test_an_open_sees_what_has_changed_behind(mount: Mount) -> None:
    """Content of the same length, which the kernel notices by nothing else; an open file may show what was read."""
    (mount.source / "file").write_bytes(b"old content")
    for content in (b"old content", b"new content", b"any content"):
        with opened(mount.source / "file") as fd:
            os.pwrite(fd, content, 0)
        assert (mount.point / "file").read_bytes() == content


def test_with_cache_always_pages_are_kept(harness: Harness) -> None:
    mount = harness.mount(LLFUSE, "--cache=always")
    (mount.source / "file").write_bytes(b"old content")
    assert (mount.point / "file").read_bytes() == b"old content"
    with opened(mount.source / "file") as fd:
        os.pwrite(fd, b"new content", 0)
    assert (mount.point / "file").read_bytes() == b"old content"


# Side by side


def test_many_open_changed_files_at_once(mount: Mount) -> None:
    """Each open drops the file's pages, which waits for whoever reads them: one worker is left to serve those."""
    path = mount.point / "file"
    path.write_bytes(b"x" * (1 << 20))
    failures: list[BaseException] = []

    def work() -> None:
        try:
            for _ in range(50):
                assert len(path.read_bytes()) == 1 << 20
        except BaseException as failure:
            failures.append(failure)

    threads = [threading.Thread(target=work) for _ in range(16)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []


def test_killed_callers_cost_nothing(mount: Mount) -> None:
    for number in range(2000):
        (mount.source / f"{number}").write_bytes(b"x")
    for _ in range(10):
        with subprocess.Popen(["grep", "-r", "nothing", mount.point], stdout=subprocess.DEVNULL) as process:
            os.listdir(mount.point)
            process.kill()
    assert len(os.listdir(mount.point)) == 2000


# Refusals


def _module(harness: Harness, text: str) -> dict[str, str]:
    """The environment in which the module llfuse is this."""
    directory = harness.directory("modules")
    (directory / "llfuse.py").write_text(text)
    return with_modules(directory)


def test_llfuse_missing(harness: Harness, pair: tuple[Path, Path]) -> None:
    env = _module(harness, "raise ModuleNotFoundError('', name='llfuse')")
    line = refusal(run("mount", LLFUSE, *pair, env=env), exitcodes.NO_HELPER)
    assert "apt install python3-llfuse" in line
    assert not is_mounted(pair[1])


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("__version__ = '1.3.8'", "1.3.8 is too old"),
        ("raise ImportError('libfuse.so.2: cannot open shared object file')", "libfuse.so.2"),
    ],
    ids=["too old", "without its library"],
)
def test_llfuse_that_cannot_be_used(harness: Harness, pair: tuple[Path, Path], text: str, said: str) -> None:
    line = refusal(run("mount", LLFUSE, *pair, env=_module(harness, text)), exitcodes.NO_HELPER)
    assert said in line


def test_llfuse_that_cannot_begin(harness: Harness, pair: tuple[Path, Path]) -> None:
    text = (
        "import os\n__version__ = '1.5.2'\nclass FUSEError(Exception): pass\n"
        "def init(*words):\n    os.write(2, b'fuse: mount failed:\\n for a reason\\n')\n"
        "    raise RuntimeError('fuse_mount failed')\n"
    )
    line = refusal(run("mount", LLFUSE, *pair, env=_module(harness, text)), exitcodes.MOUNT_FAILED)
    assert line == "passthrough: llfuse cannot begin: fuse: mount failed: for a reason\n"
    assert not list(Path("/run/passthrough").glob("llfuse-*"))
    assert not is_mounted(pair[1])


def test_device_missing(pair: tuple[Path, Path]) -> None:
    setup = "mount -t tmpfs none /dev; mknod -m 666 /dev/null c 1 3"
    assert "modprobe fuse" in refusal(apart(setup, "mount", LLFUSE, *pair), exitcodes.NO_DEVICE)


_BROKEN = """
import sys
sys.path.insert(0, sys.argv[1])
from passthrough.cli import main
from passthrough.transport.llfuse.operations import Operations

Operations.lookup = lambda self, parent, name, ctx: None
sys.exit(main(["mount", "-f", "--rlimit-nofile=0", "--transport=llfuse", sys.argv[2], sys.argv[3]]))
"""


def test_what_ends_llfuse_ends_the_mount(harness: Harness, pair: tuple[Path, Path]) -> None:
    harness.mounts.append(Mount(*pair))
    words = [sys.executable, "-uc", _BROKEN, str(ROOT), *map(str, pair)]
    with background(*words, stderr=subprocess.PIPE) as process:
        wait_until(lambda: is_mounted(pair[1]) or process.poll() is not None, "mounted")
        with pytest.raises(OSError, match=re.escape(os.strerror(errno.EIO))):
            (pair[1] / "file").stat()
        _, said = process.communicate(timeout=TIMEOUT_S)
    assert process.returncode == exitcodes.SERVING
    assert "llfuse ended: " in said
    assert "Traceback" not in said
    assert not is_mounted(pair[1])


# An ordinary user's


def test_a_user_s_mount(harness: Harness, user: int) -> None:
    mount = harness.mount(LLFUSE, user=user)
    assert by_llfuse(mount)
    assert mounts_below(Path(f"/tmp/passthrough-{user}")) == []
    assert not list(Path(f"/tmp/passthrough-{user}").glob("llfuse-*"))
    subprocess.run(["touch", mount.point / "file"], user=user, group=user, extra_groups=[], check=True)
    assert (mount.source / "file").stat().st_uid == user
    assert run("umount", mount.point, user=user).returncode == 0


_OLD_HELPER_ALONE = """
mount -t tmpfs -o mode=755 none /mnt
cp -p /usr/bin/fusermount3 /mnt/fusermount
mount --bind /dev/null /usr/bin/fusermount3
export PATH=/mnt:$PATH
"""
"""A machine with libfuse 2's helper and without fusermount3."""


_MOUNT_USE_UMOUNT = """
import os, subprocess, sys
command = [sys.executable, "-m", "passthrough"]
print(subprocess.run([*command, "mount", *sys.argv[1:]], check=True, stderr=subprocess.PIPE, text=True).stderr)
open(sys.argv[2] + "/file", "x").close()
print(open("/proc/self/mounts").read())
subprocess.run([*command, "umount", sys.argv[2]], check=True)
assert not os.path.ismount(sys.argv[2])
"""


def test_it_is_chosen_where_fusermount3_is_missing(pair: tuple[Path, Path], user: int) -> None:
    for path in pair:
        os.chown(path, user, user)
    words = [sys.executable, "-c", _MOUNT_USE_UMOUNT, *map(str, pair)]
    shell = ["unshare", "--mount", "--propagation=private", "sh", "-ec", f'{_OLD_HELPER_ALONE}\nexec "$@"', "sh"]
    become = ["setpriv", f"--reuid={user}", f"--regid={user}", "--clear-groups"]
    result = subprocess.run(
        [*shell, *become, *words], env=with_modules(), check=False, capture_output=True, text=True, timeout=TIMEOUT_S
    )
    assert result.returncode == 0, result.stderr
    assert "fusermount3 is not installed: requests come by llfuse" in result.stdout
    assert f" {pair[1]} fuse.passthrough " in result.stdout
    assert "llfuse-" not in result.stdout
    assert (pair[0] / "file").stat().st_uid == user


def test_the_direct_door_is_chosen_where_it_can_be_opened(harness: Harness, user: int) -> None:
    assert not by_llfuse(harness.mount())
    assert not by_llfuse(harness.mount(user=user))


def test_without_llfuse_too_fusermount3_is_what_is_missing(
    harness: Harness, pair: tuple[Path, Path], user: int
) -> None:
    modules = harness.directory("modules")
    (modules / "llfuse.py").write_text("raise ModuleNotFoundError('', name='llfuse')")
    setup = f"{_OLD_HELPER_ALONE}\nexport PYTHONPATH={modules}:$PYTHONPATH"
    assert "apt install fuse3" in refusal(apart(setup, "mount", *pair, user=user), exitcodes.NO_HELPER)


def test_the_newer_version(harness: Harness) -> None:
    newer_llfuse_or_skip()
    mount = harness.mount(LLFUSE, env=with_modules(NEWER_LLFUSE))
    assert by_llfuse(mount)
    mount.umount()
    assert mount_line(mount.point) is None
