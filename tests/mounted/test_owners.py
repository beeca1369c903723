"""Owners: translated ids, and idmapped mounts, through real mounts and compared with what the kernel does natively."""

import errno
import os
import shutil
import stat
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from . import idmapping
from .harness import Harness, refusal, run
from .posix.children import as_user
from .posix.modes import attempt

_FIRST, _COUNT = 100_000, 65_536
_USER = _FIRST + 5


def owner(path: Path) -> tuple[int, int]:
    """uid and gid."""
    st = path.lstat()
    return st.st_uid, st.st_gid


def make_each_kind(d: Path) -> None:
    """Every request that makes something, and leaves a name."""
    (d / "file").write_bytes(b"x")
    (d / "directory").mkdir()
    (d / "link").symlink_to("file")
    os.mkfifo(d / "fifo")
    os.mknod(d / "node", stat.S_IFREG | 0o640)
    os.link(d / "file", d / "hard")
    fd = os.open(d, os.O_TMPFILE | os.O_RDWR, 0o644)
    own = os.open("/proc/self/fd", os.O_PATH)
    try:
        os.link(str(fd), d / "unnamed", src_dir_fd=own, follow_symlinks=True)
    finally:
        os.close(own)
        os.close(fd)


_NAMES = ("file", "directory", "link", "fifo", "node", "hard", "unnamed")


# Translated ids


@pytest.mark.parametrize("readdirplus", ["no", "always"])
def test_ids_are_translated_in_both_directions(harness: Harness, readdirplus: str) -> None:
    maps = "translate_uid=map:1000:200000:10,translate_gid=map:1000:300000:10"
    mount = harness.mount("-o", f"allow_other,readdirplus={readdirplus},{maps}", source=harness.directory("s", 0o777))
    as_user(lambda: make_each_kind(mount.point), 1003, 1004)
    for name in _NAMES:
        assert owner(mount.source / name) == (200_003, 300_004), name
        assert owner(mount.point / name) == (1003, 1004), name
    assert {entry.name: entry.stat(follow_symlinks=False).st_uid for entry in os.scandir(mount.point)} == dict.fromkeys(
        _NAMES, 1003
    )
    os.chown(mount.point / "file", 1005, 1006)
    assert owner(mount.source / "file") == (200_005, 300_006)
    assert owner(mount.point / "file") == (1005, 1006)
    as_user(lambda: (mount.point / "file").chmod(0o600), 1005, 1006)
    assert attempt(lambda: as_user(lambda: (mount.point / "file").read_bytes(), 1003, 1004)) == "EACCES"
    os.chown(mount.source / "node", 7, 8)
    os.utime(mount.source / "node")
    said = subprocess.run(
        ["stat", "--cached=never", "-c", "%u:%g", mount.point / "node"], capture_output=True, text=True, check=True
    )
    assert said.stdout == "7:8\n", "an id that no line names is the same on both sides"


def test_one_way_and_squashed_ids(harness: Harness) -> None:
    maps = ("guest:1:201:1", "host:201:31:1", "squash-guest:10:210:10", "squash-host:210:42:5", "squash-host:500:43:9")
    words = ",".join(f"translate_uid={text}" for text in maps)
    mount = harness.mount("-o", f"allow_other,cache=never,{words}", source=harness.directory("s", 0o777))
    for caller, stored, shown in ((1, 201, 31), (10, 210, 42), (19, 210, 42), (20, 20, 20)):
        path = mount.point / f"by{caller}"
        as_user(path.touch, caller, caller)
        assert (owner(mount.source / path.name)[0], owner(path)[0]) == (stored, shown)
    for real, shown in ((500, 43), (508, 43), (509, 509)):
        os.chown(mount.source / "by1", real, -1)
        assert owner(mount.point / "by1")[0] == shown


def test_forbidden_ids_make_nothing(harness: Harness) -> None:
    words = "translate_uid=forbid-guest:0:1000,translate_gid=forbid-guest:7:1"
    mount = harness.mount("-o", f"allow_other,{words}", source=harness.directory("s", 0o777))
    for act in (
        (mount.point / "file").touch,
        (mount.point / "directory").mkdir,
        lambda: (mount.point / "link").symlink_to("x"),
        lambda: os.mkfifo(mount.point / "fifo"),
        lambda: os.close(os.open(mount.point, os.O_TMPFILE | os.O_RDWR)),
    ):
        assert attempt(act) == "EPERM"
        assert attempt(lambda a=act: as_user(a, 1000, 7)) == "EPERM"  # type: ignore[misc]
    assert os.listdir(mount.source) == []
    as_user((mount.point / "file").touch, 1000, 1000)
    assert attempt(lambda: os.chown(mount.point / "file", 5, -1)) == "EPERM"
    assert attempt(lambda: os.chown(mount.point / "file", -1, 7)) == "EPERM"
    os.chown(mount.point / "file", 1001, 1001)
    assert owner(mount.source / "file") == (1001, 1001)


