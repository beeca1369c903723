"""The command line as people use it: what it refuses and how, the forms it takes, and what a mount then looks like."""

import contextlib
import io
import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from passthrough import __version__, exitcodes
from passthrough.cli import main
from passthrough.options import OPTIONS

from .harness import (
    ROOT,
    TIMEOUT_S,
    Harness,
    Mount,
    apart,
    background,
    command,
    daemon_pid,
    ended,
    is_mounted,
    mount_line,
    mounts_below,
    processes_about,
    refusal,
    run,
    unexpected,
    wait_until,
)

HELPER = Path("/sbin/mount.fuse.passthrough")
VALUED = {option.word for option in OPTIONS if option.parse}
BAD_VALUES = {
    "fsname": ["", "two\nlines"],
    "subtype": ["", "a b", "a,b", "a/b"],
    "max_read": ["", "x", "0", "4095", "17M", "-4096", "4096.5", "1G"],
    "max_write": ["", "x", "0", "4095", "17M", "-4096", "4096.5", "1G"],
    "cache": ["", "sometimes", "AUTO"],
    "timeout": ["", "x", "-1", "nan", "inf", "1e99"],
    "attr_timeout": ["", "soon", "-0.1", "snan", "-inf", "1e99"],
    "entry_timeout": ["", "soon", "-0.1", "nan", "inf", "1e99"],
    "negative_timeout": ["", "soon", "-0.1", "nan", "inf", "1e99"],
    "readdirplus": ["", "never", "yes"],
    "inode_file_handles": ["", "always", "on"],
    "passthrough": ["", "yes", "ON"],
    "io_uring": ["", "1", "never"],
    "transport": ["", "fuse", "libfuse"],
    "threads": ["", "0", "257", "-1", "1.5", "x"],
    "log_level": ["", "loud", "err"],
    "xattrmap": ["", "x", ":ok:client:::", ":ok:all::: x"],
    "writeout": ["", "now", "IMMEDIATE"],
    "sandbox": ["", "yes", "container"],
    "landlock": ["", "1"],
    "seccomp": ["", "trap"],
    "modcaps": ["", "mknod", "+a:"],
    "rlimit_nofile": ["", "-1", "x"],
    "uid_map": ["", "1000", ":1:1:"],
    "gid_map": ["", "1000", ":1:1:x:"],
    "security_model": ["", "mapped", "mapped-file"],
    "translate_uid": ["", "0:1", "map:0:-1:1", "swap:0:1:1", "map:0:1:0", "map:4294967295:0:1"],
    "translate_gid": ["", "0:1", "map:0:1:x", "forbid-guest:0:1:1"],
    "squash": ["", "yes", "Root"],
    "anon_uid": ["", "0", "nobody", "4294967295"],
    "anon_gid": ["", "0", "-1", "99999999999"],
}
CONTRADICTIONS = [
    (("allow_other", "allow_root"), ("allow_other", "allow_root")),
    (("writeback", "cache=never"), ("writeback", "cache=never")),
    (("writeback", "cache=metadata"), ("writeback", "cache=metadata")),
    (("writeback", "passthrough=on"), ("writeback", "passthrough=on")),
    (("posix_acl", "no_xattr"), ("posix_acl", "no_xattr")),
    (("xattrmap=selinux", "no_xattr"), ("xattrmap", "no_xattr")),
    (("security_label", "no_xattr"), ("security_label", "no_xattr")),
    (("xattrmap=:map::user.virtiofs.:", "posix_acl"), ("posix_acl", "xattrmap", ":ok:all:system.posix_acl_:")),
    (("xattrmap=:map::user.virtiofs.:", "passthrough=on"), ("xattrmap", "security.capability", "passthrough=on")),
    (("writeout=immediate", "passthrough=on"), ("writeout=immediate", "passthrough=on")),
    (("uid_map=:0:0:1:", "sandbox=chroot"), ("uid_map", "sandbox=chroot")),
    (("gid_map=:0:0:1:",), ("gid_map", "root")),
    (("modcaps=+nonsense",), ("modcaps", "NONSENSE")),
    (("modcaps=-mknod:-dac_read_search",), ("modcaps=-dac_read_search", "inode_file_handles=never")),
    (("modcaps=-CAP_DAC_READ_SEARCH", "inode_file_handles=mandatory"), ("inode_file_handles=mandatory",)),
    (("posix_acl", "no_default_permissions"), ("posix_acl", "no_default_permissions")),
    (("allow_other", "no_default_permissions"), ("allow_other", "no_default_permissions")),
    (("transport=llfuse", "writeback"), ("transport=llfuse", "writeback")),
    (("sandbox=landlock", "landlock=off"), ("sandbox=landlock", "landlock=off")),
    (("modcaps=+chown:-chown",), ("modcaps=+chown:-chown", "CHOWN")),
    (("anon_uid=1000",), ("anon_uid", "squash=root")),
    (("anon_gid=1000",), ("anon_gid", "squash=all")),
]


