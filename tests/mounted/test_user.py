"""An ordinary user's mount: through fusermount3, with that user's rights, for that user alone."""

import os
import signal
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from passthrough import exitcodes

from .harness import (
    ROOT,
    Harness,
    Mount,
    apart,
    command,
    daemon_pid,
    ended,
    is_mounted,
    mount_line,
    refusal,
    run,
    wait_until,
)

OTHER = 65533
"""A user who is neither root nor the one who mounts."""


def become(uid: int | None) -> dict[str, object]:
    """What makes subprocess run a program as this user; None is root."""
    return {} if uid is None else {"user": uid, "group": uid, "extra_groups": []}


def may_list(uid: int | None, path: Path) -> bool:
    """Whether this user sees what is in a directory."""
    result = subprocess.run(["ls", "-A", path], **become(uid), capture_output=True, check=False)  # type: ignore[call-overload]
    assert result.returncode == 0 or b"Permission denied" in result.stderr, result.stderr
    return bool(result.returncode == 0)


def as_user(uid: int, script: str, *words: str | Path, umask: int = 0o022) -> str:
    """A Python program as this user, which must succeed; what it prints."""
    command = [sys.executable, "-c", script, *map(str, words)]
    result = subprocess.run(command, **become(uid), umask=umask, capture_output=True, text=True, check=False)  # type: ignore[call-overload]
    assert result.returncode == 0, result.stderr
    return str(result.stdout)


@pytest.fixture
def mount(harness: Harness, user: int) -> Mount:
    """A mount with the default options, made by the user."""
    return harness.mount(user=user)


def super_options(mount: Mount) -> set[str]:
    """The options of the superblock and of the mount, out of mountinfo."""
    line = mount_line(mount.point)
    assert line is not None
    left, _, right = line.rstrip("\n").partition(" - ")
    return {*left.split(" ")[5].split(","), *right.split(" ")[2].split(",")}


# What works


def test_files_are_the_users(mount: Mount, user: int) -> None:
    script = """
import os, sys
os.chdir(sys.argv[1])
os.mkdir("dir")
with open("dir/file", "w") as file:
    file.write("content" * 100_000)
os.symlink("dir/file", "link")
os.link("dir/file", "hard")
os.rename("dir/file", "dir/renamed")
os.setxattr("hard", "user.name", b"value")
os.chmod("hard", 0o640)
os.truncate("hard", 7)
os.utime("hard", ns=(0, 10**18))
os.mkfifo("fifo")
print(open("hard").read(), sorted(os.listdir(".")), sorted(os.listdir("dir")))
"""
    told = as_user(user, script, mount.point, umask=0o027)
    assert told == "content ['dir', 'fifo', 'hard', 'link'] ['renamed']\n"
    file = mount.source / "dir" / "renamed"
    st = file.stat()
    assert (st.st_uid, st.st_gid, stat.S_IMODE(st.st_mode), st.st_mtime_ns) == (user, user, 0o640, 10**18)
    assert file.read_text() == "content"
    assert os.getxattr(file, "user.name") == b"value"
    assert stat.S_IMODE((mount.source / "dir").stat().st_mode) == 0o750


def test_files_of_others_stay_out_of_reach(mount: Mount, user: int) -> None:
    secret = mount.source / "secret"
    secret.write_text("root's")
    secret.chmod(0o600)
    script = """
import os, sys
path, uid = sys.argv[1], os.getuid()
for call in (lambda: open(path), lambda: os.chmod(path, 0o666), lambda: os.chown(path, uid, -1)):
    try:
        call()
    except PermissionError as error:
        print(error.errno)
"""
    assert len(as_user(user, script, mount.point / "secret").split()) == 3
    assert secret.read_text() == "root's"
    assert (secret.stat().st_uid, stat.S_IMODE(secret.stat().st_mode)) == (0, 0o600)


def test_git_clone(mount: Mount, user: int, harness: Harness) -> None:
    script = """
set -e
cd "$1"
export HOME="$1" GIT_CONFIG_SYSTEM=/dev/null
git init -q -b main first
cd first
for number in $(seq 100); do echo "$number" > "file$number"; done
git add -A
git -c user.name=a -c user.email=a@example.org commit -qm first
cd ..
git clone -q first second
cd second
git fsck --full --strict
git gc -q
git status --porcelain
ls | wc -l
"""
    told = harness.run_program("sh", "-c", script, "sh", mount.point, **become(user))
    assert told == "100\n"
    assert len(list((mount.source / "second").iterdir())) == 101


