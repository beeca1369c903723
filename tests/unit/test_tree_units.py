"""The shared directory asked directly: no mount, no server."""

import errno
import os
import random
import resource
import select
import stat
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import pytest

from passthrough.filesystem import SetAttr
from passthrough.fs.tree import Cache, Covered, ReaddirPlus, Tree, TreeConfig, base
from passthrough.fs.tree.config import DAY_NS, NS_PER_S
from passthrough.fs.tree.janitor import Janitor
from passthrough.protocol import constants as c
from passthrough.protocol.negotiation import Agreement
from tests.doubles import DeafKernel
from tests.unit.helpers import ME, ROOT_ID, at_once, descriptors, find, is_open, raises


@pytest.mark.parametrize(
    ("cache", "timeout", "plus", "opened", "listed"),
    [
        (Cache.NEVER, 0, ReaddirPlus.NO, c.FOPEN_DIRECT_IO, 0),
        (Cache.METADATA, DAY_NS, ReaddirPlus.AUTO, c.FOPEN_DIRECT_IO, c.FOPEN_CACHE_DIR | c.FOPEN_KEEP_CACHE),
        (Cache.AUTO, NS_PER_S, ReaddirPlus.AUTO, 0, 0),
        (Cache.ALWAYS, DAY_NS, ReaddirPlus.AUTO, c.FOPEN_KEEP_CACHE, c.FOPEN_CACHE_DIR | c.FOPEN_KEEP_CACHE),
    ],
)
def test_what_a_cache_mode_means(
    make: Callable[..., Tree], cache: Cache, timeout: int, plus: ReaddirPlus, opened: int, listed: int
) -> None:
    found = TreeConfig(cache=cache).resolved()
    assert (found.entry_timeout_ns, found.attr_timeout_ns, found.readdirplus) == (timeout, timeout, plus)
    assert found.negative_timeout_ns == 0
    assert TreeConfig(cache=cache, attr_timeout_ns=7).resolved().attr_timeout_ns == 7
    assert TreeConfig(cache=cache, entry_timeout_ns=0).resolved().entry_timeout_ns == 0
    tree = make(cache=cache)
    entry = tree.lookup(ME, ROOT_ID, b"file")
    assert (entry.entry_timeout_ns, entry.attr_timeout_ns) == (timeout, timeout)
    assert tree.open(ME, entry.nodeid, os.O_RDWR, 0).open_flags & ~c.FOPEN_NOFLUSH == opened
    assert tree.open(ME, entry.nodeid, os.O_RDONLY, 0).open_flags == opened | c.FOPEN_NOFLUSH
    assert tree.opendir(ME, ROOT_ID, 0, 0).open_flags == listed
    assert bool(tree.flags & c.FUSE_CACHE_SYMLINKS) is bool(listed)
    assert bool(tree.flags & c.FUSE_DO_READDIRPLUS) is (plus is not ReaddirPlus.NO)
    assert bool(tree.flags & c.FUSE_AUTO_INVAL_DATA) is (cache is not Cache.ALWAYS)


@pytest.mark.parametrize("name", [b"", b"a/b", b"/", b"file/", b"../file", b"dir/inner", b"a\0"])
def test_a_lookup_takes_one_component(tree: Tree, name: bytes) -> None:
    for nodeid in (ROOT_ID, find(tree, b"dir").nodeid):
        with raises(errno.EINVAL):
            tree.lookup(ME, nodeid, name)


_BY_NAME: tuple[tuple[str, Callable[[Tree, bytes], object]], ...] = (
    ("mkdir", lambda tree, name: tree.mkdir(ME, ROOT_ID, name, 0o755, 0)),
    ("mknod", lambda tree, name: tree.mknod(ME, ROOT_ID, name, stat.S_IFREG | 0o644, 0, 0)),
    ("symlink", lambda tree, name: tree.symlink(ME, ROOT_ID, name, b"x")),
    ("create", lambda tree, name: tree.create(ME, ROOT_ID, name, os.O_RDWR, 0o644, 0, 0)),
    ("unlink", lambda tree, name: tree.unlink(ME, ROOT_ID, name)),
    ("rmdir", lambda tree, name: tree.rmdir(ME, ROOT_ID, name)),
    ("link", lambda tree, name: tree.link(ME, ROOT_ID, name, find(tree, b"file").nodeid)),
    ("rename from", lambda tree, name: tree.rename2(ME, ROOT_ID, name, b"new", ROOT_ID, 0)),
    ("rename to", lambda tree, name: tree.rename2(ME, ROOT_ID, b"file", name, ROOT_ID, 0)),
)


