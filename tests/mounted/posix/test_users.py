"""Other users: what is theirs, what they may, and what their writes take away."""

import mmap
import os
import stat
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from .calls import KEEP_SIZE, PUNCH_HOLE, fallocate, opened
from .children import NOBODY, as_user, beside
from .modes import Tree, attempt

_GROUP = 4242
_FOREIGN = 4343


def _owned(path: Path) -> tuple[int, int, int]:
    st = path.lstat()
    return st.st_uid, st.st_gid, stat.S_IMODE(st.st_mode)


@pytest.mark.core
def test_what_a_user_makes_is_the_user_s(tree: Tree) -> None:
    def make(d: Path) -> object:
        (d / "file").touch(0o644)
        (d / "directory").mkdir()
        (d / "link").symlink_to("x")
        os.mkfifo(d / "fifo")
        os.mknod(d / "node", stat.S_IFREG | 0o600)
        os.link(d / "file", d / "hard")
        with opened(d, os.O_TMPFILE | os.O_RDWR) as fd:
            unnamed = os.fstat(fd).st_uid, os.fstat(fd).st_gid
        return unnamed, [_owned(d / name) for name in sorted(os.listdir(d))]

    for d in (tree.mount, tree.plain):
        d.chmod(0o777)
    found = tree.same(lambda d: as_user(lambda: make(d), uid=1234, gid=2345, umask=0o022))
    assert isinstance(found, tuple)
    assert found[0] == (1234, 2345)
    assert {(uid, gid) for uid, gid, _ in found[1]} == {(1234, 2345)}
    assert _owned(tree.source / "file") == (1234, 2345, 0o644)


@pytest.mark.core
def test_root_with_another_group(tree: Tree) -> None:
    as_user(lambda: (tree.mount / "file").touch(), uid=0, gid=_GROUP)
    assert _owned(tree.source / "file")[:2] == (0, _GROUP)
    as_user((tree.mount / "directory").mkdir, uid=0, gid=_GROUP)
    assert _owned(tree.source / "directory")[:2] == (0, _GROUP)


def test_users_one_after_the_other(tree: Tree) -> None:
    """No request inherits the rights or the umask of the one before, on whatever thread."""
    tree.mount.chmod(0o1777)
    for turn in range(8):
        for uid, umask in ((1234, 0o077), (0, 0o000), (2345, 0o027)):
            path = tree.mount / f"{turn}-{uid}"
            as_user(lambda path=path: path.touch(0o666), uid=uid, umask=umask)  # type: ignore[misc]
            assert _owned(tree.source / path.name) == (uid, uid, 0o666 & ~umask)


@pytest.mark.core
def test_sgid_directories_pass_on_their_group(tree: Tree) -> None:
    def make(d: Path) -> object:
        (d / "file").touch()
        (d / "sub").mkdir()
        (d / "link").symlink_to("x")
        os.close(os.open(d / "program", os.O_CREAT | os.O_WRONLY, 0o2755))
        return [_owned(d / name) for name in ("file", "sub", "link", "program")]

    for d in (tree.mount, tree.plain):
        os.chown(d, 0, _GROUP)
        os.chmod(d, 0o2777)
    found = tree.same(lambda d: as_user(lambda: make(d), umask=0o022))
    assert isinstance(found, list)
    assert {gid for _, gid, _ in found} == {_GROUP}
    assert found[1][2] & stat.S_ISGID


def test_sgid_files_in_a_foreign_group(tree: Tree) -> None:
    """CVE-2022-0358: nobody makes an SGID program of a group that is not theirs."""

    def make(d: Path) -> object:
        found = []
        os.close(os.open(d / "create", os.O_CREAT | os.O_RDWR, 0o2755))
        os.mknod(d / "mknod", stat.S_IFREG | 0o2755)
        found += [_owned(d / name) for name in ("create", "mknod")]
        with opened(d, os.O_TMPFILE | os.O_RDWR, 0o2755) as fd:
            found.append((os.fstat(fd).st_uid, os.fstat(fd).st_gid, stat.S_IMODE(os.fstat(fd).st_mode)))
        return found

    for d in (tree.mount, tree.plain):
        os.chown(d, 0, _FOREIGN)
        os.chmod(d, 0o3777)
    found = tree.same(lambda d: as_user(lambda: make(d), umask=0))
    assert found == [(NOBODY, _FOREIGN, 0o755)] * 3
    for d in (tree.mount, tree.plain):
        for path in d.iterdir():
            path.unlink()
    found = tree.same(lambda d: as_user(lambda: make(d), groups=[_FOREIGN], umask=0))
    assert found == [(NOBODY, _FOREIGN, 0o2755)] * 3, "a member may"


