"""security_model=mapped-xattr: an ordinary user's daemon keeps a root file system, owners, devices and all."""

import os
import pwd
import shutil
import stat
import struct
import subprocess
import tarfile
from pathlib import Path

import pytest

from .harness import Harness, Mount, for_other_users, refusal, run
from .posix.children import as_user
from .posix.modes import attempt
from .posix.sources import attach

_MODEL = "security_model=mapped-xattr"


@pytest.fixture
def user() -> int:
    """Who runs the daemon."""
    return pwd.getpwnam("nobody").pw_uid


@pytest.fixture
def mount(harness: Harness, user: int) -> Mount:
    """An ordinary user's mount that root may use."""
    with for_other_users():
        return harness.mount("-o", f"allow_other,{_MODEL}", user=user)


def small_root(top: Path) -> None:
    """A root file system in little: real devices, owners, SUID programs, links, a busybox that runs."""
    modes = {"bin": 0o755, "dev": 0o755, "etc": 0o755, "tmp": 0o1777, "home/me": 0o700, "root": 0o700}
    for name, mode in modes.items():
        (top / name).mkdir(parents=True)
        (top / name).chmod(mode)
    os.chown(top / "home" / "me", 1000, 1001)
    shutil.copy("/bin/busybox", top / "bin" / "busybox")
    os.link(top / "bin" / "busybox", top / "bin" / "sh")
    (top / "bin" / "ls").symlink_to("busybox")
    shutil.copy("/usr/bin/id", top / "bin" / "su")
    (top / "bin" / "su").chmod(0o4755)
    (top / "bin" / "wall").write_bytes(b"#!/bin/sh\n")
    os.chown(top / "bin" / "wall", 0, 5)
    (top / "bin" / "wall").chmod(0o2755)
    (top / "etc" / "shadow").write_text("root:*:1:0:99999:7:::\n")
    os.chown(top / "etc" / "shadow", 0, 42)
    (top / "etc" / "shadow").chmod(0o640)
    (top / "etc" / "mtab").symlink_to("../proc/self/mounts")
    os.chown(top / "etc" / "mtab", 3, 4, follow_symlinks=False)
    for name, kind, major, minor in (
        ("null", stat.S_IFCHR, 1, 3),
        ("sda", stat.S_IFBLK, 8, 0),
        ("far", stat.S_IFBLK, 259, 70_000),
    ):
        os.mknod(top / "dev" / name, kind | 0o660, os.makedev(major, minor))
    os.chown(top / "dev" / "sda", 0, 6)
    os.mkfifo(top / "dev" / "initctl", 0o600)
    os.setxattr(top / "etc" / "shadow", "user.note", b"value")


def listing(top: Path) -> list[tuple[object, ...]]:
    """All that there is, sorted: what stat says, links, contents, xattrs."""
    found: list[tuple[object, ...]] = []
    inodes: dict[int, str] = {}
    for path in sorted([top, *top.rglob("*")]):
        st = path.lstat()
        name = str(path.relative_to(top))
        content: object = None
        if stat.S_ISLNK(st.st_mode):
            content = os.readlink(path)
        elif stat.S_ISREG(st.st_mode):
            content = path.read_bytes()
        xattrs = [] if stat.S_ISLNK(st.st_mode) else [(x, os.getxattr(path, x)) for x in sorted(os.listxattr(path))]
        first = inodes.setdefault(st.st_ino, name)
        links = 0 if stat.S_ISDIR(st.st_mode) else st.st_nlink
        found.append((name, oct(st.st_mode), st.st_uid, st.st_gid, st.st_rdev, links, first, content, xattrs))
    return found