@pytest.mark.parametrize("name", [b"", b".", b"..", b"dir/new", b"/tmp/new", b"../new"])
@pytest.mark.parametrize(("what", "call"), _BY_NAME, ids=[what for what, _ in _BY_NAME])
def test_no_request_takes_a_path(
    tree: Tree, source: Path, what: str, call: Callable[[Tree, bytes], object], name: bytes
) -> None:
    before = sorted(source.parent.rglob("*"))
    with raises(errno.EINVAL):
        call(tree, name)
    assert sorted(source.parent.rglob("*")) == before, what


def test_the_dots_stay_below_the_root(tree: Tree) -> None:
    assert tree.lookup(ME, ROOT_ID, b"..").nodeid == ROOT_ID
    assert tree.lookup(ME, ROOT_ID, b".").nodeid == ROOT_ID
    directory = find(tree, b"dir")
    assert tree.lookup(ME, find(tree, b"dir", b"below").nodeid, b"..").nodeid == directory.nodeid
    assert tree.lookup(ME, directory.nodeid, b"..").nodeid == ROOT_ID
    assert tree.lookup(ME, find(tree, b"file").nodeid, b".").nodeid == find(tree, b"file").nodeid


def test_a_directory_that_was_moved_out_has_no_parent(tree: Tree, source: Path, tmp_path: Path) -> None:
    below = find(tree, b"dir", b"below")
    (source / "dir" / "below").rename(tmp_path / "outside")
    with raises(errno.ESTALE):
        tree.lookup(ME, below.nodeid, b"..")


@pytest.mark.parametrize("name", [b"file", b"fifo", b"socket", b"link"])
def test_what_is_no_directory_has_nothing_below(tree: Tree, name: bytes) -> None:
    nodeid = find(tree, name).nodeid
    for below in (b"x", b".."):
        with raises(errno.ENOTDIR):
            tree.lookup(ME, nodeid, below)
    with raises(errno.ENOTDIR):
        tree.opendir(ME, nodeid, 0, 0)


def test_a_symlink_is_found_and_not_followed(tree: Tree) -> None:
    entry = find(tree, b"link")
    assert stat.S_ISLNK(entry.attr.mode)
    assert tree.readlink(ME, entry.nodeid) == b"/etc/passwd"
    with raises(errno.EINVAL):
        tree.readlink(ME, find(tree, b"file").nodeid)


_SPECIAL = (b"fifo", b"socket", b"link", b"away", b"dir", b"null", b"loop")


@pytest.mark.parametrize("flags", [os.O_RDONLY, os.O_WRONLY, os.O_RDWR, os.O_RDONLY | os.O_TRUNC])
@pytest.mark.parametrize("name", _SPECIAL)
def test_special_files_are_never_opened(tree: Tree, source: Path, name: bytes, flags: int) -> None:
    if not os.path.lexists(source / name.decode()):
        pytest.skip("making device nodes needs root")
    nodeid = find(tree, name).nodeid
    before = descriptors()
    with ThreadPoolExecutor(1) as pool:
        caught = pool.submit(tree.open, ME, nodeid, flags, 0).exception(30)  # a blocking open would not return
    assert isinstance(caught, OSError)
    assert caught.errno == errno.EBADF
    assert descriptors() == before


@pytest.mark.parametrize("name", [b"fifo", b"socket", b"link"])
def test_no_way_to_open_an_inode_leaves_out_the_check(tree: Tree, name: bytes) -> None:
    inode = tree.inodes.get(find(tree, name).nodeid)
    for flags in (os.O_RDONLY, os.O_WRONLY | os.O_NONBLOCK):
        with raises(errno.EBADF):
            tree.reopen(inode, flags | os.O_NONBLOCK)


@pytest.mark.parametrize("name", [b"fifo", b"socket", b"null"])
def test_create_opens_no_special_file_either(tree: Tree, source: Path, name: bytes) -> None:
    if not os.path.lexists(source / name.decode()):
        pytest.skip("making device nodes needs root")
    with ThreadPoolExecutor(1) as pool:
        caught = pool.submit(tree.create, ME, ROOT_ID, name, os.O_RDWR, 0o644, 0, 0).exception(30)
    assert isinstance(caught, OSError)
    assert caught.errno == errno.ESTALE
    assert len(tree.inodes) == 1
    with raises(errno.EINVAL):
        tree.setattr(ME, find(tree, name).nodeid, SetAttr(c.FATTR_SIZE, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0))


def test_a_swap_for_a_symlink_does_not_lead_out(tree: Tree, source: Path) -> None:
    entry = find(tree, b"dir")
    (source / "dir").rename(source / "moved")
    (source / "dir").symlink_to("/etc")
    assert find(tree, b"dir").nodeid != entry.nodeid
    with raises(errno.ENOENT):
        tree.lookup(ME, entry.nodeid, b"passwd")
    assert tree.lookup(ME, entry.nodeid, b"inner").attr.size == 5