@pytest.mark.core
def test_creating_by_way_of_a_supplementary_group(tree: Tree) -> None:
    def make(d: Path) -> object:
        (d / "file").write_bytes(b"content")
        (d / "directory").mkdir()
        (d / "link").symlink_to("x")
        os.mkfifo(d / "fifo")
        os.link(d / "file", d / "hard")
        os.rename(d / "link", d / "moved")
        os.unlink(d / "fifo")
        return sorted((name, *_owned(d / name)[:2]) for name in os.listdir(d))

    for d in (tree.mount, tree.plain):
        os.chown(d, 0, _GROUP)
        os.chmod(d, 0o770)
    assert tree.same(lambda d: as_user(lambda: make(d))) == "EACCES"
    found = tree.same(lambda d: as_user(lambda: make(d), groups=[7, _GROUP, 9]))
    assert found == [(name, NOBODY, NOBODY) for name in ("directory", "file", "hard", "moved")]


@pytest.mark.core
@pytest.mark.needs("xattr")
def test_creating_by_way_of_a_group_in_an_access_list(tree: Tree) -> None:
    """The directory's own group is not the caller's, so a daemon is told no group at all."""

    def make(d: Path) -> object:
        (d / "directory").mkdir(0o755)
        os.close(os.open(d / "file", os.O_CREAT | os.O_RDWR, 0o644))
        (d / "link").symlink_to("x")
        os.mkfifo(d / "fifo", 0o644)
        os.mknod(d / "node", stat.S_IFREG | 0o600)
        os.rename(d / "node", d / "moved")
        os.link(d / "file", d / "hard")
        with opened(d, os.O_TMPFILE | os.O_RDWR) as fd:
            unnamed = os.fstat(fd).st_uid, os.fstat(fd).st_gid
        return unnamed, sorted((name, *_owned(d / name)) for name in os.listdir(d))

    for d in (tree.mount, tree.plain):
        os.chown(d, 0, 0)
        os.chmod(d, 0o750)
        subprocess.run(["setfacl", "-m", f"g:{_GROUP}:rwx", str(d)], check=True, capture_output=True)
    assert tree.same(lambda d: as_user(lambda: make(d))) == "EACCES"
    assert tree.same(lambda d: as_user(lambda: make(d), groups=[_FOREIGN])) == "EACCES"
    found = tree.same(lambda d: as_user(lambda: make(d), groups=[_GROUP], umask=0o022))
    assert isinstance(found, tuple)
    assert found[0] == (NOBODY, NOBODY)
    assert [(name, *ids) for name, *ids, _ in found[1]] == [
        (name, NOBODY, NOBODY) for name in ("directory", "fifo", "file", "hard", "link", "moved")
    ]


def test_the_daemon_has_no_other_groups(tree: Tree) -> None:
    if tree.shared.daemon is None:
        pytest.skip("no daemon of ours serves this row")
    as_user(lambda: attempt(lambda: (tree.mount / "x").touch()), groups=[_GROUP])
    for task in os.listdir(f"/proc/{tree.shared.daemon}/task"):
        status = Path(f"/proc/{tree.shared.daemon}/task/{task}/status").read_text(encoding="utf-8")
        groups = next(line for line in status.splitlines() if line.startswith("Groups:"))
        assert groups.split()[1:] == []


@pytest.mark.core
def test_private_directories(tree: Tree) -> None:
    for d in (tree.mount, tree.plain):
        (d / "private").mkdir(0o700)
        (d / "private/file").write_bytes(b"secret")
        os.chmod(d / "private/file", 0o666)
    for act in (
        lambda d: (d / "private/file").read_bytes(),
        lambda d: os.listdir(d / "private"),
        lambda d: (d / "private/new").touch(),
        lambda d: (d / "private/new").mkdir(),
        lambda d: os.stat(d / "private/file"),
        lambda d: os.stat(d / "private/missing"),
        lambda d: os.unlink(d / "private/file"),
        lambda d: os.rename(d / "private/file", d / "private/other"),
        lambda d: os.chdir(d / "private"),
    ):
        assert tree.same(lambda d, act=act: as_user(lambda: act(d))) == "EACCES"  # type: ignore[misc]
    assert (tree.source / "private/file").read_bytes() == b"secret"