def test_a_root_file_system_is_untarred_and_reads_back_exactly(harness: Harness, mount: Mount, user: int) -> None:
    plain = harness.directory("plain")
    small_root(plain)
    archive = harness.base / "root.tar"
    harness.run_program("tar", "--xattrs", "--acls", "-C", plain, "-cf", archive, ".")
    harness.run_program("tar", "--xattrs", "--acls", "--same-owner", "-p", "-C", mount.point, "-xf", archive)
    assert listing(mount.point) == listing(plain)
    assert harness.run_program("chroot", mount.point, "/bin/sh", "-c", "echo $((6 * 7))") == "42\n"
    assert {path.lstat().st_uid for path in mount.source.rglob("*")} == {user}
    assert {stat.S_IFMT(path.lstat().st_mode) for path in mount.source.rglob("*")} == {stat.S_IFREG, stat.S_IFDIR}
    assert not any(path.lstat().st_mode & 0o7077 for path in mount.source.rglob("*")), "nothing for others, no SUID"
    mount.umount()
    with for_other_users():
        again = harness.mount("-o", f"allow_other,{_MODEL},cache=never,readdirplus=no", source=mount.source, user=user)
    assert listing(again.point) == listing(plain), "it is all in the source"


def test_what_is_kept_has_the_form_of_qemu(mount: Mount) -> None:
    os.mknod(mount.point / "far", stat.S_IFBLK | 0o640, os.makedev(259, 70_000))
    os.chown(mount.point / "far", 5, 600)
    (mount.point / "link").symlink_to("some/where")
    (mount.point / "dir").mkdir(0o750)
    os.mkfifo(mount.point / "fifo", 0o604)

    def kept(name: str) -> dict[str, bytes]:
        path = mount.source / name
        return {x.removeprefix("user.virtfs."): os.getxattr(path, x) for x in os.listxattr(path)}

    le32, rdev = struct.Struct("<I").pack, struct.pack("<Q", os.makedev(259, 70_000))
    assert kept("far") == {"uid": le32(5), "gid": le32(600), "mode": le32(stat.S_IFBLK | 0o640), "rdev": rdev}
    assert kept("link") == {"uid": le32(0), "gid": le32(0), "mode": le32(stat.S_IFLNK | 0o777)}
    assert kept("dir") == {"uid": le32(0), "gid": le32(0), "mode": le32(stat.S_IFDIR | 0o750)}
    assert kept("fifo")["mode"] == le32(stat.S_IFIFO | 0o604)
    assert (mount.source / "link").read_bytes() == b"some/where"
    assert stat.S_IMODE((mount.source / "link").stat().st_mode) == 0o600
    assert stat.S_IMODE((mount.source / "dir").stat().st_mode) == 0o700


def test_what_qemu_kept_is_shown(mount: Mount, user: int) -> None:
    """Some of it may be missing, or nonsense: then the real file's counts."""
    le32 = struct.Struct("<I").pack

    def keep(name: str, content: bytes = b"", **fields: bytes) -> None:
        (mount.source / name).write_bytes(content)
        os.chown(mount.source / name, user, user)
        (mount.source / name).chmod(0o600)
        for field, value in fields.items():
            os.setxattr(mount.source / name, f"user.virtfs.{field}", value)

    keep("device", uid=le32(1), gid=le32(2), mode=le32(stat.S_IFCHR | 0o666), rdev=struct.pack("<Q", os.makedev(5, 1)))
    keep("link", b"target", mode=le32(stat.S_IFLNK | 0o777))
    keep("none")
    keep("owner", uid=le32(77))
    keep("bare mode", mode=le32(0o4755))
    keep("short", uid=b"\1", mode=b"\1\2\3\4\5")
    keep("directory?", mode=le32(stat.S_IFDIR | 0o755))
    keep("empty link", mode=le32(stat.S_IFLNK | 0o777))

    def shown(name: str) -> tuple[int, int, int, int]:
        st = (mount.point / name).lstat()
        return st.st_mode, st.st_uid, st.st_gid, st.st_rdev

    assert shown("device") == (stat.S_IFCHR | 0o666, 1, 2, os.makedev(5, 1))
    assert shown("link") == (stat.S_IFLNK | 0o777, user, user, 0)
    assert os.readlink(mount.point / "link") == "target"
    assert shown("none") == (stat.S_IFREG | 0o600, user, user, 0)
    assert shown("owner") == (stat.S_IFREG | 0o600, 77, user, 0)
    assert shown("bare mode") == (stat.S_IFREG | 0o4755, user, user, 0)
    assert shown("short") == (stat.S_IFREG | 0o600, user, user, 0)
    assert shown("directory?") == (stat.S_IFREG | 0o755, user, user, 0)
    assert attempt(lambda: os.readlink(mount.point / "empty link")) in ("", "EIO", "EINVAL", "ENOENT")


