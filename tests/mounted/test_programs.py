"""Real programs on the mount: what they write is what is in the source, in every cache mode."""

import hashlib
import os
import shutil
import stat
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

from .harness import Harness, Mount

MODES = {
    "auto": ("cache=auto",),
    "daemon": ("cache=auto", "passthrough=off", "io_uring=off", "modcaps=+sys_admin"),  # rsync brings trusted.*
    "never": ("cache=never",),
    "always": ("cache=always",),
    "writeback": ("cache=always,writeback", "modcaps=+sys_admin"),
}
TREE = next(path for path in map(Path, ("/usr/share/zoneinfo", "/usr/share/perl", "/usr/share/doc")) if path.is_dir())
"""What every Debian system has, some thousand files of it, with symlinks and hard links."""


@pytest.fixture(params=MODES)
def mount(request: pytest.FixtureRequest, harness: Harness) -> Mount:
    """A mount in each of the modes."""
    return harness.mount("-o", ",".join(MODES[request.param]))


@pytest.fixture
def auto(harness: Harness) -> Mount:
    """A mount with the default options."""
    return harness.mount()


class Fact(NamedTuple):
    """What is compared of a file; of a directory not the size, which the file system chooses."""

    kind: int
    mode: int
    uid: int
    gid: int
    mtime_ns: int
    size: int
    links: int
    content: str


def manifest(top: Path) -> dict[str, Fact]:
    """Everything below a directory, by its path from there."""
    return {os.path.relpath(path, top): _fact(path) for path in walk(top)}


def walk(top: Path) -> Iterator[str]:
    """The directory and every name below it."""
    for directory, names, files in os.walk(top):
        yield directory
        yield from (os.path.join(directory, name) for name in files)
        yield from (path for path in (os.path.join(directory, name) for name in names) if os.path.islink(path))


def _fact(path: str) -> Fact:
    st = os.lstat(path)
    kind = stat.S_IFMT(st.st_mode)
    content, size, links = "", st.st_size, st.st_nlink
    if kind == stat.S_IFLNK:
        content = os.readlink(path)
    elif kind == stat.S_IFREG:
        content = digest(path)
    elif kind == stat.S_IFDIR:
        size = links = 0
    return Fact(kind, stat.S_IMODE(st.st_mode), st.st_uid, st.st_gid, st.st_mtime_ns, size, links, content)


def digest(path: str | Path) -> str:
    """The SHA-256 of a file."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def python(harness: Harness, script: str, *words: str | Path, cwd: Path | None = None) -> str:
    """A program of ours in a process of its own."""
    return harness.run_program(sys.executable, "-c", script, *words, cwd=cwd)


# git

GIT = {
    **os.environ,
    "GIT_CONFIG_GLOBAL": "/dev/null",
    "GIT_CONFIG_SYSTEM": "/dev/null",
    "GIT_AUTHOR_NAME": "a",
    "GIT_AUTHOR_EMAIL": "a@example.org",
    "GIT_COMMITTER_NAME": "a",
    "GIT_COMMITTER_EMAIL": "a@example.org",
    "GIT_TERMINAL_PROMPT": "0",
}


@pytest.fixture(scope="module")
def repository(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Some hundred files in some directories, on two branches that differ, outside of any mount."""
    top: Path = tmp_path_factory.mktemp("repository")
    git = git_in(top)
    git("init", "-q", "-b", "main")
    for number in range(300):
        path = top / f"dir{number % 17}" / f"sub{number % 5}" / f"file{number}"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"line of {number}\n" * (number * 7 + 1))
    (top / "program").write_text("#!/bin/sh\n")
    (top / "program").chmod(0o755)
    (top / "link").symlink_to("program")
    git("add", "-A")
    git("commit", "-qm", "first")
    git("checkout", "-qb", "other")
    for number in range(0, 300, 3):
        path = top / f"dir{number % 17}" / f"sub{number % 5}" / f"file{number}"
        path.unlink() if number % 2 else path.write_text("other\n")
    shutil.rmtree(top / "dir0")
    (top / "dir0").write_text("a file now\n")
    git("add", "-A")
    git("commit", "-qm", "second")
    git("checkout", "-q", "main")
    return top


