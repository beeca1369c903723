"""The programs of examples/: they run, end, and keep what their first lines promise."""

import contextlib
import errno
import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import pytest

from passthrough.syscalls import RENAME_EXCHANGE, RENAME_NOREPLACE, renameat2

from .harness import ROOT, TIMEOUT_S, Harness, is_mounted, wait_until
from .test_api import handles

Run = Callable[..., "contextlib.AbstractContextManager[Example]"]


class Example:
    """One that runs."""

    def __init__(self, process: "subprocess.Popen[str]", point: Path, said: Path) -> None:
        self.process = process
        self.point = point
        self._said = said

    def lines(self) -> list[str]:
        """What it has said so far."""
        return self._said.read_text(encoding="utf-8").splitlines()


@pytest.fixture
def run(harness: Harness) -> Run:
    """Run an example on a new mount point, given after its first argument, and end it with SIGTERM."""

    @contextlib.contextmanager
    def begin(name: str, source: Path, *words: str, change: str = "") -> Iterator[Example]:
        point = harness.directory("mount")
        said = harness.base / f"said-{point.name}"
        code = (ROOT / "examples" / f"{name}.py").read_text(encoding="utf-8")
        program = harness.base / f"{name}.py"
        program.write_text(_changed(code, change), encoding="utf-8")
        with open(said, "w", encoding="utf-8") as out:
            process = subprocess.Popen(
                [sys.executable, "-W", "error", program, source, point, *words],
                env={**os.environ, "PYTHONPATH": str(ROOT), "PYTHONDONTWRITEBYTECODE": "1"},
                stdout=out,
                stderr=subprocess.PIPE,
                text=True,
            )
        with process:
            try:
                wait_until(
                    lambda: process.poll() is not None or handles(process.pid, signal.SIGHUP), f"{name} is mounted"
                )
                assert is_mounted(point), process.stderr and process.stderr.read()
                yield Example(process, point, said)
                process.terminate()
                _, errors = process.communicate(timeout=TIMEOUT_S)
                assert (process.returncode, errors) == (0, "")
                assert not is_mounted(point)
            finally:
                process.kill()
                subprocess.run(["umount", "-l", point], check=False, capture_output=True)

    return begin


def _changed(code: str, words: str) -> str:
    """An example with further words for the tree and for the mount: `tree; mount`."""
    if not words:
        return code
    tree, _, mount = words.partition(";")
    code = re.sub(r"super\(\).__init__\(source\)", f"super().__init__(source, {tree})", code)
    code = re.sub(r"Audit\(sys.argv\[1\]\)", f"Audit(sys.argv[1], {tree})", code)
    changed = re.sub(r"sys.argv\[2\]\)", f"sys.argv[2], {mount})", code)
    assert changed != code
    return changed


_DOORS = {
    "as it is": "",
    "data through us": "passthrough='off'; io_uring='off'",
    "io_uring": "passthrough='auto'; io_uring='on'",
    "io_uring, data through us, nothing cached": "passthrough='off', cache='never'; io_uring='on'",
    "everything cached": "cache='always', readdirplus='always'; io_uring='off'",
    "no readdirplus": "cache='metadata', readdirplus='no'; io_uring='off'",
}


@pytest.fixture(params=_DOORS)
def door(request: pytest.FixtureRequest) -> str:
    """Words that change how requests come and what is remembered."""
    if "io_uring='on'" in _DOORS[request.param]:
        request.getfixturevalue("enabled")
    return _DOORS[request.param]


# audit


