"""What the daemon may tell the kernel, each seen to have its effect on a real mount."""

import os
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from passthrough.filesystem import Attr, Context, Entry, Opened
from passthrough.fs.tree import Cache, Tree, TreeConfig
from passthrough.protocol import notifications
from passthrough.protocol.constants import FUSE_UNIQUE_RESEND

from .harness import Harness, wait_until
from .served import Served, open_tree, served

DAY_NS = 86_400 * 10**9


class Watched(Tree):
    """Remembers nodeids by name, so that a test can name a node."""

    def __init__(self, source: Path) -> None:
        config = TreeConfig(cache=Cache.ALWAYS, negative_timeout_ns=DAY_NS)
        super().__init__(open_tree(source), config)
        self.held = threading.Event()
        self.let_go = threading.Event()
        self.resent: list[int] = []

    def nodeid(self, path: Path) -> int:
        """The node of a file that was looked up."""
        st = os.lstat(path)
        return next(i.nodeid for i in list(self.inodes._by_nodeid.values()) if i.key[0] == st.st_ino)

    def getxattr(self, ctx: Context, nodeid: int, name: bytes) -> bytes:
        """user.hold is answered only when the kernel has sent it again, or when the test lets go."""
        if name != b"user.hold":
            return super().getxattr(ctx, nodeid, name)
        if ctx.unique & FUSE_UNIQUE_RESEND:
            self.resent.append(ctx.unique)
            return b"second"
        self.held.set()
        self.let_go.wait(60)
        return b"first"


@pytest.fixture
def mount(harness: Harness) -> Iterator[Served]:
    """An always-caching mount with one file, looked up."""
    source = harness.directory("source")
    (source / "file").write_bytes(b"old")
    with served(Watched(source), harness.directory("mount")) as made:
        os.stat(made.point / "file")
        yield made


def source_of(mount: Served) -> Path:
    """The directory behind the mount."""
    assert isinstance(mount.fs, Tree)
    return Path(os.readlink(f"/proc/self/fd/{mount.fs.inodes.root.fd}"))


def watched(mount: Served) -> Watched:
    """The file system, by its own type."""
    assert isinstance(mount.fs, Watched)
    return mount.fs


def test_inval_inode_makes_new_attributes_and_data_visible(mount: Served) -> None:
    path, source = mount.point / "file", source_of(mount) / "file"
    assert path.read_bytes() == b"old"
    path.stat()  # reading made the access time stale; now all attributes are remembered
    source.write_bytes(b"longer")
    assert path.stat().st_size == 3  # remembered for a day
    assert mount.session.notify(notifications.inval_inode(watched(mount).nodeid(source)))
    assert path.stat().st_size == 6
    assert path.read_bytes() == b"longer"


def test_inval_entry_makes_a_new_name_visible(mount: Served) -> None:
    assert not (mount.point / "later").exists()
    (source_of(mount) / "later").touch()
    assert not (mount.point / "later").exists()  # its absence is remembered
    assert mount.session.notify(notifications.inval_entry(1, b"later"))
    assert (mount.point / "later").exists()


def test_expire_entry_looks_a_name_up_again(mount: Served) -> None:
    (source_of(mount) / "file").unlink()
    assert (mount.point / "file").exists()
    assert mount.session.notify(notifications.expire_entry(1, b"file"))
    assert not (mount.point / "file").exists()


def test_delete_drops_the_name(mount: Served) -> None:
    source = source_of(mount) / "file"
    nodeid = watched(mount).nodeid(source)
    source.unlink()
    assert (mount.point / "file").exists()
    assert mount.session.notify(notifications.delete(1, nodeid, b"file"))
    assert not (mount.point / "file").exists()


def test_inc_epoch_looks_every_name_up_again(mount: Served) -> None:
    (source_of(mount) / "file").unlink()
    assert (mount.point / "file").exists()
    assert mount.session.notify(notifications.inc_epoch())
    assert not (mount.point / "file").exists()


def test_store_puts_data_into_the_page_cache(mount: Served) -> None:
    path = mount.point / "file"
    assert path.read_bytes() == b"old"
    assert mount.session.notify(notifications.store(watched(mount).nodeid(source_of(mount) / "file"), 0, b"new"))
    assert path.read_bytes() == b"new"
    assert (source_of(mount) / "file").read_bytes() == b"old"


def test_prune_lets_the_kernel_forget(mount: Served) -> None:
    nodeid = watched(mount).nodeid(source_of(mount) / "file")
    assert mount.session.notify(notifications.prune([nodeid]))
    wait_until(lambda: len(watched(mount).inodes) == 1, "the kernel forgot the file")


def test_resend_sends_an_unanswered_request_again(mount: Served) -> None:
    fs = watched(mount)
    answers: list[bytes] = []
    caller = threading.Thread(target=lambda: answers.append(os.getxattr(mount.point / "file", "user.hold")))
    caller.start()
    assert fs.held.wait(60)
    assert mount.session.notify(notifications.resend())
    caller.join(60)
    fs.let_go.set()
    assert answers == [b"second"]
    assert len(fs.resent) == 1


@pytest.mark.parametrize(
    "message",
    [
        notifications.inval_inode(1 << 40),
        notifications.inval_entry(1 << 40, b"x"),
        notifications.inval_entry(1, b"never heard of"),
        notifications.delete(1, 1 << 40, b"never heard of"),
        notifications.store(1 << 40, 0, b"x"),
        notifications.message(99),
    ],
    ids=["inode", "parent", "name", "child", "store", "code"],
)
def test_what_the_kernel_does_not_know_is_no_error(mount: Served, message: bytes) -> None:
    assert not mount.session.notify(message)
    assert (mount.point / "file").read_bytes() == b"old"


def test_a_file_system_of_ones_own_is_served(harness: Harness) -> None:
    """Subclassing the tree is how a policy is added: this one hides what ends in .secret."""

    class Hiding(Tree):
        """A policy of one line."""

        def lookup(self, ctx: Context, nodeid: int, name: bytes) -> Entry:
            """Hidden names are not found."""
            if name.endswith(b".secret"):
                raise FileNotFoundError(2, "hidden")
            return super().lookup(ctx, nodeid, name)

    source = harness.directory("source")
    (source / "a.secret").touch()
    (source / "b").touch()
    with served(Hiding(open_tree(source), TreeConfig()), harness.directory("mount")) as made:
        assert (made.point / "b").exists()
        assert not (made.point / "a.secret").exists()


def test_attributes_out_of_stat_and_opened_are_plain_values() -> None:
    st = os.stat("/")
    attr = Attr.from_stat(st)
    assert (attr.ino, attr.mode, attr.nlink, attr.size) == (st.st_ino, st.st_mode, st.st_nlink, st.st_size)
    assert (attr.mtime, attr.mtimensec) == divmod(st.st_mtime_ns, 10**9)
    assert Opened(7) == (7, 0, 0)