def git_in(directory: Path) -> Callable[..., str]:
    """git in a directory, which must succeed."""

    def git(*words: str) -> str:
        command = ["git", "-C", str(directory), "-c", "safe.directory=*", *words]
        result = subprocess.run(command, env=GIT, capture_output=True, text=True, check=False)
        assert result.returncode == 0, (words, result.stderr)
        return result.stdout

    return git


def test_git(mount: Mount, repository: Path) -> None:
    git_in(mount.point)("clone", "-q", "--no-hardlinks", str(repository), "clone")
    git = git_in(mount.point / "clone")
    for branch in ("other", "main", "other", "main"):
        git("checkout", "-q", branch)
        assert git("status", "--porcelain") == ""
    (mount.point / "clone" / "dir1" / "new").write_text("new\n")
    assert git("status", "--porcelain") == "?? dir1/new\n"
    git("add", "-A")
    git("commit", "-qm", "third")
    git("gc", "-q", "--aggressive", "--prune=now")
    git("fsck", "--full", "--strict")
    git("reset", "-q", "--hard", "HEAD~1")
    git("clean", "-qdfx")
    mount.umount()
    inside = git_in(mount.source / "clone")
    assert inside("status", "--porcelain") == ""
    inside("fsck", "--full", "--strict")
    names = [name for name in walk(repository) if "/.git" not in name]
    copies = [name for name in walk(mount.source / "clone") if "/.git" not in name]
    assert contents(names, repository) == contents(copies, mount.source / "clone")


def contents(names: list[str], top: Path) -> dict[str, tuple[int, str]]:
    """Modes and contents alone, of these files."""
    found = {os.path.relpath(name, top): _fact(name) for name in names}
    return {name: (fact.mode, fact.content) for name, fact in found.items() if fact.kind != stat.S_IFDIR}


# Copying trees


def test_tar_to_the_mount_and_back(mount: Mount, harness: Harness) -> None:
    expected = manifest(TREE)
    assert len(expected) > 1000
    script = 'tar -C "$1" --numeric-owner -cf - . | tar -C "$2" --numeric-owner -xpf -'
    harness.run_program("bash", "-o", "pipefail", "-c", script, "copy", TREE, mount.point)
    assert manifest(mount.point) == expected
    assert manifest(mount.source) == expected
    back = harness.directory("back")
    harness.run_program("bash", "-o", "pipefail", "-c", script, "copy", mount.point, back)
    assert manifest(back) == expected
    harness.run_program("diff", "-r", "--no-dereference", TREE, mount.point)


def test_cp_find_and_rm(auto: Mount, harness: Harness) -> None:
    harness.run_program("cp", "-a", TREE, auto.point / "copy")
    assert manifest(auto.source / "copy") == manifest(TREE)
    found = harness.run_program("find", auto.point / "copy", "-printf", r"%P %y %m %s\n")
    assert sorted(found.splitlines()) == sorted(
        harness.run_program("find", auto.source / "copy", "-printf", r"%P %y %m %s\n").splitlines()
    )
    harness.run_program("cp", "-a", auto.point / "copy", auto.point / "within")
    assert manifest(auto.source / "within") == manifest(TREE)
    harness.run_program("mv", auto.point / "within", auto.point / "moved")
    harness.run_program("rm", "-rf", auto.point / "copy", auto.point / "moved")
    assert os.listdir(auto.source) == []


def test_rm_of_a_deep_tree(mount: Mount, harness: Harness) -> None:
    """Deeper than a path can be long (PATH_MAX)."""
    script = """
import os
for level in range(400):
    name = "level-" + "x" * 20
    os.mkdir(name)
    os.chdir(name)
    for number in range(2):
        open(f"file{number}", "w").close()
"""
    python(harness, script, cwd=mount.point)
    assert len(harness.run_program("find", mount.source, "-name", "level-*").splitlines()) == 400
    assert len(harness.run_program("find", mount.point, "-type", "f").splitlines()) == 800
    (top,) = mount.point.iterdir()
    harness.run_program("rm", "-rf", top)
    assert os.listdir(mount.source) == []