def test_the_audit_names_every_open(harness: Harness, run: Run, door: str) -> None:
    source = harness.directory("source", 0o777)
    (source / "dir").mkdir()
    (source / "dir" / "a file").write_text("x")
    (source / "private").touch(0o600)
    with run("audit", source, change=door or "passthrough='auto'; allow_other=True") as audit:
        point = audit.point
        (point / "dir" / "a file").read_text()
        (point / "dir" / "a file").read_text()
        (point / "new").write_text("y")
        fd = os.open(point, os.O_TMPFILE | os.O_RDWR)
        os.close(fd)
        fd = os.open(point / "dir" / "a file", os.O_RDWR)
        os.close(fd)
        os.rename(point / "dir" / "a file", point / "moved")
        fd = os.open(point / "moved", os.O_WRONLY | os.O_APPEND)
        os.unlink(point / "moved")
        os.close(os.open(f"/proc/self/fd/{fd}", os.O_RDONLY))
        os.close(fd)
        if not door:
            _somebody_else_opens(point)
        lines = audit.lines()
    mine = [line.removeprefix(f"uid=0 pid={os.getpid()} ") for line in lines if f" pid={os.getpid()} " in line]
    assert mine == [
        "read: ok: b'/dir/a file'",
        "read: ok: b'/dir/a file'",
        "create: ok: b'/new'",
        "create: ok: b'/'",
        "read and write: ok: b'/dir/a file'",
        "write: ok: b'/moved'",
        "read: ok: None",
    ]
    if not door:
        others = [re.sub(r"pid=\d+", "pid=N", line) for line in lines if line.startswith("uid=1234 ")]
        assert others == ["uid=1234 pid=N read: ok: b'/new'"]  # the refused one was not asked for


def _somebody_else_opens(point: Path) -> None:
    code = (
        "import sys\nopen(sys.argv[1] + '/new').close()\n"
        "try:\n    open(sys.argv[1] + '/private')\nexcept PermissionError:\n    sys.exit(7)\n"
    )
    result = subprocess.run([sys.executable, "-c", code, point], user=1234, group=1234, extra_groups=[], check=False)
    assert result.returncode == 7


def test_the_audit_tells_of_opens_that_fail(harness: Harness, run: Run) -> None:
    source = harness.directory("source")
    program = source / "program"
    program.write_bytes(Path("/bin/sleep").read_bytes())
    program.chmod(0o755)
    with run("audit", source) as audit, subprocess.Popen([program, "60"]) as running:
        try:
            with pytest.raises(OSError, match=os.strerror(errno.ETXTBSY)):
                os.open(audit.point / "program", os.O_WRONLY)
        finally:
            running.kill()
        assert audit.lines()[-1].endswith(" write: ETXTBSY: b'/program'")


# hide


@pytest.fixture
def filtered(harness: Harness) -> Path:
    """A source in which something is hidden, everywhere."""
    source = harness.directory("source", 0o777)
    for directory in (source, source / "dir", source / "dir" / "deeper", source / "dir.key", source / "full"):
        directory.mkdir(exist_ok=True)
        (directory / "secret.key").write_text("secret")
        (directory / "open").write_text("open")
    (source / "dir.key" / "inside").write_text("secret")
    (source / "full" / "open").unlink()
    for number in range(3000):
        (source / "full" / f"{number:04}.key").touch()
    os.link(source / "secret.key", source / "another-name")
    (source / "pointer").symlink_to("secret.key")
    return source


def _absent(call: Callable[[], object], error: int = errno.ENOENT) -> None:
    with pytest.raises(OSError, match=r".") as caught:
        call()
    assert caught.value.errno == error


def test_what_is_hidden_cannot_be_reached(filtered: Path, run: Run, door: str) -> None:
    with run("hide", filtered, "*.key", "nobody", change=door) as hide:
        point = hide.point
        for parent in (point, point / "dir", point / "dir" / "deeper"):
            _absent((parent / "secret.key").stat)
            _absent(partial(os.open, parent / "secret.key", os.O_RDONLY))
        _absent(lambda: os.listdir(point / "dir.key"))
        _absent(lambda: os.stat(point / "dir.key" / "inside"))
        _absent(lambda: (point / "pointer").read_text())
        _absent(lambda: os.unlink(point / "secret.key"))
        _absent(lambda: os.rmdir(point / "dir.key"))
        _absent(lambda: os.rename(point / "secret.key", point / "mine"))
        _absent(lambda: os.link(point / "secret.key", point / "mine"))
        assert (point / "another-name").read_text() == "secret"  # as its first lines say
        assert (point / "dir" / "open").read_text() == "open"
        (point / "dir" / "open").write_text("changed")
    assert (filtered / "dir" / "open").read_text() == "changed"
    assert (filtered / "secret.key").read_text() == "secret"