def test_files_of_others(tree: Tree) -> None:
    for d in (tree.mount, tree.plain):
        d.chmod(0o755)
        (d / "file").write_bytes(b"content")
        os.chmod(d / "file", 0o644)
        (d / "secret").write_bytes(b"content")
        os.chmod(d / "secret", 0o600)
    expected: tuple[tuple[Callable[[Path], object], object], ...] = (
        (lambda d: (d / "file").read_bytes(), b"content"),
        (lambda d: (d / "secret").read_bytes(), "EACCES"),
        (lambda d: (d / "file").write_bytes(b"x"), "EACCES"),
        (lambda d: os.truncate(d / "file", 0), "EACCES"),
        (lambda d: os.chmod(d / "file", 0o777), "EPERM"),
        (lambda d: os.chown(d / "file", NOBODY, NOBODY), "EPERM"),
        (lambda d: os.utime(d / "file"), "EACCES"),
        (lambda d: os.utime(d / "file", (1, 1)), "EPERM"),
        (lambda d: os.unlink(d / "file"), "EACCES"),
        (lambda d: os.rename(d / "file", d / "x"), "EACCES"),
        (lambda d: (d / "new").touch(), "EACCES"),
        (lambda d: os.access(d / "secret", os.R_OK), False),
        (lambda d: os.access(d / "file", os.R_OK), True),
        (lambda d: os.access(d / "file", os.W_OK), False),
    )
    for act, outcome in expected:
        assert tree.same(lambda d, act=act: as_user(lambda: act(d))) == outcome  # type: ignore[misc]
    assert (tree.source / "file").read_bytes() == b"content"


def test_devices_are_not_for_everyone(tree: Tree) -> None:
    tree.mount.chmod(0o777)
    tree.plain.chmod(0o777)
    for kind in (stat.S_IFCHR, stat.S_IFBLK):

        def make(d: Path, kind: int = kind) -> None:
            os.mknod(d / "x", kind | 0o666, os.makedev(1, 3))

        assert tree.same(lambda d, make=make: as_user(lambda: make(d))) == "EPERM"  # type: ignore[misc]


@pytest.mark.core
def test_sticky_directories(tree: Tree) -> None:
    for d in (tree.mount, tree.plain):
        os.chmod(d, 0o1777)
        (d / "root's").touch()
        (d / "root's directory").mkdir()
        as_user(lambda d=d: (d / "nobody's").touch())  # type: ignore[misc]
    assert tree.same(lambda d: as_user(lambda: os.unlink(d / "root's"))) == "EPERM"
    assert tree.same(lambda d: as_user(lambda: os.rmdir(d / "root's directory"))) == "EPERM"
    assert tree.same(lambda d: as_user(lambda: os.rename(d / "root's", d / "x"))) == "EPERM"
    assert tree.same(lambda d: as_user(lambda: os.rename(d / "nobody's", d / "root's"))) == "EPERM"
    assert tree.same(lambda d: as_user(lambda: os.unlink(d / "nobody's"), uid=1234)) == "EPERM"
    assert tree.same(lambda d: as_user(lambda: os.unlink(d / "nobody's"))) is None


def _write(path: Path) -> None:
    with opened(path) as fd:
        os.pwrite(fd, b"x", 0)


def _append(path: Path) -> None:
    with opened(path, os.O_WRONLY | os.O_APPEND) as fd:
        os.write(fd, b"x")


def _write_direct(path: Path) -> None:
    with opened(path, os.O_WRONLY | os.O_DIRECT) as fd, mmap.mmap(-1, 4096) as page:
        os.pwrite(fd, page, 0)


def _ftruncate(path: Path) -> None:
    with opened(path) as fd:
        os.ftruncate(fd, 2)


def _open_truncating(path: Path) -> None:
    os.close(os.open(path, os.O_WRONLY | os.O_TRUNC))


def _create_truncating(path: Path) -> None:
    os.close(os.open(path, os.O_WRONLY | os.O_TRUNC | os.O_CREAT))


def _allocate(path: Path) -> None:
    with opened(path) as fd:
        fallocate(fd, 0, 0, 10000)


def _punch(path: Path) -> None:
    with opened(path) as fd:
        fallocate(fd, PUNCH_HOLE | KEEP_SIZE, 0, 4096)


def _copy_range(path: Path) -> None:
    with opened(path) as fd, opened(path.with_name("from"), os.O_RDONLY) as source:
        assert os.copy_file_range(source, fd, 4, 0, 0) == 4


def _clone_range(path: Path) -> None:
    with opened(path) as fd, opened(path.with_name("from"), os.O_RDONLY) as source:
        assert os.sendfile(fd, source, 0, 4) == 4


_CHANGES: dict[str, Callable[[Path], None]] = {
    "write": _write,
    "append": _append,
    "write directly": _write_direct,
    "truncate": lambda path: os.truncate(path, 3),
    "grow": lambda path: os.truncate(path, 30000),
    "ftruncate": _ftruncate,
    "O_TRUNC": _open_truncating,
    "O_CREAT and O_TRUNC": _create_truncating,
    "fallocate": _allocate,
    "punch": _punch,
    "copy_file_range": _copy_range,
    "sendfile": _clone_range,
    "open alone": lambda path: os.close(os.open(path, os.O_RDWR)),
}


