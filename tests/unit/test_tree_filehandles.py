"""Inodes that are kept as file handles: the same nodes, the same answers, and never another file's.

The handles are the kernel's own. What opens them stands in for the process that does, which tests/sandbox has.
"""

import errno
import os
import random
import threading
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from passthrough import syscalls
from passthrough.filesystem import Entry
from passthrough.fs.tree import Choice, FileHandles, Tree, filehandles
from passthrough.fs.tree.filehandles import Token
from passthrough.fs.tree.inodes import Inode
from passthrough.fs.tree.pins import Descriptor
from passthrough.protocol import constants as c
from passthrough.protocol.negotiation import Agreement
from tests.doubles import DeafKernel
from tests.mounted.harness import wait_until
from tests.unit.direct import Direct
from tests.unit.helpers import ME, ROOT_ID, at_once, descriptors, find, in_thread, path_fd, raises

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="open_by_handle_at(2) takes CAP_DAC_READ_SEARCH")

_LIMIT = 16
_ALL = (1 << 64) - 1


Few = Callable[..., tuple[Tree, Direct]]


@pytest.fixture
def few(make: Callable[..., Tree], source: Path) -> Few:
    """Trees with few descriptors, and what opens by handle for them."""

    def tree(limit: int = _LIMIT, mode: FileHandles = FileHandles.PREFER, **config: object) -> tuple[Tree, Direct]:
        opener = Direct(source)
        made = make(opener=opener, descriptors=limit, file_handles=mode, **config)
        return made, opener

    return tree


def inode_of(tree: Tree, nodeid: int) -> Inode:
    return tree.inodes.get(nodeid)


def let_go(tree: Tree) -> None:
    """All that may be."""
    keeping = tree.inodes.keeping
    assert keeping
    keeping.evict(1000, wait=True)


def fill(source: Path, count: int) -> dict[bytes, int]:
    """Files, and their inode numbers."""
    for number in range(count):
        (source / f"n{number}").write_bytes(b"%d" % number)
    return {f"n{number}".encode(): (source / f"n{number}").stat().st_ino for number in range(count)}


def test_far_more_nodes_than_descriptors(few: Few, source: Path) -> None:
    tree, opener = few()
    files = fill(source, 200)
    nodes = {name: tree.lookup(ME, ROOT_ID, name).nodeid for name in files}
    assert len(set(nodes.values())) == len(tree.inodes) - 1 == 200
    assert len(tree.pins) <= _LIMIT
    for name, ino in files.items():
        attr, _ = tree.getattr(ME, nodes[name], None)
        assert attr.ino == ino
        opened = tree.open(ME, nodes[name], os.O_RDONLY, 0)
        found = tree.read(ME, nodes[name], opened.fh, 0, 10, 0)
        assert os.pread(found.fd, 10, 0) == name[1:]
        del found
        tree.release(ME, nodes[name], opened.fh, 0, 0, 0)
        assert len(tree.pins) <= _LIMIT
    assert opener.opened > 150
    for name, nodeid in nodes.items():
        assert tree.lookup(ME, ROOT_ID, name).nodeid == nodeid
    tree.batch_forget([(nodeid, 2) for nodeid in nodes.values()])
    assert len(tree.inodes) == 1
    assert (len(tree.pins), opener.dropped) == (1, [])


def test_nothing_is_let_go_before_descriptors_are_scarce(few: Few, source: Path) -> None:
    tree, opener = few(1000)
    for name in fill(source, 200):
        assert inode_of(tree, tree.lookup(ME, ROOT_ID, name).nodeid).held is not None
    assert opener.opened == 0


def test_never_keeps_descriptors(few: Few, source: Path) -> None:
    tree, opener = few(mode=FileHandles.NEVER)
    names = list(fill(source, 50))
    with raises(errno.ENFILE):
        for name in names:
            tree.lookup(ME, ROOT_ID, name)
    assert opener.opened == 0


def test_a_lookup_revives_without_opening_by_handle(few: Few, source: Path) -> None:
    tree, opener = few()
    entry = find(tree, b"dir", b"inner")
    let_go(tree)
    inode = inode_of(tree, entry.nodeid)
    assert inode.held is None
    assert find(tree, b"dir", b"inner").nodeid == entry.nodeid
    assert inode_of(tree, entry.nodeid).held is not None
    assert inode_of(tree, entry.nodeid).connected
    assert opener.opened == 0


