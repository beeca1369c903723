"""What a confined process can reach: looked at from inside, for root and for an ordinary user, mode by mode."""

import contextlib
import ctypes
import os
import resource
import signal
import socket
import struct
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import sandbox
from sandbox import capabilities, landlock, limits, syscalls
from sandbox.limits import default_nofile

from .inside import entered, report

CLOSED = [("namespace", False), ("namespace", True), ("chroot", False)]
"""Modes whose root is the share, and whether an ordinary user enters."""
WALLED = [*CLOSED, ("landlock", False), ("landlock", True)]
BITS = {
    name: bit for bit, name in enumerate("CHOWN DAC_OVERRIDE DAC_READ_SEARCH FOWNER FSETID KILL SETGID SETUID".split())
}
BITS |= {"SYS_ADMIN": 21, "SYS_TIME": 25, "MKNOD": 27, "SETFCAP": 31}


def bits(names: frozenset[str] | tuple[str, ...]) -> int:
    return sum(1 << BITS[name] for name in names)


@pytest.fixture
def who(request: pytest.FixtureRequest, nobody: int) -> int | None:
    return nobody if request.param else None


both = pytest.mark.parametrize("who", [False, True], indirect=True, ids=["root", "user"])
closed = pytest.mark.parametrize(("mode", "who"), CLOSED, indirect=["who"])
walled = pytest.mark.parametrize(("mode", "who"), WALLED, indirect=["who"])


# Paths


PATHS = """
def read(path, **more):
    fd = os.open(path, os.O_RDONLY, **more)
    return os.read(fd, 100).decode()
share, secret = words
found["/"] = attempt(lambda: sorted(os.listdir("/")))
found["file"] = attempt(lambda: read("/file"))
up = "../" * 20
ways = {
    "absolute": lambda: read(secret),
    "etc": lambda: read("/etc/passwd"),
    "dots": lambda: read("/" + up + secret),
    "root descriptor": lambda: read(up + secret, dir_fd=inside.root),
    "proc descriptor": lambda: read(up + secret, dir_fd=inside.proc),
    "proc root": lambda: read("../root" + secret, dir_fd=inside.proc),
    "working directory": lambda: read(up + secret),
    "proc 1": lambda: read("/proc/1/root" + secret),
    "proc self": lambda: read("/proc/self/root" + secret),
    "proc cwd": lambda: read("/proc/1/cwd/" + secret),
    "device": lambda: read("/dev/null"),
    "sys": lambda: os.listdir("/sys"),
}
found["ways"] = {name: attempt(way) for name, way in ways.items()}
"""


@closed
def test_no_path_leads_out_of_the_share(mode: str, who: int | None, share: Path) -> None:
    """Without Landlock: the root alone must do it."""
    secret = str(share.parent / "secret")
    found = report(PATHS, str(share), secret, mode=mode, user=who, path=share, landlock="off")
    assert found["/"] == ["dir", "file"]
    assert found["file"] == "shared"
    assert set(found["ways"].values()) <= {"ENOENT", "EACCES", "ENOTDIR"}, found["ways"]


_NO_SUCH_CALL = """
from sandbox import syscalls
from sandbox.plan import CallError
def missing(*_):
    raise CallError("open_tree", 38)
syscalls.open_tree = syscalls.move_mount = syscalls.mount_setattr = missing
"""


@pytest.mark.parametrize("who", [False, True], indirect=True, ids=["root", "user"])
def test_the_same_by_bind_mounts_where_the_kernel_is_older(who: int | None, share: Path) -> None:
    secret = str(share.parent / "secret")
    found = report(PATHS, str(share), secret, user=who, path=share, landlock="off", patch=_NO_SUCH_CALL)
    assert found["/"] == ["dir", "file"]
    assert found["file"] == "shared"
    assert set(found["ways"].values()) <= {"ENOENT", "EACCES", "ENOTDIR"}, found["ways"]


def test_chroot_without_a_mount_for_proc_says_so(share: Path) -> None:
    found = report("pass", mode="chroot", path=share, patch=_NO_SUCH_CALL)
    assert any("put it on a mount of its own" in line for line in found["left out"])
    found = report("pass", mode="chroot", path=share)
    assert not any("put it on a mount of its own" in line for line in found["left out"])


