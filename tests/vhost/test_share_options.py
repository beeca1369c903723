"""What the options of a shared directory do for a guest: an effect each, with the option and without.

The front end stands for the guest's kernel, which sends what it would after what was agreed in INIT.
"""

import errno
import fcntl
import os
import struct
import subprocess
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import pytest

from passthrough.protocol import constants as c
from passthrough.protocol import structs as s
from passthrough.share import ACCESS_LISTS

from ..wire.fake import labels_extension
from .backend import BackEnd, backend
from .fuse import INIT_FLAGS, Client, ReplyError

_MODERN = INIT_FLAGS | ACCESS_LISTS | c.FUSE_SECURITY_CTX | c.FUSE_HANDLE_KILLPRIV_V2 | c.FUSE_ATOMIC_O_TRUNC
_CAPABILITY = bytes.fromhex("0000000200040000000000000000000000000000")


@contextmanager
def guest(*options: str, shared: Path, flags: int = _MODERN) -> Iterator[tuple[Client, BackEnd, int]]:
    """(a guest past its INIT, the daemon, the flags that were agreed)."""
    with backend(*options, shared=shared) as own, own.front() as front:
        client = Client(front)
        answer = client.init(flags)
        yield client, own, answer[3] | answer[10] << 32


def _outcome(call: Callable[[], object]) -> str:
    try:
        call()
    except OSError as error:
        return errno.errorcode[error.errno or 0]
    return "done"


# xattrmap


