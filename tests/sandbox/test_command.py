"""The sandbox of a mount, as the command makes it: what it says, what it refuses, and what the daemon then is."""

import os
import pwd
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from passthrough import exitcodes
from sandbox import capabilities
from tests.mounted.harness import (
    ROOT,
    TIMEOUT_S,
    Harness,
    Mount,
    background,
    command,
    daemon_pid,
    is_mounted,
    processes_about,
    refusal,
    run,
    unexpected,
    wait_until,
)

SYS_ADMIN, LINUX_IMMUTABLE, MKNOD = 1 << 21, 1 << 9, 1 << 27
KEPT = 0x880000DB


def status(mount: Mount, field: str) -> str:
    """A line of the daemon's /proc/PID/status."""
    text = Path(f"/proc/{mount.server}/status").read_text()
    found = re.search(rf"^{field}:[ \t]*(.*?) *$", text, re.MULTILINE)
    assert found
    return found[1]


def sets(mount: Mount) -> set[int]:
    """The values of the permitted, effective and bounding sets, which must agree; the others must be empty."""
    assert {int(status(mount, name), 16) for name in ("CapInh", "CapAmb")} == {0}
    return {int(status(mount, name), 16) for name in ("CapPrm", "CapEff", "CapBnd")}


# What the daemon is


def test_the_kept_are_those_of_the_manual() -> None:
    names = "CHOWN DAC_OVERRIDE FOWNER FSETID SETGID SETUID MKNOD SETFCAP"
    assert set(capabilities.KEPT) == set(names.split())


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ((), KEPT | SYS_ADMIN),
        (("passthrough=off",), KEPT),
        (("writeback",), KEPT),
        (("passthrough=off", "modcaps=+linux_immutable:-mknod"), (KEPT | LINUX_IMMUTABLE) & ~MKNOD),
        (("passthrough=off", "sandbox=chroot"), KEPT),
        (("passthrough=off", "sandbox=landlock"), KEPT),
        (("passthrough=off", "sandbox=none"), KEPT),
    ],
)
def test_capabilities(harness: Harness, options: tuple[str, ...], expected: int) -> None:
    mount = harness.mount(*(["-o", ",".join(options)] if options else []))
    assert sets(mount) == {expected}
    assert status(mount, "NoNewPrivs") == "1"
    assert status(mount, "Groups") == ""


def test_a_users_daemon_has_no_capability(harness: Harness, user: int) -> None:
    mount = harness.mount(user=user)
    assert sets(mount) == {0}
    assert status(mount, "Seccomp") == "2"
    assert os.readlink(f"/proc/{mount.server}/ns/user") != os.readlink("/proc/self/ns/user")


@pytest.mark.parametrize("word", ["none", "log", "errno", "kill"])
def test_seccomp(harness: Harness, word: str) -> None:
    mount = harness.mount("--seccomp", word)
    assert status(mount, "Seccomp") == ("0" if word == "none" else "2")
    (mount.point / "file").write_text("content")
    assert (mount.source / "file").read_text() == "content"


def mounts_of(pid: int) -> list[list[str]]:
    """The mounts in a process's namespace: fields of mountinfo."""
    return [line.split() for line in Path(f"/proc/{pid}/mountinfo").read_text().splitlines()]


@pytest.mark.parametrize("ordinary", [False, True], ids=["root", "user"])
def test_the_share_is_all_that_is_mounted(harness: Harness, ordinary: bool, request: pytest.FixtureRequest) -> None:
    mount = harness.mount(user=request.getfixturevalue("user") if ordinary else None)
    (only,) = mounts_of(mount.server)
    assert only[4] == "/"
    assert {"nosuid", "nodev"} <= set(only[5].split(","))
    assert os.readlink(f"/proc/{mount.server}/root") == "/"
    assert os.listdir(f"/proc/{mount.server}/root/") == os.listdir(mount.source)