def test_access_lists_are_translated(harness: Harness) -> None:
    maps = "translate_uid=map:1000:200000:10,translate_gid=map:1000:300000:10"
    mount = harness.mount("-o", f"allow_other,{maps}", source=harness.directory("s", 0o777))
    file = mount.point / "file"
    file.write_bytes(b"content")
    file.chmod(0o600)
    harness.run_program("setfacl", "-m", "u:1003:r,g:1004:r,u:9:r", file)
    shown = harness.run_program("getfacl", "-n", file)
    real = harness.run_program("getfacl", "-n", mount.source / "file")
    assert all(line in shown for line in ("user:1003:r--", "group:1004:r--", "user:9:r--")), shown
    assert all(line in real for line in ("user:200003:r--", "group:300004:r--", "user:9:r--")), real
    assert as_user(file.read_bytes, 1003, 1) == b"content"
    assert as_user(file.read_bytes, 1, 1, groups=[1004]) == b"content"
    assert attempt(lambda: as_user(file.read_bytes, 1005, 1)) == "EACCES"


@pytest.mark.parametrize(
    ("words", "named"),
    [
        (("translate_uid=map:0:100:10", "translate_uid=guest:9:500:1"), ("map:0:100:10", "guest:9:500:1")),
        (("translate_gid=host:5:1:9", "translate_gid=map:100:13:1"), ("host:5:1:9", "map:100:13:1")),
        (("translate_uid=forbid-guest:0:10", "translate_uid=map:0:0:1"), ("forbid-guest:0:10", "map:0:0:1")),
    ],
)
def test_lines_that_overlap_are_refused(harness: Harness, words: tuple[str, ...], named: tuple[str, ...]) -> None:
    source, point = harness.directory(), harness.directory()
    said = refusal(run("mount", "-o", ",".join(words), source, point), 1)
    assert all(name in said for name in named), said
    options = [f"--{word.replace('_', '-', 1)}" for word in words]
    said = refusal(run("serve", f"--shared-dir={source}", f"--socket-path={point}/socket", *options), 1)
    assert all(name in said for name in named), said


def test_ids_of_an_ordinary_users_sandbox_hold_with_translation(harness: Harness, user: int) -> None:
    """The user's id is 7 on the mount and the user's own in the source: the sandbox knows the latter alone."""
    words = f"uid_map=:{user}:{user}:1:,gid_map=:{user}:{user}:1:"
    mount = harness.mount(
        "-o",
        f"{words},translate_uid=host:{user}:7:1,translate_gid=host:{user}:8:1",
        user=user,
        point=harness.directory(),
    )
    (mount.source / "file").touch()
    os.chown(mount.source / "file", user, user)
    assert as_user(lambda: owner(mount.point / "file"), user, user) == (7, 8)


# Idmapped mounts


@pytest.fixture
def pair(harness: Harness) -> tuple[Path, Path, Path]:
    """The same idmap on our mount and on a plain directory; and what our mount shares."""
    mount = harness.mount("-o", "allow_other,suid,allow_idmap", source=harness.directory("source", 0o777))
    plain = harness.directory("plain", 0o777)
    shown, native = harness.directory(), harness.directory()
    with idmapping.user_namespace(0, _FIRST, _COUNT) as namespace:
        for source, target in ((mount.point, shown), (plain, native)):
            try:
                idmapping.mount_idmapped(source, target, namespace)
            except OSError as error:
                if error.errno == errno.EINVAL and tuple(map(int, os.uname().release.split(".")[:2])) < (6, 12):
                    pytest.skip("FUSE mounts can be idmapped since Linux 6.12")
                raise
            harness.cleanups.append(lambda target=target: subprocess.run(["umount", str(target)], check=True))  # type: ignore[misc]
    return shown, native, mount.source


def _same(pair: tuple[Path, Path, Path], act: Callable[[Path], object]) -> object:
    shown, native = attempt(lambda: act(pair[0])), attempt(lambda: act(pair[1]))
    assert shown == native
    return shown