def test_reserved_names_are_hidden_and_refused(mount: Mount) -> None:
    file = mount.point / "file"
    file.write_bytes(b"x")
    os.setxattr(file, "user.other", b"value")
    assert os.listxattr(file) == ["user.other"]
    for name in ("user.virtfs.uid", "user.virtfs.mode", "user.virtfs.anything", "user.virtfs.system.posix_acl_access"):
        assert attempt(lambda n=name: os.getxattr(file, n)) == "ENODATA"  # type: ignore[misc]
        assert attempt(lambda n=name: os.setxattr(file, n, b"\0" * 4)) == "EPERM"  # type: ignore[misc]
        assert attempt(lambda n=name: os.removexattr(file, n)) == "EPERM"  # type: ignore[misc]
    assert (file.lstat().st_uid, file.lstat().st_gid) == (0, 0)


def test_permissions_are_by_the_virtual_owners(mount: Mount) -> None:
    secret, shared = mount.point / "secret", mount.point / "shared"
    secret.write_bytes(b"x")
    secret.chmod(0o600)
    os.chown(secret, 1000, 1000)
    shared.mkdir()
    os.chown(shared, 0, 50)
    shared.chmod(0o2775)
    assert as_user(secret.read_bytes, 1000, 1000) == b"x"
    assert attempt(lambda: as_user(secret.read_bytes, 1001, 1001)) == "EACCES"
    assert attempt(lambda: as_user((shared / "no").touch, 1001, 1001)) == "EACCES"
    as_user((shared / "file").touch, 1001, 1001, groups=[50])
    as_user((shared / "dir").mkdir, 1001, 1001, groups=[50])
    assert ((shared / "file").stat().st_uid, (shared / "file").stat().st_gid) == (1001, 50)
    assert stat.S_IMODE((shared / "dir").stat().st_mode) & 0o2000
    assert attempt(lambda: as_user(lambda: os.chown(secret, 1001, -1), 1000, 1000)) == "EPERM"
    assert (
        attempt(lambda: as_user(lambda: os.mknod(shared / "n", stat.S_IFCHR, 259), 1001, 1001, groups=[50])) == "EPERM"
    )


def test_a_file_without_xattrs_becomes_virtual_when_it_is_changed(mount: Mount, user: int) -> None:
    real = mount.source / "file"
    real.write_bytes(b"x")
    real.chmod(0o400)
    os.chown(real, user, user)
    os.chown(mount.point / "file", 3, 4)
    (mount.point / "file").chmod(0o4751)
    st = (mount.point / "file").stat()
    assert (st.st_mode, st.st_uid, st.st_gid) == (stat.S_IFREG | 0o4751, 3, 4)
    assert stat.S_IMODE(real.stat().st_mode) == 0o600, "the daemon can open it"


def test_what_does_not_fit_leaves_nothing_behind(harness: Harness, user: int) -> None:
    """A file system whose xattrs do not all fit: the new object goes again, and the error is told."""
    image = harness.directory("image") / "image"
    with open(image, "wb") as file:
        file.truncate(4 << 20)
    harness.run_program("mkfs.ext4", "-q", "-F", "-b", "1024", "-I", "128", "-N", "512", image)
    source = attach(harness, "-o", "loop", image)
    os.chown(source, user, user)
    with for_other_users():
        mount = harness.mount("-o", f"allow_other,{_MODEL}", source=source, user=user)
    (mount.point / "there").touch()
    with open(mount.point / "filler", "wb") as filler:
        for size in (1 << 16, 1 << 10):
            while attempt(lambda s=size: os.write(filler.fileno(), b"x" * s)) == size:  # type: ignore[misc]
                os.fsync(filler.fileno())
    before = sorted(os.listdir(source))
    for number, make in enumerate(
        (
            lambda path: os.close(os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o640)),
            lambda path: os.mkdir(path, 0o751),
            lambda path: os.mknod(path, stat.S_IFCHR | 0o602, os.makedev(1, 9)),
            lambda path: os.mkfifo(path, 0o612),
            lambda path: os.symlink("target", path),
        )
    ):
        assert attempt(lambda m=make, n=number: as_root_with_group(m, mount.point / f"new{n}", 4000 + n)) == "ENOSPC"  # type: ignore[misc]
    assert sorted(os.listdir(source)) == before