def test_two_names_of_one_file_are_one_node(tree: Tree, source: Path) -> None:
    os.link(source / "file", source / "dir" / "again")
    first, second = find(tree, b"file"), find(tree, b"dir", b"again")
    assert first.nodeid == second.nodeid
    assert tree.inodes.get(first.nodeid).nlookup == 2


def test_a_negative_entry_where_it_is_wanted(make: Callable[..., Tree]) -> None:
    with raises(errno.ENOENT):
        make().lookup(ME, ROOT_ID, b"none")
    entry = make(negative_timeout_ns=5).lookup(ME, ROOT_ID, b"none")
    assert (entry.nodeid, entry.entry_timeout_ns) == (0, 5)


# Descriptors


def test_what_is_pinned_has_a_limit(make: Callable[..., Tree], source: Path) -> None:
    tree = make(descriptors=4)
    for number in range(6):
        (source / f"f{number}").touch()
    found = [tree.lookup(ME, ROOT_ID, b"f%d" % number) for number in range(3)]
    assert len(tree.inodes) == 4
    for refused in (
        lambda: tree.lookup(ME, ROOT_ID, b"f3"),
        lambda: tree.open(ME, found[0].nodeid, os.O_RDONLY, 0),
        lambda: tree.opendir(ME, ROOT_ID, 0, 0),
        lambda: tree.create(ME, ROOT_ID, b"new", os.O_RDWR, 0o644, 0, 0),
        lambda: tree.tmpfile(ME, ROOT_ID, b"/", os.O_RDWR, 0o644, 0, 0),
    ):
        with raises(errno.ENFILE):
            refused()
    assert not (source / "new").exists()
    assert tree.lookup(ME, ROOT_ID, b"f0").nodeid == found[0].nodeid  # a known one costs nothing
    tree.forget(found[1].nodeid, 1)
    assert tree.lookup(ME, ROOT_ID, b"f3").nodeid > found[2].nodeid


def test_the_limit_counts_open_files_and_directories(make: Callable[..., Tree]) -> None:
    tree = make(descriptors=5)
    nodeid = find(tree, b"file").nodeid
    fh = tree.open(ME, nodeid, os.O_RDONLY, 0).fh
    directory = tree.opendir(ME, ROOT_ID, 0, 0).fh
    last = tree.open(ME, nodeid, os.O_RDONLY, 0).fh
    with raises(errno.ENFILE):
        tree.open(ME, nodeid, os.O_RDONLY, 0)
    tree.releasedir(ME, ROOT_ID, directory, 0, 0, 0)
    for handle in (tree.open(ME, nodeid, os.O_RDONLY, 0).fh, fh, last):
        tree.release(ME, nodeid, handle, 0, 0, 0)
    assert len(tree.files) == len(tree.dirs) == 0


def test_the_log_says_once_that_descriptors_are_used_up(
    make: Callable[..., Tree], caplog: pytest.LogCaptureFixture
) -> None:
    tree = make(descriptors=1)
    for _ in range(3):
        with raises(errno.ENFILE):
            find(tree, b"file")
    (record,) = caplog.records
    assert "ulimit -n" in record.getMessage()


def test_a_listing_names_what_it_can_no_longer_look_up(make: Callable[..., Tree]) -> None:
    tree = make(descriptors=3)
    fh = tree.opendir(ME, ROOT_ID, 0, 0).fh
    listed = list(tree.readdirplus(ME, ROOT_ID, fh, 0, 4096))
    names = {dirent.name for dirent, _ in listed}
    assert {b".", b"..", b"file", b"dir", b"fifo"} <= names
    assert sum(entry is not None for _, entry in listed) == 1


