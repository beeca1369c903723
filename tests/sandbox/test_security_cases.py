"""Known incidents of this field, each as an attack: it fails, and succeeds where the defence is taken out.

The second half is what shows that the first can fail. A case is an attack, which returns what the attacker got (falsy:
nothing), and what takes the defence out. The attacker speaks FUSE to a server over a real directory, or is code that
runs in the daemon. Cases that need the whole mount stand elsewhere: tests/mounted/posix/test_robustness.py (symlinks
that are exchanged, descriptors), tests/mounted/test_shutdown.py and test_uring.py (ends while requests are in flight),
tests/mounted/test_user.py (allow_other and fuse.conf), tests/wire/test_hostile.py (lengths and numbers that lie).
"""

import contextlib
import errno
import os
import stat
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from passthrough.filesystem import Context
from passthrough.fs.capability import CAPABILITY, ClearedCapability
from passthrough.fs.tree import Tree, TreeConfig, base, inodes
from passthrough.fs.tree.credentials import Credentials
from passthrough.fs.xattrmap import Kind, Mapped, XattrMap, parse_map
from passthrough.protocol import constants as c
from passthrough.share import before
from passthrough.share_options import ShareOptions
from tests.unit.helpers import ME, ROOT_ID, find, in_thread, path_fd

from .inside import report

USER = Context(2, 1000, 1000, 1)
GROUP = 4321


@pytest.fixture
def share(tmp_path: Path) -> Path:
    """A share with one of each kind of file, and a secret beside it."""
    made = tmp_path / "share"
    (made / "dir").mkdir(parents=True)
    (made / "file").write_bytes(b"content")
    (made / "link").symlink_to("../secret")
    os.mkfifo(made / "fifo")
    os.mknod(made / "null", stat.S_IFCHR | 0o666, os.makedev(1, 3))
    (tmp_path / "secret").write_bytes(b"secret")
    return made


@contextlib.contextmanager
def tree_of(share: Path, **config: Any) -> Iterator[Tree]:
    tree = Tree(path_fd(share), TreeConfig(**config))
    try:
        yield tree
    finally:
        tree.destroy()
        os.close(tree.proc)


def got(call: Callable[[], Any]) -> Any:
    """What a call gives, or None where it is refused."""
    try:
        return call()
    except OSError:
        return None


Patch = pytest.MonkeyPatch


# CVE-2020-10717: a guest opens files until the machine has no more


def open_without_end(share: Path) -> int:
    """How many more than the budget could be opened."""
    with tree_of(share, descriptors=20) as tree:
        nodeid = find(tree, b"file").nodeid
        opened = [got(lambda: tree.open(ME, nodeid, os.O_RDONLY, 0)) for _ in range(100)]
        refused = opened.index(None) if None in opened else len(opened)
        return max(0, refused - 20)


def no_budget(patch: Patch) -> None:
    patch.setattr(base.TreeBase, "afford", lambda self: None)


# CVE-2020-35517, CVE-2023-2861: special files are opened by the daemon


def open_special(share: Path) -> list[str]:
    found = []
    with tree_of(share) as tree:
        for name in ("null", "fifo", "link"):
            nodeid = find(tree, name.encode()).nodeid
            if got(lambda nodeid=nodeid: tree.open(ME, nodeid, os.O_RDWR, 0)) is not None:  # type: ignore[misc]
                found.append(name)
    return found


def no_look_at_the_kind(patch: Patch) -> None:
    def reopen(self: Tree, inode: inodes.Inode, flags: int) -> int:
        return os.open(str(inode.fd), flags | os.O_CLOEXEC | os.O_NONBLOCK, dir_fd=self.proc)

    def open_inode(self: Tree, inode: inodes.Inode, flags: int, open_flags: int) -> object:
        return self.opened(inode, self.reopen(inode, flags), flags)

    patch.setattr(base.TreeBase, "reopen", reopen)
    patch.setattr(base.TreeBase, "open_inode", open_inode)


# CVE-2022-0358: an SGID file in a group that its maker is not in


def sgid_in_a_foreign_group(share: Path) -> int:
    directory = share / "dir"
    os.chown(directory, 0, GROUP)
    directory.chmod(0o3777)
    with tree_of(share) as tree:
        nodeid = find(tree, b"dir").nodeid
        in_thread(lambda: tree.create(USER, nodeid, b"new", os.O_RDWR | os.O_EXCL, stat.S_IFREG | 0o2755, 0, 0))
    made = (directory / "new").stat()
    return made.st_mode & stat.S_ISGID if made.st_gid == GROUP else 0


