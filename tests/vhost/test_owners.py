"""Owners behind `passthrough serve`: an ordinary user's daemon keeps a guest's root file system; translated ids."""

import errno
import os
import pwd
import stat
import struct
from pathlib import Path

import pytest

from passthrough.cli import virtiofsd
from passthrough.fs.owners.idmap import Kind, Line
from passthrough.protocol import constants as c
from passthrough.protocol import structs as s

from .backend import backend
from .frontend import FrontEnd
from .fuse import INIT_FLAGS, Client, ReplyError


class Guest(Client):
    """Sends its requests in the name of `uid` and `gid`, and decodes entries."""

    def __init__(self, front: FrontEnd) -> None:
        self.uid = self.gid = 0
        super().__init__(front)
        self.init(INIT_FLAGS | c.FUSE_DONT_MASK)

    def header(
        self, name: str, nodeid: int, size: int, *, uid: int = 0, gid: int = 0, extensions: int = 0
    ) -> tuple[int, bytes]:
        return super().header(name, nodeid, size, uid=self.uid, gid=self.gid, extensions=extensions)

    def make(self, name: str, args: bytes) -> tuple[int, dict[str, int]]:
        """A request below the root that answers an entry: its nodeid and attributes."""
        body = self.call(name, 1, args, out=s.FUSE_ENTRY_OUT.size)
        return int(struct.unpack_from("=Q", body)[0]), self.getattr(struct.unpack_from("=Q", body)[0])

    def chown(self, nodeid: int, uid: int, gid: int) -> None:
        values = dict.fromkeys(s.FUSE_SETATTR_IN.fields, 0) | {
            "valid": c.FATTR_UID | c.FATTR_GID,
            "uid": uid,
            "gid": gid,
        }
        self.call("setattr", nodeid, s.FUSE_SETATTR_IN.struct.pack(*values.values()), out=s.FUSE_ATTR_OUT.size)


def _mknod(name: bytes, mode: int, rdev: int = 0, umask: int = 0) -> bytes:
    return s.FUSE_MKNOD_IN.struct.pack(mode, rdev, umask) + name + b"\0"


def _owner(attr: dict[str, int]) -> tuple[int, int, int]:
    return attr["mode"], attr["uid"], attr["gid"]


@pytest.fixture
def user() -> int:
    return pwd.getpwnam("nobody").pw_uid


def test_an_ordinary_users_daemon_keeps_what_a_guest_makes(user: int) -> None:
    with backend("--security-model=mapped-xattr", "--xattr", user=user) as daemon, daemon.front() as front:
        guest = Guest(front)
        guest.uid, guest.gid = 1000, 1001
        _, null = guest.make("mknod", _mknod(b"null", stat.S_IFCHR | 0o666, 0x103, 0o022))
        assert (*_owner(null), null["rdev"]) == (stat.S_IFCHR | 0o644, 1000, 1001, 0x103)
        link, attr = guest.make("symlink", b"link\0where/to\0")
        assert _owner(attr) == (stat.S_IFLNK | 0o777, 1000, 1001)
        assert bytes(guest.call("readlink", link, room=4096)) == b"where/to"
        file, fh = guest.create(1, b"file", os.O_RDWR, 0o4755)
        assert _owner(guest.getattr(file)) == (stat.S_IFREG | 0o4755, 1000, 1001)
        guest.chown(file, 5, 6)
        assert _owner(guest.getattr(file)) == (stat.S_IFREG | 0o755, 5, 6), "a change of owner takes SUID"
        assert guest.write(file, fh, 0, b"data") == 4
        real = {path.name: path.lstat() for path in daemon.shared.iterdir()}
        assert {(st.st_uid, stat.S_IMODE(st.st_mode)) for st in real.values()} == {(user, 0o600)}
        assert os.getxattr(daemon.shared / "file", "user.virtfs.gid") == struct.pack("<I", 6)
        with pytest.raises(ReplyError) as refused:
            guest.open(link, os.O_RDONLY)
        assert refused.value.errno == errno.EBADF
        name = b"user.virtfs.uid\0"
        with pytest.raises(ReplyError) as refused:
            guest.call("removexattr", file, name)
        assert refused.value.errno == errno.EPERM
        guest.make("mkdir", s.FUSE_MKDIR_IN.struct.pack(0o2770, 0) + b"dir\0")
        assert daemon.errors() == []


def test_a_write_in_the_name_of_an_ordinary_user_takes_suid(user: int) -> None:
    with backend("--security-model=mapped-xattr", user=user) as daemon, daemon.front() as front:
        guest = Guest(front)
        file, fh = guest.create(1, b"file", os.O_RDWR, 0o6775)
        guest.memory.at(guest.slot.data, 1)[:] = b"x"
        for flags, mode in ((0, 0o6755), (c.FUSE_WRITE_KILL_SUIDGID, 0o755)):
            args = s.FUSE_WRITE_IN.struct.pack(fh, 0, 1, flags, 0, 0)
            guest.call("write", file, args, data=1, out=s.FUSE_WRITE_OUT.size)
            assert guest.getattr(file)["mode"] == stat.S_IFREG | mode
        assert (daemon.shared / "file").read_bytes() == b"x"


