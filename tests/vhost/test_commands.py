"""The command lines: passthrough serve's own, and virtiofsd's as libvirt and Kata Containers give them."""

import errno
import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from passthrough import exitcodes
from passthrough.cli import serve, virtiofsd
from passthrough.cli.serve_options import ServeOptions
from passthrough.errors import UserError
from passthrough.fs.tree import Cache, ReaddirPlus, Tree
from passthrough.process_options import Level
from passthrough.protocol import constants as c

from ..mounted.harness import ROOT, ended, refusal, run
from .backend import backend
from .frontend import FrontEnd
from .fuse import Client, ReplyError

_LIBVIRT = "--fd={fd} -o source={shared},cache=always,xattr,no_posix_lock,sandbox=none"
_KATA_C = "--fd={fd} -o source={shared} -o cache=auto --syslog -o no_posix_lock -f --thread-pool-size=1"
_KATA_RUST = "--syslog --cache=never --shared-dir={shared} --fd={fd} --thread-pool-size=1 --announce-submounts"


def _drop_in(*words: str, **more: object) -> "subprocess.Popen[str]":
    code = "import sys; from passthrough.cli.virtiofsd import main; sys.exit(main())"
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    return subprocess.Popen(  # type: ignore[call-overload, no-any-return]
        [sys.executable, "-c", code, *words], env=environment, text=True, stderr=subprocess.PIPE, **more
    )


@pytest.mark.parametrize("line", [_LIBVIRT, _KATA_C, _KATA_RUST], ids=["libvirt", "kata", "kata-rust"])
def test_a_managers_command_line_serves(tmp_path: Path, line: str) -> None:
    (tmp_path / "shared").mkdir()
    path = tmp_path / "socket"
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))
        listener.listen()
        words = line.format(fd=listener.fileno(), shared=tmp_path / "shared").split()
        if not Path("/dev/log").exists():
            words = [word for word in words if word != "--syslog"]
        with _drop_in(*words, pass_fds=[listener.fileno()]) as process:
            try:
                front = FrontEnd(str(path))
                front.begin()
                client = Client(front)
                client.init()
                assert client.getattr()["nlink"] >= 1
                front.close()
                process.terminate()
                assert ended(process.pid, 20)
                assert process.wait() == 0
            finally:
                process.kill()


def test_options_become_those_of_serve(tmp_path: Path) -> None:
    words = f"--socket-path {tmp_path}/s -o source={tmp_path},cache=none,xattr,flock,timeout=1.5 --log-level err -d"
    assert virtiofsd.options_of(words.split()) == ServeOptions(
        shared_dir=str(tmp_path),
        socket_path=f"{tmp_path}/s",
        cache=Cache.NEVER,
        xattr=True,
        flock=True,
        timeout=1_500_000_000,
        log_level=Level.ERROR,
        debug=True,
    )
    again = virtiofsd.options_of([*words.split(), "-ono_xattr,no_flock", "--no-readdirplus"])
    assert (again.xattr, again.flock, again.readdirplus) == (False, False, ReaddirPlus.NO)


_BASE = ("--fd=3", "--shared-dir=/")


@pytest.mark.parametrize("row", virtiofsd.TABLE, ids=lambda row: row.word.replace(" ", ""))
def test_every_option_is_accepted_or_refused_with_its_reason(row: virtiofsd.Row) -> None:
    values = {"N": "3", "MODE": "always", "DIR": "/", "SECONDS": "1", "LEVEL": "debug", "PATH": "/run/s"}
    base = [word for word in _BASE if row.field != "fd" or not word.startswith("--fd")]
    if row.field == "socket_path":
        base = ["--shared-dir=/"]
    if row.field == "socket_group":
        base = ["--shared-dir=/", "--socket-path=/run/s"]
    values |= {"RULES": "selinux", "ACTION": "kill", "CAPS": "+sys_admin", "MAP": ":0:0:1:"}
    values["MODE"] = {"sandbox": "chroot", "inode_file_handles": "fallback"}.get(row.field, "always")
    if row.many:
        values["MAP"] = ":0:1000:1:" if row.word.endswith("-map") else "map:0:1000:1"
    given = row.word + (f"={values.get(row.metavar, 'x')}" if row.metavar else "")
    words = [*base, *given.split(" ", 1)]
    if row.refused:
        with pytest.raises(UserError) as error:
            virtiofsd.options_of(words)
        assert row.refused in str(error.value)
        return
    options = virtiofsd.options_of(words)
    if row.field:
        value = row.parse(values.get(row.metavar, "x")) if row.parse else row.value
        assert getattr(options, row.field) == ((value,) if row.many else value)


@pytest.mark.parametrize(
    "words",
    [
        "--fd=3",
        "--shared-dir=/",
        "--shared-dir=/ --fd=3 --socket-path=/run/s",
        "--shared-dir=/ --fd=3 --socket-group=root",
        "--shared-dir=/ --fd=3 --cache=sometimes",
        "--shared-dir=/ --fd=3 --cache=never --writeback",
        "--shared-dir=/ --fd=3 --thread-pool-size=-1",
        "--shared-dir=/ --fd=3 --rlimit-nofile=99999999999",
        "--shared-dir=/ --fd=3 --timeout=-1",
        "--shared-dir=/ --fd=3 --tag=" + "x" * 37,
        "--shared-dir=/ --fd=3 --num-request-queues=4",
        "--shared-dir=/ --socket-path=",
        "--shared-dir= --fd=3",
        "--shared-dir=/ --fd=",
        "-o cache=auto --shared-dir=/ --fd=3",
        "--shared-dir=/ --socket-path=/run/passthrough-test-s --socket-group=nosuchgroup",
        "--shared-dir=/ --fd=999",
    ],
)
def test_serve_refuses_on_one_line(words: str) -> None:
    refusal(run("serve", *words.split()), exitcodes.USAGE)