@pytest.mark.parametrize("abi", [0, 1])
def test_a_kernel_without_landlock_is_an_error_where_it_is_asked_for(share: Path, abi: int) -> None:
    patch = f"from sandbox import syscalls\nsyscalls.landlock_abi = lambda: {abi}"
    each: tuple[dict[str, Any], ...] = ({"mode": "landlock"}, {"landlock": "on"})
    for wanted in each:
        with entered("pass", path=share, patch=patch, **wanted) as made:
            assert "landlock_create_ruleset" in made.found["refused"]
            assert "Linux 5.19" in made.found["refused"]
    assert "refused" not in report("pass", path=share, patch=patch, landlock="auto")


@pytest.mark.parametrize("abi", range(2, 7))
def test_older_landlocks_do_what_they_know(share: Path, abi: int) -> None:
    if syscalls.landlock_abi() < abi:
        pytest.skip(f"this kernel's Landlock is of version {syscalls.landlock_abi()}")
    patch = f"from sandbox import syscalls\nsyscalls.landlock_abi = lambda: {abi}"
    lines = """
found["out"] = attempt(lambda: open(words[0]).read())
found["in"] = attempt(lambda: open(words[1]).read())
found["said"] = sandbox.best_effort()
"""
    secret = str(share.parent / "secret")
    found = report(lines, secret, str(share / "file"), mode="landlock", path=share, patch=patch)
    assert (found["out"], found["in"]) == ("EACCES", "shared")
    assert bool(found["said"]) is (abi < 6)
    assert ("TCP" in found["said"]) is (abi < 4)


@walled
def test_landlock_walls_the_share_in(mode: str, who: int | None, share: Path) -> None:
    if not landlock.available():
        pytest.skip("this kernel has no Landlock of version 2 (Linux 5.19)")
    lines = """
def read(path):
    fd = os.open(path, os.O_RDONLY)
    return os.read(fd, 100).decode()
share, secret = words
root = "" if inside.root >= 0 else share
found["file"] = attempt(lambda: read(root + "/file"))
found["list"] = attempt(lambda: sorted(os.listdir(root or "/")))
found["write"] = attempt(lambda: open(root + "/new", "w").write("new"))
found["move"] = attempt(lambda: os.rename(root + "/new", root + "/dir/moved"))
found["out"] = attempt(lambda: read(secret))
found["list out"] = attempt(lambda: os.listdir("/etc"))
found["write out"] = attempt(lambda: open(os.path.dirname(secret) + "/new", "w"))
found["remove out"] = attempt(lambda: os.unlink(secret))
found["move out"] = attempt(lambda: os.rename(root + "/dir/moved", os.path.dirname(secret) + "/moved"))
"""
    os.chown(share.parent, *([who or 0] * 2))
    secret = share.parent / "secret"
    found = report(lines, str(share), str(secret), mode=mode, user=who, path=share, landlock="on")
    assert found["file"] == "shared"
    assert found["list"] == ["dir", "file"]
    assert (found["write"], found["move"]) == (3, None)
    assert {found[name] for name in ("out", "list out", "write out", "remove out", "move out")} <= {
        "EACCES",
        "ENOENT",
        "EXDEV",
    }, found
    assert secret.read_text() == "secret"


def handle_of(path: Path) -> tuple[int, bytes]:
    """name_to_handle_at(2): the handle's type and bytes."""
    buffer = ctypes.create_string_buffer(struct.pack("=Ii", 128, 0) + bytes(128))
    mount_id = ctypes.c_int()
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.name_to_handle_at(-100, os.fsencode(path), buffer, ctypes.byref(mount_id), 0) < 0:
        pytest.skip("the file system of the temporary files has no file handles")
    size, kind = struct.unpack_from("=Ii", buffer)
    return kind, buffer.raw[8 : 8 + size]