def test_translated_ids() -> None:
    words = ("--translate-uid=map:1000:200000:10", "--translate-gid=squash-guest:0:7:4294967295")
    with backend(*words, "--translate-uid=forbid-guest:0:1000") as daemon, daemon.front() as front:
        daemon.shared.chmod(0o777)
        guest = Guest(front)
        guest.uid, guest.gid = 1003, 1004
        nodeid, attr = guest.make("mknod", _mknod(b"file", stat.S_IFREG | 0o644))
        assert _owner(attr) == (stat.S_IFREG | 0o644, 1003, 7)
        st = (daemon.shared / "file").stat()
        assert (st.st_uid, st.st_gid) == (200_003, 7)
        guest.chown(nodeid, 1005, 99)
        st = (daemon.shared / "file").stat()
        assert (st.st_uid, st.st_gid) == (200_005, 7)
        guest.uid = 5
        for act in (lambda: guest.make("mknod", _mknod(b"other", stat.S_IFREG)), lambda: guest.chown(nodeid, 0, 0)):
            with pytest.raises(ReplyError) as refused:
                act()
            assert refused.value.errno == errno.EPERM
        assert os.listdir(daemon.shared) == ["file"]


def test_a_guest_that_asks_for_what_was_not_agreed_on_is_squashed_all_the_same() -> None:
    """A directory that may be listed and not searched: READDIRPLUS would look its names up for the daemon."""
    with backend("--squash=all", "--anon-uid=4001", "--anon-gid=4002") as daemon, daemon.front() as front:
        for path in (daemon.base, daemon.shared):
            path.chmod(0o755)
        (daemon.shared / "listed").mkdir()
        (daemon.shared / "listed" / "file").touch()
        (daemon.shared / "listed").chmod(0o744)
        client = Client(front)
        client.init(INIT_FLAGS)
        listed = client.lookup(1, b"listed")
        with pytest.raises(ReplyError) as refused:
            client.lookup(listed, b"file")
        assert refused.value.errno == errno.EACCES
        body = client.call("opendir", listed, s.FUSE_OPEN_IN.struct.pack(0, 0), out=s.FUSE_OPEN_OUT.size)
        args = s.FUSE_READ_IN.struct.pack(s.FUSE_OPEN_OUT.struct.unpack_from(body)[0], 0, 4096, 0, 0, 0)
        assert b"file" in client.call("readdir", listed, args, room=4096).tobytes()
        with pytest.raises(ReplyError) as refused:
            client.call("readdirplus", listed, args, room=4096)
        assert refused.value.errno == errno.ENOSYS


def test_the_words_of_virtiofsd(tmp_path: Path) -> None:
    words = [f"--shared-dir={tmp_path}", f"--socket-path={tmp_path}/socket"]
    options = virtiofsd.options_of(
        [
            *words,
            "--translate-uid=map:0:100000:65536",
            "--translate-uid",
            "forbid-guest:65536:10",
            "--translate-gid=host:0:1:2",
        ]
    )
    assert options.translate_uid == (Line(Kind.MAP, 0, 100_000, 65_536), Line(Kind.FORBID_GUEST, 65_536, 0, 10))
    assert options.translate_gid == (Line(Kind.HOST, 0, 1, 2),)


@pytest.mark.parametrize("uid", [0, c.FUSE_INVALID_UIDGID])
def test_a_guest_may_idmap_its_mount(uid: int) -> None:
    """Its kernel then names nobody in what creates nothing; nothing is created for nobody."""
    for words, agreed in ((), True), (("--no-allow-idmap",), False):
        with backend(*words) as daemon, daemon.front() as front:
            client = Client(front)
            reply = dict(zip(s.FUSE_INIT_OUT.fields, client.init(INIT_FLAGS | c.FUSE_ALLOW_IDMAP), strict=True))
            assert bool(reply["flags2"] << 32 & c.FUSE_ALLOW_IDMAP) == agreed
            guest = Guest(front)
            file, fh = guest.create(1, b"file", os.O_RDWR)
            guest.uid = guest.gid = uid
            assert guest.getattr(file)["uid"] == 0
            guest.chown(file, 3, 4)
            guest.call("fallocate", file, s.FUSE_FALLOCATE_IN.struct.pack(fh, 0, 10, 0))
            assert (daemon.shared / "file").stat().st_size == 10
            if uid:
                with pytest.raises(ReplyError) as refused:
                    guest.make("mknod", _mknod(b"other", stat.S_IFREG))
                assert refused.value.errno == errno.EOVERFLOW


def test_translated_ids_in_an_ordinary_users_sandbox(user: int) -> None:
    """The daemon is root in a namespace that has one id: the guest's 1000 becomes that one, and others cannot be."""
    maps = (f"--uid-map=:0:{user}:1:", f"--gid-map=:0:{user}:1:")
    words = ("--translate-uid=map:1000:0:1", "--translate-gid=map:1000:0:1")
    with backend(*maps, *words, user=user) as daemon, daemon.front() as front:
        guest = Guest(front)
        guest.uid = guest.gid = 1000
        _, attr = guest.make("mknod", _mknod(b"file", stat.S_IFREG | 0o644))
        assert _owner(attr) == (stat.S_IFREG | 0o644, 1000, 1000)
        st = (daemon.shared / "file").stat()
        assert (st.st_uid, st.st_gid) == (user, user)
        guest.uid = guest.gid = 5
        with pytest.raises(ReplyError) as refused:
            guest.make("mknod", _mknod(b"other", stat.S_IFREG))
        assert refused.value.errno == errno.EINVAL
        guest.uid = guest.gid = 1000
        guest.make("mkdir", s.FUSE_MKDIR_IN.struct.pack(0o755, 0) + b"dir\0")
        assert sorted(os.listdir(daemon.shared)) == ["dir", "file"]