@pytest.fixture
def point(harness: Harness) -> Iterator[Path]:
    """A mount point on which nothing may be left, nor any daemon for it."""
    path = harness.directory("mount")
    yield path
    assert not is_mounted(path)
    assert processes_about(path) == []


@pytest.fixture
def source(harness: Harness) -> Path:
    """A directory with a file, which is in no mount's way."""
    path = harness.directory("source")
    (path / "file").write_bytes(b"content")
    return path


# SRC and MNT


def test_source_missing(point: Path, harness: Harness) -> None:
    line = refusal(run("mount", harness.base / "nowhere", point), exitcodes.SOURCE)
    assert str(harness.base / "nowhere") in line


def test_source_missing_with_a_newline_in_its_name(point: Path, harness: Harness) -> None:
    refusal(run("mount", harness.base / "no\nwhere", point), exitcodes.SOURCE)


def test_source_is_a_file(point: Path, source: Path) -> None:
    line = refusal(run("mount", source / "file", point), exitcodes.SOURCE)
    assert str(source / "file") in line


def test_source_below_a_file(point: Path, source: Path) -> None:
    refusal(run("mount", source / "file" / "more", point), exitcodes.SOURCE)


@pytest.mark.parametrize("mode", [0o000, 0o711, 0o744])
def test_source_unreadable_as_user(point: Path, source: Path, user: int, mode: int) -> None:
    source.chmod(mode)
    os.chown(point, user, user)
    line = refusal(run("mount", source, point, user=user), exitcodes.SOURCE)
    assert str(source) in line


def test_mountpoint_missing(harness: Harness, source: Path) -> None:
    line = refusal(run("mount", source, harness.base / "nowhere"), exitcodes.MOUNTPOINT)
    assert f"mkdir -p {harness.base / 'nowhere'}" in line
    assert mounts_below(harness.base) == []


def test_mountpoint_missing_with_a_newline_in_its_name(harness: Harness, source: Path) -> None:
    refusal(run("mount", source, harness.base / "no\nwhere"), exitcodes.MOUNTPOINT)


def test_mountpoint_is_a_symlink_to_nothing(harness: Harness, source: Path) -> None:
    link = harness.base / "link"
    link.symlink_to(harness.base / "nowhere")
    assert "symlink to what does not exist" in refusal(run("mount", source, link), exitcodes.MOUNTPOINT)


def test_mountpoint_is_a_file(harness: Harness, source: Path) -> None:
    file = harness.base / "file"
    file.touch()
    refusal(run("mount", source, file), exitcodes.MOUNTPOINT)
    assert mounts_below(harness.base) == []


def test_mountpoint_is_a_loop_of_symlinks(harness: Harness, source: Path) -> None:
    loop = harness.base / "loop"
    loop.symlink_to(loop)
    refusal(run("mount", source, loop), exitcodes.MOUNTPOINT)


def test_mountpoint_not_empty(point: Path, source: Path) -> None:
    (point / "in the way").touch()
    line = refusal(run("mount", source, point), exitcodes.MOUNTPOINT)
    assert "nonempty" in line


def test_mountpoint_not_empty_as_it_is_meant(harness: Harness) -> None:
    point = harness.directory("mount")
    (point / "hidden").touch()
    mount = harness.mount("-o", "nonempty", point=point)
    assert os.listdir(point) == []
    mount.umount()
    assert os.listdir(point) == ["hidden"]


def test_mountpoint_is_a_mount_of_ours(harness: Harness, source: Path) -> None:
    mount = harness.mount()
    line = refusal(run("mount", source, mount.point), exitcodes.MOUNTPOINT)
    assert "fuse.passthrough" in line
    assert len(mounts_below(harness.base)) == 1


def test_mountpoint_is_another_mount(harness: Harness, source: Path) -> None:
    with tmpfs(harness.directory("tmpfs")) as point:
        assert "tmpfs" in refusal(run("mount", source, point), exitcodes.MOUNTPOINT)


def test_mounting_on_top_as_it_is_meant(harness: Harness, source: Path) -> None:
    below = harness.mount()
    above = harness.mount("--nonempty", source=source, point=below.point)
    assert os.listdir(below.point) == ["file"]
    above.umount()
    assert above.pid is not None
    assert ended(above.pid)
    assert os.listdir(below.point) == []


def test_dead_mount_in_the_way(harness: Harness, source: Path) -> None:
    mount = harness.mount()
    assert mount.pid is not None
    os.kill(mount.pid, signal.SIGKILL)
    assert ended(mount.pid)
    line = refusal(run("mount", source, mount.point), exitcodes.MOUNTPOINT)
    assert f"passthrough umount {mount.point}" in line
    mount.umount()
    assert not is_mounted(mount.point)


def test_mounting_a_directory_on_itself(harness: Harness, source: Path) -> None:
    mount = harness.mount(source=source, point=source)
    assert (source / "file").read_bytes() == b"content"
    (source / "new").write_bytes(b"new")
    mount.umount()
    assert (source / "new").read_bytes() == b"new"


# Options