@walled
def test_no_handle_opens_a_foreign_file(mode: str, who: int | None, share: Path) -> None:
    kind, handle = handle_of(share.parent / "secret")
    lines = """
import struct
handle = ctypes.create_string_buffer(struct.pack("=Ii", len(words[1]) // 2, int(words[0])) + bytes.fromhex(words[1]))
libc = ctypes.CDLL(None, use_errno=True)
root = os.open("/" if inside.root >= 0 else words[2], os.O_RDONLY)
fd = libc.open_by_handle_at(root, handle, os.O_RDONLY)
found["it"] = os.read(fd, 100).decode() if fd >= 0 else errno.errorcode[ctypes.get_errno()]
"""
    found = report(
        lines,
        str(kind),
        handle.hex(),
        str(share),
        mode=mode,
        user=who,
        path=share,
        landlock="off" if mode != "landlock" else "on",
    )
    assert found["it"] == "EPERM"


@closed
def test_device_nodes_cannot_be_opened(mode: str, who: int | None, share: Path) -> None:
    if mode == "chroot":
        pytest.skip("chroot makes no mount that could be nodev")
    os.mknod(share / "null", 0o020666, os.makedev(1, 3))
    (share / "null").chmod(0o666)
    found = report('found["it"] = attempt(lambda: os.open("/null", os.O_RDWR))', mode=mode, user=who, path=share)
    assert found["it"] == "EACCES"
    assert os.open(share / "null", os.O_RDWR) >= 0


@both
@pytest.mark.parametrize("readonly", [False, True])
def test_read_only_means_the_mount(who: int | None, share: Path, readonly: bool) -> None:
    lines = 'found["it"] = attempt(lambda: os.mkdir("/new"))'
    found = report(lines, user=who, path=share, readonly=readonly)
    assert found["it"] == ("EROFS" if readonly else None)


@both
def test_mounts_below_the_share_come_along(who: int | None, share: Path) -> None:
    subprocess.run(["mount", "-t", "tmpfs", "none", share / "dir"], check=True)
    try:
        (share / "dir" / "deep").write_text("deep")
        lines = 'found["it"] = attempt(lambda: open("/dir/deep").read())'
        assert report(lines, user=who, path=share)["it"] == "deep"
    finally:
        subprocess.run(["umount", "-l", share / "dir"], check=True)


@both
@pytest.mark.parametrize("mode", ["namespace", "chroot"])
def test_a_directory_that_was_exchanged_is_refused(who: int | None, share: Path, mode: str) -> None:
    """The path was opened once, and must still lead there."""
    if who is not None and mode == "chroot":
        pytest.skip("chroot is for root")
    other = share.parent / "other"
    script = f"""
import os, sandbox
sandbox.load_libraries()
opened = os.open({str(share)!r}, os.O_PATH)
steps, inside = sandbox.plan(sandbox.Confinement(mode=sandbox.Mode({mode!r}), path={str(share)!r}, opened=opened))
os.rename({str(share)!r}, {str(other)!r})
os.mkdir({str(share)!r})
try:
    sandbox.enter(steps)
except sandbox.SandboxError as error:
    print(error, flush=True)
"""
    os.chown(share.parent, *([who or 0] * 2))
    become = {} if who is None else {"user": who, "group": who, "extra_groups": []}
    result = subprocess.run(
        ["/usr/bin/python3", "-B", "-c", script],
        capture_output=True,
        text=True,
        check=False,
        cwd=Path(__file__).parents[2],
        **become,
    )  # type: ignore[call-overload]
    assert "is no longer the directory that was opened" in result.stdout, result


@pytest.mark.parametrize("who", [False, True], indirect=True, ids=["root", "user"])
def test_nothing_to_share_is_an_empty_root(who: int | None) -> None:
    lines = """
found["/"] = os.listdir("/")
found["write"] = attempt(lambda: open("/new", "w"))
"""
    found = report(lines, user=who, path=None, landlock="off")
    assert (found["/"], found["write"]) == ([], "EROFS")


def test_nothing_to_share_by_chroot() -> None:
    assert report('found["/"] = os.listdir("/")', mode="chroot", path=None, landlock="off")["/"] == []


@walled
def test_descriptors_that_were_left_open_are_closed(mode: str, who: int | None, share: Path) -> None:
    """The one that led to the share lies on a mount outside, where .. leads up."""
    lines = """
import stat
def is_directory(fd):
    try:
        return stat.S_ISDIR(os.fstat(fd).st_mode)
    except OSError:
        return False
found["directories"] = [fd for fd in range(3, 100) if is_directory(fd)]
found["ours"] = [inside.root, inside.proc]
"""
    found = report(lines, mode=mode, user=who, path=share)
    if mode == "landlock":
        assert len(found["directories"]) == 1
    else:
        assert found["directories"] == sorted(found["ours"])