@pytest.mark.parametrize("where", ["point", "."])
@pytest.mark.parametrize("propagation", ["private", "shared"])
def test_a_mount_within_the_share_is_not_in_the_sandbox(harness: Harness, where: str, propagation: str) -> None:
    """A copy of our own mount would keep the daemon alive after the unmount, and wait for itself."""
    source = harness.directory("source")
    harness.run_program("mount", "--bind", source.parent, source.parent)
    harness.cleanups.append(lambda: subprocess.run(["umount", "-lR", source.parent], check=True))
    harness.run_program("mount", f"--make-{propagation}", source.parent)
    (source / "point").mkdir()
    mount = harness.mount("--nonempty", source=source, point=source / where)
    assert [fields[4] for fields in mounts_of(mount.server)] == ["/"]
    assert os.listdir(mount.point) == ["point"]
    assert os.listdir(mount.point / "point") == []
    mount.umount()


def test_read_only_is_read_only_inside(harness: Harness) -> None:
    (only,) = mounts_of(harness.mount("-o", "ro").server)
    assert "ro" in only[5].split(",")


def test_the_share_is_seen_where_its_later_mounts_are(harness: Harness) -> None:
    """What is mounted below SRC later comes along where its mounts are shared, as systemd makes them."""
    source = harness.directory("source")
    (source / "later").mkdir()
    harness.run_program("mount", "--bind", source, source)
    harness.cleanups.append(lambda: subprocess.run(["umount", "-lR", source], check=True))
    harness.run_program("mount", "--make-shared", source)
    mount = harness.mount(source=source)
    harness.run_program("mount", "-t", "tmpfs", "none", source / "later")
    (source / "later" / "file").touch()
    wait_until(lambda: os.listdir(mount.point / "later") == ["file"], "the later mount is seen")


def test_nobody_may_look_into_the_daemon(harness: Harness, user: int) -> None:
    """Not dumpable: an ordinary user's own daemon belongs to root in /proc."""
    mount = harness.mount(user=user)
    assert os.stat(f"/proc/{mount.server}/environ").st_uid == 0
    with pytest.raises(subprocess.CalledProcessError):
        subprocess.run(["cat", f"/proc/{mount.server}/maps"], check=True, user=user, group=user, stdout=-3, stderr=-3)


def test_the_limit_of_files(harness: Harness) -> None:
    mount = harness.mount("--rlimit-nofile=777")
    limits = Path(f"/proc/{mount.server}/limits").read_text()
    assert re.search(r"^Max open files +777 +777 ", limits, re.MULTILINE)
    assert re.search(r"^Max core file size +0 +0 ", limits, re.MULTILINE)


# What is said


@pytest.mark.parametrize("mode", ["namespace", "chroot", "landlock", "none"])
def test_explain_prints_the_plan_and_does_nothing(harness: Harness, mode: str) -> None:
    source, point = harness.directory("source"), harness.directory("mount")
    result = run("mount", "--sandbox-explain", "-o", f"sandbox={mode}", source, point)
    assert (result.returncode, result.stderr) == (0, "")
    lines = result.stdout.splitlines()
    assert all(re.match(rf"{number}\. \S", line) for number, line in enumerate(lines, 1))
    assert ("pivot_root" in result.stdout) == (mode == "namespace")
    assert ("chroot" in result.stdout) == (mode == "chroot")
    assert "seccomp" in lines[-1]
    assert not is_mounted(point)
    assert processes_about(point) == []


def test_what_is_explained_is_what_is_done(harness: Harness) -> None:
    """Each step of the plan is one that a failure would name: the last but the filter is to die with the keeper."""
    result = run("mount", "--sandbox-explain", harness.directory("source"), harness.directory("mount"))
    order = [
        "RLIMIT_NOFILE",
        "namespaces",
        "pivot_root",
        "caller's mount namespace",
        "no_new_privs",
        "capabilities",
        "seccomp",
    ]
    places = [result.stdout.index(word) for word in order]
    assert places == sorted(places)


@pytest.mark.parametrize(("option", "said"), [("sandbox=none", "sandbox=none"), ("seccomp=log", "seccomp=log")])
def test_what_is_weak_is_said_aloud(harness: Harness, option: str, said: str) -> None:
    source, point = harness.directory("source"), harness.directory("mount")
    harness.mounts.append(Mount(source, point))
    result = run("mount", "-o", option, source, point)
    assert result.returncode == 0
    assert re.match(rf"passthrough: WARNING: {said}: .*\n", result.stderr)
    assert run("umount", point).returncode == 0