def test_an_idmapped_mount_is_as_a_native_one(pair: tuple[Path, Path, Path]) -> None:
    source = pair[2]

    def made(d: Path) -> object:
        as_user(lambda: make_each_kind(d), _USER, _USER)
        return [owner(d / name) for name in _NAMES]

    assert _same(pair, made) == [(_USER, _USER)] * len(_NAMES)
    assert {owner(source / name) for name in _NAMES} == {(5, 5)}
    assert _same(pair, lambda d: (d / "by root").touch()) == "EOVERFLOW", "root is not in the map"
    assert _same(pair, lambda d: os.chown(d / "file", _FIRST + 6, _FIRST + 7)) is None
    assert owner(source / "file") == (6, 7)
    assert _same(pair, lambda d: os.chown(d / "file", 1, 1)) == "EOVERFLOW"
    assert _same(pair, lambda d: as_user(lambda: (d / "file").chmod(0o600), _USER, _USER)) == "EPERM"
    assert _same(pair, lambda d: as_user(lambda: (d / "node").chmod(0o4711), _USER, _USER)) is None
    assert _same(pair, lambda d: (d / "node").stat().st_mode) == stat.S_IFREG | 0o4711
    assert _same(pair, lambda d: as_user(lambda: os.truncate(d / "node", 3), _USER, _USER)) is None
    assert _same(pair, lambda d: (d / "node").stat().st_mode) == stat.S_IFREG | 0o711


def test_requests_without_a_caller(pair: tuple[Path, Path, Path]) -> None:
    """The kernel names nobody in what creates nothing: locks, flags, xattrs and data work all the same."""

    def act(d: Path) -> object:
        path = d / "file"
        path.write_bytes(b"0123456789")
        with open(path, "rb+") as file:
            os.posix_fallocate(file.fileno(), 0, 100)
            os.setxattr(path, "user.name", b"value")
            flags = subprocess.run(["chattr", "+A", path], capture_output=True, check=False).returncode
            os.rename(path, d / "moved")
            os.unlink(d / "moved")
            return os.fstat(file.fileno()).st_size, flags

    assert _same(pair, lambda d: as_user(lambda: act(d), _USER, _USER)) == (100, 0)


def test_files_made_in_an_sgid_directory(pair: tuple[Path, Path, Path]) -> None:
    group = _FIRST + 77
    found = []
    for shown, behind in ((pair[0], pair[2]), (pair[1], pair[1])):
        as_user(lambda d=shown: (d / "top").mkdir(), _USER, _USER)  # type: ignore[misc]
        top = shown / "top"
        os.chown(top, _USER, group)
        top.chmod(0o2770)
        as_user(lambda t=top: (t / "below").mkdir(), _USER, _USER)  # type: ignore[misc]
        as_user(lambda t=top: (t / "file").touch(), _FIRST + 9, _FIRST + 9, groups=[group])  # type: ignore[misc]
        found.append((owner(top / "below"), (top / "below").stat().st_mode & 0o7777, owner(top / "file")))
        assert (behind / "top" / "file").exists()
    assert found[0] == found[1] == ((_USER, group), 0o2755, (_FIRST + 9, group))


def test_sgid_and_suid_programs(pair: tuple[Path, Path, Path]) -> None:
    found = []
    for d in pair[:2]:
        path = d / "id"
        as_user(lambda p=path: shutil.copy("/usr/bin/id", p), _USER, _USER)  # type: ignore[misc]
        os.chown(path, _FIRST + 8, _FIRST + 9)
        path.chmod(0o6755)
        said = subprocess.run(
            [path], capture_output=True, text=True, check=True, user=_USER, group=_USER, extra_groups=[]
        )
        found.append(said.stdout)
    assert found[0] == found[1]
    assert f"euid={_FIRST + 8}" in found[0]
    assert f"egid={_FIRST + 9}" in found[0]


@pytest.mark.parametrize("other", ["allow_root", "no_default_permissions"])
def test_idmaps_need_a_kernel_that_checks(harness: Harness, other: str) -> None:
    said = refusal(run("mount", "-o", f"allow_idmap,{other}", harness.directory(), harness.directory()), 1)
    assert "allow_idmap" in said
    assert other in said


# Squashed callers