# Network and processes


@contextlib.contextmanager
def listener() -> Iterator[int]:
    """A TCP port of this machine that answers."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.settimeout(30)
        yield server.getsockname()[1]


CONNECT = """
def connect():
    with socket.socket() as made:
        made.settimeout(5)
        made.connect(("127.0.0.1", int(words[0])))
found["it"] = attempt(connect)
"""


@both
def test_no_network_in_a_namespace(who: int | None, share: Path) -> None:
    with listener() as port:
        assert report(CONNECT, str(port), user=who, path=share, landlock="off")["it"] == "ENETUNREACH"


def test_the_network_stays_where_sockets_are_needed(share: Path) -> None:
    with listener() as port:
        assert report(CONNECT, str(port), path=share, families=[socket.AF_INET])["it"] is None


@both
def test_no_tcp_under_landlock(who: int | None, share: Path) -> None:
    if syscalls.landlock_abi() < 4:
        pytest.skip("Landlock knows TCP since version 4 (Linux 6.7)")
    with listener() as port:
        assert report(CONNECT, str(port), mode="landlock", user=who, path=share)["it"] == "EACCES"


@walled
def test_seccomp_makes_no_sockets(mode: str, who: int | None, share: Path) -> None:
    lines = """
found["it"] = {family: attempt(lambda: socket.socket(getattr(socket, family)) and None) for family in words}
"""
    families = ["AF_INET", "AF_INET6", "AF_UNIX", "AF_NETLINK", "AF_PACKET", "AF_VSOCK"]
    found = report(lines, *families, mode=mode, user=who, path=share, seccomp="errno")
    assert set(found["it"].values()) == {"ENOSYS"}


SIGNALS = """
pid = int(words[0])
found["pid"] = os.getpid()
found["kill"] = attempt(lambda: os.kill(pid, 0))
found["pidfd"] = attempt(lambda: os.pidfd_open(pid) and None)
found["all"] = attempt(lambda: os.kill(-1, 0))
"""


@both
def test_no_other_process_is_seen(who: int | None, share: Path) -> None:
    found = report(SIGNALS, str(os.getpid()), user=who, path=share, landlock="off")
    assert (found["pid"], found["kill"], found["all"]) == (1, "ESRCH", "ESRCH")
    assert found["pidfd"] in ("ESRCH", "EINVAL")


@both
def test_no_signal_leaves_landlock(who: int | None, share: Path) -> None:
    if syscalls.landlock_abi() < 6:
        pytest.skip("Landlock knows signals since version 6 (Linux 6.12)")
    become = {} if who is None else {"user": who, "group": who, "extra_groups": []}
    with subprocess.Popen(["sleep", "60"], **become) as other:  # type: ignore[call-overload]
        try:
            found = report(SIGNALS, str(other.pid), mode="landlock", user=who, path=share)
            assert found["kill"] == "EPERM"
        finally:
            other.kill()


@both
def test_host_name_and_ipc_are_others(who: int | None, share: Path) -> None:
    with entered("pass", user=who, path=share) as made:
        for name in ("mnt", "pid_for_children", "net", "ipc", "uts"):
            assert os.readlink(f"/proc/{made.pid}/ns/{name}") != os.readlink(f"/proc/self/ns/{name}"), name


# What the process is


@pytest.mark.parametrize("mode", ["namespace", "chroot", "landlock", "none"])
def test_capabilities_of_root_are_exactly_these(mode: str, share: Path) -> None:
    kept = bits(capabilities.KEPT)
    with entered("pass", mode=mode, path=share) as made:
        assert made.capabilities() == {"CapInh": 0, "CapPrm": kept, "CapEff": kept, "CapBnd": kept, "CapAmb": 0}


@pytest.mark.parametrize(
    ("wanted", "more", "fewer"),
    [
        ({"kernel_backing": True}, ("SYS_ADMIN",), ()),
        ({"file_handles": True}, (), ()),
        (
            {"add_capabilities": ["SYS_TIME"], "drop_capabilities": ["MKNOD", "SETFCAP"]},
            ("SYS_TIME",),
            ("MKNOD", "SETFCAP"),
        ),
    ],
)
def test_capabilities_for_what_is_in_use(
    share: Path, wanted: dict[str, Any], more: tuple[str, ...], fewer: tuple[str, ...]
) -> None:
    kept = (bits(capabilities.KEPT) | bits(more)) & ~bits(fewer)
    with entered("pass", path=share, **wanted) as made:
        assert made.capabilities() == {"CapInh": 0, "CapPrm": kept, "CapEff": kept, "CapBnd": kept, "CapAmb": 0}


def test_a_user_keeps_no_capability(share: Path, nobody: int) -> None:
    with entered("pass", user=nobody, path=share) as made:
        assert set(made.capabilities().values()) == {0}
    with entered("pass", mode="landlock", user=nobody, path=share) as made:
        assert {name: bits for name, bits in made.capabilities().items() if bits and name != "CapBnd"} == {}


def test_capabilities_do_not_come_back(share: Path) -> None:
    """Neither by becoming root again, nor by a program of root's: securebits and the bounding set."""
    lines = """
os.setresuid(1000, 1000, 0)
os.setresuid(0, 0, 0)
import subprocess
"""
    with entered(lines, path=share) as made:
        assert made.capabilities()["CapEff"] == bits(capabilities.KEPT)
        assert made.capabilities()["CapPrm"] == bits(capabilities.KEPT)