def test_umount_by_our_command(mount: Mount, user: int) -> None:
    assert mount.pid is not None
    result = run("umount", mount.point, user=user)
    assert (result.returncode, result.stderr) == (0, "")
    assert not is_mounted(mount.point)
    assert ended(mount.pid)


def test_umount_while_it_is_in_use(mount: Mount, user: int) -> None:
    assert mount.pid is not None
    script = "import os, sys; os.chdir(sys.argv[1]); f = open('f', 'w'); print(1, flush=True); input()"
    with subprocess.Popen([sys.executable, "-c", script, mount.point], stdin=-1, stdout=-1, **become(user)) as process:  # type: ignore[call-overload]
        assert process.stdout.readline() == b"1\n"
        result = run("umount", mount.point, user=user)
        assert (result.returncode, result.stderr) == (0, "")
        assert not is_mounted(mount.point)
        assert ended(mount.pid)
        process.communicate(b"\n")


@pytest.mark.parametrize("options", [(), ("-o", "auto_unmount")])
def test_umount_by_fusermount3(harness: Harness, user: int, options: tuple[str, ...]) -> None:
    mount = harness.mount(*options, user=user)
    assert mount.pid is not None
    harness.run_program("fusermount3", "-u", mount.point, **become(user))
    assert not is_mounted(mount.point)
    assert ended(mount.pid)


@pytest.mark.parametrize("options", [(), ("-o", "auto_unmount")])
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_signals_end_it(harness: Harness, user: int, number: signal.Signals, options: tuple[str, ...]) -> None:
    mount = harness.mount(*options, user=user)
    assert mount.pid is not None
    os.kill(mount.pid, number)
    assert ended(mount.pid, 20)
    assert not is_mounted(mount.point)


def test_root_unmounts_a_users_mount(mount: Mount) -> None:
    assert mount.pid is not None
    assert run("umount", mount.point).returncode == 0
    assert not is_mounted(mount.point)
    assert ended(mount.pid)


def test_a_dead_mount_is_cleared_by_its_owner(mount: Mount, user: int) -> None:
    assert mount.pid is not None
    os.kill(mount.pid, signal.SIGKILL)
    assert ended(mount.pid)
    assert is_mounted(mount.point)
    line = refusal(run("mount", mount.source, mount.point, user=user), exitcodes.MOUNTPOINT)
    assert f"passthrough umount {mount.point}" in line
    result = run("umount", mount.point, user=user)
    assert (result.returncode, result.stderr) == (0, "")
    assert not is_mounted(mount.point)


def test_auto_unmount(harness: Harness, user: int) -> None:
    mount = harness.mount("-o", "auto_unmount", user=user)
    assert mount.pid is not None
    as_user(user, "import os, sys; os.listdir(sys.argv[1])", mount.point)
    os.kill(mount.server, signal.SIGKILL)
    wait_until(lambda: not is_mounted(mount.point), "the mount is gone")


def test_auto_unmount_leaves_no_child_behind(harness: Harness, user: int) -> None:
    mount = harness.mount("-o", "auto_unmount", user=user)
    assert len(children_of(mount.pid)) == 1
    assert children_of(mount.server) == []


def children_of(pid: int | None) -> list[str]:
    """The state and name of a process's children."""
    found = []
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            name, _, rest = path.read_text().rpartition(")")
        except OSError:
            continue
        if rest.split()[1] == str(pid):
            found.append(f"{name}) {rest.split()[0]}")
    return found


def test_two_mounts_of_one_user(harness: Harness, user: int) -> None:
    first, second = harness.mount(user=user), harness.mount(user=user)
    as_user(user, "import sys; [open(name + '/file', 'w').close() for name in sys.argv[1:]]", first.point, second.point)
    assert run("umount", first.point, user=user).returncode == 0
    assert is_mounted(second.point)
    assert as_user(user, "import os, sys; print(os.listdir(sys.argv[1]))", second.point) == "['file']\n"