@pytest.mark.core
@pytest.mark.parametrize("change", _CHANGES)
@pytest.mark.parametrize("uid", [NOBODY, 0])
def test_changes_take_suid_and_sgid(tree: Tree, uid: int, change: str) -> None:
    """A change by one who is not root takes both bits.

    SGID without group execution is no program's, and depends on the caller's groups, which a daemon is not told.
    """
    if uid == 0 and change in ("fallocate", "punch", "copy_file_range"):
        tree.needs("who allocates")

    def act(d: Path) -> object:
        found = []
        (d / "from").write_bytes(b"from")
        for mode in (0o6777, 0o4777, 0o2777, 0o4766):
            path = d / f"{mode:o}"
            path.write_bytes(b"0123456789")
            os.chmod(path, mode)
            as_user(lambda path=path: _CHANGES[change](path), uid)  # type: ignore[misc]
            found.append(f"{stat.S_IMODE(path.stat().st_mode):o}")
        return found

    found = tree.same(act)
    assert isinstance(found, list) or (found == "EINVAL" and change == "write directly") or found == "EOPNOTSUPP"
    if isinstance(found, list):
        kept = uid == 0 or change == "open alone"
        assert found[:3] == (["6777", "4777", "2777"] if kept else ["777"] * 3)


def test_owners_change_groups(tree: Tree) -> None:
    def act(d: Path) -> object:
        path = d / "file"
        path.touch()
        os.chown(path, NOBODY, NOBODY)
        os.chmod(path, 0o6755)
        results = (
            attempt(lambda: as_user(lambda: os.chown(path, -1, _FOREIGN))),
            attempt(lambda: as_user(lambda: os.chown(path, -1, _GROUP), groups=[_GROUP])),
        )
        return results, _owned(path)

    assert tree.same(act) == (("EPERM", None), (NOBODY, _GROUP, 0o755))


def test_owners_set_sgid_for_their_groups_alone(tree: Tree) -> None:
    def act(d: Path) -> object:
        path = d / "file"
        path.touch()
        os.chown(path, NOBODY, _FOREIGN)
        as_user(lambda: os.chmod(path, 0o2755))
        alone = _owned(path)
        as_user(lambda: os.chmod(path, 0o2755), groups=[_FOREIGN])
        return alone, _owned(path)

    assert tree.same(act) == ((NOBODY, _FOREIGN, 0o755), (NOBODY, _FOREIGN, 0o2755))


def test_a_new_file_of_a_user_is_open_as_asked_whatever_its_mode(tree: Tree) -> None:
    tree.mount.chmod(0o777)

    def act() -> bytes:
        with opened(tree.mount / "file", os.O_CREAT | os.O_EXCL | os.O_RDWR, 0o000) as fd:
            os.write(fd, b"written")
            return os.pread(fd, 10, 0)

    assert as_user(act) == b"written"
    assert as_user(lambda: attempt(lambda: (tree.mount / "file").read_bytes())) == "EACCES"


def test_an_open_file_outlives_its_permissions(tree: Tree) -> None:
    (tree.mount / "file").write_bytes(b"content")
    os.chmod(tree.mount / "file", 0o666)

    def act() -> bytes:
        with opened(tree.mount / "file") as fd:
            as_root_sees_it()
            os.pwrite(fd, b"C", 0)
            return os.pread(fd, 10, 0)

    def as_root_sees_it() -> None:
        """The mode goes while the file is open: done by whoever is root, before this child was made unprivileged."""
        os.write(writer, b"!")
        os.read(reader, 1)

    reader, other_writer = os.pipe()
    other_reader, writer = os.pipe()
    try:
        with beside(lambda announce: act(), NOBODY) as child:
            os.read(other_reader, 1)
            os.chmod(tree.mount / "file", 0o000)
            os.write(other_writer, b"!")
            assert child.result() == b"Content"
    finally:
        for fd in (reader, writer, other_reader, other_writer):
            os.close(fd)


def test_quick_changes_of_users_side_by_side(tree: Tree) -> None:
    """Several threads of the daemon act as several users at once."""
    tree.mount.chmod(0o777)

    def make(uid: int) -> None:
        for number in range(60):
            (tree.mount / f"{uid}-{number}").touch(0o666)
            (tree.mount / f"d{uid}-{number}").mkdir()

    with (
        beside(lambda announce: make(1234), 1234) as one,
        beside(lambda announce: make(2345), 2345) as two,
        beside(lambda announce: make(0), 0) as three,
    ):
        for child in (one, two, three):
            child.result()
    for path in tree.source.iterdir():
        uid = int(path.name.lstrip("d").partition("-")[0])
        assert _owned(path)[:2] == (uid, uid), path