def as_root(patch: Patch) -> None:
    patch.setattr(Credentials, "caller", lambda self, ctx, strict=False: contextlib.nullcontext())


# C virtiofsd, c241aa94: a FORGET of more lookups than there were


def forget_too_much(share: Path) -> bool:
    """Whether a node is lost that was looked up after, or never goes."""
    with tree_of(share) as tree:
        nodeid = find(tree, b"file").nodeid
        tree.forget(nodeid, (1 << 64) - 1)
        tree.forget(nodeid, 1)
        tree.forget(ROOT_ID, (1 << 64) - 1)
        again = find(tree, b"file").nodeid
        find(tree, b"file")
        tree.forget(again, 1)
        kept = got(lambda: tree.getattr(ME, again, None)) is not None
        tree.forget(again, 1)
        gone = got(lambda: tree.getattr(ME, again, None)) is None
        return not (kept and gone and got(lambda: tree.getattr(ME, ROOT_ID, None)))


def counts_below_zero(patch: Patch) -> None:
    def forget_all(self: inodes.InodeMap, forgets: Any) -> None:
        for nodeid, nlookup in forgets:
            inode = self._by_nodeid.get(nodeid)
            if inode is not None:
                inode.nlookup -= nlookup
                if inode.nlookup == 0:
                    del self._by_nodeid[nodeid]
                    del self._by_key[inode.key]

    patch.setattr(inodes.InodeMap, "forget_all", forget_all)


# CVE-2023-1386: SUID and SGID survive a write by another


def privileged_after_a_write(share: Path) -> int:
    file = share / "file"
    file.chmod(0o6777)
    with tree_of(share) as tree:
        nodeid = find(tree, b"file").nodeid
        fh = tree.open(USER, nodeid, os.O_RDWR, 0).fh
        tree.write(USER, nodeid, fh, 0, (memoryview(b"changed"),), c.FUSE_WRITE_KILL_SUIDGID, os.O_RDWR)
        found = file.stat().st_mode
        file.chmod(0o6777)
        tree.fallocate(USER, nodeid, fh, 0, 4096, 0)
        found |= file.stat().st_mode
    return found & (stat.S_ISUID | stat.S_ISGID)


def with_fsetid(patch: Patch) -> None:
    patch.setattr(Credentials, "killing_privileges", lambda self, kill: contextlib.nullcontext())


# CVE-2017-7471, CVE-2016-9602: the way out by a symlink


def read_through_a_link(share: Path) -> bytes | None:
    with tree_of(share) as tree:
        nodeid = find(tree, b"link").nodeid
        opened = got(lambda: tree.open(ME, nodeid, os.O_RDONLY, 0))
        return os.pread(tree.files.get(opened.fh, nodeid).fd, 100, 0) if opened else None


def follow_links(patch: Patch) -> None:
    patch.setattr(base, "PATH_FLAGS", os.O_PATH | os.O_CLOEXEC)
    patch.setattr(base, "BY_NAME", 0)


# CVE-2021-20263: capabilities under another name survive a change of the file


def capabilities_after_a_change(share: Path) -> bool:
    with tree_of(share) as tree:
        fs = before(tree, ShareOptions(xattrmap=parse_map(":map::user.guest.:")))
        nodeid = find(tree, b"file").nodeid
        fh = fs.open(ME, nodeid, os.O_RDWR, 0).fh
        fs.setxattr(ME, nodeid, CAPABILITY, b"a guest's program may do all", 0, 0)
        fs.write(USER, nodeid, fh, 0, (memoryview(b"changed"),), 0, os.O_RDWR)
        return got(lambda: fs.getxattr(ME, nodeid, CAPABILITY)) is not None


def as_any_attribute(patch: Patch) -> None:
    patch.setattr(ClearedCapability, "_clear", lambda self, ctx, nodeid: None)


# A map gone round: the guest asks for the name that the host has


def write_under_the_hosts_name(share: Path) -> list[str]:
    with tree_of(share) as tree:
        fs = before(tree, ShareOptions(xattrmap=parse_map(":map:security.:trusted.guest.:")))
        nodeid = find(tree, b"file").nodeid
        for name in (b"trusted.guest.security.x", b"trusted.guest.other", b"security.x"):
            got(lambda name=name: fs.setxattr(ME, nodeid, name, b"x", 0, 0))  # type: ignore[misc]
        return [name for name in os.listxattr(share / "file") if name != "trusted.guest.security.x"] + [
            name.decode() for name in fs.listxattr(ME, nodeid) if name != b"security.x"
        ]