def test_what_is_hidden_is_not_listed(filtered: Path, run: Run, door: str) -> None:
    with run("hide", filtered, "*.key", change=door) as hide:
        point = hide.point
        for _ in range(2):
            assert sorted(os.listdir(point)) == ["another-name", "dir", "full", "open", "pointer"]
            assert sorted(os.listdir(point / "dir")) == ["deeper", "open"]
            assert os.listdir(point / "full") == []
            (point / "full" / "last").touch()
            assert os.listdir(point / "full") == ["last"]
            (point / "full" / "last").unlink()
        listed = subprocess.run(["ls", "-lRa", point], capture_output=True, text=True, check=True).stdout
        assert ".key" not in listed.replace("-> secret.key", "")
        found = subprocess.run(["find", point, "-name", "*.key"], capture_output=True, text=True, check=True).stdout
        assert found == ""
        _absent(lambda: os.rmdir(point / "full"), errno.ENOTEMPTY)


def test_nothing_is_made_or_replaced_by_a_hidden_name(filtered: Path, run: Run, door: str) -> None:
    before = {path: path.lstat().st_ino for path in filtered.rglob("*.key")}
    with run("hide", filtered, "*.key", change=door) as hide:
        point = hide.point
        for name in ("secret.key", "new.key"):
            target = point / name
            for call in (
                lambda target=target: os.open(target, os.O_CREAT | os.O_WRONLY),
                lambda target=target: os.open(target, os.O_CREAT | os.O_EXCL | os.O_WRONLY),
                lambda target=target: os.mkdir(target),
                lambda target=target: os.mkfifo(target),
                lambda target=target: os.symlink("open", target),
                lambda target=target: os.link(point / "open", target),
                lambda target=target: os.rename(point / "open", target),
                lambda target=target: os.rename(point / "dir", target),
            ):
                _absent(call, errno.EPERM)
        unnamed = os.open(point, os.O_TMPFILE | os.O_RDWR)
        proc = os.open("/proc/self/fd", os.O_PATH)
        _absent(lambda: os.link(str(unnamed), point / "new.key", src_dir_fd=proc, follow_symlinks=True), errno.EPERM)
        os.close(unnamed)
        os.close(proc)
        directory = os.open(point, os.O_PATH)
        for flags, error in ((RENAME_EXCHANGE, errno.ENOENT), (RENAME_NOREPLACE, errno.EPERM)):
            _absent(partial(renameat2, directory, b"open", directory, b"secret.key", flags), error)
        os.close(directory)
    assert {path: path.lstat().st_ino for path in filtered.rglob("*.key")} == before
    assert (filtered / "secret.key").read_text() == "secret"


def test_a_name_that_becomes_hidden_goes_with_the_kernels_memory(filtered: Path, run: Run) -> None:
    with run("hide", filtered, "*.key") as hide:
        assert (hide.point / "open").read_text() == "open"
        os.rename(filtered / "open", filtered / "gone.key")
        wait_until(lambda: not (hide.point / "open").exists(), "it is looked up again")
        assert "gone.key" not in os.listdir(hide.point)


# json_tree