def test_all_names_of_a_file_are_one_node(few: Few, source: Path) -> None:
    tree, _ = few()
    os.link(source / "file", source / "dir" / "second")
    first = find(tree, b"file").nodeid
    let_go(tree)
    assert find(tree, b"dir", b"second").nodeid == first
    let_go(tree)
    os.rename(source / "file", source / "renamed")
    assert tree.getattr(ME, first, None)[0].nlink == 2
    assert find(tree, b"renamed").nodeid == first


@pytest.mark.parametrize("name", ["file", "dir", "link", "fifo", "socket", "null"])
def test_every_kind_of_file_comes_back(few: Few, source: Path, name: str) -> None:
    tree, opener = few()
    nodeid = find(tree, name.encode()).nodeid
    let_go(tree)
    assert inode_of(tree, nodeid).held is None
    attr, _ = tree.getattr(ME, nodeid, None)
    st = (source / name).lstat()
    assert (attr.ino, attr.mode) == (st.st_ino, st.st_mode)
    assert opener.opened == 1
    if name == "link":
        let_go(tree)
        assert tree.readlink(ME, nodeid) == b"/etc/passwd"
    if name in ("fifo", "socket", "null"):
        with raises(errno.EBADF):
            tree.open(ME, nodeid, os.O_RDONLY, 0)