def test_foreground_debug(harness: Harness, user: int) -> None:
    mount = Mount(harness.directory("source"), harness.directory("mount"))
    harness.mounts.append(mount)
    for path in (mount.source, mount.point):
        os.chown(path, user, user)
    command = ["-m", "passthrough", "mount", "-f", "-o", "debug", str(mount.source), str(mount.point)]
    with subprocess.Popen([sys.executable, *command], stderr=-1, text=True, **become(user)) as process:  # type: ignore[call-overload]
        wait_until(lambda: is_mounted(mount.point) or process.poll() is not None, "mounted")
        as_user(user, "import os, sys; os.mkdir(sys.argv[1] + '/new')", mount.point)
        process.send_signal(signal.SIGINT)
        _, log = process.communicate(timeout=20)
    assert process.returncode == exitcodes.OK
    assert f" MKDIR node=1 mode=511 umask=18 'new' uid={user} gid={user} " in log
    assert not is_mounted(mount.point)


# Who else sees it


def test_nobody_else_sees_it(mount: Mount, user: int) -> None:
    assert may_list(user, mount.point)
    assert not may_list(OTHER, mount.point)
    assert not may_list(None, mount.point)


@pytest.mark.usefixtures("no_user_allow_other")
@pytest.mark.parametrize("word", ["allow_other", "allow_root"])
def test_allow_other_is_left_out_and_said(harness: Harness, user: int, word: str) -> None:
    mount, said = mounted(harness, user, "-o", word)
    assert said.count("allow_other (") == 1
    assert "user_allow_other" in said
    assert "/etc/fuse.conf" in said
    assert "allow_other" not in super_options(mount)
    assert may_list(user, mount.point)
    assert not may_list(OTHER, mount.point)
    assert not may_list(None, mount.point)


@pytest.mark.usefixtures("user_allow_other")
def test_allow_other_where_it_is_allowed(harness: Harness, user: int) -> None:
    mount, said = mounted(harness, user, "-o", "allow_other")
    assert said == ""
    assert "allow_other" in super_options(mount)
    assert all(may_list(uid, mount.point) for uid in (user, OTHER, None))
    (mount.source / "private").write_text("")
    (mount.source / "private").chmod(0o600)
    with pytest.raises(AssertionError, match="PermissionError"):
        as_user(OTHER, "import sys; open(sys.argv[1])", mount.point / "private")


def test_a_comment_in_fuse_conf_hides_nothing(harness: Harness, user: int, user_allow_other: Path) -> None:
    user_allow_other.write_text("  user_allow_other  # said the administrator\n")
    mount, said = mounted(harness, user, "-o", "allow_other")
    assert said == ""
    assert "allow_other" in super_options(mount)


def test_in_a_namespace_of_the_users(harness: Harness, pair: tuple[Path, Path], user: int) -> None:
    """As a rootless container has it: root there, and an ordinary user outside."""
    script = """
set -e
mount -t tmpfs none /run
"$@"
echo content > "$MNT/file"
stat -c %u:%g "$MNT/file"
chown 0:0 "$MNT/file"
grep -c " $MNT .* fuse.passthrough " /proc/self/mountinfo
"$PYTHON" -m passthrough umount "$MNT"
grep -c " $MNT " /proc/self/mountinfo || :
"""
    source, point = pair
    words = ["unshare", "--user", "--map-root-user", "--mount", "sh", "-c", script, "sh", *command("mount", *pair)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "MNT": str(point), "PYTHON": sys.executable}
    told = harness.run_program(*words, **become(user), env=environment, cwd=ROOT)
    assert told.split() == ["0:0", "1", "0"]
    assert (source / "file").read_text() == "content\n"
    assert (source / "file").stat().st_uid == user


@pytest.mark.usefixtures("user_allow_other")
def test_allow_root_where_it_is_allowed(harness: Harness, user: int) -> None:
    mount, said = mounted(harness, user, "-o", "allow_root")
    assert said == ""
    assert may_list(user, mount.point)
    assert may_list(None, mount.point)
    assert not may_list(OTHER, mount.point)


@pytest.mark.usefixtures("no_user_allow_other")
def test_suid_and_dev_are_left_out_and_said(harness: Harness, user: int) -> None:
    mount, said = mounted(harness, user, "-o", "suid,dev,allow_other")
    assert len(said.splitlines()) == 1
    assert " suid (" in said
    assert " dev (" in said
    assert "allow_other (" in said
    assert {"nosuid", "nodev"} <= super_options(mount)


def test_options_that_a_user_may_have(harness: Harness, user: int) -> None:
    mount, said = mounted(harness, user, "-o", r"ro,noexec,noatime,sync,max_read=65536,fsname=a\,b,subtype=sub")
    assert said == ""
    assert {"ro", "noexec", "noatime", "nosuid", "nodev", "max_read=65536"} <= super_options(mount)
    assert " - fuse.sub a,b " in str(mount_line(mount.point))