def _others(source: Path) -> None:
    """Files of root's and of everybody's."""
    source.chmod(0o777)
    for name, mode in (("secret", 0o600), ("open", 0o666), ("program", 0o4777)):
        (source / name).write_bytes(b"content")
        (source / name).chmod(mode)
    (source / "closed").mkdir(0o700)
    (source / "closed" / "inside").touch(0o666)
    (source / "sticky").mkdir()
    (source / "sticky").chmod(0o1777)
    (source / "sticky" / "file").touch()


def test_squashed_root_has_the_rights_of_the_anonymous_user(harness: Harness) -> None:
    mount = harness.mount("-o", "allow_other,squash=root,anon_uid=4001,anon_gid=4002")
    _others(mount.source)
    point = mount.point
    refused: tuple[Callable[[], object], ...] = (
        (point / "secret").read_bytes,
        lambda: os.truncate(point / "secret", 0),
        lambda: (point / "open").chmod(0o777),
        lambda: os.chown(point / "open", 4001, 4002),
        lambda: os.utime(point / "secret", (1, 1)),
        lambda: os.listdir(point / "closed"),
        (point / "closed" / "inside").read_bytes,
        (point / "closed" / "new").touch,
        (point / "sticky" / "file").unlink,
        lambda: os.rename(point / "sticky" / "file", point / "moved"),
        lambda: os.setxattr(point / "secret", "user.name", b"x"),
        lambda: os.mknod(point / "device", stat.S_IFCHR, os.makedev(1, 3)),
    )
    for number, act in enumerate(refused):
        assert attempt(act) in ("EACCES", "EPERM"), number
    assert (point / "open").read_bytes() == b"content"
    make_each_kind(point)
    assert {owner(mount.source / name) for name in _NAMES} == {(4001, 4002)}
    (point / "file").chmod(0o600)
    (point / "program").write_bytes(b"other")
    assert stat.S_IMODE((mount.source / "program").stat().st_mode) == 0o777, "root's write takes SUID as anybody's"
    (point / "node").unlink()
    as_user((point / "by another").touch, 1000, 1000)
    assert owner(mount.source / "by another") == (1000, 1000)


@pytest.mark.parametrize("cache", ["auto", "always"])
def test_what_others_have_looked_up_is_not_open_to_squashed_root(harness: Harness, cache: str) -> None:
    """The kernel lets root search any directory whose names it knows."""
    mount = harness.mount("-o", f"allow_other,squash=root,cache={cache}", source=harness.directory("s", 0o777))
    as_user(lambda: (mount.point / "home").mkdir(0o700), 1000, 1000)
    path = mount.point / "home" / "file"
    as_user(lambda: path.write_bytes(b"x"), 1000, 1000)
    assert (mount.source / "home" / "file").stat().st_mode & 0o004
    assert as_user(path.read_bytes, 1000, 1000) == b"x"
    for act in (path.read_bytes, path.unlink, lambda: os.rename(path, mount.point / "moved")):
        assert attempt(act) == "EACCES"
    assert as_user(path.read_bytes, 1000, 1000) == b"x"


def test_ids_are_translated_before_they_are_squashed(harness: Harness) -> None:
    """Root of the mount is an ordinary user of the source, and the other way round: in all that they do."""
    maps = ",".join(f"translate_{kind}=map:{one}:{other}:1" for kind in ("uid", "gid") for one, other in _EXCHANGED)
    source = harness.directory("s", 0o777)
    mount = harness.mount("-o", f"allow_other,squash=root,{maps},translate_uid=forbid-guest:7:1", source=source)
    _others(source)
    file = mount.point / "file"
    file.write_bytes(b"x")
    assert owner(source / "file") == (1000, 1000)
    file.chmod(0o600)
    os.setxattr(file, "user.name", b"value")
    os.utime(file, (1, 1))
    assert (file.read_bytes(), os.getxattr(file, "user.name")) == (b"x", b"value")
    file.rename(mount.point / "moved")
    (mount.point / "moved").unlink()

    def roots(call: Callable[[], object]) -> object:
        return attempt(lambda: as_user(call, 1000, 1000))

    assert roots((mount.point / "secret").read_bytes) == "EACCES"
    assert roots((mount.point / "open").unlink) is None, "anybody may"
    assert roots(lambda: (mount.point / "program").chmod(0o777)) == "EPERM"
    assert roots((mount.point / "sticky" / "file").unlink) == "EPERM"
    assert as_user((mount.point / "program").read_bytes, 7, 7) == b"content", "it makes nothing"