def test_what_is_gone_is_stale_and_its_number_is_anothers(
    few: Few, source: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The new file is made to look as if it had the number of the one that is gone, as file systems do sooner or
    later: the generation in the handle tells them apart."""
    tree, _ = few()
    old = find(tree, b"file").nodeid
    let_go(tree)
    (source / "file").unlink()
    with raises(errno.ESTALE):
        tree.getattr(ME, old, None)
    with raises(errno.ENOENT):
        find(tree, b"file")
    (source / "other").write_bytes(b"other")
    key = inode_of(tree, old).key
    real = syscalls.statx
    ino = (source / "other").stat().st_ino

    def reused(*args: object) -> tuple[int, ...]:
        st = real(*args)  # type: ignore[arg-type]
        return (*st[:7], key[0], *st[8:]) if st[7] == ino else st

    monkeypatch.setattr(syscalls, "statx", reused)
    for _ in range(2):  # where known names are asked for, a statx comes first
        find(tree, b"link")
    assert not tree.inodes.root.unexplored
    new = find(tree, b"other").nodeid
    assert new != old
    assert find(tree, b"other").nodeid == new
    let_go(tree)
    assert find(tree, b"other").nodeid == new
    with raises(errno.ESTALE):
        tree.getattr(ME, old, None)
    tree.forget(old, _ALL)
    with raises(errno.EBADF):
        tree.getattr(ME, old, None)
    assert find(tree, b"other").nodeid == new, "forgetting the old one has not forgotten the new one"


def _rename_over(tree: Tree) -> None:
    tree.rename2(ME, ROOT_ID, b"away", b"file", ROOT_ID, 0)


@pytest.mark.parametrize("remove", [lambda tree: tree.unlink(ME, ROOT_ID, b"file"), _rename_over])
def test_what_is_removed_through_us_is_held(few: Few, remove: Callable[[Tree], None]) -> None:
    """A client may use it yet, as one may that has a file open or is in a directory."""
    tree, _ = few()
    nodeid = find(tree, b"file").nodeid
    let_go(tree)
    remove(tree)
    for _ in range(3):
        let_go(tree)
    assert inode_of(tree, nodeid).held is not None
    assert tree.getattr(ME, nodeid, None)[0].nlink == 0
    opened = tree.open(ME, nodeid, os.O_RDWR, 0)
    assert tree.write(ME, nodeid, opened.fh, 0, (memoryview(b"x"),), 0, 0) == 1


def test_a_directory_that_is_removed_is_held(few: Few, source: Path) -> None:
    tree, _ = few()
    (source / "empty").mkdir()
    nodeid = find(tree, b"empty").nodeid
    let_go(tree)
    tree.rmdir(ME, ROOT_ID, b"empty")
    let_go(tree)
    assert tree.getattr(ME, nodeid, None)[0].nlink == 0
    dh = tree.opendir(ME, nodeid, 0, 0).fh
    with raises(errno.ENOENT):  # as everywhere (getdents64(2))
        tree.readdir(ME, nodeid, dh, 0, 4096)


def test_a_file_without_a_name_is_held(few: Few) -> None:
    tree, _ = few()
    entry, _ = tree.tmpfile(ME, find(tree, b"dir").nodeid, b"/", os.O_RDWR, 0o600, 0, 0)
    let_go(tree)
    assert inode_of(tree, entry.nodeid).held is not None


def test_what_loses_its_last_name_while_it_is_let_go_is_held(
    few: Few, source: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tree, opener = few()
    nodeid = find(tree, b"file").nodeid
    real = opener.seal

    def seal(fds: Sequence[int]) -> list[Token | None]:
        (source / "file").unlink()
        return real(fds)

    monkeypatch.setattr(opener, "seal", seal)
    let_go(tree)
    assert inode_of(tree, nodeid).held is not None
    assert tree.getattr(ME, nodeid, None)[0].nlink == 0


def test_file_systems_without_handles_keep_descriptors_and_are_named_once(
    few: Few, source: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(filehandles, "has_handles", lambda fd: False)
    tree, _ = few()
    with raises(errno.ENFILE):
        for name in fill(source, 50):
            tree.lookup(ME, ROOT_ID, name)
    assert len(tree.pins) == _LIMIT
    warnings = [record.message for record in caplog.records if "no file handles" in record.message]
    assert len(warnings) == 1
    device = source.stat().st_dev
    assert f"{os.major(device)}:{os.minor(device)}" in warnings[0]


def test_mandatory_serves_no_other_file_systems(few: Few, source: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The root's was tried before; another is met below it."""
    tree, _ = few(mode=FileHandles.MANDATORY)
    find(tree, b"file")
    monkeypatch.setattr(filehandles, "has_handles", lambda fd: False)
    real = syscalls.statx

    def elsewhere(*args: object) -> tuple[int, ...]:
        st = real(*args)  # type: ignore[arg-type]
        return (*st[:22], 777, *st[23:])

    monkeypatch.setattr(syscalls, "statx", elsewhere)
    before = descriptors()
    for _ in range(2):
        with raises(errno.EOPNOTSUPP):
            find(tree, b"file")
    assert descriptors() == before


def test_when_what_opens_has_ended_the_rest_goes_on(few: Few, source: Path, caplog: pytest.LogCaptureFixture) -> None:
    tree, opener = few()
    lost = find(tree, b"file").nodeid
    let_go(tree)
    opener.ended = True
    with raises(errno.EIO):
        tree.getattr(ME, lost, None)
    assert find(tree, b"file").nodeid == lost
    assert tree.getattr(ME, lost, None)[0].size == 10
    with raises(errno.ENFILE):
        for name in fill(source, 50):
            tree.lookup(ME, ROOT_ID, name)
    assert [record.message for record in caplog.records if record.levelname == "ERROR"] == [
        "file handles are no longer to be had: ended"
    ]
    tree.forget(lost, _ALL)


def test_a_mount_is_dropped_with_its_last_inode(few: Few, source: Path) -> None:
    tree, opener = few()
    nodes = [find(tree, b"dir").nodeid, find(tree, b"dir", b"inner").nodeid]
    (token,) = opener.seal([Descriptor(path_fd(source))])
    assert token
    other = 4711  # as if these two lay on another mount
    opener.mounts[other] = os.dup(opener.mounts[token.mount])
    real = opener.seal
    opener.seal = lambda fds: [token and token._replace(mount=other) for token in real(fds)]  # type: ignore[method-assign]
    let_go(tree)
    tree.forget(nodes[0], _ALL)
    assert opener.dropped == []
    tree.getattr(ME, nodes[1], None)
    tree.forget(nodes[1], _ALL)
    assert opener.dropped == [other]


def test_a_mount_is_dropped_when_its_last_inode_is_forgotten_while_it_is_let_go(few: Few, source: Path) -> None:
    tree, opener = few()
    nodeid = find(tree, b"file").nodeid
    (token,) = opener.seal([Descriptor(path_fd(source))])
    assert token
    other = 4711  # as if it lay on another mount
    opener.mounts[other] = os.dup(opener.mounts[token.mount])
    real = opener.seal
    forgetting = threading.Thread(target=lambda: tree.forget(nodeid, _ALL))

    def seal(fds: Sequence[int]) -> list[Token | None]:
        forgetting.start()
        wait_until(lambda: len(tree.inodes) == 1, "it is forgotten")
        forgetting.join(0.01)
        return [token and token._replace(mount=other) for token in real(fds)]

    opener.seal = seal  # type: ignore[method-assign]
    let_go(tree)
    forgetting.join()
    assert opener.dropped == [other]


def test_what_cannot_be_opened_anew_passes_through_the_daemon(few: Few, monkeypatch: pytest.MonkeyPatch) -> None:
    """Landlock lets nobody open what has no path; the kernel would open it for us, with our rights."""

    kernel = Backing()
    tree, _ = few(passthrough=Choice.AUTO)
    tree.init(Agreement(45, c.FUSE_PASSTHROUGH, 1 << 20), kernel)
    named, lost = find(tree, b"file").nodeid, find(tree, b"dir", b"inner").nodeid
    fh = tree.open(ME, named, os.O_RDONLY, 0).fh
    let_go(tree)
    assert (kernel.given, kernel.closed) == (1, 0), "it is in use"
    tree.release(ME, named, fh, 0, 0, 0)
    tree.getattr(ME, named, None)
    let_go(tree)
    assert (kernel.given, kernel.closed) == (1, 1), "what is let go is kept by nothing else"
    assert tree.open(ME, named, os.O_RDONLY, 0).backing_id == 7
    real = os.open

    def refused(path: object, flags: int, *more: object, **named: object) -> int:
        if not flags & os.O_PATH and str(path).rpartition("/")[2].isdecimal():
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
        return real(path, flags, *more, **named)  # type: ignore[arg-type]

    monkeypatch.setattr(os, "open", refused)
    opened = tree.open(ME, lost, os.O_RDWR | os.O_TRUNC, 0)
    assert opened.backing_id == 0
    assert tree.getattr(ME, lost, None)[0].size == 0
    assert tree.write(ME, lost, opened.fh, 0, (memoryview(b"new"),), 0, 0) == 3


class Backing(DeafKernel):
    """A kernel that reads files itself: all have one id."""

    given = closed = 0

    def open_backing(self, fd: int) -> int:
        self.given += 1
        return 7

    def close_backing(self, backing_id: int) -> None:
        assert backing_id == 7
        self.closed += 1


def test_files_that_the_kernel_reads_itself_are_opened_while_others_are_let_go(few: Few, source: Path) -> None:
    tree, _ = few(passthrough=Choice.AUTO)
    tree.init(Agreement(45, c.FUSE_PASSTHROUGH, 1 << 20), Backing())
    nodes = [tree.lookup(ME, ROOT_ID, name).nodeid for name in fill(source, 100)]

    def open_all() -> None:
        for nodeid in nodes:
            opened = tree.open(ME, nodeid, os.O_RDONLY, 0)
            assert opened.backing_id == 7
            tree.release(ME, nodeid, opened.fh, 0, 0, 0)

    in_thread(open_all)
    assert len(tree.pins) <= _LIMIT


class _Walker:
    """A client that asks for whatever uses an inode, while others do."""

    def __init__(self, tree: Tree, files: dict[bytes, int], seed: int) -> None:
        self.tree = tree
        self.files = files
        self.order = random.Random(seed)
        self.nodes: dict[int, tuple[bytes, int]] = {}

    def run(self, steps: int) -> None:
        for _ in range(steps):
            name = self.order.choice(list(self.files))
            entry: Entry = self.tree.lookup(ME, ROOT_ID, name)
            assert entry.attr.ino == self.files[name]
            self.nodes[entry.nodeid] = name, self.nodes.get(entry.nodeid, (b"", 0))[1] + 1
            nodeid, (name, count) = self.order.choice(list(self.nodes.items()))
            assert self.tree.getattr(ME, nodeid, None)[0].ino == self.files[name]
            if self.order.random() < 0.3:
                self.tree.forget(nodeid, count)
                del self.nodes[nodeid]
        self.tree.batch_forget([(nodeid, count) for nodeid, (_, count) in self.nodes.items()])


def test_many_at_once_never_see_another_file(few: Few, source: Path) -> None:
    tree, _ = few(48)
    files = fill(source, 120)
    before = descriptors() - len(tree.pins)
    at_once(lambda number: _Walker(tree, files, number).run(400))
    assert len(tree.inodes) == 1
    assert len(tree.pins) == 1
    assert descriptors() - len(tree.pins) == before