@walled
def test_process_attributes(mode: str, who: int | None, share: Path) -> None:
    lines = """
import prctl, resource
found["dumpable"] = prctl.get_dumpable()
found["securebits"] = prctl.get_securebits()
found["groups"] = os.getgroups()
found["core"] = resource.getrlimit(resource.RLIMIT_CORE)
found["files"] = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
found["umask"] = os.umask(0)
"""
    with entered(lines, mode=mode, user=who, path=share, name="confined") as made:
        found = made.found
        assert "refused" not in found, found
        assert made.status("NoNewPrivs") == "1"
        assert made.status("Name") == "confined"
    assert found["dumpable"] == 0
    assert found["groups"] == []
    assert found["core"] == [0, 0]
    assert found["umask"] == 0
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    assert found["files"] in (min(default_nofile(), hard), default_nofile())
    assert bool(found["left out"]) is (found["files"] < default_nofile())
    if who is None:
        assert found["securebits"] & 3 == 3


def test_supplementary_groups_are_dropped(share: Path) -> None:
    lines = 'found["groups"] = os.getgroups()'
    before = os.getgroups()
    os.setgroups([4, 24])
    try:
        assert report(lines, path=share)["groups"] == []
    finally:
        os.setgroups(before)


@pytest.mark.parametrize("number", [0, 512])
def test_a_limit_that_was_asked_for(share: Path, number: int) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    lines = "import resource; found['it'] = resource.getrlimit(resource.RLIMIT_NOFILE)"
    found = report(lines, path=share, nofile=number)
    assert found["it"] == ([512, 512] if number else [soft, hard])
    assert found["left out"] == []


def test_the_wish_is_a_million_or_what_the_kernel_allows() -> None:
    with open("/proc/sys/fs/nr_open", encoding="ascii") as file:
        assert limits.default_nofile() == min(1_000_000, int(file.read()))


def test_id_maps_of_a_user(share: Path, nobody: int) -> None:
    with entered("found['ids'] = [os.getuid(), os.getgid()]", user=nobody, path=share) as made:
        assert made.found["ids"] == [nobody, nobody]
        for name in ("uid_map", "gid_map"):
            assert Path(f"/proc/{made.pid}/{name}").read_text().split() == [str(nobody), str(nobody), "1"]
        assert Path(f"/proc/{made.pid}/setgroups").read_text() == "deny\n"


def test_another_id_inside(share: Path, nobody: int) -> None:
    found = report(
        "found['ids'] = [os.getuid(), os.getgid(), os.stat('/file').st_uid]",
        user=nobody,
        path=share,
        uid_maps=[f":0:{nobody}:1:"],
        gid_maps=[f":0:{nobody}:1:"],
    )
    assert found["ids"] == [0, 0, 0]