def run_here(*words: str | os.PathLike[str]) -> subprocess.CompletedProcess[str]:
    """The command in this process: of the many wrong words none needs another interpreter to be refused."""
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        status = main([os.fspath(word) for word in words])
    return subprocess.CompletedProcess(words, status, out.getvalue(), err.getvalue())


@pytest.mark.parametrize("words", [("-o", "nosuchoption"), ("-o", "ro,nosuchoption=5"), ("--nosuchoption",)])
def test_unknown_option_is_named(point: Path, source: Path, words: Sequence[str]) -> None:
    assert "nosuchoption" in refusal(run("mount", *words, source, point), exitcodes.USAGE)


@pytest.mark.parametrize("words", [("--allow",), ("-o", "allow"), ("--time=1",)])
def test_options_are_not_abbreviated(point: Path, source: Path, words: Sequence[str]) -> None:
    refusal(run_here("mount", *words, source, point), exitcodes.USAGE)


def test_every_valued_option_has_bad_values_here() -> None:
    assert set(BAD_VALUES) == VALUED


@pytest.mark.parametrize(("word", "value"), [(word, value) for word, values in BAD_VALUES.items() for value in values])
def test_bad_value(point: Path, source: Path, word: str, value: str) -> None:
    escaped = value.replace(",", "\\,")
    assert word in refusal(run_here("mount", "-o", f"{word}={escaped}", source, point), exitcodes.USAGE)
    assert word in refusal(run_here("mount", f"--{word.replace('_', '-')}={value}", source, point), exitcodes.USAGE)


@pytest.mark.parametrize("word", sorted(VALUED))
def test_missing_value(point: Path, source: Path, word: str) -> None:
    assert word in refusal(run_here("mount", "-o", word, source, point), exitcodes.USAGE)
    line = refusal(run_here("mount", source, point, "--" + word), exitcodes.USAGE)
    assert word in line.replace("-", "_")


@pytest.mark.parametrize("word", ["ro", "allow_other", "no_writeback", "debug"])
def test_a_flag_takes_no_value(point: Path, source: Path, word: str) -> None:
    assert word in refusal(run_here("mount", "-o", word + "=1", source, point), exitcodes.USAGE)
    assert word in refusal(run_here("mount", f"--{word}=1", source, point), exitcodes.USAGE)


@pytest.mark.parametrize(("words", "named"), CONTRADICTIONS)
def test_options_that_contradict(point: Path, source: Path, words: Sequence[str], named: Sequence[str]) -> None:
    line = refusal(run("mount", "-o", ",".join(words), source, point), exitcodes.USAGE)
    assert all(word in line for word in named)


def test_the_last_of_opposites_wins(harness: Harness) -> None:
    mount = harness.mount("-o", "ro,noexec,threads=3", "--rw", "-o", "exec,cache=never", "--cache=auto")
    options = shown(mount)[0]
    assert "rw" in options
    assert "noexec" not in options
    (mount.point / "file").write_bytes(b"written")


def test_help_lists_every_option() -> None:
    result = run("mount", "--help")
    assert result.returncode == 0
    assert not result.stderr
    listed = set(re.findall(r"--([a-z0-9_-]+)", result.stdout))
    assert {option.word.replace("_", "-") for option in OPTIONS if option.help} <= listed
    words = set(re.findall(r"[a-z0-9_]+", result.stdout))
    assert {option.word for option in OPTIONS} - words == set()


# Commands


def test_version() -> None:
    result = run("--version")
    assert (result.returncode, result.stdout, result.stderr) == (0, f"passthrough {__version__}\n", "")


def test_help_lists_every_command() -> None:
    result = run("--help")
    assert result.returncode == 0
    for word in ("mount", "umount", "doctor"):
        assert re.search(rf"^ +{word} ", result.stdout, re.MULTILINE)


@pytest.mark.parametrize(
    "words",
    [
        (),
        ("nosuchcommand",),
        ("mount",),
        ("mount", "/"),
        ("mount", "/", "/", "/"),
        ("umount",),
        ("mount", "-o"),
        ("-x",),
    ],
)
def test_wrong_command_line(words: Sequence[str]) -> None:
    assert "--help" in refusal(run(*words), exitcodes.USAGE)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("mount", "--nonsense", "/", "/"), "unknown option: --nonsense; see: passthrough mount --help"),
        (("mount", "/", "/", "more"), "one argument too many: more; see: passthrough mount --help"),
        (("mount", "--ro=1", "/", "/"), "--ro takes no value; see: passthrough mount --help"),
        (("doctor", ".", "more"), "one argument too many: more; see: passthrough doctor --help"),
        (("mount", "-o", "allow-other", "/", "/"), "unknown option: allow-other; for -o it is allow_other"),
        (("mount", "-o", "remount,ro", "/", "/"), "unknown option: remount; a mount keeps its options"),
        (("export", "-o", "ro", "a", "b"), "unknown option: ro; an export is read-only"),
        (("mount", "", "/"), "SRC is empty"),
        (("mount", "/", ""), "MNT is empty"),
        (("umount", ""), "MNT is empty"),
    ],
)
def test_what_a_wrong_command_line_is_told(words: Sequence[str], said: str) -> None:
    assert refusal(run_here(*words), exitcodes.USAGE).startswith(f"passthrough: {said}")