def without_the_rule(patch: Patch) -> None:
    patch.setattr(XattrMap, "to_host", lambda self, name: Mapped(Kind.OK, name))


CASES = {
    "CVE-2020-10717 descriptors": (open_without_end, no_budget),
    "CVE-2020-35517 special files": (open_special, no_look_at_the_kind),
    "CVE-2022-0358 groups": (sgid_in_a_foreign_group, as_root),
    "forget underflow": (forget_too_much, counts_below_zero),
    "CVE-2023-1386 SUID": (privileged_after_a_write, with_fsetid),
    "CVE-2017-7471 symlinks": (read_through_a_link, follow_links),
    "CVE-2021-20263 capabilities": (capabilities_after_a_change, as_any_attribute),
    "a map gone round": (write_under_the_hosts_name, without_the_rule),
}


@pytest.mark.parametrize("case", CASES)
def test_the_attack_fails(share: Path, case: str) -> None:
    attack, _ = CASES[case]
    assert not attack(share)


@pytest.mark.parametrize("case", CASES)
def test_and_would_succeed_without_the_defence(share: Path, case: str, monkeypatch: pytest.MonkeyPatch) -> None:
    attack, take_out = CASES[case]
    take_out(monkeypatch)
    assert attack(share)


# In a daemon that was taken over: what the sandbox alone prevents (CVE-2026-47243, libkrun#329, CVE-2020-35517)

INSIDE: dict[str, tuple[str, dict[str, Any], dict[str, Any]]] = {
    "another file": (
        'found["got"] = attempt(lambda: open(words[0]).read()) == "secret"',
        {},
        {"mode": "none"},
    ),
    "another file by a descriptor": (
        'found["got"] = attempt(lambda: os.read(os.open("../" * 9 + words[0], 0, dir_fd=inside.proc), 9)) == b"secret"',
        {"mode": "chroot", "landlock": "off"},
        {
            "mode": "chroot",
            "landlock": "off",
            "patch": "from sandbox import syscalls\ndef no(*_): raise OSError(1, '')\nsyscalls.open_tree = no",
        },
    ),
    "a device": (
        """
def use():
    os.mknod("/node", 0o020666, os.makedev(1, 3))
    return os.open("/node", os.O_RDWR)
found["got"] = isinstance(attempt(use), int)
""",
        {},
        {"patch": "from sandbox import syscalls\nsyscalls.MOUNT_ATTR_NODEV = 0"},
    ),
    "a process": (
        'found["got"] = attempt(lambda: os.kill(int(words[1]), 0)) is None',
        {"landlock": "off"},
        {"mode": "chroot", "landlock": "off", "add_capabilities": ["KILL"]},
    ),
    "the time": (
        """
import time
found["got"] = attempt(lambda: time.clock_settime(time.CLOCK_REALTIME, time.time())) is None
""",
        {},
        {"add_capabilities": ["SYS_TIME"]},
    ),
    "a mount": (
        """
import ctypes
found["got"] = ctypes.CDLL(None).mount(b"none", b"/dir", b"tmpfs", 0, b"") == 0
""",
        {"landlock": "off"},
        {"landlock": "off", "kernel_backing": True},
    ),
}


@pytest.mark.parametrize("name", INSIDE)
@pytest.mark.parametrize("defended", [True, False], ids=["defended", "taken out"])
def test_a_daemon_that_was_taken_over(share: Path, name: str, defended: bool) -> None:
    lines, wanted, without = INSIDE[name]
    secret = str(share.parent / "secret")
    found = report(lines, secret, str(os.getpid()), path=share, **(wanted if defended else without))
    assert found["got"] is not defended


def test_errors_are_those_of_the_kernel(share: Path) -> None:
    """The budget's errno is what a client's own limit gives it."""
    with tree_of(share, descriptors=16) as tree:
        nodeid = find(tree, b"file").nodeid
        opened = [got(lambda: tree.open(ME, nodeid, os.O_RDONLY, 0)) for _ in range(20)]
        assert None in opened
        with pytest.raises(OSError, match="Too many open files in system") as raised:
            tree.open(ME, nodeid, os.O_RDONLY, 0)
        assert raised.value.errno == errno.ENFILE