def test_the_default_says_nothing(harness: Harness) -> None:
    source, point = harness.directory("source"), harness.directory("mount")
    harness.mounts.append(Mount(source, point))
    result = run("mount", source, point)
    assert (result.returncode, result.stdout, result.stderr) == (0, "", "")


def test_spellings(harness: Harness) -> None:
    for words in (["--sandbox=chroot"], ["--sandbox", "chroot"], ["-o", "sandbox=chroot"]):
        mount = harness.mount(*words)
        assert os.readlink(f"/proc/{mount.server}/ns/mnt") == os.readlink("/proc/self/ns/mnt")
        assert os.readlink(f"/proc/{mount.server}/root") == str(mount.source)


# What is refused


def without_admin(*words: str | Path) -> subprocess.CompletedProcess[str]:
    """Our command as root without CAP_SYS_ADMIN, as in a container."""
    drop = ["setpriv", "--bounding-set=-sys_admin", "--inh-caps=-sys_admin"]
    return subprocess.run(
        [*drop, *command(*words)], capture_output=True, text=True, check=False, cwd=ROOT, timeout=TIMEOUT_S
    )


def test_a_namespace_that_cannot_be_had_is_an_error(harness: Harness) -> None:
    source, point = harness.directory("source"), harness.directory("mount")
    line = refusal(without_admin("mount", "--passthrough=off", source, point), exitcodes.SANDBOX)
    assert "make mount, pid, network, ipc and uts namespaces" in line
    assert "unshare(0x6c020000): Operation not permitted" in line
    assert "likely cause: no CAP_SYS_ADMIN" in line
    assert not is_mounted(point)
    assert processes_about(point) == []


@pytest.mark.parametrize("limit", [4, 8, 16])
def test_too_few_open_files_for_the_sandbox_are_said_to_be_the_cause(harness: Harness, limit: int) -> None:
    words = ("mount", f"--rlimit-nofile={limit}", harness.directory("source"), harness.directory("mount"))
    line = refusal(run(*words), exitcodes.SANDBOX)
    assert line.endswith("likely cause: the limit of open files (RLIMIT_NOFILE) is too low\n")


def test_ids_that_one_may_not_have_are_the_cause_and_no_other(harness: Harness) -> None:
    """Said before /dev/fuse is opened, so the user need not be one who may open it."""
    source, point = harness.directory("source"), harness.directory("mount")
    user = pwd.getpwnam("nobody").pw_uid
    os.chown(point, user, user)
    line = refusal(run("mount", "--uid-map=:1:1:1:", source, point, user=user), exitcodes.SANDBOX)
    assert "/etc/subuid" in line
    assert "likely cause" not in line


def test_a_user_namespace_that_is_switched_off_is_an_error(harness: Harness, user: int) -> None:
    """In a user namespace of its own the switch is that namespace's, and not the machine's."""
    source, point = harness.directory("source"), harness.directory("mount")
    for path in (source, point):
        os.chown(path, user, user)
    shell = 'echo 0 > /proc/sys/user/max_user_namespaces; exec setpriv --ambient-caps=-all --inh-caps=-all "$@"'
    words = ["unshare", "--user", "--map-current-user", "--keep-caps", "sh", "-ec", shell, "sh"]
    result = subprocess.run(
        [*words, *command("mount", source, point)],
        user=user,
        group=user,
        extra_groups=[],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "PYTHONPATH": str(ROOT), "PYTHONDONTWRITEBYTECODE": "1"},
        timeout=TIMEOUT_S,
    )
    line = refusal(result, exitcodes.SANDBOX)
    assert "make a user namespace" in line
    assert "user.max_user_namespaces" in line
    assert not is_mounted(point)