def as_root_with_group(make: object, path: Path, gid: int) -> object:
    """ext4 shares blocks of equal xattrs: other ids need a block of their own."""
    return as_user(lambda: make(path), 0, gid)  # type: ignore[operator]


def test_a_file_system_without_user_xattrs_is_refused(harness: Harness) -> None:
    source = attach(harness, "-t", "ramfs", "ramfs")
    point = harness.directory()
    said = refusal(run("mount", "-o", _MODEL, source, point), 10)
    assert "user xattrs" in said
    said = refusal(
        run("serve", f"--shared-dir={source}", f"--socket-path={point}/socket", f"--{_MODEL.replace('_', '-')}"), 10
    )
    assert "user xattrs" in said


def test_virtual_owners_need_a_kernel_that_checks(harness: Harness) -> None:
    said = refusal(run("mount", "-o", f"{_MODEL},no_default_permissions", harness.directory(), harness.directory()), 1)
    assert "mapped-xattr" in said
    assert "default_permissions" in said


# Root's daemon, whose files the kernel may read and write itself


@pytest.fixture
def passing(harness: Harness) -> Mount:
    """With kernel passthrough, and attributes that are asked for each time."""
    if tuple(map(int, os.uname().release.split(".")[:2])) < (6, 9):
        pytest.skip("no kernel passthrough before Linux 6.9")
    return harness.mount("-o", f"allow_other,{_MODEL},passthrough=on,attr_timeout=0")


def _mode(path: Path) -> int:
    return stat.S_IMODE(path.lstat().st_mode)


@pytest.mark.parametrize("mode", [0o4755, 0o2775, 0o6777])
def test_a_write_past_the_daemon_takes_suid_that_was_set_meanwhile(passing: Mount, mode: int) -> None:
    file = passing.point / "file"
    with open(file, "wb", buffering=0) as held:
        file.chmod(mode)
        assert _mode(file) == mode
        held.write(b"x")
        assert _mode(file) == mode & 0o777
        file.chmod(mode)
        assert _mode(file) == mode
    assert _mode(file) == mode, "nobody has written since"
    passing.umount()
    assert os.getxattr(passing.source / "file", "user.virtfs.mode") == struct.pack("<I", stat.S_IFREG | mode)
    assert _mode(passing.source / "file") == 0o600


def test_a_file_that_is_read_past_the_daemon_is_written_so(passing: Mount) -> None:
    file = passing.point / "file"
    file.write_bytes(b"0123456789")
    file.chmod(0o755)
    with open(file, "rb", buffering=0) as reader:
        file.chmod(0o4755)
        with open(file, "r+b", buffering=0) as writer:
            assert _mode(file) == 0o4755
            writer.write(b"x")
        assert _mode(file) == 0o755
        assert reader.read(2) == b"x1"
        file.chmod(0o4711)
        file.chmod(0o711)
        assert _mode(file) == 0o711
    assert _mode(passing.source / "file") == 0o600


def test_a_real_program_never_becomes_a_suid_program_of_its_real_owners(passing: Mount) -> None:
    """It was there before, and is somebody's else on the mount: who may change it there must not be root here."""
    real = passing.source / "program"
    shutil.copy("/usr/bin/id", real)
    real.chmod(0o755)
    os.chown(passing.point / "program", 1000, 1000)

    def seize() -> int:
        with open(passing.point / "program", "rb") as held:
            os.fchmod(held.fileno(), 0o4755)
            return _mode(real)

    assert as_user(seize, 1000, 1000) == 0o4644, "SUID is the sign, and nobody can execute it"
    assert _mode(passing.point / "program") == 0o4755
    passing.umount()
    assert _mode(real) == 0o644