def test_serve_says_which_directory_is_missing() -> None:
    line = refusal(run("serve", "--shared-dir=/", "--socket-path=/nonexistent/s"), exitcodes.SOCKET)
    assert "mkdir -p /nonexistent" in line


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("--cache=sometimes", "--cache=sometimes: it takes one of never, metadata, auto, always"),
        ("-o sandbox=landlock", "-o sandbox=landlock: it takes one of namespace, chroot, none"),
        ("--seccomp=errno", "--seccomp=errno: it takes one of none, log, kill"),
        ("--seccomp=trap", "--seccomp=trap: it takes none, log or kill here"),
        ("--log-level=loud", "--log-level=loud: it takes one of off, error"),
        ("--thread-pool-size=many", "--thread-pool-size=many: it takes a number from 0 to 256"),
        ("--tag=", "--tag=: it takes a name of 1 to 36 bytes"),
        ("--socket-path=", "--socket-path=: it takes a path"),
        ("--fd=-1", "--fd=-1: it takes the number of a descriptor"),
        ("--xattrmap=x", "--xattrmap=x: it takes rules"),
        ("--inode-file-handles=on", "--inode-file-handles=on: it takes one of never, prefer, mandatory"),
    ],
)
def test_virtiofsd_says_what_an_option_takes(words: str, said: str) -> None:
    with pytest.raises(UserError) as caught:
        virtiofsd.options_of([*_BASE, *words.split()])
    assert str(caught.value).startswith(said)


def test_the_help_of_serve_has_its_own_words_and_defaults() -> None:
    shown = " ".join(run("serve", "--help").stdout.split())
    assert "--no-writeback is the default" in shown
    assert "no_" not in shown
    assert "may idmap its mount, where its kernel can (6.12; the default)" in shown


def test_serve_refuses_what_cannot_be_shared() -> None:
    for path in ("/nonexistent", "/dev/null"):
        line = refusal(run("serve", f"--shared-dir={path}", "--socket-path=/run/passthrough-test-s"), exitcodes.SOURCE)
        assert path in line


def test_the_capabilities_and_the_file_for_managers() -> None:
    result = run("serve", "--print-capabilities")
    assert json.loads(result.stdout) == serve.CAPABILITIES
    described = json.loads((ROOT / "share" / "50-passthrough.json").read_text())
    assert described["type"] == serve.CAPABILITIES["type"] == "fs"
    assert described["binary"].endswith("/passthrough-virtiofsd")


def test_what_the_options_let_the_share_have(tmp_path: Path) -> None:
    def flags(options: ServeOptions) -> tuple[int, int]:
        tree = Tree(os.open(tmp_path, os.O_PATH), options.tree())
        return tree.flags, tree.open_flags(os.O_RDONLY | os.O_DIRECT | os.O_NOATIME)

    plain, opened = flags(ServeOptions())
    assert opened == os.O_RDONLY
    assert not plain & (c.FUSE_POSIX_ACL | c.FUSE_HANDLE_KILLPRIV_V2 | c.FUSE_PASSTHROUGH)
    assert not plain & (c.FUSE_WRITEBACK_CACHE | c.FUSE_FLOCK_LOCKS | c.FUSE_POSIX_LOCKS | c.FUSE_ATOMIC_O_TRUNC)
    assert plain & c.FUSE_SUBMOUNTS
    assert plain & c.FUSE_DO_READDIRPLUS
    assert plain & c.FUSE_DIRECT_IO_ALLOW_MMAP
    for options, flag in (
        (ServeOptions(xattr=True, posix_acl=True), c.FUSE_POSIX_ACL),
        (ServeOptions(killpriv_v2=True), c.FUSE_HANDLE_KILLPRIV_V2 | c.FUSE_ATOMIC_O_TRUNC),
        (ServeOptions(writeback=True), c.FUSE_WRITEBACK_CACHE),
        (ServeOptions(flock=True), c.FUSE_FLOCK_LOCKS),
        (ServeOptions(posix_lock=True), c.FUSE_POSIX_LOCKS),
    ):
        assert flags(options)[0] & flag == flag
    assert not flags(ServeOptions(allow_mmap=False))[0] & c.FUSE_DIRECT_IO_ALLOW_MMAP
    assert not flags(ServeOptions(announce_submounts=False))[0] & c.FUSE_SUBMOUNTS
    assert not flags(ServeOptions(readdirplus=ReaddirPlus.NO))[0] & c.FUSE_DO_READDIRPLUS
    assert flags(ServeOptions(allow_direct_io=True))[1] == os.O_RDONLY | os.O_DIRECT
    assert flags(ServeOptions(preserve_noatime=True))[1] == os.O_RDONLY | os.O_NOATIME


def test_without_xattr_there_are_none(tmp_path: Path) -> None:
    with backend(shared=tmp_path) as own, own.front() as front:
        client = Client(front)
        client.init()
        with pytest.raises(ReplyError) as error:
            client.call("listxattr", 1, bytes(8), room=64)
        assert error.value.errno == errno.ENOSYS