def mounted(harness: Harness, user: int, *options: str) -> tuple[Mount, str]:
    """A mount by the user, and what the command said on standard error."""
    mount = Mount(harness.directory("source"), harness.directory("mount"))
    harness.mounts.append(mount)
    for path in (mount.source, mount.point):
        os.chown(path, user, user)
    result = run("mount", *options, mount.source, mount.point, user=user)
    assert result.returncode == 0, result.stderr
    mount.pid = daemon_pid(mount.point, user)
    return mount, result.stderr


# What is refused


@pytest.fixture
def pair(harness: Harness, user: int) -> tuple[Path, Path]:
    """A source and a mount point of the user's."""
    paths = harness.directory("source"), harness.directory("mount")
    for path in paths:
        os.chown(path, user, user)
    return paths


def test_device_that_the_user_may_not_open(pair: tuple[Path, Path], user: int) -> None:
    setup = "mount -t tmpfs none /mnt; mknod -m 600 /mnt/fuse c 10 229; mount --bind /mnt/fuse /dev/fuse"
    line = refusal(apart(setup, "mount", *pair, user=user), exitcodes.NO_DEVICE)
    assert "chmod 0666 /dev/fuse" in line
    assert "ermission denied" in line


def test_device_missing(pair: tuple[Path, Path], user: int) -> None:
    setup = "mount -t tmpfs -o mode=755 none /dev; mknod /dev/null c 1 3; chmod 666 /dev/null"
    assert "modprobe fuse" in refusal(apart(setup, "mount", *pair, user=user), exitcodes.NO_DEVICE)


def test_fusermount3_missing(pair: tuple[Path, Path], user: int) -> None:
    setup = "mount --bind /dev/null /usr/bin/fusermount3"
    line = refusal(apart(setup, "mount", *pair, user=user), exitcodes.NO_HELPER)
    assert "fuse3" in line


def test_fusermount3_is_found_without_a_path(harness: Harness, pair: tuple[Path, Path], user: int) -> None:
    mount = Mount(*pair)
    harness.mounts.append(mount)
    words = [sys.executable, "-m", "passthrough", "mount", *map(str, pair)]
    subprocess.run(words, env={"PATH": "/nowhere"}, check=True, **become(user))  # type: ignore[call-overload]
    assert is_mounted(mount.point)
    mount.pid = daemon_pid(mount.point, user)


def test_fusermount3_that_is_not_set_uid(pair: tuple[Path, Path], user: int) -> None:
    setup = "mount -t tmpfs none /mnt; cp /usr/bin/fusermount3 /mnt; mount --bind /mnt/fusermount3 /usr/bin/fusermount3"
    refusal(apart(setup, "mount", *pair, user=user), exitcodes.PERMISSION)


def test_a_mountpoint_of_somebody_elses(pair: tuple[Path, Path], user: int) -> None:
    os.chown(pair[1], 0, 0)
    line = refusal(run("mount", *pair, user=user), exitcodes.PERMISSION)
    assert str(pair[1]) in line
    assert not is_mounted(pair[1])


def test_umount_of_somebody_elses_mount(harness: Harness, user: int) -> None:
    mount = harness.mount("-o", "allow_other")
    refusal(run("umount", mount.point, user=user), exitcodes.PERMISSION)
    assert is_mounted(mount.point)


@pytest.mark.usefixtures("user_allow_other")
def test_too_many_mounts(pair: tuple[Path, Path], user: int) -> None:
    setup = (
        "mount -t tmpfs -o mode=755 none /mnt; echo mount_max = 0 > /mnt/fuse.conf;"
        "mount --bind /mnt/fuse.conf /etc/fuse.conf"
    )
    line = refusal(apart(setup, "mount", *pair, user=user), exitcodes.MOUNT_FAILED)
    assert "mount_max" in line


def test_runtime_directory_of_somebody_else(harness: Harness, pair: tuple[Path, Path], user: int) -> None:
    roots = harness.directory("runtime") / "passthrough"
    roots.mkdir()
    line = refusal(apart(f"export XDG_RUNTIME_DIR={roots.parent}", "mount", *pair, user=user), exitcodes.SYSTEM)
    assert str(roots) in line
    assert not is_mounted(pair[1])