def test_names_are_the_maps_and_no_others(tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.touch()
    for there in ("user.x", "user.guest.user.seen", "trusted.x", "security.x"):
        os.setxattr(file, there, b"host")
    with guest("--xattrmap=:map::user.guest.:", shared=tmp_path) as (client, _, agreed):
        assert not agreed & c.FUSE_POSIX_ACL
        nodeid = client.lookup(1, b"file")
        client.setxattr(nodeid, b"security.selinux", b"guest")
        assert sorted(client.listxattr(nodeid)) == [b"security.selinux", b"user.seen"]
        assert client.getxattr(nodeid, b"user.seen") == b"host"
        for name in (b"user.x", b"trusted.x", b"security.x", b"user.guest.user.seen", b"user.guest.security.selinux"):
            with pytest.raises(ReplyError) as error:
                client.getxattr(nodeid, name)
            assert error.value.errno == errno.ENODATA
        (needed,) = struct.unpack_from("=I", client.call("listxattr", nodeid, bytes(8), out=8))
        assert needed == len(b"security.selinux\0user.seen\0")
        with pytest.raises(ReplyError) as error:
            client.listxattr(nodeid, needed - 1)
        assert error.value.errno == errno.ERANGE
        assert len(client.listxattr(nodeid, needed)) == 2
        client.call("removexattr", nodeid, b"user.seen\0")
    assert sorted(os.listxattr(file)) == ["security.x", "trusted.x", "user.guest.security.selinux", "user.x"]


def test_a_map_of_virtiofsds_words_goes_through_its_command(tmp_path: Path) -> None:
    """What cannot be a map is one line that names the rule; the socket is not made."""
    from passthrough.cli import virtiofsd
    from passthrough.errors import UserError

    base = ["--fd=3", f"--shared-dir={tmp_path}"]
    options = virtiofsd.options_of([*base, "-o", "xattrmap=:map::user.virtiofs.:,security_label"])
    assert options.xattr
    assert options.security_label
    for word in ("--xattrmap=/ok/client///", "-oxattrmap=/ok/client///"):
        with pytest.raises(UserError, match="such as :bad:all:::; /ok/client/// is not for all"):
            virtiofsd.options_of([*base, word])
    with pytest.raises(UserError, match="xattrmap and no_xattr exclude each other"):
        virtiofsd.options_of([*base, "-o", "no_xattr,xattrmap=selinux"])


@pytest.mark.parametrize("options", [(), ("--killpriv-v2",), ("--writeback",)], ids=lambda words: " ".join(words))
def test_a_change_takes_capabilities_under_another_name(tmp_path: Path, options: Sequence[str]) -> None:
    file = tmp_path / "file"
    file.write_bytes(b"0123456789")
    with guest(*options, "--xattrmap=:map::user.guest.:", shared=tmp_path) as (client, _, _agreed):
        nodeid = client.lookup(1, b"file")
        fh = client.open(nodeid, os.O_RDWR)
        write = s.FUSE_WRITE_IN.struct.pack
        setattr_in = s.FUSE_SETATTR_IN.struct.pack
        for change in (
            lambda: client.write(nodeid, fh, 0, b"x"),
            lambda: client.call("write", nodeid, write(fh, 0, 1, c.FUSE_WRITE_CACHE, 0, 0), data=1, out=8),
            lambda: client.call("setattr", nodeid, setattr_in(c.FATTR_SIZE, 0, 5, *(0,) * 10), out=104),
            lambda: client.call("setattr", nodeid, setattr_in(c.FATTR_UID, *(0,) * 12), out=104),
            lambda: client.call("setattr", nodeid, setattr_in(0, *(0,) * 12), out=104),
            lambda: client.open(nodeid, os.O_WRONLY | os.O_TRUNC),
            lambda: client.call("fallocate", nodeid, s.FUSE_FALLOCATE_IN.struct.pack(fh, 0, 100, 0)),
        ):
            client.setxattr(nodeid, b"security.capability", _CAPABILITY)
            assert os.getxattr(file, "user.guest.security.capability") == _CAPABILITY
            change()
            assert os.listxattr(file) == []


# Labels

_LABEL = ((b"security.selinux", b"system_u:object_r:guest_t:s0\0"),)


def _create(client: Client, name: bytes, extension: bytes) -> int:
    args = s.FUSE_CREATE_IN.struct.pack(os.O_RDWR, 0o100644, 0, 0) + name + b"\0"
    body = client.call("create", 1, args, out=s.FUSE_ENTRY_OUT.size + s.FUSE_OPEN_OUT.size, extension=extension)
    return int(struct.unpack_from("=Q", body)[0])


def _mkdir(client: Client, name: bytes, extension: bytes) -> int:
    args = s.FUSE_MKDIR_IN.struct.pack(0o755, 0) + name + b"\0"
    return int(struct.unpack_from("=Q", client.call("mkdir", 1, args, out=128, extension=extension))[0])


def _mknod(client: Client, name: bytes, extension: bytes) -> int:
    args = s.FUSE_MKNOD_IN.struct.pack(0o10644, 0, 0) + name + b"\0"
    return int(struct.unpack_from("=Q", client.call("mknod", 1, args, out=128, extension=extension))[0])


def _symlink(client: Client, name: bytes, extension: bytes) -> int:
    args = name + b"\0target\0"
    return int(struct.unpack_from("=Q", client.call("symlink", 1, args, out=128, extension=extension))[0])


_MAKE = {"create": _create, "mkdir": _mkdir, "mknod": _mknod, "symlink": _symlink}


@pytest.mark.parametrize("how", _MAKE)
def test_what_a_guest_makes_has_its_label_and_not_the_hosts(tmp_path: Path, how: str) -> None:
    options = ("--security-label", "--xattrmap=selinux", "--modcaps=+sys_admin")
    with guest(*options, shared=tmp_path) as (client, _, agreed):
        assert agreed & c.FUSE_SECURITY_CTX
        nodeid = _MAKE[how](client, b"new", labels_extension(_LABEL))
        assert client.getxattr(nodeid, b"security.selinux") == _LABEL[0][1]
        assert client.listxattr(nodeid) == [b"security.selinux"]
        _MAKE[how](client, b"bare", labels_extension(()))
    assert os.listxattr(tmp_path / "new", follow_symlinks=False) == ["trusted.virtiofs.security.selinux"]
    assert os.listxattr(tmp_path / "bare", follow_symlinks=False) == []


def test_a_file_without_a_name_has_its_label(tmp_path: Path) -> None:
    with guest("--security-label", "--xattrmap=selinux", "--modcaps=+sys_admin", shared=tmp_path) as (
        client,
        _,
        _agreed,
    ):
        args = s.FUSE_CREATE_IN.struct.pack(os.O_RDWR, 0o100600, 0, 0) + b"/\0"
        size = s.FUSE_ENTRY_OUT.size + s.FUSE_OPEN_OUT.size
        body = client.call("tmpfile", 1, args, out=size, extension=labels_extension(_LABEL))
        (nodeid,) = struct.unpack_from("=Q", body)
        assert client.getxattr(nodeid, b"security.selinux") == _LABEL[0][1]


@pytest.mark.parametrize("how", _MAKE)
def test_what_cannot_be_labelled_is_not_made(tmp_path: Path, how: str) -> None:
    """The daemon has no CAP_SYS_ADMIN here, and so no trusted.*; the next is made all the same."""
    with guest("--security-label", "--xattrmap=selinux", shared=tmp_path) as (client, own, _agreed):
        for _ in range(2):
            assert _outcome(lambda: _MAKE[how](client, b"new", labels_extension(_LABEL))) == "EPERM"
            assert os.listdir(tmp_path) == []
        assert _outcome(lambda: _MAKE[how](client, b"new", labels_extension(()))) == "done"
        assert own.errors() == []


@pytest.mark.parametrize(
    ("extension", "outcome"),
    [
        (struct.pack("=II", 16, 1) + bytes(8), "EINVAL"),
        (struct.pack("=II", 64, 1) + bytes(24), "EINVAL"),
        (labels_extension(_LABEL)[:-8], "EINVAL"),
        (labels_extension(_LABEL) * 2, "EINVAL"),
        (struct.pack("=II", 40, 1) + struct.pack("=I4x", 0xFFFFFFFF) + b"security.selinux\0" + bytes(7), "EINVAL"),
        (labels_extension([(b"system.posix_acl_access", b"x")]), "ENOTSUP"),
        (labels_extension([(b"trusted.virtiofs.security.selinux", b"x")]), "EPERM"),
        (labels_extension([(b"user.a", b"x"), (b"nonsense", b"x")]), "ENOTSUP"),
        (labels_extension([(b"user.a", bytes((1 << 16) + 1))]), "E2BIG"),
        (labels_extension([(b"user.a", b"x")] * 31), "done"),
    ],
    ids=["empty", "oversized", "truncated", "two blocks", "4 GiB", "acl", "bad", "unknown", "too large", "31 times"],
)
def test_labels_that_are_wrong_cost_that_request_alone(tmp_path: Path, extension: bytes, outcome: str) -> None:
    options = ("--security-label", "--xattrmap=selinux", "--modcaps=+sys_admin")
    with backend(*options, shared=tmp_path) as own, own.front() as front:
        client = Client(front)
        client.slot.request = front.memory.take(1 << 18, 4096)
        client.init(_MODERN)
        assert _outcome(lambda: _mkdir(client, b"new", extension)).replace("EOPNOTSUPP", "ENOTSUP") == outcome
        assert (tmp_path / "new").exists() is (outcome == "done")
        assert client.getattr()["ino"] == tmp_path.stat().st_ino


def test_without_the_option_labels_are_nobodys(tmp_path: Path) -> None:
    with guest("--xattr", shared=tmp_path) as (client, _, agreed):
        assert not agreed & c.FUSE_SECURITY_CTX
        _mkdir(client, b"new", labels_extension([(b"user.a", b"x")]))
    assert os.listxattr(tmp_path / "new") == []


@pytest.mark.parametrize(
    ("option", "missing"),
    [
        ("--security-label", c.FUSE_SECURITY_CTX),
        ("--posix-acl", c.FUSE_POSIX_ACL),
        ("--posix-acl", c.FUSE_DONT_MASK),
        ("--posix-acl", c.FUSE_SETXATTR_EXT),
    ],
)
def test_a_guest_that_lacks_what_was_asked_for_is_refused(tmp_path: Path, option: str, missing: int) -> None:
    with backend(option, shared=tmp_path) as own, own.front() as front:
        client = Client(front)
        assert _outcome(lambda: client.init(_MODERN & ~missing)) == "EPROTO"
        assert _outcome(client.getattr) == "EIO"
        client.init(_MODERN)
        assert client.getattr()["ino"] == tmp_path.stat().st_ino


# Access lists


def _acl(*entries: tuple[int, int, int]) -> bytes:
    """posix_acl_xattr_header and its entries: tag, permissions, id."""
    return struct.pack("=I", 2) + b"".join(struct.pack("=HHI", *entry) for entry in entries)


_ANY = 0xFFFFFFFF
_DEFAULT = _acl((1, 7, _ANY), (2, 6, 65534), (4, 5, _ANY), (16, 7, _ANY), (32, 0, _ANY))


def test_umasks_and_default_lists_are_the_hosts_kernels_to_apply(tmp_path: Path) -> None:
    (tmp_path / "listed").mkdir()
    os.setxattr(tmp_path / "listed", "system.posix_acl_default", _DEFAULT)
    with guest("--posix-acl", shared=tmp_path) as (client, _, agreed):
        assert agreed & ACCESS_LISTS == ACCESS_LISTS
        listed = client.lookup(1, b"listed")
        for parent, path in ((1, tmp_path / "new"), (listed, tmp_path / "listed" / "new")):
            client.call("mkdir", parent, s.FUSE_MKDIR_IN.struct.pack(0o777, 0o077) + b"new\0", out=128)
            assert path.stat().st_mode & 0o777 == (0o700 if parent == 1 else 0o770)
        shown = client.getxattr(client.lookup(listed, b"new"), b"system.posix_acl_default")
        assert shown == _DEFAULT
        with_list = _acl((1, 6, _ANY), (2, 4, 1000), (4, 4, _ANY), (16, 4, _ANY), (32, 0, _ANY))
        os.chmod(tmp_path / "new", 0o2770)
        nodeid = client.lookup(1, b"new")
        args = s.FUSE_SETXATTR_IN.struct.pack(len(with_list), 0, c.FUSE_SETXATTR_ACL_KILL_SGID)
        client.call("setxattr", nodeid, args + b"system.posix_acl_access\0" + with_list)
        assert os.getxattr(tmp_path / "new", "system.posix_acl_access") == with_list


def test_without_the_option_lists_are_hidden(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    subprocess.run(["setfacl", "-m", "u:1:r", str(tmp_path / "file")], check=True)
    with guest("--xattr", shared=tmp_path) as (client, _, agreed):
        assert not agreed & c.FUSE_POSIX_ACL
        nodeid = client.lookup(1, b"file")
        assert client.listxattr(nodeid) == []
        with pytest.raises(ReplyError) as error:
            client.getxattr(nodeid, b"system.posix_acl_access")
        assert error.value.errno == errno.ENOTSUP


# SUID, O_NOATIME, O_DIRECT, mappings, writing


@pytest.mark.parametrize(("option", "mode"), [("--killpriv-v2", 0o777), ("--no-killpriv-v2", 0o6777)])
def test_who_clears_suid(tmp_path: Path, option: str, mode: int) -> None:
    """With the option a guest asks for it in its write; without, it would send a request of its own."""
    (tmp_path / "file").touch()
    with guest(option, shared=tmp_path) as (client, _, agreed):
        both = c.FUSE_HANDLE_KILLPRIV_V2 | c.FUSE_ATOMIC_O_TRUNC
        assert agreed & both == (both if mode == 0o777 else 0)
        nodeid = client.lookup(1, b"file")
        fh = client.open(nodeid, os.O_RDWR)
        os.chmod(tmp_path / "file", 0o6777)
        flags = c.FUSE_WRITE_KILL_SUIDGID if agreed & both else 0
        client.call("write", nodeid, s.FUSE_WRITE_IN.struct.pack(fh, 0, 1, flags, 0, 0), data=1, out=8, uid=1000)
    assert (tmp_path / "file").stat().st_mode & 0o7777 == mode


@pytest.mark.parametrize(("option", "changes"), [("--preserve-noatime", False), ("--no-preserve-noatime", True)])
def test_a_guests_noatime(tmp_path: Path, option: str, changes: bool) -> None:
    (tmp_path / "file").write_bytes(b"content")
    os.utime(tmp_path / "file", (1, 2))
    with guest(option, shared=tmp_path) as (client, _, _agreed):
        nodeid = client.lookup(1, b"file")
        fh = client.open(nodeid, os.O_RDONLY | os.O_NOATIME)
        assert client.read(nodeid, fh, 0, 7) == b"content"
    assert ((tmp_path / "file").stat().st_atime != 1) is changes


@pytest.mark.parametrize(("option", "direct"), [("--allow-direct-io", True), ("--no-allow-direct-io", False)])
def test_a_guests_direct_io(tmp_path: Path, option: str, direct: bool) -> None:
    (tmp_path / "file").write_bytes(b"content")
    with guest(option, shared=tmp_path) as (client, own, _agreed):
        client.open(client.lookup(1, b"file"), os.O_RDONLY | os.O_DIRECT)
        assert (os.O_DIRECT in _flags_of(own.serving(), tmp_path / "file")) is direct


def _flags_of(pid: int, path: Path) -> list[int]:
    """O_DIRECT, where a descriptor of this process for this file has it (proc_pid_fdinfo(5)); PATH ones aside."""
    found = []
    for entry in Path(f"/proc/{pid}/fd").iterdir():
        try:
            same = os.path.samestat(entry.stat(), path.stat())
            lines = Path(f"/proc/{pid}/fdinfo/{entry.name}").read_text()
        except OSError:
            continue
        flags = int(lines.partition("flags:\t")[2].split()[0], 8)
        if same and not flags & os.O_PATH:
            found.append(flags & os.O_DIRECT)
    assert found
    return found


@pytest.mark.parametrize(("option", "offered"), [("--allow-mmap", True), ("--no-allow-mmap", False)])
def test_shared_mappings_without_a_cache_are_the_guests_to_make(tmp_path: Path, option: str, offered: bool) -> None:
    (tmp_path / "file").touch()
    flags = _MODERN | c.FUSE_DIRECT_IO_ALLOW_MMAP
    with guest("--cache=never", option, shared=tmp_path, flags=flags) as (client, _, agreed):
        assert bool(agreed & c.FUSE_DIRECT_IO_ALLOW_MMAP) is offered
        body = client.call("open", client.lookup(1, b"file"), s.FUSE_OPEN_IN.struct.pack(0, 0), out=16)
        assert struct.unpack_from("=QI", body)[1] & c.FOPEN_DIRECT_IO


def test_a_guests_writes_are_written_out_at_once(tmp_path: Path) -> None:
    """Under a filter that kills for a system call that it does not know."""
    with guest("--writeout=immediate", "--seccomp=kill", shared=tmp_path) as (client, own, _agreed):
        nodeid, fh = client.create(1, b"file", os.O_RDWR)
        assert client.write(nodeid, fh, 0, b"content") == 7
        assert own.process.poll() is None
    assert (tmp_path / "file").read_bytes() == b"content"


# Locks


@pytest.mark.parametrize("kind", ["flock", "posix-lock"])
def test_locks_of_two_guests_and_of_the_host_stand_in_each_others_way(tmp_path: Path, kind: str) -> None:
    (tmp_path / "file").write_bytes(bytes(10))
    lk_flags = c.FUSE_LK_FLOCK if kind == "flock" else 0
    both = INIT_FLAGS | c.FUSE_FLOCK_LOCKS | c.FUSE_POSIX_LOCKS

    def ask(client: Client, nodeid: int, fh: int, type_: int) -> str:
        args = s.FUSE_LK_IN.struct.pack(fh, 7, 0, (1 << 63) - 1, type_, 1, lk_flags)
        return _outcome(lambda: client.call("setlk", nodeid, args))

    with (
        guest(f"--{kind}", shared=tmp_path, flags=both) as (one, _, agreed),
        guest(f"--{kind}", shared=tmp_path, flags=both) as (two, _, _agreed),
        open(tmp_path / "file", "r+b") as file,
    ):
        assert agreed & both & ~INIT_FLAGS == (c.FUSE_FLOCK_LOCKS if kind == "flock" else c.FUSE_POSIX_LOCKS)
        guests = [
            (client, nodeid := client.lookup(1, b"file"), client.open(nodeid, os.O_RDWR)) for client in (one, two)
        ]
        take = fcntl.flock if kind == "flock" else fcntl.lockf
        assert ask(*guests[0], fcntl.F_WRLCK) == "done"
        assert ask(*guests[1], fcntl.F_WRLCK) == ask(*guests[1], fcntl.F_RDLCK) == "EAGAIN"
        with pytest.raises(BlockingIOError):
            take(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        assert ask(*guests[0], fcntl.F_UNLCK) == "done"
        take(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        assert ask(*guests[0], fcntl.F_RDLCK) == ask(*guests[1], fcntl.F_WRLCK) == "EAGAIN"
        take(file, fcntl.LOCK_UN)
        assert ask(*guests[0], fcntl.F_RDLCK) == ask(*guests[1], fcntl.F_RDLCK) == "done"
        assert ask(*guests[1], fcntl.F_WRLCK) == "EAGAIN"
