"""The process that opens files by their handles: what it can do, and that it does so for files it was shown alone."""

import contextlib
import errno
import os
import random
import re
import socket
import stat
import struct
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from passthrough import exitcodes, syscalls
from passthrough.cli import opener
from passthrough.fs.opener import Client, receive, send
from passthrough.fs.tree.filehandles import BATCH, Token
from passthrough.fs.tree.pins import Descriptor
from tests.mounted.harness import Harness, Mount, command, ended, log_size, refusal, run, said_in_log, wait_until
from tests.sandbox.inside import ROOT
from tests.sandbox.test_reach import bits
from tests.unit.helpers import path_fd, raises

_SCRIPT = """
import os, socket, sys
import sandbox
from passthrough.cli import opener
sandbox.load_libraries()
reach = [os.open(sys.argv[3], os.O_PATH), "/proc/self/fd"] if sys.argv[3:] else []
opener._child(socket.socket(fileno=int(sys.argv[1])), sandbox.Seccomp(sys.argv[2]), *reach)
"""


class Started:
    """The process as it is, started by another program than this one, which has threads; and the end to it."""

    def __init__(self, mode: str, *within: Path, descriptors: int = 1024) -> None:
        """within: the share that it keeps to; descriptors: how many it may have."""
        self.end, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        environment = {**os.environ, "PYTHONPATH": str(ROOT), "PYTHONDONTWRITEBYTECODE": "1"}
        words = [sys.executable, "-c", _SCRIPT, str(theirs.fileno()), mode, *map(str, within)]
        words = ["prlimit", f"--nofile={descriptors}", *words]
        self.process = subprocess.Popen(words, pass_fds=[theirs.fileno()], env=environment)
        theirs.close()
        assert receive(self.end)[0] == b"ready"
        self.client = Client(self.end)

    def ask(self, request: bytes, fds: list[int] | None = None) -> tuple[bytes, list[int]]:
        """Whatever it is."""
        send(self.end, request, fds or [])
        return receive(self.end)

    def refusal_of(self, request: bytes) -> int:
        """The errno of an answer without a descriptor."""
        answer, fds = self.ask(request)
        assert fds == []
        return int(struct.unpack("=I", answer)[0])

    def close(self) -> None:
        self.end.close()
        assert self.process.wait(30) == 0


@pytest.fixture(params=["errno", "kill"])
def started(request: pytest.FixtureRequest) -> Iterator[Started]:
    made = Started(request.param)
    yield made
    made.close()


def sealed(started: Started, *paths: Path) -> list[Token | None]:
    return started.client.seal([Descriptor(path_fd(path)) for path in paths])


def one(started: Started, path: Path) -> Token:
    """A token of a file, whose directory it has seen."""
    _, token = sealed(started, path.parent, path)
    assert token
    return token


def test_it_opens_what_it_was_shown(started: Started, share: Path) -> None:
    token = one(started, share / "file")
    (share / "file").rename(share / "dir" / "moved")
    fd = started.client.open(token, os.O_RDWR)
    assert os.read(fd, 100) == b"shared"
    os.close(fd)
    fd = started.client.open(token, os.O_PATH)
    assert os.fstat(fd).st_ino == (share / "dir" / "moved").stat().st_ino
    assert os.get_inheritable(fd) is False
    os.close(fd)
    (share / "dir" / "moved").unlink()
    with raises(errno.ESTALE):
        started.client.open(token, os.O_PATH)


def test_it_opens_nothing_else(started: Started, share: Path) -> None:
    """The secret lies on the same file system. With the capability alone its handle would open it."""
    token = one(started, share / "file")
    mount, handle = syscalls.name_to_handle_at(Descriptor(path_fd(share.parent / "secret")))
    directory = os.open(share, os.O_RDONLY)
    os.close(syscalls.open_by_handle_at(directory, handle, os.O_RDONLY))  # the attack works
    os.close(directory)
    forged = [
        token._replace(handle=handle),
        token._replace(handle=handle, proof=bytes(16)),
        token._replace(handle=handle, proof=b""),
        token._replace(mount=token.mount + 1),
        token._replace(mount=mount),
        *(token._replace(proof=_flipped(token.proof, bit)) for bit in range(128)),
        *(token._replace(handle=_flipped(token.handle, bit)) for bit in range(8 * len(token.handle))),
    ]
    for each in forged:
        with raises(errno.ESTALE):
            started.client.open(each, os.O_PATH)
    other = Started("errno")
    _ = one(other, share / "file")
    with raises(errno.ESTALE):  # another's proof
        other.client.open(token, os.O_PATH)
    other.close()
    os.close(started.client.open(token, os.O_PATH))