# rsync


@pytest.fixture
def varied(harness: Harness) -> Path:
    """A tree with whatever `rsync -aHAX` can carry."""
    top = harness.directory("varied")
    (top / "sub").mkdir()
    (top / "file").write_text("text")
    (top / "file").chmod(0o640)
    os.chown(top / "file", 1234, 4321)
    os.link(top / "file", top / "sub" / "hard link")
    os.link(top / "file", top / "another")
    (top / "link").symlink_to("sub/hard link")
    os.lchown(top / "link", 1, 2)
    (top / "dangling").symlink_to("/nowhere")
    os.mkfifo(top / "fifo", 0o600)
    os.mknod(top / "null", stat.S_IFCHR | 0o644, os.makedev(1, 3))
    with open(top / "sparse", "wb") as file:
        for offset in (0, 1 << 20, 40 << 20):
            file.seek(offset)
            file.write(b"x" * 5000)
        file.truncate(64 << 20)
    (top / "suid").write_text("#!/bin/sh\n")
    os.chown(top / "suid", 1, 1)
    (top / "suid").chmod(0o6755)
    (top / "sub").chmod(0o3770)
    os.setxattr(top / "file", "user.name", b"value\0with\xffbytes")
    os.setxattr(top / "sub", "user.empty", b"")
    os.setxattr(top / "file", "trusted.t", b"root's")
    harness.run_program("setfacl", "-m", "u:1000:r,g:1001:rw,m:rw", top / "another")
    harness.run_program("setfacl", "-d", "-m", "u:1000:rwx,o::-", top / "sub")
    for number, path in enumerate(walk(top)):
        os.utime(path, ns=(0, 10**18 + number * 1_000_000_007), follow_symlinks=False)
    return top


RSYNC = ("rsync", "-aHAX", "--devices", "--specials", "--numeric-ids")


def test_rsync_to_the_mount_and_back(mount: Mount, harness: Harness, varied: Path) -> None:
    back = harness.directory("back")
    for source, target in (varied, mount.point), (mount.point, back):
        harness.run_program(*RSYNC, "--sparse", f"{source}/", f"{target}/")
        for other in (mount.point, mount.source, back) if target == back else (mount.point, mount.source):
            assert harness.run_program(*RSYNC, "-nci", "--delete", f"{varied}/", f"{other}/") == ""
    for top in (mount.source, mount.point, back):
        assert os.stat(top / "file").st_ino == os.stat(top / "sub" / "hard link").st_ino
        assert os.stat(top / "file").st_nlink == 3
        assert os.getxattr(top / "file", "user.name") == b"value\0with\xffbytes"
        assert stat.S_IMODE(os.stat(top / "suid").st_mode) == 0o6755
        assert os.stat(top / "sparse").st_blocks * 512 < 1 << 20
        assert os.stat(top / "null").st_rdev == os.makedev(1, 3)
        acl = harness.run_program("getfacl", "-cnp", top / "another", top / "sub")
        assert acl == harness.run_program("getfacl", "-cnp", varied / "another", varied / "sub")


# Databases and other writers

SQL_WRITER = """
import sqlite3, sys
path, who, rows = sys.argv[1], sys.argv[2], int(sys.argv[3])
db = sqlite3.connect(path, timeout=60, isolation_level=None)
assert db.execute("PRAGMA journal_mode=WAL").fetchone() == ("wal",)
db.execute("PRAGMA wal_autocheckpoint=50")
for number in range(rows):
    db.execute("BEGIN IMMEDIATE")
    db.execute("INSERT INTO t VALUES (?, ?, ?)", (who, number, who * 500))
    db.execute("UPDATE total SET n = n + 1")
    db.execute("COMMIT")
db.close()
"""