def test_a_document_is_a_tree_that_cannot_be_changed(harness: Harness, run: Run) -> None:
    document = {
        "name": "value",
        "numbers": [1, 2.5, True, None],
        "nested": {"deep": {"deeper": "grüße"}, "empty": {}},
        "a/b": 1,
        "..": 2,
        "": 3,
        **{f"many-{number:04}": number for number in range(2000)},
    }
    path = harness.base / "document.json"
    path.write_text(json.dumps(document), encoding="utf-8")
    with run("json_tree", path) as shown:
        point = shown.point
        assert (point / "name").read_text() == "value\n"
        assert [(point / "numbers" / str(n)).read_text() for n in range(4)] == ["1\n", "2.5\n", "true\n", "null\n"]
        assert (point / "nested" / "deep" / "deeper").read_text(encoding="utf-8") == "grüße\n"
        assert os.listdir(point / "nested" / "empty") == []
        names = {key for key in document if key not in ("a/b", "..", "")}
        assert set(os.listdir(point)) == names
        assert len(os.listdir(point)) == len(names)
        assert (point / "name").stat().st_size == 6
        copied = harness.directory("copy")
        subprocess.run(["cp", "-r", f"{point}/.", copied], check=True)
        subprocess.run(["diff", "-r", point, copied], check=True)
        subprocess.run(["df", point], check=True, stdout=subprocess.DEVNULL)
        for call in (
            lambda: os.unlink(point / "name"),
            lambda: os.mkdir(point / "new"),
            lambda: os.open(point / "name", os.O_WRONLY),
            lambda: os.chmod(point / "name", 0o777),
        ):
            _absent(call, errno.EROFS)
        _absent(lambda: os.stat(point / "nothing"))


@pytest.mark.parametrize(
    ("name", "words", "said"),
    [
        ("audit", [], "usage: audit.py SRC MNT"),
        ("hide", ["/", "/mnt"], "usage: hide.py SRC MNT PATTERN..."),
        ("json_tree", [], "usage: json_tree.py FILE.json MNT"),
        ("audit", ["/nonexistent", "/"], "[Errno 2] No such file or directory: '/nonexistent'"),
        ("hide", ["/", "/nonexistent", "*"], "/nonexistent: the mount point does not exist; create it"),
        ("json_tree", ["/dev/null", "/"], "Expecting value"),
    ],
)
def test_a_mistake_is_told_in_one_line(name: str, words: list[str], said: str) -> None:
    result = subprocess.run(
        [sys.executable, ROOT / "examples" / f"{name}.py", *words],
        env={**os.environ, "PYTHONPATH": str(ROOT), "PYTHONDONTWRITEBYTECODE": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 1
    assert result.stderr.startswith(said)
    assert result.stderr.count("\n") == 1


# The programs of README.md and of passthrough(3)


def _settled(where: str) -> str:
    """The program that refuses files that were changed lately."""
    text = (ROOT / where).read_text(encoding="utf-8").replace("\\-", "-")
    pattern = r"^```python\n(.*?)^```$" if where.endswith(".md") else r"^\.EX\n(.*?)^\.EE$"
    (found,) = (block for block in re.findall(pattern, text, re.MULTILINE | re.DOTALL) if "class Settled" in block)
    return str(found)


@pytest.mark.parametrize("where", ["README.md", "man/passthrough.3"])
def test_the_first_program_that_one_reads_works(harness: Harness, where: str) -> None:
    source, point = harness.directory("source"), harness.directory("mount")
    (source / "new").touch()
    (source / "old").write_text("old")
    os.utime(source / "old", (0, 0))
    code = _settled(where).replace("/srv/data", str(source)).replace("/mnt/data", str(point))
    process = subprocess.Popen(
        [sys.executable, "-W", "error", "-c", code, source, point],
        env={**os.environ, "PYTHONPATH": str(ROOT), "PYTHONDONTWRITEBYTECODE": "1"},
        stderr=subprocess.PIPE,
        text=True,
    )
    with process:
        try:
            wait_until(lambda: process.poll() is not None or is_mounted(point), "it is mounted")
            assert (point / "old").read_text() == "old"
            _absent(lambda: os.open(point / "new", os.O_RDONLY), errno.EBUSY)
            subprocess.run(["umount", point], check=True)
            _, errors = process.communicate(timeout=TIMEOUT_S)
            assert (process.returncode, errors) == (0, "")
        finally:
            process.kill()
            subprocess.run(["umount", "-l", point], check=False, capture_output=True)