def test_many_open_and_change_modes_at_once(passing: Mount) -> None:
    """Whatever the order: what was written after the last chmod has no SUID, and nothing real is left of it."""
    file = passing.point / "file"
    file.touch()
    children = [
        subprocess.Popen(["sh", "-c", f"for i in $(seq 50); do {what}; done"], cwd=passing.point)
        for what in ("echo x >>file", "chmod 4755 file; chmod 755 file", "cat file >/dev/null")
    ]
    assert [child.wait(60) for child in children] == [0, 0, 0]
    assert _mode(file) == 0o755
    passing.umount()
    assert _mode(passing.source / "file") == 0o600


def test_none_passes_over_a_change_of_owner_that_is_not_allowed(harness: Harness, user: int) -> None:
    """tar as root into an ordinary user's mount fails on every owner, unless the model is none."""
    source = harness.directory()
    with for_other_users():
        strict = harness.mount("-o", "allow_other", source=source, user=user)
        lenient = harness.mount("-o", "allow_other,security_model=none", source=source, user=user)
    (strict.point / "file").touch()
    assert attempt(lambda: os.chown(strict.point / "file", 5, 5)) == "EINVAL", "the sandbox knows one user"
    os.chown(lenient.point / "file", 5, 5)
    assert (source / "file").stat().st_uid == user


def test_translated_ids_over_virtual_ones(harness: Harness, user: int) -> None:
    """What is kept is what the translation gives."""
    with for_other_users():
        mount = harness.mount("-o", f"allow_other,{_MODEL},translate_uid=map:0:1000:10", user=user)
    (mount.point / "file").touch()
    assert (mount.point / "file").stat().st_uid == 0
    assert os.getxattr(mount.source / "file", "user.virtfs.uid") == struct.pack("<I", 1000)


def test_an_xattrmap_keeps_capabilities_and_leads_to_no_reserved_name(harness: Harness, user: int) -> None:
    rules = ":prefix:all:security.capability:user.guest.: :prefix:client:user.way.:user.virtfs.: :ok:all:::"
    with for_other_users():
        mount = harness.mount("-o", f"allow_other,{_MODEL},xattrmap={rules}", user=user)
    file = mount.point / "file"
    file.write_bytes(b"x")
    capability = struct.pack("<5I", 0x02000001, 1 << 10, 0, 0, 0)
    os.setxattr(file, "security.capability", capability)
    assert os.getxattr(file, "security.capability") == capability
    for name in ("user.virtfs.uid", "user.virtfs.mode"):
        assert attempt(lambda n=name: os.getxattr(file, n)) == "ENODATA"  # type: ignore[misc]
        assert attempt(lambda n=name: os.setxattr(file, n, b"\0\0\0\0")) == "EPERM"  # type: ignore[misc]
    for name in ("user.way.x",):
        assert attempt(lambda n=name: os.setxattr(file, n, b"\0\0\0\0")) == "EPERM"  # type: ignore[misc]
    file.write_bytes(b"changed")
    assert attempt(lambda: os.getxattr(file, "security.capability")) == "ENODATA"


def test_an_archive_of_the_mount_has_the_devices(mount: Mount, harness: Harness) -> None:
    os.mknod(mount.point / "null", stat.S_IFCHR | 0o666, os.makedev(1, 3))
    (mount.point / "link").symlink_to("null")
    archive = harness.base / "made.tar"
    harness.run_program("tar", "-C", mount.point, "-cf", archive, "null", "link")
    with tarfile.open(archive) as tar:
        assert tar.getmember("null").ischr()
        assert (tar.getmember("null").devmajor, tar.getmember("null").devminor) == (1, 3)
        assert tar.getmember("link").linkname == "null"


def test_directory_entries_have_the_type_that_is_shown(harness: Harness, user: int) -> None:
    for when in ("no", "always"):
        with for_other_users():
            mount = harness.mount("-o", f"allow_other,{_MODEL},readdirplus={when}", user=user)
        (mount.point / "link").symlink_to("x")
        os.mkfifo(mount.point / "fifo")
        (mount.point / "file").touch()
        said = subprocess.run(
            ["find", str(mount.point), "-printf", "%y", "-mindepth", "1", "-type", "l,p,f"],
            capture_output=True,
            text=True,
            check=True,
        )
        assert sorted(said.stdout) == ["f", "l", "p"]