def test_sqlite_wal_from_two_processes(mount: Mount, harness: Harness) -> None:
    path, rows = mount.point / "db", 150
    setup = "import sqlite3, sys; db = sqlite3.connect(sys.argv[1]); db.execute('PRAGMA journal_mode=WAL');"
    python(harness, setup + "db.executescript('CREATE TABLE t (who, n, x); CREATE TABLE total (n);"
           "INSERT INTO total VALUES (0)')", path)  # fmt: skip
    words = [sys.executable, "-c", SQL_WRITER, str(path)]
    writers = [subprocess.Popen([*words, who, str(rows)], stderr=subprocess.PIPE, text=True) for who in "ab"]
    for writer in writers:
        _, errors = writer.communicate(timeout=120)
        assert writer.returncode == 0, errors
    for where in (mount.point, mount.source):
        query = "PRAGMA integrity_check; SELECT who, count(*), sum(n) FROM t GROUP BY who; SELECT n FROM total"
        told = harness.run_program("sqlite3", where / "db", query).split()
        total = rows * (rows - 1) // 2
        assert told == ["ok", f"a|{rows}|{total}", f"b|{rows}|{total}", str(2 * rows)]


def test_sqlite_rollback_journal(mount: Mount, harness: Harness) -> None:
    script = SQL_WRITER.replace("WAL", "DELETE").replace("wal", "delete").replace("PRAGMA delete_", "PRAGMA wal_")
    harness.run_program("sqlite3", mount.point / "db", "CREATE TABLE t (who, n, x); CREATE TABLE total (n);")
    python(harness, script, mount.point / "db", "a", "20")
    told = harness.run_program("sqlite3", mount.source / "db", "PRAGMA integrity_check; SELECT count(*) FROM t")
    assert told == "ok\n20\n"


@pytest.mark.parametrize(
    "engine",
    [("psync", 0), ("psync", 1), ("mmap", 0), ("io_uring", 1)],
    ids=lambda engine: f"{engine[0]}-direct{engine[1]}",
)
def test_fio_verifies(mount: Mount, harness: Harness, engine: tuple[str, int]) -> None:
    name, direct = engine
    if name == "io_uring" and io_uring_is_off():
        pytest.skip("io_uring is disabled here: kernel.io_uring_disabled")
    words = ["--name=job", f"--filename={mount.point / 'file'}", "--size=64m", "--io_size=32m", "--rw=randrw"]
    words += ["--bsrange=4k-128k", "--verify=crc32c", "--verify_fatal=1", "--do_verify=1", "--end_fsync=1"]
    words += ["--iodepth=8", f"--ioengine={name}", f"--direct={direct}", "--minimal"]
    harness.run_program("fio", *words, cwd=harness.base)  # it leaves a state file there
    assert (mount.source / "file").stat().st_size == 64 << 20


def io_uring_is_off() -> bool:
    """Whether the machine forbids it to all."""
    try:
        return Path("/proc/sys/kernel/io_uring_disabled").read_text() == "2\n"
    except OSError:
        return True


@pytest.mark.parametrize("how", ["buffered", "direct", "sync"])
def test_dd(mount: Mount, harness: Harness, how: str) -> None:
    """Blocks larger than a page, a request and a pipe; sizes that are no multiple of any."""
    original = harness.base / "random"
    block, flags = {"buffered": (5_000_001, ""), "direct": (3 << 20, "direct"), "sync": (1 << 20, "dsync")}[how]
    harness.run_program("dd", "if=/dev/urandom", f"of={original}", f"bs={block}", "count=5", "iflag=fullblock")
    there, back = mount.point / "file", harness.base / "back"
    extra = [f"oflag={flags}"] if flags else []
    harness.run_program("dd", f"if={original}", f"of={there}", f"bs={block}", "conv=fsync", *extra)
    assert digest(mount.source / "file") == digest(there) == digest(original)
    extra = ["iflag=direct"] if how == "direct" else []
    harness.run_program("dd", f"if={there}", f"of={back}", "bs=7340032", *extra)
    assert digest(back) == digest(original)
    harness.run_program(
        "dd", f"if={original}", f"of={there}", "bs=4097", "seek=300", "skip=3", "count=200", "conv=notrunc"
    )
    with open(original, "rb") as file:
        expected = bytearray(file.read())
    expected[300 * 4097 : 500 * 4097] = expected[3 * 4097 : 203 * 4097]
    assert digest(there) == hashlib.sha256(expected).hexdigest()
    mount.umount()
    assert digest(mount.source / "file") == hashlib.sha256(expected).hexdigest()