def _flipped(text: bytes, bit: int) -> bytes:
    changed = bytearray(text)
    changed[bit // 8] ^= 1 << bit % 8
    return bytes(changed)


def test_devices_fifos_and_symlinks_are_opened_as_paths_alone(started: Started, share: Path) -> None:
    os.mknod(share / "null", stat.S_IFCHR | 0o666, os.makedev(1, 3))
    os.mkfifo(share / "fifo")
    (share / "link").symlink_to("file")
    for name in ("null", "fifo", "link"):
        token = one(started, share / name)
        with raises(errno.EBADF):
            started.client.open(token, os.O_RDONLY)
        fd = started.client.open(token, os.O_PATH)
        assert os.fstat(fd).st_ino == (share / name).lstat().st_ino
        os.close(fd)


def test_flags_that_change_a_file_by_opening_it_have_no_effect(started: Started, share: Path) -> None:
    token = one(started, share / "file")
    for flags in (os.O_TRUNC | os.O_RDWR, os.O_CREAT | os.O_WRONLY, os.O_TMPFILE | os.O_RDWR, 0xFFFFFFFF & ~os.O_PATH):
        with contextlib.suppress(OSError):
            os.close(started.client.open(token, flags))
    assert (share / "file").read_text() == "shared"


def test_a_mount_is_known_by_a_directory_and_until_it_is_dropped(
    started: Started, share: Path, harness: Harness
) -> None:
    assert sealed(started, share / "file") == [None], "no directory of that mount was seen"
    token = one(started, share / "file")
    assert sealed(started, share / "file") == [token]
    fds = len(os.listdir(f"/proc/{started.process.pid}/fd"))
    tmpfs = share / "dir"
    harness.run_program("mount", "-t", "tmpfs", "none", tmpfs)
    harness.cleanups.append(lambda: subprocess.run(["umount", "-l", str(tmpfs)], check=True))
    (tmpfs / "file").write_text("there")
    there = one(started, tmpfs / "file")
    assert there.mount != token.mount
    assert subprocess.run(["umount", tmpfs], check=False, capture_output=True).returncode == 32, "it is busy"
    started.client.drop(there.mount)
    assert len(os.listdir(f"/proc/{started.process.pid}/fd")) == fds
    with raises(errno.ESTALE):
        started.client.open(there, os.O_PATH)
    assert one(started, tmpfs / "file").mount not in (there.mount, token.mount), "a number is not used again"


def test_mounts_leave_room_for_a_message(share: Path, harness: Harness) -> None:
    """A message that does not find it loses its last descriptors, which would have no answer."""
    started = Started("errno", descriptors=100)
    for number in range(40):
        point = share / f"{number}"
        point.mkdir()
        harness.run_program("mount", "--bind", share / "dir", point)
        harness.cleanups.append(lambda path=point: subprocess.run(["umount", "-l", path], check=True))  # type: ignore[misc]
    token = one(started, share / "file")
    found = sealed(started, *(share / f"{number}" for number in range(40)))
    assert sealed(started, *[share / "file"] * BATCH) == [token] * BATCH
    assert None in found, "too many mounts: their files are kept by descriptors"
    started.close()


def test_file_systems_without_handles_have_no_tokens(started: Started, share: Path) -> None:
    reader, writer = os.pipe()
    assert started.client.seal([reader, writer]) == [None, None]
    os.close(reader)
    os.close(writer)
    assert one(started, share / "file")


def test_whatever_it_is_asked_it_goes_on(started: Started, share: Path) -> None:
    token = one(started, share / "file")
    before = os.listdir(f"/proc/{started.process.pid}/fd")
    order = random.Random(1)
    with open(share / "file", "rb") as file:
        for length in [*range(60), 1000, 60000]:
            for kind in (b"S", b"O", b"D", b"X", b"\0"):
                answer, fds = started.ask(kind + order.randbytes(length), [file.fileno()] * order.randrange(3))
                assert fds == []
                assert answer or kind == b"S"
    assert started.refusal_of(b"O") == started.refusal_of(b"D12") == started.refusal_of(b"X") == errno.EINVAL
    assert os.listdir(f"/proc/{started.process.pid}/fd") == before
    os.close(started.client.open(token, os.O_PATH))


# Where the root is not the share


_TAKEN_OVER = """
import errno, os, sys
import sandbox
from passthrough.cli import opener
from passthrough.fs.tree import FileHandles
from passthrough.sandbox_options import SandboxMode
from passthrough.share_options import ShareOptions
mode, landlock, share, secret, patch = sys.argv[1:]
exec(patch)
sandbox.load_libraries()
opened = os.open(share, os.O_PATH)
made = opener.FileOpener(ShareOptions(sandbox=SandboxMode(mode), inode_file_handles=FileHandles.MANDATORY))
wanted = sandbox.Confinement(
    mode=sandbox.Mode(mode), landlock=sandbox.Choice(landlock), path=share, opened=opened, file_handles=True
)
steps, inside = sandbox.plan(wanted, made.steps(opened))
sandbox.enter(steps)
top = "../../.." if inside.proc >= 0 else ""
share = "/" if inside.proc >= 0 else share + "/"
try:
    os.open(top + secret, os.O_RDONLY)
except PermissionError:
    print("Landlock")
beyond = [os.open(top + path, os.O_PATH | os.O_NOFOLLOW) for path in ("/", os.path.dirname(secret), secret)]
print(made.client.seal(beyond))
token = made.client.seal([os.open(share + "file", os.O_PATH)])[0]
print(os.read(made.client.open(token, os.O_RDONLY), 100).decode())
"""

_NO_MOUNT_FOR_PROC = """
from sandbox import syscalls
from sandbox.plan import CallError
def refused(*_):
    raise CallError("open_tree", 1)
syscalls.open_tree = refused
"""


@pytest.mark.parametrize(
    ("mode", "landlock", "patch"), [("landlock", "auto", ""), ("none", "on", ""), ("chroot", "on", _NO_MOUNT_FOR_PROC)]
)
def test_landlock_alone_keeps_a_daemon_in_that_has_it(mode: str, landlock: str, patch: str, share: Path) -> None:
    """Landlock forbids to open, and not to have an O_PATH descriptor, which must not be as good."""
    words = [sys.executable, "-c", _TAKEN_OVER, mode, landlock, str(share), str(share.parent / "secret"), patch]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    result = subprocess.run(words, capture_output=True, text=True, check=False, env=environment, timeout=60)
    assert result.stdout == "Landlock\n[None, None, None]\nshared\n", result.stderr


_WITHOUT_OVERRIDE = """
import errno, os, sys
import sandbox
from passthrough.cli import opener
from passthrough.share_options import ShareOptions
share, modcaps = sys.argv[1:]
sandbox.load_libraries()
opened = os.open(share, os.O_PATH)
made = opener.FileOpener(ShareOptions(modcaps=modcaps or None))
dropped = frozenset({"DAC_OVERRIDE"} if modcaps else ())
wanted = sandbox.Confinement(path=share, opened=opened, file_handles=True, drop_capabilities=dropped)
steps, inside = sandbox.plan(wanted, made.steps(opened))
sandbox.enter(steps)
(token,) = made.client.seal([os.open("/file", os.O_PATH)])
def attempt(call):
    try:
        os.close(call())
    except OSError as error:
        return errno.errorcode[error.errno]
ways = [lambda: made.client.open(token, os.O_PATH)]
for flags in (os.O_RDONLY, os.O_RDWR):
    ways += [lambda flags=flags: os.open("/file", flags), lambda flags=flags: made.client.open(token, flags)]
print(*map(attempt, ways))
"""


@pytest.mark.parametrize("start", [[], ["setpriv", "--bounding-set=-dac_override", "--inh-caps=-dac_override"]])
@pytest.mark.parametrize("modcaps", ["", "-dac_override"])
def test_what_the_daemon_may_not_open_it_does_not_open_either(modcaps: str, start: list[str], share: Path) -> None:
    """CAP_DAC_READ_SEARCH alone reads everything."""
    (share / "file").chmod(0o600)
    words = [*start, sys.executable, "-c", _WITHOUT_OVERRIDE, str(share), modcaps]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    result = subprocess.run(words, capture_output=True, text=True, check=False, env=environment, timeout=60)
    refused = "EACCES" if modcaps or start else None
    assert result.stdout == f"None {refused} {refused} {refused} {refused}\n", result.stderr


def test_a_share_is_what_a_path_leads_to_from_it(share: Path, harness: Harness) -> None:
    """Not what lies beside it, what was moved away, or what a mount hides; but other file systems below."""
    started = Started("errno", share)
    beside = share.parent / (share.name + "2")
    for path in (beside, share / "dir" / "below", share / "hidden", share / "moved"):
        path.mkdir()
        (path / "file").touch()
    (share / "link").symlink_to(beside)
    fds = [path_fd(share / "moved"), path_fd(share / "hidden" / "file")]
    (share / "moved").rename(beside / "moved")
    for point in (share / "hidden", share / "dir" / "below"):
        harness.run_program("mount", "-t", "tmpfs", "none", point)
        harness.cleanups.append(lambda path=point: subprocess.run(["umount", "-l", path], check=True))  # type: ignore[misc]
        (point / "there").touch()
    known = sealed(started, share, share / "dir", share / "file", share / "link")
    assert all(known)
    assert started.client.seal([Descriptor(fd) for fd in fds]) == [None, None]
    assert sealed(started, beside, beside / "file", share.parent, Path("/"), Path("/proc")) == [None] * 5
    assert all(sealed(started, share / "dir" / "below", share / "dir" / "below" / "there"))
    before = len(os.listdir(f"/proc/{started.process.pid}/fd"))
    assert sealed(started, share / "file") == known[2:3]
    assert len(os.listdir(f"/proc/{started.process.pid}/fd")) == before
    started.close()


def test_what_it_is(started: Started) -> None:
    """Three capabilities, a filter, one socket, no core dumps; it ignores what is meant for the daemon."""
    status = dict(line.split(":\t", 1) for line in Path(f"/proc/{started.process.pid}/status").read_text().splitlines())
    kept = bits(("DAC_READ_SEARCH", "DAC_OVERRIDE", "FOWNER"))
    found = {name: int(status[name], 16) for name in ("CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb")}
    assert found == {"CapInh": 0, "CapPrm": kept, "CapEff": kept, "CapBnd": kept, "CapAmb": 0}
    assert (status["NoNewPrivs"], status["Seccomp"]) == ("1", "2")
    fds = Path(f"/proc/{started.process.pid}/fd")
    links = [os.readlink(fd) for fd in fds.iterdir()]
    assert sorted(link.partition(":")[0] for link in links) == ["pipe", "pipe", "pipe", "socket"]


# As part of a mount


def the_opener(mount: Mount) -> int | None:
    """The daemon's child."""
    children = Path(f"/proc/{mount.server}/task/{mount.server}/children").read_text().split()
    return int(children[0]) if children else None


@pytest.mark.parametrize("mode", ["namespace", "chroot", "landlock", "none"])
def test_the_daemon_has_no_such_right_and_its_child_has(harness: Harness, mode: str) -> None:
    mount = harness.mount("-o", f"sandbox={mode},inode_file_handles=mandatory")
    pid = the_opener(mount)
    assert pid is not None
    right = bits(("DAC_READ_SEARCH",))
    for process, has in (mount.server, 0), (pid, right):
        text = Path(f"/proc/{process}/status").read_text()
        (effective,) = [line.split()[1] for line in text.splitlines() if line.startswith("CapEff")]
        assert int(effective, 16) & right == has
    for name in ("mnt", "pid", "net", "ipc", "uts"):
        assert os.readlink(f"/proc/{pid}/ns/{name}") == os.readlink(f"/proc/{mount.server}/ns/{name}")
    mount.umount()
    assert ended(pid, 30)


def test_never_starts_none(harness: Harness) -> None:
    assert the_opener(harness.mount("-o", "inode_file_handles=never")) is None
    source, point = harness.directory("source"), harness.directory("mount")
    explained = run("mount", "--sandbox-explain", "-o", "inode_file_handles=never", source, point)
    assert opener.STEP not in explained.stdout
    explained = run("mount", "--sandbox-explain", source, point)
    assert opener.STEP in explained.stdout


_WITHOUT = ["setpriv", "--bounding-set=-dac_read_search", "--inh-caps=-dac_read_search"]
_USERNS = ["unshare", "--user", "--map-root-user", "--mount", "--propagation=unchanged"]


def _mount_without(harness: Harness, option: str) -> "subprocess.CompletedProcess[str]":
    mount = Mount(harness.directory("source"), harness.directory("mount"))
    harness.mounts.append(mount)
    words = [*_WITHOUT, *command("mount", "-o", option, mount.source, mount.point)]
    result = subprocess.run(words, capture_output=True, text=True, check=False, cwd=ROOT, timeout=60)
    if result.returncode == 0:
        (mount.source / "file").write_text("there")
        assert (mount.point / "file").read_text() == "there"
    return result


def test_without_the_capability_prefer_is_never_and_says_so(harness: Harness) -> None:
    result = _mount_without(harness, "inode_file_handles=prefer")
    line = r"passthrough: WARNING: inode_file_handles=prefer: .*CAP_DAC_READ_SEARCH.*never.*\n"
    assert result.returncode == 0
    assert re.fullmatch(line, result.stderr)
    result = _mount_without(harness, "cache=auto")
    assert (result.returncode, result.stderr) == (0, ""), "who did not ask is not told"


def test_without_the_capability_mandatory_is_refused(harness: Harness, user: int) -> None:
    line = refusal(_mount_without(harness, "inode_file_handles=mandatory"), exitcodes.PERMISSION)
    assert "CAP_DAC_READ_SEARCH" in line
    assert "never" in line
    source, point = harness.directory("source"), harness.directory("mount")
    for path in (source, point):
        os.chown(path, user, user)
    line = refusal(run("mount", "-o", "inode_file_handles=mandatory", source, point, user=user), exitcodes.PERMISSION)
    assert "CAP_DAC_READ_SEARCH" in line


def test_a_root_that_cannot_be_opened_by_its_handle(harness: Harness) -> None:
    """overlay without nfs_export, and FUSE: mandatory ends with one line, prefer goes on."""
    layers = [harness.directory(name) for name in ("lower", "upper", "work")]
    data = "lowerdir={},upperdir={},workdir={}".format(*layers)
    source, point = harness.directory("overlay"), harness.directory("mount")
    harness.run_program("mount", "-t", "overlay", "-o", data, "overlay", source)
    harness.cleanups.append(lambda: subprocess.run(["umount", str(source)], check=True))
    line = refusal(run("mount", "-o", "inode_file_handles=mandatory", source, point), exitcodes.SOURCE)
    assert "inode_file_handles=mandatory" in line
    fuse = harness.mount()
    line = refusal(run("mount", "-o", "inode_file_handles=mandatory", fuse.point, point), exitcodes.SOURCE)
    assert "inode_file_handles=mandatory" in line
    mount = harness.mount("-o", "inode_file_handles=prefer", source=source)
    (source / "file").write_text("there")
    assert (mount.point / "file").read_text() == "there"
    mount.umount()


def test_in_a_user_namespace_the_capability_is_not_enough(harness: Harness) -> None:
    """It is held, but not in the first user namespace: only trying tells."""
    script = """
import os, sandbox, sys
from passthrough.cli import opener
from passthrough.share_options import ShareOptions
from passthrough.fs.tree import FileHandles
from passthrough.sandbox_options import SandboxMode
sandbox.load_libraries()
made = opener.FileOpener(ShareOptions(sandbox=SandboxMode.NONE, inode_file_handles=FileHandles(sys.argv[1])))
(step,) = made.steps(os.open(sys.argv[2], os.O_PATH))
step.execute()
print("client", made.client)
"""
    words = [*_USERNS, sys.executable, "-c", script]
    share = harness.directory("share")
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    for mode in ("prefer", "mandatory"):
        result = subprocess.run(
            [*words, mode, share], capture_output=True, text=True, check=False, env=environment, timeout=60
        )
        if mode == "prefer":
            assert result.stdout == "client None\n", result.stderr
            assert "inode_file_handles=prefer" in result.stderr
        else:
            assert "UserError: inode_file_handles=mandatory" in result.stderr
            assert "Operation not permitted" in result.stderr


def test_the_daemon_outlives_it(harness: Harness) -> None:
    since = log_size()
    source = harness.directory("source")
    for number in range(300):
        (source / f"{number}").write_text(f"{number}")
    mount = harness.mount("-o", "cache=always", source=source, descriptors=160)
    for number in range(300):
        (mount.point / f"{number}").stat()
    pid = the_opener(mount)
    assert pid is not None
    os.kill(pid, 9)
    assert ended(pid, 30)
    with pytest.raises(OSError, match="Input/output error"):
        (mount.point / "0").read_text()
    assert (mount.point / "299").read_text() == "299"
    with contextlib.suppress(OSError):
        os.listdir(mount.point)
    for number in range(300, 600):
        with contextlib.suppress(OSError):
            (mount.point / f"{number}").touch()
    assert not ended(mount.server, 0)
    wait_until(
        lambda: len([line for line in said_in_log(mount.pid, since=since) if "no longer to be had" in line]) == 1,
        "the log says so",
    )