def test_chroot_is_for_root(harness: Harness, user: int) -> None:
    source, point = harness.directory("source"), harness.directory("mount")
    for path in (source, point):
        os.chown(path, user, user)
    line = refusal(run("mount", "--sandbox=chroot", source, point, user=user), exitcodes.SANDBOX)
    assert "(chroot)" in line
    assert "chroot is for root" in line
    assert not is_mounted(point)


def test_a_limit_that_nobody_may_have(harness: Harness) -> None:
    source, point = harness.directory("source"), harness.directory("mount")
    line = refusal(run("mount", f"--rlimit-nofile={1 << 31}", source, point), exitcodes.SANDBOX)
    assert f"allow {1 << 31} open files (RLIMIT_NOFILE)" in line
    assert "ulimit -Hn" in line
    assert not is_mounted(point)


def test_too_few_files_for_the_daemon_itself(harness: Harness) -> None:
    source, point = harness.directory("source"), harness.directory("mount")
    line = refusal(run("mount", "--rlimit-nofile=80", source, point), exitcodes.SYSTEM)
    assert "80 open files are too few" in line
    assert not is_mounted(point)
    assert processes_about(point) == []


def test_a_capability_that_this_process_does_not_have(harness: Harness) -> None:
    source, point = harness.directory("source"), harness.directory("mount")
    drop = ["setpriv", "--bounding-set=-sys_boot", "--inh-caps=-sys_boot"]
    result = subprocess.run(
        [*drop, *command("mount", "--modcaps=+sys_boot", source, point)],
        capture_output=True,
        text=True,
        check=False,
        cwd=ROOT,
        timeout=TIMEOUT_S,
    )
    assert "this process has no SYS_BOOT" in refusal(result, exitcodes.SANDBOX)
    assert not is_mounted(point)


def test_a_library_that_is_missing_is_named(harness: Harness) -> None:
    source, point = harness.directory("source"), harness.directory("mount")
    for module, package in ("capng", "python3-cap-ng"), ("seccomp", "python3-seccomp"), ("prctl", "python3-prctl"):
        script = f"import sys; sys.modules.update({{{module!r}: None, 'pyseccomp': None}})\n"
        script += "from passthrough.cli import main; sys.exit(main())"
        words = [sys.executable, "-c", script, "mount", str(source), str(point)]
        result = subprocess.run(words, capture_output=True, text=True, check=False, cwd=ROOT, timeout=TIMEOUT_S)
        assert f"apt install {package}" in refusal(result, exitcodes.SANDBOX)
        assert not is_mounted(point)


def test_id_maps_of_a_user(harness: Harness, user: int) -> None:
    maps = f"uid_map=:{user}:{user}:1:,gid_map=:{user}:{user}:1:"
    mount = harness.mount("-o", maps, user=user)
    assert Path(f"/proc/{mount.server}/uid_map").read_text().split() == [str(user), str(user), "1"]


def test_ids_that_differ_inside_are_refused_for_a_mount(harness: Harness, user: int) -> None:
    source, point = harness.directory("source"), harness.directory("mount")
    for path in (source, point):
        os.chown(path, user, user)
    line = refusal(run("mount", f"--uid-map=:0:{user}:1:", source, point, user=user), exitcodes.USAGE)
    assert "uid_map" in line


# Python's own traps

AUDIT = """
import os, sys
sys.path.insert(0, sys.argv[1])
entered = False

def hook(event, arguments):
    global entered
    if event == "sandbox.entered":
        entered = True
    elif entered and event == "import":
        os.write(2, f"AFTER import {arguments[0]}\\n".encode())
    elif entered and event == "open" and not isinstance(arguments[0], int):
        path = os.fsencode(arguments[0])
        if path.startswith(b"/"):
            os.write(2, b"AFTER open " + path + b"\\n")

from passthrough import share
from passthrough.cli import main

class Faulty(share.Tree):
    def getxattr(self, ctx, nodeid, name):
        if name == b"user.faulty":
            raise ValueError("nobody expects this")
        if name == b"user.import":
            import wave
        if name == b"user.open":
            open("/etc/passwd")
        return super().getxattr(ctx, nodeid, name)

share.Tree = Faulty
sys.addaudithook(hook)
sys.exit(main(["mount", "-f", *sys.argv[4:], sys.argv[2], sys.argv[3]]))
"""