def test_umount_of_what_is_not_mounted(harness: Harness) -> None:
    refusal(run("umount", harness.directory()), exitcodes.NOT_MOUNTED)
    refusal(run("umount", harness.base / "nowhere"), exitcodes.NOT_MOUNTED)


def test_umount_of_a_directory_in_a_mount(harness: Harness) -> None:
    mount = harness.mount()
    (mount.point / "inside").mkdir()
    refusal(run("umount", mount.point / "inside"), exitcodes.NOT_MOUNTED)
    assert is_mounted(mount.point)


def test_umount_of_another_file_system(harness: Harness) -> None:
    with tmpfs(harness.directory("tmpfs")) as point:
        assert "tmpfs" in refusal(run("umount", point), exitcodes.NOT_MOUNTED)
        assert is_mounted(point)


def test_umount_of_another_daemons_mount(harness: Harness) -> None:
    point = harness.directory()
    device = os.open("/dev/fuse", os.O_RDWR)
    try:
        options = f"fd={device},rootmode=40000,user_id=0,group_id=0"
        words = ["mount", "-i", "-t", "fuse.other", "-o", options, "other", str(point)]
        subprocess.run(words, pass_fds=[device], check=True)
        try:
            assert "fuse.other" in refusal(run("umount", point), exitcodes.NOT_MOUNTED)
            assert is_mounted(point)
        finally:
            subprocess.run(["umount", "-i", "-l", point], check=True)
    finally:
        os.close(device)


def test_umount_through_a_symlink_and_a_relative_path(harness: Harness) -> None:
    mount = harness.mount()
    alias = harness.base / "alias"
    alias.symlink_to(harness.base, target_is_directory=True)
    result = run("umount", f"alias/../alias/{mount.point.name}/", cwd=harness.base)
    assert result.returncode == 0, result.stderr
    assert not is_mounted(mount.point)


def test_mount_and_umount_by_a_symlink(harness: Harness, source: Path) -> None:
    point, alias = harness.directory("mount"), harness.base / "alias"
    alias.symlink_to(point)
    harness.mount(source=source, point=alias)
    assert os.listdir(point) == ["file"]
    result = run("umount", alias)
    assert result.returncode == 0, result.stderr
    assert not is_mounted(point)


# The machine


def test_device_missing(point: Path, source: Path) -> None:
    setup = "mount -t tmpfs none /dev; mknod -m 666 /dev/null c 1 3"
    assert "modprobe fuse" in refusal(apart(setup, "mount", source, point), exitcodes.NO_DEVICE)


def test_device_is_something_else(point: Path, source: Path) -> None:
    refusal(apart("mount --bind /dev/null /dev/fuse", "mount", source, point), exitcodes.MOUNT_FAILED)


def test_runtime_directory_of_others_is_refused(point: Path, source: Path, user: int) -> None:
    setup = f"mount -t tmpfs none /run; mkdir /run/passthrough; chown {user} /run/passthrough"
    line = refusal(apart(setup, "mount", source, point), exitcodes.SYSTEM)
    assert "/run/passthrough" in line


@pytest.mark.parametrize("closed", ["<&-", ">&-", "2>&-", "<&- >&- 2>&-"])
@pytest.mark.parametrize("word", ["mount", "-f"])
def test_closed_standard_streams(harness: Harness, source: Path, closed: str, word: str) -> None:
    """The first descriptors that are opened then are 0, 1 and 2: none of ours may be among them."""
    mount = Mount(source, harness.directory("mount"))
    harness.mounts.append(mount)
    words = command(*dict.fromkeys(["mount", word]), source, mount.point)
    with background("sh", "-c", f'exec "$@" {closed}', "sh", *words, cwd=ROOT) as process:
        if word == "mount":
            assert process.wait(TIMEOUT_S) == 0
        wait_until(lambda: is_mounted(mount.point) or process.poll() is not None, "mounted")
        assert (mount.point / "file").read_bytes() == b"content"
        mount.umount()
        if word == "-f":
            assert process.wait(TIMEOUT_S) == 0
    assert not is_mounted(mount.point)


# What a mount looks like


def shown(mount: Mount) -> tuple[set[str], str, str, set[str]]:
    """The options of the mount, the type, the source and the options of the superblock, out of mountinfo."""
    line = mount_line(mount.point)
    assert line is not None
    left, _, right = line.rstrip("\n").partition(" - ")
    kind, source, options = right.split(" ")
    return set(left.split(" ")[5].split(",")), kind, source, set(options.split(","))