@pytest.mark.parametrize(
    "options",
    [
        "max_read=4096,max_write=4096",
        "max_read=5000,max_write=70001",
        "max_read=16M,max_write=16M",
        "threads=1",
        "threads=100",
        "threads=16,max_write=16M,cache=never",
    ],
)
@pytest.mark.parametrize("io_uring", ["auto", "off"])
def test_odd_sizes_and_threads(harness: Harness, options: str, io_uring: str) -> None:
    mount = harness.mount("-o", options, "-o", f"passthrough=off,io_uring={io_uring}")
    original = harness.base / "random"
    harness.run_program("dd", "if=/dev/urandom", f"of={original}", "bs=1M", "count=9", "iflag=fullblock")
    for flag in ("", "direct"):
        path = mount.point / f"file{flag}"
        extra = [f"oflag={flag}"] if flag else []
        harness.run_program("dd", f"if={original}", f"of={path}", "bs=3M", "conv=fsync", *extra)
        assert digest(mount.source / path.name) == digest(original)
        extra = [f"iflag={flag}"] if flag else []
        harness.run_program("dd", f"if={path}", f"of={harness.base / 'back'}", "bs=3M", *extra)
        assert digest(harness.base / "back") == digest(original)
    copies = [mount.point / f"copy{number}" for number in range(6)]
    processes = [subprocess.Popen(["cp", original, copy]) for copy in copies]
    assert [process.wait(60) for process in processes] == [0] * len(copies)
    assert {digest(copy) for copy in copies} == {digest(original)}


# Compilers and interpreters


def test_compile_and_run(mount: Mount, harness: Harness) -> None:
    numbers = range(8)
    for number in numbers:
        (mount.point / f"part{number}.c").write_text(
            f'#include "parts.h"\n#include <stdlib.h>\nint part{number}(void) {{ return abs(-{number}); }}\n'
        )
    (mount.point / "parts.h").write_text("".join(f"int part{number}(void);\n" for number in numbers))
    total = " + ".join(f"part{number}()" for number in numbers)
    (mount.point / "main.c").write_text(
        f'#include "parts.h"\n#include <stdio.h>\nint main(void) {{ printf("%d\\n", {total}); return 0; }}\n'
    )
    objects = " ".join(f"part{number}.o" for number in numbers) + " main.o"
    (mount.point / "Makefile").write_text(f"program: {objects}\n\tcc -g -o $@ $^\n%.o: %.c parts.h\n\tcc -g -O -c $<\n")
    harness.run_program("make", "-j2", "-C", mount.point)
    assert harness.run_program(mount.point / "program") == f"{sum(numbers)}\n"
    assert "up to date" in harness.run_program("make", "-C", mount.point)
    harness.run_program("touch", mount.point / "parts.h")
    assert harness.run_program("make", "-C", mount.point).count(" -c ") == len(numbers) + 1
    assert harness.run_program(mount.point / "program") == f"{sum(numbers)}\n"


def test_python_from_the_mount(mount: Mount, harness: Harness) -> None:
    venv = mount.point / "venv"
    harness.run_program("/usr/bin/python3", "-m", "venv", "--without-pip", venv)
    package = mount.point / "library"
    for name in ("json", "email"):
        shutil.copytree(Path(os.__file__).parent / name, package / name, ignore=shutil.ignore_patterns("__pycache__"))
    harness.run_program(venv / "bin" / "python", "-m", "compileall", "-q", "-j2", package)
    assert len(list((mount.source / "library").rglob("*.pyc"))) == len(list((mount.source / "library").rglob("*.py")))
    script = "import sys; sys.path.insert(0, sys.argv[1]); import json, email.message; print(json.__file__, sys.prefix)"
    told = harness.run_program(venv / "bin" / "python", "-c", script, package).split()
    assert told == [str(package / "json" / "__init__.py"), str(venv)]