@pytest.mark.parametrize("cache", ["auto", "never"])
def test_root_that_a_translation_makes_another_has_that_users_rights(harness: Harness, cache: str) -> None:
    """The kernel that asks lets it do everything: the source does not."""
    source = harness.directory("s", 0o777)
    mount = harness.mount(
        "-o",
        f"allow_other,squash=root,translate_uid=map:0:1000:1,translate_gid=map:0:1000:1,cache={cache}",
        source=source,
    )
    _others(source)
    (source / "own").write_bytes(b"own")
    (source / "own").chmod(0o600)
    os.chown(source / "own", 1000, 1000)
    refused: tuple[Callable[[], object], ...] = (
        (mount.point / "secret").read_bytes,
        lambda: os.truncate(mount.point / "secret", 0),
        lambda: (mount.point / "program").chmod(0o777),
        lambda: os.chown(mount.point / "own", 5, 5),
        lambda: os.listdir(mount.point / "closed"),
        (mount.point / "closed" / "inside").read_bytes,
        (mount.point / "sticky" / "file").unlink,
    )
    for number, act in enumerate(refused):
        assert attempt(act) in ("EACCES", "EPERM"), number
    assert (mount.point / "own").read_bytes() == b"own"
    (mount.point / "own").chmod(0o640)
    (mount.point / "new").touch()
    assert owner(source / "new") == (1000, 1000)


_EXCHANGED = ((0, 1000), (1000, 0))


def test_all_are_the_anonymous_user(harness: Harness) -> None:
    mount = harness.mount("-o", "allow_other,squash=all,anon_uid=4001,anon_gid=4002")
    _others(mount.source)
    point = mount.point
    as_user((point / "file").touch, 1000, 1000)
    as_user(lambda: (point / "file").write_bytes(b"by another"), 2000, 2000)
    (point / "dir").mkdir(0o700)
    as_user((point / "dir" / "below").touch, 3000, 3000)
    assert {owner(mount.source / name) for name in ("file", "dir", "dir/below")} == {(4001, 4002)}
    for uid in (0, 1000):
        assert attempt(lambda u=uid: as_user((point / "secret").read_bytes, u, u)) == "EACCES"  # type: ignore[misc]
        assert attempt(lambda u=uid: as_user(lambda: os.listdir(point / "closed"), u, u)) == "EACCES"  # type: ignore[misc]
        assert attempt(lambda u=uid: as_user((point / "sticky" / "file").unlink, u, u)) == "EPERM"  # type: ignore[misc]
        assert attempt(lambda u=uid: as_user(lambda: os.access(point / "secret", os.R_OK), u, u)) is False  # type: ignore[misc]
        assert attempt(lambda u=uid: as_user(lambda: os.access(point / "open", os.W_OK), u, u)) is True  # type: ignore[misc]
    as_user((point / "file").unlink, 1000, 1000)


def test_a_thread_is_itself_again(harness: Harness) -> None:
    """The daemon's one thread serves the squashed and the others in turn."""
    mount = harness.mount("-o", "allow_other,squash=root,threads=1,cache=never")
    _others(mount.source)
    os.chown(mount.source / "secret", 1000, 1000)
    for _ in range(20):
        assert attempt((mount.point / "secret").read_bytes) == "EACCES"
        assert as_user((mount.point / "secret").read_bytes, 1000, 1000) == b"content"


@pytest.mark.parametrize(
    ("words", "named"),
    [
        ("squash=root,writeback", "writeback"),
        ("squash=root,xattrmap=overlay", "xattrmap"),
        ("squash=all,security_label", "security_label"),
        ("squash=all,passthrough=on", "passthrough=on"),
        ("squash=all,security_model=mapped-xattr", "mapped-xattr"),
        ("squash=all,posix_acl", "posix_acl"),
        ("squash=some", "none, root, all"),
        ("squash=root,anon_uid=0", "from 1"),
        ("squash=root,anon_gid=4294967295", "to 4294967294"),
    ],
)
def test_what_squashing_excludes(harness: Harness, words: str, named: str) -> None:
    said = refusal(run("mount", "-o", words, harness.directory(), harness.directory()), 1)
    assert named in said


def test_an_ordinary_user_cannot_squash(harness: Harness, user: int) -> None:
    said = refusal(run("mount", "-o", "squash=root", harness.directory("s", 0o777), harness.directory(), user=user), 13)
    assert "needs root" in said