@pytest.mark.parametrize(
    ("words", "there", "absent"),
    [
        ((), {"rw", "nosuid", "nodev", "default_permissions"}, {"noexec", "noatime", "ro", "allow_other", "sync"}),
        (("ro", "suid", "dev"), {"ro"}, {"rw", "nosuid", "nodev"}),
        (("nosuid", "nodev", "noexec", "noatime", "sync"), {"nosuid", "nodev", "noexec", "noatime", "sync"}, {"ro"}),
        (("allow_other", "max_read=131072"), {"allow_other", "max_read=131072"}, set()),
        (("allow_root", "max_read=64K"), {"allow_other", "max_read=65536"}, set()),
        (("no_default_permissions",), set(), {"default_permissions", "allow_other"}),
    ],
)
def test_options_are_what_mountinfo_shows(
    harness: Harness, words: Sequence[str], there: set[str], absent: set[str]
) -> None:
    if "ro" in words:
        there, absent = there - {"ro"}, absent - {"rw"}  # of the mount and of its superblock: looked at below
    seen = []
    for arguments in (["-o", ",".join(words)] if words else []), ["--" + word.replace("_", "-") for word in words]:
        options, kind, _, super_options = shown(harness.mount(*arguments))
        seen.append((options, super_options))
        assert kind == "fuse.passthrough"
        assert there <= options | super_options
        assert not absent & (options | super_options)
        assert ("ro" in options) == ("ro" in words)
        assert ("ro" in super_options) == ("ro" in words)
    assert seen[0] == seen[1]


def test_source_and_type_shown(harness: Harness, source: Path) -> None:
    assert shown(harness.mount(source=source))[1:3] == ("fuse.passthrough", str(source))
    assert shown(harness.mount("-o", r"fsname=a\,b c,subtype=other"))[1:3] == ("fuse.other", r"a,b\040c")
    assert shown(harness.mount("--fsname=a,b", "--subtype=other-2"))[1:3] == ("fuse.other-2", "a,b")


def test_umount_knows_a_mount_of_another_subtype(harness: Harness) -> None:
    mount = harness.mount("--subtype=other")
    mount.umount()
    assert not is_mounted(mount.point)


def test_read_only(harness: Harness, source: Path) -> None:
    point = harness.mount("-o", "ro", source=source).point
    assert (point / "file").read_bytes() == b"content"
    for change in (
        lambda: (point / "file").write_bytes(b"other"),
        lambda: (point / "new").touch(),
        lambda: (point / "new").mkdir(),
        lambda: (point / "file").unlink(),
        lambda: (point / "file").chmod(0),
        lambda: os.setxattr(point / "file", "user.a", b"1"),
        lambda: (point / "file").rename(point / "other"),
        lambda: os.utime(point / "file"),
    ):
        with pytest.raises(OSError, match="Read-only file system"):
            change()
    assert (source / "file").read_bytes() == b"content"
    assert os.listdir(source) == ["file"]


def test_programs_are_not_started_with_noexec(harness: Harness) -> None:
    program = "/bin/true"
    for words, works in (("-o", "noexec"), False), (("-o", "exec"), True):
        mount = harness.mount(*words)
        (mount.point / "true").write_bytes(Path(program).read_bytes())
        (mount.point / "true").chmod(0o755)
        with contextlib.nullcontext() if works else pytest.raises(PermissionError):
            subprocess.run([mount.point / "true"], check=True)


def test_xattrs_are_hidden_with_no_xattr(harness: Harness, source: Path) -> None:
    os.setxattr(source / "file", "user.a", b"1")
    assert os.getxattr(harness.mount(source=source).point / "file", "user.a") == b"1"
    with pytest.raises(OSError, match="not supported"):
        os.getxattr(harness.mount("--no-xattr", source=source).point / "file", "user.a")


def test_the_mount_answers_when_the_command_returns(harness: Harness, source: Path) -> None:
    for _ in range(5):
        mount = harness.mount(source=source)
        assert os.listdir(mount.point) == ["file"]
        mount.umount()
        assert os.listdir(mount.point) == []


def test_two_mounts_at_once(harness: Harness, source: Path) -> None:
    other = harness.directory("other")
    first, second, third = harness.mount(source=source), harness.mount(source=source), harness.mount(source=other)
    assert len({first.pid, second.pid, third.pid}) == 3
    (first.point / "new").write_bytes(b"by the first")
    assert (second.point / "new").read_bytes() == b"by the first"
    assert os.listdir(third.point) == []
    first.umount()
    assert (second.point / "file").read_bytes() == b"content"
    assert is_mounted(third.point)


def test_a_mount_of_a_mount(harness: Harness, source: Path) -> None:
    first = harness.mount(source=source)
    second = harness.mount(source=first.point)
    (second.point / "new").write_bytes(b"through both")
    assert (source / "new").read_bytes() == b"through both"
    second.umount()
    first.umount()


NAMES = [
    b"with space",
    b"a,b=c",
    b"not \xff\xfe utf-8",
    b"new\nline",
    b"back\\slash\\040",
    b"tab\there",
    b"carriage\rreturn",
    "größe ☃".encode(),
    b"#hash",
    b"quote'\"$(x)",
    b"%s %n",
    b"trailing ",
]


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("ordinary", [False, True], ids=["root", "user"])
def test_odd_names(harness: Harness, name: bytes, ordinary: bool, request: pytest.FixtureRequest) -> None:
    uid = request.getfixturevalue("user") if ordinary else None
    source = harness.directory() / os.fsdecode(name)
    point = harness.directory() / os.fsdecode(name)
    source.mkdir()
    point.mkdir()
    (source / "file").write_bytes(b"content")
    mount = harness.mount(source=source, point=point, user=uid)
    assert mount.pid is not None
    script = "import sys; assert open(sys.argv[1] + '/file', 'rb').read() == b'content'"
    harness.run_program(sys.executable, "-c", script, point, **as_user(uid))
    result = run("umount", point, user=uid)
    assert result.returncode == 0, result.stderr
    assert not is_mounted(point)
    assert ended(mount.pid)