@contextlib.contextmanager
def subordinate(nobody: int) -> Iterator[None]:
    """/etc/subuid and /etc/subgid that give the user 1000 ids from 200000 on."""
    with tempfile.NamedTemporaryFile("w") as file:
        file.write("nobody:200000:1000\n")
        file.flush()
        os.chmod(file.name, 0o644)
        bound: list[str] = []
        try:
            for name in ("/etc/subuid", "/etc/subgid"):
                Path(name).touch()
                subprocess.run(["mount", "--bind", file.name, name], check=True)
                bound.append(name)
            yield
        finally:
            for name in bound:
                subprocess.run(["umount", "--lazy", name], check=True)


def test_more_ids_by_newuidmap(share: Path, nobody: int) -> None:
    os.chown(share / "file", 200005, 200006)
    with subordinate(nobody):
        found = report(
            "found['ids'] = [os.getuid(), os.stat('/file').st_uid, os.stat('/file').st_gid]",
            user=nobody,
            path=share,
            uid_maps=[f":{nobody}:{nobody}:1:", ":1000:200000:1000:"],
            gid_maps=[f":{nobody}:{nobody}:1:", ":1000:200000:1000:"],
        )
    assert found["ids"] == [nobody, 1005, 1006]


def test_ids_that_are_not_the_users_are_refused(share: Path, nobody: int) -> None:
    maps = [":0:0:1:"]
    with entered("pass", user=nobody, path=share, uid_maps=maps, gid_maps=maps) as made:
        assert "newuidmap" in made.found["refused"]
        assert "/etc/subuid" in made.found["refused"]


# Threads


def test_the_plan_comes_before_threads(share: Path, nobody: int) -> None:
    """unshare of a user namespace needs a single thread: with two the step says so."""
    script = f"""
import os, threading, sandbox
threading.Thread(target=threading.Event().wait, daemon=True).start()
opened = os.open({str(share)!r}, os.O_PATH)
steps, inside = sandbox.plan(sandbox.Confinement(path={str(share)!r}, opened=opened))
try:
    sandbox.enter(steps)
except sandbox.SandboxError as error:
    print(error, flush=True)
os._exit(0)
"""
    result = subprocess.run(
        ["/usr/bin/python3", "-B", "-c", script],
        capture_output=True,
        text=True,
        check=False,
        cwd=Path(__file__).parents[2],
        user=nobody,
        group=nobody,
        extra_groups=[],
    )
    assert "make a user namespace" in result.stdout
    assert "unshare(0x10000000): Invalid argument" in result.stdout


def test_the_process_left_behind_forwards_signals_and_the_status(share: Path) -> None:
    script = f"""
import os, signal, sandbox
sandbox.load_libraries()
opened = os.open({str(share)!r}, os.O_PATH)
steps, inside = sandbox.plan(sandbox.Confinement(path={str(share)!r}, opened=opened))
signal.signal(signal.SIGTERM, lambda *_: os._exit(7))
sandbox.enter(steps)
os.write(1, b"ready\\n")
while True:
    signal.pause()
"""
    with subprocess.Popen(
        ["/usr/bin/python3", "-B", "-c", script], stdout=subprocess.PIPE, text=True, cwd=Path(__file__).parents[2]
    ) as process:
        assert process.stdout is not None
        # pause(2) is not on the list, and answers ENOSYS at once: what counts is that the signal arrives
        assert process.stdout.readline() == "ready\n"
        process.send_signal(signal.SIGTERM)
        assert process.wait(30) == 7


def test_the_package_needs_none_of_its_libraries_to_be_imported() -> None:
    """And then names the Debian package of the one that is missing."""
    script = """
import sys
for name in ("capng", "prctl", "seccomp", "pyseccomp"):
    sys.modules[name] = None
import sandbox
from sandbox import plan
steps, _ = sandbox.plan(sandbox.Confinement(mode=sandbox.Mode.NONE))
try:
    sandbox.enter(steps)
except sandbox.SandboxError as error:
    print(error)
"""
    result = subprocess.run(
        ["/usr/bin/python3", "-B", "-c", script],
        capture_output=True,
        text=True,
        check=False,
        cwd=Path(__file__).parents[2],
    )
    assert "apt install python3-prctl" in result.stdout, result
    assert sandbox.explain([sandbox.Step("a step", lambda: None)]) == ["a step"]