def test_by_default_the_limit_is_that_of_open_files(tree: Tree, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(resource, "getrlimit", lambda which: (1000, 1000))
    assert base._default_limit() == 1000 - base.RESERVED_DESCRIPTORS
    monkeypatch.setattr(resource, "getrlimit", lambda which: (10, 10))
    assert base._default_limit() == 16


def served(call: Callable[[], object]) -> bool:
    """Whether a descriptor was left for this call."""
    try:
        call()
    except OSError as error:
        if error.errno != errno.ENFILE:
            raise
        return False
    return True


@dataclass
class Kernel(DeafKernel):
    """Takes prune notifications and answers them as a kernel does: by forgetting."""

    tree: Tree | None = None
    asked: int = 0

    def notify(self, message: bytes) -> bool:
        """Forget every node that the message names, whatever its form."""
        assert self.tree
        self.asked += 1
        for nodeid in list(self.tree.inodes._by_nodeid):
            if nodeid.to_bytes(8, "little") in message:
                self.tree.forget(nodeid, 1)
        return True


def test_the_kernel_is_asked_to_let_go_before_the_limit(make: Callable[..., Tree], source: Path) -> None:
    tree = make(descriptors=40)
    kernel = Kernel(tree)
    tree.init(Agreement(minor=45), kernel)
    for number in range(200):
        (source / f"f{number}").touch()
    poll = select.poll()
    for number in range(200):
        for _ in range(2000):
            if served(partial(tree.lookup, ME, ROOT_ID, b"f%d" % number)):
                break
            poll.poll(1)  # the janitor has a thread of its own
        else:
            pytest.fail("no room was made")
    assert kernel.asked
    assert len(tree.inodes) <= 40


def test_the_janitor_ends_when_it_is_told_to_while_it_works(make: Callable[..., Tree], source: Path) -> None:
    at_work, go_on = threading.Event(), threading.Event()

    class Slow(DeafKernel):
        def notify(self, message: bytes) -> bool:
            at_work.set()
            return go_on.wait(30)

    tree = make(descriptors=2)
    find(tree, b"file")
    janitor = Janitor(tree, Slow(), can_prune=True)
    janitor.wake()
    assert at_work.wait(30)
    janitor.stop()
    go_on.set()
    assert janitor._thread
    janitor._thread.join(30)
    assert not janitor._thread.is_alive()
    janitor.wake()
    assert not janitor._thread.is_alive()


# What our own mount covers


def test_a_covered_directory_is_found_by_its_descriptor(make: Callable[..., Tree], source: Path) -> None:
    covered = Covered.before_mount(str(source / "dir"))
    tree = make(covered)
    (source / "dir").rename(source / "kept")
    (source / "dir").mkdir()  # stands for the mount that is now at this name
    entry = find(tree, b"dir")
    assert entry.attr.ino == (source / "kept").stat().st_ino
    assert find(tree, b"dir", b"inner").attr.size == 5
    assert find(tree, b"kept").nodeid == entry.nodeid
    assert is_open(covered.fd)
    os.close(covered.fd)


def test_the_same_name_elsewhere_is_not_covered(make: Callable[..., Tree], source: Path) -> None:
    (source / "dir" / "dir").mkdir()
    covered = Covered.before_mount(str(source / "dir"))
    tree = make(covered)
    assert find(tree, b"dir", b"dir").attr.ino == (source / "dir" / "dir").stat().st_ino
    os.close(covered.fd)


def test_what_is_outside_the_share_covers_nothing(make: Callable[..., Tree], tmp_path: Path, source: Path) -> None:
    (tmp_path / "dir").mkdir()
    covered = Covered.before_mount(str(tmp_path / "dir"))
    assert find(make(covered), b"dir").attr.ino == (source / "dir").stat().st_ino
    os.close(covered.fd)
    root = Covered.before_mount("/")
    assert root.name == b""
    os.close(root.fd)


# Races


def test_forgets_and_lookups_side_by_side(tree: Tree, source: Path) -> None:
    names = [b"r%d" % number for number in range(8)]
    for name in names:
        (source / name.decode()).write_bytes(name)
    before = descriptors()

    def work(number: int) -> int:
        order, done = random.Random(number), 0
        for _ in range(500):
            name = order.choice(names)
            entry = tree.lookup(ME, ROOT_ID, name)
            attr, _ = tree.getattr(ME, entry.nodeid, None)  # the lookup just counted keeps the node
            assert (attr.ino, attr.size) == (entry.attr.ino, len(name))
            opened = tree.open(ME, entry.nodeid, os.O_RDONLY, 0)
            tree.batch_forget([(entry.nodeid, 1)])
            held = tree.read(ME, entry.nodeid, opened.fh, 0, 100, 0)
            assert os.pread(held.fd, 100, 0) == name
            del held
            tree.release(ME, entry.nodeid, opened.fh, 0, 0, 0)
            done += 1
        return done

    assert at_once(work) == [500] * 4
    assert len(tree.inodes) == 1
    assert len(tree.files) == 0
    assert descriptors() == before


def test_a_session_that_ends_leaves_no_descriptor(make: Callable[..., Tree]) -> None:
    tree = make()
    before = descriptors()
    find(tree, b"dir", b"below")
    tree.open(ME, find(tree, b"file").nodeid, os.O_RDONLY, 0)
    tree.opendir(ME, ROOT_ID, 0, 0)
    assert descriptors() == before + 5
    tree.destroy()
    assert descriptors() == before
    assert find(tree, b"file").attr.size == 10


def test_numbers_of_another_session_mean_nothing(tree: Tree) -> None:
    nodeid = find(tree, b"file").nodeid
    fh = tree.open(ME, nodeid, os.O_RDONLY, 0).fh
    tree.destroy()
    with raises(errno.EBADF):
        tree.getattr(ME, nodeid, None)
    with raises(errno.EBADF):
        tree.read(ME, nodeid, fh, 0, 1, 0)
    assert find(tree, b"file").nodeid != nodeid