@pytest.mark.parametrize("options", [(), ("-o", "passthrough=off,flock,posix_lock,cache=never,threads=4")])
def test_nothing_is_imported_or_opened_afterwards(harness: Harness, options: tuple[str, ...]) -> None:
    """And a traceback of then has its source lines all the same. Two requests that do it show that it would be seen."""
    mount = Mount(harness.directory("source"), harness.directory("mount"))
    harness.mounts.append(mount)
    log = harness.base / "log"
    words = [sys.executable, "-c", AUDIT, str(ROOT), str(mount.source), str(mount.point), *options]
    with log.open("w") as file, background(*words, stderr=file) as process:
        wait_until(lambda: is_mounted(mount.point) or process.poll() is not None, "mounted")
        use(mount.point)
        with pytest.raises(OSError, match="Input/output"):
            os.getxattr(mount.point / "file", "user.faulty")
        before = log.read_text()
        for name in ("user.import", "user.open"):
            with pytest.raises(OSError, match=r"."):
                os.getxattr(mount.point / "file", name)
        process.send_signal(signal.SIGTERM)
        assert process.wait(TIMEOUT_S) == exitcodes.OK
    assert "AFTER" not in before, before
    assert re.search(r'calls\.py", line \d+, in .*\n    \S', before), before
    after = log.read_text()
    assert "AFTER import wave" in after
    assert "AFTER open /etc/passwd" in after


def use(point: Path) -> None:
    """A little of everything, by other processes too."""
    script = """
set -e
cd "$1"
mkdir dir; echo content > file; cat file; ln file hard; ln -s file soft; mv file moved; mv moved file
setfattr -n user.a -v b file; getfattr -d file; touch -d @1 file; chmod 4711 file; chown 1:1 file; stat -f .
truncate -s 100 file; fallocate -l 200 file; cp file copy; flock file true; mkfifo fifo; mknod null c 1 3
ls -lR; sync file; rm -r dir copy fifo null hard soft; getfattr -n user.none file || :; cat none || :
"""
    subprocess.run(["sh", "-c", script, "sh", point], check=True, capture_output=True, timeout=TIMEOUT_S)


# By mount(8)


def test_fstab_may_say_it(harness: Harness) -> None:
    source, point = harness.directory("source"), harness.directory("mount")
    harness.mounts.append(Mount(source, point))
    result = run(source, point, "-o", "sandbox=landlock,seccomp=kill,noauto,x-systemd.automount")
    assert (result.returncode, unexpected(result.stderr)) == (0, "")
    mount = Mount(source, point, daemon_pid(point))
    assert os.readlink(f"/proc/{mount.server}/ns/mnt") == os.readlink("/proc/self/ns/mnt")
    assert status(mount, "Seccomp") == "2"


@pytest.mark.parametrize("mode", ["namespace", "chroot", "landlock", "none"])
@pytest.mark.parametrize("where", ["point", "."])
def test_the_covered_directory_is_seen_in_every_mode(harness: Harness, mode: str, where: str) -> None:
    """The mount lies in what it shows: what it covers is shown there, and the daemon does not wait for itself."""
    source = harness.directory("source")
    (source / "point").mkdir()
    (source / "point" / "covered").write_text("covered")
    mount = harness.mount("--nonempty", f"--sandbox={mode}", source=source, point=source / where)
    shown = mount.point / "point"
    assert (shown / "covered").read_text() == "covered"
    (shown / "new").write_text("new")
    mount.umount()
    assert (source / "point" / "new").read_text() == "new"


def test_without_dac_override_files_are_still_made(harness: Harness, user: int) -> None:
    """Whoever takes it away leaves the rest of acting as a user whole."""
    mount = harness.mount("-o", "allow_other,modcaps=-dac_override,passthrough=off")
    mount.source.chmod(0o777)
    subprocess.run(["touch", mount.point / "file"], check=True, user=user, group=user, extra_groups=[])
    assert (mount.source / "file").stat().st_uid == user