def as_user(uid: int | None) -> dict[str, object]:
    """What makes subprocess run a program as this user."""
    return {} if uid is None else {"user": uid, "group": uid, "extra_groups": []}


def test_names_that_begin_with_a_dash(harness: Harness) -> None:
    source, point = harness.base / "-source", harness.base / "--mount"
    source.mkdir()
    point.mkdir()
    harness.mounts.append(Mount(source, point))
    result = run("mount", "--ro", "--", "-source", "--mount", cwd=harness.base)
    assert result.returncode == 0, result.stderr
    assert shown(Mount(source, point))[2] == str(source)
    result = run("umount", "--", "--mount", cwd=harness.base)
    assert result.returncode == 0, result.stderr
    assert not is_mounted(point)


def test_relative_paths_and_symlinks(harness: Harness, source: Path) -> None:
    point = harness.directory("mount")
    (harness.base / "to-source").symlink_to(source)
    (harness.base / "to-mount").symlink_to(point)
    harness.mounts.append(Mount(source, point))
    result = run("mount", "to-source", "to-mount/", cwd=harness.base)
    assert result.returncode == 0, result.stderr
    assert os.listdir(point) == ["file"]
    harness.mounts[-1].pid = daemon_pid(point)
    harness.mounts[-1].umount()


def test_a_locale_that_is_not_utf_8(harness: Harness) -> None:
    """Names are bytes: where they do not decode, mount and daemon still find each other."""
    source, point = harness.base / "größe", harness.base / "ñandú"
    source.mkdir()
    point.mkdir()
    harness.mounts.append(Mount(source, point))
    words = {**os.environ, "PYTHONPATH": str(ROOT), "LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    assert run("mount", source, point, env=words).returncode == 0
    pid = daemon_pid(point)
    assert pid is not None
    with contextlib.closing(os.scandir(point)):
        result = run("umount", point, env=words)
        assert result.returncode == 0, result.stderr
        assert not is_mounted(point)
        assert ended(pid)


def test_a_mountpoint_within_the_source(harness: Harness, source: Path) -> None:
    (source / "within").mkdir()
    mount = harness.mount(source=source, point=source / "within")
    assert sorted(os.listdir(mount.point)) == ["file", "within"]
    assert os.listdir(mount.point / "within") == []
    (mount.point / "within" / "covered").touch()
    assert len(harness.run_program("find", source).splitlines()) == 6
    mount.umount()
    assert os.listdir(source / "within") == ["covered"]


def test_a_source_within_the_mountpoint(harness: Harness) -> None:
    point = harness.directory("mount")
    (point / "source").mkdir()
    (point / "source" / "file").write_bytes(b"content")
    mount = harness.mount("--nonempty", source=point / "source", point=point)
    assert os.listdir(point) == ["file"]
    (point / "new").touch()
    mount.umount()
    assert sorted(os.listdir(point / "source")) == ["file", "new"]


def test_the_root_of_the_machine(harness: Harness) -> None:
    mount = harness.mount(source=Path("/"))
    assert (mount.point / "etc" / "passwd").read_bytes() == Path("/etc/passwd").read_bytes()
    inside = mount.point / mount.point.relative_to("/")
    assert os.listdir(inside) == []
    numbers = [(mount.point / name).stat().st_ino for name in ("proc", "dev", "sys", ".")]
    assert len(set(numbers)) == len(numbers)


# In the foreground


@contextlib.contextmanager
def foreground(harness: Harness, *words: str) -> Iterator[tuple[subprocess.Popen[str], Mount]]:
    """`passthrough mount -f`, once it is mounted."""
    mount = Mount(harness.directory("source"), harness.directory("mount"))
    harness.mounts.append(mount)
    log = harness.base / "stderr"
    with (
        log.open("w") as file,
        background(*command("mount", *words, mount.source, mount.point), stderr=file, stdout=file, cwd=ROOT) as process,
    ):
        wait_until(lambda: is_mounted(mount.point) or process.poll() is not None, "mounted")
        assert process.poll() is None, log.read_text()
        yield process, mount


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
@pytest.mark.parametrize("options", [(), ("-o", "auto_unmount")])
def test_foreground_ends_by_a_signal(harness: Harness, number: signal.Signals, options: Sequence[str]) -> None:
    with foreground(harness, "-f", *options) as (process, mount):
        (mount.point / "file").write_bytes(b"content")
        assert (mount.source / "file").read_bytes() == b"content"
        assert process.poll() is None
        process.send_signal(number)
        assert process.wait(20) == exitcodes.OK
    assert not is_mounted(mount.point)
    assert unexpected((harness.base / "stderr").read_text()) == ""


@pytest.mark.parametrize("options", [(), ("-o", "auto_unmount")])
def test_foreground_ends_by_an_unmount(harness: Harness, options: Sequence[str]) -> None:
    with foreground(harness, "-f", *options) as (process, mount):
        os.listdir(mount.point)
        mount.umount()
        assert process.wait(20) == exitcodes.OK
    assert unexpected((harness.base / "stderr").read_text()) == ""


NUMBER, NAME = r"-?\d+", r"'(?:[ -&(-\[\]-~]|\\x[0-9a-f]{2})*'"
REQUEST = re.compile(
    rf"> (?P<unique>\d+) (?P<operation>[A-Z0-9_]+|opcode-\d+) node=\d+(?P<fields>(?: \w+=\S+)*?)"
    rf"(?P<names>(?: (?:{NAME}))*)(?: \+(?P<bytes>\d+))? uid=\d+ gid=\d+ pid={NUMBER}"
)
REPLY = re.compile(r"< (?P<unique>\d+) (?P<result>OK(?: \d+)?|E[A-Z0-9]+|\d+|later|-)")
LINE = "passthrough: DEBUG: "


def test_debug_shows_requests_and_replies(harness: Harness) -> None:
    with foreground(harness, "-o", "debug,passthrough=off") as (process, mount):
        odd = mount.point / "odd ' name\n"
        odd.write_bytes(b"x" * 5000)
        assert odd.read_bytes() == b"x" * 5000
        name = r"'odd \x27 name\x0a'"
        odd.rename(mount.point / "renamed")
        os.listdir(mount.point)
        with pytest.raises(FileNotFoundError):
            (mount.point / "missing").read_bytes()
        mount.umount()
        assert process.wait(20) == exitcodes.OK
    lines = unexpected((harness.base / "stderr").read_text()).splitlines()
    assert all(line.startswith(LINE) for line in lines)
    bodies = [line.removeprefix(LINE) for line in lines]
    asked, replies = {}, {}
    for line in bodies:
        if line.startswith("> "):
            request = REQUEST.fullmatch(line)
            assert request, line
            asked[request["unique"]] = request
        elif line.startswith("< "):
            reply = REPLY.fullmatch(line)
            assert reply, line
            assert reply["unique"] in asked, line
            assert reply["unique"] not in replies, line
            replies[reply["unique"]] = reply
    assert set(asked) == set(replies)
    told = [(request["operation"], request["names"].strip(), request["bytes"]) for request in asked.values()]
    assert ("CREATE", name, None) in told
    assert [names for operation, names, _ in told if operation.startswith("RENAME")] == [f"{name} 'renamed'"]
    assert [count for operation, _, count in told if operation == "WRITE"] == ["5000"]
    assert {request["operation"] for request in asked.values()} >= {"INIT", "LOOKUP", "WRITE", "RELEASE", "OPENDIR"}
    missing = [unique for unique, request in asked.items() if request["names"].strip() == "'missing'"]
    assert missing
    assert {replies[unique]["result"] for unique in missing} == {"ENOENT"}


def test_without_debug_the_foreground_is_silent(harness: Harness) -> None:
    with foreground(harness, "--foreground") as (process, mount):
        for number in range(20):
            (mount.point / str(number)).write_text("text")
        mount.umount()
        assert process.wait(20) == exitcodes.OK
    assert unexpected((harness.base / "stderr").read_text()) == ""


# As mount(8) and mount.fuse call it


@pytest.fixture(scope="module")
def mount_helper() -> Iterator[None]:
    """/sbin/mount.fuse.passthrough, where mount(8) looks for it, unless it is installed."""
    if HELPER.exists():
        yield
        return
    HELPER.write_text(
        f"#!{sys.executable}\nimport sys\n\nsys.dont_write_bytecode = True\nsys.path.insert(0, {str(ROOT)!r})\n"
        "from passthrough.cli import main\n\nsys.exit(main())\n"
    )
    try:
        HELPER.chmod(0o755)
        yield
    finally:
        HELPER.unlink()


@pytest.mark.usefixtures("mount_helper")
class TestMountHelper:
    """mount(8), with our helper in /sbin."""

    def test_mount_and_umount(self, harness: Harness, source: Path) -> None:
        mount = self.made(harness, source)
        words = ["-t", "fuse.passthrough", str(source), str(mount.point), "-o", "allow_other,cache=auto,noatime"]
        harness.run_program("mount", *words)
        options, kind, shown_source, super_options = shown(mount)
        assert kind == "fuse.passthrough"
        assert shown_source == str(source)
        assert {"noatime", "nosuid", "nodev", "rw"} <= options
        assert "allow_other" in super_options
        assert (mount.point / "file").read_bytes() == b"content"
        pid = daemon_pid(mount.point)
        assert pid is not None
        harness.run_program("umount", mount.point)
        assert ended(pid)

    def test_fstab(self, harness: Harness, source: Path) -> None:
        mount = self.made(harness, source)
        fstab = harness.base / "fstab"
        options = "ro,noauto,_netdev,nofail,x-systemd.automount,cache=always"
        fstab.write_text(f"{source} {mount.point} fuse.passthrough {options} 0 0\n")
        harness.run_program("mount", "-T", fstab, mount.point)
        assert "ro" in shown(mount)[0]
        assert (mount.point / "file").read_bytes() == b"content"
        pid = daemon_pid(mount.point)
        assert pid is not None
        harness.run_program("umount", mount.point)
        assert ended(pid)

    def test_fstab_with_a_space_in_the_names(self, harness: Harness) -> None:
        source, point = harness.directory("the source"), harness.directory("the mount")
        mount = Mount(source, point)
        harness.mounts.append(mount)
        fstab = harness.base / "fstab"
        names = [str(path).replace(" ", "\\040") for path in (source, point)]
        fstab.write_text(f"{names[0]} {names[1]} fuse.passthrough noauto,user,exec 0 0\n")
        harness.run_program("mount", "-T", fstab, point)
        assert shown(mount)[2] == names[0]

    def test_unknown_option_is_named(self, point: Path, source: Path) -> None:
        words = ["mount", "-t", "fuse.passthrough", "-o", "nosuchoption", str(source), str(point)]
        result = subprocess.run(words, capture_output=True, text=True, check=False)
        assert result.returncode == exitcodes.USAGE
        assert "nosuchoption" in result.stderr

    def test_sloppy_passes_over_an_unknown_option(self, harness: Harness, source: Path) -> None:
        mount = self.made(harness, source)
        harness.run_program("mount", "-s", "-t", "fuse.passthrough", "-o", "nosuchoption", source, mount.point)
        assert is_mounted(mount.point)

    def test_fake_mounts_nothing(self, point: Path, source: Path) -> None:
        words = ["mount", "-f", "-t", "fuse.passthrough", str(source), str(point)]
        assert subprocess.run(words, check=False).returncode == 0

    def test_failure_is_told(self, harness: Harness, point: Path) -> None:
        words = ["mount", "-t", "fuse.passthrough", str(harness.base / "nowhere"), str(point)]
        result = subprocess.run(words, capture_output=True, text=True, check=False)
        assert result.returncode == exitcodes.SOURCE
        assert "nowhere" in result.stderr

    def test_remount_is_refused_or_done(self, harness: Harness, source: Path) -> None:
        mount = self.made(harness, source)
        harness.run_program("mount", "-t", "fuse.passthrough", source, mount.point)
        words = ["mount", "-o", "remount,ro", str(mount.point)]
        result = subprocess.run(words, capture_output=True, text=True, check=False)
        read_only = "ro" in shown(mount)[0]
        assert (result.returncode == 0) == read_only, result.stderr
        assert len(mounts_below(harness.base)) == 1

    @staticmethod
    def made(harness: Harness, source: Path) -> Mount:
        mount = Mount(source, harness.directory("mount"))
        harness.mounts.append(mount)
        return mount


FSTAB_WORDS = "rw,noauto,x-systemd.automount,_netdev,user,cache=auto"


def test_as_mount_fuse_calls_it(harness: Harness, source: Path) -> None:
    mount = Mount(source, harness.directory("mount"))
    harness.mounts.append(mount)
    result = run(source, mount.point, "-o", FSTAB_WORDS)
    assert result.returncode == 0, result.stderr
    assert (mount.point / "file").read_bytes() == b"content"
    mount.pid = daemon_pid(mount.point)
    mount.umount()


def test_as_mount_fuse_calls_it_with_a_wrong_option(point: Path, source: Path) -> None:
    assert "nosuchoption" in refusal(run(source, point, "-o", "rw,nosuchoption"), exitcodes.USAGE)


@pytest.mark.skipif(not Path("/sbin/mount.fuse3").exists(), reason="needs mount.fuse3, of the package fuse3")
def test_through_mount_fuse3(harness: Harness, source: Path) -> None:
    mount = Mount(source, harness.directory("mount"))
    harness.mounts.append(mount)
    programs = harness.directory("bin")
    (programs / "passthrough").write_text(f'#!/bin/sh\nPYTHONPATH={ROOT} exec {sys.executable} -m passthrough "$@"\n')
    (programs / "passthrough").chmod(0o755)
    path = {**os.environ, "PATH": f"{programs}:{os.environ['PATH']}"}
    words = ["/sbin/mount.fuse3", str(source), str(mount.point), "-t", "fuse.passthrough", "-o", FSTAB_WORDS]
    harness.run_program(*words, env=path)
    assert shown(mount)[1:3] == ("fuse.passthrough", str(source))
    assert (mount.point / "file").read_bytes() == b"content"
    mount.pid = daemon_pid(mount.point)
    harness.run_program("umount", mount.point)


@contextlib.contextmanager
def tmpfs(point: Path) -> Iterator[Path]:
    """A file system of another kind on this directory."""
    subprocess.run(["mount", "-t", "tmpfs", "none", str(point)], check=True)
    try:
        yield point
    finally:
        subprocess.run(["umount", str(point)], check=True)
